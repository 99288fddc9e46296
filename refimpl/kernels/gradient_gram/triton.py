"""Gram matrix of gradients in Triton: each program takes a run of weights, a second pass adds up.

Programs of the first pass write their part of the sum, so that the result is the same each time,
which atomic additions would not give. More than 64 samples are cut into tiles of 64 × 64. Equation
and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.gradient_gram.composed import with_torch

RUN = 16_384  # weights that a program reads


@triton.jit
def partial_gram(
    grads,
    parts,
    samples,
    weights,
    runs,
    across,
    REAL: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
):
    """grads: (b, samples, weights), contiguous; parts: (b, across, across, runs, SIDE, SIDE)."""
    program = tl.program_id(0)
    run = program % runs
    tile = program // runs
    row = tile // across % across * SIDE + tl.arange(0, SIDE)
    column = tile % across * SIDE + tl.arange(0, SIDE)
    first = (tile // (across * across)).to(tl.int64) * samples
    total = tl.zeros([SIDE, SIDE], REAL)
    for start in range(0, LENGTH, BLOCK):
        p = run * LENGTH + start + tl.arange(0, BLOCK)
        real = p[None, :] < weights
        left = (first + row)[:, None] * weights + p[None, :]
        right = (first + column)[:, None] * weights + p[None, :]
        a = tl.load(grads + left, real & (row < samples)[:, None], 0.0).to(REAL)
        b = tl.load(grads + right, real & (column < samples)[:, None], 0.0).to(REAL)
        total += tl.dot(a, tl.trans(b), input_precision="ieee", out_dtype=REAL)
    inside = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    tl.store(parts + program.to(tl.int64) * SIDE * SIDE + inside, total)


class GradientGram(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, grads, total):
        ctx.save_for_backward(grads, total)
        batch, samples, weights = grads.shape
        real = wide(grads.dtype)
        side = block_size(samples, 64, 16)  # tl.dot wants 16 at least
        across = triton.cdiv(samples, side)
        runs = triton.cdiv(weights, RUN)
        shape = (batch, across, across, runs, side, side)
        parts = torch.zeros(shape, dtype=real, device=grads.device)
        if parts.numel():
            block = block_size(weights, 2048 // side, 16)
            launch(
                partial_gram,
                batch * across * across * runs,
                *(grads.contiguous(), parts, samples, weights, runs, across),
                REAL=tl.float64 if real == torch.float64 else tl.float32,
                SIDE=side,
                BLOCK=block,
                LENGTH=min(RUN, triton.cdiv(weights, block) * block),
            )
        tiles = parts.sum(3)  # (b, across, across, side, side)
        whole = tiles.transpose(2, 3).reshape(batch, across * side, across * side)
        found = whole[:, :samples, :samples].contiguous()
        return found if total is None else found + total.to(real)

    @staticmethod
    def backward(ctx, grad):
        given, total = ctx.saved_tensors
        if total is None:
            return *gradients(with_torch, (given,), grad), None
        return gradients(with_torch, (given, total), grad)


def with_triton(gradients: Tensor, total: Tensor | None = None) -> Tensor:
    """(b, n, n), differentiable."""
    return GradientGram.apply(gradients, total)
