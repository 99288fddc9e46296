"""Grid lookup in Triton: a program for a block of points at one level. Equation: see the package.

The way back adds to the table and to the points atomically, as many points may share a row.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import block_size, gradients, launch, wide
from refimpl.kernels.grid_encode.composed import with_torch
from refimpl.kernels.grid_encode.reference import PRIME, levels

BLOCK = 128  # points
FACTOR = tl.constexpr(PRIME)


@triton.jit
def index(x, y, lines, hashed):
    """The row of grid point (x, y), before it is taken modulo the level's rows. x, y: int64."""
    return tl.where(hashed != 0, x ^ (y * FACTOR & 0xFFFFFFFF), x + y * lines)


@triton.jit
def forward(
    points,
    table,
    scales,
    layout,
    out,
    n,
    num_levels,
    features,
    REAL: tl.constexpr,
    FEATURES: tl.constexpr,
    POINTS: tl.constexpr,
):
    """points: (n, 2); table: (t, f); out: (n, L, f); layout (L, 4): lines, rows, first, hashed."""
    level = tl.program_id(0) % num_levels
    point = tl.program_id(0) // num_levels * POINTS + tl.arange(0, POINTS)
    feature = tl.arange(0, FEATURES)
    inside = point < n
    own = inside[:, None] & (feature < features)[None, :]
    scale = tl.load(scales + level)
    lines = tl.load(layout + level * 4)
    rows = tl.load(layout + level * 4 + 1)
    first = tl.load(layout + level * 4 + 2)
    hashed = tl.load(layout + level * 4 + 3)
    place_x = tl.load(points + 2 * point, inside, 0.0).to(REAL) * scale + 0.5
    place_y = tl.load(points + 2 * point + 1, inside, 0.0).to(REAL) * scale + 0.5
    x = tl.floor(place_x)
    y = tl.floor(place_y)
    tx = place_x - x
    ty = place_y - y
    total = tl.zeros((POINTS, FEATURES), REAL)
    for dy in tl.static_range(2):
        for dx in tl.static_range(2):
            row = first + index(x.to(tl.int64) + dx, y.to(tl.int64) + dy, lines, hashed) % rows
            place = row[:, None] * features + feature[None, :]
            weight_x = tx if dx == 1 else 1 - tx
            weight_y = ty if dy == 1 else 1 - ty
            values = tl.load(table + place, own, 0.0).to(REAL)
            total += (weight_x * weight_y)[:, None] * values
    result = (point.to(tl.int64) * num_levels + level)[:, None] * features + feature[None, :]
    tl.store(out + result, total, own)


@triton.jit
def backward(
    points,
    table,
    scales,
    layout,
    grad,
    grad_points,
    grad_table,
    n,
    num_levels,
    features,
    REAL: tl.constexpr,
    FEATURES: tl.constexpr,
    POINTS: tl.constexpr,
):
    """grad: (n, L, f); grad_points (n, 2) and grad_table (rows, f) are added to."""
    level = tl.program_id(0) % num_levels
    point = tl.program_id(0) // num_levels * POINTS + tl.arange(0, POINTS)
    feature = tl.arange(0, FEATURES)
    inside = point < n
    own = inside[:, None] & (feature < features)[None, :]
    scale = tl.load(scales + level)
    lines = tl.load(layout + level * 4)
    rows = tl.load(layout + level * 4 + 1)
    first = tl.load(layout + level * 4 + 2)
    hashed = tl.load(layout + level * 4 + 3)
    place_x = tl.load(points + 2 * point, inside, 0.0).to(REAL) * scale + 0.5
    place_y = tl.load(points + 2 * point + 1, inside, 0.0).to(REAL) * scale + 0.5
    x = tl.floor(place_x)
    y = tl.floor(place_y)
    tx = place_x - x
    ty = place_y - y
    result = (point.to(tl.int64) * num_levels + level)[:, None] * features + feature[None, :]
    upstream = tl.load(grad + result, own, 0.0).to(REAL)
    along_x = tl.zeros((POINTS,), REAL)
    along_y = tl.zeros((POINTS,), REAL)
    for dy in tl.static_range(2):
        for dx in tl.static_range(2):
            row = first + index(x.to(tl.int64) + dx, y.to(tl.int64) + dy, lines, hashed) % rows
            place = row[:, None] * features + feature[None, :]
            weight_x = tx if dx == 1 else 1 - tx
            weight_y = ty if dy == 1 else 1 - ty
            tl.atomic_add(grad_table + place, (weight_x * weight_y)[:, None] * upstream, own)
            value = tl.sum(upstream * tl.load(table + place, own, 0.0).to(REAL), 1)
            along_x += (2 * dx - 1) * weight_y * value
            along_y += (2 * dy - 1) * weight_x * value
    tl.atomic_add(grad_points + 2 * point, along_x * scale, inside)
    tl.atomic_add(grad_points + 2 * point + 1, along_y * scale, inside)


class Lookup(torch.autograd.Function):
    """The kernels as a differentiable function of points and table."""

    @staticmethod
    def forward(ctx, points, table, scales, max_entries):
        ctx.save_for_backward(points, table)
        ctx.options = {"scales": scales, "max_entries": max_entries}
        real = torch.promote_types(wide(points.dtype), wide(table.dtype))
        found = levels(scales, max_entries)
        layout = [(level.lines, level.rows, level.first, level.hashed) for level in found]
        ctx.levels = (
            torch.tensor(scales, dtype=real, device=points.device),
            torch.tensor(layout, dtype=torch.int64, device=points.device),
        )
        features = table.shape[1]
        ctx.sizes = (len(points), len(scales), features)
        ctx.constants = {
            "REAL": tl.float64 if real == torch.float64 else tl.float32,
            "FEATURES": block_size(features, 1 << 30),
            "POINTS": BLOCK,
        }
        ctx.programs = triton.cdiv(len(points), BLOCK) * len(scales)
        out = table.new_empty(len(points), len(scales) * features, dtype=real)
        if ctx.programs:
            inputs = (points.contiguous(), table.contiguous(), *ctx.levels)
            launch(forward, ctx.programs, *inputs, out, *ctx.sizes, **ctx.constants)
        return out

    @staticmethod
    def backward(ctx, grad):
        points, table = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            function = partial(with_torch, **ctx.options)
            return (*gradients(function, (points, table), grad), None, None)
        grad_points = torch.zeros(points.shape, dtype=grad.dtype, device=points.device)
        grad_table = torch.zeros(table.shape, dtype=grad.dtype, device=points.device)
        if ctx.programs:
            inputs = (points.contiguous(), table.contiguous(), *ctx.levels, grad.contiguous())
            results = (grad_points, grad_table)
            launch(backward, ctx.programs, *inputs, *results, *ctx.sizes, **ctx.constants)
        return grad_points.to(points.dtype), grad_table.to(table.dtype), None, None


def with_triton(
    points: Tensor, table: Tensor, scales: tuple[float, ...], max_entries: int
) -> Tensor:
    """(n, L · f), differentiable in points and table."""
    return Lookup.apply(points, table, scales, max_entries)
