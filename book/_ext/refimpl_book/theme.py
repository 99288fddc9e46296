"""What every page gets, and what is taken away from it."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes

from refimpl_book import html, icons, sources

UNWANTED = ("thebe", "mathjax")
REPAIRS = {  # what the theme, docutils and MyST-NB write -> what a screen reader can use
    '<summary aria-label="Toggle hidden content">': "<summary>",
    '<div role="list" class="citation-list">': '<div class="citation-list">',
    ' role="doc-biblioentry"': "",
    "<th></th>": "<td></td>",
}


def configure(app, config):
    config.html_baseurl = sources.published()


def finish_page(app, pagename, templatename, context, doctree):
    """No script that breaks or asks a third party; names and roles that the theme leaves out.

    A chapter gets its line of evidence under the title.
    """
    context["script_files"] = [s for s in context["script_files"] if is_wanted(s)]
    context["css_files"] = [s for s in context["css_files"] if is_wanted(s)]
    if "generate_toctree_html" in context:
        context["generate_toctree_html"] = named_tree(context["generate_toctree_html"], pagename)
    body = context.get("body", "")
    for found, instead in REPAIRS.items():
        body = body.replace(found, instead)
    stem = pagename.removeprefix("notebooks/")
    if stem != pagename and sources.chapter(stem):
        body = body.replace("</h1>", f"</h1>{evidence(stem, context['pathto'])}", 1)
    context["body"] = named_solutions(body)


def is_wanted(file) -> bool:
    """Whether a script or style sheet stays; inline scripts go by what they hold."""
    name = str(getattr(file, "filename", file))
    inline = str(getattr(file, "attributes", {}).get("body", ""))
    return not any(word in name for word in UNWANTED) and "thebe" not in inline


def named_solutions(body: str) -> str:
    """A folded solution says which one it is, instead of `Show code cell content`."""
    closed = '<p class="collapsed admonition-title">Show code cell content</p>'
    opened = '<p class="expanded admonition-title">Hide code cell content</p>'
    first, *rest = body.split(closed)
    named = [first]
    for piece in rest:
        code = html.plain(piece[: piece.find("</pre>")])
        title = closed
        if found := re.search(r"#@title (Solution \d+)", code):
            title = closed.replace("code cell content", found[1])
            piece = piece.replace(opened, opened.replace("code cell content", found[1]), 1)
        named += [title, piece]
    return "".join(named)


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


def evidence(stem: str, pathto) -> str:
    """Certificate, stamp and places of a chapter in one line."""
    items = []
    cases = [case for case in sources.exactness().cases if case["stem"] == stem]
    if cases:
        items.append(certificate(cases, f"{pathto('book/exactness')}#{stem}"))
    if stamp := sources.chapter(stem).stamp:
        version = html.escape(stamp["torch"])
        items.append(f"executed {stamp['date']} in {stamp['seconds']:.0f} s with torch {version}")
    items.append(html.link(pathto(f"book/api/refimpl.papers.{stem}"), "API"))
    items.append(html.link(sources.source_link(f"refimpl/papers/{stem}.py"), "source"))
    items.append(html.link(sources.source_link(f"tests/papers/test_{stem}.py"), "tests"))
    dot = '<span class="dot" aria-hidden="true"> · </span>'
    return f'<p class="evidence">{dot.join(items)}</p>'


def certificate(cases: list[dict], address: str) -> str:
    """How many of a paper's official cases agree, and how closely."""
    good = sum(case["passed"] for case in cases)
    if good < len(cases):
        text, tone, sign = f"{good} of {len(cases)} official cases equal", "bad", "✗"
    else:
        text, tone, sign = f"equal to the official code in {good} case", "good", "✓"
        text += "s" if good > 1 else ""
    worst = max((c["deviation"] for c in cases if c["deviation"] is not None), default=None)
    if worst:
        text += f", largest deviation {html.format_number(worst, 2)}"
    mark = f'<span aria-hidden="true">{sign}</span>'
    return f'<a class="badge-line {tone}" href="{address}">{mark} {text}</a>'


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
    """One page counts as changed in every build.

    Without any, Sphinx would leave a changed style sheet or script behind.
    """
    return [app.config.root_doc]


def setup(app):
    icons.setup(app)
    app.connect("env-get-outdated", always_finish)
    app.connect("config-inited", configure, priority=900)
    app.connect("doctree-read", headless_tables)
    app.connect("doctree-read", evidence_dates)
    app.connect("html-page-context", finish_page, priority=900)
    app.connect("build-finished", front_door)
    app.add_js_file("refimpl.js", loading_method="defer")
