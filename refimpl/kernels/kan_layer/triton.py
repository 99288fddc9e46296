"""A KAN layer in Triton: heights of a tile of coordinates are made on the chip, and multiplied.

Two passes over the tokens of a program: mean and variance, then bump after bump the product. The
array of all heights, G times as wide as x, never exists. Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.kan_layer.composed import with_torch
from refimpl.kernels.kan_layer.reference import BUMP_WIDTH, EPS

TOKENS = 32  # to a program
OUTPUTS = 64
TILE = 32  # coordinates at a time


@triton.jit
def bumps_product(
    x,
    norm_weight,
    norm_bias,
    grid,
    weight,
    result,
    n,
    c,
    out,
    bumps,
    output_blocks,
    tiles,
    REAL: tl.constexpr,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TILE: tl.constexpr,
):
    """x (n, c), weight (out, c·bumps) -> result (n, out)."""
    program = tl.program_id(0)
    output = program % output_blocks * OUTPUTS + tl.arange(0, OUTPUTS)
    token = (program // output_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    has_token = token < n
    has_output = output < out
    total = tl.zeros((TOKENS,), REAL)
    for tile in range(tiles):
        i = tile * TILE + tl.arange(0, TILE)
        inside = has_token[:, None] & (i < c)[None, :]
        total += tl.sum(tl.load(x + token[:, None] * c + i[None, :], inside, 0.0).to(REAL), 1)
    mean = total / c
    square = tl.zeros((TOKENS,), REAL)
    for tile in range(tiles):
        i = tile * TILE + tl.arange(0, TILE)
        inside = has_token[:, None] & (i < c)[None, :]
        z = tl.load(x + token[:, None] * c + i[None, :], inside, 0.0).to(REAL) - mean[:, None]
        square += tl.sum(tl.where(inside, z * z, 0.0), 1)
    scale = 1 / tl.sqrt(square / c + EPS)
    y = tl.zeros((TOKENS, OUTPUTS), REAL)
    for tile in range(tiles):
        i = tile * TILE + tl.arange(0, TILE)
        known = i < c
        inside = has_token[:, None] & known[None, :]
        z = tl.load(x + token[:, None] * c + i[None, :], inside, 0.0).to(REAL) - mean[:, None]
        gamma = tl.load(norm_weight + i, known, 0.0).to(REAL)
        beta = tl.load(norm_bias + i, known, 0.0).to(REAL)
        z = z * scale[:, None] * gamma[None, :] + beta[None, :]
        for j in range(bumps):
            e = tl.exp(-SLOPE * tl.abs(z - tl.load(grid + j).to(REAL)))
            height = tl.where(inside, 4 * e / ((1 + e) * (1 + e)), 0.0)
            place = output[None, :] * (c * bumps) + (i * bumps + j)[:, None]
            has_weight = has_output[None, :] & known[:, None]
            w = tl.load(weight + place, has_weight, 0.0).to(REAL)
            y += tl.dot(height, w, input_precision="ieee", out_dtype=REAL)
    place = token[:, None] * out + output[None, :]
    tl.store(result + place, y, has_token[:, None] & has_output[None, :])


class TritonKAN(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, grid, weight):
        ctx.save_for_backward(x, norm_weight, norm_bias, grid, weight)
        real = wide(x.dtype)
        n, c = x.shape
        out = len(weight)
        result = torch.empty(n, out, dtype=real, device=x.device)
        if result.numel() == 0:
            return result
        outputs = block_size(out, OUTPUTS, least=16)
        tile = block_size(c, TILE, least=16)
        output_blocks = triton.cdiv(out, outputs)
        launch(
            bumps_product,
            triton.cdiv(n, TOKENS) * output_blocks,
            *[t.contiguous() for t in (x, norm_weight, norm_bias, grid, weight)],
            result,
            *(n, c, out, len(grid), output_blocks, triton.cdiv(c, tile)),
            REAL=tl.float64 if real == torch.float64 else tl.float32,
            EPS=EPS,
            SLOPE=2 / BUMP_WIDTH,
            TOKENS=TOKENS,
            OUTPUTS=outputs,
            TILE=tile,
        )
        return result

    @staticmethod
    def backward(ctx, grad):
        def function(*inputs):
            return with_torch(*inputs).to(grad.dtype)

        return gradients(function, ctx.saved_tensors, grad)


def with_triton(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, grid: Tensor, weight: Tensor
) -> Tensor:
    """y (n, out), differentiable."""
    return TritonKAN.apply(x, norm_weight, norm_bias, grid, weight)
