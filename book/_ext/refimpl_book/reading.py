"""A chapter's page: what it is about before any code, the set-up in one line, story or full text.

The notebook stays as it is. What stands before its first heading (the paper card, the three set-up
cells) becomes the head of the page: picture, summary, facts, and the switches for reading. A cell
tagged `chapter-picture` gives the picture, one tagged `chapter-summary` the summary; without them
the first figure and the paper's one-line idea stand there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from docutils import nodes

from refimpl_book import cells, html, links, sources
from refimpl_book.cells import raw

WORDS_PER_MINUTE = 220
SECONDS_PER_FIGURE = 12
LINES_PER_MINUTE = 40  # of code
ALT_MOST = 250


def stem_of(docname: str) -> str | None:
    """The stem of a chapter's page, `None` for every other page."""
    stem = docname.removeprefix("notebooks/")
    return stem if stem != docname and sources.chapter(stem) else None


# -- events


def before_outputs(app, tree):
    """While outputs are still bundles: which cells are folded."""
    if stem_of(app.env.docname):
        cells.fold(tree)


def arrange(app, tree, docname):
    """The page of a chapter, from the tree of its notebook."""
    stem = stem_of(docname)
    if not stem:
        return
    cells.tidy_outputs(tree)
    cells.mark_listings(tree)
    cells.say_columns(tree)
    cells.number_figures(tree)
    chapter = next(tree.findall(nodes.section))
    place = Place(app, docname, stem)
    links.link_claims(stem, chapter, place.to)
    head = make_head(place, chapter)
    links.link_chapter(stem, chapter, place.to)
    cells.mark_runs(chapter)
    title = chapter.index(next(chapter.findall(nodes.title)))
    split_title(chapter[title])
    for node in reversed(head):
        chapter.insert(title + 1, node)


def set_columns(app, pagename, templatename, context, doctree):
    context["body"] = cells.as_style(context.get("body", ""))


@dataclass
class Place:
    """A chapter's page, and the way from it to others."""

    app: object
    docname: str
    stem: str

    @property
    def paper(self):
        return next(paper for paper in sources.papers() if paper.stem == self.stem)

    def to(self, docname: str, anchor: str = "") -> str:
        address = self.app.builder.get_relative_uri(self.docname, docname)
        return f"{address}#{anchor}" if anchor else address


# -- title


def split_title(title: nodes.title) -> None:
    """`Name: what it does` becomes a large name and a line under it."""
    name, colon, rest = title.astext().partition(": ")
    if colon and len(title.children) == 1:
        title.clear()
        title += nodes.inline(name, name, classes=["chapter-name"])
        title += nodes.inline(": ", ": ", classes=["visually-hidden"])
        title += nodes.inline(rest, rest, classes=["chapter-line"])


# -- head


def make_head(place: Place, chapter: nodes.section) -> list[nodes.Node]:
    """Everything between title and first heading, in the order in which it is read."""
    before = preamble(chapter)
    card, card_node = find_card(before)
    setup = [node for node in before if cells.is_cell(node)]
    prose = [node for node in before if node not in setup and node is not card_node]
    for node in before:
        chapter.remove(node)
    made = [raw('<div class="chapter-head">')]
    made += lead(place, chapter, setup)
    made += facts(place, card)
    made += [raw(f"{switches(*reading_minutes(chapter))}</div>"), *prose]
    if setup:
        words = f"{len(setup)} cells: install, parameters, imports"
        made.append(raw(f'<details class="set-up"><summary>Set-up · {words}</summary>'))
        made += [*setup, raw("</details>")]
    return made


def preamble(chapter: nodes.section) -> list[nodes.Node]:
    found = []
    for node in chapter.children:
        if isinstance(node, nodes.section):
            break
        if not isinstance(node, nodes.title):
            found.append(node)
    return found


def find_card(before: Iterable[nodes.Node]) -> tuple[dict[str, list[nodes.Node]], nodes.Node]:
    """The paper card (label -> what stands beside it) and its node: a table, or lines in bold."""
    for node in before:
        rows = card_of_table(node) if isinstance(node, nodes.table) else card_of_lines(node)
        if len(rows) >= 2:
            return rows, node
    return {}, None


