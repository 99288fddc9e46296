"""When, where and with what a chapter was executed, and whether the package has changed since."""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from refimpl import catalogue
from refimpl.chapter import session, show
from refimpl.lab import measure

PACKAGE = Path(__file__).parents[1]
LEFT_OUT = (
    "refimpl/__init__.py",
    "refimpl/catalogue/__init__.py",
)  # they change with every paper; a chapter's own entry is digested instead


def imported_files() -> list[str]:
    """The package's source files imported so far (`refimpl/layers.py` …), sorted, without those that every paper changes."""
    files = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.split(".")[0] == "refimpl" and file and Path(file).is_relative_to(PACKAGE):
            files.add(Path(file).relative_to(PACKAGE.parent).as_posix())
    return sorted(files - set(LEFT_OUT))


def digest(files: Iterable[str], stem: str, root: Path | str = PACKAGE.parent) -> str:
    """SHA-256 of the named source files under `root` and of the paper's catalogue entry. Line ends do not count; a missing file does.

    files: names as `imported_files` gives them. Raises `ValueError` for an unknown stem.
    """
    if stem not in catalogue.PAPERS:
        raise ValueError(f"unknown paper {stem!r}; there are {', '.join(catalogue.PAPERS)}")
    total = hashlib.sha256()
    for name in sorted(files):
        path = Path(root) / name
        text = path.read_text(encoding="utf-8") if path.exists() else "missing"
        total.update(f"{name}\0{text}\0".encode())
    total.update(repr(catalogue.PAPERS[stem]).encode())
    return total.hexdigest()


def stale(recorded: dict, root: Path | str = PACKAGE.parent) -> bool:
    """Whether the sources that a stored stamp names differ from those under `root`."""
    return digest(recorded["files"], recorded["stem"], root) != recorded["digest"]


def stamp(stem: str) -> None:
    """Show when and with what this chapter ran; the last cell of every chapter.

    The output's metadata holds `{"refimpl": {"stamp": {"stem", "date", "seconds", "machine", "files", "digest" …}}}`, from which a
    test recomputes the digest (`stale`) and turns red when a source file has changed since.
    """
    from refimpl import __version__

    machine = measure.machine()
    files = imported_files()
    record = {
        "stem": stem,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - session.current.started, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "refimpl": __version__,
        "machine": machine,
        "files": files,
        "digest": digest(files, stem),
    }
    text = (
        f"Executed on {record['date']} in {record['seconds']:.0f} s on {machine['name']} with {machine['threads']} "
        f"thread{'s' if machine['threads'] != 1 else ''} · Python {record['python']}, torch {record['torch']}, numpy {record['numpy']}, "
        f"refimpl {record['refimpl']} · sources {record['digest'][:12]}"
    )
    show.publish({"text/markdown": text, "text/plain": text}, {"refimpl": {"stamp": record}})
