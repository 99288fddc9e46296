"""What notebooks say and leave for the book: set-up, display, claims."""

from __future__ import annotations

import json
import random
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import refimpl
from refimpl import layers
from refimpl.catalogue import Claim, Paper
from refimpl.chapter import claims, freshness, rules, session, show, tables


@pytest.fixture
def published(monkeypatch):
    """Everything that is displayed, as (data, metadata)."""
    shown = []
    monkeypatch.setattr(
        show, "publish", lambda bundle, metadata=None: shown.append((bundle, metadata or {}))
    )
    return shown


# -- setup and display


def test_setup_repeats_every_generator():
    drawn = []
    threads = torch.get_num_threads()
    for _ in range(2):
        session.setup(3, threads=1)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    torch.set_num_threads(threads)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": -1},
        {"seed": 1.5},
        {"threads": 0},
        {"scale": "huge"},
        {"stem": "eficientvit"},
    ],
)
def test_setup_refuses(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        session.setup(**arguments)


def test_say_prints_outside_a_notebook(capsys):
    show.say("two is **2**")
    assert capsys.readouterr().out == "two is **2**\n"


def test_source_is_the_files_own(published):
    show.show_source(layers.Mlp, layers.Mlp.forward)
    text = published[0][0]["text/markdown"]
    assert "Source: refimpl/layers.py, line " in text and "Two linear layers" in text
    assert (
        text.count("return self.fc2(self.act(self.fc1(x)))") == 2 and text.count("```python") == 2
    )
    line = int(text.split("line ")[1].split("\n")[0])
    with open(layers.__file__, encoding="utf-8") as file:
        assert file.readlines()[line - 1].startswith("class Mlp")


def test_source_without_docstrings(published):
    show.show_source(layers.DropPath, layers, docstring=False)
    text = published[0][0]["text/markdown"]
    assert '"""' not in text and "Stochastic depth" not in text and "self.p = p" in text
    compile(text.split("```python")[1].split("```")[0], "shown", "exec")


def test_source_of_a_docstring_alone_stays_code():
    assert show.without_docstrings('def f():\n    """Only this."""\n') == "def f():\n    ..."


@pytest.mark.parametrize("thing", [len, 3, torch.zeros(1)])
def test_source_refuses_what_has_none(thing):
    with pytest.raises(ValueError, match="no Python source"):
        show.show_source(thing)


def test_table_is_accessible_and_escapes(published):
    tables.table(
        [
            {"Model": "a<b", "Parameters": 3, "Note": "`x` & y"},
            {"Model": "c", "Parameters": 12, "Note": ""},
        ],
        "Two <models>",
    )
    html = published[0][0]["text/html"]
    assert (
        html.count('scope="col"') == 3
        and html.count('scope="row"') == 2
        and "<caption>Two &lt;models&gt;</caption>" in html
    )
    assert (
        "a&lt;b" in html
        and "<code>x</code> &amp; y" in html
        and 'data-column="Parameters" class="lab-number"' in html
    )
    assert "Parameters" in published[0][0]["text/plain"]
    with pytest.raises(ValueError, match="row 1"):
        tables.table([{"a": 1}, {"b": 2}])
    with pytest.raises(ValueError, match="no rows"):
        tables.table([])


# -- claims


@pytest.fixture
def paper(monkeypatch):
    counted = "supports if ours == theirs; contradicts otherwise"
    noisy = "supports if gain > 2 * spread; contradicts if gain < -2 * spread"
    made = Paper(
        "madeup",
        "MadeUp",
        "A title",
        "A. Author",
        "V",
        2024,
        "an idea",
        claims=(
            Claim("madeup.1", "The counts are equal.", "22,058", "identity", counted),
            Claim("madeup.2", "It learns faster.", "2×", "miniature", noisy),
            Claim("madeup.3", "It can be read.", "easily", "miniature", "Three readers say so."),
            Claim(
                "madeup.4",
                "It is fast on a phone.",
                "1.6 ms",
                "out_of_reach",
                needs="a phone",
                command="python -m bench",
            ),
        ),
    )
    monkeypatch.setitem(refimpl.catalogue.PAPERS, "madeup", made)
    monkeypatch.setattr(claims, "reports", {})
    return made


def report_all():
    counts = {"ours": 22_058, "theirs": np.int64(22_058)}
    gain = {"gain": torch.tensor(-0.9), "spread": 0.1}
    claims.report("madeup.1", measured="22,058 of 22,058", values=counts, why="counted")
    claims.report("madeup.2", measured="0.9×", values=gain, why="too small a model")
    claims.report("madeup.3", measured="two of two", verdict="inconclusive", why="no third")


def test_claims_table(paper, published):
    with pytest.raises(ValueError, match="without a report: madeup.1, madeup.2, madeup.3; call"):
        claims.table("madeup")
    report_all()
    assert repr(claims.reports["madeup.1"]) == "madeup.1 ✓ supports: 22,058 of 22,058"
    claims.table("madeup")
    bundle, _ = published[0]
    assert "✗ contradicts" in bundle["text/html"]
    assert "too small a model" in bundle["text/plain"]
    found, rules, untested = bundle["text/html"].split("<details>")
    rows = re.findall(r'<th scope="row".*?>(\d)\. ', found)
    assert rows == ["1", "2", "3"], "what was tested stands open, with its numbers"
    assert "supports if" not in found
    assert "<code>supports if ours == theirs; contradicts otherwise</code>" in rules
    assert "Three readers say so." in rules
    assert re.findall(r'<th scope="row".*?>(\d)\. ', untested) == ["4"]
    assert "a phone" in untested
    assert "<code>python -m bench</code>" in untested
    assert "a phone" in bundle["text/plain"], "what folds in a page stands open in a terminal"


def test_the_notebook_keeps_of_a_claim_only_what_the_run_found(paper, published):
    report_all()
    claims.table("madeup")
    kept = published[0][1]["refimpl"]["claims"]
    assert [row["id"] for row in kept] == [claim.id for claim in paper.claims]
    verdicts = ["supports", "contradicts", "inconclusive", "not tested here"]
    assert [row["verdict"] for row in kept] == verdicts
    words = {"id", "measured", "verdict", "why"}
    assert [row.keys() - words for row in kept] == [{"values"}, {"values"}, set(), set()]
    assert kept[1]["values"] == {"gain": pytest.approx(-0.9), "spread": 0.1}
    assert "a phone" in kept[3]["why"]
    assert "python -m bench" in kept[3]["why"]
    text = json.dumps(kept)
    assert not [claim.statement for claim in paper.claims if claim.statement in text]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "madeup.9"}, "unknown claim 'madeup.9'; did you mean 'madeup"),
        ({"id": "madup.1"}, "did you mean 'madeup.1'"),
        ({"verdict": "confirmed"}, "verdict='confirmed' is not known"),
        ({"verdict": None}, "no rule computes its verdict; give verdict="),
        ({"measured": " "}, "measured is empty"),
        ({"why": ""}, "why is empty"),
        ({"id": "madeup.1", "verdict": "supports"}, "its verdict follows from numbers"),
        ({"id": "madeup.1", "verdict": None}, "its verdict follows from numbers"),
        ({"id": "madeup.1", "verdict": "not tested here"}, "identity"),
        ({"id": "madeup.2", "verdict": None, "values": {"gain": 1}}, "'spread' is missing"),
        (
            {"id": "madeup.2", "verdict": None, "values": {"gain": 1, "spread": 1, "b": 2}},
            "compares gain, spread: no 'b'",
        ),
        (
            {"id": "madeup.2", "verdict": None, "values": {"gain": float("nan"), "spread": 1}},
            "gain=nan must be a finite number",
        ),
        ({"values": {"n": "3"}}, "n='3' must be a finite number"),
    ],
)
def test_claims_refuse(paper, change, message):
    given = {"id": "madeup.3", "measured": "1", "verdict": "supports", "why": "because"} | change
    with pytest.raises(ValueError, match=message):
        claims.report(given.pop("id"), **given)
    assert not claims.reports


