"""The page of kernels: every operation with its forms, who verified which, and what it costs."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes

from refimpl_book import html, notes, sources
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
    """Every kernel: an overview, then what it computes, its forms, and the machine's limit."""

    def make(self):
        operations = sources.operations()
        return [raw(self.overview(operations)), *map(self.kernel, operations)]

    def overview(self, operations: list[str]) -> str:
        """Operation by form: how it was verified, and the best share of the machine's limit."""
        head = (
            "Operation",
            "Used by",
            "NumPy",
            "PyTorch",
            "Triton, interpreted",
            "Triton, compiled offline",
            "Triton, run on a GPU",
            "Best share of the limit",
        )
        rows = [self.line(op) for op in operations]
        caption = (
            f"{len(operations)} operations. A number is the distance to the loops in float64, as"
            " a multiple of the composed PyTorch form’s own rounding error; compiled offline says"
            " that a kernel compiles and fits, not what it computes"
        )
        return html.table(head, rows, caption, classes="kernels-table")

    def line(self, op: str) -> tuple:
        return (
            html.link(f"#{op}", html.escape(kernel_title(op))),
            ", ".join(self.users(op)) or "–",
            agreement(op, "numpy"),
            agreement(op, "torch"),
            agreement(op, "triton_interpreter"),
            compiled(op),
            on_gpu(op),
            best_share(op),
        )

    def users(self, op: str) -> list[str]:
        return [self.chapter_link(paper) for paper in sources.papers() if op in paper.kernels]

    def kernel(self, op: str) -> nodes.section:
        folder = sources.KERNELS / op
        facts = [html.link(self.to(f"book/api/refimpl.kernels.{op}"), "API")]
        if not sources.placeholder():
            facts.append(html.link(sources.source_link(f"refimpl/kernels/{op}"), "source"))
            tests = sources.source_link(f"tests/kernels/test_{op}.py")
            facts.append(html.link(tests, "tests"))
        if users := self.users(op):
            facts.insert(0, f"used by {', '.join(users)}")
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
        said = notes.notes(docstring)
        intro = f'<p class="facts">{" · ".join(facts)}</p>{"".join(said.shown)}'
        if said.folded:
            intro += folded("Shapes, work and traffic", "".join(said.folded))
        tabs = [tab(title, listing) for title, listing in listings(folder).items()]
        forms = self.parse("\n".join(["`````{tab-set}", *tabs, "`````"]))
        tables = folded(
            "How each form was verified, and how fast it is", provenance(op) + times(op)
        )
        return self.section(op, kernel_title(op), raw(intro), *forms, raw(tables))


def folded(title: str, content: str) -> str:
    return f'<details class="folded"><summary>{title}</summary>{content}</details>'


def tab(title: str, listing: Listing) -> str:
    """The heart of a form, and folded what it calls or what calls it."""
    lines = [f"````{{tab-item}} {title}", f":sync: {title}", "", *fenced(listing.heart)]
    if listing.rest:
        names = ", ".join(listing.names)
        lines += ["", f"```{{dropdown}} With it: {names}", "", *fenced(listing.rest), "```"]
    return "\n".join([*lines, "````"])


def fenced(code: str) -> list[str]:
    return ["~~~python", code, "~~~"]


def kernel_title(op: str) -> str:
    """`lvq_inner_product` -> `LVQ inner product`: a word without a vowel is an abbreviation."""
    words = [w if re.search("[aeiouy]", w) else w.upper() for w in op.split("_")]
    return " ".join([words[0][0].upper() + words[0][1:], *words[1:]])


@dataclass(frozen=True)
class Listing:
    """The source of a form: what computes, and the rest that it needs."""

    heart: str
    rest: str
    names: tuple[str, ...]  # of the rest's functions and classes


def listings(folder: Path) -> dict[str, Listing]:
    """The source of each form, its heart apart from the functions of the same file around it."""
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
                found[title] = listing(called(name, functions), text)
    return {title: found[title] for title in FORMS if title in found}


def listing(definitions: list[ast.stmt], text: str) -> Listing:
    """The form's own function is its heart; of a Triton form, the kernels that go forward are."""
    kernels = launched(definitions)
    hearts = kernels or definitions[:1]
    rest = [node for node in definitions if node not in hearts]
    return Listing(
        "\n\n\n".join(sources_of(hearts, text)),
        "\n\n\n".join(sources_of(rest, text)),
        tuple(node.name for node in rest),
    )


