"""The hoverable attention explorer: an image and quantised maps in one piece of HTML.

Template: `explorer.html`.
"""

from __future__ import annotations

import base64
import html
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

LIMIT = 150_000  # bytes of HTML
TEMPLATE = Path(__file__).with_name("explorer.html")


@dataclass(frozen=True)
class Explorer:
    """Displays itself in a notebook; `html` is the self-contained piece."""

    html: str
    title: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"{self.title} (interactive: shown as HTML)"


def pack(
    image,
    layers: Sequence[tuple[str, Tensor, tuple[int, int]]],
    title: str,
    query: tuple[float, float],
) -> Explorer:
    """The explorer of an image, its maps quantised as finely as the size limit allows.

    layers: (name, weights (heads, h·w, h·w), (h, w)) each; query: where it starts, as fractions of
    height and width.
    """
    if not all(0 <= q <= 1 for q in query):
        raise ValueError(f"query={query} must be fractions of height and width, from 0 to 1")
    picture = jpeg(image)
    size = 0
    for levels in (64, 32, 16, 8):
        data = b"".join(quantise(weights, levels) for _, weights, _ in layers)
        sizes = [
            {"name": name, "rows": h, "columns": w, "heads": len(weights)}
            for name, weights, (h, w) in layers
        ]
        start = [round(float(q), 3) for q in query]
        meta = json.dumps({"levels": levels, "query": start, "layers": sizes}, ensure_ascii=False)
        text = TEMPLATE.read_text(encoding="utf-8")
        text = text.replace("{{title}}", html.escape(title))
        text = text.replace("{{image}}", picture)
        text = text.replace("{{meta}}", html.escape(meta))
        text = text.replace("{{maps}}", base64.b64encode(zlib.compress(data, 9)).decode())
        size = len(text.encode())
        if size <= LIMIT:
            return Explorer(text, title)
    raise ValueError(
        f"explorer: {len(layers)} layers take {size // 1000} KB, at most {LIMIT // 1000} KB fit;"
        " give fewer layers"
    )


def quantise(weights: Tensor, levels: int) -> bytes:
    """Maps (heads, n, n) in a byte per weight, scaled to their row's maximum, then the maxima.

    The maxima take a byte each too, 255 for 1.
    """
    w = weights.numpy().astype(np.float64)
    peak = w.max(-1, keepdims=True)
    scaled = np.rint((levels - 1) * w / np.maximum(peak, 1e-12))
    maxima = np.rint(255 * np.clip(peak[..., 0], 0, 1))
    return scaled.astype(np.uint8).tobytes() + maxima.astype(np.uint8).tobytes()


def jpeg(image, side: int = 288) -> str:
    """The image as a base64 JPEG of at most `side` pixels."""
    from PIL import Image

    from refimpl.viz.charts import as_picture

    pixels = as_picture(image)
    if pixels.dtype != np.uint8:
        pixels = np.rint(255 * np.asarray(pixels, np.float64).clip(0, 1)).astype(np.uint8)
    picture = Image.fromarray(pixels).convert("RGB")
    longest = max(picture.size)
    if longest > side:
        size = [round(n * side / longest) for n in picture.size]
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    elif longest <= side // 2:  # a digit: whole multiples keep its pixels square
        size = [n * (side // longest) for n in picture.size]
        picture = picture.resize(size, Image.Resampling.NEAREST)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=82, optimize=True)
    return base64.b64encode(out.getvalue()).decode()
