"""Figures of the dark theme: twins of the stored pictures, by `refimpl.viz.charts.dark_twin`."""

from __future__ import annotations

import re
from pathlib import Path

from refimpl.viz import charts
from refimpl_book import html


def twin_of(app, name: str) -> str | None:
    """Write the dark twin of the page image `name` beside it.

    Returns its file name, or `None` for a picture that is none of ours.
    """
    source = next((src for src, target in app.builder.images.items() if target == name), None)
    if source is None:
        return None
    dark = charts.dark_twin((Path(app.srcdir) / source).read_bytes())
    if dark is None:
        return None
    target = Path(app.outdir) / app.builder.imagedir / f"{Path(name).stem}-dark.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(dark)
    return target.name


def add_twins(app, pagename, templatename, context, doctree):
    """One rule of style per figure: the same image element shows the twin in the dark theme."""
    rules = []
    pictures = re.findall(r'<img[^>]* src="([^"]+\.png)"', context.get("body", ""))
    for address in dict.fromkeys(pictures):
        folder, _, name = address.rpartition("/")
        if twin := twin_of(app, name):
            rules.append(html.dark_rules(address, f"{folder}/{twin}"))
    if rules:
        context["body"] = "\n".join([*rules, context["body"]])


def setup(app):
    app.connect("html-page-context", add_twins, priority=950)
