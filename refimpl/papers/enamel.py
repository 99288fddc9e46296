"""ENAMEL — How Efficient is LLM-Generated Code? A Rigorous & High-Standard Benchmark.

Qiu, Zeng, Ezick, Lott, Tong. ICLR 2025, arXiv 2406.06647. Official code: q-rz/enamel @ b97da79 (Apache-2.0).

The idea. A test suite says whether a program is right, not whether it is good. ENAMEL lets it race against an expert's solution on inputs of growing
size, under a time limit T that the expert sets. A program that is stopped has an unknown, *censored* time; its level scores 0, as if it had
used T up, whatever it would have needed. Scores of several samples are then combined into eff@k, the expected best of k draws, and the combination
averages over all subsets at once, which leaves the expectation as it is and removes needless variance.

    T    = α · max_l ref_l                              ref_l: the reference's slowest case at level l (only levels with h_l > 0)
    f_l  = max(0, T − t_l) / (T − ref_l)                t_l: the program's slowest case; a level not finished scores 0
    e    = Σ_l h_l f_l / Σ_l h_l                        0 for a program with any wrong output
    eff@k = Σ_{r=k..n} λ_r e_(r),   λ_r = C(r−1, k−1) / C(n, k)          e_(1) ≤ … ≤ e_(n)

f is not clipped: a program faster than the reference scores above 1, as in the official code.

Programs run in `refimpl.bases.programs.sandbox`, which is this package's own: the official evaluator runs them in its own process, and its guard disables nothing.

    python -m refimpl.papers.enamel samples.jsonl       # lines of {"problem": "two_sum", "code": "…"}
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import signal
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl.bases.programs import sandbox
from refimpl.bases.programs.tasks import Sample, Task, read_samples, task, tasks

# --- the estimator ------------------------------------------------------------------------------------------------------------------


def weights(n: int, k: int) -> np.ndarray:
    """λ_k … λ_n, float64 (n − k + 1,): the chance that the r-th smallest of n scores is the largest of k drawn without replacement.

    λ_n = k/n, and downwards λ_{r−1} = λ_r (1 − (k−1)/(r−1)): products of numbers below 1, where the factorials of C(r−1, k−1)/C(n, k) overflow.
    """
    if not 1 <= k <= n:
        raise ValueError(
            f"k={k} draws need at least as many samples, got n={n}; accepted: 1 ≤ k ≤ n"
        )
    r = np.arange(n, k, -1)  # n … k+1
    return np.cumprod(np.concatenate([[k / n], 1 - (k - 1) / (r - 1)]))[::-1]


def eff_at_k(scores: Sequence[float], k: int) -> float:
    """Unbiased estimate of the expected best of k draws from n scores (n,): Σ λ_r e_(r), the mean of the maximum over all C(n, k) subsets."""
    e = np.sort(np.asarray(scores, np.float64))
    if e.ndim != 1 or not np.isfinite(e).all():
        raise ValueError(f"scores must be a flat list of finite numbers, got shape {e.shape}")
    return float(weights(len(e), k) @ e[k - 1 :])


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k draws from n samples, c of them right, is right: 1 − C(n−c, k)/C(n, k)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n={n}, c={c}, k={k}: accepted are 0 ≤ c ≤ n and 1 ≤ k ≤ n")
    return 1.0 if n - c < k else float(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)))


# --- the score of one program -------------------------------------------------------------------------------------------------------


def hodges_lehmann(times: Sequence[float]) -> float:
    """Robust location of R repeated times (R,): the median of all (t_i + t_j)/2 with i ≥ j, i = j included."""
    t = np.asarray(times, np.float64)
    if t.ndim != 1 or not len(t):
        raise ValueError(f"times must be a flat list with at least one time, got shape {t.shape}")
    i, j = np.tril_indices(len(t))
    return float(np.median((t[i] + t[j]) / 2))


def efficiency(elapsed: float, reference: float, limit: float) -> float:
    """f = max(0, T − t)/(T − ref) for times in seconds: 1 at the reference's time, 0 from the limit on, above 1 for what is faster."""
    if not reference < limit:
        raise ValueError(f"limit={limit!r} must exceed reference={reference!r} (α > 1)")
    return max(0.0, limit - elapsed) / (limit - reference)


