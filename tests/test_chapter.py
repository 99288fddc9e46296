"""What notebooks say and leave for the book: set-up, display, claims."""

from __future__ import annotations

import random
import textwrap

import numpy as np
import pytest
import torch

import refimpl
from refimpl import layers
from refimpl.catalogue import Claim, Paper
from refimpl.chapter import claims, freshness, session, show


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
    show.table(
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
        show.table([{"a": 1}, {"b": 2}])
    with pytest.raises(ValueError, match="no rows"):
        show.table([])


# -- claims


@pytest.fixture
def paper(monkeypatch):
    made = Paper(
        "madeup",
        "MadeUp",
        "A title",
        "A. Author",
        "V",
        2024,
        "attention",
        "an idea",
        claims=(
            Claim("madeup.1", "The counts are equal.", "22,058", "identity"),
            Claim("madeup.2", "It learns faster.", "2×", "miniature"),
            Claim(
                "madeup.3",
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


def test_claims_table(paper, published):
    with pytest.raises(ValueError, match="madeup.1, madeup.2"):
        claims.table("madeup")
    row = claims.report("madeup.1", measured="22,058 of 22,058", verdict="supports", why="counted")
    assert repr(row) == "madeup.1 ✓ supports: 22,058 of 22,058"
    claims.report("madeup.2", measured="0.9×", verdict="contradicts", why="too small a model")
    claims.table("madeup")
    bundle, metadata = published[0]
    rows = metadata["refimpl"]["claims"]
    assert [r["id"] for r in rows] == [c.id for c in paper.claims]
    assert [r["verdict"] for r in rows] == ["supports", "contradicts", "not tested here"]
    assert (
        "a phone" in rows[2]["why"]
        and "python -m bench" in rows[2]["why"]
        and rows[0]["reported"] == "22,058"
    )
    assert "✗ contradicts" in bundle["text/html"] and "too small a model" in bundle["text/plain"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "madeup.9"}, "madeup has madeup.1, madeup.2, madeup.3"),
        ({"id": "madup.1"}, "did you mean madeup.1"),
        ({"verdict": "confirmed"}, "'supports', 'contradicts'"),
        ({"measured": " "}, "measured is empty"),
        ({"why": ""}, "why is empty"),
        ({"id": "madeup.1", "verdict": "inconclusive"}, "identity"),
    ],
)
def test_claims_refuse(paper, change, message):
    given = {"id": "madeup.2", "measured": "1", "verdict": "supports", "why": "because"} | change
    with pytest.raises(ValueError, match=message):
        claims.report(given.pop("id"), **given)
    assert not claims.reports


def test_claims_of_an_unknown_paper():
    with pytest.raises(ValueError, match="did you mean efficientvit"):
        claims.table("eficientvit")


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
