"""What a chapter's cells become on its page: folded code, merged logs, numbered figures, tables.

Works on the tree that MyST-NB makes of a notebook, so that the notebook itself stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from docutils import nodes

from refimpl_book import html

COLUMNS = 84  # of code that the page shows at full size
MOST_COLUMNS = 104  # beyond which type would be too small, and the box scrolls
PRINTED_LINES = 8  # of output that a story still shows; longer listings are for the full text
CAPTION = 170  # characters of a caption, at most
SILENT = ("exercise-check", "parameters")  # tags of cells that a story leaves out altogether
INTERACTIVE = ("attention-explorer", "frame-slider")  # classes of what a reader can move

REPR = re.compile(r"^\s*<[\w.]+[^>]*(>|at 0x[0-9a-f]+>)\s*$")  # <matplotlib.legend.Legend at 0x7f…>
RUN = re.compile(
    r"^(?P<run>.+?): (?P<steps>[\d,]+) steps in (?P<seconds>[\d.]+) s,"
    r" loss (?P<loss>[\d.]+|nan)(?:, test score (?P<score>[\d.]+|none))?$"
)
DRAWS = re.compile(r"\bcharts\.|\bimshow\(|\.savefig\(|\bplt\.")
REPORTS = re.compile(r"\bclaims\.(report|table|verdict)\(|\bchapter\.stamp\(|\batlas\.\w+_row\(")
MINUS_NOTHING = re.compile(r"(?<![\w.,−-])[-−](0\.0+)(?!\d)")
NUMBER = re.compile(
    r"^[−+<>≤≥≈±-]?\s?\d[\d.,  ]*(e[−+-]?\d+)?\s?(%|×|°|[mµn]?s|[kMGT]?i?B|[kMG]|points?)?"
    r"(\s?(±|–|\.\.|of|to|/)\s?[\d.,]+\s?(%|×|[mµn]?s)?)?(\s?\([^()]{1,24}\))?$|^[–—]?$"
)


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def is_cell(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def cells(tree: nodes.Element) -> list[nodes.container]:
    return [node for node in tree.findall(nodes.container) if is_cell(node)]


def tags(cell: nodes.Element) -> list[str]:
    return cell.get("cell_metadata", {}).get("tags", [])


def part(cell: nodes.Element, name: str) -> nodes.container | None:
    """The `source` or the `output` of a cell."""
    wanted = f"cell_code_{name}"
    return next((c for c in cell.findall(nodes.container) if c.get("nb_element") == wanted), None)


def source(cell: nodes.Element) -> str:
    shown = part(cell, "source")
    return "" if shown is None else shown.astext()


def listing(children: Sequence[nodes.Node], i: int) -> bool:
    """Whether `children[i]` is the line that `show_source` writes above a source."""
    after = children[i + 1] if i + 1 < len(children) else None
    return (
        isinstance(children[i], nodes.paragraph)
        and children[i].astext().startswith("Source: ")
        and isinstance(after, nodes.literal_block)
    )


# -- folding


def fold(tree: nodes.Element) -> None:
    """Before outputs are chosen: cells that draw, report or check fold away what they are made of.

    A notebook that tags its cells decides for itself which drawings are folded.
    """
    tagged = any("hide-input" in tags(cell) for cell in cells(tree))
    for cell in cells(tree):
        draws = DRAWS.search(source(cell)) and any(cell.findall(nodes.image))
        wanted = REPORTS.search(source(cell)) or "exercise-check" in tags(cell)
        if not cell.get("hide_mode") and (wanted or (draws and not tagged)):
            cell["hide_mode"] = "input"
        if cell.get("hide_mode"):
            cell["prompt_show"], cell["prompt_hide"] = prompts(cell)
    for section in tree.findall(nodes.section):
        if isinstance(section.parent, nodes.section):  # the set-up stands before them
            gather_silent(section)


def gather_silent(section: nodes.section) -> None:
    """Folded cells in a row open by one line: those that show nothing move into the next's fold."""
    silent: list[nodes.Element] = []
    for child in [*section.children, None]:
        folded = child is not None and is_cell(child) and child.get("hide_mode") == "input"
        if not folded:
            gather(silent)
            silent = []
            continue
        silent.append(child)
        output = part(child, "output")
        if output is not None and output.children:
            gather(silent)
            silent = []


def gather(run: list[nodes.Element]) -> None:
    """The code of all in the fold of the last."""
    if len(run) < 2:
        return
    *before, last = run
    code = part(last, "source")
    code[:0] = [block for cell in before for block in part(cell, "source").children]
    for cell in before:
        cell.parent.remove(cell)
    last["cells"] = len(run)
    for prompt in ("prompt_show", "prompt_hide"):
        last[prompt] += f" · {len(run)} cells"


