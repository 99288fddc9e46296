"""The notation page as data: terms of the glossary and rows of the tables of symbols."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache

from docutils import nodes

from refimpl_book import ROOT, html

PAGE = "book/notation"
FILE = ROOT / f"{PAGE}.md"


@dataclass(frozen=True)
class Term:
    """A word of the glossary."""

    name: str
    meaning: str  # Markdown

    @property
    def anchor(self) -> str:
        """As Sphinx names it."""
        plain = unicodedata.normalize("NFKD", self.name).encode("ascii", "ignore").decode()
        return "term-" + re.sub(r"[^\w.]+", "-", plain).strip("-._")


@dataclass(frozen=True)
class Symbol:
    """A row of a table of symbols; it may name several."""

    section: str
    row: int  # of its table
    symbols: tuple[str, ...]  # TeX
    meaning: str
    shape: str  # or unit
    code: str

    @property
    def anchor(self) -> str:
        return f"symbol-{nodes.make_id(self.section)}-{self.row}"


@cache
def terms() -> tuple[Term, ...]:
    text = FILE.read_text(encoding="utf-8")
    block = re.search(r"```\{glossary\}\n(.*?)\n```", text, re.S)[1]
    found = re.findall(r"^(\S.*)\n((?:^[ \t]+.*\n?)+)", f"{block}\n", re.M)
    return tuple(
        Term(name.strip(), " ".join(meaning.split()))
        for name, meaning in found
        if not name.startswith(":")
    )


@cache
def symbols() -> tuple[Symbol, ...]:
    """Every row whose first cell holds mathematics, in the page's order."""
    found, section, row = [], "", 0
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section, row = line[3:].strip(), -2  # the head and the rule below it
        elif line.startswith("|"):
            first, *rest = [cell.strip() for cell in line.strip().strip("|").split("|")]
            row += 1
            if row > 0 and "$" in first:
                names = tuple(
                    name for tex in re.findall(r"\$(.+?)\$", first) for name in split(tex)
                )
                meaning, shape, code = (rest + ["", ""])[:3]
                found.append(Symbol(section, row, names, meaning, shape, code))
    return tuple(found)


def split(tex: str) -> list[str]:
    r"""`Q,\ K,\ V` -> its three symbols."""
    return [part.strip() for part in re.split(r",\\ |,\\;|,\s", tex) if part.strip()]


def card_of_term(term: Term) -> str:
    return f"<b>{html.inline(term.name)}</b><p>{html.inline(term.meaning)}</p>"


def card_of_symbol(symbol: Symbol) -> str:
    """Symbol, meaning, shape and the name it has in the code."""
    shown = ", ".join(html.inline(f"${tex}$") for tex in symbol.symbols)
    facts = []
    if symbol.shape:
        facts.append(f"<dt>Shape or unit</dt><dd>{html.inline(symbol.shape)}</dd>")
    if symbol.code:
        facts.append(f"<dt>In code</dt><dd>{html.inline(symbol.code)}</dd>")
    more = f"<dl>{''.join(facts)}</dl>" if facts else ""
    return f"<b>{shown}</b><p>{html.inline(symbol.meaning)}</p>{more}"


def name_rows(app, tree, docname):
    """On the page itself: an anchor for every row of symbols."""
    if docname != PAGE:
        return
    anchors = {(symbol.section, symbol.row): symbol.anchor for symbol in symbols()}
    for section in tree.findall(nodes.section):
        title = section.next_node(nodes.title).astext()
        for table in [child for child in section.children if isinstance(child, nodes.table)]:
            body = next(table.findall(nodes.tbody))
            for i, row in enumerate(body.children, 1):
                if (title, i) in anchors:
                    row["ids"] = [anchors[title, i]]


def setup(app):
    app.connect("doctree-resolved", name_rows)
