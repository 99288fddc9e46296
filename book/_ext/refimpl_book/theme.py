"""What every page gets, and what is taken away from it."""

from __future__ import annotations

import hashlib
import posixpath
import re
import shutil
from pathlib import Path
from urllib.parse import quote

from bs4 import BeautifulSoup, Tag
from docutils import nodes

from refimpl_book import ROOT, html, icons, modules, sources

UNWANTED = ("thebe", "mathjax")
SIGNATURE = re.compile(r'<dt class="sig.*?</dt>', re.S)
WRITTEN_TABLE = re.compile(r'<table class="table">.*?</table>', re.S)
REPAIRS = {  # what the theme, docutils and MyST-NB write -> what a screen reader can use
    '<summary aria-label="Toggle hidden content">': "<summary>",
    '<div role="list" class="citation-list">': '<div class="citation-list">',
    ' role="doc-biblioentry"': "",
    "<th></th>": "<td></td>",
    'class="headerlink"': 'class="headerlink" tabindex="-1"',  # unseen; the contents lead there too
}


def configure(app, config):
    config.html_baseurl = sources.published()
    if sources.placeholder():  # no button that would lead to nobody's repository
        options = dict(config.html_theme_options)
        options |= {"use_repository_button": False, "use_issues_button": False}
        options |= {"use_source_button": False, "launch_buttons": {}}
        config.html_theme_options = options
    options = dict(config.html_theme_options)
    options["article_header_start"] = ["toggle-primary-sidebar.html", "header-home.html"]
    options["footer_content_items"] = ["footer-book.html"]
    config.html_theme_options = options
    own = sorted((ROOT / "book" / "references").glob("*.bib"))  # of one chapter each
    config.bibtex_bibfiles += [str(path.relative_to(ROOT)) for path in own]


def finish_page(app, pagename, templatename, context, doctree):
    """No script that breaks or asks a third party; names and roles that the theme leaves out."""
    context["script_files"] = [s for s in context["script_files"] if is_wanted(s)]
    context["css_files"] = [s for s in context["css_files"] if is_wanted(s)]
    if "generate_toctree_html" in context:
        generate = context["generate_toctree_html"]
        context["generate_toctree_html"] = named_tree(generate, pagename, context["pathto"])
    body = context.get("body", "")
    for found, instead in REPAIRS.items():
        body = body.replace(found, instead)
    body = SIGNATURE.sub(with_lines, body)
    context["body"] = WRITTEN_TABLE.sub(with_labels, body)
    context["citation"] = sources.citation()
    if not sources.placeholder():
        context["problem_address"] = problem_address(pagename)
    if context.get("display_toc"):  # its place is kept free before it arrives
        context["metatags"] = f"{context.get('metatags', '')}<style>:root{{--toc: 12rem}}</style>"


def with_lines(signature: re.Match) -> str:
    """The lines of a long signature as lines: Sphinx writes a list of meanings without terms."""
    text = re.sub(r"<(dl|dd)>", r'<span class="sig-\1">', signature[0])
    return re.sub(r"</(dl|dd)>", "</span>", text)


def with_labels(table: re.Match) -> str:
    """A table that stands in a text, ready to fold on a phone: every cell knows its column.

    Roles are said, because cells that are no longer laid out as a table lose theirs.
    """
    tree = BeautifulSoup(table[0], "html.parser")
    heads = [head.get_text(" ", strip=True) for head in tree.select("thead th")]
    if len(heads) < 2:
        return table[0]
    tree.table["class"] = [*tree.table["class"], "cards", "written"]
    roles = {"table": "table", "thead": "rowgroup", "tbody": "rowgroup", "tr": "row"}
    roles |= {"th": "columnheader", "td": "cell"}
    for tag in tree.find_all(list(roles)):
        tag["role"] = roles[tag.name]
    for head in tree.select("tbody th"):
        head["role"] = "rowheader"
    for row in tree.select("tbody tr"):
        for head, cell in zip(heads, row.find_all(["th", "td"]), strict=False):
            cell["data-label"] = head
            if not cell.get_text(strip=True) and not cell.img:
                cell["class"] = [*cell.get("class", []), "nothing"]
    return str(tree)


