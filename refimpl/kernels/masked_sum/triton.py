"""The masked sum in Triton: bits are read packed, rows selected and added, nothing multiplied.

One program computes a tile of (outputs, channels) of one batch entry. Equation and shapes: see the
package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.masked_sum.composed import with_torch

BLOCK_OUTPUTS = 8
BLOCK_CHANNELS = 32
BLOCK_TOKENS = 32


@triton.jit
def add(
    values,
    mask,
    sums,
    tokens,
    channels,
    outputs,
    words,
    output_blocks,
    channel_blocks,
    REAL: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """values: (b, tokens, channels); mask: (b, tokens, words); sums: (b, outputs, channels)."""
    program = tl.program_id(0)
    channel = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    output = program // channel_blocks % output_blocks * OUTPUTS + tl.arange(0, OUTPUTS)
    batch = (program // (channel_blocks * output_blocks)).to(tl.int64)
    has_channel = (channel < channels)[None, :]
    has_output = (output < outputs)[None, :]
    total = tl.zeros((OUTPUTS, CHANNELS), REAL)
    for start in range(0, tokens, TOKENS):
        token = start + tl.arange(0, TOKENS)
        has_token = (token < tokens)[:, None]
        row = (batch * tokens + token)[:, None]
        part = tl.load(values + row * channels + channel[None, :], has_token & has_channel, 0.0)
        word = tl.load(mask + row * words + (output // 32)[None, :], has_token & has_output, 0)
        chosen = (word >> (output % 32)[None, :]) & 1 == 1  # (tokens, outputs)
        picked = tl.where(chosen[:, :, None], part.to(REAL)[:, None, :], 0.0)
        total += tl.sum(picked, 0)
    place = (batch * outputs + output)[:, None] * channels + channel[None, :]
    tl.store(sums + place, total, (output < outputs)[:, None] & has_channel)


class TritonSum(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, values, mask, outputs):
        ctx.save_for_backward(values, mask)
        ctx.outputs = outputs
        batch, tokens, channels = values.shape
        sums = torch.empty(batch, outputs, channels, dtype=values.dtype, device=values.device)
        if sums.numel() == 0:
            return sums
        block_outputs = block_size(outputs, BLOCK_OUTPUTS)
        block_channels = block_size(channels, BLOCK_CHANNELS)
        output_blocks = triton.cdiv(outputs, block_outputs)
        channel_blocks = triton.cdiv(channels, block_channels)
        launch(
            add,
            batch * output_blocks * channel_blocks,
            *(values.contiguous(), mask.contiguous(), sums),
            *(tokens, channels, outputs, mask.shape[-1], output_blocks, channel_blocks),
            REAL=tl.float64 if wide(values.dtype) == torch.float64 else tl.float32,
            TOKENS=block_size(tokens, BLOCK_TOKENS),
            OUTPUTS=block_outputs,
            CHANNELS=block_channels,
        )
        return sums

    @staticmethod
    def backward(ctx, grad):
        values, mask = ctx.saved_tensors

        def function(values):
            return with_torch(values, mask, outputs=ctx.outputs)

        return *gradients(function, (values,), grad), None, None


def with_triton(values: Tensor, mask: Tensor, *, outputs: int) -> Tensor:
    """(b, outputs, c), differentiable in values."""
    return TritonSum.apply(values, mask, outputs)
