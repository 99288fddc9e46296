"""Programming tasks with solutions of different cost: what a benchmark of generated code needs.

Ten tasks, written for this book (the benchmarks' own are elsewhere: ENAMEL's 142 at q-rz/enamel).
One module each, named as the function that is asked for:

    PROMPT      the function's signature and docstring
    EXAMPLES    (arguments, answer) …: the weak tests that such a docstring would give
    SIZES       one per level, growing
    generate(size, level, case, rng) -> tuple of arguments
    check(args, answer, output) -> bool       optional; usually: the same type and value
    reference                                 the expert's solution; only its body counts
    every later function                      a solution; its docstring begins with its cost and
                                              whether it is right: `O(n²), wrong: …`

The modules are trusted; the samples that people bring are not, and run in
`refimpl.bases.programs.sandbox`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

from refimpl import checks


@dataclass(frozen=True)
class Solution:
    """A program of the task's own; cost and right are its author's word, which the tests check."""

    name: str
    code: str  # a body that follows the prompt
    cost: str  # "O(n log n)"
    right: bool
    note: str


@dataclass(frozen=True)
class Task:
    """One task, as its module gives it."""

    name: str
    prompt: str
    examples: tuple[tuple[tuple, object], ...]
    sizes: tuple[int, ...]
    generate: Callable
    check: Callable
    reference: str  # a body that follows the prompt
    solutions: dict[str, Solution]

    def program(self, code: str) -> str:
        """The prompt, then `code`: a body continues its function, a definition replaces it."""
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
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: read_task(importlib.import_module(f"{__name__}.{name}")) for name in names}


def task(name: str) -> Task:
    """One task, or a `ValueError` with the nearest names."""
    checks.choice("problem", name, tasks(), "problem")
    return tasks()[name]


def read_task(module: ModuleType) -> Task:
    """A task from its module."""
    functions = {name: f for name, f in vars(module).items() if inspect.isfunction(f)}
    solutions = {}
    for name, function in functions.items():
        if name not in ("generate", "check", "reference"):
            said = re.fullmatch(r"(O\(.+?\)), (right|wrong): (.+)", function.__doc__)
            cost, verdict, note = said.groups()
            solutions[name] = Solution(name, body(function), cost, verdict == "right", note)
    return Task(
        name=module.__name__.rpartition(".")[2],
        prompt=module.PROMPT,
        examples=tuple(module.EXAMPLES),
        sizes=module.SIZES,
        generate=module.generate,
        check=functions.get("check", equal),
        reference=body(module.reference),
        solutions=solutions,
    )


def body(function: Callable) -> str:
    """The source of a function without its signature (one line) and docstring."""
    source = inspect.getsource(function)
    if function.__doc__:
        return source.split('"""', 2)[2].lstrip("\n")
    return source.split("\n", 1)[1]


def read_samples(lines: Iterable[bytes]) -> tuple[list[Sample], list[str]]:
    """Samples from lines of JSON `{"problem": name, "code": program}`.

    Also what is wrong with the other lines, by number. Empty lines are passed over.
    """
    samples = []
    complaints = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            problem, code = read_sample(line)
            samples.append(Sample(task(problem).name, code, number))
        except RecursionError:
            complaints.append(f"line {number}: nested too deeply")
        except ValueError as error:
            complaints.append(f"line {number}: {error}")
    return samples, complaints


def read_sample(line: bytes) -> tuple[str, str]:
    """The problem and the code of one line."""
    entry = json.loads(line.decode("utf-8-sig"))
    if not isinstance(entry, dict):
        raise ValueError(f"a line is a JSON object, got {type(entry).__name__}")
    for key in ("problem", "code"):
        if key not in entry:
            raise ValueError(f'no "{key}"')
        if not isinstance(entry[key], str):
            raise ValueError(f'"{key}" must be a string, got {type(entry[key]).__name__}')
    return entry["problem"], entry["code"]
