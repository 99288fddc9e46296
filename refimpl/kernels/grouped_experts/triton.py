"""Experts in Triton: one kernel, called for the first layers and for the second.

A program computes a block of one expert's visits times a block of outputs; blocks beyond the end of
a queue return at once. Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import gradients, launch, wide
from refimpl.kernels.grouped_experts.composed import with_torch

BLOCK = 32
HALF_ROOT = tl.constexpr(0.7071067811865476)


@triton.jit
def linear(
    x,
    source,
    starts,
    order,
    factor,
    weight,
    bias,
    y,
    inputs,
    outputs,
    row_blocks,
    column_blocks,
    GELU: tl.constexpr,
    REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y[v] = φ(W_e x[source[v]] + b_e), or factor[v] · (…) without φ, for each visit v of e.

    order: (visits) visits by expert; starts: (e + 1) where each queue begins in it; source, factor:
    (visits) row of x, and weight; weight: (e, outputs, inputs); y: (visits, outputs).
    """
    program = tl.program_id(0)
    column_block = program % column_blocks
    expert = (program // column_blocks // row_blocks).to(tl.int64)
    first = tl.load(starts + expert)
    last = tl.load(starts + expert + 1)
    place = first + (program // column_blocks % row_blocks) * BLOCK + tl.arange(0, BLOCK)
    there = place < last
    if tl.sum(there.to(tl.int32), 0) > 0:
        visit = tl.load(order + place, there, 0)
        row = tl.load(source + visit, there, 0)
        output = column_block * BLOCK + tl.arange(0, BLOCK)
        has_output = output < outputs
        total = tl.zeros((BLOCK, BLOCK), REAL)
        for start in range(0, inputs, BLOCK):
            i = start + tl.arange(0, BLOCK)
            has = i < inputs
            part = tl.load(x + row[:, None] * inputs + i, there[:, None] & has[None, :], 0.0)
            at = weight + (expert * outputs + output[None, :]) * inputs + i[:, None]
            matrix = tl.load(at, has[:, None] & has_output[None, :], 0.0)
            total += tl.dot(part.to(REAL), matrix.to(REAL), input_precision="ieee", out_dtype=REAL)
        total += tl.load(bias + expert * outputs + output, has_output, 0.0).to(REAL)[None, :]
        if GELU:
            total = total * 0.5 * (1 + tl.erf(total * HALF_ROOT))
        else:
            total *= tl.load(factor + visit, there, 0.0).to(REAL)[:, None]
        keep = there[:, None] & has_output[None, :]
        tl.store(y + visit[:, None] * outputs + output[None, :], total, keep)


class TritonExperts(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, x, chosen, score, w1, b1, w2, b2):
        ctx.save_for_backward(x, chosen, score, w1, b1, w2, b2)
        tokens, dim = x.shape
        experts, hidden, _ = w1.shape
        if tokens == 0:
            return torch.empty_like(x)
        choices = chosen.shape[1]
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        starts = torch.zeros(experts + 1, dtype=torch.int64, device=x.device)
        starts[1:] = torch.bincount(flat, minlength=experts).cumsum(0)
        visits = torch.arange(len(flat), device=x.device)
        real = wide(x.dtype)
        inner = torch.empty(len(flat), hidden, dtype=real, device=x.device)
        outer = torch.empty(len(flat), dim, dtype=real, device=x.device)
        blocks = triton.cdiv(len(flat), BLOCK)
        layers = (
            (x, visits // choices, w1, b1, inner, True),
            (inner, visits, w2, b2, outer, False),
        )
        for given, source, weight, bias, made, activated in layers:
            outputs, inputs = weight.shape[1:]
            columns = triton.cdiv(outputs, BLOCK)
            launch(
                linear,
                experts * blocks * columns,
                *(given.contiguous(), source, starts, order, score.contiguous()),
                *(weight.contiguous(), bias.contiguous(), made),
                *(inputs, outputs, blocks, columns),
                GELU=activated,
                REAL=tl.float64 if real == torch.float64 else tl.float32,
                BLOCK=BLOCK,
            )
        return outer.view(tokens, choices, dim).sum(1).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, chosen, score, w1, b1, w2, b2 = ctx.saved_tensors

        def function(x, score, w1, b1, w2, b2):
            return with_torch(x, chosen, score, w1, b1, w2, b2)

        of_x, *rest = gradients(function, (x, score, w1, b1, w2, b2), grad)
        return of_x, None, *rest


def with_triton(
    x: Tensor, chosen: Tensor, score: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> Tensor:
    """(n, d), differentiable; sums over choices in the order of the choices, without atomics."""
    return TritonExperts.apply(x, chosen, score, w1, b1, w2, b2)
