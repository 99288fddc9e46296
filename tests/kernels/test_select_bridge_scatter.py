"""What is this operation's own: the routed block's form, ties, ends of the ratio, refusals."""

from __future__ import annotations

import pytest
import torch

from refimpl.kernels.select_bridge_scatter import cost, example, select_bridge_scatter
from refimpl.papers.toc3d import route
from shared.kernels import needs_triton, problem
from shared.models import assert_refused

OP = "select_bridge_scatter"

every_form = pytest.mark.parametrize("backend", ["naive", "numpy", "torch", "triton"])


@every_form
def test_equals_the_paper_s_readable_form(backend):
    needs_triton(backend)
    given = problem(OP)
    packed, routed = select_bridge_scatter(**given, backend=backend)
    seen = []

    def update(tokens, places):
        seen.append(tokens)
        return given["update"]

    keep = given["update"].shape[1] - 1
    torch.testing.assert_close(routed, route(given["tokens"], given["scores"], keep, update))
    torch.testing.assert_close(packed, seen[0])


@every_form
def test_of_equal_scores_the_first_token_is_kept(backend):
    needs_triton(backend)
    tokens = torch.arange(5.0).view(1, 5, 1)
    scores = torch.tensor([[-1.0, -2.0, -1.0, -2.0, -1.0]])
    update = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0]).view(1, 5, 1)
    packed, routed = select_bridge_scatter(tokens, scores, update, backend=backend)
    assert packed.flatten().tolist() == [0, 2, 4, 1, 3]  # the last one is its own bridge
    assert routed.flatten().tolist() == [10, 41, 22, 53, 34]


@every_form
def test_the_bridge_is_a_mean_and_moves_all_redundant_tokens_alike(backend):
    needs_triton(backend)
    given = problem(OP, tokens=33, share=0.3)
    same = given | {"tokens": torch.full_like(given["tokens"], 3.0)}
    packed, _ = select_bridge_scatter(**same, backend=backend)
    torch.testing.assert_close(packed, torch.full_like(packed, 3.0))
    _, routed = select_bridge_scatter(**given, backend=backend)
    change = routed - given["tokens"]
    keep = given["update"].shape[1] - 1
    moved = (change - given["update"][:, keep:]).abs().amax(-1) < 1e-9
    assert (moved.sum(1) == 33 - keep).all()


@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_windows_of_the_paper_s_size(backend):
    """More tokens and channels than a tile of either holds, neither a multiple of it."""
    needs_triton(backend)
    given = problem(OP, batch=1, tokens=256, share=0.7, channels=130)
    wanted = select_bridge_scatter(**given, backend="torch")
    torch.testing.assert_close(select_bridge_scatter(**given, backend=backend), wanted)


def test_cost_is_bound_by_moving():
    given = example("large")
    work = cost(**given)
    rows = 3 * 256 + 2 * 180
    assert work.bytes == 4 * 8 * (rows * 1024 + 256)
    assert 0.05 < work.intensity < 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(update=torch.randn(2, 1, 8)), "update has 1 rows"),
        (dict(update=torch.randn(2, 10, 8)), "update has 10 rows"),
        (dict(update=torch.randn(2, 5, 7)), "update must be"),
        (dict(scores=torch.randn(2, 8)), "scores must be"),
        (dict(scores=torch.ones(2, 9, dtype=torch.int64)), "scores must be a floating-point"),
    ],
)
def test_refusals(change, message):
    assert_refused(lambda: select_bridge_scatter(**example() | change), message)
