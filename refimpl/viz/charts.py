"""The few charts that the chapters share, and the door to the house style of figures.

`charts.style()` switches matplotlib to it; colours, empty axes and `Diagram` are here as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from refimpl.viz.diagram import Diagram, edge_points
from refimpl.viz.png import dark_twin, from_oklab, png, to_oklab, turn
from refimpl.viz.style import (
    DARK_PAGE,
    DASHES,
    DIVERGING,
    GRID,
    INK,
    LIGHT_INK,
    MARKERS,
    PALETTE,
    PAPER,
    SEQUENTIAL,
    SOFT,
    WASH,
    WIDTH,
    bare,
    contrast,
    figure,
    luminance,
    rgb,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DARK_PAGE",
    "DASHES",
    "DIVERGING",
    "Diagram",
    "GRID",
    "INK",
    "LIGHT_INK",
    "MARKERS",
    "PALETTE",
    "PAPER",
    "SEQUENTIAL",
    "SOFT",
    "WASH",
    "WIDTH",
    "as_picture",
    "bare",
    "bars",
    "contrast",
    "dark_twin",
    "edge_points",
    "figure",
    "from_oklab",
    "heatmap",
    "image_grid",
    "lines",
    "luminance",
    "png",
    "rgb",
    "roofline",
    "style",
    "to_oklab",
    "turn",
]


def as_picture(image) -> np.ndarray:
    """A tensor or array as what `imshow` takes, (h, w, 3) or (h, w), colours clipped to [0, 1].

    image: (3, h, w), (1, h, w), (h, w, 3) or (h, w).
    """
    image = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if image.ndim == 3 and image.shape[0] in (1, 3):
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim not in (2, 3):
        raise ValueError(
            f"a picture is (3, h, w), (1, h, w), (h, w, 3) or (h, w), got {image.shape}"
        )
    return image.clip(0, 1) if image.ndim == 3 and image.dtype.kind == "f" else image


def image_grid(
    images: Sequence,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    cmap: str | None = None,
    limits: tuple[float, float] | None = None,
    row_titles: Sequence[str] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Pictures in rows: each (3, h, w), (1, h, w), (h, w, 3) or (h, w).

    titles: one per picture, or one per column; limits: one scale for all single-channel pictures;
    row_titles: one per row, written at the left. Raises `ValueError` where counts disagree.
    """
    images = [as_picture(image) for image in images]
    if not images:
        raise ValueError("image_grid: no images")
    columns = min(len(images), columns or 6)
    rows = math.ceil(len(images) / columns)
    if titles is not None and len(titles) not in (columns, len(images)):
        raise ValueError(
            f"image_grid: {len(titles)} titles for {len(images)} images in {columns} columns"
        )
    if row_titles is not None and len(row_titles) != rows:
        raise ValueError(f"image_grid: {len(row_titles)} row_titles for {rows} rows")
    aspect = max(image.shape[0] / image.shape[1] for image in images)
    cell = width / (columns + (0.35 if row_titles else 0))
    height = rows * (cell * aspect + 0.06)
    if titles is not None:
        lines_of_text = max(title.count("\n") + 1 for title in titles)
        title_rows = rows if len(titles) == len(images) else 1
        height += title_rows * lines_of_text * 0.24
    fig, axes = figure(rows, columns, height, width, squeeze=False)
    for ax in axes.flat:
        bare(ax)
    low, high = limits or (None, None)
    for i, image in enumerate(images):
        ax = axes.flat[i]
        ax.imshow(image, cmap=cmap, vmin=low, vmax=high)
        if titles is not None and i < len(titles):
            ax.set_title(titles[i], fontsize=11, fontweight="normal", loc="center", pad=4)
        if row_titles is not None and i % columns == 0:
            ax.set_ylabel(row_titles[i // columns], fontsize=11)
    return fig


def heatmap(
    ax: Axes,
    matrix,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    cmap: str = SEQUENTIAL,
    digits: int | None = None,
    bar: str | None = None,
):
    """A matrix as colours. Returns the image.

    rows, columns: names beside it; digits: decimals of each value, written where given; bar: label
    of a colour bar, drawn where given.
    """
    matrix = np.asarray(matrix.detach().cpu() if hasattr(matrix, "detach") else matrix, dtype=float)
    if matrix.ndim != 2:
        raise ValueError(f"heatmap: a matrix has two dimensions, got {matrix.shape}")
    low, high = limits or (np.nanmin(matrix), np.nanmax(matrix))
    aspect = "auto" if max(matrix.shape) > 3 * min(matrix.shape) else "equal"
    image = ax.imshow(matrix, cmap=cmap, vmin=low, vmax=high, aspect=aspect)
    ax.grid(False)
    sides = (rows, ax.yaxis, matrix.shape[0]), (columns, ax.xaxis, matrix.shape[1])
    for names, axis, count in sides:
        if names is not None:
            if len(names) != count:
                raise ValueError(f"heatmap: {len(names)} names for {count} entries")
            axis.set_ticks(range(count), names)
        axis.set_tick_params(length=0)
    if digits is not None:
        for (i, j), value in np.ndenumerate(matrix):
            behind = image.cmap(image.norm(value))[:3]
            dark = contrast("#000000", behind) >= contrast("#ffffff", behind)
            ink = "#000000" if dark else "#ffffff"
            ax.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=11, color=ink)
    if bar is not None:
        ax.figure.colorbar(image, ax=ax, label=bar, shrink=0.85)
    return image


def bars(
    ax: Axes,
    values: Mapping[str, float],
    *,
    errors: Mapping[str, float] | None = None,
    label: str = "",
    digits: int = 2,
    highlight: str | None = None,
) -> None:
    """Horizontal bars, the first at the top, each with its value written.

    errors: half-lengths of whiskers; label: of the axis; highlight: the bar that the text means.
    """
    names = list(values)
    heights = [float(values[name]) for name in names]
    colours = [PALETTE[0] if highlight in (None, name) else SOFT for name in names]
    whiskers = None if errors is None else [float(errors[name]) for name in names]
    look = {"ecolor": INK, "capsize": 3}
    ax.barh(names, heights, height=0.66, color=colours, xerr=whiskers, error_kw=look)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label)
    span = max(map(abs, heights), default=1) or 1
    for i, height in enumerate(heights):
        reach = max(height, 0) + (whiskers[i] if whiskers else 0)
        ax.text(reach + 0.02 * span, i, f"{height:.{digits}f}", va="center", fontsize=11)
    ax.margins(x=0.16)


