"""Attention on a square grid with a bias by offset, cropped from the table of a larger grid.

ElasticViT's attention: Tang and others, ICCV 2023, arXiv 2303.09730; the readable form is
`refimpl.bases.elastic_blocks.Attention`. A network for smaller images takes the middle of the table
that the largest one has, so no size has a table of its own. Fused as FlashAttention is, Dao and
others, arXiv 2205.14135 (2022), but with all keys at once: there are 256 at most.

    s_ij = ⟨q_i, k_j⟩ / √d + T[head, G − 1 + row_i − row_j, G − 1 + col_i − col_j]
    y_i  = Σ_j softmax_j(s_ij) v_j

    queries, keys   (b, heads, n, d)                n = side²: 4 … 256 tokens, row by row; d = 16
    values          (b, heads, n, e)                e = 32, 48 or 64
    table           (heads, 2G − 1, 2G − 1)         G ≥ side: the largest grid
    y               (b, heads, n, e)                in the type of the queries

Work: 2·n²·(d + e) FLOP per head, and about seven for each of the n² scores. Traffic: queries, keys,
values and results once, n·(2d + 2e) numbers, and the middle of the table once for a whole batch.
With 256 tokens and e = 64 that is 64 FLOP per byte in float32, so arithmetic is the limit as long
as the scores stay on the chip; composed of operators the n² scores, and as many biases, are written
and read three times, some 1.6 MB per head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.cropped_bias_attention.composed import with_torch
from refimpl.kernels.cropped_bias_attention.reference import naive, with_numpy

__all__ = ["cost", "cropped_bias_attention", "example", "naive", "with_numpy", "with_torch"]

AXES = {
    "queries": "batch heads tokens width",
    "keys": "batch heads tokens width",
    "values": "batch heads tokens value_width",
    "table": "heads rows columns",
}


def cropped_bias_attention(
    queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, backend: str = "auto"
) -> Tensor:
    """y (b, heads, n, e). Equation and shapes: see the module.

    Raises `ValueError` for shapes, types or devices that don't fit.
    """
    tensors = {"queries": queries, "keys": keys, "values": values, "table": table}
    sizes = checks.shapes(AXES, **tensors)
    checks.floating(**tensors)
    checks.same_device(**tensors)
    side = math.isqrt(sizes["tokens"])
    if side**2 != sizes["tokens"] or side * sizes["width"] == 0:
        raise ValueError(
            f"queries must be those of a square grid, and not empty, got {tuple(queries.shape)}"
        )
    rows, columns = sizes["rows"], sizes["columns"]
    if rows != columns or rows % 2 == 0 or rows < 2 * side - 1:
        raise ValueError(
            f"table must hold an odd square of offsets, {2 * side - 1} or more a side for a grid of"
            f" {side}×{side} tokens, got {tuple(table.shape)}"
        )
    result = dispatch("cropped_bias_attention", with_torch, backend, queries, keys, values, table)
    return result.to(queries.dtype)


def cost(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Cost:
    """Both products and seven FLOP a score; everything once, of the table the middle."""
    n, d = queries.shape[-2:]
    e = values.shape[-1]
    pairs = queries.shape[0] * queries.shape[1]
    numbers = pairs * n * (2 * d + 2 * e) + len(table) * (2 * math.isqrt(n) - 1) ** 2
    return Cost(flops=pairs * n * n * (2 * (d + e) + 7), bytes=numbers * queries.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 3×3 tokens of a table for 4×4; or ("large") the third stage of S1, 8 images of
    192 pixels: 12×12 tokens, 4 heads, the table for 16×16."""
    b, heads, side, largest, d, e = (
        (2, 2, 3, 4, 4, 8) if size == "small" else (8, 4, 12, 16, 16, 32)
    )
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "queries": (b, heads, side**2, d),
        "keys": (b, heads, side**2, d),
        "values": (b, heads, side**2, e),
        "table": (heads, 2 * largest - 1, 2 * largest - 1),
    }
    made = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {name: tensor.to(device, dtype) for name, tensor in made.items()}
