"""What is the KAN layer's own: the readable layer, far coordinates, tiles, refusals."""

from __future__ import annotations

import pytest
import torch

from refimpl.kernels.kan_layer import cost, example, kan_layer
from refimpl.papers.medvitv2 import KANLayer
from shared.kernels import needs_triton, problem
from shared.models import assert_refused

OP = "kan_layer"
FORMS = ["naive", "numpy", "torch", "triton"]


@pytest.mark.parametrize("backend", FORMS)
def test_is_what_the_readable_layer_computes(backend):
    needs_triton(backend)
    torch.manual_seed(0)
    layer = KANLayer(6, 4).double()
    x = torch.randn(9, 6).double()
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 1.5)
        parts = layer.norm.weight, layer.norm.bias, layer.grid, layer.spline.weight
        torch.testing.assert_close(kan_layer(x, *parts, backend=backend), layer(x))


@pytest.mark.parametrize("backend", FORMS)
def test_far_coordinates_are_silent_and_finite(backend):
    needs_triton(backend)
    given = problem(OP, dtype=torch.float32)
    given["norm_weight"] = torch.full_like(given["norm_weight"], 1e4)
    given["norm_bias"] = torch.full_like(given["norm_bias"], 1e6)
    found = kan_layer(**given, backend=backend)
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("tokens", [127, 128, 300])
@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_more_tokens_than_a_tile_holds(backend, tokens):
    needs_triton(backend)
    given = problem(OP, batch=tokens, width=35, outputs=70)
    wanted = kan_layer(**given)
    torch.testing.assert_close(kan_layer(**given, backend=backend), wanted, rtol=1e-9, atol=1e-9)


def test_cost_counts_eight_products_for_one():
    work = cost(**example("large"))
    assert work.flops == 196 * 8 * 192 * (2 * 384 + 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.randn(5, 7)), "norm_weight must be"),
        (dict(weight=torch.randn(4, 47)), "weight must be (outputs, 48), 8 bumps"),
        (dict(grid=torch.empty(0)), "bumps of grid"),
        (dict(x=torch.ones(5, 6, dtype=torch.int64)), "x must be a floating"),
    ],
)
def test_refusals(change, message):
    assert_refused(lambda: kan_layer(**example() | change), message)