def lines(
    ax: Axes,
    x,
    series: Mapping[str, Sequence],
    *,
    xlabel: str = "",
    ylabel: str = "",
    direct: bool = True,
) -> None:
    """One line per series: values (steps,), or (seeds, steps), the mean in a band of their range.

    direct: each name stands at its line's end instead of in a legend; names that would touch are
    moved apart.
    """
    x = np.asarray(x, dtype=float)
    ends = []
    for i, (name, values) in enumerate(series.items()):
        values = np.atleast_2d(np.asarray(values, dtype=float))
        if values.shape[-1] != len(x):
            raise ValueError(
                f"lines: series {name!r} has {values.shape[-1]} points, x has {len(x)}"
            )
        colour = PALETTE[i % 6]
        marker = MARKERS[i % 6] if len(x) <= 20 else None
        look = {"color": colour, "linestyle": DASHES[i % 6], "marker": marker}
        ax.plot(x, values.mean(0), label=name, **look)
        if len(values) > 1:
            ax.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.16, linewidth=0)
        ends.append((values.mean(0)[-1], name, i))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if direct:
        label_ends(ax, ends)
    else:
        ax.legend()


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, int]]) -> None:
    """Write names right of the axes, each behind a piece of its line and where that ends.

    ends: (value, name, number of the line); they are kept a line of text apart.
    """
    ax.figure.draw_without_rendering()
    gap = 1.25 * 11 * ax.figure.dpi / 72 / ax.get_window_extent().height
    to_axes = ax.transData + ax.transAxes.inverted()
    height = -math.inf  # of the last name, in parts of the axes' height
    for y, name, i in sorted(ends):
        end = to_axes.transform((ax.get_xlim()[0], y))[1]
        height = max(end, height + gap)
        look = {"color": PALETTE[i % 6], "linestyle": DASHES[i % 6], "clip_on": False}
        ax.plot([1.01, 1.06], [height] * 2, transform=ax.transAxes, **look)
        ax.text(1.075, height, name, transform=ax.transAxes, va="center", fontsize=11)


class Ceilings(Protocol):
    """What a machine can do at best, as `lab.measure.ceilings` measures it."""

    gflops: float  # of a matrix product, in GFLOP/s
    gbs: float  # of a copy, in GB/s
    ridge: float  # FLOP/byte at which the two roofs meet


def roofline(
    ax: Axes,
    ceilings: Ceilings,
    points: Mapping[str, tuple[float, float | None]],
) -> None:
    """This machine's roofs, by copying and by multiplying, and what was measured under them.

    points: name -> (arithmetic intensity in FLOP/byte, rate in GFLOP/s); a rate of `None` is placed
    on the roof: what the machine would allow at best.
    """
    intensities = [max(intensity, 1e-3) for intensity, _ in points.values()]
    intensities.append(ceilings.ridge)
    low, high = min(intensities) / 3, max(intensities) * 6
    x = np.geomspace(low, high, 200)
    roof = np.minimum(ceilings.gflops, ceilings.gbs * x)
    ax.plot(x, roof, color=INK, linestyle="-", linewidth=1.6)
    ax.axvline(ceilings.ridge, color=SOFT, linestyle=(0, (2, 2)), linewidth=1)
    floor = roof.min() / 3
    ridge = f"ridge {ceilings.ridge:.1f}"
    product = f"matrix product {ceilings.gflops:.0f} GFLOP/s"
    copy = f"copy {ceilings.gbs:.0f} GB/s"
    ax.text(ceilings.ridge * 1.08, floor * 1.15, ridge, color=SOFT, fontsize=11, va="bottom")
    ax.text(high, ceilings.gflops * 1.12, product, fontsize=11, ha="right")
    ax.text(x[20] * 1.4, ceilings.gbs * x[20] * 0.8, copy, fontsize=11, va="top")
    for i, (name, (intensity, rate)) in enumerate(points.items()):
        if rate is None:
            rate = min(ceilings.gflops, ceilings.gbs * intensity)
        look = {"color": PALETTE[i % 6], "markersize": 8, "linestyle": "none"}
        ax.plot([intensity], [rate], MARKERS[(i + i // 6) % 6], label=name, **look)
    ax.set(xscale="log", xlim=(low, high), xlabel="arithmetic intensity (FLOP/byte)")
    ax.set(yscale="log", ylim=(floor, ceilings.gflops * 2), ylabel="GFLOP/s")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
