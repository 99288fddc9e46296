"""The house style of figures, and the few chart forms that the chapters share.

A figure is printed on its own light paper. No single ink reaches a contrast of 4.5:1 on white *and* on the dark theme's page (the best
grey reaches 4.3), so a transparent figure would fail one of them; on paper every renderer, in either theme, shows the same contrast.
For the book's dark theme `dark_twin` turns paper and ink around and leaves photographs and maps as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from refimpl.lab.measure import Ceilings

PAPER = "#fbfaf7"
INK = "#22262b"
SOFT = "#62676d"  # secondary text, ≥ 4.5:1 on paper
GRID = "#dcd9d1"
WASH = "#ecebe4"  # filled boxes of diagrams
DARK_PAGE = "#14181d"  # the book's dark page and its text: where `dark_twin` takes paper and ink
LIGHT_INK = "#dfe3e8"
PALETTE = (
    "#1f91fb",
    "#840208",
    "#907f0c",
    "#5c29c9",
    "#297161",
    "#3b2041",
)  # tests/test_viz.py holds what it promises
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
SEQUENTIAL = "viridis"
DIVERGING = "RdBu_r"
WIDTH = 6.4  # inches: the text column of the book


def style() -> None:
    """Switch matplotlib to the house style."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.6),
            "figure.dpi": 120,
            "figure.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "axes.facecolor": PAPER,
            "figure.constrained_layout.use": True,
            "savefig.pad_inches": 0.12,
            "font.family": ["DejaVu Sans"],
            "font.size": 12,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 12,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 11,
            "legend.frameon": False,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.edgecolor": SOFT,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": GRID,
            "grid.linewidth": 0.8,
            "lines.linewidth": 2.0,
            "lines.markersize": 5,
            "axes.prop_cycle": cycler(color=PALETTE) + cycler(linestyle=DASHES),
            "image.cmap": SEQUENTIAL,
            "image.interpolation": "nearest",
            "svg.fonttype": "none",
        }
    )


def png(fig: Figure) -> bytes:
    """A figure as PNG. One of more than 40 KB (photographs) is brought to 256 colours, a third of the size, with hardly a visible loss.

    A text entry `pictures` of the file holds the boxes (left, top, right, bottom, in pixels) of photographs, maps and colour bars.
    """
    import io
    import json

    from matplotlib.collections import QuadMesh
    from matplotlib.image import AxesImage
    from matplotlib.transforms import Bbox
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    layout = fig.get_layout_engine()
    for _ in range(2):
        fig.draw_without_rendering()
    if layout is not None:
        fig.set_layout_engine(
            "none"
        )  # each pass moves the axes a little, and the boxes are those of this one
    dpi = fig.dpi
    frame = fig.get_tightbbox().padded(0.12)
    extents = [
        Bbox.intersection(artist.get_window_extent(), artist.axes.get_window_extent())
        for artist in fig.findobj(lambda a: isinstance(a, AxesImage | QuadMesh))
    ]
    raw, out, notes = io.BytesIO(), io.BytesIO(), PngInfo()
    fig.savefig(raw, format="png", bbox_inches=frame, dpi=dpi)
    if layout is not None:
        fig.set_layout_engine(layout)
    picture = Image.open(raw).convert("RGB")
    left, foot = (
        frame.x0 * dpi,
        frame.y0 * dpi + picture.height,
    )  # the file counts rows from the top, of a height in whole pixels
    boxes = [
        [round(v) for v in (e.x0 - left, foot - e.y1, e.x1 - left, foot - e.y0)]
        for e in extents
        if e is not None
    ]
    notes.add_text("pictures", json.dumps(boxes))
    if raw.tell() > 40_000:
        picture = picture.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
    picture.save(out, format="png", optimize=True, pnginfo=notes)
    return out.getvalue()


