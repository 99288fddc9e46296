"""Recorded runs: every stored network scores what its record says, and can be trained again.

A chapter's runs are looked at without the rest of its notebook: the cells from the one tagged
`parameters` to the one that calls `chapter.setup`, and the cells tagged `recorded-run`, are run in
one namespace.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import refimpl.catalogue
from refimpl import chapter
from refimpl.catalogue import Paper
from refimpl.chapter import runs, session, show

jupytext = pytest.importorskip("jupytext")

TEXTS = Path(__file__).parents[1] / "notebooks" / "text"
STEMS = sorted(path.parent.name for path in runs.CHECKPOINTS.glob("*/record.json"))


def cells(text: Path) -> list[str]:
    """The sources of a chapter's set-up cells and of those that make recorded runs, in order."""
    code = [cell for cell in jupytext.read(text).cells if cell.cell_type == "code"]
    tags = [cell.metadata.get("tags", []) for cell in code]
    first = next(i for i, tag in enumerate(tags) if "parameters" in tag)
    last = next(i for i, cell in enumerate(code) if "chapter.setup(" in cell.source)
    return [
        cell.source
        for i, (cell, tag) in enumerate(zip(code, tags, strict=True))
        if first <= i <= last or "recorded-run" in tag
    ]


def execute(text: Path, **parameters) -> dict:
    """Run those cells; `parameters` are set after the cell that has their defaults."""
    namespace = {"__name__": "__main__"}
    parts = cells(text)
    threads = torch.get_num_threads()
    try:
        exec(compile(parts[0], f"{text.name}, parameters", "exec"), namespace)
        namespace |= parameters
        for i, source in enumerate(parts[1:], 1):
            exec(compile(source, f"{text.name}, part {i}", "exec"), namespace)
    finally:
        torch.set_num_threads(threads)
        session.current = session.Session()
    return namespace


def shortest(record: dict[str, dict]) -> str:
    return min(record, key=lambda name: record[name]["processor_seconds"])


def train_again(text: Path, stem: str, wanted: str, folder: Path, monkeypatch) -> dict:
    """Repeat one run of a chapter, with its weights written to `folder`; its new record."""

    def recorded(name, build, train, score, tolerance=0.01, quiet=False):
        if name == wanted:
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(runs, "CHECKPOINTS", folder)
                runs.store(stem, name, build, train, score, tolerance)
        return runs.load(stem, name, build, score)[0]

    with monkeypatch.context() as patched:
        patched.setattr(chapter, "recorded", recorded)
        execute(text)
    return json.loads((folder / stem / "record.json").read_text(encoding="utf-8"))[wanted]


# -- the chapters


@pytest.mark.parametrize("stem", STEMS)
def test_every_checkpoint_scores_what_its_record_says(stem, monkeypatch, capsys):
    """`chapter.recorded` itself compares score and record; here nothing is missing or left over."""
    seen = []
    told = 0

    def recorded(name, *arguments, **options):
        nonlocal told
        seen.append(name)
        told += not options.get("quiet", False)
        return runs.recorded(name, *arguments, **options)

    monkeypatch.setattr(chapter, "recorded", recorded)
    execute(TEXTS / f"{stem}.md")
    stored = sorted(path.stem for path in (runs.CHECKPOINTS / stem).glob("*.safetensors"))
    assert sorted(seen) == sorted(runs.read_record(stem)) == stored, "the chapter makes other runs"
    assert capsys.readouterr().out.count("was trained earlier") == told
    runs.check_budget(stem)


def test_chapters_with_recorded_runs_have_records():
    with_runs = [
        path.stem
        for path in TEXTS.glob("*.md")
        if "chapter.recorded(" in path.read_text(encoding="utf-8")
    ]
    assert sorted(with_runs) == STEMS


@pytest.mark.slow_training
@pytest.mark.parametrize("stem", STEMS)
def test_the_shortest_run_can_be_repeated(stem, request, tmp_path, monkeypatch):
    if "slow_training" not in request.config.option.markexpr:
        pytest.skip("trains for up to minutes: pytest -m slow_training")
    record = runs.read_record(stem)
    name = shortest(record)
    again = train_again(TEXTS / f"{stem}.md", stem, name, tmp_path, monkeypatch)
    assert again["steps"] == record[name]["steps"]
    assert again["score"] == pytest.approx(record[name]["score"], abs=record[name]["tolerance"])


# -- the mechanism, with a toy chapter

TOY = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# Toy

```{code-cell}
%pip install refimpl
```

```{code-cell}
:tags: [parameters]

seed = 0
scale = "mini"
```

```{code-cell}
import torch
from torch import nn

from refimpl import chapter, lab

chapter.setup(seed, stem="toy", scale=scale)
```

```{code-cell}
raise RuntimeError("this cell is no part of the recorded runs")
```

```{code-cell}
:tags: [recorded-run]

data = lab.data.digits()
calls = []


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))


def score(net):
    return lab.train.evaluate(net, data.test_images, data.test_labels)


def train(net, steps):
    calls.append(steps)
    return lab.train.fit(net, data, steps=steps, lr=1e-2, device="cpu")
```

