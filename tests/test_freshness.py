"""A chapter is stale when what it computes with has changed, and only then."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl.chapter import freshness, show

ROOT = Path(__file__).parents[1]
STEMS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
IMPORTED = """  # in a process of its own: the package is imported afresh for each paper
import importlib, json, sys
found = {}
for stem in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] == "refimpl"]:
        del sys.modules[name]
    for name in ("chapter", "lab", "viz.attention", f"papers.{stem}"):
        importlib.import_module(f"refimpl.{name}")
    found[stem] = sys.modules["refimpl.chapter.freshness"].computing_files()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def files() -> dict[str, list[str]]:
    """What each paper's chapter computes with at the least: what its module imports."""
    command = [sys.executable, "-c", IMPORTED.lstrip(), *STEMS]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", check=True
    )
    return json.loads(done.stdout)


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the package, to change."""
    ignored = shutil.ignore_patterns("__pycache__", "checkpoints")
    shutil.copytree(ROOT / "refimpl", tmp_path / "refimpl", ignore=ignored)
    return tmp_path


@pytest.fixture
def stale(files, copy):
    """The chapters that are stale in the copy, were each executed with the package as it is."""
    stamps = {
        stem: {"files": names, "digest": freshness.digest(names)} for stem, names in files.items()
    }
    return lambda: [stem for stem, stamp in stamps.items() if freshness.stale(stamp, copy)]


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} holds no {old!r}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_an_unchanged_copy_is_fresh(stale, copy):
    assert stale() == []
    for path in copy.rglob("*.py"):  # line ends of another system
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert stale() == []


def test_a_comment_makes_nothing_stale(stale, copy):
    for path in (copy / "refimpl").rglob("*.py"):
        path.write_text(f"{path.read_text(encoding='utf-8')}\n# a remark\n", encoding="utf-8")
    assert stale() == []


def test_a_docstring_makes_nothing_stale(stale, copy):
    for name in ("papers/efficientvit.py", "layers.py", "golden.py"):
        path = copy / "refimpl" / name
        text = path.read_text(encoding="utf-8")
        changed = re.sub(r'"""', '"""Said otherwise. ', text, count=1)
        changed = re.sub(r'(def forward.*\n +)"""', r'\1"""Said otherwise. ', changed)
        assert changed != text
        path.write_text(changed, encoding="utf-8")
    assert stale() == []


@pytest.mark.parametrize("stem", STEMS)
def test_a_constant_of_a_paper_makes_its_chapter_stale_and_no_other(stale, copy, stem):
    path = copy / "refimpl" / "papers" / f"{stem}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constant = next(
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float)
    )
    constant.value += 1
    path.write_text(ast.unparse(tree), encoding="utf-8")
    assert stale() == [stem]


def test_what_all_compute_with_makes_all_stale(stale, copy):
    path = next((copy / "refimpl" / "lab").glob("data*"))
    path = path / "__init__.py" if path.is_dir() else path
    path.write_text(f"{path.read_text(encoding='utf-8')}\nMORE = 1\n", encoding="utf-8")
    assert stale() == STEMS


@pytest.mark.parametrize("place", ["viz", "chapter", "catalogue", "lab/measure", "checks.py"])
def test_what_only_draws_speaks_or_measures_makes_nothing_stale(stale, copy, place):
    room = copy / "refimpl" / place
    for path in room.rglob("*.py") if room.is_dir() else [room]:
        path.write_text(f"{path.read_text(encoding='utf-8')}\nMORE = 1\n", encoding="utf-8")
    assert stale() == []


def test_a_missing_file_makes_stale(stale, copy):
    (copy / "refimpl" / "papers" / f"{STEMS[0]}.py").unlink()
    assert stale() == STEMS[:1]


def test_stamp_names_what_was_imported(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "publish", lambda data, metadata: shown.append(metadata))
    freshness.stamp("efficientvit")
    record = shown[0]["refimpl"]["stamp"]
    assert "refimpl/lab/train.py" in record["files"]
    assert record["files"] == sorted(record["files"])
    assert all(name.startswith(freshness.COMPUTES) for name in record["files"])
    assert not freshness.stale(record)
    with pytest.raises(ValueError, match="did you mean 'efficientvit'"):
        freshness.stamp("eficientvit")


def test_fingerprint_is_the_same_under_every_python():
    """Recorded under Python 3.11; CI runs this under 3.10, 3.12 and 3.13 too."""
    source = 'class A:\n    x = f"{1:{2}.{3}f}"\n'
    source += "def f(*, a, b=...):\n    return {**a, 'b': b}\n"
    assert freshness.fingerprint(source)[:16] == "18abd70c04fe515e"


def test_fingerprint_sees_values_and_order():
    """Programs that differ in layout, comments and docstrings alone have one fingerprint."""
    plain = freshness.fingerprint("def f(x, y=None):\n    return [x, y, 1.0, 'a']\n")
    same = 'def f(x,\n      y=None):  # layout\n    """Words."""\n    return [x, y, 1.0, "a"]\n'
    assert freshness.fingerprint(same) == plain
    for other in (
        "def f(x, y=None):\n    return [x, y, 1, 'a']\n",
        "def f(x, y=None):\n    return [x, y, 1.0, b'a']\n",
        "def f(x, y=None):\n    return (x, y, 1.0, 'a')\n",
        "def f(x, y=0):\n    return [x, y, 1.0, 'a']\n",
        "def f(x, y=None):\n    return [y, x, 1.0, 'a']\n",
        "def f(x, *, y=None):\n    return [x, y, 1.0, 'a']\n",
    ):
        assert freshness.fingerprint(other) != plain
