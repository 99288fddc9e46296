"""The chapter contract, for every notebook: anatomy, cells, outputs, text pair, freshness, claims.

Chapters are executed by `book/tools/run_chapters.py`, which `make test` runs after these tests;
here their stored form is read.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from pathlib import Path

import nbformat
import pytest

import address
import execute
import refimpl
from refimpl.chapter import claims, freshness

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
STEMS = sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))
HEADINGS = [
    "The question",
    "The idea",
    "The mathematics",
    "The code",
    "Is it the real thing?",
    "See it",
    "Measure it",
    "Claims",
    "Limits",
    "Exercises",
    "Where next",
]
INSTALL = """import importlib.util

if importlib.util.find_spec("refimpl") is None:
    %pip install -q "refimpl[chapters] @ git+https://github.com/{repo}\""""
COLUMNS = 84  # of a code cell: nothing scrolls sideways in the book at 1280 pixels

# Written before the contract had its picture, summary, slider and heart, and still to be rewritten.
# A chapter leaves this list when it keeps the contract: `test_contract` then asks for it.
BEFORE_THE_CONTRACT = ("convit", "dvt", "efficientvim", "efficientvmamba", "enamel", "leanvec")

every_chapter = pytest.mark.parametrize("stem", STEMS)


def read(stem):
    return nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return [cell for cell in code(notebook) if tag in cell.metadata.get("tags", [])]