def card_of_table(table: nodes.table) -> dict[str, list[nodes.Node]]:
    rows = {}
    for row in table.findall(nodes.row):
        label, *rest = row.children
        rows[label.astext()] = [node for entry in rest for node in flat(entry)]
    return rows


def flat(entry: nodes.entry) -> list[nodes.Node]:
    return [node for paragraph in entry.children for node in paragraph.children]


def card_of_lines(paragraph: nodes.Node) -> dict[str, list[nodes.Node]]:
    rows: dict[str, list[nodes.Node]] = {}
    if not isinstance(paragraph, nodes.paragraph):
        return rows
    label = None
    for node in paragraph.children:
        if isinstance(node, nodes.raw):
            label = None
        elif isinstance(node, nodes.strong) and label is None:
            label = node.astext()
            rows[label] = []
        elif label is not None:
            rows[label].append(node)
    return rows


def lead(place: Place, chapter: nodes.section, setup: list) -> list[nodes.Node]:
    """Picture and summary side by side."""
    picture = chapter_picture(chapter)
    made = [raw(f'<div class="chapter-lead{"" if picture else " without-picture"}">')]
    if picture is not None:
        image = nodes.image("", **picture.attributes)
        image["alt"] = f"The chapter’s picture: {picture.get('alt', '')}"[:ALT_MOST]
        image["classes"] = ["chapter-picture"]
        target = f"#figure-{picture['figure']}"
        opening = f'<a class="chapter-picture-link" href="{target}">'
        made += [raw(opening), image, raw("</a>")]
    made.append(raw('<div class="chapter-summary">'))
    made += summary(place, chapter)
    made.append(raw("</div></div>"))
    return made


def chapter_picture(chapter: nodes.section) -> nodes.image | None:
    """The figure of the cell tagged `chapter-picture`, else the first one."""
    pictures = [image for image in chapter.findall(nodes.image) if "figure" in image]
    for cell in cells.cells(chapter):
        if "chapter-picture" in cells.tags(cell):
            pictures = [*cell.findall(nodes.image), *pictures]
            break
    return next((image for image in pictures if "figure" in image), None)


def summary(place: Place, chapter: nodes.section) -> list[nodes.Node]:
    for cell in cells.cells(chapter):
        output = cells.part(cell, "output")
        if "chapter-summary" in cells.tags(cell) and output is not None:
            return [node.deepcopy() for node in output.findall(nodes.paragraph)]
    return [raw(f"<p>{html.inline(place.paper.idea)}</p>")]


# -- facts


def facts(place: Place, card: dict[str, list[nodes.Node]]) -> list[nodes.Node]:
    """The facts box: from the catalogue, the card, the last run and the reference outputs."""
    paper = place.paper
    title = f"<cite>{html.escape(paper.title)}</cite>"
    rows: dict[str, list[nodes.Node]] = {
        "Paper": [raw(f"{title}, {html.escape(paper.authors)}")],
        "Venue": [raw(venue(paper))],
        "Official code": card.get("Official code") or [raw(official_code(paper))],
        "You need": card.get("You need", []),
        "Time": [raw(time_to_run(place.stem))] if sources.chapter(place.stem).stamp else [],
        "Certificate": [raw(certificate(place))],
        "In this package": [raw(in_package(place))],
        "Open": [raw(" ".join(doors(place.stem)))],
    }
    if not rows["Time"]:
        rows["Time"] = card.get("Time to run", [])
    made = [raw('<dl class="facts-box">')]
    for label, content in rows.items():
        if content and any(node.astext().strip() for node in content):
            kind = label.lower().replace(" ", "-")
            made.append(raw(f'<div class="fact-{kind}"><dt>{label}</dt><dd>'))
            made += [nodes.inline("", "", *content), raw("</dd></div>")]
    return [*made, raw("</dl>")]


def venue(paper) -> str:
    year = "" if str(paper.year) in paper.venue else f" {paper.year}"
    text = html.escape(f"{paper.venue}{year}".strip())
    if paper.url:
        text += f" · {html.link(paper.url, f'arXiv:{paper.arxiv}')}"
    return text


def official_code(paper) -> str:
    if not paper.code:
        return "none published"
    name = re.sub(r"^https://(www\.)?(github\.com/)?", "", paper.code)
    licence = f" ({html.escape(paper.licence)})" if paper.licence else ""
    commit = f", read at <code>{html.escape(paper.commit[:7])}</code>" if paper.commit else ""
    return f"{html.link(paper.code, html.escape(name))}{licence}{commit}"


