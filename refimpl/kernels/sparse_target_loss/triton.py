"""The loss on a sparse target in Triton: a program reads a row once, tile after tile of classes.

So does the way back, which knows the row's logsumexp already. Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.sparse_target_loss.composed import with_torch


@triton.jit
def forward(
    logits,
    indices,
    probabilities,
    losses,
    normalisers,
    sums,
    classes,
    kept,
    REAL: tl.constexpr,
    TILE: tl.constexpr,
    KEPT: tl.constexpr,
):
    """logits (rows, classes); indices, probabilities (rows, kept); the others (rows,).

    normalisers: logsumexp of a row; sums: Σ_c z_c − C·max z, which is small where a row is flat.
    """
    row = tl.program_id(0).to(tl.int64)
    high = tl.full([1], float("-inf"), REAL)
    exponentials = tl.zeros([1], REAL)
    plain = tl.zeros([1], REAL)  # Σ (z − high)
    for start in range(0, classes, TILE):
        column = start + tl.arange(0, TILE)
        z = tl.load(logits + row * classes + column, column < classes, float("-inf")).to(REAL)
        higher = tl.maximum(high, tl.max(z, 0))
        raised = tl.where(exponentials > 0, higher - high, 0.0)  # nothing to shift in the first
        exponentials = exponentials * tl.exp(-raised) + tl.sum(tl.exp(z - higher), 0)
        plain -= raised * start
        plain += tl.sum(tl.where(column < classes, z - higher, 0.0), 0)
        high = higher
    total = tl.zeros([1], REAL)  # Σ p
    weighted = tl.zeros([1], REAL)  # Σ p (z − high)
    chosen = tl.zeros([1], REAL)  # Σ (z − high) of the stored classes
    for start in range(0, kept, KEPT):
        k = start + tl.arange(0, KEPT)
        p = tl.load(probabilities + row * kept + k, k < kept, 0.0).to(REAL)
        index = tl.load(indices + row * kept + k, k < kept, 0)
        z = tl.load(logits + row * classes + index, k < kept, 0.0).to(REAL)
        apart = tl.where(k < kept, z - high, 0.0)
        total += tl.sum(p, 0)
        weighted += tl.sum(p * apart, 0)
        chosen += tl.sum(apart, 0)
    others = classes - kept
    share = (1 - total) / tl.maximum(others, 1)
    scale = total + others * share  # T
    logarithm = tl.log(exponentials)
    loss = scale * logarithm - weighted + share * chosen - share * plain
    one = tl.arange(0, 1)
    tl.store(losses + row + one, loss)
    tl.store(normalisers + row + one, high + logarithm)
    tl.store(sums + row + one, plain - chosen)


@triton.jit
def backward(
    logits,
    normalisers,
    scales,
    shares,
    grads,
    out,
    classes,
    REAL: tl.constexpr,
    TILE: tl.constexpr,
):
    """logits, out (rows, classes); the others (rows,): out = grad · (T softmax(z) − m)."""
    row = tl.program_id(0).to(tl.int64)
    normaliser = tl.load(normalisers + row)
    scale = tl.load(scales + row)
    share = tl.load(shares + row)
    grad = tl.load(grads + row)
    for start in range(0, classes, TILE):
        column = start + tl.arange(0, TILE)
        here = column < classes
        z = tl.load(logits + row * classes + column, here, 0.0).to(REAL)
        tl.store(
            out + row * classes + column,
            grad * (scale * tl.exp(z - normaliser) - share),
            here,
        )


class TritonLoss(torch.autograd.Function):
    """The kernels as a differentiable function of logits and probabilities."""

    @staticmethod
    def forward(ctx, logits, indices, probabilities):
        real = wide(logits.dtype)
        rows, classes = logits.shape
        kept = indices.shape[1]
        logits = logits.contiguous()
        losses = torch.empty(rows, dtype=real, device=logits.device)
        normalisers = torch.empty_like(losses)
        others = torch.empty_like(losses)
        if rows:
            launch(
                *(forward, rows, logits, indices.contiguous(), probabilities.contiguous()),
                *(losses, normalisers, others, classes, kept),
                REAL=tl.float64 if real == torch.float64 else tl.float32,
                TILE=block_size(classes, 1024),
                KEPT=block_size(kept, 128),
            )
        ctx.save_for_backward(logits, indices, probabilities, normalisers, others)
        return losses.to(logits.dtype)

    @staticmethod
    def backward(ctx, grad):
        logits, indices, probabilities, normalisers, others = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again

            def function(logits, probabilities):
                return with_torch(logits, indices, probabilities)

            by_logits, by_probabilities = gradients(function, (logits, probabilities), grad)
            return by_logits, None, by_probabilities
        rows, classes = logits.shape
        kept = indices.shape[1]
        real = normalisers.dtype
        p = probabilities.to(real)
        grad = grad.to(real)
        share = (1 - p.sum(1)) / max(classes - kept, 1)
        scale = p.sum(1) + (classes - kept) * share
        by_logits = torch.empty_like(logits, dtype=real)
        if rows:
            launch(
                *(backward, rows, logits, normalisers, scale, share, grad, by_logits, classes),
                REAL=tl.float64 if real == torch.float64 else tl.float32,
                TILE=block_size(classes, 1024),
            )
        by_logits.scatter_add_(1, indices, grad[:, None] * (share[:, None] - p))
        apart = normalisers[:, None] - logits.gather(1, indices).to(real)  # −log softmax
        if kept < classes:  # more of p is less of m, for every other class
            apart -= (normalisers - mean_of_others(logits, others, classes - kept))[:, None]
        return by_logits.to(logits.dtype), None, (grad[:, None] * apart).to(probabilities.dtype)


def mean_of_others(logits: Tensor, others: Tensor, count: int) -> Tensor:
    """The mean logit of the classes that were not stored: (b,)."""
    return others / count + logits.amax(1).to(others.dtype)


def with_triton(logits: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
    """(b,), differentiable in logits and probabilities."""
    return TritonLoss.apply(logits, indices, probabilities)
