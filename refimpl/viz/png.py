"""Figures as PNG files that the book's dark theme can turn around.

`png` notes in the file where photographs and maps lie; `dark_twin` turns paper and ink around, from
the file alone, and leaves those as they are.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np

from refimpl.viz.style import DARK_PAGE, INK, LIGHT_INK, PAPER, rgb, to_linear_light

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox
    from PIL.Image import Image

PAD = 0.12  # inches around a figure
FULL_COLOUR = 40_000  # bytes: a larger file (photographs) is brought to 256 colours


def png(fig: Figure) -> bytes:
    """A figure as PNG, to 256 colours where it is large: a third of the bytes, hardly a loss.

    A text entry `pictures` of the file holds the boxes (left, top, right, bottom, in pixels) of
    photographs, maps and colour bars.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    layout = fig.get_layout_engine()
    for _ in range(2):
        fig.draw_without_rendering()
    if layout is not None:  # each pass moves the axes a little, and the boxes are those of this one
        fig.set_layout_engine("none")
    frame = fig.get_tightbbox().padded(PAD)
    extents = picture_extents(fig)
    raw = io.BytesIO()
    fig.savefig(raw, format="png", bbox_inches=frame, dpi=fig.dpi)
    if layout is not None:
        fig.set_layout_engine(layout)
    picture = Image.open(raw).convert("RGB")
    left = frame.x0 * fig.dpi
    foot = frame.y0 * fig.dpi + picture.height  # a file counts rows from the top, in whole pixels
    boxes = []
    for extent in extents:
        corners = (extent.x0 - left, foot - extent.y1, extent.x1 - left, foot - extent.y0)
        boxes.append([round(corner) for corner in corners])
    notes = PngInfo()
    notes.add_text("pictures", json.dumps(boxes))
    if raw.tell() > FULL_COLOUR:
        picture = few_colours(picture)
    out = io.BytesIO()
    picture.save(out, format="png", optimize=True, pnginfo=notes)
    return out.getvalue()


def picture_extents(fig: Figure) -> list[Bbox]:
    """Where photographs, maps and colour bars lie in a figure, in pixels from its lower left."""
    from matplotlib.collections import QuadMesh
    from matplotlib.image import AxesImage
    from matplotlib.transforms import Bbox

    extents = []
    for artist in fig.findobj(lambda a: isinstance(a, AxesImage | QuadMesh)):
        extent = Bbox.intersection(artist.get_window_extent(), artist.axes.get_window_extent())
        if extent is not None:
            extents.append(extent)
    return extents


def few_colours(picture: Image) -> Image:
    """A picture in 256 colours of its own."""
    from PIL import Image

    return picture.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)


def dark_twin(file: bytes) -> bytes | None:
    """The same figure for a dark page, from the PNG alone; `None` for a file not written by `png`.

    Paper becomes the page, ink light, hues stay; photographs and maps are untouched. Lightness is
    turned around in OKLab between paper and ink.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(file))
    if "pictures" not in picture.info:
        return None
    pixels = np.asarray(picture.convert("RGB"), np.float64) / 255
    turned = from_oklab(turn(to_oklab(pixels)))
    for left, top, right, bottom in json.loads(picture.info["pictures"]):
        box = np.s_[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        turned[box] = pixels[box]
    dark = Image.fromarray(np.rint(turned * 255).astype(np.uint8))
    if picture.mode == "P":
        dark = few_colours(dark)
    out = io.BytesIO()
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
    return np.cbrt(to_linear_light(rgb) @ TO_LMS.T) @ TO_LAB.T


def from_oklab(lab: np.ndarray) -> np.ndarray:
    """OKLab to sRGB in [0, 1], clipped: (…, 3) -> (…, 3)."""
    light = ((lab @ np.linalg.inv(TO_LAB).T) ** 3 @ np.linalg.inv(TO_LMS).T).clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def turn(lab: np.ndarray) -> np.ndarray:
    """Lightness turned around: paper to the dark page, ink to light ink, all between in order."""
    paper, ink, page, light = (to_oklab(rgb(c))[0] for c in (PAPER, INK, DARK_PAGE, LIGHT_INK))
    lightness = page + (paper - lab[..., 0]) / (paper - ink) * (light - page)
    tint = to_oklab(rgb(DARK_PAGE))[1:] - to_oklab(rgb(PAPER))[1:]
    of_paper = np.clip((lab[..., 0] - ink) / (paper - ink), 0, 1)  # in a pixel's tint
    return np.concatenate([lightness[..., None], lab[..., 1:] + of_paper[..., None] * tint], -1)
