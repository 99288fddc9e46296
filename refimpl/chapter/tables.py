"""Tables that a screen reader can read, that fold up on a phone, and that print in a terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

from refimpl.chapter import show

Row = Mapping[str, object]
NUMBER = re.compile(r"[−+-]?[\d., ]+( ?[%×])?|")
WIDEST = 130  # characters of a table that is printed as one


def table(rows: Sequence[Row], caption: str = "") -> None:
    """Show rows as an accessible table.

    rows: column name -> value; the first column names the row. Numbers are shown as they are:
        round them before. `backticks` in a cell become code.
    Raises `ValueError` on no rows or unequal columns.
    """
    if not rows:
        raise ValueError("table: no rows")
    columns = list(rows[0])
    for i, row in enumerate(rows):
        if list(row) != columns:
            raise ValueError(
                f"table: row {i} has the columns {list(row)}, the first row has {columns}"
            )
    bundle = {"text/html": as_html(rows, caption), "text/plain": as_text(rows, caption)}
    show.publish(bundle)


def as_html(rows: Sequence[Row], caption: str) -> str:
    """A table with explicit roles, which keep it one where CSS makes cards of its rows."""
    columns = list(rows[0])
    attributes = {c: ' class="lab-number"' if is_number(rows, c) else "" for c in columns[1:]}
    attributes[columns[0]] = ""
    head = "".join(
        f'<th scope="col" role="columnheader"{attributes[c]}>{cell(c)}</th>' for c in columns
    )
    title = f"<caption>{cell(caption)}</caption>" if caption else ""
    lines = [
        f"<style>\n{style()}</style>",
        f'<table class="lab-table" role="table">{title}',
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>',
        '<tbody role="rowgroup">',
        *(row_html(row, attributes) for row in rows),
        "</tbody></table>",
    ]
    return "\n".join(lines)


def row_html(row: Row, attributes: Mapping[str, str]) -> str:
    first, *rest = row
    cells = [f'<th scope="row" role="rowheader">{cell(row[first])}</th>']
    for column in rest:
        name = f'data-column="{html.escape(column)}"{attributes[column]}'
        cells.append(f'<td role="cell" {name}>{cell(row[column])}</td>')
    return f'<tr role="row">{"".join(cells)}</tr>'


def is_number(rows: Sequence[Row], column: str) -> bool:
    """Whether a column holds numbers (or nothing), which stand at the right."""
    values = [row[column] for row in rows]
    return all(isinstance(v, int | float) or NUMBER.fullmatch(str(v)) for v in values)


def cell(value: object) -> str:
    text = html.escape(str(value), quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return text.replace("\n", "<br>")


@cache
def style() -> str:
    """The style sheet that every table brings along, without its comment."""
    text = (resources.files(__package__) / "table.css").read_text(encoding="utf-8")
    return text.partition("*/\n")[2]


def as_text(rows: Sequence[Row], caption: str) -> str:
    """The table in columns, or one block for each row where it is too wide for a terminal."""
    columns = list(rows[0])
    lines = [columns]
    for row in rows:
        lines.append([str(row[column]).replace("\n", " · ") for column in columns])
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    title = [caption] if caption else []
    if sum(widths) > WIDEST:
        return "\n\n".join(title + [block(columns, line) for line in lines[1:]])
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(title + [aligned(line, widths) for line in lines])


def block(columns: Sequence[str], texts: Sequence[str]) -> str:
    return "\n".join(f"{name}: {text}" for name, text in zip(columns, texts, strict=True))


def aligned(texts: Sequence[str], widths: Sequence[int]) -> str:
    padded = [text.ljust(width) for text, width in zip(texts, widths, strict=True)]
    return "  ".join(padded).rstrip()
