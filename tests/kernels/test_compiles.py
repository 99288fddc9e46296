"""Every Triton kernel compiles to a GPU's machine code, also where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl.kernels import operations
from shared import ptx
from shared.kernels import CONTRACTS, needs_triton

SCRIPT = Path(__file__).parents[1] / "shared" / "ptx.py"
BACKWARD = {
    "grid_encode",
    "modulation_gate",
    "selective_scan",
    "sparse_target_loss",
}  # kernels of their own for the way back


@pytest.fixture(scope="module")
def compiled():
    needs_triton()
    pytest.importorskip("triton.backends.nvidia")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--no-import", "--targets", "90"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert rows, done.stderr
    return rows


def test_nothing_imports_triton_before_its_form_is_called(compiled):
    assert compiled[0] == {"imported_early": []}


@pytest.mark.parametrize("op", sorted(operations()))
def test_compiles_forward_and_backward(op, compiled):
    rows = [row for row in compiled[1:] if row["op"] == op]
    assert not [row["error"] for row in rows if "error" in row]
    names = [row["kernel"] for row in rows]
    assert names
    assert ("backward" in names) == (op in BACKWARD)
    assert not (CONTRACTS[op].forward_only and op in BACKWARD)
    for row in rows:
        assert row["ptx"] > 0 and row["machine_code"] > 0
        assert row["shared"] <= ptx.SHARED[75], "fits into the smallest card, a T4"
        assert len(row["grid"]) == 1, "along the axis that takes 2³¹ − 1 programs"
