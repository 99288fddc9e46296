"""Show Markdown, tables and source code so that they read well in the book, Colab and GitHub."""

from __future__ import annotations

import ast
import functools
import html
import inspect
import re
import textwrap
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

from refimpl.lab.train import in_notebook

PACKAGE = Path(__file__).parents[1]


def publish(data: dict[str, str], metadata: dict | None = None) -> None:
    """Display a bundle of representations (MIME type → text); outside a notebook, print its `text/plain`."""
    if in_notebook():
        from IPython.display import display

        display(data, raw=True, metadata=metadata or {})
    else:
        print(data["text/plain"])


def say(markdown: str) -> None:
    """Show Markdown that the chapter computed, `chapter.say(f"… {ratio:.2f} …")`, so that the sentence can't disagree with the number."""
    text = inspect.cleandoc(markdown)
    publish({"text/markdown": text, "text/plain": text})


def show_source(*objects, docstring: bool = True) -> None:
    """Show the source of functions, classes, methods or modules as the running package has it, with file and line.

    `docstring=False` leaves the docstrings out. Raises `ValueError` for an object that has no Python source (a built-in, an instance).
    """
    parts = []
    for obj in objects:
        where, source = read_source(obj)
        if not docstring:
            source = without_docstrings(source)
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`{3,}", source)), default=0))
        parts.append(f"{where}\n\n{fence}python\n{source.strip()}\n{fence}")
    text = "\n\n".join(parts)
    publish({"text/markdown": text, "text/plain": text})


def read_source(obj) -> tuple[str, str]:
    """Where an object is defined (`refimpl/layers.py, line 40`) and its source, dedented."""
    if isinstance(obj, property):
        obj = obj.fget
    if isinstance(obj, functools.partial):
        obj = obj.func
    obj = inspect.unwrap(obj) if callable(obj) and not isinstance(obj, types.ModuleType) else obj
    try:
        lines, first = inspect.getsourcelines(obj)
        file = Path(inspect.getsourcefile(obj) or "")
    except (TypeError, OSError) as error:
        kind = type(obj).__name__
        raise ValueError(
            f"show_source: {obj!r} ({kind}) has no Python source; give a function, class, method or module"
        ) from error
    name = file.relative_to(PACKAGE.parent).as_posix() if file.is_relative_to(PACKAGE) else None
    if name is None:
        module = getattr(obj, "__module__", "") or ""
        name = "this notebook" if module == "__main__" else module or file.name
        return f"Source: {name}", textwrap.dedent("".join(lines))
    return f"Source: {name}, line {max(first, 1)}", textwrap.dedent("".join(lines))


def without_docstrings(source: str) -> str:
    """The same source with every docstring's lines taken out (a body of a docstring alone keeps `...`)."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if (
            not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            or ast.get_docstring(node) is None
        ):
            continue
        first = node.body[0]
        for i in range(first.lineno - 1, first.end_lineno):
            lines[i] = None
        if len(node.body) == 1 and not isinstance(node, ast.Module):
            lines[first.lineno - 1] = " " * first.col_offset + "..."
        elif first.end_lineno < len(lines) and not (lines[first.end_lineno] or "x").strip():
            lines[first.end_lineno] = None  # the blank line that set it off
    return "\n".join(line for line in lines if line is not None)


def table(
    rows: Sequence[Mapping[str, object]], caption: str = "", metadata: dict | None = None
) -> None:
    """Show rows (column name → value; the first column names the row) as an accessible table that folds up on a phone.

    Numbers are shown as they are: round them before. `backticks` in a cell become code. Raises `ValueError` on no rows or unequal columns.
    """
    if not rows:
        raise ValueError("table: no rows")
    columns = list(rows[0])
    for i, row in enumerate(rows):
        if list(row) != columns:
            raise ValueError(
                f"table: row {i} has the columns {list(row)}, the first row has {columns}"
            )
    publish(
        {"text/html": table_html(rows, caption), "text/plain": table_text(rows, caption)}, metadata
    )


# Below 40em every row becomes a card whose cells carry their column's name; explicit roles keep it a table for a screen reader.
# The first rule takes away the light card that the book's theme puts behind HTML outputs in the dark.
TABLE_STYLE = """<style>
html[data-theme] .bd-content div.cell_output .text_html:has(.lab-table){background:none!important;color:inherit!important;padding:0!important}
table.lab-table{width:100%;border-collapse:collapse;text-align:left;color:inherit}
table.lab-table caption{caption-side:top;text-align:left;padding:.25em 0;color:inherit!important;font-weight:600}
table.lab-table :is(th,td){text-align:left!important;vertical-align:top;padding:.4em .75em .4em 0;border:0;border-bottom:1px solid #8886;
white-space:normal!important;overflow-wrap:break-word;color:inherit;background:none}
table.lab-table code{overflow-wrap:anywhere;white-space:normal}
table.lab-table tbody th{font-weight:400}
table.lab-table :is(th,td).lab-number{text-align:right!important;white-space:nowrap!important;font-variant-numeric:tabular-nums}
@media (max-width:40em){table.lab-table:is(table),table.lab-table :is(tbody,tr,tbody th,td,caption){display:block}
table.lab-table thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table.lab-table tbody tr{padding:.6em 0;border-bottom:1px solid #8888}
table.lab-table tbody :is(th,td):is(th,td,.lab-number){border:0!important;padding:.1em 0;text-align:left!important;white-space:normal!important}
table.lab-table tbody th{font-weight:600}
table.lab-table td::before{content:attr(data-column) ": ";opacity:.8}}
</style>"""


def table_html(rows: Sequence[Mapping[str, object]], caption: str) -> str:
    columns = list(rows[0])
    number = {
        c
        for c in columns[1:]
        if all(
            isinstance(r[c], int | float) or re.fullmatch(r"[−+-]?[\d., ]+( ?[%×])?|", str(r[c]))
            for r in rows
        )
    }
    attributes = {c: ' class="lab-number"' if c in number else "" for c in columns}
    head = "".join(
        f'<th scope="col" role="columnheader"{attributes[c]}>{cell_html(c)}</th>' for c in columns
    )
    body = []
    for row in rows:
        first, *rest = columns
        cells = f'<th scope="row" role="rowheader">{cell_html(row[first])}</th>'
        cells += "".join(
            f'<td role="cell" data-column="{html.escape(c)}"{attributes[c]}>{cell_html(row[c])}</td>'
            for c in rest
        )
        body.append(f'<tr role="row">{cells}</tr>')
    title = f"<caption>{cell_html(caption)}</caption>" if caption else ""
    return (
        f'{TABLE_STYLE}\n<table class="lab-table" role="table">{title}\n<thead role="rowgroup"><tr role="row">{head}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{chr(10).join(body)}\n</tbody></table>'
    )


def cell_html(value: object) -> str:
    text = html.escape(str(value), quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return text.replace("\n", "<br>")


def table_text(rows: Sequence[Mapping[str, object]], caption: str) -> str:
    columns = list(rows[0])
    cells = [[str(c) for c in columns]] + [
        [str(r[c]).replace("\n", " · ") for c in columns] for r in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    if sum(widths) > 130:  # too wide for a terminal: one block a row
        blocks = [
            "\n".join(f"{name}: {value}" for name, value in zip(columns, line, strict=True))
            for line in cells[1:]
        ]
        return "\n\n".join(([caption] if caption else []) + blocks)
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(([caption] if caption else []) + lines)
