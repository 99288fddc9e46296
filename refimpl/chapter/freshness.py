"""When, where and with what a chapter was executed, and whether what it computes with has changed.

A chapter is stale when the *syntax tree* of a file that it computes with has changed. Comments,
docstrings and layout make nothing stale, nor does anything that only draws or speaks (`viz`,
`chapter`, `lab.measure`, `catalogue`).
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sys
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import numpy as np
import torch

from refimpl import catalogue, checks
from refimpl.chapter import session, show
from refimpl.lab import measure

PACKAGE = Path(__file__).parents[1]
COMPUTES = (  # files whose names begin so are what chapters compute with
    "refimpl/papers/",
    "refimpl/bases/",
    "refimpl/kernels/",
    "refimpl/deploy/",
    "refimpl/layers.py",
    "refimpl/golden.py",
    "refimpl/lab/data",
    "refimpl/lab/train",
)


def computing_files() -> list[str]:
    """The files imported so far that compute (`refimpl/layers.py` …), sorted."""
    files = set()
    for module in list(sys.modules.values()):
        path = Path(getattr(module, "__file__", None) or ".")
        if path.is_relative_to(PACKAGE):
            files.add(path.relative_to(PACKAGE.parent).as_posix())
    return sorted(file for file in files if file.startswith(COMPUTES))


def digest(files: Iterable[str], root: Path | str = PACKAGE.parent) -> str:
    """SHA-256 of the syntax trees of the named files under `root`, without their docstrings.

    files: names as `computing_files` gives them. A file that is missing counts as changed.
    """
    total = hashlib.sha256()
    for name in sorted(files):
        path = Path(root) / name
        tree = fingerprint(path.read_text(encoding="utf-8")) if path.exists() else "missing"
        total.update(f"{name}\0{tree}\0".encode())
    return total.hexdigest()


@cache
def fingerprint(source: str) -> str:
    """SHA-256 of a module's syntax tree without docstrings, the same under every Python."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(written(tree).encode()).hexdigest()


def written(node: object) -> str:
    """A syntax tree as text: like `ast.dump`, but without what only some versions of Python have.

    Empty fields are left out: `ast.dump` writes them up to Python 3.12, and 3.12 brought new ones.
    So are empty pieces of f-strings, which 3.12 adds to some.
    """
    if isinstance(node, ast.JoinedStr):
        pieces = [piece for piece in node.values if getattr(piece, "value", None) != ""]
        return f"JoinedStr({written(pieces)})"
    if isinstance(node, list):
        return f"[{','.join(map(written, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [
        f"{name}={written(value)}"
        for name, value in ast.iter_fields(node)
        if value is not None and value != []
    ]
    return f"{type(node).__name__}({','.join(fields)})"


def stale(recorded: dict, root: Path | str = PACKAGE.parent) -> bool:
    """Whether the files that a stored stamp names compute differently under `root`."""
    return digest(recorded["files"], root) != recorded["digest"]


def stamp(stem: str) -> None:
    """Show when and with what this chapter ran; the last cell of every chapter.

    The output's metadata holds `{"refimpl": {"stamp": {"stem", "date", "seconds", "machine",
    "files", "digest" …}}}`, from which a test recomputes the digest (`stale`) and turns red when
    a file computes differently since. Raises `ValueError` for an unknown stem.
    """
    from refimpl import __version__

    checks.choice("stem", stem, catalogue.PAPERS, "paper")
    machine = measure.machine()
    files = computing_files()
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
        "digest": digest(files),
    }
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    text = (
        f"Executed on {record['date']} in {record['seconds']:.0f} s on {machine['name']} with"
        f" {threads} · Python {record['python']}, torch {record['torch']}, numpy"
        f" {record['numpy']}, refimpl {record['refimpl']} · sources {record['digest'][:12]}"
    )
    show.publish({"text/markdown": text, "text/plain": text}, {"refimpl": {"stamp": record}})