@dataclass(frozen=True)
class Setting:
    """How programs are tested; the defaults are the paper's, but for memory (4 GiB there)."""

    tests: tuple[int, ...] = (8, 4, 4, 4)  # cases a level
    hardness: tuple[float, ...] = (
        0.0,
        3.0,
        3.0,
        4.0,
    )  # h_l; level 0 only tests whether it is right
    repeats: int = 6  # R, where h_l > 0
    alpha: float = 2.0  # α
    tolerance: float = (
        0.01  # seconds that a run may exceed T before it is stopped; the score uses T
    )
    memory: int = 1 << 30  # bytes
    seed: int = 998244353

    def __post_init__(self):
        if len(self.tests) != len(self.hardness) or not all(
            isinstance(n, int) and n >= 1 for n in self.tests
        ):
            raise ValueError(
                f"tests={self.tests!r} must give one or more cases for each of the {len(self.hardness)} levels of hardness={self.hardness!r}"
            )
        if not (all(h >= 0 for h in self.hardness) and sum(self.hardness) > 0):
            raise ValueError(f"hardness={self.hardness!r} must be weights ≥ 0, one of them above 0")
        if not (isinstance(self.repeats, int) and self.repeats >= 1):
            raise ValueError(f"repeats={self.repeats!r} must be a whole number ≥ 1")
        if not (math.isfinite(self.alpha) and self.alpha > 1):
            raise ValueError(
                f"alpha={self.alpha!r} must exceed 1: the limit stands above the reference's time"
            )
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance={self.tolerance!r} must be seconds ≥ 0")

    def runs(self, level: int) -> int:
        return self.repeats if self.hardness[level] > 0 else 1


class Outcome(NamedTuple):
    """One run: `ok` with its time in seconds, `censored` (time, memory or a number ran out), or `failed` (exception, wrong output)."""

    kind: str
    seconds: float = math.nan
    why: str = ""


@dataclass(frozen=True)
class Score:
    """passed: right on all that was run (a program stopped above level 0 still passes); value: e; levels: f_l; times: the slowest case's time t_l, seconds
    (NaN where not finished); stopped: the level at which it was stopped or failed; why: the reason.
    """

    passed: bool
    value: float
    levels: tuple[float, ...]
    times: tuple[float, ...]
    stopped: int | None = None
    why: str = ""


def references(times: Sequence[Sequence[float]], setting: Setting) -> tuple[list[float], float]:
    """ref_l from the reference's time of each case (level → cases), −∞ where h_l = 0, and the limit T = α · max ref_l."""
    refs = [max(t) if h > 0 else -math.inf for t, h in zip(times, setting.hardness, strict=True)]
    return refs, setting.alpha * max(refs)


def score_program(
    run: Callable[[int, int, int], Outcome], refs: Sequence[float], setting: Setting
) -> Score:
    """Race one program: `run(level, case, repeat)` gives outcomes, in order, until one ends the race.

    A failed run makes the score 0. A censored run ends the race: its level and all later ones score 0; at level 0 the program counts as failed.
    """
    count, limit = len(refs), setting.alpha * max(refs)
    levels, times = [0.0] * count, [math.nan] * count

    def passed(stopped: int | None = None, why: str = "") -> Score:
        return Score(
            True,
            float(np.dot(setting.hardness, levels) / sum(setting.hardness)),
            tuple(levels),
            tuple(times),
            stopped,
            why,
        )

    for level in range(count):
        slowest = 0.0
        for case in range(setting.tests[level]):
            seconds = []
            for repeat in range(setting.runs(level)):
                outcome = run(level, case, repeat)
                if outcome.kind == "failed" or (outcome.kind == "censored" and level == 0):
                    return Score(False, 0.0, (0.0,) * count, tuple(times), level, outcome.why)
                if outcome.kind == "censored":
                    return passed(level, outcome.why)
                seconds.append(outcome.seconds)
            slowest = max(slowest, hodges_lehmann(seconds))
        times[level] = slowest
        if setting.hardness[level] > 0:
            levels[level] = efficiency(slowest, refs[level], limit)
    return passed()


# --- evaluation ---------------------------------------------------------------------------------------------------------------------

CENSORED = ("timeout", "memory", "overflow")


