"""Draw what token reduction did: which patches a layer kept, merged or dropped, on the image.

For the chapters on fewer tokens (STViT, LookupViT, LGViT), which are yet to come.
"""

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
    """Rows and columns of so many patches, a square unless given."""
    side = math.isqrt(count)
    rows, columns = grid or (side, side)
    if rows * columns != count:
        hint = "" if grid else "; give grid=(rows, columns)"
        raise ValueError(f"{count} patches do not fill the grid {rows}×{columns}{hint}")
    return rows, columns


def colour_picture(image) -> np.ndarray:
    """An image as (h, w, 3), grey ones too."""
    picture = charts.as_picture(image)
    return picture[..., None].repeat(3, -1) if picture.ndim == 2 else picture


def spread(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A (rows, columns) grid enlarged to the picture's (h, w)."""
    rows, columns = values.shape[:2]
    y = np.arange(shape[0]) * rows // shape[0]
    x = np.arange(shape[1]) * columns // shape[1]
    return values[y][:, x]


def kept(image, keep: Tensor, grid: tuple[int, int] | None = None) -> np.ndarray:
    """The image (h, w, 3) with dropped patches faded to paper.

    keep: (n,) bool, or from 0 (dropped) to 1 (kept); patches row by row.
    """
    picture = colour_picture(image)
    keep = torch.as_tensor(keep).float().flatten().clamp(0, 1)
    patches = keep.reshape(grid_of(len(keep), grid)).numpy()
    opacity = 0.1 + 0.9 * spread(patches, picture.shape[:2])[..., None]
    return picture * opacity + charts.rgb(charts.PAPER) * (1 - opacity)


def merged(image, group: Tensor, grid: tuple[int, int] | None = None) -> np.ndarray:
    """The image (h, w, 3) with each group of merged patches in its mean colour.

    group: (n,) int, the token that each patch went to; −1: dropped.
    """
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
    lines = []  # (x, y) of both ends, in patches
    for i, j in torch.nonzero(owner[:, 1:] != owner[:, :-1]).tolist():
        lines.append(([j + 1, j + 1], [i, i + 1]))
    for i, j in torch.nonzero(owner[1:] != owner[:-1]).tolist():
        lines.append(([j, j + 1], [i + 1, i + 1]))
    for colour, width in (("#000000", 1.8), ("#ffffff", 0.8)):
        look = {"color": colour, "lw": width, "linestyle": "-", "marker": ""}
        for x, y in lines:
            ax.plot(np.array(x) * dx - 0.5, np.array(y) * dy - 0.5, **look)


def kept_by_layer(
    image,
    keeps: Sequence[Tensor],
    names: Sequence[str] | None = None,
    grid: tuple[int, int] | None = None,
) -> Figure:
    """The image, then what each layer kept of it, with how much is left beside its name.

    keeps: (n,) bool per layer.
    """
    names = names or [f"layer {i + 1}" for i in range(len(keeps))]
    if len(names) != len(keeps):
        raise ValueError(f"kept_by_layer: {len(names)} names for {len(keeps)} layers")
    titles, pictures = ["image"], [colour_picture(image)]
    for name, keep in zip(names, keeps, strict=True):
        titles.append(f"{name}: {torch.as_tensor(keep).float().mean():.0%}")
        pictures.append(kept(image, keep, grid))
    return charts.image_grid(pictures, titles, columns=min(len(titles), 4))
