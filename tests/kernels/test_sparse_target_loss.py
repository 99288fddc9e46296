"""What is the sparse target's own: the dense label, the recorded loss, edges of K, refusals."""

from __future__ import annotations

import pytest
import torch

from refimpl import golden
from refimpl.kernels.sparse_target_loss import cost, example, sparse_target_loss
from shared.kernels import needs_triton, problem, target_composed
from shared.models import assert_refused

OP = "sparse_target_loss"
FORMS = ["naive", "numpy", "torch", "triton"]

every_form = pytest.mark.parametrize("backend", FORMS)


@every_form
def test_recorded_loss_and_gradient(backend):
    """What the official code makes of its own records."""
    needs_triton(backend)
    case = golden.load("tinyvit", "sparse_logits")
    logits, indices, p = (
        torch.from_numpy(case.recorded(name)) for name in ("student_logits", "indices", "values")
    )
    differentiable = backend in ("torch", "triton")
    logits.requires_grad_(differentiable)
    loss = sparse_target_loss(logits, indices.long(), p, backend).mean()
    wanted = torch.from_numpy(case.recorded("loss")).squeeze()
    torch.testing.assert_close(loss.detach().float(), wanted)
    if differentiable:
        (grad,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(grad, torch.from_numpy(case.recorded("grad_student")))


@every_form
@pytest.mark.parametrize("total", [0.9, 1.0, 1.1])
def test_all_classes_kept_leave_nothing_to_share(backend, total):
    """K = C: whatever the probabilities sum to, the label is just these."""
    needs_triton(backend)
    logits = torch.randn(3, 6, dtype=torch.float64)
    p, indices = torch.randn(3, 6).double().softmax(1).topk(6)
    p = total * p
    wanted = -(p * logits.log_softmax(1).gather(1, indices)).sum(1)
    found = sparse_target_loss(logits, indices, p, backend)
    torch.testing.assert_close(found, wanted)


@every_form
def test_one_class_alone_teaches_nothing(backend):
    needs_triton(backend)
    one = torch.ones(2, 1, dtype=torch.float64)
    found = sparse_target_loss(5 * one, torch.zeros(2, 1, dtype=torch.int64), one, backend)
    assert found.abs().max() < 1e-12


@every_form
def test_large_logits_and_a_shift_of_all(backend):
    needs_triton(backend)
    arguments = problem(OP, dtype=torch.float32, classes=300, kept=5)
    plain = sparse_target_loss(**arguments, backend=backend)
    arguments["logits"] = arguments["logits"] + 1000
    torch.testing.assert_close(
        sparse_target_loss(**arguments, backend=backend), plain, rtol=1e-3, atol=1e-3
    )
    arguments["logits"] = torch.zeros(9, 300)
    arguments["logits"][:, 7] = 1e4
    arguments = {name: value[:1].expand(9, -1) for name, value in arguments.items()}
    found = sparse_target_loss(**arguments, backend=backend)
    torch.testing.assert_close(found, target_composed(**arguments), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("rising", [True, False])
def test_a_maximum_that_rises_from_tile_to_tile(rising):
    needs_triton()
    logits = torch.linspace(-40, 40, 1100, dtype=torch.float64).expand(2, -1)
    logits = logits if rising else logits.flip(-1)
    p, indices = torch.randn(2, 1100).double().softmax(1).topk(150)
    torch.testing.assert_close(
        sparse_target_loss(logits, indices, p, "triton"),
        target_composed(logits, indices, p),
        rtol=1e-11,
        atol=1e-11,
    )


@pytest.mark.parametrize("kept", [1, 3])
def test_gradient_of_triton_can_be_taken_again(kept):
    needs_triton()
    arguments = problem(OP, classes=3, kept=kept, batch=1)
    logits, p = arguments["logits"].requires_grad_(), arguments["probabilities"].requires_grad_()

    def function(logits, p):
        return sparse_target_loss(logits, arguments["indices"], p, "triton")

    assert torch.autograd.gradcheck(function, (logits, p))
    assert torch.autograd.gradgradcheck(function, (logits, p))


def test_cost_counts_logits_once():
    work = cost(**example("large"))
    assert work.flops == 4 * 128 * (21_841 + 100)
    assert work.bytes == 128 * (4 * 21_841 + 12 * 100 + 4)
    assert work.intensity < 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logits": torch.randn(9)}, "logits must be"),
        ({"logits": torch.ones(9, 10, dtype=torch.int64)}, "logits must be a floating"),
        ({"probabilities": torch.randn(9, 3)}, "probabilities must be"),
        ({"indices": torch.zeros(9, 2)}, "indices must be int64 numbers of classes"),
        ({"indices": torch.zeros(8, 2, dtype=torch.int64)}, "indices must be"),
    ],
)
def test_refusals(change, words):
    arguments = problem(OP, dtype=torch.float32, batch=9, classes=10, kept=2)
    assert_refused(lambda: sparse_target_loss(**arguments | change), words)


@pytest.mark.parametrize("kept", [0, 4])
def test_more_classes_than_there_are_or_none(kept):
    arguments = {
        "logits": torch.randn(2, 3),
        "indices": torch.zeros(2, kept, dtype=torch.int64),
        "probabilities": torch.zeros(2, kept),
    }
    assert_refused(lambda: sparse_target_loss(**arguments), f"all that there are; got {kept}")