def problem_address(pagename: str) -> str:
    """Where a reader says that something on a page is wrong."""
    return f"{sources.repository()}/issues/new?title={quote(f'{pagename}: ')}"


def is_wanted(file) -> bool:
    """Whether a script or style sheet stays; inline scripts go by what they hold."""
    name = str(getattr(file, "filename", file))
    inline = str(getattr(file, "attributes", {}).get("body", ""))
    return not any(word in name for word in UNWANTED) and "thebe" not in inline


def named_tree(generate, pagename: str, pathto):
    """The sidebar: arrows say what they fold, chapters go by short names, planned papers stand in.

    generate: the theme's function that writes the tree; pathto: from this page to another.
    """
    names = {paper.stem: paper.name for paper in sources.papers()}

    def generated(*args, **kwargs):
        tree = BeautifulSoup(str(generate(*args, **kwargs)), "html.parser")
        for item in tree.select("li.toctree-l1"):
            name_part(tree, item)
        return str(tree)

    def name_part(tree: BeautifulSoup, item: Tag) -> None:
        link = item.find("a")
        docname = docname_of(link["href"])
        for page in item.select("li.toctree-l2 > a"):
            stem = docname_of(page["href"]).removeprefix("notebooks/")
            if stem in names:
                page.string = names[stem]
            elif stem.startswith("book/api/refimpl"):
                name, depth = modules.short_name(stem.removeprefix("book/api/"))
                page.clear()
                page.append(BeautifulSoup(html.breakable(name), "html.parser"))
                page["class"] = [*page["class"], "module", f"below-{depth}"]
        key = docname.removeprefix("book/parts/")
        if key in sources.parts():
            add_planned(tree, item, key)
        if item.summary:
            item.summary["aria-label"] = f"Pages of {link.get_text()}"

    def docname_of(address: str) -> str:
        """`../book/ledger.html` and `#`, from this page, to `book/ledger` and this page."""
        if address.startswith("#"):
            return pagename
        return posixpath.normpath(posixpath.join(posixpath.dirname(pagename), address[:-5]))

    def add_planned(tree: BeautifulSoup, item: Tag, key: str) -> None:
        planned = [p for p in sources.papers() if p.part == key and not sources.written(p.stem)]
        if not planned:
            return
        if not item.ul:
            item["class"] = [*item["class"], "has-children"]
            opened = "open" if pagename == f"book/parts/{key}" else ""
            item.append(BeautifulSoup(FOLD.format(opened=opened), "html.parser"))
        for paper in planned:
            entry = tree.new_tag("li", attrs={"class": "toctree-l2 planned"})
            address = f"{pathto(f'book/parts/{key}').removesuffix('#')}#{paper.stem}"
            link = tree.new_tag("a", attrs={"class": "reference internal", "href": address})
            link.string = paper.name
            entry.append(link)
            item.ul.append(entry)

    return generated


FOLD = (
    '<details {opened}><summary><span class="toctree-toggle" role="presentation">'
    '<i class="fa-solid fa-chevron-down"></i></span></summary><ul></ul></details>'
)


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


def put_licence(app):
    """The licence as a file of the book, which the footer links to."""
    folder = Path(app.doctreedir) / "static"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE.txt")


def light_without_script(app, exception):
    """The theme names a page's colours by script; one that is read without has the light ones."""
    if exception or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        lit = re.sub(r'(<html[^>]*) data-theme="auto"', r'\1 data-theme="light"', text, count=1)
        if lit != text:
            page.write_text(lit, encoding="utf-8")


def say_placeholder(app, exception):
    """Tell the console what a book without an address leaves out."""
    if not exception and sources.placeholder():
        print(
            "The repository's address is the template's OWNER/refimpl: Colab, source and issue"
            " buttons are left out. Set it with: make address REPO=owner/name"
        )


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
    app.connect("builder-inited", put_licence)
    app.connect("build-finished", front_door)
    app.connect("build-finished", light_without_script)
    app.connect("build-finished", say_placeholder)
    app.add_js_file("pages.js", loading_method="defer")
    app.add_css_file("pages.css", priority=900)
    app.add_css_file("site.css", priority=910)
