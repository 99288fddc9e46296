"""The way into a node in Triton: a program for a block of small pixels of one parity, times a block
of outputs. It reads the small map for what the large one would hold. Equation: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.upsample_concat_conv.composed import by_parity, with_torch


@triton.jit
def node_input(
    below,
    beside,
    summed,
    weight,
    bias,
    y,
    channels,
    more,
    outputs,
    height,
    width,
    pixel_blocks,
    output_blocks,
    REAL: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """below: (b, c, h, w); beside: (b, d, 2h, 2w); y: (b, o, 2h, 2w); all contiguous.

    summed: (4, 2·2, c, o), the weights on `below` for each parity; weight: (9, d, o), on `beside`.
    """
    program = tl.program_id(0)
    output = (program % output_blocks) * OUTPUTS + tl.arange(0, OUTPUTS)
    rest = program // output_blocks
    pixel = (rest % pixel_blocks) * PIXELS + tl.arange(0, PIXELS)
    rest = rest // pixel_blocks
    parity = rest % 4
    image = (rest // 4).to(tl.int64)
    odd_row = parity // 2
    odd_column = parity % 2
    row = pixel // width
    column = pixel % width
    inside = pixel < height * width
    has_output = output < outputs
    total = tl.zeros((PIXELS, OUTPUTS), REAL)
    for tap in range(4):
        near_row = row - 1 + odd_row + tap // 2
        near_column = column - 1 + odd_column + tap % 2
        real = inside & (near_row >= 0) & (near_row < height)
        real = real & (near_column >= 0) & (near_column < width)
        for start in range(0, channels, CHANNELS):
            channel = start + tl.arange(0, CHANNELS)
            has = channel < channels
            plane = (image * channels + channel) * (height * width)
            at = below + plane[None, :] + (near_row * width + near_column)[:, None]
            part = tl.load(at, real[:, None] & has[None, :], 0.0)
            place = ((parity * 4 + tap) * channels + channel) * outputs
            matrix = tl.load(
                summed + place[:, None] + output[None, :], has[:, None] & has_output[None, :], 0.0
            )
            total += tl.dot(part.to(REAL), matrix.to(REAL), input_precision="ieee", out_dtype=REAL)
    large_row = 2 * row + odd_row
    large_column = 2 * column + odd_column
    for tap in range(9):
        near_row = large_row - 1 + tap // 3
        near_column = large_column - 1 + tap % 3
        real = inside & (near_row >= 0) & (near_row < 2 * height)
        real = real & (near_column >= 0) & (near_column < 2 * width)
        for start in range(0, more, CHANNELS):
            channel = start + tl.arange(0, CHANNELS)
            has = channel < more
            plane = (image * more + channel) * (4 * height * width)
            at = beside + plane[None, :] + (near_row * 2 * width + near_column)[:, None]
            part = tl.load(at, real[:, None] & has[None, :], 0.0)
            place = (tap * more + channel) * outputs
            matrix = tl.load(
                weight + place[:, None] + output[None, :], has[:, None] & has_output[None, :], 0.0
            )
            total += tl.dot(part.to(REAL), matrix.to(REAL), input_precision="ieee", out_dtype=REAL)
    total += tl.load(bias + output, has_output, 0.0).to(REAL)[None, :]
    plane = (image * outputs + output) * (4 * height * width)
    at = y + plane[None, :] + (large_row * 2 * width + large_column)[:, None]
    tl.store(at, total, inside[:, None] & has_output[None, :])


class NodeInput(torch.autograd.Function):
    """The kernel as a differentiable function of its four tensors."""

    @staticmethod
    def forward(ctx, below, beside, weight, bias):
        ctx.save_for_backward(below, beside, weight, bias)
        batch, channels, height, width = below.shape
        outputs, more = len(weight), beside.shape[1]
        of_below, of_beside = weight.split([channels, more], dim=1)
        summed = by_parity(of_below).view(4, outputs, channels, 4).permute(0, 3, 2, 1)
        y = torch.empty(
            (batch, outputs, 2 * height, 2 * width), dtype=below.dtype, device=below.device
        )
        pixels = block_size(height * width, 64, 16)
        columns = block_size(outputs, 64, 16)
        blocks = triton.cdiv(height * width, pixels), triton.cdiv(outputs, columns)
        launch(
            node_input,
            batch * 4 * blocks[0] * blocks[1],
            *(below.contiguous(), beside.contiguous(), summed.contiguous()),
            *(of_beside.flatten(2).permute(2, 1, 0).contiguous(), bias.contiguous(), y),
            *(channels, more, outputs, height, width, *blocks),
            REAL=tl.float64 if wide(below.dtype) == torch.float64 else tl.float32,
            PIXELS=pixels,
            OUTPUTS=columns,
            CHANNELS=block_size(max(channels, more), 32, 16),
        )
        return y

    @staticmethod
    def backward(ctx, grad):
        return gradients(with_torch, ctx.saved_tensors, grad)


def with_triton(below: Tensor, beside: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(b, o, 2h, 2w), differentiable."""
    arguments = below, beside, weight, bias
    return NodeInput.apply(*arguments) if len(below) else with_torch(*arguments)
