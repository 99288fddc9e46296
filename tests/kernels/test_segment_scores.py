"""What is the segment scores' own: ways to cut a matrix, squares of sums, refusals."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from refimpl.kernels.segment_scores import cost, example, segment_scores
from shared.kernels import needs_triton, problem
from shared.models import assert_refused

OP = "segment_scores"

every_form = pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])


def matrices(rows=6, columns=8):
    return torch.randn(2, rows, columns, dtype=torch.float64).unbind()


@every_form
def test_rows_columns_slabs_and_units_of_every_head(backend):
    needs_triton(backend)
    w, d = matrices()
    product = w * d
    by_head = "(h d) i -> h d i"
    cuts = {
        "rows": ("r c -> 1 1 r c", product.sum(1)),
        "columns": ("r c -> 1 r c 1", product.sum(0)),
        "slabs": ("(h d) c -> 1 1 h (d c)", rearrange(product, by_head, h=2).sum((1, 2))),
        "units": ("(h d) c -> 1 h d c", rearrange(product, by_head, h=2).sum((0, 2))),
    }
    for name, (pattern, sums) in cuts.items():
        heads = {"h": 2} if "h" in pattern else {}
        views = [rearrange(x, pattern, **heads) for x in (w, d)]
        found = segment_scores(*views, backend=backend)
        torch.testing.assert_close(found[0], sums.square(), msg=name)


@every_form
def test_opposite_products_cancel_before_the_square(backend):
    needs_triton(backend)
    w = torch.ones(1, 2, 3, 4)
    d = torch.tensor([1.0, -1.0, 2.0, -2.0]).expand(w.shape)
    assert not segment_scores(w, d, backend=backend).any()
    assert (segment_scores(w, d.abs(), backend=backend) == 12.0**2).all()


@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_groups_and_tiles_that_are_not_full(backend):
    needs_triton(backend)
    for shape in ((2, 3, 131, 1), (2, 1, 5, 1100), (1, 37, 67, 2)):
        w, d = torch.randn(2, *shape, dtype=torch.float64).unbind()
        wanted = (w * d).sum((1, 3)).square()
        torch.testing.assert_close(segment_scores(w, d, backend=backend), wanted)


@every_form
def test_moving_scale_from_weights_to_gradients_changes_nothing(backend):
    """What makes scores of two layers comparable: w·a and dL/d(w·a) = dL/dw / a."""
    needs_triton(backend)
    given = problem(OP)
    moved = segment_scores(given["weight"] * 4, given["gradient"] / 4, backend=backend)
    torch.testing.assert_close(moved, segment_scores(**given, backend=backend))


def test_no_weights_at_all_sum_to_nothing():
    empty = torch.randn(2, 0, 3, 4)
    for backend in ("naive", "numpy", "torch"):
        assert not segment_scores(empty, empty, backend=backend).any()


def test_cost_reads_both_once():
    work = cost(**example("large"))
    assert work.flops == 2 * 12 * 3072 * 768
    assert work.bytes == 8 * 12 * 3072 * 768 + 4 * 12 * 3072
    assert 0.249 < work.intensity < 0.25


@pytest.mark.parametrize(
    ("weight", "gradient", "message"),
    [
        (torch.randn(3, 4), torch.randn(3, 4), "weight must be"),
        (torch.randn(1, 2, 3, 4), torch.randn(1, 2, 4, 3), "gradient must be"),
        (torch.ones(1, 2, 3, 4, dtype=torch.int64), torch.randn(1, 2, 3, 4), "weight must be a"),
    ],
)
def test_refusals(weight, gradient, message):
    assert_refused(lambda: segment_scores(weight, gradient), message)
