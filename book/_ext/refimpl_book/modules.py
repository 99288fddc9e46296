"""The modules of the package that get a reference page, room by room. Nothing is imported.

Also what a room gives on from its files, and which chapters use a module.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
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


@cache
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


@cache
def short_name(name: str) -> tuple[str, int]:
    """A module below the nearest page above it, and how many pages are above: for the tree.

    `refimpl.lab.measure.timing` -> (`timing`, 2), since `refimpl.lab` and `….measure` have pages.
    """
    known = modules()
    above = [other for other in known if name.startswith(f"{other}.") and other != "refimpl"]
    return name.removeprefix(f"{max(above, key=len, default='refimpl')}."), len(above)


# -- what is given on, and who uses it


def is_module(name: str) -> bool:
    return module_file(name).exists()


@cache
def imports(name: str) -> dict[str, str]:
    """Names that a module of ours has from another one of ours: name -> where from."""
    tree = ast.parse(module_file(name).read_text(encoding="utf-8"))
    return dict(imported(tree))


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """`from refimpl.a import b as c` -> (`c`, `refimpl.a.b`), everywhere in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("refimpl"):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("refimpl"):
                    bound = alias.name if alias.asname else "refimpl"
                    yield alias.asname or "refimpl", bound


def home(dotted: str) -> tuple[str, str]:
    """(module, name in it) of what a dotted name leads to, through rooms that give it on."""
    parts = dotted.split(".")
    size = max(i for i in range(1, len(parts) + 1) if is_module(".".join(parts[:i])))
    module, rest = ".".join(parts[:size]), parts[size:]
    if rest and rest[0] in imports(module):
        return home(".".join([imports(module)[rest[0]], *rest[1:]]))
    return module, ".".join(rest)


def given_on(name: str) -> dict[str, list[str]]:
    """What `__all__` of a module names and another file holds: that file -> names."""
    tree = ast.parse(module_file(name).read_text(encoding="utf-8"))
    lists = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    found: dict[str, list[str]] = {}
    for given in lists[0] if lists else ():
        module, rest = home(f"{name}.{given}")
        if module != name:
            found.setdefault(module, []).append(rest)
    return found


def uses(notebook: Path) -> set[str]:
    """Modules of ours whose functions and classes the cells of a notebook name."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    text = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", "\n".join(sources))
    tree = ast.parse(text)
    bound = dict(imported(tree))
    named = {whole for whole in bound.values() if not is_module(whole)}
    for node in ast.walk(tree):
        first, *rest = dotted_name(node)
        if first in bound and rest:
            named.add(".".join([bound[first], *rest]))
    return {home(whole)[0] for whole in named if home(whole)[1]}


def dotted_name(node: ast.AST) -> list[str]:
    """`a.b.c` as its parts; anything else as one empty part."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = dotted_name(node.value)
        return [*before, node.attr] if before != [""] else before
    return [""]


@cache
def used_in() -> dict[str, list[str]]:
    """Module with a page -> stems of the chapters that use it, or a file that it stands for."""
    found: dict[str, list[str]] = {}
    known = set(modules())
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        pages = set()
        for name in uses(notebook):
            while name not in known:
                name = name.rpartition(".")[0] or "refimpl"
            pages.add(name)
        for name in sorted(pages):
            found.setdefault(name, []).append(notebook.stem)
    return found
