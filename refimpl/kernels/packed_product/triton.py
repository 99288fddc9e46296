"""The packed product in Triton: words are read, spread over registers, multiplied.

One program computes a tile of (rows, outputs). Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import gradients, launch, wide
from refimpl.kernels.packed_product.composed import with_torch
from refimpl.kernels.packed_product.reference import per_word

BLOCK_OUTPUTS = 32
BLOCK_INPUTS = 32


@triton.jit
def product(
    x,
    qweight,
    qzeros,
    scales,
    y,
    rows,
    inputs,
    outputs,
    group_size,
    zero_words,
    row_blocks,
    REAL: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """x: (rows, inputs); qweight: (⌈inputs/PER⌉, outputs); y: (rows, outputs)."""
    per: tl.constexpr = 32 // BITS
    lowest: tl.constexpr = (1 << BITS) - 1  # the bits of one code
    program = tl.program_id(0)
    row = (program % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    output = (program // row_blocks).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    has_row = (row < rows)[:, None]
    has_output = (output < outputs)[None, :]
    total = tl.zeros((ROWS, OUTPUTS), REAL)
    for start in range(0, inputs, INPUTS):
        i = start + tl.arange(0, INPUTS)
        there = (i < inputs)[:, None] & has_output
        words = tl.load(qweight + (i // per)[:, None] * outputs + output[None, :], there, 0)
        code = (words >> (i % per * BITS)[:, None]) & lowest
        group = (i // group_size)[:, None]
        words = tl.load(qzeros + group * zero_words + (output // per)[None, :], there, 0)
        zero = (words >> (output % per * BITS).to(tl.int32)[None, :]) & lowest
        scale = tl.load(scales + group * outputs + output[None, :], there, 0.0).to(REAL)
        part = tl.load(x + row[:, None] * inputs + i[None, :], has_row & (i < inputs)[None, :], 0.0)
        weight = (code - zero).to(REAL) * scale
        total += tl.dot(part.to(REAL), weight, input_precision="ieee", out_dtype=REAL)
    tl.store(y + row[:, None] * outputs + output[None, :], total, has_row & has_output)


class TritonProduct(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, x, qweight, qzeros, scales, bits):
        ctx.save_for_backward(x, qweight, qzeros, scales)
        ctx.bits = bits
        rows, inputs = x.shape
        groups, outputs = scales.shape
        y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
        if y.numel() == 0:
            return y
        block_rows = 16 if rows <= 16 else 64
        row_blocks = triton.cdiv(rows, block_rows)
        launch(
            product,
            row_blocks * triton.cdiv(outputs, BLOCK_OUTPUTS),
            *(t.contiguous() for t in (x, qweight, qzeros, scales)),
            y,
            *(rows, inputs, outputs, inputs // groups, -(-outputs // per_word(bits)), row_blocks),
            REAL=tl.float64 if wide(x.dtype) == torch.float64 else tl.float32,
            BITS=bits,
            ROWS=block_rows,
            OUTPUTS=BLOCK_OUTPUTS,
            INPUTS=BLOCK_INPUTS,
        )
        return y

    @staticmethod
    def backward(ctx, grad):
        x, qweight, qzeros, scales = ctx.saved_tensors

        def function(x, scales):
            return with_torch(x, qweight, qzeros, scales, bits=ctx.bits)

        of_x, of_scales = gradients(function, (x, scales), grad)
        return of_x, None, None, of_scales, None


def with_triton(
    x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor, *, bits: int = 4
) -> Tensor:
    """(b, n), differentiable in x and scales."""
    return TritonProduct.apply(x, qweight, qzeros, scales, bits)
