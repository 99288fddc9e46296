"""Neighbourhood attention in Triton: a program answers some queries of one map, key after key.

Where a window lies is computed, not looked up, and scores exist on the chip alone: one pass over
k² keys with a running softmax. Neighbours' windows overlap, so keys come from the cache after the
first read. Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.neighbourhood_attention.composed import with_torch

QUERIES = 32  # to a program


@triton.jit
def window_start(place, residue, length, WINDOW: tl.constexpr, STEP: tl.constexpr):
    """Place of the first key among tokens of this remainder."""
    count = (length - residue + STEP - 1) // STEP
    return tl.minimum(tl.maximum(place - WINDOW // 2, 0), count - WINDOW)


@triton.jit
def attend(
    queries,
    keys,
    values,
    bias,
    result,
    heads,
    height,
    width,
    d,
    query_blocks,
    REAL: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    QUERIES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """queries, keys, values (pairs, h, w, d), bias (heads, 2·ROWS − 1, 2·COLUMNS − 1)."""
    program = tl.program_id(0)
    query = program % query_blocks * QUERIES + tl.arange(0, QUERIES)
    pair = (program // query_blocks).to(tl.int64)
    head = pair % heads
    channel = tl.arange(0, WIDTH)
    inside = query < height * width
    y = tl.where(inside, query // width, 0)
    x = tl.where(inside, query % width, 0)
    top = window_start(y // DOWN, y % DOWN, height, ROWS, DOWN)
    left = window_start(x // RIGHT, x % RIGHT, width, COLUMNS, RIGHT)
    mask = inside[:, None] & (channel < d)[None, :]
    first = pair * height * width
    place = (first + query)[:, None] * d + channel[None, :]
    q = tl.load(queries + place, mask, 0.0).to(REAL) * SCALE
    high = tl.full((QUERIES,), float("-inf"), REAL)
    total = tl.zeros((QUERIES,), REAL)
    weighted = tl.zeros((QUERIES, WIDTH), REAL)
    for number in range(ROWS * COLUMNS):
        row = number // COLUMNS
        column = number % COLUMNS
        key = ((top + row) * DOWN + y % DOWN) * width + (left + column) * RIGHT + x % RIGHT
        key_place = (first + key)[:, None] * d + channel[None, :]
        k = tl.load(keys + key_place, mask, 0.0).to(REAL)
        score = tl.sum(q * k, 1)
        if HAS_BIAS:
            on = (top + row - y // DOWN + ROWS - 1) * (2 * COLUMNS - 1)
            on += left + column - x // RIGHT + COLUMNS - 1
            table = head * (2 * ROWS - 1) * (2 * COLUMNS - 1)
            score += tl.load(bias + table + on).to(REAL)
        higher = tl.maximum(high, score)
        weight = tl.exp(score - higher)
        shrink = tl.exp(high - higher)
        v = tl.load(values + key_place, mask, 0.0).to(REAL)
        total = shrink * total + weight
        weighted = shrink[:, None] * weighted + weight[:, None] * v
        high = higher
    tl.store(result + place, weighted / total[:, None], mask)


class TritonNeighbours(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, queries, keys, values, bias, window_size, dilation):
        ctx.save_for_backward(*[t for t in (queries, keys, values, bias) if t is not None])
        ctx.window = window_size, dilation
        real = wide(queries.dtype)
        b, heads, height, width, d = queries.shape
        result = torch.empty(queries.shape, dtype=real, device=queries.device)
        if result.numel() == 0:
            return result
        query_blocks = triton.cdiv(height * width, QUERIES)
        launch(
            attend,
            b * heads * query_blocks,
            *[t.contiguous() for t in (queries, keys, values)],
            queries if bias is None else bias.contiguous(),
            result,
            *(heads, height, width, d, query_blocks),
            REAL=tl.float64 if real == torch.float64 else tl.float32,
            SCALE=d**-0.5,
            HAS_BIAS=bias is not None,
            ROWS=window_size[0],
            COLUMNS=window_size[1],
            DOWN=dilation[0],
            RIGHT=dilation[1],
            QUERIES=QUERIES,
            WIDTH=block_size(d, 1 << 20, least=16),
        )
        return result

    @staticmethod
    def backward(ctx, grad):
        def function(*inputs):
            bias = inputs[3] if len(inputs) == 4 else None
            return with_torch(*inputs[:3], bias, *ctx.window).to(grad.dtype)

        found = gradients(function, ctx.saved_tensors, grad)
        return (*found, None, None, None)[:6]


def with_triton(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    window_size: tuple[int, int] = (7, 7),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """y (b, heads, h, w, d), differentiable."""
    return TritonNeighbours.apply(queries, keys, values, bias, window_size, dilation)
