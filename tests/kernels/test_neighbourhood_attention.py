"""What is the windows' own: borders, remainders, plain attention as a limit, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refimpl.kernels.neighbourhood_attention import cost, example, neighbourhood_attention
from refimpl.papers import medvitv2
from shared.kernels import needs_triton, problem
from shared.models import assert_refused

OP = "neighbourhood_attention"
FORMS = ["naive", "numpy", "torch", "triton"]


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (2, 2)])
def test_is_what_the_readable_form_computes(backend, dilation):
    needs_triton(backend)
    arguments = problem(OP, window_size=(3, 3), dilation=dilation, spare=(1, 2))
    found = neighbourhood_attention(**arguments, backend=backend)
    bias = arguments.pop("bias")
    wanted, _ = medvitv2.neighbourhood_attention(**arguments, bias=bias)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", FORMS)
def test_a_window_that_fills_the_map_is_plain_attention(backend):
    needs_triton(backend)
    given = problem(OP, window_size=(3, 5), dilation=(1, 1), spare=(0, 0), with_bias=False)
    flat = [given[name].flatten(2, 3) for name in ("queries", "keys", "values")]
    found = neighbourhood_attention(**given, backend=backend).flatten(2, 3)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*flat))


@pytest.mark.parametrize("backend", FORMS)
def test_tokens_of_other_remainders_are_never_read(backend):
    needs_triton(backend)
    given = problem(OP, window_size=(3, 3), dilation=(2, 2), spare=(1, 1), with_bias=False)
    wanted = neighbourhood_attention(**given, backend=backend)
    for name in ("keys", "values"):
        given[name][:, :, 1::2] = torch.nan
        given[name][:, :, :, 1::2] = torch.nan
    found = neighbourhood_attention(**given, backend=backend)
    torch.testing.assert_close(found[:, :, ::2, ::2], wanted[:, :, ::2, ::2])


def test_with_and_without_gradients_alike():
    """PyTorch's fused attention serves where nobody asks for a gradient."""
    given = problem(OP)
    wanted = neighbourhood_attention(**given)
    asked = {name: v.clone().requires_grad_() for name, v in given.items() if torch.is_tensor(v)}
    torch.testing.assert_close(neighbourhood_attention(**given | asked), wanted)


@pytest.mark.parametrize("backend", FORMS)
def test_large_scores_do_not_overflow(backend):
    needs_triton(backend)
    given = problem(OP, dtype=torch.float32)
    given["keys"] = 1e5 * given["keys"]
    assert neighbourhood_attention(**given, backend=backend).isfinite().all()


def test_cost_counts_a_windows_keys():
    work = cost(**example("large"))
    queries = 8 * 2 * 56 * 56
    assert work.flops == queries * 49 * (4 * 32 + 5)
    assert 12 < work.intensity < 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keys=torch.randn(2, 2, 5, 5, 8)), "keys must be"),
        (dict(bias=torch.randn(2, 5, 4)), "bias must be (heads, 5, 5)"),
        (dict(window_size=(4, 3)), "must be odd"),
        (dict(window_size=(7, 3), bias=None), "grid of 5×6 tokens is too small"),
        (dict(dilation=(2, 1)), "window_size=3 with dilation=2, which need 6"),
        (dict(dilation=(0, 1)), "dilation[0]=0"),
        (dict(queries=torch.ones(2, 2, 5, 6, 8, dtype=torch.int64)), "must be a floating"),
    ],
)
def test_refusals(change, message):
    assert_refused(lambda: neighbourhood_attention(**example() | change), message)
