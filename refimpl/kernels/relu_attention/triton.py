"""ReLU-softmax attention in Triton: a program streams all keys past a block of queries.

Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.relu_attention.composed import with_torch
from refimpl.kernels.relu_attention.reference import EPSILON

TILE = 64  # keys at a time


@triton.jit
def stream(
    queries,
    keys,
    values,
    result,
    n,
    m,
    d,
    e,
    query_blocks,
    REAL: tl.constexpr,
    SCALE: tl.constexpr,
    EPSILON: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
):
    """queries (pairs, n, d), keys (pairs, m, d), values (pairs, m, e), result (pairs, n, e)."""
    program = tl.program_id(0)
    query = program % query_blocks * QUERIES + tl.arange(0, QUERIES)
    pair = (program // query_blocks).to(tl.int64)
    column = tl.arange(0, WIDTH)
    value_column = tl.arange(0, VALUES)
    has_query = query < n
    q_place = (pair * n + query)[:, None] * d + column[None, :]
    q = tl.load(queries + q_place, has_query[:, None] & (column < d)[None, :], 0.0).to(REAL)
    q = q * SCALE
    total = tl.zeros((QUERIES,), REAL) + EPSILON
    weighted = tl.zeros((QUERIES, VALUES), REAL)
    for first in range(0, m, TILE):
        key = first + tl.arange(0, TILE)
        has_key = key < m  # a key beyond the last is zero, and so is its weight
        k_place = (pair * m + key)[None, :] * d + column[:, None]
        k = tl.load(keys + k_place, has_key[None, :] & (column < d)[:, None], 0.0).to(REAL)
        weights = tl.maximum(tl.dot(q, k, input_precision="ieee", out_dtype=REAL), 0.0)
        v_place = (pair * m + key)[:, None] * e + value_column[None, :]
        v = tl.load(values + v_place, has_key[:, None] & (value_column < e)[None, :], 0.0).to(REAL)
        total += tl.sum(weights, 1)
        weighted += tl.dot(weights, v, input_precision="ieee", out_dtype=REAL)
    place = (pair * n + query)[:, None] * e + value_column[None, :]
    tl.store(
        result + place, weighted / total[:, None], has_query[:, None] & (value_column < e)[None, :]
    )


class TritonAttention(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, queries, keys, values):
        ctx.save_for_backward(queries, keys, values)
        real = wide(queries.dtype)
        *lead, n, d = queries.shape
        m, e = values.shape[-2:]
        pairs = lead[0] * lead[1]
        result = torch.empty(*lead, n, e, dtype=real, device=queries.device)
        if result.numel() == 0:
            return result
        block = block_size(n, 64, least=16)
        query_blocks = triton.cdiv(n, block)
        launch(
            stream,
            pairs * query_blocks,
            *[t.contiguous() for t in (queries, keys, values)],
            *(result, n, m, d, e, query_blocks),
            REAL=tl.float64 if real == torch.float64 else tl.float32,
            SCALE=d**-0.5,
            EPSILON=EPSILON,
            QUERIES=block,
            TILE=TILE,
            WIDTH=block_size(d, 1 << 20, least=16),
            VALUES=block_size(e, 1 << 20, least=16),
        )
        return result

    @staticmethod
    def backward(ctx, grad):
        def function(*inputs):
            return with_torch(*inputs).to(grad.dtype)

        return gradients(function, ctx.saved_tensors, grad)


def with_triton(queries, keys, values):
    """y (b, heads, n, e), differentiable."""
    return TritonAttention.apply(queries, keys, values)
