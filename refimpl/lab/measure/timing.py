"""Times that can be compared: several candidates in turns, ratios from one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark import timer as wall_clock

from refimpl import checks


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one candidate, over the rounds, and its ratio to the first candidate.

    The ratio is taken round by round. `low` and `high` are quartiles.
    """

    name: str
    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def iqr(self) -> float:
        """Interquartile range in seconds."""
        return self.high - self.low


@dataclass(frozen=True)
class Comparison:
    """Candidates timed in turns.

    `comparison["fused"].ratio` is the time of `fused` as a multiple of the first candidate's;
    `chapter.table(comparison.rows(), comparison.caption())` shows them all.
    """

    timings: tuple[Timing, ...]
    rounds: int
    threads: int
    processor_time: bool = False

    def __getitem__(self, name: str) -> Timing:
        timings = {timing.name: timing for timing in self.timings}
        checks.choice("name", name, timings, "candidate")
        return timings[name]

    def rows(self) -> list[dict[str, str]]:
        """One row for each candidate, for a table."""
        return [
            {
                "Candidate": t.name,
                "Median": duration(t.median),
                "Middle half": f"{duration(t.low)} – {duration(t.high)}",
                "Relative to the first": f"{t.ratio:.2f} ({t.ratio_low:.2f}–{t.ratio_high:.2f})",
            }
            for t in self.timings
        ]

    def caption(self) -> str:
        """What was timed, and how."""
        what = "Processor time" if self.processor_time else "Time"
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"{what} of a call: {self.rounds} rounds in turns, {threads}"


def duration(seconds: float) -> str:
    """Three digits with a fitting unit: `1.23 ms`."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def compare(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    threads: int = 1,
    min_time: float = 0.02,
    processor_time: bool = False,
) -> Comparison:
    """Time several candidates fairly: in turns (A B C, C B A, …), so that a drift hits all alike.

    Gradients are off.

    candidates: name -> function without arguments; the first is the reference of the ratios.
    rounds: at least 3.
    threads: PyTorch's CPU threads.
    min_time: seconds that each candidate runs in a round (at least one call).
    processor_time: read the processor's clock instead of the wall's, which gives the same on an
        idle machine and keeps ratios right on a busy one; for work on a CPU alone.
    Raises `ValueError` for anything else.
    """
    check(candidates, rounds, threads, min_time)
    clock = time.process_time if processor_time else wall_clock
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=threads, timer=clock)
        for name, call in candidates.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    calls = {}
    with torch.no_grad():
        for name, call in candidates.items():
            call()  # the first call allocates and picks kernels
            start = clock()
            call()
            calls[name] = max(1, round(min_time / max(clock() - start, 1e-9)))
        for i in range(rounds):
            for name in timers if i % 2 == 0 else reversed(timers):
                seconds[name].append(timers[name].timeit(calls[name]).median)
    first = np.array(seconds[next(iter(candidates))])
    timings = [summary(name, np.array(values), first) for name, values in seconds.items()]
    return Comparison(tuple(timings), rounds, threads, processor_time)


def check(candidates: Mapping, rounds: int, threads: int, min_time: float) -> None:
    if not candidates:
        raise ValueError("compare: candidates is empty; give a dictionary of name -> function")
    for name, call in candidates.items():
        if not callable(call):
            raise ValueError(
                f"compare: the candidate {name!r} is {type(call).__name__}, wanted a function"
                " without arguments"
            )
    checks.integer(3, rounds=rounds)
    checks.integer(1, threads=threads)
    checks.at_least(0, min_time=min_time)


def summary(name: str, seconds: np.ndarray, first: np.ndarray) -> Timing:
    """Median and quartiles of the times (rounds,) and of their ratios to the first's."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    ratio_low, ratio, ratio_high = np.quantile(seconds / first, (0.25, 0.5, 0.75)).tolist()
    return Timing(name, median, low, high, ratio, ratio_low, ratio_high)