def time_to_run(stem: str) -> str:
    stamp = sources.chapter(stem).stamp
    threads = stamp.get("machine", {}).get("threads")
    on = f" on {threads} CPU thread{'s' if threads != 1 else ''}" if threads else ""
    when = f"{html.escape(stamp['date'])} with torch {html.escape(stamp['torch'].split('+')[0])}"
    return f"{stamp['seconds']:.0f} s{on}, executed {when}"


def certificate(place: Place) -> str:
    """How many reference outputs agree, as a link to them."""
    cases = [case for case in sources.exactness().cases if case["stem"] == place.stem]
    if not cases:
        return ""
    good = sum(case["passed"] for case in cases)
    worst = max((c["deviation"] for c in cases if c["deviation"] is not None), default=None)
    sign, tone = ("✓", "good") if good == len(cases) else ("✗", "bad")
    count = str(good) if good == len(cases) else f"{good} of {len(cases)}"
    text = f"{count} reference outputs equal"
    if worst:
        text += f", largest deviation {html.format_number(worst, 2)}"
    inside = f'<span aria-hidden="true">{sign}</span> {text}'
    address = place.to("book/exactness", place.stem)
    return f'<a class="badge-line {tone}" href="{address}">{inside}</a>'


def in_package(place: Place) -> str:
    stem = place.stem
    module = html.link(
        place.to(f"book/api/refimpl.papers.{stem}"), f"<code>refimpl.papers.{stem}</code>"
    )
    if sources.placeholder():
        return module
    code = html.link(sources.source_link(f"refimpl/papers/{stem}.py"), "source")
    tests = html.link(sources.source_link(f"tests/papers/test_{stem}.py"), "tests")
    return f"{module} · {code} · {tests}"


def doors(stem: str) -> list[str]:
    """Where else the chapter can be opened."""
    download = f"../_sources/notebooks/{stem}.ipynb"
    found = [f'<a class="door" href="{download}" download>Download</a>']
    if not sources.placeholder():
        found.insert(0, f'<a class="door" href="{sources.colab(stem)}">Open in Colab</a>')
    return found


# -- reading


def reading_minutes(chapter: nodes.section) -> tuple[int, int]:
    """Minutes for the story and for everything, rounded up."""
    figures = len([image for image in chapter.findall(nodes.image) if "figure" in image])
    words, lines = 0, 0
    for paragraph in chapter.findall(lambda n: isinstance(n, nodes.paragraph | nodes.list_item)):
        if isinstance(paragraph, nodes.paragraph):
            words += len(paragraph.astext().split())
    for block in chapter.findall(nodes.literal_block):
        lines += block.astext().count("\n") + 1
    story = words / WORDS_PER_MINUTE + figures * SECONDS_PER_FIGURE / 60
    return max(1, round(story)), max(1, round(story + lines / LINES_PER_MINUTE))


def switches(story: int, full: int) -> str:
    """Story or full text, and long lines wrapped or not; shown only where a script can act."""
    return (
        '<div class="reading" role="group" aria-label="How to read this chapter">'
        '<button type="button" data-view="story" aria-pressed="false">Story'
        f" <small>{story} min</small></button>"
        '<button type="button" data-view="full" aria-pressed="true">With all code'
        f" <small>{full} min</small></button>"
        '<button type="button" data-wrap aria-pressed="false">Wrap long lines</button></div>'
    )


# Before anything is painted: a script is there, and what the reader chose last time.
CHOICES = """(() => {
  const root = document.documentElement, given = new URLSearchParams(location.search);
  const kept = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
  root.classList.add("js");
  root.dataset.view = (given.get("view") ?? kept("view")) === "story" ? "story" : "full";
  root.dataset.wrap = kept("wrap") === "on" ? "on" : "off";
})()"""


def setup(app):
    app.add_js_file(None, body=CHOICES, priority=100)
    app.add_js_file("reading.js", loading_method="defer")
    app.add_css_file("reading.css", priority=900)
    app.connect("doctree-read", before_outputs)
    app.connect("doctree-resolved", arrange)
    app.connect("html-page-context", set_columns)
