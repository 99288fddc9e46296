"""Attention whose queries are pooled first: each asks as the maximum of several does.

Hiera's mask unit attention, Ryali and others, ICML 2023, arXiv 2306.00989, from which TurboViT
builds its networks; the readable form is `refimpl.bases.hiera.MaskUnitAttention`. The running
softmax over tiles of keys is FlashAttention's, Dao and others, arXiv 2205.14135 (2022).

    p_ic = max_r q_(r n + i) c                  r = 0 … pool − 1
    s_ij = ⟨p_i, k_j⟩ / √d
    y_i  = Σ_j softmax_j(s_ij) v_j

    queries   (b, heads, pool · n, d)    of a mask unit each, or of an image: b counts them
    keys      (b, heads, m, d)           m = pool · n where a unit asks itself
    values    (b, heads, m, e)
    y         (b, heads, n, e)           in the type of the queries

In unrolled order the `pool` tokens that become one lie n places apart, so nothing is moved: the
maximum is taken over the first axis of (pool, n, d). Where pool = 1 this is plain attention.

Work: 2·n·m·(d + e) FLOP and about five for each of the n·m scores. Traffic: queries, keys, values
and results once. A unit of 64 tokens of width 96 that pools by 4 has 5.0 FLOP per byte in float32
(`cost(**example("large"))`): memory is the limit. Composed of operators, pooled queries are written
and read once more, n·d numbers, and the n·m scores three times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.pooled_query_attention.composed import with_torch
from refimpl.kernels.pooled_query_attention.reference import naive, with_numpy

__all__ = ["cost", "example", "naive", "pooled_query_attention", "with_numpy", "with_torch"]

AXES = {
    "queries": "batch heads queries width",
    "keys": "batch heads keys width",
    "values": "batch heads keys value_width",
}


def pooled_query_attention(
    queries: Tensor, keys: Tensor, values: Tensor, pool: int = 4, backend: str = "auto"
) -> Tensor:
    """y (b, heads, n, e). Equation and shapes: see the module.

    pool: queries that become one. Raises `ValueError` for shapes, types or devices that don't fit.
    """
    tensors = {"queries": queries, "keys": keys, "values": values}
    sizes = checks.shapes(AXES, **tensors)
    if sizes["keys"] == 0 or sizes["width"] == 0:
        raise ValueError(f"keys must hold at least one number each, got {tuple(keys.shape)}")
    checks.integer(1, pool=pool)
    if sizes["queries"] % pool:
        raise ValueError(f"pool={pool} must divide the {sizes['queries']} queries")
    checks.floating(**tensors)
    checks.same_device(**tensors)
    result = dispatch(
        "pooled_query_attention", with_torch, backend, queries, keys, values, pool=pool
    )
    return result.to(queries.dtype)


def cost(queries: Tensor, keys: Tensor, values: Tensor, pool: int = 4) -> Cost:
    """Both products and five FLOP a score; queries, keys, values and results once."""
    tokens, d = queries.shape[-2:]
    m, e = values.shape[-2:]
    n = tokens // pool
    pairs = queries.shape[0] * queries.shape[1]
    numbers = pairs * (tokens * d + m * (d + e) + n * e)
    return Cost(flops=pairs * n * m * (2 * (d + e) + 5), bytes=numbers * queries.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 12 queries and 7 keys; or ("large") the first block of Hiera-tiny's second stage,
    8 images of 224 pixels: 49 mask units of 64 tokens each, 2 heads of width 96."""
    b, heads, tokens, m, d = (2, 2, 12, 7, 8) if size == "small" else (8 * 49, 2, 64, 64, 96)
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "queries": (b, heads, tokens, d),
        "keys": (b, heads, m, d),
        "values": (b, heads, m, d),
    }
    made = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {name: tensor.to(device, dtype) for name, tensor in made.items()} | {"pool": 4}
