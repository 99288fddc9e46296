"""Selective scan in Triton: tiles of time with the states in registers. Equation: see the package.

One program computes BLOCK channels of one group in one sequence, tile after tile of time; nothing
of size (b, d, n, l) is written. Forward stores the states that enter every tile; on the way back
each tile is computed anew from there, last tile first.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.selective_scan import composed


@triton.jit
def combine(decay, value, next_decay, next_value):
    """Two steps h ← decay·h + value as one."""
    return decay * next_decay, next_decay * value + next_value


@triton.jit
def step_sizes(raw, SOFTPLUS: tl.constexpr):
    """Δ, from delta with its bias added."""
    if SOFTPLUS:
        small = tl.exp(-tl.abs(raw))
        above = 1.0 + small
        # log(1 + small) that keeps its digits where `small` is small
        log1p = tl.where(above == 1.0, small, tl.log(above) * (small / (above - 1.0)))
        step = tl.where(raw > 20.0, raw, tl.maximum(raw, 0.0) + log1p)
    else:
        step = raw
    return step


@triton.jit
def forward(
    u,
    delta,
    A,
    B,
    C,
    D,
    bias,
    state,
    y,
    last,
    entering,
    length,
    width,
    groups,
    blocks,
    tiles,
    states,
    REAL: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """u, delta, y: (b, g·width, l); B, C: (b, g, n, l); entering: (b, g·width, tiles, n)."""
    program = tl.program_id(0)
    group = program // blocks % groups
    batch = (program // (blocks * groups)).to(tl.int64)
    offset = program % blocks * BLOCK + tl.arange(0, BLOCK)
    valid = offset < width
    channel = group * width + offset
    row = batch * groups * width + channel
    all_states = tl.arange(0, STATES)
    steps = tl.arange(0, TILE)
    own = valid[:, None] & (all_states < states)[None, :]
    h = tl.load(state + row[:, None] * states + all_states[None, :], own, 0.0)
    skip = tl.load(D + channel, valid, 0.0)
    shift = tl.load(bias + channel, valid, 0.0)
    shared = (batch * groups + group) * states * length
    for tile in range(tiles):
        tl.store(entering + (row * tiles + tile)[:, None] * states + all_states[None, :], h, own)
        time = tile * TILE + steps
        inside = valid[:, None] & (time < length)[None, :]
        place = row[:, None] * length + time[None, :]
        raw = tl.load(delta + place, inside, 0.0).to(REAL) + shift[:, None]
        # Δ = 0 beyond the end keeps the state: decay 1, input 0
        step = tl.where(inside, step_sizes(raw, SOFTPLUS), 0.0)
        token = tl.load(u + place, inside, 0.0).to(REAL)
        out = skip[:, None] * token
        for n in range(states):
            at = shared + n * length + time
            rate = tl.load(A + channel * states + n, valid, 0.0)[:, None]
            B_n = tl.load(B + at, time < length, 0.0).to(REAL)[None, :]
            C_n = tl.load(C + at, time < length, 0.0).to(REAL)[None, :]
            this = (all_states == n)[None, :]
            entered = tl.sum(tl.where(this, h, 0.0), 1)[:, None]
            decay = tl.exp(step * rate)
            value = step * token * B_n
            value += tl.where((steps == 0)[None, :], decay * entered, 0.0)
            _, value = tl.associative_scan((decay, value), 1, combine)
            out += value * C_n
            end = tl.sum(tl.where((steps == TILE - 1)[None, :], value, 0.0), 1)[:, None]
            h = tl.where(this, end, h)
        tl.store(y + place, out, inside)
    tl.store(last + row[:, None] * states + all_states[None, :], h, own)


@triton.jit
def backward(
    u,
    delta,
    A,
    B,
    C,
    D,
    bias,
    entering,
    grad_y,
    grad_last,
    grad_u,
    grad_delta,
    grad_A,
    grad_B,
    grad_C,
    grad_state,
    length,
    width,
    groups,
    blocks,
    tiles,
    states,
    REAL: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """λ_l = C_l ȳ_l + a_{l+1} λ_{l+1}. grad_A: (b, g·width, n); grad_B and grad_C are added to."""
    program = tl.program_id(0)
    group = program // blocks % groups
    batch = (program // (blocks * groups)).to(tl.int64)
    offset = program % blocks * BLOCK + tl.arange(0, BLOCK)
    valid = offset < width
    channel = group * width + offset
    row = batch * groups * width + channel
    all_states = tl.arange(0, STATES)
    steps = tl.arange(0, TILE)
    first = (steps == 0)[None, :]
    final = (steps == TILE - 1)[None, :]
    own = valid[:, None] & (all_states < states)[None, :]
    own_states = row[:, None] * states + all_states[None, :]
    coming = tl.load(grad_last + own_states, own, 0.0)  # a λ of the step after the tile
    sum_A = tl.zeros((BLOCK, STATES), REAL)
    skip = tl.load(D + channel, valid, 0.0)
    shift = tl.load(bias + channel, valid, 0.0)
    shared = (batch * groups + group) * states * length
    for back in range(tiles):
        tile = tiles - 1 - back
        time = tile * TILE + steps
        not_first = time > 0
        inside = valid[:, None] & (time < length)[None, :]
        inside_before = inside & not_first[None, :]
        inside_after = valid[:, None] & (time + 1 < length)[None, :]
        place = row[:, None] * length + time[None, :]
        raw = tl.load(delta + place, inside, 0.0).to(REAL) + shift[:, None]
        raw_before = tl.load(delta + place - 1, inside_before, 0.0).to(REAL) + shift[:, None]
        raw_after = tl.load(delta + place + 1, inside_after, 0.0).to(REAL) + shift[:, None]
        step = tl.where(inside, step_sizes(raw, SOFTPLUS), 0.0)
        step_before = tl.where(inside_before, step_sizes(raw_before, SOFTPLUS), 0.0)
        step_after = tl.where(inside_after, step_sizes(raw_after, SOFTPLUS), 0.0)
        token = tl.load(u + place, inside, 0.0).to(REAL)
        token_before = tl.load(u + place - 1, inside_before, 0.0).to(REAL)
        upstream = tl.load(grad_y + place, inside, 0.0).to(REAL)
        tile_states = (row * tiles + tile)[:, None] * states + all_states[None, :]
        h = tl.load(entering + tile_states, own, 0.0)
        grad_step = tl.zeros((BLOCK, TILE), REAL)
        grad_input = tl.zeros((BLOCK, TILE), REAL)
        for n in range(states):
            at = shared + n * length + time
            this = (all_states == n)[None, :]
            rate = tl.load(A + channel * states + n, valid, 0.0)[:, None]
            B_n = tl.load(B + at, time < length, 0.0).to(REAL)[None, :]
            B_before = tl.load(B + at - 1, (time < length) & not_first, 0.0).to(REAL)[None, :]
            C_n = tl.load(C + at, time < length, 0.0).to(REAL)[None, :]
            decay = tl.exp(step * rate)
            # h_{l−1} of every step: the same scan one step late, started by the state that enters
            entered = tl.sum(tl.where(this, h, 0.0), 1)[:, None]
            decay_before = tl.where(first, 0.0, tl.exp(step_before * rate))
            before = tl.where(first, entered, step_before * token_before * B_before)
            _, before = tl.associative_scan((decay_before, before), 1, combine)
            now = decay * before + step * token * B_n
            lam = upstream * C_n
            lam += tl.where(final, tl.sum(tl.where(this, coming, 0.0), 1)[:, None], 0.0)
            decay_after = tl.exp(step_after * rate)
            _, lam = tl.associative_scan((decay_after, lam), 1, combine, reverse=True)
            gone = tl.sum(tl.where(first, decay * lam, 0.0), 1)[:, None]
            coming = tl.where(this, gone, coming)
            kept = lam * decay * before
            grad_input += lam * B_n
            grad_step += kept * rate
            sum_A += tl.where(this, tl.sum(kept * step, 1)[:, None], 0.0)
            tl.atomic_add(grad_B + at, tl.sum(lam * step * token, 0), time < length)
            tl.atomic_add(grad_C + at, tl.sum(now * upstream, 0), time < length)
        grad_step += token * grad_input
        if SOFTPLUS:
            grad_step *= tl.where(raw > 20.0, 1.0, 1.0 / (1.0 + tl.exp(-raw)))
        tl.store(grad_delta + place, grad_step, inside)
        tl.store(grad_u + place, step * grad_input + skip[:, None] * upstream, inside)
    tl.store(grad_A + own_states, sum_A, own)
    tl.store(grad_state + own_states, coming, own)


class TritonScan(torch.autograd.Function):
    """The kernels as a differentiable function. B, C: (b, g, n, l); D, bias and state are given."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias, state, softplus):
        ctx.save_for_backward(u, delta, A, B, C, D, bias, state)
        inputs = [m.contiguous() for m in (u, delta, A, B, C, D, bias, state)]
        batch, channels, length = u.shape
        groups = B.shape[1]
        width = channels // groups
        states = A.shape[1]
        block = block_size(width, 8)
        tile = block_size(length, 64 if A.dtype == torch.float64 else 128)
        blocks = triton.cdiv(width, block)
        tiles = triton.cdiv(length, tile)
        ctx.programs = batch * groups * blocks
        ctx.sizes = (length, width, groups, blocks, tiles, states)
        ctx.constants = {
            "REAL": tl.float64 if A.dtype == torch.float64 else tl.float32,
            "SOFTPLUS": softplus,
            "STATES": block_size(states, 1 << 30),
            "BLOCK": block,
            "TILE": tile,
        }
        y = A.new_empty(u.shape)
        last = A.new_empty(state.shape)
        ctx.entering = A.new_empty(batch, channels, tiles, states)
        outputs = (y, last, ctx.entering)
        launch(forward, ctx.programs, *inputs, *outputs, *ctx.sizes, **ctx.constants)
        return y, last

    @staticmethod
    def backward(ctx, grad_y, grad_last):
        if torch.is_grad_enabled():  # to be differentiated again
            function = partial(scanned, softplus=ctx.constants["SOFTPLUS"])
            return (*gradients(function, ctx.saved_tensors, (grad_y, grad_last)), None)
        *inputs, state = (m.contiguous() for m in ctx.saved_tensors)
        u, delta, A, B, C, D, bias = inputs
        grad_u = A.new_empty(u.shape)
        grad_delta = A.new_empty(delta.shape)
        grad_A = A.new_empty(len(u), *A.shape)
        grad_B = A.new_zeros(B.shape)
        grad_C = A.new_zeros(C.shape)
        grad_state = A.new_empty(state.shape)
        upstream = (ctx.entering, grad_y.contiguous(), grad_last.contiguous())
        results = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_state)
        arguments = (*inputs, *upstream, *results, *ctx.sizes)
        launch(backward, ctx.programs, *arguments, **ctx.constants)
        return (
            grad_u.to(u.dtype),
            grad_delta.to(delta.dtype),
            grad_A.sum(0),
            grad_B.to(B.dtype),
            grad_C.to(C.dtype),
            (grad_y * u).sum((0, 2)),
            grad_delta.sum((0, 2)),
            grad_state,
            None,
        )


