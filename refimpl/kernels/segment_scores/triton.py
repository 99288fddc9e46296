"""Scores of groups of weights in Triton: a program for a few groups, which reads them once.

Where a group's weights lie side by side, few groups and long tiles are read; where they lie a row
apart, many groups and short ones: both ways neighbours in memory are read together. Equation and
shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.segment_scores.composed import with_torch


@triton.jit
def sums_of_products(
    weight,
    gradient,
    scores,
    outer,
    groups,
    inner,
    group_blocks,
    REAL: tl.constexpr,
    GROUPS: tl.constexpr,
    TILE: tl.constexpr,
):
    """weight, gradient: (b, outer, groups, inner), contiguous; scores: (b, groups)."""
    program = tl.program_id(0)
    matrix = (program // group_blocks).to(tl.int64)
    group = program % group_blocks * GROUPS + tl.arange(0, GROUPS)
    real = group < groups
    total = tl.zeros([GROUPS], REAL)
    for start in range(0, outer * inner, TILE):
        t = start + tl.arange(0, TILE)
        row = matrix * outer + t // inner  # of batch · outer
        place = (row[None, :] * groups + group[:, None]) * inner + (t % inner)[None, :]
        here = real[:, None] & (t < outer * inner)[None, :]
        w = tl.load(weight + place, here, 0.0).to(REAL)
        d = tl.load(gradient + place, here, 0.0).to(REAL)
        total += tl.sum(w * d, 1)
    tl.store(scores + matrix * groups + group, total * total, real)


class SegmentScores(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, weight, gradient):
        ctx.save_for_backward(weight, gradient)
        batch, outer, groups, inner = weight.shape
        real = wide(weight.dtype)
        scores = torch.empty(batch, groups, dtype=real, device=weight.device)
        side_by_side = inner > 1
        block = block_size(groups, 4 if side_by_side else 64)
        across = triton.cdiv(groups, block)
        if scores.numel():
            launch(
                sums_of_products,
                batch * across,
                *(weight.contiguous(), gradient.contiguous(), scores, outer, groups, inner, across),
                REAL=tl.float64 if real == torch.float64 else tl.float32,
                GROUPS=block,
                TILE=block_size(outer * inner, 512 if side_by_side else 32),
            )
        return scores

    @staticmethod
    def backward(ctx, grad):
        return gradients(with_torch, ctx.saved_tensors, grad)


def with_triton(weight: Tensor, gradient: Tensor) -> Tensor:
    """(b, groups), differentiable."""
    return SegmentScores.apply(weight, gradient)
