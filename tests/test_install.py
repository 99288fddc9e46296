"""The built wheel in an environment of its own: what it carries, that it changes no tools, and that
it works where nothing but the folder at hand can be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import run_chapters
from shared.locales import needs_python

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("wheel")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("wheel") / "site"
    run_chapters.install_wheel(folder)
    return folder


def run(
    site: Path,
    cwd: Path,
    *command: str,
    user: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> str:
    """What Python prints in an empty folder, with the installed wheel first on its path.

    user: the command that makes Python another user's; environment: variables over ours.
    """
    variables = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [*user, sys.executable, *command],
        cwd=cwd,
        env=variables | (environment or {}),
        capture_output=True,
        encoding="utf-8",
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


NOBODY = 65534
ANOTHER_USER = (  # who may read everything, since Python may lie in root's home, and write nothing
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"),
)
A_DAYS_WORK = """
import os
import sys

import torch

import refimpl
from refimpl import chapter, golden, kernels, weights
from refimpl.bases.programs import sandbox
from refimpl.lab import data

assert not os.access(os.path.dirname(refimpl.__file__), os.W_OK), "installed where we can write"
assert not os.access(os.path.expanduser("~"), os.W_OK), "a home folder that we can write"
model = refimpl.create_model("efficientvit_m0").eval()
name = "größe" if sys.getfilesystemencoding() == "utf-8" else "size"
for file in (f"{name}.safetensors", f"{name}.pth"):
    weights.save(model.fuse(), file)
    weights.load(model.fuse(), file)
assert model(torch.randn(1, 3, 224, 224)).isfinite().all()
assert golden.load("efficientvit", "m0").name == "m0"
assert chapter.stored("leanvec")["rows"]
assert len(data.digits().images) > 100
assert sandbox.run("def f():\\n    return 7", "f", (), seconds=60).value == 7
scan = kernels.operations()["selective_scan"]
ways = ["torch"] if kernels.triton_missing(torch.device("cpu")) else ["torch", "triton"]
for backend in ways:
    assert scan.function(**scan.example(), backend=backend).isfinite().all()
print("done")
"""


def another_user() -> tuple[str, ...]:
    """What makes a command another user's: nothing where we are no root ourselves."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return ()
    if subprocess.run([*ANOTHER_USER, sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip("root, and cannot become another user that may read Python")
    return ANOTHER_USER


def locked(folder: Path) -> Path:
    """In place: nobody may write in the folder."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="users and rights are POSIX's")
@pytest.mark.parametrize(
    "encoding",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["plain", "ascii"],
)
def test_a_days_work_where_only_one_folder_can_be_written(site, tmp_path, encoding):
    """As another user, without a home, from a read-only folder with a space and an umlaut."""
    needs_python(encoding)
    user = another_user()
    installed = tmp_path / "für alle" / "site"
    shutil.copytree(site, installed)
    locked(installed)
    home = locked(make(tmp_path / "kein zuhause"))
    work = make(tmp_path / "tägliche arbeit")
    if user:
        os.chown(work, NOBODY, NOBODY)
    program = tmp_path / "program.py"
    program.write_text(A_DAYS_WORK, encoding="utf-8")
    environment = encoding | {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    printed = run(installed, work, str(program), user=user, environment=environment)
    assert printed.split()[-1] == "done"


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder
