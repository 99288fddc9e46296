"""The integer product in Triton: int8 by int8 into int32 registers, scaled when it is stored.

One program computes a tile of (rows, outputs). Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import gradients, launch, wide
from refimpl.kernels.int8_product.composed import with_torch

BLOCK = 32


@triton.jit
def product(
    codes,
    weight,
    scale,
    weight_scale,
    bias,
    y,
    rows,
    inputs,
    outputs,
    zero_point,
    row_blocks,
    HAS_BIAS: tl.constexpr,
    REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """codes: (rows, inputs); weight: (outputs, inputs); scale: (1,); y: (rows, outputs)."""
    program = tl.program_id(0)
    row = (program % row_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    output = (program // row_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    has_row = (row < rows)[:, None]
    has_output = (output < outputs)[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.int32)
    of_weights = tl.zeros((BLOCK,), tl.int32)  # Σ q_w, beside the zero point
    for start in range(0, inputs, BLOCK):
        k = start + tl.arange(0, BLOCK)
        part = tl.load(
            codes + row[:, None] * inputs + k[None, :], has_row & (k < inputs)[None, :], 0
        )
        there = (k < inputs)[:, None] & has_output
        matrix = tl.load(weight + output[None, :] * inputs + k[:, None], there, 0)
        total += tl.dot(part, matrix, out_dtype=tl.int32)
        of_weights += tl.sum(matrix.to(tl.int32), 0)
    total -= zero_point * of_weights[None, :]
    factor = tl.load(scale).to(REAL) * tl.load(weight_scale + output, output < outputs, 0.0).to(
        REAL
    )
    result = total.to(REAL) * factor[None, :]
    if HAS_BIAS:
        result += tl.load(bias + output, output < outputs, 0.0).to(REAL)[None, :]
    tl.store(y + row[:, None] * outputs + output[None, :], result, has_row & has_output)


class TritonProduct(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, codes, weight, scale, weight_scale, bias, zero_point):
        ctx.save_for_backward(codes, weight, scale, weight_scale, bias)
        ctx.zero_point = zero_point
        rows, inputs = codes.shape
        outputs = len(weight)
        y = torch.empty(rows, outputs, dtype=weight_scale.dtype, device=codes.device)
        if y.numel() == 0:
            return y
        row_blocks = triton.cdiv(rows, BLOCK)
        has_bias = bias is not None
        launch(
            product,
            row_blocks * triton.cdiv(outputs, BLOCK),
            *(t.contiguous() for t in (codes, weight, scale, weight_scale)),
            bias.contiguous() if has_bias else weight_scale,
            y,
            *(rows, inputs, outputs, zero_point, row_blocks),
            HAS_BIAS=has_bias,
            REAL=tl.float64 if wide(weight_scale.dtype) == torch.float64 else tl.float32,
            BLOCK=BLOCK,
        )
        return y

    @staticmethod
    def backward(ctx, grad):
        codes, weight, *reals = ctx.saved_tensors
        given = [real for real in reals if real is not None]

        def function(scale, weight_scale, bias=None):
            return with_torch(codes, weight, scale, weight_scale, bias, zero_point=ctx.zero_point)

        found = [*gradients(function, tuple(given), grad), None][:3]
        return None, None, *found, None


def with_triton(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    zero_point: int = 0,
) -> Tensor:
    """(b, n), differentiable in the scales and the bias."""
    return TritonProduct.apply(codes, weight, scale, weight_scale, bias, zero_point)
