"""State space duality in Triton: a program walks the chunks with the state in registers.

One program computes WIDTH channels of one head in one sequence. Equation: see the package.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.ssd.composed import with_torch

MOST_STATES = 256  # they stay in registers


@triton.jit
def forward(
    x,
    a,
    B,
    C,
    state,
    y,
    last,
    length,
    heads,
    groups,
    width,
    states,
    blocks,
    REAL: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
):
    """x, y: (b, l, h, p); a: (b, l, h); B, C: (b, l, g, n); state, last: (b, h, p, n)."""
    program = tl.program_id(0)
    head = program // blocks % heads
    batch = (program // (blocks * heads)).to(tl.int64)
    group = head // (heads // groups)
    steps = tl.arange(0, CHUNK)
    n = tl.arange(0, STATES)
    p = program % blocks * WIDTH + tl.arange(0, WIDTH)
    own = (p < width)[:, None] & (n < states)[None, :]
    own_states = ((batch * heads + head) * width + p)[:, None] * states + n[None, :]
    h = tl.load(state + own_states, own, 0.0)
    for start in range(0, length, CHUNK):
        time = start + steps
        inside = time < length
        row = batch * length + time
        rates = tl.load(a + row * heads + head, inside, 0.0)
        per_group = (row * groups + group)[:, None] * states + n[None, :]
        per_head = (row * heads + head)[:, None] * width + p[None, :]
        has_state = inside[:, None] & (n < states)[None, :]
        has_width = inside[:, None] & (p < width)[None, :]
        B_c = tl.load(B + per_group, has_state, 0.0).to(REAL)
        C_c = tl.load(C + per_group, has_state, 0.0).to(REAL)
        tokens = tl.load(x + per_head, has_width, 0.0).to(REAL)
        # exp(segsum a): rows l, columns s; terms between s and l are added, never subtracted
        after = steps[:, None] > steps[None, :]
        sums = tl.cumsum(tl.where(after, rates[:, None], 0.0), 0)
        decay = tl.where(steps[:, None] >= steps[None, :], tl.exp(sums), 0.0)
        first = tl.exp(tl.sum(tl.where(steps == 0, rates, 0.0), 0))
        since_start = first * tl.sum(tl.where((steps == 0)[None, :], decay, 0.0), 1)
        to_end = tl.sum(tl.where((steps == CHUNK - 1)[:, None], decay, 0.0), 0)
        across = tl.sum(tl.where(steps == CHUNK - 1, since_start, 0.0), 0)
        matrix = tl.dot(C_c, tl.trans(B_c), input_precision="ieee", out_dtype=REAL) * decay
        out = tl.dot(matrix, tokens, input_precision="ieee", out_dtype=REAL)
        from_before = tl.dot(C_c, tl.trans(h), input_precision="ieee", out_dtype=REAL)
        out += since_start[:, None] * from_before
        reaching = tl.trans(tokens * to_end[:, None])
        added = tl.dot(reaching, B_c, input_precision="ieee", out_dtype=REAL)
        h = across * h + added
        tl.store(y + per_head, out, has_width)
    tl.store(last + own_states, h, own)


class TritonSSD(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, x, a, B, C, state, chunk):
        ctx.save_for_backward(x, a, B, C, state)
        ctx.chunk = chunk
        batch, length, heads, width = x.shape
        groups, states = B.shape[2:]
        REAL = tl.float64 if a.dtype == torch.float64 else tl.float32
        # Products want sides of at least 16; with much larger ones the registers do not suffice
        most = 16 if states > 64 or a.dtype == torch.float64 else 32
        block = block_size(width, most, least=16)
        constants = {
            "REAL": REAL,
            "CHUNK": block_size(min(chunk, length), most, least=16),
            "WIDTH": block,
            "STATES": block_size(states, MOST_STATES, least=16),
            "num_warps": 8,
            "num_stages": 1,
        }
        blocks = triton.cdiv(width, block)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        last = a.new_empty(state.shape)
        inputs = [m.contiguous() for m in (x, a, B, C, state)]
        sizes = (length, heads, groups, width, states, blocks)
        launch(forward, batch * heads * blocks, *inputs, y, last, *sizes, **constants)
        return y, last

    @staticmethod
    def backward(ctx, grad_y, grad_last):
        function = partial(with_torch, chunk=ctx.chunk)
        return (*gradients(function, ctx.saved_tensors, (grad_y, grad_last)), None)


def with_triton(
    x: Tensor, a: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None, *, chunk: int = 32
) -> tuple[Tensor, Tensor]:
    """y and the last state, differentiable. Refuses more than 256 states."""
    states = B.shape[3]
    if states > MOST_STATES:
        raise ValueError(
            f"ssd: backend='triton' keeps the states in registers, {MOST_STATES} at most;"
            f" B has {states}: take backend='torch'"
        )
    if len(x) == 0:
        return with_torch(x, a, B, C, state, chunk=chunk)
    real = wide(x.dtype)
    if state is None:
        state = x.new_zeros(len(x), *x.shape[2:], states)
    return TritonSSD.apply(x, a.to(real), B, C, state.to(real), chunk)
