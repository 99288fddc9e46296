"""Lookup in grids of several resolutions: a point reads a learned feature vector from each of them.

Müller, Evans, Schied, Keller, *Instant Neural Graphics Primitives with a Multiresolution Hash
Encoding*, arXiv 2201.05989 (2022); the rule is that of NVlabs/tiny-cuda-nn.

    level l has scale s_l and r_l = ⌈s_l⌉ + 1 grid lines along each axis
    a point x ∈ [0, 1]² lies at p = s_l x + ½: in cell ⌊p⌋, at fraction t = p − ⌊p⌋
    out[:, l] = Σ over the four corners c of Π_axis (t or 1 − t) · table_l[index(⌊p⌋ + c)]
    index(i, j) = i + j r_l             while r_l² rows fit into the level's table,
                  i xor 2654435761 j    else; both modulo the level's rows

    points     (n, 2)         in [0, 1]
    table      (t, f)         the rows of all levels, f features
    scales     L numbers      see `geometric_scales`
    result     (n, L · f)     level by level, in the table's type

Level l owns min(r_l² rounded up to a multiple of 8, `max_entries`) rows of the table; the half
cell beyond the last grid line wraps round, as in tiny-cuda-nn. Arithmetic is float32 (float64 for
float64).

Work: about 8 n L f FLOP (four products and sums per feature). Traffic: four rows of f numbers read
for each point and level, f written, 20 n L f bytes in float32. That is 0.4 FLOP per byte: the limit
is memory, and since the rows lie at random places it is latency, as long as the table does not fit
into a cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.grid_encode.composed import with_torch
from refimpl.kernels.grid_encode.reference import (
    PRIME,
    geometric_scales,
    naive,
    table_rows,
    with_numpy,
)

__all__ = [
    "PRIME",
    "cost",
    "example",
    "geometric_scales",
    "grid_encode",
    "naive",
    "table_rows",
    "with_numpy",
    "with_torch",
]


def grid_encode(
    points: Tensor,
    table: Tensor,
    scales: Sequence[float],
    max_entries: int = 2**20,
    backend: str = "auto",
) -> Tensor:
    """Features of every level at the points: (n, L · f). Equation and shapes: see the module.

    `t` must be `table_rows(scales, max_entries)`; a level with more than `max_entries` grid points
    is hashed. Raises `ValueError` for shapes, types, devices or values that don't fit.
    """
    check(points, table, scales, max_entries)
    options = {"scales": tuple(scales), "max_entries": max_entries}
    features = dispatch("grid_encode", with_torch, backend, points, table, **options)
    return features.to(table.dtype)


def check(points: Tensor, table: Tensor, scales: Sequence[float], max_entries: int) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    axes = {"points": "points 2", "table": "rows features"}
    sizes = checks.shapes(axes, points=points, table=table)
    checks.floating(points=points, table=table)
    checks.at_least(1, features=sizes["features"])
    checks.same_device(points=points, table=table)
    if len(scales) < 1 or not all(s > 0 for s in scales):
        raise ValueError(f"scales={tuple(scales)}: at least one level, and every scale above 0")
    if max_entries < 1 or max_entries > 2**31:
        raise ValueError(f"max_entries={max_entries} must be between 1 and 2**31")
    rows = table_rows(scales, max_entries)
    if len(table) != rows:
        raise ValueError(
            f"table has {len(table)} rows; these scales and max_entries={max_entries} want {rows}"
        )
    if points.numel() and not (points.amin() >= 0 and points.amax() <= 1):
        raise ValueError(
            f"points must lie in [0, 1]², got values from {points.amin():.4g}"
            f" to {points.amax():.4g}"
        )


def cost(points: Tensor, table: Tensor, scales: Sequence[float], **_) -> Cost:
    """Work of one forward call. No more of the table is counted as read than there is of it."""
    values = len(points) * len(scales) * table.shape[1]
    moved = points.numel() + min(4 * values, table.numel()) + values
    return Cost(flops=8 * values, bytes=moved * table.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: the sixteen levels of Denoising Vision Transformers and 2048 points ("large"), or
    three levels ("small"), the finest of which is hashed."""
    n, f, levels, max_entries = {
        "small": (60, 4, (3, 4, 16), 2**7),
        "large": (2048, 8, (16, 16, 1024), 2**20),
    }[size]
    scales = geometric_scales(*levels)
    g = torch.Generator().manual_seed(seed)
    points = torch.rand(n, 2, generator=g)
    table = torch.randn(table_rows(scales, max_entries), f, generator=g)
    return {
        "points": points.to(device, dtype),
        "table": table.to(device, dtype),
        "scales": scales,
        "max_entries": max_entries,
    }
