"""What is the Gram matrix's own: sums over layers, symmetry, many samples, long rows, refusals."""

from __future__ import annotations

import pytest
import torch

from refimpl.kernels.gradient_gram import cost, example, gradient_gram
from shared.kernels import needs_triton, problem
from shared.models import assert_refused

OP = "gradient_gram"

every_form = pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])
fast_forms = pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])


def rows(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


@every_form
def test_layers_one_after_the_other_are_all_of_them_at_once(backend):
    needs_triton(backend)
    whole = rows(2, 4, 15)
    total = None
    for part in whole.split([1, 4, 10], dim=2):
        total = gradient_gram(part, total, backend=backend)
    torch.testing.assert_close(total, gradient_gram(whole, backend="torch"))


@every_form
def test_the_total_that_was_given_is_left_alone(backend):
    needs_triton(backend)
    given = problem(OP, with_total=True)
    before = given["total"].clone()
    found = gradient_gram(**given, backend=backend)
    assert torch.equal(given["total"], before) and not torch.equal(found, before)


@every_form
def test_without_a_total_it_is_symmetric_and_has_squares_of_norms_on_its_diagonal(backend):
    needs_triton(backend)
    g = rows(1, 5, 9)
    found = gradient_gram(g, backend=backend)
    torch.testing.assert_close(found, found.mT)
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), g.square().sum(2))
    assert torch.linalg.eigvalsh(found).min() > 0


@fast_forms
@pytest.mark.parametrize("shape", [(1, 70, 33), (2, 3, 16_384), (1, 2, 40_001)])
def test_more_samples_than_a_tile_and_more_weights_than_a_run(backend, shape):
    needs_triton(backend)
    g = rows(*shape)
    torch.testing.assert_close(gradient_gram(g, backend=backend), g @ g.mT)


@fast_forms
def test_a_layer_without_weights_adds_nothing(backend):
    needs_triton(backend)
    total = rows(1, 3, 3)
    empty = torch.empty(1, 3, 0, dtype=torch.float64)
    torch.testing.assert_close(gradient_gram(empty, total, backend=backend), total)
    assert not gradient_gram(empty, backend=backend).any()


def test_the_same_numbers_each_time_in_triton():
    needs_triton()
    g = rows(1, 4, 40_001).float()
    found = [gradient_gram(g, backend="triton") for _ in range(2)]
    assert torch.equal(*found)


def test_cost_reads_gradients_once():
    work = cost(**example("large"))
    assert work.flops == 2 * 16**2 * 2**20
    assert work.bytes == 4 * (16 * 2**20 + 2 * 16**2)
    assert 7.9 < work.intensity < 8


@pytest.mark.parametrize(
    ("gradients", "total", "message"),
    [
        (torch.randn(3, 4), None, "gradients must be (batch, samples, weights)"),
        (torch.randn(1, 3, 4), torch.randn(1, 4, 4), "total must be"),
        (torch.randn(2, 3, 4), torch.randn(1, 3, 3), "total must be"),
        (torch.randn(1, 3, 4), torch.ones(1, 3, 3, dtype=torch.int64), "total must be a floating"),
    ],
)
def test_refusals(gradients, total, message):
    assert_refused(lambda: gradient_gram(gradients, total), message)
