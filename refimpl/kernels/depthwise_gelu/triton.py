"""Depthwise convolution and GELU in Triton: a program for a run of pixels and a block of channels.

The k² taps are read one after another; neighbouring pixels' reads meet in the cache, so no halo is
kept. Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, launch

MOST_PIXELS = 16
MOST_CHANNELS = 64
HALF_ROOT = tl.constexpr(0.7071067811865476)  # √½


@triton.jit
def forward(
    x,
    weight,
    bias,
    out,
    pixels,
    height,
    width,
    channels,
    channel_blocks,
    REAL: tl.constexpr,
    KERNEL: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """x, out: (b, h, w, c); weight: (k, k, c), so that a tap's weights lie side by side."""
    p = (tl.program_id(0) // channel_blocks).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(0) % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    has_channel = c < channels
    row = p // width % height
    column = p % width
    z = tl.zeros((PIXELS, CHANNELS), REAL)
    z += tl.load(bias + c, has_channel, 0.0).to(REAL)[None, :]
    for tap in range(KERNEL * KERNEL):
        down = tap // KERNEL - KERNEL // 2
        across = tap % KERNEL - KERNEL // 2
        inside = (row + down >= 0) & (row + down < height)
        inside &= (column + across >= 0) & (column + across < width) & (p < pixels)
        place = (p + down * width + across)[:, None] * channels + c[None, :]
        shifted = tl.load(x + place, inside[:, None] & has_channel[None, :], 0.0).to(REAL)
        factor = tl.load(weight + tap * channels + c, has_channel, 0.0).to(REAL)
        z += shifted * factor[None, :]
    z = z * 0.5 * (1 + tl.erf(z * HALF_ROOT))
    tl.store(out + p[:, None] * channels + c[None, :], z, (p < pixels)[:, None] & has_channel[None])


def with_triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(b, h, w, c), forward only."""
    batch, height, width, channels = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    pixels = batch * height * width
    if pixels == 0:
        return out
    block_pixels = block_size(pixels, MOST_PIXELS)
    block_channels = block_size(channels, MOST_CHANNELS)
    channel_blocks = triton.cdiv(channels, block_channels)
    launch(
        forward,
        triton.cdiv(pixels, block_pixels) * channel_blocks,
        x.contiguous(),
        weight.permute(1, 2, 0).contiguous(),
        bias.contiguous(),
        out,
        pixels,
        height,
        width,
        channels,
        channel_blocks,
        REAL=tl.float64 if x.dtype == torch.float64 else tl.float32,
        KERNEL=weight.shape[1],
        PIXELS=block_pixels,
        CHANNELS=block_channels,
    )
    return out
