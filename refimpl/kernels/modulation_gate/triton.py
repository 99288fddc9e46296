"""The gate in Triton: a program for a block of pixels and context channels, over all tiles.

So a context is read once and its gradient summed in registers. Equation: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch
from refimpl.kernels.modulation_gate.composed import with_torch

MOST_PIXELS = 16
MOST_CHANNELS = 128
HALF_ROOT = tl.constexpr(0.7071067811865476)  # √½
DENSITY = tl.constexpr(0.3989422804014327)  # 1/√(2π)


@triton.jit
def forward(
    value,
    context,
    out,
    pixels,
    channels,
    ratio,
    channel_blocks,
    REAL: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """value, out: (p, r, d); context: (p, d)."""
    p = (tl.program_id(0) // channel_blocks).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    i = tl.program_id(0) % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    own = (p < pixels)[:, None] & (i < channels)[None, :]
    c = tl.load(context + p[:, None] * channels + i[None, :], own, 0.0).to(REAL)
    for tile in range(ratio):
        place = (p[:, None] * ratio + tile) * channels + i[None, :]
        u = tl.load(value + place, own, 0.0).to(REAL)
        if ratio > 1:
            u = u * 0.5 * (1 + tl.erf(u * HALF_ROOT))
        tl.store(out + place, u * c, own)


@triton.jit
def backward(
    value,
    context,
    grad,
    grad_value,
    grad_context,
    pixels,
    channels,
    ratio,
    channel_blocks,
    REAL: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """grad, grad_value: (p, r, d); grad_context: (p, d)."""
    p = (tl.program_id(0) // channel_blocks).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    i = tl.program_id(0) % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    own = (p < pixels)[:, None] & (i < channels)[None, :]
    c = tl.load(context + p[:, None] * channels + i[None, :], own, 0.0).to(REAL)
    of_context = tl.zeros((PIXELS, CHANNELS), REAL)
    for tile in range(ratio):
        place = (p[:, None] * ratio + tile) * channels + i[None, :]
        u = tl.load(value + place, own, 0.0).to(REAL)
        upstream = tl.load(grad + place, own, 0.0).to(REAL)
        slope = tl.full((PIXELS, CHANNELS), 1.0, REAL)
        activated = u
        if ratio > 1:
            below = 0.5 * (1 + tl.erf(u * HALF_ROOT))
            slope = below + u * DENSITY * tl.exp(-0.5 * u * u)
            activated = u * below
        tl.store(grad_value + place, slope * c * upstream, own)
        of_context += activated * upstream
    tl.store(grad_context + p[:, None] * channels + i[None, :], of_context, own)


class Gate(torch.autograd.Function):
    """The kernels as a differentiable function of value and context."""

    @staticmethod
    def forward(ctx, value, context):
        value = value.contiguous()
        context = context.contiguous()
        ctx.save_for_backward(value, context)
        out = torch.empty_like(value)
        run(forward, value, context, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        value, context = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return gradients(with_torch, (value, context), grad)
        grad_value = torch.empty_like(value)
        grad_context = torch.empty_like(context)
        run(backward, value, context, grad.contiguous(), grad_value, grad_context)
        return grad_value, grad_context


def run(kernel, value: Tensor, context: Tensor, *others: Tensor) -> None:
    """Launch over all pixels and channels; nothing for no pixels."""
    pixels, channels = context.shape
    if pixels == 0:
        return
    block_pixels = block_size(pixels, MOST_PIXELS)
    block_channels = block_size(channels, MOST_CHANNELS)
    channel_blocks = triton.cdiv(channels, block_channels)
    launch(
        kernel,
        triton.cdiv(pixels, block_pixels) * channel_blocks,
        value,
        context,
        *others,
        pixels,
        channels,
        value.shape[1] // channels,
        channel_blocks,
        REAL=tl.float64 if value.dtype == torch.float64 else tl.float32,
        PIXELS=block_pixels,
        CHANNELS=block_channels,
    )


def with_triton(value: Tensor, context: Tensor) -> Tensor:
    """(p, r·d), differentiable in both."""
    return Gate.apply(value, context)
