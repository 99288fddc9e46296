"""Attention read the other way in Triton: a program holds some of the many, the few come to it.

Keys are read once and results written once; scores exist on the chip alone. Equation and shapes:
see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.scatter_attention.composed import with_torch

KEYS = 64  # of the many, to a program
TILE = 64  # of the few, at a time: up to so many, the loop has one step


@triton.jit
def answer(
    queries,
    keys,
    values,
    result,
    m,
    n,
    d,
    e,
    key_blocks,
    tiles,
    REAL: tl.constexpr,
    SCALE: tl.constexpr,
    KEYS: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
):
    """queries (pairs, m, d), keys (pairs, n, d), values (pairs, m, e) -> result (pairs, n, e)."""
    program = tl.program_id(0)
    key = program % key_blocks * KEYS + tl.arange(0, KEYS)
    pair = (program // key_blocks).to(tl.int64)
    column = tl.arange(0, WIDTH)
    value_column = tl.arange(0, VALUES)
    has_key = key < n
    k_place = (pair * n + key)[:, None] * d + column[None, :]
    k = tl.load(keys + k_place, has_key[:, None] & (column < d)[None, :], 0.0).to(REAL)
    k = k * SCALE
    high = tl.full((KEYS,), float("-inf"), REAL)
    total = tl.zeros((KEYS,), REAL)
    weighted = tl.zeros((KEYS, VALUES), REAL)
    for tile in range(tiles):
        query = tile * TILE + tl.arange(0, TILE)
        has_query = query < m
        q_place = (pair * m + query)[None, :] * d + column[:, None]
        q = tl.load(queries + q_place, has_query[None, :] & (column < d)[:, None], 0.0).to(REAL)
        scores = tl.dot(k, q, input_precision="ieee", out_dtype=REAL)
        scores = tl.where(has_query[None, :], scores, float("-inf"))
        higher = tl.maximum(high, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(high - higher)
        v_place = (pair * m + query)[:, None] * e + value_column[None, :]
        has_value = has_query[:, None] & (value_column < e)[None, :]
        v = tl.load(values + v_place, has_value, 0.0).to(REAL)
        total = shrink * total + tl.sum(weights, 1)
        weighted = shrink[:, None] * weighted
        weighted += tl.dot(weights, v, input_precision="ieee", out_dtype=REAL)
        high = higher
    place = (pair * n + key)[:, None] * e + value_column[None, :]
    mask = has_key[:, None] & (value_column < e)[None, :]
    tl.store(result + place, weighted / total[:, None], mask)


class TritonAnswer(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, queries, keys, values):
        ctx.save_for_backward(queries, keys, values)
        real = wide(queries.dtype)
        *lead, m, d = queries.shape
        n, e = keys.shape[-2], values.shape[-1]
        pairs = lead[0] * lead[1]
        result = torch.empty(*lead, n, e, dtype=real, device=queries.device)
        if result.numel() == 0:
            return result
        key_blocks = triton.cdiv(n, KEYS)
        tile = block_size(m, TILE, least=16)
        launch(
            answer,
            pairs * key_blocks,
            *[t.contiguous() for t in (queries, keys, values)],
            result,
            *(m, n, d, e, key_blocks, triton.cdiv(m, tile)),
            REAL=tl.float64 if real == torch.float64 else tl.float32,
            SCALE=d**-0.5,
            KEYS=KEYS,
            TILE=tile,
            WIDTH=block_size(d, 1 << 20, least=16),
            VALUES=block_size(e, 1 << 20, least=16),
        )
        return result

    @staticmethod
    def backward(ctx, grad):
        def function(*inputs):
            return with_torch(*inputs).to(grad.dtype)

        return gradients(function, ctx.saved_tensors, grad)


def with_triton(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """y (b, heads, n, e), differentiable."""
    return TritonAnswer.apply(queries, keys, values)
