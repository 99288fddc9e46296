"""Small pieces of HTML, escaped once and alike everywhere."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from functools import cache

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from refimpl_book import katex

escape = html.escape


@cache
def parser() -> MarkdownIt:
    """CommonMark with tables and `$mathematics$`; raw HTML in the text stays text."""
    md = MarkdownIt("commonmark", {"html": False}).enable("table")
    md.use(
        dollarmath_plugin,
        renderer=lambda tex, options: katex.checked(tex, options["display_mode"], None),
    )
    return md


def markdown(text: str) -> str:
    """Block-level Markdown."""
    return parser().render(text)


def inline(text: str) -> str:
    """Markdown of one paragraph, without the paragraph's tags."""
    return parser().renderInline(str(text)).strip()


def plain(text: str) -> str:
    """The text of a piece of HTML, for a title or an attribute."""
    return html.unescape(re.sub(r"<[^>]+>", "", text)).strip()


def link(url: str, text: str) -> str:
    return f'<a href="{escape(url)}">{text}</a>'


def nowrap(text: str) -> str:
    return f'<span class="nowrap">{escape(text)}</span>'


class Cell:
    """A table cell: shown HTML, and the value it sorts by."""

    def __init__(self, shown: str, value: float | str | None = None):
        self.shown, self.value = shown, value


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    caption: str,
    *,
    classes: str = "",
    wide: Sequence[int] = (),
    numeric: Sequence[int] = (),
    id: str = "",
) -> str:
    """A table with a caption, column and row headers; on a phone each row becomes a card (custom.css), so roles are said explicitly.

    head: plain texts; rows: HTML or `Cell`, the first of each is the row's header. `numeric`: columns of right-aligned figures.
    """

    def kind(i: int) -> str:
        names = [name for name, columns in (("num", numeric), ("wide", wide)) if i in columns]
        return f' class="{" ".join(names)}"' if names else ""

    def cell(i: int, content: str | Cell) -> str:
        content = content if isinstance(content, Cell) else Cell(content)
        value = "" if content.value is None else f' data-value="{escape(str(content.value))}"'
        if i == 0:
            return f'<th scope="row" role="rowheader"{kind(i)}{value}>{content.shown}</th>'
        return (
            f'<td role="cell" data-label="{escape(head[i])}"{kind(i)}{value}>{content.shown}</td>'
        )

    columns = "".join(
        f'<th scope="col" role="columnheader"{kind(i)}>{escape(name)}</th>'
        for i, name in enumerate(head)
    )
    body = "\n".join(
        f'<tr role="row">{"".join(cell(i, c) for i, c in enumerate(row))}</tr>' for row in rows
    )
    name = f' id="{id}"' if id else ""
    return (
        f'<div class="table-box"><table class="table cards {classes}"{name} role="table"><caption>{caption}</caption>\n'
        f'<thead role="rowgroup"><tr role="row">{columns}</tr></thead>\n<tbody role="rowgroup">\n{body}\n</tbody></table></div>\n'
    )


def note(text: str) -> str:
    """A quiet line for what is not there yet."""
    return f'<p class="not-yet">{text}</p>\n'


VERDICTS = {
    "supports": ("✓", "good"),
    "contradicts": ("✗", "bad"),
    "inconclusive": ("≈", "open"),
    "not tested here": ("–", "open"),
}


def verdict(name: str) -> str:
    """A verdict as sign and word, never by colour alone."""
    sign, tone = VERDICTS.get(name, ("–", "open"))
    return (
        f'<span class="verdict {tone}"><span aria-hidden="true">{sign}</span> {escape(name)}</span>'
    )


def figure(x: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits and no exponent for everyday sizes."""
    if x is None:
        return "–"
    if x == 0 or 1e-3 <= abs(x) < 1e5:
        text = f"{x:.{digits}g}"
        return f"{float(text):g}" if "e" in text else text
    mantissa, exponent = f"{x:.{max(digits - 2, 0)}e}".split("e")
    return f"{mantissa}×10<sup>{int(exponent)}</sup>".replace("-", "−")


def count(x: float | None) -> str:
    """Parameters and operations in thousands, millions or thousand millions."""
    if x is None:
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g} {unit}" if x / size < 1000 else f"{x / size:.0f} {unit}"
    return f"{x:g}"
