"""The run that is prepared for a GPU, on Triton's interpreter; and that nothing stops it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refimpl.kernels import operations
from shared.kernels import needs_triton

SCRIPT = Path(__file__).parents[2] / "book" / "bench" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    specification = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    kept = list(sys.path)
    specification.loader.exec_module(module)
    sys.path[:] = kept
    return module


def test_a_kernel_and_a_model_on_the_interpreter(tmp_path):
    needs_triton()
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--interpreter"]
    command += ["--kernels", "lvq_inner_product", "--models", "efficientvit_m0"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "lvq_inner_product (" in done.stdout and "efficientvit (" in done.stdout
    kernel = json.loads((tmp_path / "out/kernels/lvq_inner_product.json").read_text("utf-8"))
    assert kernel["verified"] == "interpreter"
    assert kernel["machine"]["date"] == kernel["date"]
    assert kernel["versions"]["torch"]
    assert kernel["problems"] == []
    assert set(kernel["first_call_seconds"]) == {"forward", "backward"}
    assert "triton_gpu" not in kernel["agreement"]
    assert 0 < kernel["agreement"]["triton_interpreter"] <= 2
    assert kernel["checks"]["float32"]["beyond"] == []
    family = json.loads((tmp_path / "out/efficientvit.json").read_text("utf-8"))
    assert {row["form"] for row in family["models"]} == {"eager", "fused"}
    assert family["verified"] == "interpreter"


def test_every_kernel_and_family_has_a_job(gpu):
    found = gpu.jobs("*", "deit_*")
    assert [name for kind, name, _ in found if kind == "kernel"] == sorted(operations())
    assert ("family", "deit", gpu.FAMILY_SECONDS) in found


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import time; time.sleep(60)", "compile: stopped after 1 s"),
        ("import os; os.abort()", "compile: ended by signal SIGABRT"),
        ("raise SystemExit('no such kernel')", "compile: ended with status 1; no such kernel"),
    ],
)
def test_a_crash_or_a_hang_is_a_row_with_its_error(gpu, tmp_path, code, words):
    target = tmp_path / "row.json"
    target.write_text(json.dumps({"op": "ssd", "problems": [], "now": "compile"}), "utf-8")
    start = time.monotonic()
    gpu.run_job([sys.executable, "-c", code], target, 1.0, dict(os.environ))
    assert time.monotonic() - start < 30
    row = json.loads(target.read_text("utf-8"))
    assert row["op"] == "ssd"
    assert row["problems"] == [words]
    assert "now" not in row


def test_a_process_that_wrote_nothing_leaves_a_row_too(gpu, tmp_path):
    target = tmp_path / "row.json"
    gpu.run_job([sys.executable, "-c", "raise SystemExit(3)"], target, 20.0, dict(os.environ))
    assert json.loads(target.read_text("utf-8"))["problems"] == ["ended with status 3"]
    assert "PROBLEM ended with status 3" in gpu.told(json.loads(target.read_text("utf-8")))


def test_a_step_that_fails_or_does_not_fit_is_noted_and_the_next_one_runs(gpu, tmp_path):
    record = gpu.Record(tmp_path / "row.json", seconds=5)

    def fails():
        raise RuntimeError("out of resource: shared memory")

    assert record.attempt("compile forward", fails) is None
    assert record.attempt("torch.compile", list, needs=100) is None
    assert record.attempt("timing", lambda: 7) == 7
    row = json.loads((tmp_path / "row.json").read_text("utf-8"))
    assert row["problems"] == ["compile forward: RuntimeError: out of resource: shared memory"]
    assert row["left_out"] == ["torch.compile: 5 s left, 100 s wanted"]


def test_an_error_beyond_the_limit_is_told(gpu):
    checks = {"worst": 0.0, "beyond": []}
    gpu.note(checks, "worst", 1.9, 2, {"length": 7})
    assert checks == {"worst": 1.9, "beyond": []}
    gpu.note(checks, "worst", float("inf"), 2, {"length": 7})
    assert checks["worst"] == float("inf")
    assert checks["beyond"][0]["problem"] == "{'length': 7}"
