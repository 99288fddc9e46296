"""What is the exit scores' own: bounds, large logits, the running maximum, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from refimpl.bases.early_exit import Confidence, Entropy
from refimpl.kernels.exit_scores import cost, example, exit_scores
from shared.kernels import needs_triton, problem
from shared.models import assert_refused

OP = "exit_scores"
FORMS = ["naive", "numpy", "torch", "triton"]

every_form = pytest.mark.parametrize("backend", FORMS)


@every_form
def test_equal_logits_are_as_unsure_as_can_be(backend):
    needs_triton(backend)
    confidence, entropy = exit_scores(torch.full((3, 7), 5.0), backend=backend)
    torch.testing.assert_close(confidence, torch.full((3,), 1 / 7))
    torch.testing.assert_close(entropy, torch.full((3,), math.log(7)))


@every_form
def test_a_certain_row_has_confidence_one_and_no_entropy(backend):
    needs_triton(backend)
    logits = torch.zeros(2, 600)
    logits[0, 3] = logits[1, 599] = 1e4
    confidence, entropy = exit_scores(logits, backend=backend)
    assert confidence.tolist() == [1, 1] and entropy.abs().max() < 1e-6


@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("rising", [True, False])
def test_a_maximum_that_rises_from_tile_to_tile(backend, rising):
    needs_triton(backend)
    logits = torch.linspace(-40, 40, 2100, dtype=torch.float64).expand(3, -1)
    logits = logits if rising else logits.flip(-1)
    for found, wanted in zip(
        exit_scores(logits, backend=backend), exit_scores(logits, backend="torch"), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@every_form
def test_a_shift_of_all_logits_changes_nothing(backend):
    needs_triton(backend)
    logits = problem(OP)["logits"]
    for shifted, plain in zip(
        exit_scores(logits + 100, backend=backend),
        exit_scores(logits, backend=backend),
        strict=True,
    ):
        torch.testing.assert_close(shifted, plain)


def test_rules_of_early_exits_compare_these_scores():
    logits = problem(OP, batch=9)["logits"]
    confidence, entropy = exit_scores(logits)
    seen = logits[None]
    assert torch.equal(Confidence(0.6)(seen), confidence > 0.6)
    assert torch.equal(Entropy(0.9)(seen), entropy < 0.9)


def test_cost_counts_logits_once():
    work = cost(**example("large"))
    assert work.flops == 6 * 1024 * 1000
    assert work.bytes == 4 * 1024 * 1002
    assert work.intensity < 2


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.randn(5), "logits must be"),
        (torch.randn(5, 0), "logits must hold at least one class, got (5, 0)"),
        (torch.ones(2, 3, dtype=torch.int64), "logits must be a floating"),
    ],
)
def test_refusals(logits, message):
    assert_refused(lambda: exit_scores(logits), message)
