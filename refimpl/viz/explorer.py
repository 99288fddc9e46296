"""The hoverable attention explorer: an image and quantised maps in one piece of HTML.

Template: `explorer.html`.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

LIMIT = 150_000  # bytes of HTML
TILE, ACROSS = 120, 3  # pixels of a head in the still picture, heads in a row
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
    names = in_words([name for name, _, _ in layers])
    frozen, width, height = still(picture, *layers[0][1:], query)
    told = (
        f"Where the heads of {names[0]} look from the patch that is outlined, brighter where more"
    )
    size = 0
    for levels in (64, 32, 16, 8):
        data = b"".join(quantise(weights, levels) for _, weights, _ in layers)
        sizes = [
            {"name": name, "rows": h, "columns": w, "heads": len(weights)}
            for name, (_, weights, (h, w)) in zip(names, layers, strict=True)
        ]
        start = [round(float(q), 3) for q in query]
        meta = json.dumps({"levels": levels, "query": start, "layers": sizes}, ensure_ascii=False)
        text = TEMPLATE.read_text(encoding="utf-8")
        text = text.replace("{{title}}", html.escape(title))
        text = text.replace("{{image}}", picture).replace("{{still}}", frozen)
        text = text.replace("{{width}}", str(width)).replace("{{height}}", str(height))
        text = text.replace("{{told}}", html.escape(told))
        text = text.replace("{{meta}}", html.escape(meta))
        text = text.replace("{{maps}}", base64.b64encode(zlib.compress(data, 9)).decode())
        size = len(text.encode())
        if size <= LIMIT:
            return Explorer(text, title)
    raise ValueError(
        f"explorer: {len(layers)} layers take {size // 1000} KB, at most {LIMIT // 1000} KB fit;"
        " give fewer layers"
    )


def in_words(names: Sequence[str]) -> list[str]:
    """`stages.0.blocks.2.attn` -> `stage 1, block 3`; as they are where two would be called alike.

    Numbers of modules count from 0, a reader's from 1; what has no number is left out.
    """

    def said(name: str) -> str:
        parts = re.findall(r"(?:([A-Za-z_]+)\.)?(\d+)(?=\.|$)", name)
        kinds = {"": "layer", "layers": "layer", "blocks": "block", "stages": "stage"}
        words = [(kinds.get(kind, kind.rstrip("s").replace("_", " ")), i) for kind, i in parts]
        return ", ".join(f"{kind} {int(i) + 1}" for kind, i in words) or name

    told = [said(name) for name in names]
    return told if len(set(told)) == len(told) else list(names)


def still(
    picture: str, weights: Tensor, grid: tuple[int, int], query: tuple[float, float]
) -> tuple[str, int, int]:
    """What the heads show at the start, for where no script runs: base64 WebP, width, height.

    picture: the base64 JPEG; weights: (heads, h·w, h·w).
    """
    from PIL import Image, ImageDraw

    height, width = grid
    row, column = (min(int(q * n), n - 1) for q, n in zip(query, grid, strict=True))
    photo = Image.open(io.BytesIO(base64.b64decode(picture)))
    tile = (TILE, round(TILE * photo.height / photo.width))
    pixels = np.asarray(photo.resize(tile), np.float64)
    across = min(ACROSS, len(weights))
    down = -(-len(weights) // across)
    gap = 8
    size = (across * (tile[0] + gap) - gap, down * (tile[1] + gap) - gap)
    sheet = Image.new("RGBA", size)
    box = [column / width, row / height, (column + 1) / width, (row + 1) / height]
    corners = [round(part * (side - 1)) for part, side in zip(box, 2 * tile, strict=True)]
    for head, look in enumerate(weights[:, row * width + column]):
        shade = (look / look.max().clamp(min=1e-12)).reshape(grid).numpy()
        light = Image.fromarray(np.rint(255 * shade).astype(np.uint8))
        light = np.asarray(light.resize(tile, Image.Resampling.NEAREST), np.float64) / 255
        shown = Image.fromarray(np.rint(pixels * (0.12 + 0.88 * light[..., None])).astype(np.uint8))
        ImageDraw.Draw(shown).rectangle(corners, outline="white")
        place = (head % across * (tile[0] + gap), head // across * (tile[1] + gap))
        sheet.paste(shown, place)
    out = io.BytesIO()
    sheet.save(out, "WEBP", quality=60, method=6)
    return base64.b64encode(out.getvalue()).decode(), *size


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
