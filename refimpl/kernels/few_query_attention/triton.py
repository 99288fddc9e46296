"""Attention of few queries in Triton: a program streams a part of the keys past a few queries.

Few queries make few programs, so the keys are split among several of them; what the parts found is
joined at the end, a few numbers a query. Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.few_query_attention.composed import with_torch

TILE = 64  # keys at a time
PART = 512  # keys of one program, at least


@triton.jit
def stream(
    queries,
    keys,
    values,
    sums,
    highs,
    totals,
    n,
    m,
    d,
    e,
    query_blocks,
    parts,
    tiles,
    REAL: tl.constexpr,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
):
    """queries (pairs, n, d), keys (pairs, m, d), values (pairs, m, e); of each part of the keys:
    sums (pairs, parts, n, e), highs and totals (pairs, parts, n)."""
    program = tl.program_id(0)
    query = program % query_blocks * QUERIES + tl.arange(0, QUERIES)
    part = program // query_blocks % parts
    pair = (program // (query_blocks * parts)).to(tl.int64)
    column = tl.arange(0, WIDTH)
    value_column = tl.arange(0, VALUES)
    has_query = query < n
    q_place = (pair * n + query)[:, None] * d + column[None, :]
    q = tl.load(queries + q_place, has_query[:, None] & (column < d)[None, :], 0.0).to(REAL)
    q = q * SCALE
    high = tl.full((QUERIES,), float("-inf"), REAL)
    total = tl.zeros((QUERIES,), REAL)
    weighted = tl.zeros((QUERIES, VALUES), REAL)
    for tile in range(tiles):
        key = (part * tiles + tile) * TILE + tl.arange(0, TILE)
        has_key = key < m
        k_place = (pair * m + key)[None, :] * d + column[:, None]
        k = tl.load(keys + k_place, has_key[None, :] & (column < d)[:, None], 0.0).to(REAL)
        scores = tl.dot(q, k, input_precision="ieee", out_dtype=REAL)
        scores = tl.where(has_key[None, :], scores, float("-inf"))
        higher = tl.maximum(high, tl.max(scores, 1))
        known = tl.where(higher == float("-inf"), 0.0, higher)  # a tile beyond the last key
        weights = tl.exp(scores - known[:, None])
        shrink = tl.exp(high - known)
        v_place = (pair * m + key)[:, None] * e + value_column[None, :]
        v = tl.load(values + v_place, has_key[:, None] & (value_column < e)[None, :], 0.0).to(REAL)
        total = shrink * total + tl.sum(weights, 1)
        weighted = shrink[:, None] * weighted
        weighted += tl.dot(weights, v, input_precision="ieee", out_dtype=REAL)
        high = higher
    place = (pair * parts + part) * n + query
    tl.store(highs + place, high, has_query)
    tl.store(totals + place, total, has_query)
    sum_place = place[:, None] * e + value_column[None, :]
    tl.store(sums + sum_place, weighted, has_query[:, None] & (value_column < e)[None, :])


def join(sums: Tensor, highs: Tensor, totals: Tensor) -> Tensor:
    """The parts (axis 1) as one: (pairs, parts, n, e), (pairs, parts, n) twice -> (pairs, n, e)."""
    shrink = (highs - highs.amax(1, keepdim=True)).exp()
    total = (shrink * totals).sum(1)
    return (shrink[..., None] * sums).sum(1) / total[..., None]


class TritonAttention(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, queries, keys, values):
        ctx.save_for_backward(queries, keys, values)
        real = wide(queries.dtype)
        *lead, n, d = queries.shape
        m, e = values.shape[-2:]
        pairs = lead[0] * lead[1]
        if pairs * n * e == 0:
            return queries.new_empty(*lead, n, e, dtype=real)
        parts = max(1, m // PART)
        tiles = triton.cdiv(triton.cdiv(m, parts), TILE)
        sums = torch.empty(pairs, parts, n, e, dtype=real, device=queries.device)
        highs = torch.empty(pairs, parts, n, dtype=real, device=queries.device)
        totals = torch.empty_like(highs)
        block = block_size(n, 64, least=16)
        query_blocks = triton.cdiv(n, block)
        launch(
            stream,
            pairs * parts * query_blocks,
            *[t.contiguous() for t in (queries, keys, values)],
            *(sums, highs, totals),
            *(n, m, d, e, query_blocks, parts, tiles),
            REAL=tl.float64 if real == torch.float64 else tl.float32,
            SCALE=d**-0.5,
            QUERIES=block,
            TILE=TILE,
            WIDTH=block_size(d, 1 << 20, least=16),
            VALUES=block_size(e, 1 << 20, least=16),
        )
        return join(sums, highs, totals).view(*lead, n, e)

    @staticmethod
    def backward(ctx, grad):
        def function(*inputs):
            return with_torch(*inputs).to(grad.dtype)

        return gradients(function, ctx.saved_tensors, grad)


def with_triton(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """y (b, heads, n, e), differentiable."""
    return TritonAttention.apply(queries, keys, values)