def prose(notebook):
    """All Markdown, without its fenced blocks."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    return re.sub(r"```.*?```", "", "\n\n".join(texts), flags=re.S)


def outputs(notebook):
    """(number of the cell, cell, output) for every stored output."""
    return [
        (i, cell, output)
        for i, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
    ]


def alternative_text(cell) -> str:
    return cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")


def is_picture(output) -> bool:
    return any(kind.startswith("image/") for kind in output.get("data", {}))


def shown_text(output) -> str:
    """What an output prints or says."""
    data = output.get("data", {})
    return output.get("text", "") + data.get("text/plain", "") + data.get("text/markdown", "")


def records(notebook, kind):
    """What cells left in the metadata of their outputs: `claims`, `stamp`."""
    said = [output.get("metadata", {}).get("refimpl", {}) for _, _, output in outputs(notebook)]
    return [record[kind] for record in said if kind in record]


# -- anatomy and cells


@every_chapter
def test_anatomy(stem):
    text = prose(read(stem))
    assert len(re.findall(r"^# ", text, re.M)) == 1
    assert re.findall(r"^## +(.+?) *$", text, re.M) == HEADINGS
    assert f"refimpl/papers/{stem}.py" in text or f"refimpl.papers.{stem}" in text, (
        "the paper card names the module"
    )
    paper = refimpl.paper(stem)
    assert not paper.arxiv or paper.arxiv in text
    assert paper.title in text


@every_chapter
def test_first_cells(stem):
    cells = code(read(stem))
    assert cells[0].source == INSTALL.format(repo=address.current())
    lines = [line.split("#")[0].strip() for line in cells[1].source.splitlines()]
    assert cells[1] in tagged(read(stem), "parameters")
    assert {"seed = 0", 'scale = "mini"'} <= set(lines)
    assert re.search(r"chapter\.setup\(seed\b", cells[2].source)


@every_chapter
def test_cells_are_short_and_all_were_executed(stem):
    notebook = read(stem)
    cells = code(notebook)
    assert not [c.id for c in cells if len(c.source.splitlines()) > 30]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1)), (
        "executed from top to bottom in one run"
    )
    assert len(tagged(notebook, "parameters")) == 1
    assert tagged(notebook, "nbval-check-output")


def departures(stem) -> list[str]:
    """What is missing of picture, summary, slider, heart, clean cells; `[]` where all is there."""
    notebook = read(stem)
    cells = code(notebook)
    source = "\n".join(cell.source for cell in cells)
    found = []
    for tag in ("chapter-picture", "chapter-summary"):
        if len(tagged(notebook, tag)) != 1:
            found.append(f"{len(tagged(notebook, tag))} cells are tagged {tag}, wanted one")
    if not any(map(is_picture, output_of(tagged(notebook, "chapter-picture")))):
        found.append("the cell tagged chapter-picture shows no picture")
    if not re.search(r"\b(slider|explorer)\(", source):
        found.append("no slider and no explorer")
    if not all(cell in tagged(notebook, "hide-input") for cell in cells[:3]):
        found.append("the three set-up cells are not all tagged hide-input")
    for cell in cells:
        wide = [line for line in cell.source.splitlines() if len(line) > COLUMNS]
        found += [f"more than {COLUMNS} columns: {line}" for line in wide]
        if re.search(r"#\s*(noqa|fmt:)", cell.source):
            found.append(f"a linter's comment in a reader's face: {cell.id}")
    if not tagged(notebook, "heart"):
        found.append("no cell is tagged heart")
    for i, _, output in outputs(notebook):
        if re.search(r"<[\w.]+ object at 0x|<matplotlib\.", shown_text(output)):
            found.append(f"cell {i} shows an object's repr")
        if re.search(r"(?<![\w.])[-−]0\.0+(?!\d)", shown_text(output)):
            found.append(f"cell {i} shows a negative zero")
    return found


def output_of(cells):
    return [output for cell in cells for output in cell.outputs]


@every_chapter
def test_contract(stem):
    if stem in BEFORE_THE_CONTRACT:
        assert departures(stem), f"{stem} keeps the contract: take it off BEFORE_THE_CONTRACT"
    else:
        assert departures(stem) == []


@every_chapter
def test_heart_is_the_package_s_function(stem):
    """A cell tagged `heart` defines what the package defines, docstrings and annotations aside."""
    module = importlib.import_module(f"refimpl.papers.{stem}")
    package = definitions(inspect.getsource(module))
    for cell in tagged(read(stem), "heart"):
        shown = definitions(cell.source)
        assert shown, f"the heart of {stem} defines no function"
        assert len(cell.source.splitlines()) <= 25
        for name, form in shown.items():
            assert name in package, f"refimpl.papers.{stem} defines no {name}"
            assert form == package[name], f"{name} differs from refimpl.papers.{stem}.{name}"


def test_hearts_are_compared_but_for_docstrings_and_annotations():
    plain = definitions("def f(x, y=1):\n    z = x + y\n    return z\n")
    same = (
        'def f(x: int, y: int = 1) -> int:\n    """Adds."""\n    z: int = x + y  # so\n    return z'
    )
    assert definitions(same) == plain
    for other in (
        "def f(x, y=2):\n    z = x + y\n    return z",
        "def f(x, y=1):\n    return x + y",
    ):
        assert definitions(other) != plain


def definitions(source: str) -> dict[str, str]:
    """Name -> syntax tree of every function and class on the top level of a source."""
    tree = Bare().visit(ast.parse(source))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: ast.dump(node) for node in tree.body if isinstance(node, kinds)}


class Bare(ast.NodeTransformer):
    """Takes docstrings and annotations off a syntax tree."""

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.without_docstring(node)

    def visit_ClassDef(self, node):
        return self.without_docstring(node)

    def without_docstring(self, node):
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        return self.generic_visit(node)

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):
        if node.value is None:
            return None
        plain = ast.Assign([node.target], node.value)
        return ast.fix_missing_locations(ast.copy_location(plain, node))


# -- outputs


@every_chapter
def test_stored_outputs_are_clean(stem):
    notebook = read(stem)
    assert sum(len(json.dumps(o)) for _, _, o in outputs(notebook)) <= 600 * 1024
    for i, _, output in outputs(notebook):
        assert output.output_type != "error", f"cell {i} stored a traceback"
        data = output.get("data", {})
        text = shown_text(output)
        assert not any("widget" in kind for kind in data), f"cell {i} stored a widget"
        if output.get("name") == "stderr":
            assert not re.search(r"Warning|Traceback|Error", text), f"cell {i}: {text[:200]}"
        path = re.search(
            r"(?<![\w.])/(home|root|work|tmp|Users)/", text + str(data.get("text/html", ""))
        )
        assert not path, f"cell {i} shows a path of a machine"


@every_chapter
def test_compared_cells_print_rounded_numbers(stem):
    """At most four significant digits, so that another instruction set prints the same.

    Whole counts may be longer.
    """
    for cell in tagged(read(stem), "nbval-check-output"):
        assert not any(map(is_picture, cell.outputs)), "nbval never compares pictures"
        hides = cell.source.rstrip().endswith(";")
        assert not hides, "nbval's kernel keeps no history, and shows what a semicolon hides"
        text = "".join(
            o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in cell.outputs
        )
        numbers = re.findall(r"(?<![\w.])\d+\.\d+(?:e[+-]?\d+)?", text)
        assert not [n for n in numbers if significant_digits(n) > 4], cell.source[:80]


def significant_digits(number: str) -> int:
    return len(number.partition("e")[0].replace(".", "").lstrip("0"))


@every_chapter
def test_figures_have_texts_for_those_who_cannot_see_them(stem):
    seen = []
    for i, cell, output in outputs(read(stem)):
        if is_picture(output):
            alt = alternative_text(cell)
            assert 40 <= len(alt) <= 250, f"cell {i}: {alt!r}"
            assert not alt.startswith(("_images/", "<Figure")), f"cell {i}: {alt!r}"
            seen.append(alt)
    assert len(seen) >= 3, "wants three figures or more"
    assert len(set(seen)) == len(seen), "two figures with one text"


# -- text


@every_chapter
def test_reads_well_in_colab_and_on_github(stem):
    text = "\n".join(c.source for c in read(stem).cells if c.cell_type == "markdown")
    directive = r"^(?:`{3,}|:{3,})\{[a-z-]+\}"
    role = r"\{(?:cite|glue|ref|numref|eq|doc|term)[a-z:]*\}`"
    target = r"^\([a-z0-9-]+\)=$"
    assert not re.findall(f"{directive}|{role}|{target}", text, re.M)
    for link in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text):
        assert link.endswith(".ipynb"), f"{link}: only chapters can be linked in all four places"
        assert (NOTEBOOKS / link).exists(), link


@every_chapter
def test_text_pair_is_in_step(stem):
    notebook = read(stem)
    header = re.compile(r"\A---\n.*?\n---\n", re.S)
    text = (NOTEBOOKS / "text" / f"{stem}.md").read_text(encoding="utf-8")
    assert header.sub("", text) == header.sub("", execute.text_of(notebook)), (
        f"notebooks/text/{stem}.md and the notebook differ: make execute CHAPTER={stem}"
    )
    assert [c.id for c in notebook.cells] == [c.id for c in execute.read_text(stem).cells]


MEASURED_COMPARISON = re.compile(
    r"\d[\d.,]*\s*(?:×|times|%|per cent|ms|µs)"
    r"\s*(?:faster|slower|smaller|larger|more|less|fewer)"
)
SOURCE = re.compile(r"paper|report|publish|author|README|arXiv", re.I)


@every_chapter
def test_prose_types_no_measured_comparison(stem):
    """Words that compare speed or size stand next to a source, or are written by code."""
    texts = [cell.source for cell in read(stem).cells if cell.cell_type == "markdown"]
    sentences = [s for text in texts for s in re.split(r"(?<=[.!?])\s+|\n\n", text)]
    compared = [sentence for sentence in sentences if MEASURED_COMPARISON.search(sentence)]
    assert not [sentence for sentence in compared if not SOURCE.search(sentence)]


# -- freshness, claims, exercises


@every_chapter
def test_executed_with_the_package_as_it_is(stem):
    """What the chapter computes with is unchanged, and its stored run kept the budget of time."""
    (stamp,) = records(read(stem), "stamp")
    assert stamp["stem"] == stem
    assert not freshness.stale(stamp, ROOT), (
        f"the package has changed since {stem} ran: make execute CHAPTER={stem}"
    )
    assert stamp["seconds"] < 60, f"the stored run took {stamp['seconds']} s"


@every_chapter
def test_every_claim_has_a_report(stem):
    (rows,) = records(read(stem), "claims")
    assert [row["id"] for row in rows] == [claim.id for claim in refimpl.paper(stem).claims]
    for row in rows:
        assert row["verdict"] in claims.VERDICTS
        assert row["why"]
        assert row["measured"] or row["verdict"] == "not tested here"


@every_chapter
def test_exercises_are_under_mutation(stem):
    headings = re.findall(r"^### +Exercise (\d+)", prose(read(stem)), re.M)
    assert len(headings) >= 3
    assert headings == [str(i + 1) for i in range(len(headings))]
    answers = importlib.import_module(f"papers.exercises.{stem}")
    (marker,) = answers.test_exercise.pytestmark
    assert [str(number) for number in marker.args[1]] == headings
