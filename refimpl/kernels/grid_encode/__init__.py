"""Multi-resolution grid lookup: a point reads a learned feature vector from every one of L grids, bilinearly, and gets them in a row.

Müller and others, *Instant Neural Graphics Primitives with a Multiresolution Hash Encoding*, 2022, arXiv 2201.05989; the rule is that of NVlabs/tiny-cuda-nn.

    level l has scale s_l and r_l = ⌈s_l⌉ + 1 grid lines an axis; a point x in [0, 1]² lies at p = s_l x + ½, in cell ⌊p⌋ at fraction t = p − ⌊p⌋
    out[:, l] = Σ over the four corners c of Π_axis (t or 1 − t) · table_l[index(⌊p⌋ + c)]
    index(i, j) = i + j r_l while r_l² rows fit into the level's table, else (i xor 2654435761 j); both modulo the level's rows

    points (n, 2), table (t, f), scales L numbers -> (n, L · f), level by level

Level l owns min(r_l² rounded up to a multiple of 8, `max_entries`) rows of the table. The half cell beyond the last grid line wraps round, as in tiny-cuda-nn.

FLOPs ≈ 8 n L f (four products and sums a feature). Bytes: four rows of f numbers read a point and level, f written: 20 n L f in float32, so 0.4 FLOP a
byte: the limit is memory, and since the rows lie at random places it is latency as long as the table does not fit into a cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels import Cost, dispatch

PRIME = 2654435761
CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))


def geometric_scales(
    num_levels: int = 16, base_resolution: int = 16, max_resolution: int = 1024
) -> tuple[float, ...]:
    """s_l = base · b^l − 1 with b = (max/base)^(1/(L−1)), rounded as float32 arithmetic rounds it."""
    if num_levels < 1:
        raise ValueError(f"num_levels={num_levels} must be at least 1")
    if not 2 <= base_resolution <= max_resolution:
        raise ValueError(
            f"base_resolution={base_resolution} and max_resolution={max_resolution}: wanted 2 ≤ base ≤ max"
        )
    growth = np.float32(np.exp(np.log(max_resolution / base_resolution) / max(num_levels - 1, 1)))
    return tuple(
        float(
            np.exp2(np.float32(level) * np.log2(growth)) * np.float32(base_resolution)
            - np.float32(1)
        )
        for level in range(num_levels)
    )


def level_rows(scale: float, max_entries: int) -> int:
    """Rows of the table that a level owns."""
    return min((math.ceil(scale) + 1) ** 2 + 7 & ~7, max_entries)


def table_rows(scales: Sequence[float], max_entries: int) -> int:
    """Rows of the whole table."""
    return sum(level_rows(scale, max_entries) for scale in scales)


@functools.lru_cache(maxsize=32)
def geometry(
    scales: tuple[float, ...], max_entries: int
) -> tuple[list[int], list[int], list[int], list[bool]]:
    """Per level: grid lines r_l, rows, first row in the table, and whether it is hashed."""
    lines = [math.ceil(scale) + 1 for scale in scales]
    rows = [level_rows(scale, max_entries) for scale in scales]
    first = [sum(rows[:level]) for level in range(len(rows))]
    return lines, rows, first, [r * r > max_entries for r in lines]


def naive(
    points: np.ndarray, table: np.ndarray, scales: Sequence[float], max_entries: int
) -> np.ndarray:
    """Loops over points, levels and corners: the definition."""
    out = np.zeros((len(points), len(scales), table.shape[1]), table.dtype)
    for level, (scale, lines, rows, first, hashed) in enumerate(
        zip(scales, *geometry(tuple(scales), max_entries), strict=True)
    ):
        for n, point in enumerate(points):
            place = point * point.dtype.type(scale) + point.dtype.type(0.5)
            cell = np.floor(place)
            t = place - cell
            for i, j in CORNERS:
                x, y = int(cell[0]) + i, int(cell[1]) + j
                index = x ^ (y * PRIME & 0xFFFFFFFF) if hashed else x + y * lines
                weight = (t[0] if i else 1 - t[0]) * (t[1] if j else 1 - t[1])
                out[n, level] += weight * table[first + index % rows]
    return out.reshape(len(points), len(scales) * table.shape[1])


def with_numpy(
    points: np.ndarray, table: np.ndarray, scales: Sequence[float], max_entries: int
) -> np.ndarray:
    """All points of a level at once."""
    levels = []
    for scale, lines, rows, first, hashed in zip(
        scales, *geometry(tuple(scales), max_entries), strict=True
    ):
        place = points * points.dtype.type(scale) + points.dtype.type(0.5)
        cell = np.floor(place)
        (tx, ty), (x, y) = (place - cell).T, cell.astype(np.int64).T
        level = np.zeros((len(points), table.shape[1]), table.dtype)
        for i, j in CORNERS:
            index = (x + i) ^ ((y + j) * PRIME & 0xFFFFFFFF) if hashed else x + i + (y + j) * lines
            weight = (tx if i else 1 - tx) * (ty if j else 1 - ty)
            level += weight[:, None] * table[first + index % rows]
        levels.append(level)
    return np.concatenate(levels, 1)


def with_torch(points: Tensor, table: Tensor, scales: Sequence[float], max_entries: int) -> Tensor:
    """All points and levels at once: a weighted `embedding_bag` of four rows each. Differentiable in table and points."""
    lines, rows, first, hashed = (
        torch.tensor(x, device=points.device) for x in geometry(tuple(scales), max_entries)
    )
    place = points[:, None] * points.new_tensor(scales)[:, None] + 0.5  # (n, L, 2)
    cell = place.detach().floor()
    tx, ty = (place - cell).unbind(-1)
    x, y = cell.long().unbind(-1)
    x, y = (
        torch.stack([x, x + 1, x, x + 1], -1),
        torch.stack([y, y, y + 1, y + 1], -1),
    )  # (n, L, 4), the order of CORNERS
    index = x + y * lines[:, None]
    if hashed.any():
        index = torch.where(hashed[:, None], x ^ (y * PRIME & 0xFFFFFFFF), index)
    weight = torch.stack([(1 - tx) * (1 - ty), tx * (1 - ty), (1 - tx) * ty, tx * ty], -1)
    index = first[:, None] + index % rows[:, None]
    bags = F.embedding_bag(
        index.view(-1, 4),
        table,
        mode="sum",
        per_sample_weights=weight.reshape(-1, 4).to(table.dtype),
    )
    return bags.view(len(points), len(scales) * table.shape[1])


def with_triton(points: Tensor, table: Tensor, scales: Sequence[float], max_entries: int) -> Tensor:
    """One program a block of points and level; the backward pass adds into the table atomically."""
    if points.dtype != torch.float32 or table.dtype != torch.float32:
        raise ValueError(
            f"grid_encode: the Triton form takes float32, got points {points.dtype} and table {table.dtype}"
        )
    if table.shape[1] & (table.shape[1] - 1):
        raise ValueError(
            f"grid_encode: the Triton form takes a power of two of features a level, got {table.shape[1]}"
        )
    return lookup().apply(points.contiguous(), table.contiguous(), tuple(scales), max_entries)


@functools.cache
def lookup() -> type[torch.autograd.Function]:
    """The Triton kernels, compiled at first use."""
    import triton
    import triton.language as tl

    @triton.jit
    def forward_kernel(
        points,
        table,
        scales,
        shape,
        out,
        n,
        levels,
        f: tl.constexpr,
        block: tl.constexpr,
        PRIME: tl.constexpr,
    ):
        level = tl.program_id(1)
        p, c = tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, f)
        inside = p < n
        scale = tl.load(scales + level)
        lines, rows, first, hashed = (
            tl.load(shape + level * 4),
            tl.load(shape + level * 4 + 1),
            tl.load(shape + level * 4 + 2),
            tl.load(shape + level * 4 + 3),
        )
        px = tl.load(points + 2 * p, inside, 0.0) * scale + 0.5
        py = tl.load(points + 2 * p + 1, inside, 0.0) * scale + 0.5
        x, y = tl.floor(px), tl.floor(py)
        tx, ty = px - x, py - y
        total = tl.zeros((block, f), tl.float32)
        for dy in tl.static_range(2):
            for dx in tl.static_range(2):
                i, j = x.to(tl.int64) + dx, y.to(tl.int64) + dy
                row = (
                    first
                    + tl.where(hashed != 0, i ^ (j * PRIME & 0xFFFFFFFF), i + j * lines) % rows
                )
                weight = (tx if dx == 1 else 1 - tx) * (ty if dy == 1 else 1 - ty)
                total += weight[:, None] * tl.load(
                    table + row[:, None] * f + c[None, :], inside[:, None], 0.0
                )
        tl.store(
            out + (p[:, None].to(tl.int64) * levels + level) * f + c[None, :],
            total,
            inside[:, None],
        )

    @triton.jit
    def backward_kernel(
        points,
        table,
        scales,
        shape,
        grad,
        grad_table,
        grad_points,
        n,
        levels,
        f: tl.constexpr,
        block: tl.constexpr,
        PRIME: tl.constexpr,
    ):
        level = tl.program_id(1)
        p, c = tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, f)
        inside = p < n
        scale = tl.load(scales + level)
        lines, rows, first, hashed = (
            tl.load(shape + level * 4),
            tl.load(shape + level * 4 + 1),
            tl.load(shape + level * 4 + 2),
            tl.load(shape + level * 4 + 3),
        )
        px = tl.load(points + 2 * p, inside, 0.0) * scale + 0.5
        py = tl.load(points + 2 * p + 1, inside, 0.0) * scale + 0.5
        x, y = tl.floor(px), tl.floor(py)
        tx, ty = px - x, py - y
        g = tl.load(
            grad + (p[:, None].to(tl.int64) * levels + level) * f + c[None, :], inside[:, None], 0.0
        )
        along_x, along_y = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
        for dy in tl.static_range(2):
            for dx in tl.static_range(2):
                i, j = x.to(tl.int64) + dx, y.to(tl.int64) + dy
                row = (
                    first
                    + tl.where(hashed != 0, i ^ (j * PRIME & 0xFFFFFFFF), i + j * lines) % rows
                )
                place = row[:, None] * f + c[None, :]
                wx, wy = (tx if dx == 1 else 1 - tx), (ty if dy == 1 else 1 - ty)
                tl.atomic_add(grad_table + place, (wx * wy)[:, None] * g, inside[:, None])
                value = tl.sum(g * tl.load(table + place, inside[:, None], 0.0), 1)
                along_x += (2 * dx - 1) * wy * value
                along_y += (2 * dy - 1) * wx * value
        tl.atomic_add(grad_points + 2 * p, along_x * scale, inside)
        tl.atomic_add(grad_points + 2 * p + 1, along_y * scale, inside)

    class Lookup(torch.autograd.Function):
        @staticmethod
        def forward(ctx, points, table, scales, max_entries):
            shape = torch.tensor(
                [list(level) for level in zip(*geometry(scales, max_entries), strict=True)],
                device=points.device,
                dtype=torch.int64,
            )
            scale = torch.tensor(scales, device=points.device, dtype=torch.float32)
            (n, _), f = points.shape, table.shape[1]
            out = table.new_empty(n, len(scales) * f)
            if n:
                forward_kernel[(triton.cdiv(n, 128), len(scales))](
                    points, table, scale, shape, out, n, len(scales), f=f, block=128, PRIME=PRIME
                )
            ctx.save_for_backward(points, table, scale, shape)
            return out

        @staticmethod
        def backward(ctx, grad):
            points, table, scale, shape = ctx.saved_tensors
            n, f, levels = len(points), table.shape[1], len(scale)
            grad_points, grad_table = torch.zeros_like(points), torch.zeros_like(table)
            if n:
                arguments = (
                    points,
                    table,
                    scale,
                    shape,
                    grad.contiguous(),
                    grad_table,
                    grad_points,
                    n,
                    levels,
                )
                backward_kernel[(triton.cdiv(n, 128), levels)](
                    *arguments, f=f, block=128, PRIME=PRIME
                )
            return grad_points, grad_table, None, None

    return Lookup


FORMS = {"naive": naive, "numpy": with_numpy, "torch": with_torch, "triton": with_triton}


def grid_encode(
    points: Tensor,
    table: Tensor,
    scales: Sequence[float],
    max_entries: int = 2**20,
    backend: str = "auto",
) -> Tensor:
    """Features of every level at the points: points (n, 2) in [0, 1], table (t, f), L scales -> (n, L · f).

    `scales`: see `geometric_scales`; `t` must be `table_rows(scales, max_entries)`. A level with more than `max_entries` grid points is hashed.
    Raises `ValueError` for shapes, types or sizes that don't fit.
    """
    if points.dim() != 2 or points.shape[1] != 2:
        raise ValueError(f"points must be (n, 2), got {tuple(points.shape)}")
    if table.dim() != 2 or table.shape[1] < 1:
        raise ValueError(f"table must be (rows, features), got {tuple(table.shape)}")
    if not points.is_floating_point() or not table.is_floating_point():
        raise ValueError(
            f"points and table must be floating point, got {points.dtype} and {table.dtype}"
        )
    if points.numel() and not (points.amin() >= 0 and points.amax() <= 1):
        raise ValueError(
            f"points must lie in [0, 1]², got values from {points.amin():.4g} to {points.amax():.4g}"
        )
    if len(scales) < 1 or not all(s > 0 for s in scales):
        raise ValueError(f"scales={tuple(scales)}: wanted at least one level, every scale above 0")
    if max_entries < 1 or max_entries > 2**31:
        raise ValueError(f"max_entries={max_entries} must be between 1 and 2**31")
    if len(table) != (wanted := table_rows(scales, max_entries)):
        raise ValueError(
            f"table has {len(table)} rows; these scales and max_entries={max_entries} want {wanted}"
        )
    return dispatch(
        "grid_encode", FORMS, backend, points, table, scales=tuple(scales), max_entries=max_entries
    )


def cost(points: Tensor, table: Tensor, scales: Sequence[float], max_entries: int = 2**20) -> Cost:
    """Work of one forward call. No more of the table is counted as read than there is of it."""
    n, values = len(points), len(points) * len(scales) * table.shape[1]
    return Cost(
        8 * values, table.element_size() * (2 * n + min(4 * values, table.numel()) + values)
    )


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments for `grid_encode`. "large": the sixteen levels of Denoising Vision Transformers and one step's 2048 points."""
    if size not in ("small", "large"):
        raise ValueError(f"size={size!r} is not one of 'small', 'large'")
    n, f, levels = (60, 4, (3, 4, 16)) if size == "small" else (2048, 8, (16, 16, 1024))
    scales, max_entries = geometric_scales(*levels), 2**7 if size == "small" else 2**20
    g = torch.Generator().manual_seed(seed)
    points = torch.rand(n, 2, generator=g).to(device, dtype)
    return dict(
        points=points,
        table=torch.randn(table_rows(scales, max_entries), f, generator=g).to(device, dtype),
        scales=scales,
        max_entries=max_entries,
    )