def launched(definitions: list[ast.stmt]) -> list[ast.stmt]:
    """Functions of `@triton.jit` that no other of them calls, but those of the way back."""
    jit = [
        node
        for node in definitions
        if any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)
    ]
    inner = {name for node in jit for name in names_in(node) if name != node.name}
    return [node for node in jit if node.name not in inner and node.name != "backward"]


def names_in(node: ast.stmt) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


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


LIMIT = 2  # a form's error may be so many times the composed form's (tests/kernels)


def agreement(op: str, form: str) -> str | html.Cell:
    """Sign and error of a form, the latest measurement; a dash while nothing verified it."""
    found = [k["agreement"][form] for k in measured(op) if form in k.get("agreement", {})]
    if not found:
        return html.Cell(html.sign("not tested here") + " not yet", -1)
    shown = f"{html.format_number(found[-1], 2)} ×"
    return html.Cell(html.mark(found[-1] <= LIMIT, shown), found[-1])


def on_gpu(op: str) -> html.Cell:
    """Sign and error on the latest GPU, and the types in which the form failed there."""
    records = [k for k in measured(op) if k.get("verified") == "gpu"]
    if not records:
        return html.Cell(html.sign("not tested here") + " not yet", -1)
    error = records[-1]["agreement"]["triton_gpu"]
    failed = [dtype for dtype, check in records[-1]["checks"].items() if not passed(check)]
    shown = "; ".join([f"{html.format_number(error, 2)} ×", *(f"not in {t}" for t in failed)])
    return html.Cell(html.mark(not failed, shown), error)


def passed(check: dict) -> bool:
    """Whether the drawn problems of one type were computed, and none was beyond the limit."""
    return check["problems"] > 0 and not check["beyond"]


def compiled(op: str) -> str | html.Cell:
    """For how many kinds of GPU, in how many types, the kernels compiled without one."""
    record = sources.compiled(op)
    if not record:
        return html.Cell(html.sign("not tested here") + " not yet", -1)
    counts = f"{len(record['targets'])} GPUs, {len(record['types'])} types"
    return html.Cell(html.mark(not record["errors"], counts), len(record["targets"]))


def best_share(op: str) -> html.Cell:
    """The form that comes nearest to its machine's limit."""
    shares = [
        (k["limit_seconds"] / seconds, TIMED.get(form, form), results.name[:3].upper())
        for results in sources.measured()
        for k in results.kernels
        if k["op"] == op
        for form, seconds in k["seconds"].items()
    ]
    if not shares:
        return html.Cell("–", -1)
    share, form, device = max(shares)
    return html.Cell(f"{100 * share:.2g} %, {html.escape(form)}, {device}", share)


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
            if form == "triton_gpu":
                rows += types_on_gpu(k)
        if not verified:
            rows.append((label, "–", "not verified yet", "–"))
    if record := sources.compiled(op):
        rows.append(offline(record))
    caption = (
        "Distance to the loops in float64, as a multiple of the composed PyTorch form’s own"
        " rounding error"
    )
    return html.table(("Form", "Error", "Verified on", "Date"), rows, caption, numeric=(1,))


def types_on_gpu(record: dict) -> list[tuple]:
    """A row for each type but float32 that a GPU was asked to compute in."""
    rows = []
    for dtype, check in record.get("checks", {}).items():
        if dtype == "float32":
            continue
        error = html.format_number(check["worst"], 2) if check["problems"] else "failed"
        label = f"{VERIFIED['triton_gpu']}, {dtype}"
        beyond = len(check["beyond"])
        said = f"{beyond} of {check['problems']} problems beyond {LIMIT}" if beyond else ""
        if not check["problems"]:
            said = next(p for p in record["problems"] if dtype in p)
        rows.append((label, error, html.escape(said), html.nowrap(record["date"])))
    return rows


def offline(record: dict) -> tuple:
    """The row of a kernel that was compiled for GPUs which were not there."""
    targets = ", ".join(f"sm_{target}" for target in record["targets"])
    said = f"{targets} in {', '.join(record['types'])}; Triton {record['triton']}"
    errors = f"; {len(record['errors'])} failed" if record["errors"] else ""
    label = "Triton, compiled offline"
    return (label, "–", html.escape(said + errors), html.nowrap(record["date"]))


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
