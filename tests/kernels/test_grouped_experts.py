"""What is the grouped experts' own: queues of every length, sums of scores, refusals."""

from __future__ import annotations

import pytest
import torch

from refimpl.kernels.grouped_experts import cost, example, grouped_experts
from refimpl.papers.edge_moe import expert_by_expert
from shared.kernels import needs_triton, problem
from shared.models import assert_refused

OP = "grouped_experts"
FORMS = ["naive", "numpy", "torch", "triton"]

every_form = pytest.mark.parametrize("backend", FORMS)


@every_form
def test_is_the_papers_function(backend):
    needs_triton(backend)
    arguments = problem(OP, batch=7, dim=3, hidden=4, experts=5, choices=2)
    wanted = expert_by_expert(*arguments.values())
    torch.testing.assert_close(grouped_experts(**arguments, backend=backend), wanted)


@every_form
def test_all_tokens_at_one_expert(backend):
    """A full queue, and all others empty."""
    needs_triton(backend)
    arguments = problem(OP, batch=40, dim=3, hidden=4, experts=5, choices=1)
    arguments["chosen"].fill_(3)
    alone = {name: arguments[name][3:4] for name in ("w1", "b1", "w2", "b2")}
    alone |= {"chosen": torch.zeros_like(arguments["chosen"])}
    wanted = grouped_experts(**arguments | alone, backend="naive")
    torch.testing.assert_close(grouped_experts(**arguments, backend=backend), wanted)


@every_form
def test_an_expert_chosen_twice_counts_twice(backend):
    needs_triton(backend)
    arguments = problem(OP, batch=2, dim=3, hidden=4, experts=5, choices=1)
    twice = {name: arguments[name].repeat(1, 2) for name in ("chosen", "score")}
    wanted = 2 * grouped_experts(**arguments, backend="naive")
    torch.testing.assert_close(grouped_experts(**arguments | twice, backend=backend), wanted)


def test_experts_that_nobody_chose_are_not_read():
    arguments = example()
    arguments["chosen"].clamp_(max=2)
    arguments["w1"][3] = torch.nan
    assert grouped_experts(**arguments, backend="numpy").isfinite().all()


def test_cost_counts_each_used_expert_once():
    work = cost(**example("large"))
    assert work.flops == 258 * (4 * 192 * 384 + 8 * 384)
    weights = 16 * (2 * 192 * 384 + 192 + 384)
    assert work.bytes == 4 * (weights + 2 * 129 * 192) + 258 * 12
    assert 6 < work.intensity < 9  # half of 16 tokens an expert


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": torch.zeros(9, 2)}, "chosen must be int64"),
        ({"score": torch.ones(9, 3)}, "score must be"),
        ({"x": torch.ones(9, 16, dtype=torch.int64)}, "x must be a floating"),
        ({"w2": torch.ones(4, 8, 16)}, "w2 must be"),
    ],
)
def test_refusals(change, message):
    assert_refused(lambda: grouped_experts(**example() | change), message)
