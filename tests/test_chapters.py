"""The chapter contract, for every notebook: anatomy, tags, outputs, alternative texts, text pair, freshness, claims, exercises.

Chapters are executed by `book/tools/run_chapters.py` (make test runs it after these); here their stored form is read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

import address
import execute
import refimpl
from refimpl.chapter import freshness

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
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
STEMS = sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))
INSTALL = """import importlib.util

if importlib.util.find_spec("refimpl") is None:
    %pip install -q "refimpl[chapters] @ git+https://github.com/{repo}\""""

pytestmark = pytest.mark.parametrize("stem", STEMS)


def read(stem):
    return nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(
        re.sub(r"```.*?```", "", c.source, flags=re.S)
        for c in notebook.cells
        if c.cell_type == "markdown"
    )


def outputs(notebook):
    return [
        (i, c, o) for i, c in enumerate(notebook.cells) if c.cell_type == "code" for o in c.outputs
    ]


def records(notebook, kind):
    """What cells left in the metadata of their outputs: `claims`, `stamp`."""
    return [
        o.metadata["refimpl"][kind]
        for _, _, o in outputs(notebook)
        if kind in o.get("metadata", {}).get("refimpl", {})
    ]


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


def test_first_cells(stem):
    cells = code(read(stem))
    assert cells[0].source == INSTALL.format(repo=address.current())
    lines = [line.split("#")[0].strip() for line in cells[1].source.splitlines()]
    assert "parameters" in cells[1].metadata.tags and {"seed = 0", 'scale = "mini"'} <= set(lines)
    assert "chapter.setup(seed)" in cells[2].source


def test_cells_are_short_and_all_were_executed(stem):
    cells = code(read(stem))
    assert not [c.id for c in cells if len(c.source.splitlines()) > 30]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1)), (
        "executed from top to bottom in one run"
    )
    assert any("nbval-check-output" in c.metadata.get("tags", []) for c in cells)


def test_stored_outputs_are_clean(stem):
    notebook = read(stem)
    assert sum(len(json.dumps(o)) for _, _, o in outputs(notebook)) <= 600 * 1024
    for i, _, output in outputs(notebook):
        assert output.output_type != "error", f"cell {i} stored a traceback"
        data = output.get("data", {})
        text = output.get("text", "") + data.get("text/plain", "")
        assert not any("widget" in kind for kind in data), f"cell {i} stored a widget"
        assert not (
            output.get("name") == "stderr" and re.search(r"Warning|Traceback|Error", text)
        ), f"cell {i} warns: {text[:200]}"
        assert not re.search(
            r"(?<![\w.])/(home|root|work|tmp|Users)/", text + str(data.get("text/html", ""))
        ), f"cell {i} shows a path of a machine"


def test_compared_cells_print_rounded_numbers(stem):
    """At most four significant digits, so that another instruction set prints the same; whole counts may be longer."""
    for cell in code(read(stem)):
        if "nbval-check-output" in cell.metadata.get("tags", []):
            text = "".join(
                o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in cell.outputs
            )
            long = [
                n
                for n in re.findall(r"(?<![\w.])\d+\.\d+(?:e[+-]?\d+)?", text)
                if len(re.sub(r"e.*", "", n).replace(".", "").lstrip("0")) > 4
            ]
            assert not long, (cell.source[:80], long)
            assert not any(
                k.startswith("image/") for o in cell.outputs for k in o.get("data", {})
            ), "nbval never compares pictures"


def test_figures_have_texts_for_those_who_cannot_see_them(stem):
    seen = []
    for i, cell, output in outputs(read(stem)):
        if any(kind.startswith("image/") for kind in output.get("data", {})):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert 40 <= len(alt) <= 250 and not alt.startswith(("_images/", "<Figure")), (
                f"cell {i}: {alt!r}"
            )
            seen.append(alt)
    assert len(seen) >= 3 and len(set(seen)) == len(seen), (
        "three figures or more, no two texts alike"
    )


def test_reads_well_in_colab_and_on_github(stem):
    text = "\n".join(c.source for c in read(stem).cells if c.cell_type == "markdown")
    raw = re.findall(
        r"^(?:`{3,}|:{3,})\{[a-z-]+\}|\{(?:cite|glue|ref|numref|eq|doc|term)[a-z:]*\}`|^\([a-z0-9-]+\)=$",
        text,
        re.M,
    )
    assert not raw, raw
    for target in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text):
        assert target.endswith(".ipynb") and (NOTEBOOKS / target).exists(), (
            f"link to {target}: only other chapters can be linked in all four places"
        )


def test_text_pair_is_in_step(stem):
    notebook = read(stem)
    header = re.compile(r"\A---\n.*?\n---\n", re.S)
    text = (NOTEBOOKS / "text" / f"{stem}.md").read_text(encoding="utf-8")
    assert header.sub("", text) == header.sub("", execute.text_of(notebook)), (
        f"notebooks/text/{stem}.md and the notebook differ: make execute CHAPTER={stem}"
    )
    assert [c.id for c in notebook.cells] == [c.id for c in execute.read_text(stem).cells]


def test_executed_with_the_package_as_it_is(stem):
    (stamp,) = records(read(stem), "stamp")
    assert stamp["stem"] == stem
    assert not freshness.stale(stamp, ROOT), (
        f"the package has changed since {stem} ran: make execute CHAPTER={stem}"
    )
    assert stamp["seconds"] < 60, f"the stored run took {stamp['seconds']} s"


def test_every_claim_has_a_report(stem):
    (rows,) = records(read(stem), "claims")
    claims = {c.id: c for c in refimpl.paper(stem).claims}
    assert [row["id"] for row in rows] == list(claims)
    for row in rows:
        assert (row["statement"], row["reported"]) == (
            claims[row["id"]].statement,
            claims[row["id"]].reported,
        ), f"{row['id']} is stale"
        assert row["verdict"] in ("supports", "contradicts", "inconclusive", "not tested here")


def test_exercises_are_under_mutation(stem):
    headings = re.findall(r"^### +Exercise (\d+)", prose(read(stem)), re.M)
    assert len(headings) >= 3 and headings == [str(i + 1) for i in range(len(headings))]
    answers = ROOT / "tests" / "papers" / "exercises" / f"{stem}.py"
    assert answers.exists() and f'mutations("{stem}"' in answers.read_text().replace(
        "STEM", f'"{stem}"'
    )


def test_prose_types_no_measured_comparison(stem):
    """Words that compare speed or size stand next to a source ('the paper', a published name) or are written by code."""
    offenders = []
    for cell in read(stem).cells:
        if cell.cell_type == "markdown":
            for sentence in re.split(r"(?<=[.!?])\s+|\n\n", cell.source):
                if re.search(
                    r"\d[\d.,]*\s*(?:×|times|%|per cent|ms|µs)\s*(?:faster|slower|smaller|larger|more|less|fewer)",
                    sentence,
                ) and not re.search(r"paper|report|publish|author|README|arXiv", sentence, re.I):
                    offenders.append(sentence.strip()[:120])
    assert not offenders, offenders