def test_what_was_not_tested_needs_no_numbers(paper):
    claims.report("madeup.2", measured="", verdict="not tested here", why="needs scale='full'")
    assert claims.reports["madeup.2"].verdict == "not tested here"


def test_claims_of_an_unknown_paper():
    with pytest.raises(ValueError, match="did you mean 'efficientvit'"):
        claims.table("eficientvit")


@pytest.mark.parametrize(
    ("rule", "values", "verdict"),
    [
        ("supports if a > 1; contradicts if a < -1", {"a": 2}, "supports"),
        ("supports if a > 1; contradicts if a < -1", {"a": -2}, "contradicts"),
        ("supports if a > 1; contradicts if a < -1", {"a": 1}, "inconclusive"),
        ("supports if 0 < a <= 1; contradicts otherwise", {"a": 1}, "supports"),
        ("supports if 0 < a <= 1; contradicts otherwise", {"a": 0}, "contradicts"),
        (
            "supports if a > 2 * s and not b < 1; contradicts if a < 0",
            dict(a=3, s=1, b=1),
            "supports",
        ),
        ("supports if a == 1 or b != 0; contradicts otherwise", dict(a=2, b=0), "contradicts"),
        ("supports if (a - b) / -b > 2**3; contradicts if a == b", dict(a=9, b=-1), "supports"),
        ("supports if a > 1; contradicts if a < 1", {"a": np.float32(1.5)}, "supports"),
        ("supports if a > 1; contradicts otherwise; where a is a; or not", {"a": 1}, "contradicts"),
    ],
)
def test_rules_decide(rule, values, verdict):
    assert rules.computed(rule)
    assert rules.verdict(rule, values) == verdict


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("supports if a > 1", "can't be read; wanted 'supports if …; contradicts if …'"),
        ("supports if a > 1; contradicts when a < 1", "can't be read"),
        ("supports if a >; contradicts otherwise", "'a >' is no comparison of numbers"),
        ("supports if a; contradicts otherwise", "'a' is no comparison of numbers"),
        ("supports if a + 1; contradicts otherwise", "no comparison of numbers"),
        ("supports if a > 'x'; contradicts otherwise", "neither a name nor a number"),
        ("supports if a > True; contradicts otherwise", "neither a name nor a number"),
        ("supports if a > 1j; contradicts otherwise", "neither a name nor a number"),
        ("supports if abs(a) > 1; contradicts otherwise", "'abs.a.' is neither a name nor"),
        ("supports if a.real > 1; contradicts otherwise", "'a.real' is neither a name nor"),
        ("supports if a[0] > 1; contradicts otherwise", "neither a name nor a number"),
        ("supports if (b := a) > 1; contradicts otherwise", "neither a name nor a number"),
        ("supports if a in b; contradicts otherwise", "no comparison of numbers"),
        ("supports if a > (1 if a else 2); contradicts otherwise", "neither a name nor"),
        ("supports if __import__('os').system('true') == 0; contradicts otherwise", "neither"),
        ("supports if a > 1; contradicts if a > 0", "both supports and contradicts"),
        ("supports if a / 0 > 1; contradicts otherwise", "of a rule has no value"),
        ("supports if a > 9**9**9**9; contradicts otherwise", "of a rule has no value"),
        ("supports if (-a)**0.5 > 1; contradicts otherwise", "has no real value"),
    ],
)
def test_rules_refuse(rule, message):
    with pytest.raises(ValueError, match=message):
        rules.verdict(rule, {"a": 2})


NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_verdicts_follow_from_rules_that_stand_in_the_catalogue(notebook):
    stored = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            found = output.get("metadata", {}).get("refimpl", {}).get("claims", [])
            stored |= {row["id"]: row for row in found}
    for claim in refimpl.paper(notebook.stem).claims:
        assert claim.rule or claim.kind == "out_of_reach", f"{claim.id} has no rule"
        row = stored.get(claim.id, {})
        if rules.computed(claim.rule) and "values" in row:
            assert row["verdict"] == rules.verdict(claim.rule, row["values"]), claim.id


CLAIMS = [claim for paper in refimpl.catalogue.PAPERS.values() for claim in paper.claims]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_rules_of_the_catalogue_can_be_read(claim):
    if rules.computed(claim.rule):
        assert rules.names(claim.rule)
    else:
        assert not claim.rule.lower().startswith("supports if"), "would be taken for prose"


# -- in a real kernel


def test_in_a_notebook(tmp_path):
    """What a chapter stores: one quiet line of training, small figures, metadata that survive."""
    nbformat, papermill = pytest.importorskip("nbformat"), pytest.importorskip("papermill")
    cells = [
        """
        import torch
        from torch import nn
        from refimpl import chapter, lab
        from refimpl.viz import charts
        chapter.setup(0)
        """,
        "chapter.say('two is **2**')",
        """
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        h = lab.train.fit(net, lab.data.digits(), steps=300, lr=1e-2, label='linear')
        """,
        "charts.image_grid([lab.data.photo(n, 160) for n in lab.data.PHOTOS], columns=4);",
        """
        def own(x):
            return x
        chapter.show_source(own)
        """,
        "chapter.stamp('efficientvit')",
    ]
    code = [nbformat.v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=code)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(notebook, tmp_path / "in.ipynb")
    papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", progress_bar=False)
    outputs = [cell.outputs for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells]
    assert [len(o) for o in outputs] == [0, 1, 1, 1, 1, 1]
    assert outputs[1][0].data["text/markdown"] == "two is **2**"
    assert outputs[2][0].data.keys() == {"text/plain"} and outputs[2][0].data[
        "text/plain"
    ].startswith("linear: 300 steps in ")
    assert len(outputs[3][0].data["image/png"]) < 250_000
    assert outputs[4][0].data["text/plain"].startswith("Source: this notebook")
    record = outputs[5][0].metadata["refimpl"]["stamp"]
    assert not freshness.stale(record) and record["seconds"] > 0
