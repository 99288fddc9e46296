"""Confidence and entropy in Triton: a program reads a few rows once, tile after tile of classes.

Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.exit_scores.composed import with_torch

ROWS = 4  # of one program


@triton.jit
def score(
    logits,
    confidences,
    entropies,
    rows,
    classes,
    REAL: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """logits (rows, classes); confidences, entropies (rows,)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    has_row = row < rows
    high = tl.full([ROWS], float("-inf"), REAL)
    total = tl.zeros([ROWS], REAL)
    weighted = tl.zeros([ROWS], REAL)
    for start in range(0, classes, TILE):
        column = start + tl.arange(0, TILE)
        here = has_row[:, None] & (column < classes)[None, :]
        place = row.to(tl.int64)[:, None] * classes + column[None, :]
        z = tl.load(logits + place, here, float("-inf")).to(REAL)
        higher = tl.maximum(high, tl.max(z, 1))
        known = tl.where(has_row, higher, 0.0)
        raised = tl.where(total > 0, known - high, 0.0)  # nothing to shrink in the first tile
        shrink = tl.exp(-raised)
        weighted = shrink * (weighted - raised * total)
        total = shrink * total
        apart = tl.where(z > float("-inf"), z - known[:, None], 0.0)  # else 0 · (−∞) below
        weights = tl.where(z > float("-inf"), tl.exp(apart), 0.0)
        total += tl.sum(weights, 1)
        weighted += tl.sum(weights * apart, 1)
        high = higher
    total = tl.where(has_row, total, 1.0)
    tl.store(confidences + row, 1 / total, has_row)
    tl.store(entropies + row, tl.log(total) - weighted / total, has_row)


class TritonScores(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(logits)
        real = wide(logits.dtype)
        rows, classes = logits.shape
        confidences = torch.empty(rows, dtype=real, device=logits.device)
        entropies = torch.empty_like(confidences)
        if rows:
            launch(
                score,
                triton.cdiv(rows, ROWS),
                *(logits.contiguous(), confidences, entropies, rows, classes),
                REAL=tl.float64 if real == torch.float64 else tl.float32,
                ROWS=ROWS,
                TILE=block_size(classes, 1024),
            )
        return confidences, entropies

    @staticmethod
    def backward(ctx, *grads):
        def function(logits):
            return tuple(result.to(grads[0].dtype) for result in with_torch(logits))

        return gradients(function, ctx.saved_tensors, grads)


def with_triton(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(b,) each, differentiable."""
    return TritonScores.apply(logits)
