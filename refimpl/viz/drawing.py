"""Figures as drawings that stay sharp at every size, stored beside the picture of each output.

A notebook shows the PNG that `charts.png` makes. Its output's metadata holds the same figure as
SVG, and where the figure is simple enough a second one for a narrow screen, both compressed. The
book delivers these: `unpack`, `dark`.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from refimpl.viz import charts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT = "kept-"  # names of groups that keep their colours in the dark
KEY = "drawings"  # in the metadata of an output's PNG
MOST = 11_000  # bytes of the compressed drawings of one figure; beyond, only the PNG is stored
NARROW = 4.3  # inches: text of 11 points is then 11 pixels high and more on a phone of 390
DPI = 192  # of pictures inside a drawing: two dots for each CSS pixel
PAD = 0.12  # inches around a figure, as in the PNG
SMALL_PICTURE = 4_000  # bytes of a picture inside a drawing that stays as it is
QUALITY = 78  # of larger ones, as WebP

PICTURE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")
BLOCKS = re.compile(
    r'(<image\b[^>]*image/webp[^>]*?) style="image-rendering[^"]*"'
)  # of photographs
HEX = re.compile(r"#[0-9a-fA-F]{6}\b")


def stored(figure: Figure) -> tuple[bytes, dict]:
    """The PNG of a figure and the metadata of its output, as IPython's formatters give them."""
    drawings = pack(figure)
    return charts.png(figure), ({"refimpl": {KEY: drawings}} if drawings else {})


def pack(figure: Figure) -> str:
    """The drawings of a figure, compressed, as text; `""` where they would be too large."""
    made = {"wide": svg(figure)}
    if fits_narrow(figure):
        made["narrow"] = narrow(figure)
    for kinds in (made, {"wide": made["wide"]}):
        text = json.dumps(kinds, ensure_ascii=False, separators=(",", ":"))
        packed = base64.b85encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
        if len(packed) <= MOST:
            return packed
    return ""


def unpack(packed: str) -> dict[str, str]:
    """`pack` undone: `wide` and perhaps `narrow` -> SVG."""
    return json.loads(gzip.decompress(base64.b85decode(packed)))


def svg(figure: Figure) -> str:
    """A figure as SVG: text as outlines, coordinates to a hundredth of a point."""
    import matplotlib as mpl

    out = io.StringIO()
    style = {"svg.fonttype": "path", "svg.hashsalt": "refimpl"}
    with mpl.rc_context(style), kept(figure), as_they_are(figure):
        figure.savefig(out, format="svg", dpi=DPI, bbox_inches="tight", pad_inches=PAD)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = PICTURE.sub(lighter, text)
    text = BLOCKS.sub(r"\1", text)
    text = rounded(text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def rounded(text: str) -> str:
    """Paths and places to two decimals; factors of scale keep theirs."""

    def shorter(attribute: re.Match) -> str:
        return re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", attribute[0])

    return re.sub(r'\b(?:d|x|y|points|width|height)="[^"]*"|translate\([^)]*\)', shorter, text)


def lighter(picture: re.Match) -> str:
    """A photograph inside a drawing as WebP; small maps stay as they are."""
    from PIL import Image

    data = base64.b64decode(picture[1])
    if len(data) <= SMALL_PICTURE:
        return picture[0]
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).save(out, "WEBP", quality=QUALITY, method=6)
    if out.tell() >= len(data):
        return picture[0]
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


@contextmanager
def kept(figure: Figure):
    """Name what is written over pictures and maps: the dark theme must not change it."""
    named = {}
    figure.draw_without_rendering()  # places are settled
    for ax in figure.get_axes():
        for artist in over_pictures(ax):
            named[artist] = artist.get_gid()
            artist.set_gid(f"{KEPT}{len(named)}")
    try:
        yield
    finally:
        for artist, name in named.items():
            artist.set_gid(name)


@contextmanager
def as_they_are(figure: Figure):
    """Put pictures into a drawing with their own pixels, where these are few."""
    resampled = {}
    for ax in figure.get_axes():
        wide = 2 * ax.get_window_extent().width * DPI / figure.dpi
        for image in ax.images:
            if image.get_array().shape[1] <= wide:
                resampled[image] = image.get_interpolation()
                image.set_interpolation("none")
    try:
        yield
    finally:
        for image, interpolation in resampled.items():
            image.set_interpolation(interpolation)


def over_pictures(ax) -> list:
    """Texts, lines and shapes that lie inside axes which hold a picture or a map."""
    from matplotlib.collections import Collection, QuadMesh
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.spines import Spine
    from matplotlib.text import Text

    children = ax.get_children()
    if not ax.images and not any(isinstance(child, QuadMesh) for child in children):
        return []
    found = []
    for child in children:
        drawn = isinstance(child, Text | Line2D | Patch | Collection)
        drawn = drawn and not isinstance(child, Spine)
        if drawn and child is not ax.patch and not isinstance(child, QuadMesh):
            box = child.get_window_extent()
            finite = np.isfinite(box.get_points()).all()
            if finite and ax.bbox.contains((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2):
                found.append(child)
    return found


# -- a second drawing for a narrow screen


def fits_narrow(figure: Figure) -> bool:
    """Whether a figure can simply be drawn narrower: one column of plain charts, no pictures."""
    axes = figure.get_axes()
    plain = all(ax.axison and ax.get_aspect() == "auto" and not ax.images for ax in axes)
    spans = [ax.get_subplotspec() for ax in axes]
    if not axes or not plain or None in spans or figure.get_layout_engine() is None:
        return False
    columns = {span.get_gridspec().ncols for span in spans}
    return columns == {1} and figure.get_figwidth() > NARROW


def narrow(figure: Figure) -> str:
    """A figure drawn `NARROW` inches wide and as high as before; the figure is left as it was."""
    size = figure.get_size_inches().copy()
    try:
        figure.set_size_inches(NARROW, size[1])
        return svg(figure)
    finally:
        figure.set_size_inches(*size)


# -- the dark theme


def dark(drawing: str) -> str:
    """A drawing for a dark page: colours turned around, but for pictures and what is on them."""
    made, end = [], 0
    for first, last in kept_places(drawing):
        made += [
            turned(drawing[end:first]),
            drawing[first:last].replace("<g", '<g fill="#000000"', 1),
        ]
        end = last
    made.append(turned(drawing[end:]))
    # What has no colour of its own is black by SVG's rule.
    return "".join(made).replace("<svg", f'<svg fill="{charts.LIGHT_INK}"', 1)


def kept_places(drawing: str) -> Iterator[tuple[int, int]]:
    """Where the groups begin and end that keep their colours."""
    depth, first = 0, None
    for tag in re.finditer(r"<g\b[^>]*>|</g>|<image\b[^>]*>", drawing):
        if tag[0].startswith("<image"):
            if first is None:
                yield tag.span()
        elif tag[0] == "</g>":
            depth -= 1
            if first is not None and depth == first[1]:
                yield first[0], tag.end()
                first = None
        else:
            if first is None and f'id="{KEPT}' in tag[0]:
                first = (tag.start(), depth)
            depth += 1


def turned(piece: str) -> str:
    return HEX.sub(lambda colour: dark_colour(colour[0]), piece)


@cache
def dark_colour(colour: str) -> str:
    lab = charts.to_oklab(charts.rgb(colour.lower())[None])
    red, green, blue = np.rint(255 * charts.from_oklab(charts.turn(lab))[0]).astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}"