def prompts(cell: nodes.Element) -> tuple[str, str]:
    """What the line above a folded cell says while it is closed, and while it is open."""
    text = source(cell)
    if title := re.search(r"#@title (Solution \d+)", text):
        return f"Show {title[1]}", f"Hide {title[1]}"
    if cell["hide_mode"] != "input":
        return "Show what is folded here", "Hide it again"
    how = "computed"
    if any(cell.findall(nodes.image)):
        how = "drawn"
    elif "exercise-check" in tags(cell):
        how = "checked"
    elif re.search(r"\bclaims\.", text):
        how = "judged"
    return f"Show how this was {how}", f"Hide how this was {how}"


def mark_runs(tree: nodes.Element) -> None:
    """Give every run of neighbouring code cells one button that a story unfolds them by."""
    for parent in [tree, *tree.findall(nodes.section)]:
        run: list[nodes.Element] = []
        for child in [*parent.children, None]:
            if child is not None and is_cell(child):
                run.append(child)
                continue
            if run:
                count = sum(cell.get("cells", 1) for cell in run)
                parent.insert(parent.index(run[0]), raw(unfold_button(count)))
            run = []
    for cell in cells(tree):
        if not tells_a_story(cell):
            cell["classes"].append("plumbing")


def unfold_button(count: int) -> str:
    cells = "cell" if count == 1 else f"{count} cells"
    return f'<button type="button" class="unfold" aria-expanded="false">code · {cells}</button>'


def tells_a_story(cell: nodes.Element) -> bool:
    """Whether a cell's output belongs to the reading without code."""
    output = part(cell, "output")
    if output is None or set(tags(cell)) & {*SILENT, "hide-cell"}:
        return False
    children = output.children
    sources = [i for i in range(len(children)) if listing(children, i)]
    quiet = {i + k for i in sources for k in (0, 1)}
    return any(i not in quiet and shows(child) for i, child in enumerate(children))


def shows(node: nodes.Node) -> bool:
    if isinstance(node, nodes.literal_block):
        return len(node.astext().strip().splitlines()) <= PRINTED_LINES
    return not (isinstance(node, nodes.raw) and "training-log" in node.astext())


def mark_listings(tree: nodes.Element) -> None:
    """Sources of the package that a cell shows: marked, so that they may be wider than a cell."""
    for cell in cells(tree):
        output = part(cell, "output")
        for i in range(len(output.children) if output is not None else 0):
            if listing(output.children, i):
                output[i]["classes"].append("listing-place")
                output[i + 1]["classes"].append("listing")


def say_columns(tree: nodes.Element) -> None:
    """Code that is a little too wide says how wide it is, so that its type can be set smaller."""
    for cell in cells(tree):
        boxes = [part(cell, "source")]
        boxes += [
            block for block in cell.findall(nodes.literal_block) if "listing" in block["classes"]
        ]
        for box in filter(None, boxes):
            widest = max(map(len, box.astext().splitlines()), default=0)
            if widest > COLUMNS:
                box["classes"].append(f"columns-{min(widest, MOST_COLUMNS)}")


def as_style(body: str) -> str:
    """The number of columns as a property of style; HTML as it was written."""
    return re.sub(
        r'class="([^"]*?) ?columns-(\d+)([^"]*)"', r'class="\1\3" style="--columns: \2"', body
    )


# -- what cells print


@dataclass
class Log:
    """One line of a training run."""

    run: str
    steps: str
    seconds: str
    loss: str
    score: str | None


def tidy_outputs(tree: nodes.Element) -> None:
    """Logs merged, objects' names dropped, no minus before nothing, figures in their columns."""
    for cell in cells(tree):
        output = part(cell, "output")
        if output is None:
            continue
        for node in list(output.children):
            if isinstance(node, nodes.literal_block) and REPR.match(node.astext()):
                output.remove(node)
        merge_logs(output)
        for node in list(output.findall(nodes.raw)):
            if "<table" in node.astext():
                text = align_numbers(node.astext())
                node.clear()
                node.append(nodes.Text(text))
        for node in list(output.findall(nodes.Text)):
            text = MINUS_NOTHING.sub(r"\1", node.astext())
            if text != node.astext():
                node.parent.replace(node, nodes.Text(text))
        if not output.children:
            output.parent.remove(output)


def merge_logs(output: nodes.Element) -> None:
    """Neighbouring lines of training become one small table."""
    for group in neighbours(output, is_log):
        found = [RUN.match(node.astext().strip()) for node in group]
        logs = [Log(**match.groupdict()) for match in found]
        output.insert(output.index(group[0]), raw(log_table(logs)))
        for node in group:
            output.remove(node)


def is_log(node: nodes.Node) -> bool:
    return isinstance(node, nodes.literal_block) and bool(RUN.match(node.astext().strip()))


def neighbours(parent: nodes.Element, wanted) -> Iterator[list[nodes.Node]]:
    """Maximal groups of neighbouring children that `wanted` accepts."""
    group: list[nodes.Node] = []
    for child in [*parent.children, None]:
        if child is not None and wanted(child):
            group.append(child)
        elif group:
            yield group
            group = []


