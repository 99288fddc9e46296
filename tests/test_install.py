"""The built wheel in an environment of its own: what it carries, and that it changes no tools."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import run_chapters

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("wheel")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("wheel") / "site"
    run_chapters.install_wheel(folder)
    return folder


def run(site: Path, cwd: Path, *command: str) -> str:
    """What Python prints in an empty folder, with the installed wheel first on its path."""
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_carries_what_chapters_need(site, tmp_path):
    """Reference outputs, stored results, recorded runs, data: all read from the package."""
    (wheel,) = (site.parent / "dist").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (
        ("tests/golden", "refimpl/reference_outputs"),
        ("book/results", "refimpl/results"),
        ("refimpl", "refimpl"),
    ):
        files = [path for path in (ROOT / folder).rglob("*") if is_carried(path)]
        names = {f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
        assert names <= packed, sorted(names - packed)[:5]
    program = (
        "import refimpl, refimpl.golden as golden; from refimpl import chapter;"
        "print(refimpl.__file__, golden.load('efficientvit', 'm0').name,"
        " len(chapter.stored('leanvec')['rows']) > 0)"
    )
    file, *found = run(site, tmp_path, "-c", program).split()
    assert Path(file).is_relative_to(site)
    assert found == ["m0", "True"]


def is_carried(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def test_installing_adds_no_option_to_anybodys_pytest(site, tmp_path):
    assert "--golden" not in run(site, tmp_path, "-m", "pytest", "--help")
    # and this would have been seen: a plugin in an installed package does add options
    (plugin := tmp_path / "plugin").mkdir()
    (plugin / "some_options.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--golden')\n", encoding="utf-8"
    )
    (about := plugin / "some_options-1.dist-info").mkdir()
    (about / "METADATA").write_text("Name: some-options\nVersion: 1\n", encoding="utf-8")
    (about / "entry_points.txt").write_text("[pytest11]\nsome = some_options\n", encoding="utf-8")
    assert "--golden" in run(plugin, tmp_path, "-m", "pytest", "--help")
