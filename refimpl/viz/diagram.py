"""Boxes and arrows, for the drawing of an idea."""

from __future__ import annotations

import math

import numpy as np

from refimpl.viz.style import INK, PALETTE, PAPER, SEQUENTIAL, SOFT, WASH, WIDTH, bare, figure


class Diagram:
    """Boxes and arrows on a plain canvas of columns × rows units; y grows downwards.

    >>> d = Diagram(10, 4)
    >>> query = d.box(1, 1, "query")
    >>> softmax = d.box(5, 1, "softmax", tone=0)
    >>> d.arrow(query, softmax)
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
        """A box with its upper left corner at (x, y). Returns (x, y, w, h) for `arrow`.

        tone: number of a colour of the palette, for its edge; size: of the text, in points.
        """
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
        """An arrow between two boxes, from edge to edge, or points (x, y); a text at its middle.

        tone: number of a colour of the palette; bend: of the line, in parts of its length.
        """
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
            x, y = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
            self.text(x, y - 0.12 - bend, text, va="bottom", colour=colour)

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
        """Coloured cells of a small matrix, the upper left corner at (x, y).

        Returns (x, y, w, h) for `arrow`.
        """
        values = np.atleast_2d(np.asarray(values, dtype=float))
        rows, columns = values.shape
        low, high = limits or (values.min(), values.max())
        w, h = columns * cell, rows * cell
        extent = (x, x + w, y + h, y)
        self.ax.imshow(values, cmap=cmap, vmin=low, vmax=high, extent=extent, zorder=1)
        look = {"color": PAPER, "lw": 0.8, "linestyle": "-", "zorder": 2}
        for i in range(rows + 1):
            self.ax.plot([x, x + w], [y + i * cell] * 2, **look)
        for j in range(columns + 1):
            self.ax.plot([x + j * cell] * 2, [y, y + h], **look)
        self.ax.set(xlim=self.ax.get_xlim(), ylim=self.ax.get_ylim(), aspect="equal")
        return (x, y, w, h)


def edge_points(start: tuple, end: tuple) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the straight line between two boxes or points leaves one and meets the other."""
    (ax, ay), (bx, by) = centre(start), centre(end)
    return border(start, bx - ax, by - ay), border(end, ax - bx, ay - by)


def centre(place: tuple) -> tuple[float, float]:
    """The middle of a box (x, y, w, h); a point (x, y) itself."""
    if len(place) == 2:
        return place
    x, y, w, h = place
    return x + w / 2, y + h / 2


def border(place: tuple, dx: float, dy: float) -> tuple[float, float]:
    """Where the line from the middle in the direction (dx, dy) leaves a box."""
    x, y = centre(place)
    if len(place) == 2 or (dx == 0 and dy == 0):
        return x, y
    _, _, w, h = place
    across = w / 2 / abs(dx) if dx else math.inf
    along = h / 2 / abs(dy) if dy else math.inf
    reach = min(across, along)
    return x + reach * dx, y + reach * dy
