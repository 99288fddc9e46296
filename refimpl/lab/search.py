"""What searches for networks share: costs measured once a machine, and a loop with a budget.

A method proposes candidates and hears what they scored; it need not know what an evaluation is:

    method.ask() -> candidate         the next one, given the seed and what was told so far
    method.tell(candidate, score)     higher is better; after each evaluation, in their order

So a search that broke off goes on from its log: the method is asked again from its start, and told
the scores that stand there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from refimpl import checks
from refimpl.lab.measure import machine
from refimpl.lab.train import progress

TRIES = 1000  # proposals in a row that may be over the limit


class Method(Protocol):
    """A way to search: evolution, reinforcement, a greedy rule, chance."""

    def ask(self) -> Any: ...

    def tell(self, candidate: Any, score: float) -> None: ...


@dataclass(frozen=True)
class Trial:
    """One evaluation. cost: `None` where no cost was asked for."""

    candidate: Any
    score: float
    cost: float | None = None


class MeasuredTable:
    """table[key] → what the part of this key costs here: measured when first asked for, and kept.

    measure: key → cost, say milliseconds. Keys are told apart by their `repr`. folder: of the file
    `<name>.json`, by default `~/.cache/refimpl`. A file that another processor, another number of
    threads or another PyTorch left is measured anew.
    """

    def __init__(
        self, name: str, measure: Callable[[Any], float], folder: str | Path | None = None
    ):
        self.measure = measure
        self.path = Path(folder or Path.home() / ".cache" / "refimpl") / f"{name}.json"
        self.machine = {key: value for key, value in machine().items() if key != "date"}
        self.entries: dict[str, float] = {}
        if self.path.exists():
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            if stored["machine"] == self.machine:
                self.entries = stored["entries"]

    def __getitem__(self, key: Any) -> float:
        if repr(key) not in self.entries:
            self.entries[repr(key)] = float(self.measure(key))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(f".{os.getpid()}")  # nobody ever reads half a file
            stored = {"machine": self.machine, "entries": self.entries}
            part.write_text(json.dumps(stored, indent=1), encoding="utf-8")
            part.replace(self.path)
        return self.entries[repr(key)]


def search(
    method: Method,
    evaluate: Callable[[Any], float],
    evaluations: int,
    *,
    cost: Callable[[Any], float] | None = None,
    limit: float | None = None,
    log: str | Path | None = None,
    label: str = "search",
) -> list[Trial]:
    """Let `method` spend so many evaluations; returns all trials, in their order.

    cost, limit: what costs more than the limit is proposed in vain, and not evaluated. log: a file
    of one line a trial; what stands there already is told to the method and not evaluated again.
    Raises `ValueError` where no proposal is within the limit, and for a log of another search.
    """
    checks.integer(1, evaluations=evaluations)
    if (cost is None) != (limit is None):
        raise ValueError(f"limit={limit} and cost={cost} belong together: give both or none")
    log = Path(log) if log is not None else None
    stored = log.read_text(encoding="utf-8").splitlines() if log and log.exists() else []
    trials = []
    with progress(evaluations, label) as bar:
        for number in range(evaluations):
            candidate, price = within(method, cost, limit)
            if number < len(stored):
                score = logged(stored[number], candidate, log)
            else:
                score = float(evaluate(candidate))
                if log:
                    line = json.dumps({"candidate": repr(candidate), "score": score})
                    with log.open("a", encoding="utf-8") as file:
                        file.write(f"{line}\n")
            method.tell(candidate, score)
            trials.append(Trial(candidate, score, price))
            bar.update()
        bar.close_with(f"{label}: best of {evaluations} {best(trials).score:.4g}")
    return trials


def within(
    method: Method, cost: Callable[[Any], float] | None, limit: float | None
) -> tuple[Any, float | None]:
    """The method's next proposal within the limit, and its cost."""
    if cost is None:
        return method.ask(), None
    cheapest = float("inf")
    for _ in range(TRIES):
        candidate = method.ask()
        price = float(cost(candidate))
        if price <= limit:
            return candidate, price
        cheapest = min(cheapest, price)
    raise ValueError(
        f"limit={limit} is met by none of {TRIES} proposals: the cheapest costs {cheapest:.4g}"
    )


def logged(line: str, candidate: Any, log: Path) -> float:
    """The score on this line of the log, which must be the candidate's."""
    entry = json.loads(line)
    if entry["candidate"] != repr(candidate):
        raise ValueError(
            f"log={str(log)!r} is of another search: it holds {entry['candidate']}, and the method"
            f" proposes {candidate!r}; give another file"
        )
    return entry["score"]


def best(trials: list[Trial]) -> Trial:
    """The highest score; among equals the first."""
    return max(trials, key=lambda trial: trial.score)
