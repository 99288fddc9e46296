"""The house style of figures: paper, ink, palette, empty axes, and how well colours are told apart.

A figure is printed on its own light paper. No single ink reaches a contrast of 4.5:1 on white *and*
on the dark theme's page (the best grey reaches 4.3), so a transparent figure would fail one of
them; on paper every renderer, in either theme, shows the same contrast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = "#fbfaf7"
INK = "#22262b"
SOFT = "#62676d"  # secondary text, ≥ 4.5:1 on paper
GRID = "#dcd9d1"
WASH = "#ecebe4"  # filled boxes of diagrams
DARK_PAGE = (
    "#14181d"  # the book's dark page and its text: where `png.dark_twin` takes paper and ink
)
LIGHT_INK = "#dfe3e8"
# tests/test_viz.py holds what the palette promises
PALETTE = ("#1f91fb", "#840208", "#907f0c", "#5c29c9", "#297161", "#3b2041")
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


def figure(
    rows: int = 1, columns: int = 1, height: float = 3.4, width: float = WIDTH, **options
) -> tuple[Figure, Axes | np.ndarray]:
    """A figure of the book's width with `rows` × `columns` axes.

    height, width: of the whole figure, in inches; options: of `plt.subplots`.
    """
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), **options)


def bare(ax: Axes) -> Axes:
    """Take ticks, grid and frame off, for pictures."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def rgb(colour) -> np.ndarray:
    """A colour (hex text or three numbers in [0, 1]) as an array (3,)."""
    if isinstance(colour, str):
        colour = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array(colour, dtype=float)


def to_linear_light(rgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to linear light."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(colour) -> float:
    """WCAG relative luminance of a colour (hex text or three numbers in [0, 1])."""
    return float(to_linear_light(rgb(colour)) @ (0.2126, 0.7152, 0.0722))


def contrast(first, second) -> float:
    """WCAG contrast ratio of two colours, from 1 to 21."""
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)
