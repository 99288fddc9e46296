"""Cascaded heads in Triton: one program computes one window, head after head.

q, k and v of the head at work lie in a scratch of the program's own, a few kilobytes that stay in
the cache; the n×n attention is never stored: keys are read block after block under a running
maximum and sum. Equation and shapes: see the package.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, interpreted, launch, wide

TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@triton.jit
def product(a, b, TYPE: tl.constexpr, OPERAND: tl.constexpr, REAL: tl.constexpr):
    """a b, both rounded to TYPE and multiplied as OPERAND, sums kept as REAL."""
    a = a.to(TYPE).to(OPERAND)
    b = b.to(TYPE).to(OPERAND)
    return tl.dot(a, b, input_precision="ieee", out_dtype=REAL)


@triton.jit
def forward(
    x,
    qkv_weight,
    qkv_bias,
    dw_weight,
    dw_bias,
    bias_table,
    scratch,
    out,
    heads,
    TYPE: tl.constexpr,
    OPERAND: tl.constexpr,
    REAL: tl.constexpr,
    SCALE: tl.constexpr,
    TOKENS: tl.constexpr,
    SIDE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """x, out: (b, n, C); scratch: (b, n, 2·d_k + c). TYPE is that of all tensors; see `product`."""
    lanes: tl.constexpr = 2 * KEY_DIM + WIDTH  # [q | k | v] of a token
    window = tl.program_id(0).to(tl.int64)
    q_of = scratch + window * TOKENS * lanes
    k_of = q_of + KEY_DIM
    v_of = k_of + KEY_DIM
    stride = heads * WIDTH  # from token to token in x and out
    d = tl.arange(0, BLOCK_KEYS)
    c = tl.arange(0, BLOCK_WIDTH)
    for j in range(heads):
        x_j = x + window * TOKENS * stride + j * WIDTH
        y_j = out + window * TOKENS * stride + j * WIDTH
        weight = qkv_weight + j * lanes * WIDTH
        # [q | k | v] = W (x_j + y_{j−1}) + w into the scratch, 32 outputs and 16 channels at a time
        for first in range(0, TOKENS, BLOCK):
            token = first + tl.arange(0, BLOCK)
            is_token = (token < TOKENS)[:, None]
            for lane in range(0, lanes, 32):
                o = lane + tl.arange(0, 32)
                projected = tl.zeros((BLOCK, 32), REAL)
                projected += tl.load(qkv_bias + j * lanes + o, o < lanes, 0.0).to(REAL)[None, :]
                for start in range(0, WIDTH, 16):
                    i = start + tl.arange(0, 16)
                    own = is_token & (i < WIDTH)[None, :]
                    place = token[:, None] * stride + i[None, :]
                    u = tl.load(x_j + place, own, 0.0).to(REAL)
                    u += tl.load(y_j - WIDTH + place, own & (j > 0), 0.0).to(REAL)
                    used = (i < WIDTH)[:, None] & (o < lanes)[None, :]
                    w = tl.load(weight + o[None, :] * WIDTH + i[:, None], used, 0.0)
                    projected += product(u, w, TYPE, OPERAND, REAL)
                place = token[:, None] * lanes + o[None, :]
                tl.store(q_of + place, projected, is_token & (o < lanes)[None, :])
        tl.debug_barrier()  # all of q, k and v is there
        for first in range(0, TOKENS, BLOCK):
            token = first + tl.arange(0, BLOCK)
            # q ← D ∗ q + d
            q = tl.zeros((BLOCK, BLOCK_KEYS), REAL)
            q += tl.load(dw_bias + j * KEY_DIM + d, d < KEY_DIM, 0.0).to(REAL)[None, :]
            for tap in range(KERNEL * KERNEL):
                row = token // SIDE + tap // KERNEL - KERNEL // 2
                column = token % SIDE + tap % KERNEL - KERNEL // 2
                inside = (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
                inside &= token < TOKENS
                place = (row * SIDE + column)[:, None] * lanes + d[None, :]
                shifted = tl.load(q_of + place, inside[:, None] & (d < KEY_DIM)[None, :], 0.0)
                at = (j * KEY_DIM + d) * (KERNEL * KERNEL) + tap
                factor = tl.load(dw_weight + at, d < KEY_DIM, 0.0).to(REAL)
                q += shifted * factor[None, :]
            # y_j = softmax(q kᵀ / √d_k + b) v, 16 keys at a time
            highest = tl.full((BLOCK,), float("-inf"), REAL)
            total = tl.zeros((BLOCK,), REAL)
            y = tl.zeros((BLOCK, BLOCK_WIDTH), REAL)
            for start in range(0, TOKENS, 16):
                other = start + tl.arange(0, 16)
                used = (d < KEY_DIM)[:, None] & (other < TOKENS)[None, :]
                keys = tl.load(k_of + other[None, :] * lanes + d[:, None], used, 0.0)
                used = (other < TOKENS)[:, None] & (c < WIDTH)[None, :]
                values = tl.load(v_of + other[:, None] * lanes + c[None, :], used, 0.0)
                down = tl.abs((token // SIDE)[:, None] - (other // SIDE)[None, :])
                across = tl.abs((token % SIDE)[:, None] - (other % SIDE)[None, :])
                pair = (token < TOKENS)[:, None] & (other < TOKENS)[None, :]
                at = j * TOKENS + down * SIDE + across
                logits = product(q, keys, TYPE, OPERAND, REAL) * SCALE
                logits += tl.load(bias_table + at, pair, 0.0).to(REAL)
                logits = tl.where((other < TOKENS)[None, :], logits, float("-inf"))
                higher = tl.maximum(highest, tl.max(logits, 1))
                weights = tl.exp(logits - higher[:, None])
                keep = tl.exp(highest - higher)  # the worth of the sums so far
                highest = higher
                total = total * keep + tl.sum(weights, 1)
                y = y * keep[:, None] + product(weights, values, TYPE, OPERAND, REAL)
            own = (token < TOKENS)[:, None] & (c < WIDTH)[None, :]
            tl.store(y_j + token[:, None] * stride + c[None, :], y / total[:, None], own)
        tl.debug_barrier()  # all of y_j is there, and the scratch is free


def with_triton(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    bias_table: Tensor,
) -> Tensor:
    """(b, n, C) -> (b, n, C), forward only. Refuses heads that do not fit into registers."""
    windows, n, channels = x.shape
    heads, key_dim, kernel, _ = dw_weight.shape
    width = channels // heads
    if width > 128 or key_dim > 64:
        raise ValueError(
            "cascaded_group_attention: backend='triton' takes heads of at most 128 channels and"
            f" key_dim 64, got {width} and {key_dim}: take backend='torch'"
        )
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if windows == 0:
        return out
    scratch = x.new_empty(windows, n, 2 * key_dim + width, dtype=wide(x.dtype))
    weights = [t.contiguous() for t in (qkv_weight, qkv_bias, dw_weight, dw_bias, bias_table)]
    # The interpreter would multiply the bit patterns of bfloat16. The product of two such numbers
    # is exact in float32, so there they are multiplied as float32.
    as_float32 = x.dtype == torch.bfloat16 and interpreted()
    constants = {
        "TYPE": TYPES[x.dtype],
        "OPERAND": tl.float32 if as_float32 else TYPES[x.dtype],
        "REAL": TYPES[wide(x.dtype)],
        "SCALE": key_dim**-0.5,
        "TOKENS": n,
        "SIDE": math.isqrt(n),
        "KEY_DIM": key_dim,
        "WIDTH": width,
        "KERNEL": kernel,
        "BLOCK": block_size(n, 64, least=16),
        "BLOCK_KEYS": block_size(key_dim, 64, least=16),
        "BLOCK_WIDTH": block_size(width, 128, least=16),
        "num_stages": 1,  # no load in advance of the barriers
    }
    arguments = (x.contiguous(), *weights, scratch, out, heads)
    launch(forward, windows, *arguments, **constants)
    return out