class Race:
    """One problem on this machine: its cases, the right answers, the reference's times (level → cases, seconds) and the limit T, measured when made."""

    def __init__(self, problem: Task, setting: Setting = Setting()):
        if len(problem.sizes) != len(setting.tests):
            raise ValueError(
                f"{problem.name} has {len(problem.sizes)} levels, the setting's tests={setting.tests!r} has {len(setting.tests)}"
            )
        self.problem, self.setting = problem, setting
        self.cases = [
            [make_case(problem, level, case, setting) for case in range(n)]
            for level, n in enumerate(setting.tests)
        ]
        self.answers: list[list] = []
        self.times: list[list[float]] = []
        with sandbox.Program(
            problem.program(problem.reference), problem.name, setting.memory
        ) as program:
            for level, cases in enumerate(self.cases):
                runs = [
                    [
                        undisturbed(program, args, 60.0, 1 << 26, setting.hardness[level] > 0)
                        for _ in range(setting.runs(level))
                    ]
                    for args in cases
                ]
                for run in (run for repeats in runs for run in repeats if run.status != "ok"):
                    raise RuntimeError(
                        f"{problem.name}: the reference solution ended with {run.status} at level {level} ({run.detail})"
                    )
                self.answers.append([repeats[0].value for repeats in runs])
                self.times.append(
                    [hodges_lehmann([run.seconds for run in repeats]) for repeats in runs]
                )
        self.refs, self.limit = references(self.times, setting)

    def score(self, code: str) -> Score:
        """The score of a program: a body for the prompt, or a whole definition."""
        with sandbox.Program(
            self.problem.program(code), self.problem.name, self.setting.memory
        ) as program:
            return score_program(functools.partial(self.run, program), self.refs, self.setting)

    def run(self, program: sandbox.Program, level: int, case: int, repeat: int) -> Outcome:
        args, answer = self.cases[level][case], self.answers[level][case]
        # an output much longer than the answer is wrong; not reading it bounds what a program can make this process do
        most = (1 << 16) + 2 * len(json.dumps(sandbox.encode(answer)))
        done = undisturbed(
            program,
            args,
            self.limit + self.setting.tolerance,
            most,
            self.setting.hardness[level] > 0,
        )
        where = f"level {level}, case {case}"
        if done.status in CENSORED:
            return Outcome("censored", why=f"{done.status} at {where}")
        if done.status != "ok":
            return Outcome("failed", why=f"{done.status} at {where}: {done.detail}")
        if not self.problem.accepts(args, answer, done.value):
            return Outcome("failed", why=f"wrong output at {where}")
        return Outcome("ok", done.seconds)


def undisturbed(
    program: sandbox.Program, args: tuple, seconds: float, most: int, timed: bool
) -> sandbox.Run:
    """One call; where other work had the processor for more than half of the time, the call of up to four that waited least.

    timed: whether the time of a finished call counts (h_l > 0); where it doesn't, only a timeout is tried again.
    """
    runs = []
    while len(runs) < 4:
        runs.append(run := program.call(args, seconds, most))
        if not run.seconds > 2 * run.cpu + 0.0003 or (run.status != "timeout" and not timed):
            return run
    return min(runs, key=lambda run: run.seconds - run.cpu)


def make_case(problem: Task, level: int, case: int, setting: Setting) -> tuple:
    """Arguments from a seed of the case's own: seed XOR problem XOR (number of cases of earlier levels + case)."""
    seed = setting.seed ^ zlib.crc32(problem.name.encode()) ^ (sum(setting.tests[:level]) + case)
    return problem.generate(problem.sizes[level], level, case, random.Random(seed))


def passes_examples(problem: Task, code: str, seconds: float = 2.0) -> bool:
    """Whether a program is right on the few examples of the prompt: the weak tests of common practice."""
    with sandbox.Program(problem.program(code), problem.name) as program:
        runs = ((args, answer, program.call(args, seconds)) for args, answer in problem.examples)
        return all(
            run.status == "ok" and problem.accepts(args, answer, run.value)
            for args, answer, run in runs
        )


@dataclass
class Evaluation:
    """What came of a set of samples: `results` in the order of finishing, (sample, score) each."""

    setting: Setting
    results: list[tuple[Sample, Score]]
    interrupted: bool = False

    def scores(self, problem: str) -> list[Score]:
        return [score for sample, score in self.results if sample.task == problem]

    @property
    def problems(self) -> list[str]:
        return list(dict.fromkeys(sample.task for sample, _ in self.results))

    def figures(
        self, ks: Iterable[int] = (1, 10, 100), problem: str | None = None
    ) -> dict[str, float]:
        """`eff@k` and `pass@k` of one problem, or their means over all that have samples, for those k for which every problem has enough."""
        groups = [self.scores(name) for name in self.problems]
        ks = [k for k in ks if 1 <= k <= min(map(len, groups), default=0)]
        groups = [self.scores(problem)] if problem else groups
        eff = {
            f"eff@{k}": float(np.mean([eff_at_k([s.value for s in g], k) for g in groups]))
            for k in ks
        }
        return eff | {
            f"pass@{k}": float(
                np.mean([pass_at_k(len(g), sum(s.passed for s in g), k) for g in groups])
            )
            for k in ks
        }

    def table(self, ks: Iterable[int] = (1, 10, 100)) -> str:
        """One line a problem and their mean, as text."""
        names = {name: name for name in self.problems} | (
            {"mean over problems": None} if len(self.problems) > 1 else {}
        )
        rows = [["problem", "samples", "passed", *self.figures(ks)]]
        for title, name in names.items():
            scores = self.scores(name) if name else [score for _, score in self.results]
            rows.append(
                [
                    title,
                    len(scores),
                    sum(s.passed for s in scores),
                    *(f"{x:.3f}" for x in self.figures(ks, name).values()),
                ]
            )
        widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
        return "\n".join(
            str(row[0]).ljust(widths[0])
            + "".join(f"  {x!s:>{w}}" for x, w in zip(row[1:], widths[1:], strict=True))
            for row in rows
        )

    def record(self, ks: Iterable[int] = (1, 10, 100)) -> dict:
        """Everything as JSON data; times that were not finished are null."""
        return {
            "setting": asdict(self.setting),
            "interrupted": self.interrupted,
            "mean": self.figures(ks),
            "problems": {
                name: {"samples": len(s := self.scores(name)), "passed": sum(x.passed for x in s)}
                | self.figures(ks, name)
                for name in self.problems
            },
            "samples": [
                {"line": sample.line, "problem": sample.task}
                | asdict(score)
                | {"times": [None if math.isnan(t) else t for t in score.times]}
                for sample, score in self.results
            ],
        }


