"""Pictures that a reader moves through: up to twelve frames in one self-contained piece of HTML.

Template: `slider.html`. Without a script (GitHub, print, a feed reader) one chosen frame stays.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

LIMIT = 150_000  # bytes of HTML
MOST = 12  # frames
DPI = 144  # of a figure, before it is made smaller to fit
PHONE = 345  # CSS pixels that a frame is wide on a phone of 390
SMALLEST = 11  # CSS pixels of the smallest text there
QUALITIES = (None, 80, 60)  # of WebP; None: without loss
SCALES = (1.0, 0.8, 0.65)
TEMPLATE = Path(__file__).with_name("slider.html")


@dataclass(frozen=True)
class Slider:
    """Displays itself in a notebook, as HTML with a PNG of the chosen frame for what shows none."""

    html: str
    png: bytes
    title: str

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {
            "text/html": self.html,
            "image/png": base64.b64encode(self.png).decode(),
            "text/plain": repr(self),
        }

    def __repr__(self) -> str:
        return f"{self.title} (a slider: shown as HTML)"


def slider(
    frames: Sequence[Figure | np.ndarray],
    labels: Sequence[str],
    title: str,
    *,
    alts: Sequence[str],
    first: int = 0,
) -> Slider:
    """Frames under a slider: mouse, finger and arrow keys move through them.

    frames: 2 to 12 matplotlib figures, or images as `charts.image_grid` takes them, all of one
        size. Figures are closed. Draw them at most 4.7 inches wide: on a phone of 390 pixels the
        smallest text then still is 11 pixels high.
    labels: what each frame shows, a few words, written under it ("head 2 of 4").
    title: what moves, written above.
    alts: a text for each frame for readers who can't see it, at most 250 characters, all different.
    first: index of the frame that shows at the start, in print and where no script runs.

    Raises `ValueError` for anything else, and where the frames do not fit into 150 KB.
    """
    check_texts(frames, labels, title, alts, first)
    pictures = [as_image(frame, i) for i, frame in enumerate(frames)]
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        found = ", ".join(f"{width}×{height}" for width, height in sorted(sizes))
        raise ValueError(f"slider: the frames have {len(sizes)} sizes ({found} pixels); wanted one")
    for scale in SCALES:
        for quality in QUALITIES:
            data = encoded(pictures, scale, quality)
            if len(data) < len(pictures):
                continue
            text = page(data, pictures[0].size, labels, title, alts, first)
            if len(text.encode()) <= LIMIT:
                return Slider(text, png(pictures[first]), title)
    raise ValueError(
        f"slider: {len(frames)} frames do not fit into {LIMIT // 1000} KB, not even compressed and"
        f" at {SCALES[-1]:.0%} of their size; give fewer or smaller frames"
    )


def check_texts(frames, labels, title, alts, first) -> None:
    count = len(frames)
    if not 2 <= count <= MOST:
        raise ValueError(f"slider: {count} frames; wanted 2 to {MOST}")
    for name, texts, most in (("labels", labels, 60), ("alts", alts, 250)):
        if isinstance(texts, str) or len(texts) != count:
            raise ValueError(f"slider: {name}={texts!r} must be {count} texts, one for each frame")
        for text in texts:
            if not isinstance(text, str) or not text.strip() or len(text) > most:
                raise ValueError(
                    f"slider: {name} holds {text!r}; wanted a text of 1 to {most} characters"
                )
        if len(set(texts)) < count:
            raise ValueError(f"slider: {name} holds a text twice; a reader could not tell them")
    if not title.strip():
        raise ValueError(f"slider: title={title!r} is empty; say what moves")
    if not isinstance(first, int) or not 0 <= first < count:
        raise ValueError(f"slider: first={first!r} must be a frame's index, 0 to {count - 1}")


def as_image(frame: Figure | np.ndarray, index: int) -> Image:
    """A figure as it is drawn, or an array, as an RGB picture."""
    from matplotlib.figure import Figure
    from PIL import Image

    from refimpl.viz.charts import as_picture

    if isinstance(frame, Figure):
        return drawn(frame, index)
    pixels = np.asarray(as_picture(frame))
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels.astype(np.float64).clip(0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels).convert("RGB")
    enlarged = max(1, 360 // max(picture.size))  # whole multiples keep a small map's cells square
    width, height = picture.size
    return picture.resize((width * enlarged, height * enlarged), Image.Resampling.NEAREST)


def drawn(figure: Figure, index: int) -> Image:
    """The whole canvas of a figure, which is closed; its text must be readable on a phone."""
    import matplotlib.pyplot as plt
    from matplotlib.text import Text
    from PIL import Image

    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI, bbox_inches=figure.bbox_inches)
    written = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    plt.close(figure)
    width = figure.get_figwidth()
    points = min((text.get_fontsize() for text in written), default=float("inf"))
    pixels = points * PHONE / (72 * width)
    if pixels < SMALLEST:
        raise ValueError(
            f"slider: frame {index} is {width:.1f} in wide with text of {points:.3g} points, which"
            f" a phone shows {pixels:.1f} pixels high; draw it at most"
            f" {points * PHONE / (72 * SMALLEST):.1f} in wide, or with larger text"
        )
    return Image.open(raw).convert("RGB")


def encoded(pictures: Sequence[Image], scale: float, quality: int | None) -> list[str]:
    """The pictures as base64 WebP; fewer of them where the limit is passed before the last."""
    data = []
    for picture in pictures:
        data.append(webp(picture, scale, quality))
        if sum(map(len, data)) > LIMIT:
            return data[:-1]
    return data


def webp(picture: Image, scale: float, quality: int | None) -> str:
    """A picture as base64 WebP."""
    from PIL import Image

    if scale < 1:
        width, height = picture.size
        smaller = (round(width * scale), round(height * scale))
        picture = picture.resize(smaller, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if quality is None:
        picture.save(out, "WEBP", lossless=True, quality=60, method=4)
    else:
        picture.save(out, "WEBP", quality=quality, method=5)
    return base64.b64encode(out.getvalue()).decode()


def png(picture: Image) -> bytes:
    """A picture as PNG of at most 256 colours."""
    from PIL import Image

    out = io.BytesIO()
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1).save(out, "PNG", optimize=True)
    return out.getvalue()


def page(data, size, labels, title, alts, first) -> str:
    """The piece of HTML. Only the first frame is an image in it; the script brings in the rest."""
    width, height = size
    others = ["" if i == first else picture for i, picture in enumerate(data)]
    frames = {"pictures": others, "labels": list(labels), "alts": list(alts)}
    values = {
        "title": html.escape(title),
        "label": html.escape(labels[first]),
        "alt": html.escape(alts[first]),
        "picture": data[first],
        "width": str(width),
        "height": str(height),
        "shown": str(min(max(round(0.8 * width), 360), 640)),
        "first": str(first),
        "last": str(len(data) - 1),
        "frames": html.escape(json.dumps(frames, ensure_ascii=False, separators=(",", ":"))),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    return text
