"""Hidden state mixer in Triton: one pass over the tokens with a running softmax, and one back.

The mixing between the two, on a few states, is PyTorch's. Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch
from refimpl.kernels.hsm_ssd.composed import mix, to_states, with_torch


@triton.jit
def tokens_to_states(
    x,
    logits,
    B,
    h,
    channels,
    states,
    length,
    channel_blocks,
    state_blocks,
    REAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """h = x (softmax(logits) ⊙ B)ᵀ. x: (b, d, l); logits, B: (b, n, l); h: (b, d, n)."""
    program = tl.program_id(0)
    d = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    n = program // channel_blocks % state_blocks * STATES + tl.arange(0, STATES)
    batch = (program // (channel_blocks * state_blocks)).to(tl.int64)
    has_channel = (d < channels)[:, None]
    has_state = (n < states)[:, None]
    highest = tl.full((STATES,), float("-inf"), REAL)
    total = tl.zeros((STATES,), REAL)
    sums = tl.zeros((CHANNELS, STATES), REAL)
    for start in range(0, length, TOKENS):
        time = start + tl.arange(0, TOKENS)
        inside = (time < length)[None, :]
        per_state = (batch * states + n)[:, None] * length + time[None, :]
        per_channel = (batch * channels + d)[:, None] * length + time[None, :]
        score = tl.load(logits + per_state, has_state & inside, 0.0).to(REAL)
        score = tl.where(inside, score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        keep = tl.exp(highest - higher)  # what the sums so far are worth under the new maximum
        highest = higher
        total = total * keep + tl.sum(weight, 1)
        weight *= tl.load(B + per_state, has_state & inside, 0.0).to(REAL)
        tokens = tl.load(x + per_channel, has_channel & inside, 0.0).to(REAL)
        added = tl.dot(tokens, tl.trans(weight), input_precision="ieee", out_dtype=REAL)
        sums = sums * keep[None, :] + added
    place = (batch * channels + d)[:, None] * states + n[None, :]
    tl.store(h + place, sums / total[None, :], has_channel & (n < states)[None, :])


@triton.jit
def states_to_tokens(
    h,
    C,
    y,
    channels,
    states,
    length,
    channel_blocks,
    token_blocks,
    REAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """y = h C. h: (b, d, n); C: (b, n, l); y: (b, d, l)."""
    program = tl.program_id(0)
    d = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    time = program // channel_blocks % token_blocks * TOKENS + tl.arange(0, TOKENS)
    batch = (program // (channel_blocks * token_blocks)).to(tl.int64)
    has_channel = (d < channels)[:, None]
    inside = (time < length)[None, :]
    out = tl.zeros((CHANNELS, TOKENS), REAL)
    for start in range(0, states, STATES):
        n = start + tl.arange(0, STATES)
        left = (batch * channels + d)[:, None] * states + n[None, :]
        right = (batch * states + n)[:, None] * length + time[None, :]
        hidden = tl.load(h + left, has_channel & (n < states)[None, :], 0.0).to(REAL)
        weights = tl.load(C + right, (n < states)[:, None] & inside, 0.0).to(REAL)
        out += tl.dot(hidden, weights, input_precision="ieee", out_dtype=REAL)
    place = (batch * channels + d)[:, None] * length + time[None, :]
    tl.store(y + place, out, has_channel & inside)


def constants(channels: int, states: int, length: int, dtype: torch.dtype) -> dict:
    """Block sizes: powers of two from 16 on, as matrix products want them."""
    return {
        "REAL": tl.float64 if dtype == torch.float64 else tl.float32,
        "CHANNELS": block_size(channels, 64, least=16),
        "STATES": block_size(states, 32, least=16),
        "TOKENS": block_size(length, 32, least=16),
        "num_warps": 8,  # with fewer, or with loads in advance, the registers do not suffice
        "num_stages": 1,
    }


class ToStates(torch.autograd.Function):
    """x (b, d, l), logits and B (b, n, l) -> h (b, d, n)."""

    @staticmethod
    def forward(ctx, x, logits, B):
        ctx.save_for_backward(x, logits, B)
        batch, channels, length = x.shape
        states = B.shape[1]
        blocks = constants(channels, states, length, x.dtype)
        across = triton.cdiv(channels, blocks["CHANNELS"])
        down = triton.cdiv(states, blocks["STATES"])
        h = x.new_empty(batch, channels, states)
        inputs = [m.contiguous() for m in (x, logits, B)]
        sizes = (channels, states, length, across, down)
        launch(tokens_to_states, batch * across * down, *inputs, h, *sizes, **blocks)
        return h

    @staticmethod
    def backward(ctx, grad):
        return gradients(to_states, ctx.saved_tensors, grad)


class ToTokens(torch.autograd.Function):
    """h (b, d, n) and C (b, n, l) -> y (b, d, l)."""

    @staticmethod
    def forward(ctx, h, C):
        ctx.save_for_backward(h, C)
        batch, channels, states = h.shape
        length = C.shape[2]
        blocks = constants(channels, states, length, h.dtype)
        across = triton.cdiv(channels, blocks["CHANNELS"])
        down = triton.cdiv(length, blocks["TOKENS"])
        y = h.new_empty(batch, channels, length)
        inputs = (h.contiguous(), C.contiguous())
        sizes = (channels, states, length, across, down)
        launch(states_to_tokens, batch * across * down, *inputs, y, *sizes, **blocks)
        return y

    @staticmethod
    def backward(ctx, grad):
        h, C = ctx.saved_tensors
        return grad @ C.transpose(-1, -2), h.transpose(-1, -2) @ grad


def with_triton(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor | None,
    D: Tensor,
    hz_weight: Tensor,
    out_weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """y (b, d, l) and the mixed states (b, d, n), differentiable."""
    if len(x) == 0:
        return with_torch(x, dt, B, C, A, D, hz_weight, out_weight)
    logits = dt if A is None else dt + A[:, None]
    h = mix(ToStates.apply(x, logits, B), D, hz_weight, out_weight)
    return ToTokens.apply(h, C), h
