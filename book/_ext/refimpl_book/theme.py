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
    """No script that breaks or asks a third party; names and roles that the theme leaves out; a chapter's line of evidence under its title."""
    wanted = [
        s
        for s in context["script_files"]
        if not any(u in str(getattr(s, "filename", s)) for u in UNWANTED)
    ]
    context["script_files"] = [
        s for s in wanted if "thebe" not in str(getattr(s, "attributes", {}).get("body", ""))
    ]
    context["css_files"] = [
        c for c in context["css_files"] if "thebe" not in str(getattr(c, "filename", c))
    ]
    if "generate_toctree_html" in context:
        context["generate_toctree_html"] = named_tree(context["generate_toctree_html"], pagename)
    body = context.get("body", "")
    for found, instead in REPAIRS.items():
        body = body.replace(found, instead)
    stem = pagename.removeprefix("notebooks/")
    if stem != pagename and sources.chapter(stem):
        body = re.sub(r"</h1>", lambda m: m[0] + evidence(stem, context["pathto"]), body, count=1)
    context["body"] = named_solutions(body)


def named_solutions(body: str) -> str:
    """A folded solution says which one it is, instead of `Show code cell content`."""
    shown, hidden = (
        '<p class="collapsed admonition-title">Show code cell content</p>',
        '<p class="expanded admonition-title">Hide code cell content</p>',
    )
    first, *rest = body.split(shown)
    named = [first]
    for piece in rest:
        title = re.search(r"#@title (Solution \d+)", html.plain(piece[: piece.find("</pre>")]))
        if title:
            piece = piece.replace(
                hidden, hidden.replace("Hide code cell content", f"Hide {title[1]}"), 1
            )
        named += [
            shown.replace("Show code cell content", f"Show {title[1]}") if title else shown,
            piece,
        ]
    return "".join(named)


def named_tree(generate, pagename: str):
    """The sidebar's folding arrows say what they fold, and chapters go by their papers' short names."""

    def short(match: re.Match) -> str:
        stem = match[3] or pagename.removeprefix("notebooks/")
        name = next((html.escape(p.name) for p in sources.papers() if p.stem == stem), None)
        return f"{match[1]}{name}{match[5]}" if name else match[0]

    def generated(*args, **kwargs):
        tree = str(generate(*args, **kwargs))
        tree = re.sub(
            r'(<a class="[^"]*reference internal" href="([^"]*notebooks/(\w+)\.html|#)"[^>]*>)((?:(?!</a>).)*)(</a>)',
            short,
            tree,
            flags=re.S,
        )
        return re.sub(
            r'(<a class="[^"]*reference internal"[^>]*>)((?:(?!</a>).)*)(</a><details[^>]*><summary)>',
            lambda m: f'{m[1]}{m[2]}{m[3]} aria-label="Pages of {html.escape(html.plain(m[2]))}">',
            tree,
            flags=re.S,
        )

    return generated


def evidence(stem: str, pathto) -> str:
    """Certificate, stamp and places of a chapter in one line."""
    items = []
    cases = [c for c in sources.exactness()[1] if c["stem"] == stem]
    if cases:
        good = sum(c["passed"] for c in cases)
        worst = max((c["deviation"] for c in cases if c["deviation"] is not None), default=None)
        text = (
            f"{good} of {len(cases)} official cases equal"
            if good < len(cases)
            else f"equal to the official code in {good} case{'s' if good > 1 else ''}"
        )
        text += f", largest deviation {html.figure(worst, 2)}" if worst else ""
        tone = "good" if good == len(cases) else "bad"
        sign = "✓" if tone == "good" else "✗"
        items.append(
            f'<a class="badge-line {tone}" href="{pathto("book/exactness")}#{stem}"><span aria-hidden="true">{sign}</span> {text}</a>'
        )
    stamp = sources.chapter(stem).stamp
    if stamp:
        items.append(
            f"executed {stamp['date']} in {stamp['seconds']:.0f} s with torch {html.escape(stamp['torch'])}"
        )
    items.append(html.link(pathto(f"book/api/refimpl.papers.{stem}"), "API"))
    items.append(html.link(sources.source_link(f"refimpl/papers/{stem}.py"), "source"))
    items.append(html.link(sources.source_link(f"tests/papers/test_{stem}.py"), "tests"))
    return (
        '<p class="evidence">'
        + '<span class="dot" aria-hidden="true"> · </span>'.join(items)
        + "</p>"
    )


def evidence_dates(app, doctree):
    """A chapter is written again when the exactness of its paper was measured again."""
    if app.env.docname.startswith("notebooks/"):
        app.env.note_dependency(str(sources.RESULTS / "exactness.json"))


def headless_tables(app, doctree):
    """A Markdown table whose head is empty (the paper card) has none: its first column names the rows."""
    for table in doctree.findall(nodes.table):
        head = next(table.findall(nodes.thead), None)
        if head is not None and not head.astext().strip():
            head.parent.remove(head)
            next(table.findall(nodes.colspec))["stub"] = 1
            table["classes"].append("card-table")


FRONT = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="_static/favicon.svg"><link rel="canonical" href="{home}"><meta http-equiv="refresh" content="0; url={home}"></head>
<body><main><h1>{title}</h1><p><a href="{home}">To the book</a></p></main></body>
</html>
"""


def front_door(app, exception):
    """`index.html` leads to the first page."""
    if not exception and app.builder.format == "html":
        text = FRONT.format(
            title=html.escape(app.config.html_title), home=f"{app.config.root_doc}.html"
        )
        (Path(app.outdir) / "index.html").write_text(text, encoding="utf-8")
        (
            Path(app.outdir) / ".nojekyll"
        ).touch()  # Pages would leave out folders that begin with an underscore


def always_finish(app, env, added, changed, removed) -> list[str]:
    """One page counts as changed in every build: without any, Sphinx would leave a changed style sheet or script behind."""
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
