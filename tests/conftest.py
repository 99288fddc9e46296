"""Shared by all tests: the official figures as a fixture, Triton's interpreter, one thread a worker, the exactness report."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

from refimpl import golden  # noqa: E402


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
        help="write every case's largest deviation to <DIR>/<stem>.json",
    )


deviations = pytest.StashKey[dict]()


def pytest_configure(config):
    config.stash[deviations] = {}


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)


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
    report = yield
    case = getattr(item, "callspec", None) and item.callspec.params.get("official_case")
    if case is not None and report.when == "call":
        record = {
            "stem": case.stem,
            "case": case.name,
            "source": case.data.get("source", ""),
            "params": case.data.get("params"),
            "macs": case.data.get("macs"),
            "batch": case.data["inputs"][0][0]
            if case.data.get("params")
            and isinstance(case.data.get("inputs"), list)
            and case.data["inputs"]
            else None,
            "deviation": max(case.deviations.values(), default=None),
            "passed": report.passed,
        }
        report.user_properties.append(("exactness", record))
    return report


def pytest_terminal_summary(terminalreporter, config):
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    records = [value for r in reports for key, value in r.user_properties if key == "exactness"]
    if not records:
        return
    terminalreporter.section("official figures: largest deviation as a share of the output's norm")
    for r in sorted(records, key=lambda r: (r["stem"], r["case"])):
        figure = "by the measure of its test" if r["deviation"] is None else f"{r['deviation']:.1e}"
        terminalreporter.write_line(
            f"{'ok  ' if r['passed'] else 'FAIL'} {r['stem']}/{r['case']:<36} {figure}"
        )
    if path := config.getoption("exactness"):
        made = {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "torch": torch.__version__}
        path.write_text(
            json.dumps(
                {"made": made, "cases": sorted(records, key=lambda r: (r["stem"], r["case"]))},
                indent=1,
            )
            + "\n"
        )
