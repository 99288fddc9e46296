"""What other pages show of a page: its description, and a card with its title and picture.

Every page has a description. Cards need the book's address, since the networks that show them ask
for a whole one; without it none is drawn. `sphinxext.opengraph` draws and names them.
"""

from __future__ import annotations

import re

from docutils import nodes

from refimpl_book import html, modules, sources

LONGEST = 200
GENERATED = {  # pages that Sphinx makes
    "genindex": "Every class, function and term of the book in alphabetical order.",
    "py-modindex": "Every module of the package in alphabetical order.",
    "search": "Search chapters, planned papers, notation and reference.",
}
CARDS = {
    "image": "book/_static/card.png",
    "image_mini": "book/_static/card.png",
    "line_color": "#1c5d8c",
}


def describe(app, pagename, templatename, context, doctree):
    """The page's description, for search engines and for the card."""
    text = short(description(pagename, doctree) or GENERATED.get(pagename, pagename))
    tag = f'<meta name="description" content="{html.escape(text)}">'
    context["metatags"] = f"{context.get('metatags', '')}{tag}\n"
    if doctree is not None:
        context["meta"] = {**(context.get("meta") or {}), "og:description": html.escape(text)}


def description(pagename: str, doctree: nodes.document | None) -> str:
    """A chapter's idea, a module's summary, else the first paragraph."""
    stem = pagename.removeprefix("notebooks/")
    for paper in sources.papers():
        if paper.stem == stem:
            return plain(paper.idea)
    if pagename.startswith("book/api/refimpl"):
        return plain(modules.summary(pagename.removeprefix("book/api/")))
    paragraphs = doctree.findall(nodes.paragraph) if doctree else ()
    return next((text for p in paragraphs if len(text := " ".join(p.astext().split())) > 30), "")


def plain(markdown: str) -> str:
    return html.plain(html.inline(markdown))


def short(text: str) -> str:
    """At most `LONGEST` characters, whole words."""
    if len(text) <= LONGEST:
        return text
    return f"{re.sub(r'[ ,;:]+[^ ]*$', '', text[: LONGEST - 1])}…"


def setup(app):
    app.connect("html-page-context", describe, priority=400)
    if sources.placeholder():
        return
    app.setup_extension("sphinxext.opengraph")
    app.config.ogp_site_url = sources.published()
    app.config.ogp_site_name = "Where the time goes"
    app.config.ogp_enable_meta_description = False
    app.config.ogp_social_cards = CARDS
