"""Where measurements lie: one JSON file for each stem, so that no two papers write the same file.

    book/results/cpu/<stem>.json          speed of a family's models, or what a paper's own bench
                                          measured
    book/results/cpu/kernels/<op>.json    agreement and speed of a kernel
    book/results/compiled/<op>.json       for which GPUs a kernel compiled without one
    book/results/gpu-<name>/…             the same, measured on that GPU
    book/results/exactness/<stem>.json    deviations from the reference outputs, by
                                          `pytest tests --exactness DIR`

Every file says by itself on which machine, when and with which versions it was measured.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results"


def folder() -> Path:
    """The folder of this machine's kind: `cpu`, or `gpu-<name>` where there is a GPU."""
    if not torch.cuda.is_available():
        return RESULTS / "cpu"
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return RESULTS / f"gpu-{name}"


def read(path: Path) -> dict:
    """The content of a results file, empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, record: dict) -> None:
    """Write a results file, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, default=float) + "\n", encoding="utf-8")
    print(f"-> {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
