"""The first page, and the pages of the parts: all papers, written and planned."""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.util.docutils import SphinxRole

from refimpl.viz import charts, drawing
from refimpl_book import html, sources
from refimpl_book.pages import Page, venue

THUMBNAIL = (440, 248)
THUMBNAIL_BYTES = 18_000  # 31 of them stay under the page's 600 KB of figures


def written_papers() -> list:
    return [paper for paper in sources.papers() if sources.written(paper.stem)]


# -- numbers in the text


def counts() -> dict[str, int]:
    """What the book has, by the names that `{count}` takes."""
    papers = sources.papers()
    written = written_papers()
    rows = [row for paper in written for row in sources.verdicts(paper.stem)]
    cases = sources.exactness().cases
    return {
        "papers": len(papers),
        "chapters": len(written),
        "planned": len(papers) - len(written),
        "models": len(sources.models()),
        "cases": len(cases),
        "cases equal": sum(case["passed"] for case in cases),
        "claims": len(rows),
        "claims tested": sum(row.verdict != "not tested here" for row in rows),
        "claims contradicted": sum(row.verdict == "contradicts" for row in rows),
        "claims planned": sum(len(p.claims) for p in papers if p not in written),
        "differences": len(sources.differences()),
        "differences shown": sum(bool(d.test) for _, d in sources.differences()),
        "kernels": len(sources.operations()),
    }


class Count(SphinxRole):
    """``{count}`chapters` ``: a number that the book counts itself."""

    def run(self):
        found = counts()
        if self.text not in found:
            message = f"unknown count {self.text!r}; there are {', '.join(found)}"
            return [], [self.inliner.reporter.error(message, line=self.lineno)]
        for file in sources.dependencies():
            self.env.note_dependency(file)
        number = str(found[self.text])
        return [nodes.inline(number, number)], []


# -- the first page


class Start(Page):
    """The ways in: the first chapter as a story, the same one in Colab, all papers."""

    def make(self):
        written = written_papers()
        if not written:
            return html.note("The first chapters are being written.")
        first = written[0]
        address = f"{self.to(f'notebooks/{first.stem}')}?view=story"
        doors = [f'<a class="door first" href="{html.escape(address)}">Start reading</a>']
        if not sources.placeholder():
            doors.append(f'<a class="door" href="{sources.colab(first.stem)}">Open in Colab</a>')
        doors.append('<a class="door" href="#all-papers">All papers</a>')
        return f'<p class="doors">{"".join(doors)}</p>'


class LivingPicture(Page):
    """The attention explorer of the first chapter that has one."""

    def make(self):
        for paper in written_papers():
            if explorer := sources.chapter(paper.stem).explorer:
                link = self.chapter_link(paper)
                return (
                    f'<div class="living-picture">{explorer}<p class="facts">Where the heads of a'
                    f" small network look from the marked patch. Chapter: {link}.</p></div>"
                )
        return ""


class Gallery(Page):
    """Cards of all written chapters, each with the chapter's picture."""

    def make(self):
        cards = [self.card(paper) for paper in written_papers()]
        if not cards:
            return html.note("The first chapters are being written.")
        return f'<div class="gallery">{"".join(cards)}</div>'

    def card(self, paper) -> str:
        image = ""
        if made := thumbnails(Path(self.env.app.outdir), paper.stem):
            light, *dark = (f"{self.root()}{picture}" for picture in made)
            alt = html.escape(sources.chapter(paper.stem).alt)
            width, height = THUMBNAIL
            image = (
                f'{html.dark_rules(light, *dark)}<img src="{light}" alt="{alt}" loading="lazy"'
                f' width="{width}" height="{height}">'
            )
        place = f"{html.escape(sources.parts()[paper.part])} · {html.escape(venue(paper))}"
        idea = html.inline(paper.idea)
        words = f"{self.chapter_link(paper)}<span>{idea}</span><small>{place}</small>"
        return (
            f'<div class="chapter-card">{image}<div class="chapter-card-text">{words}</div></div>'
        )


def thumbnails(outdir: Path, stem: str) -> list[str]:
    """The chapter's picture for a card, and its twin for the dark theme, among the book's images.

    Returns their addresses from the book's root.
    """
    chapter = sources.chapter(stem)
    target = outdir / "_images" / f"thumbnail-{stem}.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    if chapter.drawings:
        made = drawing.unpack(chapter.drawings)
        text = made.get("narrow", made["wide"])
        target.write_text(text, encoding="utf-8")
        twin = target.with_name(f"thumbnail-{stem}-dark.svg")
        twin.write_text(drawing.dark(text), encoding="utf-8")
        return [f"_images/{target.name}", f"_images/{twin.name}"]
    if not chapter.figure:
        return []
    figure = base64.b64decode(chapter.figure)
    twins = {"": figure, "-dark": charts.dark_twin(figure)}
    return [
        thumbnail(content, target.with_name(f"thumbnail-{stem}{kind}.webp"))
        for kind, content in twins.items()
        if content
    ]


