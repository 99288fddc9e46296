"""Programming tasks with solutions of different cost: what a benchmark of generated code starts from.

Ten tasks, written for this book (the benchmarks' own are elsewhere: ENAMEL's 142 at q-rz/enamel). One file each in `tasks/`, read as data:

    PROMPT      signature and docstring of the function that is asked for, named as the file
    EXAMPLES    (arguments, answer) …: the weak tests that such a docstring would give
    SIZES       one a level, growing
    generate(size, level, case, rng) -> tuple of arguments
    check(args, answer, output) -> bool       optional; the usual one asks for the same type and value
    reference                                 the expert's solution; only its body counts
    every later function                      a solution; its docstring begins `O(…), right: …` or `O(…), wrong: …`

The files are trusted; the samples that people bring are not, and run in `refimpl.bases.programs.sandbox`.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

FILES = Path(__file__).with_name("tasks")


@dataclass(frozen=True)
class Solution:
    """A program of the task's own: `code` is a body that follows the prompt; cost and right are its author's word, which the tests check."""

    name: str
    code: str
    cost: str  # "O(n log n)"
    right: bool
    note: str


@dataclass(frozen=True)
class Task:
    """One task, as its file gives it; `reference` is a body that follows the prompt."""

    name: str
    prompt: str
    examples: tuple[tuple[tuple, object], ...]
    sizes: tuple[int, ...]
    generate: Callable
    check: Callable
    reference: str
    solutions: dict[str, Solution]

    def program(self, code: str) -> str:
        """The prompt and then `code`: a body continues the prompt's function, a whole definition replaces it."""
        return f"{self.prompt}\n{code}"

    def accepts(self, args: tuple, answer: object, output: object) -> bool:
        """The checker's word; a checker that an odd output makes raise has not accepted it."""
        try:
            return bool(self.check(args, answer, output))
        except Exception:
            return False


@dataclass(frozen=True)
class Sample:
    """A program that somebody wrote for a task, and its line in the file that it came from."""

    task: str
    code: str
    line: int = 0


def equal(args: tuple, answer: object, output: object) -> bool:
    """The usual checker: same type, same value."""
    return type(output) is type(answer) and output == answer


@functools.cache
def tasks() -> dict[str, Task]:
    """All tasks by name."""
    return {path.stem: read_task(path) for path in sorted(FILES.glob("*.py"))}


def task(name: str) -> Task:
    """One task, or a `ValueError` with the nearest names."""
    if name in tasks():
        return tasks()[name]
    near = get_close_matches(name, tasks(), 3, 0.4)
    raise ValueError(
        f"unknown problem {name!r}"
        + (f"; did you mean {', '.join(near)}?" if near else f"; there are {', '.join(tasks())}")
    )


def read_task(path: Path) -> Task:
    """A task from its file."""
    source = path.read_text(encoding="utf-8")
    space: dict = {"__name__": path.stem}
    exec(compile(source, str(path), "exec"), space)
    functions = {
        node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)
    }

    def body(node: ast.FunctionDef) -> str:
        first = node.body[1] if ast.get_docstring(node) else node.body[0]
        return "\n".join(source.splitlines()[first.lineno - 1 : node.end_lineno]) + "\n"

    solutions = {}
    for name, node in functions.items():
        if name not in ("generate", "check", "reference"):
            cost, verdict, note = re.fullmatch(
                r"(O\(.+?\)), (right|wrong): (.+)", ast.get_docstring(node)
            ).groups()
            solutions[name] = Solution(name, body(node), cost, verdict == "right", note)
    check, reference = space.get("check", equal), body(functions["reference"])
    return Task(
        path.stem,
        space["PROMPT"],
        tuple(space["EXAMPLES"]),
        space["SIZES"],
        space["generate"],
        check,
        reference,
        solutions,
    )


def read_samples(lines: Iterable[bytes]) -> tuple[list[Sample], list[str]]:
    """Samples from lines of JSON `{"problem": name, "code": program}`, and what is wrong with the other lines, by number. Empty lines are passed over."""
    samples, complaints = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line.decode("utf-8-sig"))
            if not isinstance(entry, dict):
                raise ValueError(f"a line is a JSON object, got {type(entry).__name__}")
            for key in ("problem", "code"):
                if not isinstance(entry.get(key), str):
                    raise ValueError(
                        f'"{key}" must be a string, got {type(entry[key]).__name__}'
                        if key in entry
                        else f'no "{key}"'
                    )
            samples.append(Sample(task(entry["problem"]).name, entry["code"], number))
        except RecursionError:
            complaints.append(f"line {number}: nested too deeply")
        except ValueError as error:
            complaints.append(f"line {number}: {error}")
    return samples, complaints
