"""Attention with a cropped bias in Triton: a program holds some queries and all keys of a head.

Biases are read from the table where they are needed, so no matrix of n² of them is ever stored.
Equation and shapes: see the package.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.cropped_bias_attention.composed import with_torch

MOST = 1024  # tokens, all of them in one tile


@triton.jit
def attend(
    queries,
    keys,
    values,
    table,
    result,
    heads,
    n,
    d,
    e,
    side,
    span,
    query_blocks,
    SCALE: tl.constexpr,
    REAL: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
):
    """queries, keys (pairs, n, d), values (pairs, n, e), table (heads, span, span)."""
    program = tl.program_id(0)
    query = program % query_blocks * QUERIES + tl.arange(0, QUERIES)
    pair = (program // query_blocks).to(tl.int64)
    key = tl.arange(0, KEYS)
    column = tl.arange(0, WIDTH)
    value_column = tl.arange(0, VALUES)
    has_query = query < n
    has_key = key < n
    q_place = (pair * n + query)[:, None] * d + column[None, :]
    q = tl.load(queries + q_place, has_query[:, None] & (column < d)[None, :], 0.0).to(REAL)
    k_place = (pair * n + key)[None, :] * d + column[:, None]
    k = tl.load(keys + k_place, has_key[None, :] & (column < d)[:, None], 0.0).to(REAL)
    scores = tl.dot(q * SCALE, k, input_precision="ieee", out_dtype=REAL)
    down = (query // side)[:, None] - (key // side)[None, :] + span // 2
    right = (query % side)[:, None] - (key % side)[None, :] + span // 2
    both = has_query[:, None] & has_key[None, :]
    entry = (pair % heads) * span * span + down * span + right
    scores += tl.load(table + entry, both, 0.0).to(REAL)
    scores = tl.where(has_key[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    v_place = (pair * n + key)[:, None] * e + value_column[None, :]
    v = tl.load(values + v_place, has_key[:, None] & (value_column < e)[None, :], 0.0).to(REAL)
    weighted = tl.dot(weights, v, input_precision="ieee", out_dtype=REAL)
    weighted = weighted / tl.sum(weights, 1)[:, None]
    place = (pair * n + query)[:, None] * e + value_column[None, :]
    tl.store(result + place, weighted, has_query[:, None] & (value_column < e)[None, :])


class TritonAttention(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, queries, keys, values, table):
        ctx.save_for_backward(queries, keys, values, table)
        real = wide(queries.dtype)
        b, heads, n, d = queries.shape
        e = values.shape[3]
        if n > MOST:
            raise ValueError(f"queries={tuple(queries.shape)}: triton holds {MOST} tokens at most")
        result = torch.empty(b, heads, n, e, dtype=real, device=queries.device)
        if result.numel() == 0:
            return result
        block = block_size(n, 32, least=16)
        query_blocks = triton.cdiv(n, block)
        launch(
            attend,
            b * heads * query_blocks,
            *[t.contiguous() for t in (queries, keys, values, table)],
            result,
            *(heads, n, d, e, math.isqrt(n), table.shape[1], query_blocks),
            SCALE=d**-0.5,
            REAL=tl.float64 if real == torch.float64 else tl.float32,
            QUERIES=block,
            KEYS=block_size(n, MOST, least=16),
            WIDTH=block_size(d, 1 << 20, least=16),
            VALUES=block_size(e, 1 << 20, least=16),
        )
        return result

    @staticmethod
    def backward(ctx, grad):
        def function(*inputs):
            return with_torch(*inputs).to(grad.dtype)

        return gradients(function, ctx.saved_tensors, grad)


def with_triton(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """y (b, heads, n, e), differentiable. Raises `ValueError` beyond 1024 tokens."""
    return TritonAttention.apply(queries, keys, values, table)