def scanned(u, delta, A, B, C, D, bias, state, softplus: bool) -> tuple[Tensor, Tensor]:
    """What `TritonScan` computes, composed of PyTorch's operators; y in the type of A."""
    given = (u.to(A.dtype), delta, A, B, C, D, None, bias, state)
    return composed.with_torch(*given, delta_softplus=softplus, scan=composed.doubling)


def with_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """y (b, d, l) and the last state (b, d, n), differentiable. Refuses complex A."""
    if A.is_complex():
        raise ValueError(
            "selective_scan: A is complex; backend='triton' computes real scans only, take 'torch'"
        )
    if len(u) == 0:
        options = {"delta_softplus": delta_softplus}
        return composed.with_torch(u, delta, A, B, C, D, z, delta_bias, state, **options)
    real = wide(u.dtype)
    batch, channels, length = u.shape
    B = over_time(B, batch, length)
    C = over_time(C, batch, length)
    groups = math.lcm(B.shape[1], C.shape[1])
    B = B.repeat_interleave(groups // B.shape[1], 1)
    C = C.repeat_interleave(groups // C.shape[1], 1)
    zeros = u.new_zeros(channels, dtype=real)
    skip = zeros if D is None else D.to(real)
    bias = zeros if delta_bias is None else delta_bias.to(real)
    if state is None:
        state = u.new_zeros(batch, *A.shape)
    tensors = (u, delta, A.to(real), B, C, skip, bias, state.to(real))
    y, last = TritonScan.apply(*tensors, delta_softplus)
    if z is not None:
        y = y * F.silu(z.to(real))
    return y.to(u.dtype), last


def over_time(m: Tensor, batch: int, length: int) -> Tensor:
    """B or C as (b, g, n, l); a constant (d, n) with a group for every channel."""
    if m.dim() == 2:
        return m[None, :, :, None].expand(batch, -1, -1, length)
    return m if m.dim() == 4 else m[:, None]
