"""Every picture of a page says how large it is and loads when it comes into sight."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from PIL import Image

IMAGE = re.compile(r'<img (?P<attributes>[^>]*?)src="(?P<src>[^":]+)"(?P<rest>[^>]*)>')
POINT = 4 / 3  # CSS pixels


@cache
def size(path: Path) -> tuple[int, int] | None:
    """Width and height in CSS pixels; of a drawing (SVG), as its root element says."""
    if path.suffix != ".svg":
        with Image.open(path) as picture:
            return picture.size
    root = re.search(r"<svg\b[^>]*>", path.read_text(encoding="utf-8"))
    sides = root and [
        re.search(rf'\b{side}="([\d.]+)(pt|px)?"', root[0]) for side in ("width", "height")
    ]
    if not sides or None in sides:
        return None
    return tuple(round(float(m[1]) * (POINT if m[2] == "pt" else 1)) for m in sides)


def measured(app, src: str) -> tuple[int, int] | None:
    """The size of a page's image by its address, `None` for one that is not the page's own."""
    name = src.rpartition("/")[2]
    source = next((s for s, target in app.builder.images.items() if target == name), None)
    return size(Path(app.srcdir) / source) if source else None


def place(app, pagename, templatename, context, doctree):
    """Width, height and lazy loading for every picture but the page's first, which is in sight."""
    seen = 0

    def with_size(match: re.Match) -> str:
        nonlocal seen
        given = match["attributes"] + match["rest"]
        box = measured(app, match["src"])
        if not box or re.search(r"\bwidth=", given):
            return match[0]
        seen += 1
        more = f' width="{box[0]}" height="{box[1]}" style="--natural: {box[0]}px"'
        more += ' loading="lazy" decoding="async"' if seen > 1 else ""
        return f'<img {match["attributes"]}src="{match["src"]}"{match["rest"].rstrip(" /")}{more}>'

    context["body"] = IMAGE.sub(with_size, context.get("body", ""))


def setup(app):
    app.connect("html-page-context", place, priority=940)
