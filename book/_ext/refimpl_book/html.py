"""Small pieces of HTML, escaped once and alike everywhere."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from functools import cache

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from refimpl_book import katex, sources

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


def breakable(name: str) -> str:
    """A dotted name that breaks after its dots and nowhere else."""
    return escape(name).replace(".", ".<wbr>")


def code_link(path: str, text: str) -> str:
    """Code that stands in the repository, linked where the repository has an address."""
    code = f"<code>{escape(text)}</code>"
    return code if sources.placeholder() else link(sources.source_link(path), code)


def nowrap(text: str) -> str:
    return f'<span class="nowrap">{escape(text)}</span>'


def span(values: Sequence[str]) -> str:
    """`first` or `first – last` of a sorted sequence."""
    return nowrap(" – ".join(dict.fromkeys((values[0], values[-1]))))


def note(text: str) -> str:
    """A quiet line for what is not there yet."""
    return f'<p class="not-yet">{text}</p>\n'


def dark_rules(light: str, *dark: str) -> str:
    """A rule of style by which the picture `light` shows its twin while the theme is dark."""
    rules = [
        f'html[data-theme="dark"] img[src="{light}"]{{content:url("{twin}")}}' for twin in dark
    ]
    return f"<style>{''.join(rules)}</style>" if rules else ""


# -- tables


class Cell:
    """A table cell: shown HTML, and the value it sorts by."""

    def __init__(self, shown: str, value: float | str | None = None):
        self.shown = shown
        self.value = value


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
    """A table with a caption and headers of columns and rows.

    On a phone each row becomes a card (custom.css), so roles are said explicitly; a table whose
    columns are mostly numbers stays one and scrolls beside its first column (pages.css). head:
    plain texts; rows: HTML or `Cell`, the first of each is the row's header; numeric: right-aligned
    columns; wide: columns with sentences.
    """
    kinds = dict.fromkeys(numeric, "num")
    for i in wide:
        kinds[i] = f"{kinds[i]} wide" if i in kinds else "wide"
    attributes = [f' class="{kinds[i]}"' if i in kinds else "" for i in range(len(head))]

    def cell(i: int, content: str | Cell) -> str:
        content = content if isinstance(content, Cell) else Cell(content)
        attribute = attributes[i]
        if content.value is not None:
            attribute += f' data-value="{escape(str(content.value))}"'
        if i == 0:
            return f'<th scope="row" role="rowheader"{attribute}>{content.shown}</th>'
        label = f' data-label="{escape(head[i])}"'
        return f'<td role="cell"{label}{attribute}>{content.shown}</td>'

    columns = [
        f'<th scope="col" role="columnheader"{attribute}>{escape(name)}</th>'
        for name, attribute in zip(head, attributes, strict=True)
    ]
    lines = []
    for row in rows:
        cells = [cell(i, content) for i, content in enumerate(row)]
        lines.append(f'<tr role="row">{"".join(cells)}</tr>')
    name = f' id="{id}"' if id else ""
    kind = "numbers" if 2 * len(numeric) >= len(head) else "cards"
    body = "\n".join(lines)
    return (
        f'<div class="table-box"><table class="table {kind} {classes}"{name} role="table">'
        f"<caption>{caption}</caption>\n"
        f'<thead role="rowgroup"><tr role="row">{"".join(columns)}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{body}\n</tbody></table></div>\n'
    )


# -- verdicts and numbers

VERDICTS = {
    "supports": ("✓", "good"),
    "contradicts": ("✗", "bad"),
    "inconclusive": ("≈", "open"),
    "not tested here": ("–", "open"),
}
KINDS = {  # of claims, as a reader is told
    "identity": "exact",
    "miniature": "by a small experiment",
    "out_of_reach": "out of reach here",
}


def verdict(name: str) -> str:
    """A verdict as sign and word, never by colour alone."""
    sign, tone = VERDICTS.get(name, ("–", "open"))
    return (
        f'<span class="verdict {tone}"><span aria-hidden="true">{sign}</span> {escape(name)}</span>'
    )


def sign(name: str) -> str:
    """A verdict as its sign alone, in its colour; words stand beside it or in a label."""
    shown, tone = VERDICTS.get(name, ("–", "open"))
    return f'<span class="sign {tone}" aria-hidden="true">{shown}</span>'


def legend() -> str:
    """What the signs mean."""
    return ", ".join(f"{sign(name)} {name}" for name in VERDICTS)


def mark(good: bool, text: str) -> str:
    """Right or wrong, as sign and word."""
    sign, tone = ("✓", "good") if good else ("✗", "bad")
    return f'<span class="verdict {tone}"><span aria-hidden="true">{sign}</span> {text}</span>'


def format_number(x: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits, without an exponent for everyday sizes."""
    if x is None:
        return "–"
    if x == 0 or 1e-3 <= abs(x) < 1e5:
        text = f"{x:.{digits}g}"
        return f"{float(text):g}" if "e" in text else text
    mantissa, exponent = f"{x:.{max(digits - 2, 0)}e}".split("e")
    return f"{mantissa}×10<sup>{int(exponent)}</sup>".replace("-", "−")


def format_count(x: float | None) -> str:
    """Parameters and operations in thousands, millions or thousand millions."""
    if x is None:
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            scaled = x / size
            return f"{scaled:.3g} {unit}" if scaled < 1000 else f"{scaled:.0f} {unit}"
    return f"{x:g}"
