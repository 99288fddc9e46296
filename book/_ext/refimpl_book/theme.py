"""What every page gets, and what is taken away from it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from docutils import nodes

from refimpl_book import ROOT, html, icons, sources

UNWANTED = ("thebe", "mathjax")
REPAIRS = {  # what the theme, docutils and MyST-NB write -> what a screen reader can use
    '<summary aria-label="Toggle hidden content">': "<summary>",
    '<div role="list" class="citation-list">': '<div class="citation-list">',
    ' role="doc-biblioentry"': "",
    "<th></th>": "<td></td>",
    'class="headerlink"': 'class="headerlink" tabindex="-1"',  # unseen; the contents lead there too
}


def configure(app, config):
    config.html_baseurl = sources.published()
    own = sorted((ROOT / "book" / "references").glob("*.bib"))  # of one chapter each
    config.bibtex_bibfiles += [str(path.relative_to(ROOT)) for path in own]


def finish_page(app, pagename, templatename, context, doctree):
    """No script that breaks or asks a third party; names and roles that the theme leaves out."""
    context["script_files"] = [s for s in context["script_files"] if is_wanted(s)]
    context["css_files"] = [s for s in context["css_files"] if is_wanted(s)]
    if "generate_toctree_html" in context:
        context["generate_toctree_html"] = named_tree(context["generate_toctree_html"], pagename)
    body = context.get("body", "")
    for found, instead in REPAIRS.items():
        body = body.replace(found, instead)
    context["body"] = body
    if context.get("display_toc"):  # its place is kept free before it arrives
        context["metatags"] = f"{context.get('metatags', '')}<style>:root{{--toc: 12rem}}</style>"


def is_wanted(file) -> bool:
    """Whether a script or style sheet stays; inline scripts go by what they hold."""
    name = str(getattr(file, "filename", file))
    inline = str(getattr(file, "attributes", {}).get("body", ""))
    return not any(word in name for word in UNWANTED) and "thebe" not in inline


# A link of the sidebar: its tag, text and end; and the same before the arrow of a folding part.
CHAPTER_LINK = re.compile(
    r'(?P<tag><a class="[^"]*reference internal" href="(?:[^"]*notebooks/(?P<stem>\w+)\.html|#)"'
    r"[^>]*>)(?P<text>(?:(?!</a>).)*)(?P<end></a>)",
    re.S,
)
FOLDING_LINK = re.compile(
    r'(?P<tag><a class="[^"]*reference internal"[^>]*>)(?P<text>(?:(?!</a>).)*)'
    r"(?P<end></a><details[^>]*><summary)>",
    re.S,
)


def named_tree(generate, pagename: str):
    """The sidebar's arrows say what they fold; chapters go by their papers' short names."""
    names = {paper.stem: html.escape(paper.name) for paper in sources.papers()}

    def short(link: re.Match) -> str:
        stem = link["stem"] or pagename.removeprefix("notebooks/")  # "#" is the page itself
        return f"{link['tag']}{names[stem]}{link['end']}" if stem in names else link[0]

    def labelled(link: re.Match) -> str:
        return f'{link[0][:-1]} aria-label="Pages of {html.escape(html.plain(link["text"]))}">'

    def generated(*args, **kwargs):
        tree = CHAPTER_LINK.sub(short, str(generate(*args, **kwargs)))
        return FOLDING_LINK.sub(labelled, tree)

    return generated


def evidence_dates(app, doctree):
    """A chapter is written again when the exactness of its paper was measured again."""
    if app.env.docname.startswith("notebooks/"):
        stem = app.env.docname.removeprefix("notebooks/")
        app.env.note_dependency(str(sources.RESULTS / "exactness" / f"{stem}.json"))


def headless_tables(app, doctree):
    """A Markdown table with an empty head (the paper card) has none; column one names the rows."""
    for table in doctree.findall(nodes.table):
        head = next(table.findall(nodes.thead), None)
        if head is not None and not head.astext().strip():
            head.parent.remove(head)
            next(table.findall(nodes.colspec))["stub"] = 1
            table["classes"].append("card-table")


FRONT = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="_static/favicon.svg"><link rel="canonical" href="{home}">
<meta http-equiv="refresh" content="0; url={home}"></head>
<body><main><h1>{title}</h1><p><a href="{home}">To the book</a></p></main></body>
</html>
"""


def front_door(app, exception):
    """`index.html` leads to the first page."""
    if exception or app.builder.format != "html":
        return
    title = html.escape(app.config.html_title)
    text = FRONT.format(title=title, home=f"{app.config.root_doc}.html")
    folder = Path(app.outdir)
    (folder / "index.html").write_text(text, encoding="utf-8")
    (folder / ".nojekyll").touch()  # else Pages leaves out folders that begin with an underscore


def always_finish(app, env, added, changed, removed) -> list[str]:
    """One page counts as changed in every build, or a changed style sheet would be left behind.

    All pages do when the extension itself has changed.
    """
    files = [
        *Path(__file__).parent.glob("*.py"),
        *(Path(app.srcdir) / "book/_templates").rglob("*"),
    ]
    digest = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files) if f.is_file()))
    if getattr(env, "refimpl_extension", None) == digest.hexdigest():
        return [app.config.root_doc]
    env.refimpl_extension = digest.hexdigest()
    return list(env.found_docs)


def setup(app):
    icons.setup(app)
    app.connect("env-get-outdated", always_finish)
    app.connect("config-inited", configure, priority=900)
    app.connect("doctree-read", headless_tables)
    app.connect("doctree-read", evidence_dates)
    app.connect("html-page-context", finish_page, priority=900)
    app.connect("build-finished", front_door)
    app.add_js_file("refimpl.js", loading_method="defer")
