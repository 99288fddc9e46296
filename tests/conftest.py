"""Shared by all tests: reference outputs as a fixture, Triton's interpreter, exactness reports."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

from refimpl import golden

pytest_plugins = ["shared.browser"]


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        metavar="DIR",
        type=Path,
        help="folder of reference outputs, <DIR>/<stem>/<case>.json (default: tests/golden)",
    )
    parser.addoption(
        "--exactness",
        metavar="DIR",
        type=Path,
        help="write the largest deviation of every case that ran to <DIR>/<stem>.json",
    )
    parser.addoption(
        "--all-variants",
        action="store_true",
        help="what a user does next: every variant of a family in full, not the smallest alone",
    )


collect_ignore = ["example"]  # files of a paper that tests/test_dry_run.py adds to a copy


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_style():
    """A test that draws in the book's style leaves matplotlib as it was for the next one."""
    if importlib.util.find_spec("matplotlib") is None:  # the extra 'chapters': nobody draws
        yield
        return
    import matplotlib

    with matplotlib.rc_context():
        yield
    if "matplotlib.pyplot" in sys.modules:
        matplotlib.pyplot.close("all")


@pytest.fixture
def timm():
    """The peer, where it is installed: nothing of ours needs it."""
    return pytest.importorskip("timm", reason="timm is a peer, not a dependency")


def pytest_generate_tests(metafunc):
    """`official_case` runs over every file of the module's `STEM` (or `STEMS`)."""
    if "official_case" not in metafunc.fixturenames:
        return
    folder = metafunc.config.getoption("golden") or golden.FOLDER
    stems = getattr(metafunc.module, "STEMS", None) or [metafunc.module.STEM]
    cases = [case for stem in stems for case in golden.cases(stem, folder)]
    metafunc.parametrize("official_case", cases, ids=[f"{c.stem}/{c.name}" for c in cases])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test of a case leaves its record in the report, which xdist carries to the main process."""
    report = yield
    callspec = getattr(item, "callspec", None)
    case = callspec.params.get("official_case") if callspec else None
    if case is not None and report.when == "call":
        report.user_properties.append(("exactness", exactness(case) | {"passed": report.passed}))
    return report


def exactness(case: golden.Case) -> dict:
    """What a case records, and how far from it ours is."""
    inputs = case.data.get("inputs")
    worst = max(case.deviations.values(), default=None)
    images = case.data.get("params") and isinstance(inputs, list) and inputs
    return {
        "stem": case.stem,
        "case": case.name,
        "source": case.data.get("source", ""),
        "params": case.data.get("params"),
        "macs": case.data.get("macs"),
        "batch": inputs[0][0] if images else None,
        "deviation": None if worst is None else float(worst),  # xdist carries no NumPy number
    }


def pytest_terminal_summary(terminalreporter, config):
    """List every case with its deviation, and write them where `--exactness` says."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    records = [value for r in reports for key, value in r.user_properties if key == "exactness"]
    if not records:
        return
    records.sort(key=lambda record: (record["stem"], record["case"]))
    terminalreporter.section("reference outputs: deviation as a fraction of the output's norm")
    for record in records:
        sign = "ok  " if record["passed"] else "FAIL"
        deviation = record["deviation"]
        shown = "by the measure of its test" if deviation is None else f"{deviation:.1e}"
        terminalreporter.write_line(f"{sign} {record['stem']}/{record['case']:<36} {shown}")
    if folder := config.getoption("exactness"):
        write_exactness(folder, records)


def write_exactness(folder: Path, records: list[dict]) -> None:
    """One file for each stem of the records, which are sorted by stem."""
    made = {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "torch": torch.__version__}
    folder.mkdir(parents=True, exist_ok=True)
    for stem, cases in groupby(records, key=lambda record: record["stem"]):
        text = json.dumps({"made": made, "cases": list(cases)}, indent=1)
        (folder / f"{stem}.json").write_text(f"{text}\n", encoding="utf-8")
