"""Every figure of the house style gets a twin for the dark theme, made here from the stored picture (`refimpl.viz.charts.dark_twin`)."""

from __future__ import annotations

import re
from pathlib import Path

from refimpl.viz import charts


def twin_of(app, name: str) -> str | None:
    """Write the dark twin of the page image `name` beside it; its file name, or `None` for a picture that is none of ours."""
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
    """One rule of style a figure: the same image element shows the twin while the theme is dark."""
    rules = []
    for address in dict.fromkeys(
        re.findall(r'<img[^>]* src="([^"]+\.png)"', context.get("body", ""))
    ):
        folder, _, name = address.rpartition("/")
        if twin := twin_of(app, name):
            rules.append(
                f'html[data-theme="dark"] img[src="{address}"]{{content:url("{folder}/{twin}")}}'
            )
    if rules:
        context["body"] = f"<style>{''.join(rules)}</style>\n" + context["body"]


def setup(app):
    app.connect("html-page-context", add_twins, priority=950)
