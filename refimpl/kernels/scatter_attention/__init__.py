"""Attention read the other way: few tokens that asked many give each of the many an answer.

The second half of LookupViT's bidirectional attention: Koner and others, arXiv 2407.12753 (2024);
the readable form is `refimpl.papers.lookupvit.look_up`. The first half, in which the few ask, is
`refimpl.kernels.few_query_attention` with the same queries and keys.

    s_ij = ⟨q_i, k_j⟩ / √d
    y_j  = Σ_i softmax_i(s_ij) v_i        over the few, for each of the many

    queries   (b, heads, m, d)      m = 9 … 100, the few
    keys      (b, heads, n, d)      n = 196 … 1024, the many
    values    (b, heads, m, e)      of the few; known only after they have thought
    y         (b, heads, n, e)      in the type of the queries

Between the halves the few tokens change, so two launches are needed, and the scores must be kept or
computed twice. To keep them costs 4·n·m bytes a head written and read; to compute them anew
2·n·m·d FLOP, from queries and keys that are read anyway: cheaper wherever the machine does more
than d/4 FLOP in the time of one byte (written and read: two passes of the memory). PyTorch's form
computes them anew, too; `look_up`, on a CPU, keeps them.

Work: 2·n·m·(d + e) FLOP and about five for each of the n·m scores. Traffic: keys once, results
once, n·(d + e) numbers; the few are small beside them, and lie on the chip as a whole (a tile holds
64), so the softmax over them is done when the scores are. In float32 m/2 FLOP per byte
(`cost(**example("large"))`): with 25 compressed tokens the memory is the limit on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.scatter_attention.composed import with_torch
from refimpl.kernels.scatter_attention.reference import naive, with_numpy

__all__ = ["cost", "example", "naive", "scatter_attention", "with_numpy", "with_torch"]

AXES = {
    "queries": "batch heads queries width",
    "keys": "batch heads keys width",
    "values": "batch heads queries value_width",
}


def scatter_attention(
    queries: Tensor, keys: Tensor, values: Tensor, backend: str = "auto"
) -> Tensor:
    """y (b, heads, n, e). Equation and shapes: see the module.

    Raises `ValueError` for shapes, types or devices that don't fit.
    """
    tensors = {"queries": queries, "keys": keys, "values": values}
    sizes = checks.shapes(AXES, **tensors)
    if sizes["queries"] == 0 or sizes["width"] == 0:
        raise ValueError(f"queries must hold at least one number each, got {tuple(queries.shape)}")
    checks.floating(**tensors)
    checks.same_device(**tensors)
    result = dispatch("scatter_attention", with_torch, backend, queries, keys, values)
    return result.to(queries.dtype)


def cost(queries: Tensor, keys: Tensor, values: Tensor) -> Cost:
    """Both products and five FLOP a score; queries, keys, values and results once."""
    m, d = queries.shape[-2:]
    n, e = keys.shape[-2], values.shape[-1]
    pairs = queries.shape[0] * queries.shape[1]
    moved = pairs * (n + m) * (d + e) * queries.element_size()
    return Cost(flops=pairs * n * m * (2 * (d + e) + 5), bytes=moved)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 4 queries, 19 keys; or ("large") a block of LookupViT-Base, 8 images: 25 queries,
    196 keys, 12 heads of width 64."""
    b, heads, m, n, d = (2, 2, 4, 19, 8) if size == "small" else (8, 12, 25, 196, 64)
    g = torch.Generator().manual_seed(seed)
    shapes = {"queries": (b, heads, m, d), "keys": (b, heads, n, d), "values": (b, heads, m, d)}
    made = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {name: tensor.to(device, dtype) for name, tensor in made.items()}
