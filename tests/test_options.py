"""The tests' own options: any folder of reference outputs, from any folder; and a report of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from refimpl import golden

ROOT = Path(__file__).parents[1]


def run_pytest(*arguments: object, cwd: Path = ROOT) -> str:
    """What a pytest of its own prints; fails where that does not pass."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_recorded_case_is_tested():
    """No file of reference outputs without a test of that very case."""
    folders = [ROOT / "tests" / name for name in ("papers", "bases", "kernels")]
    collected = run_pytest("--collect-only", "-q", *folders)
    tested = re.findall(r"\[(\w+/[\w.-]+)\]", collected)
    files = {f"{path.parent.name}/{path.stem}" for path in golden.FOLDER.glob("*/*.json")}
    assert len(files) > 100
    assert files - set(tested) == set()


def test_reference_outputs_and_report_from_any_folder(tmp_path):
    """`pytest PATH/tests --golden DIR --exactness DIR` in a folder that is not the repository's."""
    cases = tmp_path / "cases" / "enamel"
    cases.mkdir(parents=True)
    shutil.copy(golden.FOLDER / "enamel" / "pass_at_k.json", cases / "another_name.json")
    report = tmp_path / "new" / "exactness"
    options = ("--golden", cases.parent, "--exactness", report, "-k", "official")
    assert "1 passed" in run_pytest(
        ROOT / "tests" / "papers" / "test_enamel.py", *options, cwd=tmp_path
    )
    written = json.loads((report / "enamel.json").read_text(encoding="utf-8"))
    assert [case["case"] for case in written["cases"]] == ["another_name"]
    assert written["cases"][0]["passed"]
    assert written["made"]["torch"]


def test_stored_exactness_holds_every_case():
    """What the book shows as agreement is there for every file of reference outputs."""
    files = {f"{path.parent.name}/{path.stem}" for path in golden.FOLDER.glob("*/*.json")}
    stored = set()
    for path in (ROOT / "book" / "results" / "exactness").glob("*.json"):
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
        stored |= {f"{case['stem']}/{case['case']}" for case in cases}
        assert all(case["passed"] for case in cases), path.name
    assert stored == files, "make bench BENCH='--only exactness'"
