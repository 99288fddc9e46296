"""Draw what token reduction did: which patches a layer kept, merged or dropped, on the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from refimpl.viz import charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def grid_of(count: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    side = math.isqrt(count)
    grid = grid or (side, side)
    if grid[0] * grid[1] != count:
        raise ValueError(
            f"{count} patches do not fill the grid {grid[0]}×{grid[1]}"
            + ("" if side * side == count else "; give grid=(rows, columns)")
        )
    return grid


def colour_picture(image) -> np.ndarray:
    picture = charts.as_picture(image)
    return picture[..., None].repeat(3, -1) if picture.ndim == 2 else picture


def spread(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A (rows, columns) grid enlarged to the picture's (h, w)."""
    rows, columns = values.shape[:2]
    return values[np.arange(shape[0]) * rows // shape[0]][
        :, np.arange(shape[1]) * columns // shape[1]
    ]


def kept(image, keep: Tensor, grid: tuple[int, int] | None = None) -> np.ndarray:
    """The image (h, w, 3) with dropped patches faded to paper. keep: (n,) bool, or shares from 0 (dropped) to 1 (kept); patches row by row."""
    picture = colour_picture(image)
    keep = torch.as_tensor(keep).float().flatten().clamp(0, 1)
    share = spread(keep.reshape(grid_of(len(keep), grid)).numpy(), picture.shape[:2])[..., None]
    return picture * (0.1 + 0.9 * share) + charts.rgb(charts.PAPER) * 0.9 * (1 - share)


def merged(image, group: Tensor, grid: tuple[int, int] | None = None) -> np.ndarray:
    """The image (h, w, 3) with each group of merged patches in its mean colour. group: (n,) int, the token that each patch went to; −1: dropped."""
    picture = colour_picture(image)
    group = torch.as_tensor(group).long().flatten()
    owner = spread(group.reshape(grid_of(len(group), grid)).numpy(), picture.shape[:2])
    out = np.empty_like(picture)
    for token in np.unique(owner):
        mask = owner == token
        out[mask] = charts.rgb(charts.PAPER) if token < 0 else picture[mask].mean(0)
    return out


def outline(
    ax: Axes, group: Tensor, extent: tuple[int, int], grid: tuple[int, int] | None = None
) -> None:
    """Draw the borders between groups onto an image of `extent` (h, w) pixels that `ax` shows."""
    group = torch.as_tensor(group).long().flatten()
    rows, columns = grid_of(len(group), grid)
    owner = group.reshape(rows, columns)
    dy, dx = extent[0] / rows, extent[1] / columns
    lines = [
        ((j + 1, i), (j + 1, i + 1))
        for i, j in torch.nonzero(owner[:, 1:] != owner[:, :-1]).tolist()
    ]
    lines += [
        ((j, i + 1), (j + 1, i + 1)) for i, j in torch.nonzero(owner[1:] != owner[:-1]).tolist()
    ]
    for colour, width in (("#000000", 1.8), ("#ffffff", 0.8)):
        for (x0, y0), (x1, y1) in lines:
            ax.plot(
                [x0 * dx - 0.5, x1 * dx - 0.5],
                [y0 * dy - 0.5, y1 * dy - 0.5],
                color=colour,
                lw=width,
                linestyle="-",
                marker="",
            )


def kept_by_layer(
    image,
    keeps: Sequence[Tensor],
    names: Sequence[str] | None = None,
    grid: tuple[int, int] | None = None,
) -> Figure:
    """The image, then what each layer kept of it, with the share that is left under its name. keeps: (n,) bool a layer."""
    names = names or [f"layer {i + 1}" for i in range(len(keeps))]
    if len(names) != len(keeps):
        raise ValueError(f"kept_by_layer: {len(names)} names for {len(keeps)} layers")
    titles = [
        "image",
        *(
            f"{name}: {torch.as_tensor(keep).float().mean():.0%}"
            for name, keep in zip(names, keeps, strict=True)
        ),
    ]
    return charts.image_grid(
        [colour_picture(image), *(kept(image, keep, grid) for keep in keeps)],
        titles,
        columns=min(len(titles), 4),
    )
