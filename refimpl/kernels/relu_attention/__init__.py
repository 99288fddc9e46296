"""ReLU-softmax attention: scores cut at zero, divided by their sum, streamed without a maximum.

Zeng and others, *MPCViT*, arXiv 2211.13955 (2023); the readable form is
`refimpl.papers.mpcvit.relu_softmax`. Streaming over tiles of keys is FlashAttention's (Dao and
others, arXiv 2205.14135, 2022), and simpler here: nothing has to be rescaled.

    s_ij = ⟨q_i, k_j⟩ / √d
    y_i  = Σ_j relu(s_ij) v_j / (Σ_j relu(s_ij) + ε)        ε = 1e-5

    queries   (b, heads, n, d)      n = m = 65 … 257
    keys      (b, heads, m, d)      d = e = 16 … 64
    values    (b, heads, m, e)
    y         (b, heads, n, e)      in the type of the queries

Tile after tile of keys two sums grow: of weighted values and of weights. A query without a positive
score reads nothing: y = 0.

Work: 2·n·m·(d + e) FLOP and about three for each of the n·m scores. Traffic: queries, keys, values
and results once, (n + m)·(d + e) numbers; so n/4 FLOP per byte in float32 with m = n: from a few
hundred tokens on, arithmetic is the limit on a GPU. Composed of operators, the n·m scores are
written and read three times more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.relu_attention.composed import with_torch
from refimpl.kernels.relu_attention.reference import naive, with_numpy

__all__ = ["cost", "example", "naive", "relu_attention", "with_numpy", "with_torch"]

AXES = {
    "queries": "batch heads queries width",
    "keys": "batch heads keys width",
    "values": "batch heads keys value_width",
}


def relu_attention(queries: Tensor, keys: Tensor, values: Tensor, backend: str = "auto") -> Tensor:
    """y (b, heads, n, e). Equation and shapes: see the module.

    Raises `ValueError` for shapes, types or devices that don't fit.
    """
    tensors = {"queries": queries, "keys": keys, "values": values}
    sizes = checks.shapes(AXES, **tensors)
    if sizes["keys"] == 0 or sizes["width"] == 0:
        raise ValueError(f"keys must hold at least one number each, got {tuple(keys.shape)}")
    checks.floating(**tensors)
    checks.same_device(**tensors)
    result = dispatch("relu_attention", with_torch, backend, queries, keys, values)
    return result.to(queries.dtype)


def cost(queries: Tensor, keys: Tensor, values: Tensor) -> Cost:
    """Both products and three FLOP per score; queries, keys, values and results once."""
    n, d = queries.shape[-2:]
    m, e = values.shape[-2:]
    pairs = queries.shape[0] * queries.shape[1]
    moved = pairs * (n + m) * (d + e) * queries.element_size()
    return Cost(flops=pairs * n * m * (2 * (d + e) + 3), bytes=moved)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 7 queries, 19 keys; or ("large") a layer of the Tiny-ImageNet model, 8 images: 257
    tokens, 12 heads of width 16."""
    b, heads, n, m, d = (2, 2, 7, 19, 8) if size == "small" else (8, 12, 257, 257, 16)
    g = torch.Generator().manual_seed(seed)
    shapes = {"queries": (b, heads, n, d), "keys": (b, heads, m, d), "values": (b, heads, m, d)}
    made = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {name: tensor.to(device, dtype) for name, tensor in made.items()}