def evaluate(
    samples: Sequence[Sample], setting: Setting = Setting(), progress: Callable = iter
) -> Evaluation:
    """Race every sample against its problem's reference, one problem after the other, never two programs at once.

    progress: wraps the sequence of samples, as `tqdm` does. An interruption (Ctrl-C) ends the evaluation early and keeps what is finished.
    """
    for sample in samples:
        task(sample.task)
    first = {name: i for i, name in reversed(list(enumerate(s.task for s in samples)))}
    done = Evaluation(setting, [])
    race: Race | None = None
    try:
        for sample in progress(sorted(samples, key=lambda s: first[s.task])):
            if race is None or race.problem.name != sample.task:
                race = Race(task(sample.task), setting)
            done.results.append((sample, race.score(sample.code)))
    except KeyboardInterrupt:
        done.interrupted = True
    return done


# --- the command --------------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when every line was evaluated, 1 when some were malformed, 2 for wrong arguments or no sample, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m refimpl.papers.enamel",
        description="Evaluate the efficiency of generated programs (eff@k).",
    )
    default = Setting()
    parser.add_argument(
        "samples",
        type=Path,
        nargs="?",
        help='JSON lines of {"problem": name, "code": a body for the prompt, or a whole definition}',
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where results go (default: beside the samples, ending in .results.json)",
    )
    parser.add_argument(
        "--k",
        type=int,
        nargs="+",
        default=[1, 10, 100],
        help="draws (default: 1 10 100; those with too few samples are left out)",
    )
    parser.add_argument(
        "--tests",
        type=int,
        nargs="+",
        default=default.tests,
        help=f"cases a level (default: {' '.join(map(str, default.tests))})",
    )
    parser.add_argument(
        "--repeats", type=int, default=default.repeats, help="runs a case (default: %(default)s)"
    )
    parser.add_argument(
        "--alpha",
        type=float,
        default=default.alpha,
        help="time limit, in times of the reference (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="seed of the cases (default: %(default)s)"
    )
    parser.add_argument(
        "--prompts", action="store_true", help="print the problems' prompts as JSON lines and end"
    )
    parser.add_argument(
        "--example",
        action="store_true",
        help="print the repository's own solutions as samples and end",
    )
    options = parser.parse_args(argv)
    if options.prompts or options.example:
        for p in tasks().values():
            entries = (
                [{"problem": p.name, "prompt": p.prompt}]
                if options.prompts
                else [{"problem": p.name, "code": s.code} for s in p.solutions.values()]
            )
            print("\n".join(map(json.dumps, entries)))
        return 0
    if options.samples is None:
        parser.error("which file of samples? (--example prints one)")
    try:
        setting = Setting(
            tests=tuple(options.tests),
            repeats=options.repeats,
            alpha=options.alpha,
            seed=options.seed,
        )
        samples, complaints = read_samples(options.samples.read_bytes().splitlines())
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for complaint in complaints:
        print(f"{options.samples}: {complaint}; skipped", file=sys.stderr)
    if not samples:
        print(f"{options.samples}: no sample to evaluate", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    done = evaluate(samples, setting, progress_bar())
    target = options.json or options.samples.with_suffix(".results.json")
    target.write_text(
        json.dumps(done.record(options.k) | {"malformed": complaints}, indent=1) + "\n",
        encoding="utf-8",
    )
    print(done.table(options.k))
    if done.interrupted:
        print(f"interrupted after {len(done.results)} of {len(samples)} samples", file=sys.stderr)
    print(f"results: {target}")
    return 130 if done.interrupted else int(bool(complaints))


def progress_bar() -> Callable:
    """tqdm's bar on the error stream, or none where tqdm is missing (it belongs to the extra `chapters`)."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return iter
    return functools.partial(tqdm, unit="sample")


if __name__ == "__main__":
    sys.exit(main())
