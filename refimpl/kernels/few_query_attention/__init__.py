"""Attention of few queries to many keys: each key and value is read once, no score is stored.

Semantic tokens that ask an image: Chang and others, arXiv 2303.08685 (2023); the readable form is
`refimpl.layers.CrossAttention`. The running softmax is Milakov and Gimelshein's, arXiv 1805.02867
(2018), over tiles of keys as in FlashAttention, Dao and others, arXiv 2205.14135 (2022); the keys
are split among programs as for decoding with one query (Dao, Haziza, Massa, Sizov, 2023).

    s_ij = ⟨q_i, k_j⟩ / √d
    y_i  = Σ_j softmax_j(s_ij) v_j

    queries   (b, heads, n, d)      n = 4 … 36
    keys      (b, heads, m, d)      m = 196 … 3136
    values    (b, heads, m, e)
    y         (b, heads, n, e)      in the type of the queries

Tile after tile of keys, with the largest score μ so far, the sum σ of exp(s − μ) and the weighted
sum a of values: where a tile raises μ to μ', both σ and a shrink by exp(μ − μ') before the tile is
added. At the end y = a/σ. Parts of the keys that were treated apart are joined by the same rule.

Work: 2·n·m·(d + e) FLOP and about five for each of the n·m scores. Traffic: keys and values once,
m·(d + e) numbers; queries and results are small beside them. So n FLOP per byte or less in float32
(`cost(**example("large"))`): with 16 queries the memory that holds the keys is the limit on a GPU,
and 32 queries cost hardly more than 16. Composed of operators, the n·m scores are written and read
three times more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.few_query_attention.composed import with_torch
from refimpl.kernels.few_query_attention.reference import naive, with_numpy

__all__ = ["cost", "example", "few_query_attention", "naive", "with_numpy", "with_torch"]

AXES = {
    "queries": "batch heads queries width",
    "keys": "batch heads keys width",
    "values": "batch heads keys value_width",
}


def few_query_attention(
    queries: Tensor, keys: Tensor, values: Tensor, backend: str = "auto"
) -> Tensor:
    """y (b, heads, n, e). Equation and shapes: see the module.

    Raises `ValueError` for shapes, types or devices that don't fit.
    """
    tensors = {"queries": queries, "keys": keys, "values": values}
    sizes = checks.shapes(AXES, **tensors)
    if sizes["keys"] == 0 or sizes["width"] == 0:
        raise ValueError(f"keys must hold at least one number each, got {tuple(keys.shape)}")
    checks.floating(**tensors)
    checks.same_device(**tensors)
    result = dispatch("few_query_attention", with_torch, backend, queries, keys, values)
    return result.to(queries.dtype)


def cost(queries: Tensor, keys: Tensor, values: Tensor) -> Cost:
    """Both products and five FLOP a score; queries, keys, values and results once."""
    n, d = queries.shape[-2:]
    m, e = values.shape[-2:]
    pairs = queries.shape[0] * queries.shape[1]
    moved = pairs * (n * (d + e) + m * (d + e)) * queries.element_size()
    return Cost(flops=pairs * n * m * (2 * (d + e) + 5), bytes=moved)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 4 queries, 19 keys; or ("large") the second generation layer of Swin-S, 8 images:
    36 queries, 232 keys, 12 heads of width 32."""
    b, heads, n, m, d = (2, 2, 4, 19, 8) if size == "small" else (8, 12, 36, 232, 32)
    g = torch.Generator().manual_seed(seed)
    shapes = {"queries": (b, heads, n, d), "keys": (b, heads, m, d), "values": (b, heads, m, d)}
    made = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {name: tensor.to(device, dtype) for name, tensor in made.items()}
