"""Attention with pooled queries in Triton: a program pools a few, and streams keys past them.

Pooled queries are never stored. Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.pooled_query_attention.composed import with_torch

TILE = 32  # keys at a time


@triton.jit
def attend(
    queries,
    keys,
    values,
    result,
    n,
    m,
    d,
    e,
    pool,
    query_blocks,
    tiles,
    REAL: tl.constexpr,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
):
    """queries (pairs, pool · n, d), keys (pairs, m, d), values (pairs, m, e) -> (pairs, n, e)."""
    program = tl.program_id(0)
    query = program % query_blocks * QUERIES + tl.arange(0, QUERIES)
    pair = (program // query_blocks).to(tl.int64)
    column = tl.arange(0, WIDTH)
    value_column = tl.arange(0, VALUES)
    has_query = query < n
    has_number = has_query[:, None] & (column < d)[None, :]
    q_place = (pair * pool * n + query)[:, None] * d + column[None, :]
    asked = tl.load(queries + q_place, has_number, 0.0).to(REAL)
    for _ in range(pool - 1):
        q_place += n * d
        asked = tl.maximum(asked, tl.load(queries + q_place, has_number, 0.0).to(REAL))
    asked = asked * SCALE
    high = tl.full((QUERIES,), float("-inf"), REAL)
    total = tl.zeros((QUERIES,), REAL)
    weighted = tl.zeros((QUERIES, VALUES), REAL)
    for tile in range(tiles):
        key = tile * TILE + tl.arange(0, TILE)
        has_key = key < m
        k_place = (pair * m + key)[None, :] * d + column[:, None]
        k = tl.load(keys + k_place, has_key[None, :] & (column < d)[:, None], 0.0).to(REAL)
        scores = tl.dot(asked, k, input_precision="ieee", out_dtype=REAL)
        scores = tl.where(has_key[None, :], scores, float("-inf"))
        higher = tl.maximum(high, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(high - higher)
        v_place = (pair * m + key)[:, None] * e + value_column[None, :]
        v = tl.load(values + v_place, has_key[:, None] & (value_column < e)[None, :], 0.0).to(REAL)
        total = shrink * total + tl.sum(weights, 1)
        weighted = shrink[:, None] * weighted
        weighted += tl.dot(weights, v, input_precision="ieee", out_dtype=REAL)
        high = higher
    place = (pair * n + query)[:, None] * e + value_column[None, :]
    mask = has_query[:, None] & (value_column < e)[None, :]
    tl.store(result + place, weighted / total[:, None], mask)


class TritonAttention(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, queries, keys, values, pool):
        ctx.save_for_backward(queries, keys, values)
        ctx.pool = pool
        real = wide(queries.dtype)
        *lead, tokens, d = queries.shape
        m, e = values.shape[-2:]
        pairs, n = lead[0] * lead[1], tokens // pool
        result = torch.empty(*lead, n, e, dtype=real, device=queries.device)
        if result.numel() == 0:
            return result
        block = block_size(n, 32, least=16)
        query_blocks = triton.cdiv(n, block)
        launch(
            attend,
            pairs * query_blocks,
            *[t.contiguous() for t in (queries, keys, values)],
            result,
            *(n, m, d, e, pool, query_blocks, triton.cdiv(m, TILE)),
            REAL=tl.float64 if real == torch.float64 else tl.float32,
            SCALE=d**-0.5,
            QUERIES=block,
            TILE=TILE,
            WIDTH=block_size(d, 1 << 20, least=16),
            VALUES=block_size(e, 1 << 20, least=16),
        )
        return result

    @staticmethod
    def backward(ctx, grad):
        def function(*inputs):
            return with_torch(*inputs, ctx.pool).to(grad.dtype)

        return *gradients(function, ctx.saved_tensors, grad), None


def with_triton(queries: Tensor, keys: Tensor, values: Tensor, pool: int = 4) -> Tensor:
    """y (b, heads, n, e), differentiable."""
    return TritonAttention.apply(queries, keys, values, pool)
