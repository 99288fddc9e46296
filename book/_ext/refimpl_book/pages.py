"""The base of every generated page, and the index of the reference. Nothing is typed by hand."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from refimpl_book import html, modules, sources


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


# -- the package


class ApiIndex(Page):
    """Every module with the first sentence of its docstring, room by room."""

    def make(self):
        return [self.room(room, names) for room, names in modules.rooms().items()]

    def room(self, room: str, names: list[str]) -> nodes.section:
        rows = []
        for name in names:
            link = html.link(self.to(f"book/api/{name}"), f"<code>{html.breakable(name)}</code>")
            rows.append((link, html.inline(modules.summary(name))))
        title = modules.ROOMS.get(room, room.capitalize())
        made = html.table(("Module", "What it holds"), rows, f"Modules: {title}", wide=(1,))
        return self.section(room or "front-door", title, raw(made))


def setup(app):
    app.add_directive("api-index", ApiIndex)
