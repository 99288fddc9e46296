"""The modules of the package that get a reference page, room by room. Nothing is imported."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from refimpl_book import ROOT

PACKAGE = ROOT / "refimpl"
ROOMS = {  # folder -> heading, in the order of the index; other folders follow by their own name
    "": "The front door",
    "papers": "Papers",
    "bases": "Bases",
    "deploy": "Deployment",
    "kernels": "Kernels",
    "catalogue": "Catalogue",
    "lab": "Laboratory",
    "viz": "Seeing",
    "chapter": "Speaking to a chapter",
}


def module_file(name: str) -> Path:
    """The file of a module, `refimpl.layers` -> `…/refimpl/layers.py`."""
    path = ROOT.joinpath(*name.split("."))
    package = path / "__init__.py"
    return package if package.exists() else path.with_suffix(".py")


def docstring(name: str) -> str:
    """A module's docstring."""
    return ast.get_docstring(ast.parse(module_file(name).read_text(encoding="utf-8"))) or ""


def summary(name: str) -> str:
    """First paragraph of a module's docstring, in one line."""
    return " ".join(docstring(name).split("\n\n")[0].split())


def is_public(name: str) -> bool:
    """Left out: empty rooms, commands, each paper's data, the files inside a kernel's folder."""
    if ".__" in name or not docstring(name):
        return False
    return not re.fullmatch(r"refimpl\.(catalogue\.\w+|kernels\.\w+\.\w+)", name)


def modules() -> list[str]:
    """Names of all public modules, `refimpl` first, rooms before what they hold."""
    names = []
    for path in PACKAGE.rglob("*.py"):
        if (path.parent / "__init__.py").exists():
            *folders, last = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(folders if last == "__init__" else [*folders, last]))
    return sorted(filter(is_public, names), key=lambda name: (name.count("."), name))


def room_of(name: str) -> str:
    """The folder that a module lies in, `""` for the top floor."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def rooms() -> dict[str, list[str]]:
    """Folder -> its modules, in the order of `ROOMS`; rooms that hold nothing are left out."""
    found: dict[str, list[str]] = {room: [] for room in ROOMS}
    for name in modules():
        found.setdefault(room_of(name), []).append(name)
    return {room: names for room, names in found.items() if names}
