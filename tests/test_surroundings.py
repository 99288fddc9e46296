"""Machines that people have: other locales, file names, rights. See also `test_install.py`."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from shared.locales import needs_python

ROOT = Path(__file__).parents[1]
FOLDERS = ("refimpl", "book", "tests")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
READS_OR_WRITES = ("open", "fdopen", "read_text", "write_text")
INSTALLED = ("chapters", "test", "gpu")  # extras of the weekly run
OTHERS = (
    "Image",
    "browser",
    "explorer",
    "execute",
    "self",
)  # whose methods of these names are no file's


def unnamed_encodings(source: str) -> Iterator[int]:
    """Lines that read or write text in whatever encoding the machine has."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        owner, _, name = ast.unparse(node.func).rpartition(".")
        names = {keyword.arg for keyword in node.keywords}
        texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        if "encoding" in names or "utf-8" in texts:
            continue
        if names & {"text", "universal_newlines"}:
            yield node.lineno  # of a child process
        elif name in READS_OR_WRITES and owner not in OTHERS and (owner or name == "open"):
            flags = owner == "os" and name == "open"  # the system's call, which knows bytes only
            if not flags and not any(is_binary(text) for text in texts):
                yield node.lineno


def is_binary(mode: object) -> bool:
    return isinstance(mode, str) and "b" in mode and set(mode) <= set("rwxab+")


def test_a_rule_that_finds_what_it_should():
    for line in (
        "open(path)",
        'path.open("w")',
        "path.read_text()",
        "path.write_text(text)",
        "os.fdopen(file)",
        "subprocess.run(command, text=True)",
        "subprocess.run(command, capture_output=True, universal_newlines=True)",
    ):
        assert list(unnamed_encodings(line)) == [1], line
    for line in (
        'open(path, "rb")',
        'open(path, encoding="utf-8")',
        'path.read_text("utf-8")',
        "path.read_bytes()",
        "Image.open(path)",
        'subprocess.run(command, encoding="utf-8")',
    ):
        assert list(unnamed_encodings(line)) == [], line


def test_text_is_utf8_by_name():
    """Also where ruff's PLW1514 can't tell a path from something else."""
    found = []
    for path in SOURCES:
        for line in unnamed_encodings(path.read_text(encoding="utf-8")):
            found.append(f"{path.relative_to(ROOT)}:{line}")
    assert found == []


def test_advice_names_this_repository():
    """Whoever owns the name `refimpl` on an index of packages could be anybody."""
    patterns = ("README.md", "CONTRIBUTING.md", "book/**/*.md", "notebooks/text/*.md")
    texts = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    assert len(texts) > 10
    found = []
    advising = [path for path in SOURCES if not path.is_relative_to(ROOT / "tests")]
    for path in texts + advising:
        for match in re.finditer(r"pip install[^\n`]*", path.read_text(encoding="utf-8")):
            bare = re.search(r"(?<![/\w])refimpl(\[[\w,]+\])?(?! @ git\+|[\w\[])", match[0])
            if bare:
                found.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert found == []


def test_a_chapter_is_written_whole_or_not_at_all(tmp_path):
    """In a locale without UTF-8, and where writing ends half-way: the text that was there stays."""
    program = """
import pathlib, sys
import execute, nbformat
execute.NOTEBOOKS = folder = pathlib.Path(sys.argv[1])
text = folder / "text" / "convit.md"
notebook = nbformat.read(sys.argv[2], 4)
execute.write_text("convit", notebook)
written = text.read_bytes()
assert execute.text_of(notebook).encode() == written and not written.isascii()
notebook.cells[0].source += "\\udcff"  # not to be encoded
try:
    execute.write_text("convit", notebook)
except UnicodeEncodeError:
    assert text.read_bytes() == written
    assert [path.name for path in text.parent.iterdir()] == ["convit.md"]
    print("kept")
"""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "convit.md").write_text("σ", encoding="utf-8")
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    path = os.pathsep.join([str(ROOT / "book" / "tools"), str(ROOT)])
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    needs_python(locale)
    done = subprocess.run(
        [sys.executable, "program.py", str(tmp_path), str(ROOT / "notebooks" / "convit.ipynb")],
        cwd=tmp_path,
        env=os.environ | locale | {"PYTHONPATH": path},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stdout.strip() == "kept", done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, "C.UTF-8"),
        ({"LC_ALL": "C"}, "C.UTF-8"),
        ({"LANG": "POSIX"}, "C.UTF-8"),
        ({"LC_ALL": "C.utf8"}, "C.utf8"),
        ({"LANG": "de_DE.UTF-8"}, ""),
    ],
)
def test_make_works_in_a_folder_with_an_umlaut(given, wanted):
    """In the C locale Python 3.11 would not start there: see the Makefile."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "MAKE"))}
    done = subprocess.run(
        ["make", "--eval", 'show: ; @echo "is $$LC_ALL"', "show"],
        cwd=ROOT,
        env=environment | given,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stdout.strip() == f"is {wanted}".strip(), done.stderr


def test_the_oldest_versions_are_the_bounds_of_the_project():
    """`constraints-oldest.txt` pins every lower bound of what the weekly run installs."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    bounds = {}
    for line in (*project["dependencies"], *(r for e in INSTALLED for r in extras[e])):
        requirement = Requirement(line)
        (bound,) = requirement.specifier
        if bound.operator == ">=":
            bounds[requirement.name] = Version(bound.version)
    pins = {}
    for line in (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[name] = Version(version)
    assert pins == bounds
