"""Adding a paper touches its own files and one word in `PARTS`: done here, in a temporary copy.

`tests/example` holds the smallest paper that keeps every rule, in a tree like the repository's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "tests" / "example"
STEM = "zz_example"
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "_build", "__pycache__", ".*_cache", "refimpl*.md", "dist"
)

pytestmark = [
    pytest.mark.xdist_group("wheel"),
    pytest.mark.skipif(not shutil.which("make") or os.name == "nt", reason="needs make and sh"),
]


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the repository whose `.venv` is the Python of these tests."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT, symlinks=True)
    python = copy / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    (copy / ".venv" / ".ready").touch()  # newer than pyproject.toml: nothing is installed
    return copy


def make(copy: Path, *arguments: str) -> str:
    """What `make` prints in the copy; fails where it fails."""
    environment = os.environ | {"PYTHONPATH": str(copy)}
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    done = subprocess.run(
        ["make", *arguments], cwd=copy, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, f"make {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_a_paper_is_added_by_its_own_files_and_one_word(copy):
    for path in filter(Path.is_file, EXAMPLE.rglob("*.*")):
        place = copy / path.relative_to(EXAMPLE)
        if "__pycache__" not in path.parts and path.name != "README.md":
            assert not place.exists(), f"{place} is a shared file"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    catalogue = copy / "refimpl" / "catalogue" / "__init__.py"
    text = catalogue.read_text(encoding="utf-8")
    assert text.count('"convit", "dvt"') == 1
    changed = text.replace('"convit", "dvt"', f'"convit", "dvt", "{STEM}"')
    catalogue.write_text(changed, encoding="utf-8")

    make(copy, "execute", f"CHAPTER={STEM}")
    make(copy, "readme")
    said = make(copy, "test", f"CHAPTER={STEM}")

    assert f"test_official[{STEM}/tiny]" in said
    assert f"test_heart_is_the_package_s_function[{STEM}]" in said
    assert f"chapter {STEM}: passed" in said
    assert STEM in (copy / "book" / "_toc.yml").read_text(encoding="utf-8")
    assert "ZZ-Example" in (copy / "README.md").read_text(encoding="utf-8")
