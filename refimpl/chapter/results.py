"""What a bench measured earlier, for chapters that show engines which a reader need not have."""

from __future__ import annotations

import json
from pathlib import Path

INSTALLED = Path(__file__).parents[1] / "results"
FOLDER = INSTALLED if INSTALLED.exists() else Path(__file__).parents[2] / "book" / "results"


def stored(name: str) -> dict:
    """`book/results/<name>.json`; in the wheel, the ones that a chapter shows."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        raise ValueError(
            f"no stored results {name!r}; there are {', '.join(sorted(p.stem for p in FOLDER.glob('*.json'))) or 'none'}"
        )
    return json.loads(path.read_text(encoding="utf-8"))