```{code-cell}
:tags: [recorded-run]

long = chapter.recorded("long", build, lambda net: train(net, 60), score)
short = chapter.recorded(
    "short", build, lambda net: train(net, 30), score, tolerance=0.02, quiet=True
)
```
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The text of a toy chapter, whose checkpoints go to a folder of their own."""
    monkeypatch.setattr(runs, "CHECKPOINTS", tmp_path / "checkpoints")
    made = Paper("toy", "Toy", "A title", "A. Author", "V", 2024, "an idea")
    monkeypatch.setitem(refimpl.catalogue.PAPERS, "toy", made)
    text = tmp_path / "toy.md"
    text.write_text(TOY, encoding="utf-8")
    return text


def test_runs_are_trained_stored_and_loaded(toy, capsys):
    with pytest.raises(ValueError, match=r"no recorded run 'long' of toy.*make train CHAPTER=toy"):
        execute(toy)
    trained = execute(toy, scale="record")
    assert trained["calls"] == [60, 30]
    first = capsys.readouterr().out
    loaded = execute(toy)
    assert loaded["calls"] == [], "nothing is trained"
    assert capsys.readouterr().out == first, "the line is the record's"
    record = runs.read_record("toy")
    assert record["long"]["steps"] == 60
    assert record["short"]["tolerance"] == 0.02
    assert record["long"]["score"] > 0.7
    assert record["long"]["score"] == loaded["score"](loaded["long"])
    for net in ("long", "short"):
        for a, b in zip(trained[net].parameters(), loaded[net].parameters(), strict=True):
            assert torch.equal(a, b), "both are the stored weights"
            assert b.dtype == torch.float32
        assert not loaded[net].training
    assert "`long` was trained earlier: 60 steps in " in first
    assert "; `make train CHAPTER=toy` repeats it." in first
    assert "`short`" not in first, "a quiet run is not told of"


def test_a_run_is_repeated(toy, tmp_path, monkeypatch):
    execute(toy, scale="record")
    before = runs.path_of("toy", "short").read_bytes()
    record = runs.read_record("toy")
    record["long"]["processor_seconds"] = 9.0
    record["short"]["processor_seconds"] = 4.0
    name = shortest(record)
    again = train_again(toy, "toy", name, tmp_path / "again", monkeypatch)
    assert again["score"] == pytest.approx(record[name]["score"], abs=1e-6)
    assert runs.path_of("toy", "short").read_bytes() == before
    assert not (tmp_path / "again" / "toy" / "long.safetensors").exists()


def test_the_random_state_is_left_alone(toy):
    drawn = []
    for scale in ("record", "mini"):
        execute(toy, scale=scale)  # setup seeds with 0, the runs draw from generators of their own
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_a_changed_score_or_network_is_refused(toy):
    execute(toy, scale="record")
    path = runs.CHECKPOINTS / "toy" / "record.json"
    record = runs.read_record("toy")
    record["long"]["score"] += 0.02
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match=r"run 'long' scores 0\.\d+, its record of .* ± 0\.01"):
        execute(toy)
    record["long"]["score"] -= 0.02
    path.write_text(json.dumps(record), encoding="utf-8")
    toy.write_text(TOY.replace("16", "17"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"'long': build\(\) no longer makes the network"):
        execute(toy)
    shutil.copy(runs.path_of("toy", "long"), runs.path_of("toy", "other"))
    toy.write_text(TOY.replace('"long"', '"other"'), encoding="utf-8")
    with pytest.raises(ValueError, match="no recorded run 'other' of toy .there are: long, short"):
        execute(toy)


@pytest.fixture
def session_of(monkeypatch):
    def begin(**told):
        monkeypatch.setattr(session, "current", session.Session(**told))

    monkeypatch.setattr(show, "publish", lambda *arguments: None)
    return begin


def linear() -> torch.nn.Module:
    return torch.nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Cascade 0"}, "name='Cascade 0'"),
        ({"name": "../x"}, "small letters"),
        ({"train": lambda net: None}, "train returned None; it must return the History"),
        ({"train": lambda net: 0}, "train returned 0"),
        ({"tolerance": 0}, "tolerance=0 must be more than 0"),
        ({"score": lambda net: float("nan")}, "scores nan"),
    ],
)
def test_recorded_refuses(toy, session_of, change, message):
    session_of(stem="toy", scale="record")
    given = {"name": "a", "build": linear, "train": lambda net: 3, "score": lambda net: 1.0}
    with pytest.raises(ValueError, match=message):
        chapter.recorded(**(given | change))


def test_recorded_wants_a_stem(toy, session_of):
    session_of()
    with pytest.raises(ValueError, match=r"chapter.setup\(seed, stem=…"):
        chapter.recorded("a", linear, lambda net: 1, lambda net: 1.0)


def test_a_chapter_has_a_budget(toy, session_of, monkeypatch):
    session_of(stem="toy", scale="record")
    arguments = ("a", linear, lambda net: 1, lambda net: 1.0)
    chapter.recorded(*arguments)
    monkeypatch.setattr(runs, "MOST_SECONDS", -1)
    with pytest.raises(ValueError, match="of processor time, a chapter may have"):
        chapter.recorded(*arguments)
    monkeypatch.setattr(runs, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"bytes, a chapter may have 100"):
        chapter.recorded(*arguments)


def test_what_float16_cannot_hold_stays_float32(toy, session_of):
    def large(net):
        net.weight.data.fill_(1e6)
        net.bias.data.fill_(0.1)
        return 1

    session_of(stem="toy", scale="record")
    net = chapter.recorded("large", linear, large, lambda net: 1.0)
    assert net.weight[0, 0] == 1e6
    assert net.bias[0] == torch.tensor(0.1).half().float()


def test_an_installed_wheel_records_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "PACKAGE", tmp_path / "refimpl")
    with pytest.raises(ValueError, match="clone the repository and run `make train"):
        chapter.setup(scale="record")
