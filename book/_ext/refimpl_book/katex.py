"""Mathematics set at build time: KaTeX, run in QuickJS, writes HTML and MathML into the page.

A reader's browser runs no script for it. The script comes from the package `sphinxcontrib-katex`;
its fonts and style sheet, of the same version, lie in `book/_static/katex`.
"""

from __future__ import annotations

import html
import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import quickjs
from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)
MACROS = {r"\R": r"\mathbb{R}"}
rendered: dict[str, str] = {}  # kept on disk between builds


@cache
def engine():
    context = quickjs.Context()
    context.eval((files("sphinxcontrib") / "katex.min.js").read_text(encoding="utf-8") + ";0")
    # JSON.stringify also flattens the rope that string concatenation leaves, which the wrapper
    # can't read.
    context.eval(
        "function render(tex, options) {"
        " return JSON.stringify(katex.renderToString(tex, JSON.parse(options)));"
        "};0"
    )
    return context.get("render")


def render(tex: str, display: bool = False) -> str:
    """HTML with MathML for screen readers. Raises `ValueError` with KaTeX's message."""
    options = json.dumps(
        {"displayMode": display, "throwOnError": True, "strict": "ignore", "macros": MACROS}
    )
    key = f"{options}{tex}"
    if key not in rendered:
        try:
            rendered[key] = json.loads(engine()(tex, options))
        except quickjs.JSException as error:
            raise ValueError(str(error).split("\n")[0].removeprefix("ParseError: ")) from None
    return rendered[key]


def checked(tex: str, display: bool, node: nodes.Node | None) -> str:
    """The formula, or a build warning and the bare TeX."""
    try:
        return render(tex, display)
    except ValueError as error:
        logger.warning("%s in %r", error, tex, location=node)
        return f"<code>{html.escape(tex)}</code>"


def inline(self, node):
    self.body.append(f'<span class="math">{checked(node.astext(), False, node)}</span>')
    raise nodes.SkipNode


def block(self, node):
    tex = node.astext()
    if not tex.strip().startswith(r"\begin{") and (r"\\" in tex or "&" in tex):
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    anchor = f' id="{node["ids"][0]}"' if node.get("ids") else ""
    self.body.append(f'<div class="math"{anchor}>{checked(tex, True, node)}{number}</div>\n')
    raise nodes.SkipNode


def store(app) -> Path:
    return Path(app.doctreedir) / "katex.json"


def load(app):
    if store(app).exists():
        rendered.update(json.loads(store(app).read_text(encoding="utf-8")))


def save(app, exception):
    if not exception:
        store(app).write_text(json.dumps(rendered), encoding="utf-8")


def setup(app):
    app.add_html_math_renderer("katex", (inline, None), (block, None))
    app.add_css_file("katex/katex.min.css")
    app.connect("builder-inited", load)
    app.connect("build-finished", save)
