"""Links inside a chapter's text: other papers, pages and sections, claims, terms and symbols.

A term or symbol is linked where a chapter uses it first; hovering, focusing or touching the link
opens a card with its meaning (reading.js), from data that stand at the page's end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from docutils import nodes

from refimpl_book import cells, html, notation, sources
from refimpl_book.cells import raw

NOT_INSIDE = (
    nodes.reference,
    nodes.title,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.raw,
)
SPECIAL_PAGES = {  # what chapters call a page -> its document
    r"[Aa]ttention atlas": "book/attention_atlas",
    r"[Aa]rtifact atlas": "book/artifact_atlas",
    r"(?:the book’s |the )?ledger(?: of claims)?": "book/ledger",
    r"exactness (?:page|table)": "book/exactness",
    r"speed (?:page|table)": "book/speed",
    r"kernels page": "book/kernels",
    r"register of differences": "book/differences",
    r"notation page": "book/notation",
}
HOME_OF_SYMBOLS = {  # part -> sections of the notation page, the nearest first
    "state_spaces": ("State spaces",),
    "bits": ("Numbers, bits and search", "Networks and attention"),
    "search": ("Numbers, bits and search", "Networks and attention"),
    "beyond": ("Numbers, bits and search",),
    "inside": ("Networks and attention", "Position and artifacts"),
}
EVERYWHERE = ("Measuring",)
SYMBOLS_IN = "the mathematics"  # elsewhere, exercises say, letters may stand for something else


@dataclass
class Linker:
    """Finds what a chapter's text names, and remembers what was linked already."""

    stem: str
    to: Callable[..., str]  # document, anchor -> relative address
    headings: dict[str, str]  # text -> anchor
    figures: int
    cards: dict[str, str] = field(default_factory=dict)
    terms: dict[str, notation.Term] = field(default_factory=dict)  # not used yet, by key
    symbols: dict[str, notation.Symbol] = field(default_factory=dict)  # by TeX
    papers: dict[str, str] = field(default_factory=dict)  # name -> stem
    seen: set[str] = field(default_factory=set)  # papers and pages of this section

    def __post_init__(self):
        self.terms = {term.name.lower(): term for term in notation.terms()}
        paper = next(p for p in sources.papers() if p.stem == self.stem)
        homes = (*HOME_OF_SYMBOLS.get(paper.part, ("Networks and attention",)), *EVERYWHERE)
        others = {p.name for p in sources.papers()} - {paper.name}
        for symbol in sorted(notation.symbols(), key=lambda s: paper.name not in s.meaning):
            elsewhere = any(f"({name})" in symbol.meaning for name in others)
            if paper.name in symbol.meaning or (symbol.section in homes and not elsewhere):
                for tex in symbol.symbols:
                    self.symbols.setdefault(key_of(tex), symbol)
        self.papers = {
            p.name: p.stem for p in sources.papers() if p is not paper and sources.written(p.stem)
        }
        self.pattern = re.compile("|".join(self.alternatives()))

    def alternatives(self) -> Iterator[str]:
        names = sorted(self.papers, key=len, reverse=True)
        if names:
            yield rf"(?P<paper>\b(?:{'|'.join(map(re.escape, names))})\b)"
        yield rf"(?P<page>\b(?:{'|'.join(SPECIAL_PAGES)})\b)"
        if self.figures:
            yield r"(?P<figure>\b[Ff]igure (?P<number>\d+)\b)"
        words = sorted(self.terms, key=len, reverse=True)
        spelt = "|".join(map(spelling, words))
        yield rf"(?P<term>(?<![\w-])(?:{spelt})(?![\w-]))"

    def new_section(self) -> None:
        self.seen.clear()

    # -- text

    def linked(self, text: str) -> list[nodes.Node] | None:
        """A text with links in it, `None` where there is nothing to link."""
        made, end = [], 0
        for match in self.pattern.finditer(text):
            link = self.link(match)
            if link:
                made += [nodes.Text(text[end : match.start()]), raw(link)]
                end = match.end()
        return [*made, nodes.Text(text[end:])] if made else None

    def link(self, match: re.Match) -> str | None:
        shown = html.escape(match[0])
        if match.groupdict().get("paper"):
            stem = self.papers[match["paper"]]
            return self.once(f"paper {stem}", html.link(self.to(f"notebooks/{stem}"), shown))
        if match["page"]:
            page = next(p for name, p in SPECIAL_PAGES.items() if re.fullmatch(name, match[0]))
            return self.once(page, html.link(self.to(page), shown))
        if match.groupdict().get("figure"):
            number = int(match["number"])
            return html.link(f"#figure-{number}", shown) if number <= self.figures else None
        return self.term(match["term"], shown)

    def once(self, key: str, link: str) -> str | None:
        if key in self.seen:
            return None
        self.seen.add(key)
        return link

    def term(self, found: str, shown: str) -> str | None:
        term = self.terms.pop(singular(found.lower(), self.terms), None)
        if term is None:
            return None
        return self.card(term.anchor, notation.card_of_term(term), shown)

    def card(self, anchor: str, content: str, shown: str) -> str:
        self.cards[anchor] = content
        address = self.to(notation.PAGE, anchor)
        return f'<a class="term" href="{address}" data-card="{anchor}">{shown}</a>'

    # -- nodes

    def section_name(self, node: nodes.emphasis) -> bool:
        """Link a section that is named in italics."""
        anchor = self.headings.get(node.astext())
        if anchor:
            inner = nodes.reference("", "", *node.children, refuri=f"#{anchor}", internal=True)
            node.clear()
            node.append(inner)
        return bool(anchor)

    def symbol(self, node: nodes.math) -> None:
        """Link a symbol that stands alone, where the chapter shows it first."""
        key = key_of(node.astext())
        symbol = self.symbols.pop(key, None)
        if symbol is None or isinstance(node.parent, NOT_INSIDE):
            return
        parent, at = node.parent, node.parent.index(node)
        name = html.escape(f"{html.plain(html.inline(symbol.meaning))}: symbol {node.astext()}")
        link = self.card(symbol.anchor, notation.card_of_symbol(symbol), "")
        parent.insert(at + 1, raw("</a>"))
        parent.insert(at, raw(link.replace("></a>", f' aria-label="{name}">')))


