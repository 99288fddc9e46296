"""Pool mixer in Triton: a program for a block of rows of one channel's map. Equation: see the
package. The nine loads come from cache, so memory is read once and written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.pool_mixer.composed import with_torch


@triton.jit
def blend(
    x,
    scale,
    y,
    channels,
    height,
    width,
    row_blocks,
    REAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """x, y: (b, c, h, w), contiguous; scale: (c)."""
    program = tl.program_id(0)
    plane = program // row_blocks  # of batch · channels
    row = (program % row_blocks * ROWS + tl.arange(0, ROWS))[:, None]
    first = plane.to(tl.int64) * height * width
    weight = tl.load(scale + plane % channels).to(REAL)
    for start in range(0, width, COLUMNS):
        column = (start + tl.arange(0, COLUMNS))[None, :]
        total = tl.zeros((ROWS, COLUMNS), REAL)
        count = tl.zeros((ROWS, COLUMNS), REAL)
        for down in tl.static_range(-1, 2):
            for across in tl.static_range(-1, 2):
                near_row = row + down
                near_column = column + across
                real = (near_row >= 0) & (near_row < height)
                real = real & (near_column >= 0) & (near_column < width)
                place = first + near_row * width + near_column
                total += tl.load(x + place, real, 0.0).to(REAL)
                count += tl.where(real, 1.0, 0.0).to(REAL)
        inside = (row < height) & (column < width)
        place = first + row * width + column
        here = tl.load(x + place, inside, 0.0).to(REAL)
        mean = total / tl.where(inside, count, 1.0)
        tl.store(y + place, here + weight * (mean - here), inside)


class Blend(torch.autograd.Function):
    """The kernel as a differentiable function of map and scale."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        batch, channels, height, width = x.shape
        rows = block_size(height, 16)
        across = triton.cdiv(height, rows)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        sizes = (channels, height, width, across)
        blocks = {
            "REAL": tl.float64 if wide(x.dtype) == torch.float64 else tl.float32,
            "ROWS": rows,
            "COLUMNS": block_size(width, 64),
        }
        launch(
            blend,
            batch * channels * across,
            x.contiguous(),
            scale.contiguous(),
            y,
            *sizes,
            **blocks,
        )
        return y

    @staticmethod
    def backward(ctx, grad):
        return gradients(with_torch, ctx.saved_tensors, grad)


def with_triton(x: Tensor, scale: Tensor) -> Tensor:
    """(b, c, h, w), differentiable."""
    return Blend.apply(x, scale) if len(x) else with_torch(x, scale)
