"""What a bench measured earlier, for chapters that show engines which a reader need not have."""

from __future__ import annotations

import json
from pathlib import Path

from refimpl import checks

INSTALLED = Path(__file__).parents[1] / "results"  # in the wheel: a copy of book/results
FOLDER = INSTALLED if INSTALLED.exists() else Path(__file__).parents[2] / "book" / "results"


def stored(stem: str, machine: str = "cpu") -> dict:
    """What `make bench` wrote about a stem: `book/results/<machine>/<stem>.json`.

    machine: `"cpu"`, `"gpu-<name>"`, or `"exactness"` (deviations from the reference outputs).
    Raises `ValueError` for a machine or a stem without results.
    """
    checks.choice("machine", machine, folder_names(FOLDER), "folder of results")
    results = {path.stem: path for path in (FOLDER / machine).glob("*.json")}
    checks.choice("stem", stem, sorted(results), f"{machine} result")
    return json.loads(results[stem].read_text(encoding="utf-8"))


def folder_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.is_dir())
