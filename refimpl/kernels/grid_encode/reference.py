"""Grid lookup as loops over single points, and in NumPy; where each level lies in the table."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refimpl import checks

PRIME = 2654435761
CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))


class Level(NamedTuple):
    """One level: its scale, grid lines along an axis, rows of the table, the first, if hashed."""

    scale: float
    lines: int
    rows: int
    first: int
    hashed: bool


def geometric_scales(
    num_levels: int = 16, base_resolution: int = 16, max_resolution: int = 1024
) -> tuple[float, ...]:
    """s_l = base · b^l − 1 with b = (max/base)^(1/(L−1)), rounded as float32 arithmetic does."""
    checks.at_least(1, num_levels=num_levels)
    if not 2 <= base_resolution <= max_resolution:
        raise ValueError(
            f"base_resolution={base_resolution} and max_resolution={max_resolution}:"
            " wanted 2 ≤ base ≤ max"
        )
    growth = np.float32(np.exp(np.log(max_resolution / base_resolution) / max(num_levels - 1, 1)))
    exponent = np.log2(growth)
    base = np.float32(base_resolution)
    powers = [np.exp2(np.float32(level) * exponent) for level in range(num_levels)]
    return tuple(float(power * base - np.float32(1)) for power in powers)


@functools.lru_cache(maxsize=32)
def levels(scales: tuple[float, ...], max_entries: int) -> tuple[Level, ...]:
    """Where each level lies in the table."""
    found = []
    first = 0
    for scale in scales:
        lines = math.ceil(scale) + 1
        rows = min(lines**2 + 7 & ~7, max_entries)
        found.append(Level(scale, lines, rows, first, lines**2 > max_entries))
        first += rows
    return tuple(found)


def table_rows(scales: Sequence[float], max_entries: int) -> int:
    """Rows of the whole table."""
    return sum(level.rows for level in levels(tuple(scales), max_entries))


def naive(
    points: np.ndarray, table: np.ndarray, scales: Sequence[float], max_entries: int
) -> np.ndarray:
    """Loops over points, levels and corners: the definition."""
    out = np.zeros((len(points), len(scales), table.shape[1]), table.dtype)
    real = points.dtype.type
    for i_level, level in enumerate(levels(tuple(scales), max_entries)):
        for n, point in enumerate(points):
            place = point * real(level.scale) + real(0.5)
            cell = np.floor(place)
            t = place - cell
            for i, j in CORNERS:
                x = int(cell[0]) + i
                y = int(cell[1]) + j
                index = x ^ (y * PRIME & 0xFFFFFFFF) if level.hashed else x + y * level.lines
                weight = (t[0] if i else 1 - t[0]) * (t[1] if j else 1 - t[1])
                out[n, i_level] += weight * table[level.first + index % level.rows]
    return out.reshape(len(points), len(scales) * table.shape[1])


def with_numpy(
    points: np.ndarray, table: np.ndarray, scales: Sequence[float], max_entries: int
) -> np.ndarray:
    """All points of a level at once."""
    real = points.dtype.type
    features = []
    for level in levels(tuple(scales), max_entries):
        place = points * real(level.scale) + real(0.5)
        cell = np.floor(place)
        tx, ty = (place - cell).T
        x, y = cell.astype(np.int64).T
        total = np.zeros((len(points), table.shape[1]), table.dtype)
        for i, j in CORNERS:
            if level.hashed:
                index = (x + i) ^ ((y + j) * PRIME & 0xFFFFFFFF)
            else:
                index = x + i + (y + j) * level.lines
            weight = (tx if i else 1 - tx) * (ty if j else 1 - ty)
            total += weight[:, None] * table[level.first + index % level.rows]
        features.append(total)
    return np.concatenate(features, 1)
