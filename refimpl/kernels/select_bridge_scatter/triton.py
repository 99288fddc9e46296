"""Packing and handing back in Triton: ranks are counts, and each half reads the tokens once.

Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.select_bridge_scatter.composed import with_torch

TOKENS = 32  # of a window, at a time
CHANNELS = 128  # to a program


@triton.jit
def count_higher(scores, rank, n, blocks, REAL: tl.constexpr, TOKENS: tl.constexpr):
    """scores (b, n) -> rank (b, n) int32; a program for some tokens of a window."""
    window = (tl.program_id(0) // blocks).to(tl.int64)
    token = tl.program_id(0) % blocks * TOKENS + tl.arange(0, TOKENS)
    own = tl.load(scores + window * n + token, token < n, 0.0).to(REAL)
    higher = tl.zeros([TOKENS], tl.int32)
    for start in range(0, n, TOKENS):
        other = start + tl.arange(0, TOKENS)
        score = tl.load(scores + window * n + other, other < n, 0.0).to(REAL)
        above = score[None, :] > own[:, None]
        first = (score[None, :] == own[:, None]) & (other[None, :] < token[:, None])
        real = (other < n)[None, :]
        higher += tl.sum(((above | first) & real).to(tl.int32), 1)
    tl.store(rank + window * n + token, higher, token < n)


@triton.jit
def pack(
    tokens,
    scores,
    rank,
    packed,
    n,
    c,
    keep,
    blocks,
    REAL: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """tokens (b, n, c) -> packed (b, keep + 1, c); a program for some channels of a window."""
    window = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    has_channel = channel < c
    bridge = tl.zeros([CHANNELS], REAL)
    total = tl.zeros([1], REAL)
    for start in range(0, n, TOKENS):
        token = start + tl.arange(0, TOKENS)
        real = token < n
        place = tl.load(rank + window * n + token, real, 0)
        score = tl.load(scores + window * n + token, real, 0.0).to(REAL)
        here = real[:, None] & has_channel[None, :]
        x = tl.load(tokens + (window * n + token)[:, None] * c + channel[None, :], here, 0.0)
        target = (window * (keep + 1) + place)[:, None] * c + channel[None, :]
        tl.store(packed + target, x.to(REAL), here & (place < keep)[:, None])
        score = tl.where(real & (place >= keep), score, 0.0)
        bridge += tl.sum(score[:, None] * x.to(REAL), 0)
        total += tl.sum(score, 0)
    target = (window * (keep + 1) + keep) * c + channel
    tl.store(packed + target, bridge / total, has_channel)


@triton.jit
def hand_back(
    tokens,
    update,
    rank,
    routed,
    n,
    c,
    keep,
    token_blocks,
    blocks,
    REAL: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """tokens (b, n, c), update (b, keep + 1, c) -> routed (b, n, c)."""
    program = tl.program_id(0)
    channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    token = program // blocks % token_blocks * TOKENS + tl.arange(0, TOKENS)
    window = (program // blocks // token_blocks).to(tl.int64)
    here = (token < n)[:, None] & (channel < c)[None, :]
    place = tl.load(rank + window * n + token, token < n, 0)
    place = tl.minimum(place, keep)
    own = (window * n + token)[:, None] * c + channel[None, :]
    source = (window * (keep + 1) + place)[:, None] * c + channel[None, :]
    x = tl.load(tokens + own, here, 0.0).to(REAL)
    change = tl.load(update + source, here, 0.0).to(REAL)
    tl.store(routed + own, x + change, here)


class SelectBridgeScatter(torch.autograd.Function):
    """The kernels as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, tokens, scores, update):
        ctx.save_for_backward(tokens, scores, update)
        windows, n, c = tokens.shape
        keep = update.shape[1] - 1
        real = wide(tokens.dtype)
        packed = tokens.new_empty(windows, keep + 1, c, dtype=real)
        routed = tokens.new_empty(windows, n, c, dtype=real)
        if routed.numel() == 0:
            return packed, routed
        tokens, scores, update = (t.contiguous() for t in (tokens, scores, update))
        rank = torch.empty(windows, n, dtype=torch.int32, device=tokens.device)
        token_blocks = triton.cdiv(n, TOKENS)
        wide_block = block_size(c, CHANNELS)
        blocks = triton.cdiv(c, wide_block)
        how = dict(
            REAL=tl.float64 if real == torch.float64 else tl.float32,
            TOKENS=TOKENS,
            CHANNELS=wide_block,
        )
        given = (scores, rank, n, token_blocks)
        launch(count_higher, windows * token_blocks, *given, REAL=how["REAL"], TOKENS=TOKENS)
        given = (tokens, scores, rank, packed, n, c, keep, blocks)
        launch(pack, windows * blocks, *given, **how)
        given = (tokens, update, rank, routed, n, c, keep, token_blocks, blocks)
        launch(hand_back, windows * token_blocks * blocks, *given, **how)
        return packed, routed

    @staticmethod
    def backward(ctx, of_packed, of_routed):
        return gradients(with_torch, ctx.saved_tensors, (of_packed, of_routed))


def with_triton(tokens: Tensor, scores: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
    """packed and routed, differentiable."""
    return SelectBridgeScatter.apply(tokens, scores, update)
