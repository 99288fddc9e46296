"""Where attention looks: record a model's maps, put them back onto the image, compare heads, draw.

    with record(model) as maps:
        model(images)
    maps[0].to_image()  # (b, heads, H·W, H·W)
    explorer(photo, maps)

Every model whose attention layers have a `layers.Probe` can be recorded; outputs stay bit-equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from refimpl.viz.explorer import Explorer, pack
from refimpl.viz.maps import (
    Map,
    chosen,
    entropy,
    head_matrix,
    head_similarity,
    non_locality,
    offsets,
    record,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Explorer",
    "Map",
    "entropy",
    "explorer",
    "head_matrix",
    "head_similarity",
    "non_locality",
    "offsets",
    "outline",
    "overlay",
    "record",
]


def overlay(
    image,
    maps: Map | Tensor,
    query: tuple[int, int],
    *,
    sample: int = 0,
    heads: Sequence[int] | None = None,
    columns: int | None = None,
) -> Figure:
    """The image with the query patch outlined, then per head the image, dark where it doesn't look.

    image: (3, H, W) or (1, H, W) in [0, 1]; query: (row, column) in patches; sample: number in the
    batch; heads: all by default; columns: pictures in a row, by default at most six. Every map is
    scaled to its own maximum.
    """
    from refimpl.viz import charts

    weights, (height, width) = chosen(maps, sample)
    row, column = query
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"query={query} lies outside the grid of {height}×{width} patches")
    picture = charts.as_picture(image)
    if picture.ndim == 2:
        picture = picture[..., None].repeat(3, -1)
    heads = list(range(len(weights))) if heads is None else list(heads)
    look = weights[heads, row * width + column].reshape(-1, 1, height, width)
    look = look / look.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    shades = F.interpolate(look, picture.shape[:2], mode="nearest")[:, 0].numpy()
    pictures = [picture] + [picture * (0.12 + 0.88 * shade[..., None]) for shade in shades]
    titles = ["query"] + [f"head {head + 1}" for head in heads]
    if columns is None:
        rows = math.ceil(len(pictures) / 6)
        columns = math.ceil(len(pictures) / rows)
    fig = charts.image_grid(pictures, titles, columns)
    for ax in fig.axes[: len(pictures)]:
        outline(ax, query, (height, width), picture.shape[:2])
    return fig


def outline(
    ax: Axes,
    query: tuple[int, int],
    grid: tuple[int, int],
    shape: tuple[int, int],
    thickness: float = 1.4,
) -> None:
    """Outline a patch (row, column) of a grid on the picture, (H, W) pixels, that `ax` shows."""
    from matplotlib.patches import Rectangle

    height, width = shape[0] / grid[0], shape[1] / grid[1]
    corner = query[1] * width - 0.5, query[0] * height - 0.5
    for edge, line in (("#000000", 2.2 * thickness), ("#ffffff", thickness)):
        ax.add_patch(Rectangle(corner, width, height, fill=False, ec=edge, lw=line))


def explorer(
    image,
    maps: Map | Sequence[Map],
    *,
    sample: int = 0,
    title: str = "",
    query: tuple[float, float] = (0.5, 0.5),
) -> Explorer:
    """For the patch under pointer, finger or arrow keys, where each head looks: HTML, ≤ 150 KB.

    image: (3, H, W) or (1, H, W) in [0, 1]; maps: one layer or several, chosen from a list; sample:
    number in the batch; title: said to screen readers and shown above; query: where it starts, as
    fractions of height and width. Weights are shown scaled to each head's strongest, and said in
    per cent. Raises `ValueError` when the maps are too large for one page: give fewer layers.
    """
    layers = [maps] if isinstance(maps, Map) else list(maps)
    if not layers:
        raise ValueError(
            "explorer: no maps; run the model inside `with record(model) as maps:` first"
        )
    prepared = []
    for layer in layers:
        weights, grid = chosen(layer, sample)
        prepared.append((layer.name, *coarse(weights, grid)))
    return pack(image, prepared, title or "Attention explorer", query)


def coarse(
    weights: Tensor, grid: tuple[int, int], most: int = 28
) -> tuple[Tensor, tuple[int, int]]:
    """Pool maps of more than `most` rows or columns to half, quarter, …, of both.

    weights: (heads, n, n) on the grid. Queries are averaged, the keys of a pool are summed.
    """
    while max(grid) > most and grid[0] % 2 == grid[1] % 2 == 0:
        by_key = 4 * pooled(weights, grid)  # (heads, n, n/4)
        by_query = pooled(by_key.transpose(1, 2), grid)  # (heads, n/4, n/4), keys by queries
        weights = by_query.transpose(1, 2)
        grid = grid[0] // 2, grid[1] // 2
    return weights, grid


def pooled(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Means over 2 × 2 positions of the last axis, rows · columns long; odd sides round up."""
    tiles = F.avg_pool2d(weights.unflatten(-1, grid), 2, ceil_mode=True, count_include_pad=False)
    return tiles.flatten(-2)
