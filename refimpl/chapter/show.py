"""Show Markdown and source code so that they read well in the book, Colab and GitHub."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
import types
from pathlib import Path

from refimpl.lab.train import in_notebook

PACKAGE = Path(__file__).parents[1]


def publish(data: dict[str, str], metadata: dict | None = None) -> None:
    """Display a bundle (MIME type -> text); outside a notebook, print its `text/plain`."""
    if in_notebook():
        from IPython.display import display

        display(data, raw=True, metadata=metadata or {})
    else:
        print(data["text/plain"])


def say(markdown: str) -> None:
    """Show Markdown that the chapter computed: `chapter.say(f"… {ratio:.2f} …")`.

    A sentence so can't disagree with its number.
    """
    text = inspect.cleandoc(markdown)
    publish({"text/markdown": text, "text/plain": text})


def show_source(*objects, docstring: bool = True) -> None:
    """Show the source of functions, classes, methods or modules, with file and line.

    It is the running package's own text. `docstring=False` leaves the docstrings out. Raises
    `ValueError` for an object that has no Python source (a built-in, an instance).
    """
    parts = []
    for obj in objects:
        where, source = read_source(obj)
        if not docstring:
            source = without_docstrings(source)
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`{3,}", source)), default=0))
        parts.append(f"{where}\n\n{fence}python\n{source.strip()}\n{fence}")
    text = "\n\n".join(parts)
    publish({"text/markdown": text, "text/plain": text})


def read_source(obj) -> tuple[str, str]:
    """Where an object is defined (`refimpl/layers.py, line 40`) and its source, dedented."""
    if isinstance(obj, property):
        obj = obj.fget
    if isinstance(obj, functools.partial):
        obj = obj.func
    obj = inspect.unwrap(obj) if callable(obj) and not isinstance(obj, types.ModuleType) else obj
    try:
        lines, first = inspect.getsourcelines(obj)
        file = Path(inspect.getsourcefile(obj) or "")
    except (TypeError, OSError) as error:
        kind = type(obj).__name__
        raise ValueError(
            f"show_source: {obj!r} ({kind}) has no Python source; give a function, class, method"
            " or module"
        ) from error
    name = file.relative_to(PACKAGE.parent).as_posix() if file.is_relative_to(PACKAGE) else None
    if name is None:
        module = getattr(obj, "__module__", "") or ""
        name = "this notebook" if module == "__main__" else module or file.name
        return f"Source: {name}", textwrap.dedent("".join(lines))
    return f"Source: {name}, line {max(first, 1)}", textwrap.dedent("".join(lines))


def without_docstrings(source: str) -> str:
    """The same source without docstrings; a body of a docstring alone keeps `...`."""
    lines = source.splitlines()
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, documented) or ast.get_docstring(node) is None:
            continue
        first = node.body[0]
        for i in range(first.lineno - 1, first.end_lineno):
            lines[i] = None
        if len(node.body) == 1 and not isinstance(node, ast.Module):
            lines[first.lineno - 1] = " " * first.col_offset + "..."
        elif first.end_lineno < len(lines) and not (lines[first.end_lineno] or "x").strip():
            lines[first.end_lineno] = None  # the blank line that set it off
    return "\n".join(line for line in lines if line is not None)