def key_of(tex: str) -> str:
    return re.sub(r"\s+|\\[,;!]", "", tex)


def spelling(term: str) -> str:
    """A term as a pattern: its plural, and the American spelling too."""
    text = re.escape(term)
    text = re.sub(r"is(?=ation)", "i[sz]", text)
    text = text.replace("our", "ou?r").replace(r"\ ", r"[\s ]")
    text = re.sub(r"^[a-z]", lambda m: f"[{m[0].upper()}{m[0]}]", text)
    return f"{text}(?:e?s)?" if not term.endswith("s") else text


def singular(found: str, terms) -> str:
    """The glossary's own form of a found word."""
    british = re.sub(r"iz(?=ation)", "is", found)
    for form in (found, british, found[:-1], british[:-1], found[:-2], british[:-2]):
        if form in terms:
            return form
    return found


def texts(tree: nodes.Element) -> Iterator[nodes.Node]:
    """Everything in which something may be linked, in the page's order."""
    for node in list(
        tree.findall(lambda n: isinstance(n, nodes.Text | nodes.math | nodes.emphasis))
    ):
        above = node.parent
        inside = False
        while above is not None and not inside:
            inside = isinstance(above, NOT_INSIDE)
            above = above.parent
        if not inside:
            yield node


def link_chapter(stem: str, chapter: nodes.section, to: Callable[..., str]) -> None:
    """Link the text of a chapter, and append the cards of its terms."""
    sections = [chapter, *chapter.findall(nodes.section)]
    headings = {
        section.next_node(nodes.title).astext(): section["ids"][0] for section in sections[1:]
    }
    figures = sum("figure" in node for node in chapter.findall(nodes.image))
    figures += sum("figure" in node for node in chapter.findall(nodes.raw))
    linker = Linker(stem, to, headings, figures)
    done: set[int] = set()
    place = None
    for node in texts(chapter):
        here = section_of(node)
        if here is not place:
            place = here
            linker.new_section()
        if isinstance(node, nodes.emphasis):
            if linker.section_name(node):
                done.add(id(node.children[0].children[0]))
        elif isinstance(node, nodes.math):
            if SYMBOLS_IN in here["names"]:
                linker.symbol(node)
        elif id(node) not in done and (made := linker.linked(node.astext())):
            node.parent.replace(node, made)
    cards = json.dumps(linker.cards, ensure_ascii=False).replace("</", "<\\/")
    if linker.cards:
        chapter.append(raw(f'<script type="application/json" id="cards">{cards}</script>'))


def section_of(node: nodes.Node) -> nodes.Node:
    """The section of the second level that a node stands in."""
    while node.parent.parent.parent is not None and not isinstance(node.parent, nodes.document):
        if isinstance(node, nodes.section) and isinstance(node.parent.parent, nodes.document):
            return node
        node = node.parent
    return node


# -- claims


def link_claims(stem: str, chapter: nodes.section, to: Callable[..., str]) -> None:
    """Every row of the table of claims gets an anchor, and its number leads to the ledger."""
    for node in list(chapter.findall(nodes.raw)):
        text = node.astext()
        if 'class="lab-table' in text and "<caption>The claims of" in text:

            def row(match: re.Match) -> str:
                numbered = re.search(r">(\d+)\. ", match[0])
                if not numbered:
                    return match[0]
                number = numbered[1]
                address = to("book/ledger", f"{stem}.{number}")
                link = f'<a class="claim" href="{address}" title="In the ledger">{number}.</a>'
                made = match[0].replace("<tr", f'<tr id="claim-{number}"', 1)
                return made.replace(numbered[0], f">{link} ", 1)

            text = cells.ROW.sub(row, text)
            node.clear()
            node.append(nodes.Text(text))
