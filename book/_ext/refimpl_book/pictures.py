"""Every picture of a page: as a drawing where the notebook holds one, with its size, loaded late.

A chapter's output holds a figure as PNG and, in its metadata, the same figure as SVG
(`refimpl.viz.drawing`): this is what the page shows, with a dark twin, and on a narrow screen the
narrow drawing where there is one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from PIL import Image

from refimpl.viz import drawing
from refimpl_book import html, sources

IMAGE = re.compile(r'<img (?P<before>[^>]*?)src="(?P<src>[^":]+)"(?P<after>[^>]*)>')
POINT = 4 / 3  # CSS pixels
SMALLEST = {".png": 0.6, ".svg": 0.75}  # of its natural width: text of 11 points has 11 pixels
PHONE = 342  # CSS pixels of the text column on a phone of 390
NARROW_SCREEN = "(max-width: 46em)"


@cache
def size(path: Path) -> tuple[int, int] | None:
    """Width and height in CSS pixels; of a drawing, as its root element says."""
    if path.suffix != ".svg":
        with Image.open(path) as picture:
            return picture.size
    return size_of(path.read_text(encoding="utf-8"))


def size_of(svg: str) -> tuple[int, int] | None:
    root = re.search(r"<svg\b[^>]*>", svg)[0]
    sides = [re.search(rf'\b{side}="([\d.]+)(pt|px)?"', root) for side in ("width", "height")]
    if None in sides:
        return None
    width, height = (round(float(m[1]) * (POINT if m[2] == "pt" else 1)) for m in sides)
    return width, height


@cache
def drawings(stem: str) -> dict[str, dict[str, str]]:
    """Name of a page's PNG, as MyST-NB gives it -> its drawings, for the outputs of a chapter."""
    found = {}
    for cell in sources.read_json(sources.NOTEBOOKS / f"{stem}.ipynb")["cells"]:
        for output in cell.get("outputs", []):
            about = output.get("metadata", {}).get("image/png", {}).get("refimpl", {})
            if packed := about.get(drawing.KEY):
                data = base64.b64decode("".join(output["data"]["image/png"]))
                found[f"{hashlib.sha256(data).hexdigest()}.png"] = drawing.unpack(packed)
    return found


def write(app, name: str, text: str) -> str:
    """Put a drawing among the book's images; its file name."""
    target = Path(app.outdir) / app.builder.imagedir / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return name


def place(app, pagename, templatename, context, doctree):
    """Pictures that say how large they are; all but the page's first load when they are near."""
    stem = pagename.removeprefix("notebooks/")
    drawn = drawings(stem) if stem != pagename and sources.written(stem) else {}
    rules, count = [], 0

    def shown(match: re.Match) -> str:
        nonlocal count
        folder, _, name = match["src"].rpartition("/")
        if re.search(r"\bwidth=", match[0]):
            return match[0]
        source = next((s for s, target in app.builder.images.items() if target == name), None)
        if source is None:
            return match[0]
        count += 1
        if name in drawn:
            return as_drawing(app, match, drawn[name], rules, late=count > 1)
        return tag(match, match["src"], size(Path(app.srcdir) / source), late=count > 1)

    body = IMAGE.sub(shown, context.get("body", ""))
    context["body"] = "".join(dict.fromkeys(rules)) + body


def as_drawing(app, match: re.Match, made: dict[str, str], rules: list[str], late: bool) -> str:
    folder, _, name = match["src"].rpartition("/")
    stem = name.removesuffix(".png")
    names = {}
    for kind, text in made.items():
        light = write(app, f"{stem}-{kind}.svg", text)
        dark = write(app, f"{stem}-{kind}-dark.svg", drawing.dark(text))
        names[kind] = (f"{folder}/{light}", f"{folder}/{dark}")
    wide, wide_dark = names["wide"]
    rules.append(html.dark_rules(wide, wide_dark))
    image = tag(match, wide, size_of(made["wide"]), late)
    if "narrow" not in names:
        return image
    least = round(SMALLEST[".svg"] * size_of(made["narrow"])[0])
    image = re.sub(r"--least: \d+px", f"--least: {least}px", image)
    fits = "data-fits " if least <= PHONE else ""  # else it scrolls, like a wide one
    narrow, narrow_dark = names["narrow"]
    rules.append(dark_narrow(wide, narrow_dark))
    width, height = size_of(made["narrow"])
    source = f'<source media="{NARROW_SCREEN}" srcset="{narrow}" width="{width}" height="{height}">'
    return f"<picture>{source}{image.replace('<img ', f'<img {fits}', 1)}</picture>"


def dark_narrow(wide: str, twin: str) -> str:
    rule = f'html[data-theme="dark"] img[src="{wide}"]{{content:url("{twin}")}}'
    return f"<style>@media {NARROW_SCREEN}{{{rule}}}</style>"


def tag(match: re.Match, src: str, box: tuple[int, int] | None, late: bool) -> str:
    """The image element with its size, and the least width at which its text can be read."""
    more = ' loading="lazy" decoding="async"' if late else ""
    if box:
        width, height = box
        least = round(SMALLEST.get(Path(src).suffix, 0) * width)
        more += f' width="{width}" height="{height}"'
        more += f' style="--natural: {width}px; --least: {least}px"'
    return f'<img {match["before"]}src="{src}"{match["after"].rstrip(" /")}{more}>'


def setup(app):
    app.connect("html-page-context", place, priority=940)
