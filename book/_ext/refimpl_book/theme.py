"""What every page gets, and what is taken away from it."""

from __future__ import annotations

import re

from docutils import nodes
from refimpl_book import html, icons, sources

UNWANTED = ("thebe", "mathjax")


def configure(app, config):
    config.html_baseurl = sources.published()


def finish_page(app, pagename, templatename, context, doctree):
    """No script that breaks or asks a third party; the chapter's line of evidence under its title."""
    wanted = [s for s in context["script_files"] if not any(u in str(getattr(s, "filename", s)) for u in UNWANTED)]
    context["script_files"] = [s for s in wanted if "thebe" not in str(getattr(s, "attributes", {}).get("body", ""))]
    context["css_files"] = [c for c in context["css_files"] if "thebe" not in str(getattr(c, "filename", c))]
    stem = pagename.removeprefix("notebooks/")
    if stem != pagename and sources.chapter(stem):
        context["body"] = re.sub(r"</h1>", lambda m: m[0] + evidence(stem, context["pathto"]), context["body"], count=1)


def evidence(stem: str, pathto) -> str:
    """Certificate, stamp and places of a chapter in one line."""
    items = []
    cases = [c for c in sources.exactness()[1] if c["stem"] == stem]
    if cases:
        good = sum(c["passed"] for c in cases)
        worst = max((c["deviation"] for c in cases if c["deviation"] is not None), default=None)
        text = f"{good} of {len(cases)} official cases equal" if good < len(cases) else f"equal to the official code in {good} case{'s' if good > 1 else ''}"
        text += f", largest deviation {html.figure(worst, 2)}" if worst else ""
        tone = "good" if good == len(cases) else "bad"
        sign = "✓" if tone == "good" else "✗"
        items.append(f'<a class="badge-line {tone}" href="{pathto("book/exactness")}#{stem}"><span aria-hidden="true">{sign}</span> {text}</a>')
    stamp = sources.chapter(stem).stamp
    if stamp:
        items.append(f"executed {stamp['date']} in {stamp['seconds']:.0f} s with torch {html.escape(stamp['torch'])}")
    items.append(html.link(pathto(f"book/api/refimpl.papers.{stem}"), "API"))
    items.append(html.link(sources.source_link(f"refimpl/papers/{stem}.py"), "source"))
    items.append(html.link(sources.source_link(f"tests/papers/test_{stem}.py"), "tests"))
    return '<p class="evidence">' + '<span class="dot" aria-hidden="true"> · </span>'.join(items) + "</p>"


class Figures:
    """Chapters' output images: no path as alternative text, a lazy load, and no grey card behind them (custom.css)."""

    @staticmethod
    def mark(app, doctree, docname):
        for image in doctree.findall(nodes.image):
            image["loading"] = "lazy"


def setup(app):
    icons.setup(app)
    app.connect("config-inited", configure, priority=900)
    app.connect("html-page-context", finish_page, priority=900)
    app.add_js_file("refimpl.js", loading_method="defer")