def dark_twin(file: bytes) -> bytes | None:
    """The same figure for a dark page, from the PNG alone: paper becomes the page, ink light, hues stay; photographs and maps are untouched.

    `None` for a file that `png` did not write. Lightness is turned around in OKLab between paper and ink.
    """
    import io
    import json

    from PIL import Image

    picture = Image.open(io.BytesIO(file))
    if "pictures" not in picture.info:
        return None
    pixels = np.asarray(picture.convert("RGB"), np.float64) / 255
    turned = from_oklab(turn(to_oklab(pixels)))
    for left, top, right, bottom in json.loads(picture.info["pictures"]):
        box = np.s_[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        turned[box] = pixels[box]
    out = io.BytesIO()
    dark = Image.fromarray(np.rint(turned * 255).astype(np.uint8))
    if picture.mode == "P":
        dark = dark.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
    dark.save(out, format="png", optimize=True)
    return out.getvalue()


TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def to_oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1], (…, 3), to OKLab (Ottosson, 2020)."""
    return np.cbrt(linear(rgb) @ TO_LMS.T) @ TO_LAB.T


def from_oklab(lab: np.ndarray) -> np.ndarray:
    light = ((lab @ np.linalg.inv(TO_LAB).T) ** 3 @ np.linalg.inv(TO_LMS).T).clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def turn(lab: np.ndarray) -> np.ndarray:
    """Lightness turned around: paper goes to the dark page, ink to the light ink, all between keeps its order."""
    paper, ink, page, light = (to_oklab(rgb(c))[0] for c in (PAPER, INK, DARK_PAGE, LIGHT_INK))
    lightness = page + (paper - lab[..., 0]) / (paper - ink) * (light - page)
    tint = to_oklab(rgb(DARK_PAGE))[1:] - to_oklab(rgb(PAPER))[1:]
    share = np.clip((lab[..., 0] - ink) / (paper - ink), 0, 1)[
        ..., None
    ]  # how much of the paper's own tint a pixel holds
    return np.concatenate([lightness[..., None], lab[..., 1:] + share * tint], -1)


def figure(
    rows: int = 1, columns: int = 1, height: float = 3.4, width: float = WIDTH, **options
) -> tuple[Figure, Axes | np.ndarray]:
    """A figure of the book's width with `rows` × `columns` axes; `height` in inches is the whole figure's. `options` go to `plt.subplots`."""
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), **options)


def bare(ax: Axes) -> Axes:
    """Take ticks, grid and frame off, for pictures."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def as_picture(image) -> np.ndarray:
    """(3, h, w), (1, h, w), (h, w, 3) or (h, w), tensor or array, to what `imshow` takes; colours are clipped to [0, 1]."""
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
    """Pictures in rows: each (3, h, w), (1, h, w), (h, w, 3) or (h, w). `limits` gives all single-channel pictures one scale.

    titles: one a picture, or one a column; row_titles: one a row, written at the left. Raises `ValueError` where counts disagree.
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
    lines = 0 if titles is None else max(t.count("\n") + 1 for t in titles)
    title_rows = rows if titles is not None and len(titles) == len(images) else 1
    fig, axes = figure(
        rows,
        columns,
        height=rows * (cell * aspect + 0.06) + title_rows * lines * 0.24,
        width=width,
        squeeze=False,
    )
    for ax in axes.flat:
        bare(ax)
    for i, image in enumerate(images):
        ax = axes.flat[i]
        low, high = limits or (None, None)
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
    """A matrix as colours. `digits`: write each value with so many decimals; `bar`: draw a colour bar with this label. Returns the image."""
    matrix = np.asarray(matrix.detach().cpu() if hasattr(matrix, "detach") else matrix, dtype=float)
    if matrix.ndim != 2:
        raise ValueError(f"heatmap: a matrix has two dimensions, got {matrix.shape}")
    low, high = limits or (np.nanmin(matrix), np.nanmax(matrix))
    image = ax.imshow(
        matrix,
        cmap=cmap,
        vmin=low,
        vmax=high,
        aspect="auto" if max(matrix.shape) > 3 * min(matrix.shape) else "equal",
    )
    ax.grid(False)
    for names, axis, count in (
        (columns, ax.xaxis, matrix.shape[1]),
        (rows, ax.yaxis, matrix.shape[0]),
    ):
        if names is not None:
            if len(names) != count:
                raise ValueError(f"heatmap: {len(names)} names for {count} entries")
            axis.set_ticks(range(count), names)
        axis.set_tick_params(length=0)
    if digits is not None:
        for (i, j), value in np.ndenumerate(matrix):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = max(("#000000", "#ffffff"), key=lambda c: contrast(c, (red, green, blue)))  # noqa: B023
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
    """Horizontal bars, the first at the top, each with its value written. `errors`: half-lengths of whiskers; `highlight`: the bar that the text speaks of."""
    names = list(values)
    heights = [float(values[name]) for name in names]
    colours = [PALETTE[0] if highlight in (None, name) else SOFT for name in names]
    whiskers = None if errors is None else [float(errors[name]) for name in names]
    ax.barh(
        names,
        heights,
        color=colours,
        height=0.66,
        xerr=whiskers,
        error_kw={"ecolor": INK, "capsize": 3},
    )
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
    """One line a series: values (steps,), or (seeds, steps), drawn as the mean with a band from least to most.

    direct: write each name at the line's end instead of in a legend (names that would touch are moved apart).
    """
    x = np.asarray(x, dtype=float)
    ends = []
    for i, (name, values) in enumerate(series.items()):
        values = np.atleast_2d(np.asarray(values, dtype=float))
        if values.shape[-1] != len(x):
            raise ValueError(
                f"lines: series {name!r} has {values.shape[-1]} points, x has {len(x)}"
            )
        colour = PALETTE[i % len(PALETTE)]
        ax.plot(
            x,
            values.mean(0),
            color=colour,
            linestyle=DASHES[i % len(DASHES)],
            label=name,
            marker=MARKERS[i % 6] if len(x) <= 20 else None,
        )
        if len(values) > 1:
            ax.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.16, linewidth=0)
        ends.append((values.mean(0)[-1], name, i))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if direct:
        label_ends(ax, ends)
    else:
        ax.legend()


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, int]]) -> None:
    """Write names right of the axes at the heights where their lines end, at least a text line apart, each behind a piece of its line."""
    ax.figure.draw_without_rendering()
    gap = 1.25 * 11 * ax.figure.dpi / 72 / ax.get_window_extent().height
    inverse, last = ax.transAxes.inverted(), -math.inf
    for y, name, i in sorted(ends):
        last = max(inverse.transform(ax.transData.transform((ax.get_xlim()[0], y)))[1], last + gap)
        ax.plot(
            [1.01, 1.06],
            [last] * 2,
            color=PALETTE[i % 6],
            linestyle=DASHES[i % 6],
            transform=ax.transAxes,
            clip_on=False,
        )
        ax.text(1.075, last, name, transform=ax.transAxes, va="center", fontsize=11)


def roofline(
    ax: Axes,
    ceilings: Ceilings,
    points: Mapping[str, tuple[float, float]],
    *,
    unit: str = "GFLOP/s",
) -> None:
    """This machine's roofs (copy rate and product rate, see `lab.measure.ceilings`) and points (FLOP/byte, measured GFLOP/s) under them.

    A point with a rate of `None` is placed on the roof: what the machine would allow at best.
    """
    intensities = [max(point[0], 1e-3) for point in points.values()] + [ceilings.ridge]
    low, high = min(intensities) / 3, max(intensities) * 6
    x = np.geomspace(low, high, 200)
    roof = np.minimum(ceilings.gflops, ceilings.gbs * x)
    ax.plot(x, roof, color=INK, linestyle="-", linewidth=1.6)
    ax.axvline(ceilings.ridge, color=SOFT, linestyle=(0, (2, 2)), linewidth=1)
    floor = roof.min() / 3
    ax.text(
        ceilings.ridge * 1.08,
        floor * 1.15,
        f"ridge {ceilings.ridge:.1f}",
        color=SOFT,
        fontsize=11,
        va="bottom",
    )
    ax.text(
        high,
        ceilings.gflops * 1.12,
        f"matrix product {ceilings.gflops:.0f} GFLOP/s",
        ha="right",
        fontsize=11,
    )
    ax.text(
        x[20] * 1.4,
        ceilings.gbs * x[20] * 0.8,
        f"copy {ceilings.gbs:.0f} GB/s",
        fontsize=11,
        va="top",
    )
    for i, (name, (intensity, rate)) in enumerate(points.items()):
        y = min(ceilings.gflops, ceilings.gbs * intensity) if rate is None else rate
        ax.plot(
            [intensity],
            [y],
            MARKERS[(i + i // 6) % 6],
            color=PALETTE[i % 6],
            markersize=8,
            linestyle="none",
            label=name,
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(floor, ceilings.gflops * 2),
        xlabel="arithmetic intensity (FLOP/byte)",
        ylabel=unit,
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


class Diagram:
    """Boxes and arrows on a plain canvas, for the drawing of an idea. Units are those of `size`; y grows downwards.

    >>> d = Diagram(10, 4)
    >>> a = d.box(1, 1, "query"); b = d.box(5, 1, "softmax", tone=0)
    >>> d.arrow(a, b)
    """

    def __init__(self, columns: float, rows: float, width: float = WIDTH):
        self.fig, self.ax = figure(height=width * rows / columns, width=width)
        bare(self.ax).set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")

    def box(
        self,
        x: float,
        y: float,
        text: str,
        *,
        w: float = 2.0,
        h: float = 0.9,
        tone: int | None = None,
        size: float = 11,
    ) -> tuple:
        """A box with its upper left corner at (x, y); `tone` numbers a colour of the palette for its edge. Returns (x, y, w, h) for `arrow`."""
        from matplotlib.patches import FancyBboxPatch

        edge = SOFT if tone is None else PALETTE[tone % len(PALETTE)]
        shape = FancyBboxPatch(
            (x, y),
            w,
            h,
            boxstyle=f"round,pad=0,rounding_size={min(w, h) * 0.15}",
            fc=WASH,
            ec=edge,
            lw=1.2 if tone is None else 2.2,
        )
        self.ax.add_patch(shape)
        self.ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)
        return (x, y, w, h)

    def arrow(
        self,
        start: tuple,
        end: tuple,
        text: str = "",
        *,
        tone: int | None = None,
        bend: float = 0.0,
        dashed: bool = False,
    ) -> None:
        """An arrow between two boxes (from edge to edge) or points (x, y), with an optional text at its middle."""
        colour = INK if tone is None else PALETTE[tone % len(PALETTE)]
        a, b = edge_points(start, end)
        look = {
            "arrowstyle": "-|>",
            "color": colour,
            "lw": 1.6,
            "shrinkA": 1,
            "shrinkB": 1,
            "connectionstyle": f"arc3,rad={bend}",
        }
        self.ax.annotate("", b, a, arrowprops=look | {"linestyle": "--" if dashed else "-"})
        if text:
            self.text(
                (a[0] + b[0]) / 2, (a[1] + b[1]) / 2 - 0.12 - bend, text, va="bottom", colour=colour
            )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 11,
        ha: str = "center",
        va: str = "center",
        colour: str = INK,
        bold: bool = False,
    ) -> None:
        self.ax.text(
            x,
            y,
            text,
            fontsize=size,
            ha=ha,
            va=va,
            color=colour,
            fontweight="bold" if bold else "normal",
        )

    def grid(
        self,
        x: float,
        y: float,
        values,
        *,
        cell: float = 0.4,
        cmap: str = SEQUENTIAL,
        limits: tuple[float, float] | None = None,
    ) -> tuple:
        """A small matrix of coloured cells with its upper left corner at (x, y). Returns (x, y, w, h) for `arrow`."""
        values = np.atleast_2d(np.asarray(values, dtype=float))
        rows, columns = values.shape
        low, high = limits or (values.min(), values.max())
        self.ax.imshow(
            values,
            cmap=cmap,
            vmin=low,
            vmax=high,
            extent=(x, x + columns * cell, y + rows * cell, y),
            zorder=1,
        )
        for i in range(rows + 1):
            self.ax.plot(
                [x, x + columns * cell],
                [y + i * cell] * 2,
                color=PAPER,
                lw=0.8,
                linestyle="-",
                zorder=2,
            )
        for j in range(columns + 1):
            self.ax.plot(
                [x + j * cell] * 2,
                [y, y + rows * cell],
                color=PAPER,
                lw=0.8,
                linestyle="-",
                zorder=2,
            )
        self.ax.set(xlim=self.ax.get_xlim(), ylim=self.ax.get_ylim(), aspect="equal")
        return (x, y, columns * cell, rows * cell)


def edge_points(start: tuple, end: tuple) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the straight line between two boxes (or points) leaves the first and meets the second."""
    centre = lambda b: (b[0] + b[2] / 2, b[1] + b[3] / 2) if len(b) == 4 else tuple(b)  # noqa: E731
    (ax, ay), (bx, by) = centre(start), centre(end)
    dx, dy = bx - ax, by - ay

    def cut(b: tuple, sign: float) -> tuple[float, float]:
        x, y = centre(b)
        if len(b) != 4 or (dx == 0 and dy == 0):
            return x, y
        t = min(b[2] / 2 / abs(dx) if dx else math.inf, b[3] / 2 / abs(dy) if dy else math.inf)
        return x + sign * t * dx, y + sign * t * dy

    return cut(start, 1), cut(end, -1)


def rgb(colour) -> np.ndarray:
    """A colour (hex text or three numbers in [0, 1]) as an array (3,)."""
    return np.array(
        [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        if isinstance(colour, str)
        else colour,
        dtype=float,
    )


def linear(rgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to linear light."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(colour) -> float:
    """WCAG relative luminance of a colour (hex text or three numbers in [0, 1])."""
    return float(linear(rgb(colour)) @ (0.2126, 0.7152, 0.0722))


def contrast(first, second) -> float:
    """WCAG contrast ratio of two colours, from 1 to 21."""
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)
