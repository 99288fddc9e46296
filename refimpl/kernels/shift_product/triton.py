"""The shift product in Triton: five bits a weight are read and become a float by their exponent.

One program computes a tile of (rows, outputs). Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import gradients, launch, wide
from refimpl.kernels.shift_product.composed import with_torch

BLOCK_OUTPUTS = 32
BLOCK_INPUTS = 32


@triton.jit
def product(
    x,
    codes,
    y,
    rows,
    inputs,
    outputs,
    row_blocks,
    REAL: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """x: (rows, inputs); codes: (⌈inputs/6⌉, outputs); y: (rows, outputs)."""
    program = tl.program_id(0)
    row = (program % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    output = (program // row_blocks).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    has_row = (row < rows)[:, None]
    has_output = (output < outputs)[None, :]
    total = tl.zeros((ROWS, OUTPUTS), REAL)
    for start in range(0, inputs, INPUTS):
        i = start + tl.arange(0, INPUTS)
        there = (i < inputs)[:, None] & has_output
        words = tl.load(codes + (i // 6)[:, None] * outputs + output[None, :], there, 0)
        code = words >> (i % 6 * 5)[:, None]
        exponent = code & 15
        pattern = (127 - exponent) << 23 | (code >> 4 & 1) << 31  # of a float32: exponent, sign
        weight = tl.where(exponent == 15, 0.0, pattern.to(tl.float32, bitcast=True))
        part = tl.load(x + row[:, None] * inputs + i[None, :], has_row & (i < inputs)[None, :], 0.0)
        total += tl.dot(part.to(REAL), weight.to(REAL), input_precision="ieee", out_dtype=REAL)
    tl.store(y + row[:, None] * outputs + output[None, :], total, has_row & has_output)


class TritonProduct(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, x, codes):
        ctx.save_for_backward(x, codes)
        rows, inputs = x.shape
        outputs = codes.shape[1]
        y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
        if y.numel() == 0:
            return y
        block_rows = 16 if rows <= 16 else 64
        row_blocks = triton.cdiv(rows, block_rows)
        launch(
            product,
            row_blocks * triton.cdiv(outputs, BLOCK_OUTPUTS),
            *(x.contiguous(), codes.contiguous(), y, rows, inputs, outputs, row_blocks),
            REAL=tl.float64 if wide(x.dtype) == torch.float64 else tl.float32,
            ROWS=block_rows,
            OUTPUTS=BLOCK_OUTPUTS,
            INPUTS=BLOCK_INPUTS,
        )
        return y

    @staticmethod
    def backward(ctx, grad):
        x, codes = ctx.saved_tensors

        def function(x):
            return with_torch(x, codes)

        return *gradients(function, (x,), grad), None


def with_triton(x: Tensor, codes: Tensor) -> Tensor:
    """(b, n), differentiable in x."""
    return TritonProduct.apply(x, codes)
