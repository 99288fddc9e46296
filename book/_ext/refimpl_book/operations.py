"""The page of kernels: every operation with its forms, who verified which, and what it costs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from docutils import nodes

from refimpl_book import html, sources
from refimpl_book.pages import Page, raw
from refimpl_book.speed import machine_line, milliseconds

FORMS = {  # the title of a tab -> the function that it starts with
    "Loops": "naive",
    "NumPy": "with_numpy",
    "PyTorch": "with_torch",
    "Triton": "with_triton",
}
VERIFIED = {  # how a form was verified, as the results name it
    "numpy": "NumPy",
    "torch": "PyTorch",
    "triton_interpreter": "Triton, interpreted",
    "triton_gpu": "Triton, compiled on a GPU",
}
TIMED = VERIFIED | {"triton": "Triton"}


class Kernels(Page):
    """Every kernel: what it computes, its forms, their agreement, and the machine's limit."""

    def make(self):
        return [self.kernel(op) for op in sources.operations()]

    def kernel(self, op: str) -> nodes.section:
        folder = sources.KERNELS / op
        place = f"refimpl/kernels/{op}"
        facts = [
            html.link(self.to(f"book/api/refimpl.kernels.{op}"), "API"),
            html.link(sources.source_link(place), "source"),
            html.link(sources.source_link(f"tests/kernels/test_{op}.py"), "tests"),
        ]
        users = [self.chapter_link(paper) for paper in sources.papers() if op in paper.kernels]
        if users:
            facts.insert(0, f"used by {', '.join(users)}")
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
        intro = f'<p class="facts">{" · ".join(facts)}</p>{html.markdown(docstring)}'
        tabs = [
            f"```{{tab-item}} {title}\n:sync: {title}\n\n~~~python\n{code}\n~~~\n```"
            for title, code in listings(folder).items()
        ]
        forms = self.parse("\n".join(["````{tab-set}", *tabs, "````"]))
        tables = raw(provenance(op)), raw(times(op))
        return self.section(op, kernel_title(op), raw(intro), *forms, *tables)


def kernel_title(op: str) -> str:
    """`lvq_inner_product` -> `LVQ inner product`: a word without a vowel is an abbreviation."""
    words = [w if re.search("[aeiouy]", w) else w.upper() for w in op.split("_")]
    return " ".join([words[0][0].upper() + words[0][1:], *words[1:]])


def listings(folder: Path) -> dict[str, str]:
    """The source of each form, followed by the functions of the same file that it calls."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        functions = {
            node.name: node
            for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        for title, name in FORMS.items():
            if name in functions:
                found[title] = "\n\n\n".join(sources_of(called(name, functions), text))
    return {title: found[title] for title in FORMS if title in found}


def called(name: str, functions: dict[str, ast.stmt]) -> list[ast.stmt]:
    """A function, then everything of its file that it reaches, in the file's order."""
    seen = [name]
    for current in seen:  # grows while it is walked
        for node in ast.walk(functions[current]):
            if isinstance(node, ast.Name) and node.id in functions and node.id not in seen:
                seen.append(node.id)
    helpers = sorted((functions[other] for other in seen[1:]), key=lambda node: node.lineno)
    return [functions[name], *helpers]


def sources_of(definitions: list[ast.stmt], text: str) -> list[str]:
    """The lines of each definition, decorators included."""
    lines = text.splitlines()
    pieces = []
    for node in definitions:
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        pieces.append("\n".join(lines[first - 1 : node.end_lineno]))
    return pieces


def measured(op: str) -> list[dict]:
    """The record of this kernel on every machine that measured it."""
    return [k for results in sources.measured() for k in results.kernels if k["op"] == op]


def provenance(op: str) -> str:
    """Which form was verified where, in units of the composed form's own rounding error.

    The GPU's row is never inferred from the interpreter's.
    """
    rows = []
    for form, label in VERIFIED.items():
        verified = [k for k in measured(op) if form in k.get("agreement", {})]
        for k in verified:
            error = html.format_number(k["agreement"][form], 2)
            name = html.escape(k["machine"]["name"])
            rows.append((label, error, name, html.nowrap(k["date"])))
        if not verified:
            rows.append((label, "–", "not verified yet", "–"))
    caption = (
        "Distance to the loops in float64, as a multiple of the composed PyTorch form’s own"
        " rounding error"
    )
    return html.table(("Form", "Error", "Verified on", "Date"), rows, caption, numeric=(1,))


def times(op: str) -> str:
    """What a call costs, and how far each form is from what the machine could do."""
    rows, costs = [], []
    for k in measured(op):
        for form, seconds in k["seconds"].items():
            row = (
                TIMED.get(form, html.escape(form)),
                milliseconds(seconds),
                f"{milliseconds(k['low'][form])} – {milliseconds(k['high'][form])}",
                milliseconds(k["limit_seconds"]),
                f"{100 * k['limit_seconds'] / seconds:.2g} %",
                html.escape(machine_line(k["machine"])),
            )
            rows.append(row)
        costs.append(cost(k))
    if not rows:
        return html.note("Not timed yet: run <code>make bench</code>.")
    caption = (
        "Time against the machine’s limit, the larger of FLOPs over its rate and bytes over its"
        f" bandwidth. {'; '.join(dict.fromkeys(costs))}"
    )
    head = ("Form", "Time", "Quartiles", "Limit", "Share of the limit", "Machine")
    return html.table(head, rows, caption, numeric=(1, 2, 3, 4))


def cost(record: dict) -> str:
    """Shapes of the timed call, its operations and bytes."""
    shapes = [
        f"<code>{html.escape(name)}</code> ({', '.join(map(str, shape))})"
        for name, shape in record["shapes"].items()
    ]
    flops, traffic = record["flops"], record["bytes"]
    return (
        f"{', '.join(shapes)}: {html.format_count(flops)}FLOP, {html.format_count(traffic)}B,"
        f" {flops / traffic:.3g} FLOP per byte"
    )


def setup(app):
    app.add_directive("kernels", Kernels)
