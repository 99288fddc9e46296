"""The chapters' exercises under mutation: checks take right answers and refuse wrong ones.

A chapter's exercise is the part of the notebook from its heading `### Exercise n` to the next
heading. It stands on the set-up cells alone (every code cell before the first `## ` heading:
install, parameters, imports), so that a learner can start with it. In it, in this order:

1. the task, in Markdown;
2. the answer cell: a stub that a learner fills in (say, a function that returns `None`);
3. the check cell, tagged `exercise-check`: prints `✓ …` for a right answer, what is wrong for a
   wrong one, `not yet` for the stub; never raises for any of them;
4. the solution, tagged `hide-cell`, first line `#@title Solution n {display-mode: "form"}`:
   defines the answer (and may run the check again).

`tests/papers/exercises/<stem>.py` gives the answers, as source that would stand in the answer
cell, and is complete with:

    from shared.exercises import Answers, mutations

    test_exercise = mutations("efficientvit", {1: Answers(right=[…], wrong=[…, …, …]), …})
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@dataclass
class Answers:
    """Other right answers (at least one) and plausible wrong ones (at least three)."""

    right: list[str]
    wrong: list[str]


@dataclass
class Exercise:
    setup: list[str]
    stub: str
    check: str
    solution: str


def read(stem: str) -> dict[int, Exercise]:
    """The exercises of a chapter, from its notebook."""
    cells = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4).cells
    first = next(
        i
        for i, c in enumerate(cells)
        if c.cell_type == "markdown" and re.search(r"^## ", c.source, re.M)
    )
    setup = [
        c.source for c in cells[:first] if c.cell_type == "code" and "pip install" not in c.source
    ]
    parts, current = {}, None
    for cell in cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#{1,3} +(.+)$", cell.source, re.M)
            for heading in headings:
                found = re.match(r"Exercise (\d+)", heading)
                current = int(found[1]) if found else None
        elif current is not None:
            parts.setdefault(current, []).append(cell)
    exercises = {}
    for number, code in parts.items():
        tags = [set(c.metadata.get("tags", [])) for c in code]
        check = [c.source for c, t in zip(code, tags, strict=True) if "exercise-check" in t]
        solution = [
            c.source
            for c, t in zip(code, tags, strict=True)
            if "hide-cell" in t and c.source.startswith(f"#@title Solution {number} ")
        ]
        if len(check) != 1 or len(solution) != 1 or "exercise-check" in tags[0]:
            found = [sorted(t) for t in tags]
            raise AssertionError(
                f"{stem}, exercise {number}: wants an answer cell, one cell tagged exercise-check,"
                f" one folded solution; has {found}"
            )
        exercises[number] = Exercise(setup, code[0].source, check[0], solution[0])
    return exercises


class Verdicts:
    """Runs answers in one shell, each in a fresh copy of the names that the setup left."""

    def __init__(self, exercise: Exercise):
        self.exercise = exercise
        InteractiveShell.clear_instance()
        self.shell = InteractiveShell.instance()
        with capture_output():
            for source in exercise.setup:
                self.shell.run_cell(source).raise_error()
        self.names = dict(self.shell.user_ns)

    def __call__(self, answer: str) -> str:
        self.shell.user_ns.clear()
        self.shell.user_ns.update(self.names)
        with capture_output() as seen:
            self.shell.run_cell(answer).raise_error()
        with capture_output() as seen:
            result = self.shell.run_cell(self.exercise.check)
        result.raise_error()
        shown = "\n".join(
            str(o.data.get("text/markdown", o.data.get("text/plain", ""))) for o in seen.outputs
        )
        return f"{seen.stdout}\n{shown}".strip()


def mutations(stem: str, answers: dict[int, Answers]):
    """The test of one chapter's exercises."""

    def test_exercise(number):
        exercise, given = read(stem)[number], answers[number]
        assert len(given.right) >= 1 and len(given.wrong) >= 3, (
            "wants another right answer and three wrong ones"
        )
        verdict = Verdicts(exercise)
        untouched = verdict(exercise.stub)
        assert "not yet" in untouched.lower() and "✓" not in untouched, (
            f"the untouched stub got: {untouched!r}"
        )
        for answer in [exercise.solution, *given.right]:
            assert "✓" in (said := verdict(answer)), (
                f"a right answer was refused: {said!r}\n{answer}"
            )
        for answer in given.wrong:
            assert "✓" not in (said := verdict(answer)) and said, (
                f"a wrong answer was taken: {said!r}\n{answer}"
            )
            assert "not yet" not in said.lower(), (
                f"a wrong answer was taken for the stub: {said!r}\n{answer}"
            )

    numbers = sorted(answers)
    if (NOTEBOOKS / f"{stem}.ipynb").exists():
        assert set(read(stem)) == set(answers), (
            f"{stem} has exercises {sorted(read(stem))}, answers are given for {numbers}"
        )
    return pytest.mark.parametrize("number", numbers)(test_exercise)
