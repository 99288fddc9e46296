"""The base of every generated page, and the pages about the chapters. Nothing is typed by hand."""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from PIL import Image
from sphinx.util.docutils import SphinxDirective

from refimpl.viz import charts
from refimpl_book import html, modules, sources

THUMBNAIL = (440, 248)
THUMBNAIL_BYTES = 18_000  # 31 of them stay under the page's 600 KB of figures


class Page(SphinxDirective):
    """A directive that returns HTML and rebuilds when what it read has changed."""

    has_content = True

    def run(self):
        for file in sources.dependencies():
            self.env.note_dependency(file)
        made = self.make()
        return made if isinstance(made, list) else [raw(made)]

    def make(self) -> str | list[nodes.Node]:
        raise NotImplementedError

    def to(self, docname: str, anchor: str = "") -> str:
        """Relative address of another page of the book."""
        address = self.env.app.builder.get_relative_uri(self.env.docname, docname)
        return f"{address}#{anchor}" if anchor else address

    def root(self) -> str:
        """Relative address of the book's root."""
        return "../" * self.env.docname.count("/")

    def chapter_link(self, paper) -> str:
        """The paper's name, linked where its chapter is written."""
        name = html.escape(paper.name)
        if not sources.written(paper.stem):
            return name
        return html.link(self.to(f"notebooks/{paper.stem}"), name)

    def parse(self, text: str) -> list[nodes.Node]:
        """MyST text as nodes, directives included."""
        container = nodes.container()
        lines = StringList(text.splitlines(), source=self.env.docname)
        self.state.nested_parse(lines, 0, container)
        return container.children

    def section(self, id: str, title: str, *content: nodes.Node) -> nodes.section:
        """A section with its heading and an anchor."""
        heading = nodes.title(title, title)
        names = [nodes.fully_normalize_name(title)]
        return nodes.section("", heading, *content, ids=[id], names=names)


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def venue(paper) -> str:
    """`CVPR 2023`; the year once where the venue's name holds it."""
    if str(paper.year) in paper.venue:
        return paper.venue
    return f"{paper.venue} {paper.year}".strip()


# -- chapters


class PaperList(Page):
    """`{paper-list} <part>`: its papers; those without a chapter by name and idea alone."""

    required_arguments = 1

    def make(self):
        part = self.arguments[0]
        if part not in sources.parts():
            raise self.error(f"unknown part {part!r}; there are {', '.join(sources.parts())}")
        items = [self.item(paper) for paper in sources.papers() if paper.part == part]
        return f'<div class="papers">{"".join(items)}</div>'

    def item(self, paper) -> str:
        idea = html.inline(paper.idea)
        if not sources.written(paper.stem):
            name = html.escape(paper.name)
            return f'<div class="paper planned"><h2>{name}</h2><p>{idea}</p></div>'
        facts = [html.escape(paper.title), html.escape(venue(paper))]
        if paper.url:
            facts.append(html.link(paper.url, f"arXiv:{paper.arxiv}"))
        return (
            f'<div class="paper"><h2>{self.chapter_link(paper)}</h2><p>{idea}</p>'
            f'<p class="facts">{" · ".join(facts)}</p>'
            f'<p class="facts">{verdict_counts(paper.stem)}</p></div>'
        )


def verdict_counts(stem: str) -> str:
    """How many claims of a paper came out how."""
    counts = Counter(row.verdict for row in sources.verdicts(stem))
    shown = [f"{html.verdict(name)} {counts[name]}" for name in html.VERDICTS if counts[name]]
    return " ".join(shown)


class Gallery(Page):
    """Cards of all written chapters; the picture is the chapter's first figure."""

    def make(self):
        written = [paper for paper in sources.papers() if sources.written(paper.stem)]
        if not written:
            return html.note("The first chapters are being written.")
        return f'<div class="gallery">{"".join(map(self.card, written))}</div>'

    def card(self, paper) -> str:
        image = ""
        if pictures := thumbnails(Path(self.env.app.outdir), paper.stem):
            light, *dark = (f"{self.root()}{picture}" for picture in pictures)
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
    """The chapter's first figure, small, and its twin for the dark theme, among the book's images.

    Returns their addresses from the book's root.
    """
    if not sources.chapter(stem).figure:
        return []
    figure = base64.b64decode(sources.chapter(stem).figure)
    made = {"": figure, "-dark": charts.dark_twin(figure)}
    return [
        thumbnail(content, outdir / "_images" / f"thumbnail-{stem}{kind}.webp")
        for kind, content in made.items()
        if content
    ]


def thumbnail(figure: bytes, target: Path) -> str:
    """Write a small picture, as sharp as `THUMBNAIL_BYTES` allow."""
    target.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(figure)).convert("RGBA")
    for scale, quality in ((2, 75), (1.5, 70), (1.25, 60), (1, 50), (1, 20)):
        picture.thumbnail((scale * THUMBNAIL[0], scale * THUMBNAIL[1]))
        picture.save(target, quality=quality, method=6)
        if target.stat().st_size <= THUMBNAIL_BYTES:
            break
    return f"_images/{target.name}"


class Summary(Page):
    """One line of counts."""

    def make(self):
        written = [paper.stem for paper in sources.papers() if sources.written(paper.stem)]
        rows = [row for stem in written for row in sources.verdicts(stem)]
        facts = {
            f"of {len(sources.papers())} papers have their chapter": len(written),
            "models can be created": len(sources.models()),
            "official cases agree": sum(case["passed"] for case in sources.exactness().cases),
            "claims tested": sum(row.verdict != "not tested here" for row in rows),
        }
        items = [f"<li><strong>{n}</strong> {what}</li>" for what, n in facts.items() if n]
        return f'<ul class="counts">{"".join(items)}</ul>'


# -- the package


class ApiIndex(Page):
    """Every module with the first sentence of its docstring, room by room."""

    def make(self):
        return [self.room(room, names) for room, names in modules.rooms().items()]

    def room(self, room: str, names: list[str]) -> nodes.section:
        rows = []
        for name in names:
            link = html.link(self.to(f"book/api/{name}"), f"<code>{name}</code>")
            rows.append((link, html.inline(modules.summary(name))))
        title = modules.ROOMS.get(room, room.capitalize())
        made = html.table(("Module", "What it holds"), rows, f"Modules: {title}", wide=(1,))
        return self.section(room or "front-door", title, raw(made))


def setup(app):
    app.add_directive("paper-list", PaperList)
    app.add_directive("gallery", Gallery)
    app.add_directive("counts", Summary)
    app.add_directive("api-index", ApiIndex)