def thumbnail(figure: bytes, target: Path) -> str:
    """Write a small picture, as sharp as `THUMBNAIL_BYTES` allow."""
    picture = Image.open(io.BytesIO(figure)).convert("RGBA")
    for scale, quality in ((2, 75), (1.5, 70), (1.25, 60), (1, 50), (1, 20)):
        picture.thumbnail((scale * THUMBNAIL[0], scale * THUMBNAIL[1]))
        picture.save(target, quality=quality, method=6)
        if target.stat().st_size <= THUMBNAIL_BYTES:
            break
    return f"_images/{target.name}"


class PaperTable(Page):
    """All papers in one compact table: part, year, status, and what became of the claims."""

    def make(self):
        rows = [self.row(paper) for paper in sources.papers()]
        head = ("Paper", "Part", "Venue", "Claims")
        caption = f"All {len(rows)} papers; the signs lead to the ledger. {html.legend()}"
        return html.table(head, rows, caption, classes="papers-table")

    def row(self, paper) -> tuple:
        part = html.link(self.to(f"book/parts/{paper.part}"), sources.parts()[paper.part])
        name = self.chapter_link(paper)
        if sources.written(paper.stem):
            status = strip(paper, self.to("book/ledger"))
        else:
            name = html.link(
                self.to(f"book/parts/{paper.part}", paper.stem), html.escape(paper.name)
            )
            status = f'<span class="planned">planned · {len(paper.claims)} claims to test</span>'
        return (name, part, html.escape(venue(paper)), status)


def strip(paper, ledger: str) -> str:
    """The verdicts of a paper as coloured signs, one link to its rows of the ledger."""
    rows = sources.verdicts(paper.stem)
    signs = "".join(html.sign(row.verdict) for row in rows)
    found = Counter(row.verdict for row in rows)
    words = ", ".join(f"{found[name]} {name}" for name in html.VERDICTS if found[name])
    address = f"{ledger}?paper={paper.stem}"
    return f'<a class="strip" href="{address}" aria-label="{paper.name}: {words}">{signs}</a>'


class Counts(Page):
    """One line of counts."""

    def make(self):
        found = counts()
        facts = (
            (f"{found['chapters']} of {found['papers']}", "papers have their chapter"),
            (f"{found['cases equal']} of {found['cases']}", "reference outputs equal"),
            (f"{found['claims tested']} of {found['claims']}", "claims of these tested"),
            (str(found["models"]), "models can be created"),
        )
        items = [f"<li><strong>{number}</strong> {what}</li>" for number, what in facts]
        return f'<ul class="counts">{"".join(items)}</ul>'


# -- parts


class PaperList(Page):
    """`{paper-list} <part>`: its papers, those without a chapter as planned."""

    required_arguments = 1

    def make(self):
        part = self.arguments[0]
        if part not in sources.parts():
            raise self.error(f"unknown part {part!r}; there are {', '.join(sources.parts())}")
        papers = [paper for paper in sources.papers() if paper.part == part]
        written = [paper for paper in papers if sources.written(paper.stem)]
        line = f"<p><strong>{len(written)} of {len(papers)}</strong> papers have their chapter."
        planned = sum(len(paper.claims) for paper in papers if paper not in written)
        if planned:
            whose = " of the others" if written else ""
            line += f" {planned} claims{whose} wait to be tested."
        items = [self.item(paper) for paper in papers]
        return f'{line}</p><div class="papers">{"".join(items)}</div>'

    def item(self, paper) -> str:
        written = sources.written(paper.stem)
        name = self.chapter_link(paper)
        if not written:
            name += ' <span class="planned">planned</span>'
        facts = [f"<cite>{html.escape(paper.title)}</cite>", html.escape(venue(paper))]
        if paper.url:
            facts.append(html.link(paper.url, f"arXiv:{paper.arxiv}"))
        facts.append(html.link(paper.code, "official code") if paper.code else "no official code")
        state = "written" if written else "planned"
        claims = strip(paper, self.to("book/ledger")) if written else claims_to_test(paper)
        return (
            f'<div class="paper {state}" id="{paper.stem}"><h2>{name}</h2>'
            f"<p>{html.inline(paper.idea)}</p>"
            f'<p class="facts">{" · ".join(facts)}</p>{claims}</div>'
        )


def claims_to_test(paper) -> str:
    """What a planned chapter will test, folded."""
    kinds = Counter(claim.kind for claim in paper.claims)
    words = ", ".join(f"{kinds[kind]} {name}" for kind, name in html.KINDS.items() if kinds[kind])
    items = [
        f"<li>{html.inline(claim.statement)} <small>{html.inline(claim.reported)}</small></li>"
        for claim in paper.claims
    ]
    return (
        f"<details><summary>{len(items)} claims that will be tested ({words})</summary>"
        f"<ol>{''.join(items)}</ol></details>"
    )


def setup(app):
    app.add_role("count", Count())
    app.add_directive("start", Start)
    app.add_directive("living-picture", LivingPicture)
    app.add_directive("gallery", Gallery)
    app.add_directive("paper-table", PaperTable)
    app.add_directive("counts", Counts)
    app.add_directive("paper-list", PaperList)