def log_table(logs: list[Log]) -> str:
    """A folded table of runs under one line that sums them up."""
    seconds = sum(float(log.seconds) for log in logs)
    scores = [float(log.score) for log in logs if log.score not in (None, "none")]
    said = f"{len(logs)} training runs" if len(logs) > 1 else f"Trained: {html.escape(logs[0].run)}"
    said += f", {spread([log.steps for log in logs])} steps each" if len(logs) > 1 else ""
    said += f", {logs[0].steps} steps" if len(logs) == 1 else ""
    said += f", {seconds:.0f} s" + (" together" if len(logs) > 1 else "")
    if scores:
        said += f"; test score {spread([f'{score:.3f}' for score in scores])}"
    if len(logs) == 1:
        return f'<p class="training-log">{said}.</p>\n'
    rows = [
        (html.escape(log.run), log.steps, log.seconds, log.loss, log.score or "–") for log in logs
    ]
    head = ("Run", "Steps", "Seconds", "Loss", "Test score")
    made = html.table(head, rows, "Training runs of this cell", numeric=range(1, 5))
    return f'<details class="training-log"><summary>{said}.</summary>{made}</details>\n'


def spread(values: Sequence[str]) -> str:
    """`60–110`, or `60` where all are equal."""
    ordered = sorted(values, key=lambda text: float(text.replace(",", "")))
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]}–{ordered[-1]}"


# -- tables


ROW = re.compile(r"<tr\b.*?</tr>", re.S)
CELL = re.compile(r"<(t[hd])\b([^>]*)>(.*?)</\1>", re.S)


def align_numbers(table: str) -> str:
    """Columns of figures to the right, in a table that a chapter wrote (its own or pandas')."""
    body = table[table.find("<tbody") :] if "<tbody" in table else table
    columns: dict[int, list[str]] = {}
    for row in ROW.findall(body):
        for i, cell in enumerate(CELL.findall(row)):
            columns.setdefault(i, []).append(html.plain(cell[2]))
    figures = {
        i
        for i, texts in columns.items()
        if i and any(texts) and all(NUMBER.match(text) for text in texts)
    }

    def in_row(row: re.Match) -> str:
        place = iter(range(1000))

        def in_cell(cell: re.Match) -> str:
            name, attributes, content = cell.groups()
            if next(place) in figures and "lab-number" not in attributes:
                attributes = with_class(attributes, "lab-number")
            return f"<{name}{attributes}>{content}</{name}>"

        return CELL.sub(in_cell, row[0])

    aligned = ROW.sub(in_row, table)
    if len(columns) - 1 == len(figures):  # nothing but figures: on a phone it scrolls, uncut
        aligned = re.sub(r"<table\b([^>]*)>", numeric, aligned, count=1)
    return aligned


def numeric(match: re.Match) -> str:
    return f"<table{with_class(match[1], 'numeric')}>"


def with_class(attributes: str, name: str) -> str:
    if 'class="' in attributes:
        return attributes.replace('class="', f'class="{name} ', 1)
    return f'{attributes} class="{name}"'


# -- figures


def number_figures(tree: nodes.Element) -> None:
    """Every picture and every explorer of a chapter gets a number, a caption line and an anchor."""
    count = 0
    for cell in cells(tree):
        output = part(cell, "output")
        if output is None or "hide-cell" in tags(cell):
            continue
        for node in list(output.children):
            kind = figure_kind(node)
            if kind:
                count += 1
                at = output.index(node)
                output.insert(
                    at, raw(f'<figure class="chapter-figure {kind}" id="figure-{count}">')
                )
                output.insert(at + 2, raw(f"{figcaption(count, cell, node, kind)}</figure>"))
                node["figure"] = count


def figure_kind(node: nodes.Node) -> str:
    if isinstance(node, nodes.image):
        return "still"
    text = node.astext() if isinstance(node, nodes.raw) else ""
    return "interactive" if any(name in text for name in INTERACTIVE) else ""


def figcaption(number: int, cell: nodes.Element, node: nodes.Node, kind: str) -> str:
    given = cell.get("cell_metadata", {}).get("mystnb", {}).get("figure", {}).get("caption", "")
    text = given or first_sentences(node.get("alt", ""))
    if kind == "interactive":
        text = text or "Move through it: pointer, touch or arrow keys."
    return f"<figcaption><b>Figure {number}.</b> {html.escape(text)}</figcaption>"


def first_sentences(text: str, least: int = 34) -> str:
    """The beginning of an alternative text, up to the first full stop after `least` characters."""
    stops = [m.end() for m in re.finditer(r"[.:;](?=\s|$)", text) if m.end() >= least]
    cut = text[: stops[0] if stops else len(text)].strip().rstrip(".:;")
    if len(cut) > CAPTION:
        return cut[:CAPTION].rsplit(" ", 1)[0].rstrip(",;:") + " …"
    return f"{cut}." if cut else ""
