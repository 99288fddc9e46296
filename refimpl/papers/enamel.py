"""ENAMEL — How Efficient is LLM-Generated Code? A Rigorous & High-Standard Benchmark.

Qiu, Zeng, Ezick, Lott, Tong. ICLR 2025, arXiv 2406.06647. Official code: q-rz/enamel @ b97da79
(Apache-2.0).

The idea. A test suite says whether a program is right, not whether it is good. ENAMEL lets it race
against an expert's solution on inputs of growing size, under a time limit T that the expert sets. A
program that is stopped has an unknown, *censored* time; its level scores 0, as if it had used T up,
whatever it would have needed. Scores of several samples are then combined into eff@k, the expected
best of k draws, and the combination averages over all subsets at once, which leaves the expectation
as it is and removes needless variance.

    T     = α · max_l ref_l            ref_l: the reference's slowest case at level l, h_l > 0
    f_l   = max(0, T − t_l) / (T − ref_l)
                                       t_l: the program's slowest case; 0 for a level not finished
    e     = Σ_l h_l f_l / Σ_l h_l      0 for a program with any wrong output
    eff@k = Σ_{r=k..n} λ_r e_(r),      λ_r = C(r−1, k−1) / C(n, k),      e_(1) ≤ … ≤ e_(n)

f is not clipped: a program faster than the reference scores above 1, as in the official code.
Cost: a sort of n scores. What takes time is running the programs, one at a time.

Programs run in `refimpl.bases.programs.sandbox`, which is this package's own: the official
evaluator runs them in its own process, and its guard disables nothing. The command that scores a
file of samples is `python -m refimpl.bases.programs`.
"""

from __future__ import annotations

import functools
import json
import math
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refimpl import checks
from refimpl.bases.programs import sandbox
from refimpl.bases.programs.tasks import Sample, Task, task

# --- the estimator ------------------------------------------------------------------------------


def estimator_weights(n: int, k: int) -> np.ndarray:
    """λ_k … λ_n, float64 (n − k + 1,).

    λ_r is the chance that the r-th smallest of n scores is the largest of k drawn without
    replacement. λ_n = k/n, and downwards λ_{r−1} = λ_r (1 − (k−1)/(r−1)): products of numbers below
    1, where the factorials of C(r−1, k−1)/C(n, k) overflow.
    """
    if not 1 <= k <= n:
        raise ValueError(
            f"k={k} draws need at least as many samples, got n={n}; accepted: 1 ≤ k ≤ n"
        )
    r = np.arange(n, k, -1)  # n … k+1
    return np.cumprod(np.concatenate([[k / n], 1 - (k - 1) / (r - 1)]))[::-1]


def eff_at_k(scores: Sequence[float], k: int) -> float:
    """Unbiased estimate of the expected best of k draws from n scores (n,).

    Σ λ_r e_(r), the mean of the maximum over all C(n, k) subsets.
    """
    e = np.sort(np.asarray(scores, np.float64))
    if e.ndim != 1 or not np.isfinite(e).all():
        raise ValueError(f"scores must be a flat list of finite numbers, got shape {e.shape}")
    return float(estimator_weights(len(e), k) @ e[k - 1 :])


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k draws from n samples, c of them right, is right.

    1 − C(n−c, k)/C(n, k).
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n={n}, c={c}, k={k}: accepted are 0 ≤ c ≤ n and 1 ≤ k ≤ n")
    return 1.0 if n - c < k else float(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)))


# --- the score of one program -------------------------------------------------------------------


def hodges_lehmann(times: Sequence[float]) -> float:
    """Robust location of R repeated times (R,): the median of all (t_i + t_j)/2 with i ≥ j."""
    t = np.asarray(times, np.float64)
    if t.ndim != 1 or not len(t):
        raise ValueError(f"times must be a flat list with at least one time, got shape {t.shape}")
    i, j = np.tril_indices(len(t))
    return float(np.median((t[i] + t[j]) / 2))


def efficiency(elapsed: float, reference: float, limit: float) -> float:
    """f = max(0, T − t)/(T − ref) for times in seconds.

    1 at the reference's time, 0 from the limit on, above 1 for what is faster.
    """
    if not reference < limit:
        raise ValueError(f"limit={limit!r} must exceed reference={reference!r} (α > 1)")
    return max(0.0, limit - elapsed) / (limit - reference)


@dataclass(frozen=True)
class Setting:
    """How programs are tested; the defaults are the paper's, but for memory (4 GiB there)."""

    tests: tuple[int, ...] = (8, 4, 4, 4)  # cases per level
    hardness: tuple[float, ...] = (0.0, 3.0, 3.0, 4.0)  # h_l; level 0 only tests for right outputs
    repeats: int = 6  # R, where h_l > 0
    alpha: float = 2.0  # α
    tolerance: float = 0.01  # seconds above T before a run is stopped; the score uses T
    memory: int = 1 << 30  # bytes
    seed: int = 998244353

    def __post_init__(self):
        if len(self.tests) != len(self.hardness):
            raise ValueError(
                f"tests={self.tests!r} must give the cases of the {len(self.hardness)} levels of"
                f" hardness={self.hardness!r}"
            )
        for count in self.tests:
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"tests={self.tests!r} must be whole numbers ≥ 1")
        if not (all(h >= 0 for h in self.hardness) and sum(self.hardness) > 0):
            raise ValueError(f"hardness={self.hardness!r} must be weights ≥ 0, one of them above 0")
        checks.integer(1, repeats=self.repeats)
        if not (math.isfinite(self.alpha) and self.alpha > 1):
            raise ValueError(
                f"alpha={self.alpha!r} must exceed 1: the limit stands above the reference's time"
            )
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance={self.tolerance!r} must be seconds ≥ 0")

    def runs(self, level: int) -> int:
        """How often a case of this level is run."""
        return self.repeats if self.hardness[level] > 0 else 1


class Outcome(NamedTuple):
    """One run."""

    kind: str  # ok · censored (time, memory or a number ran out) · failed (exception, wrong output)
    seconds: float = math.nan
    why: str = ""


@dataclass(frozen=True)
class Score:
    """What came of the race of one program."""

    passed: bool  # right on all that was run; a program stopped above level 0 still passes
    value: float  # e
    levels: tuple[float, ...]  # f_l
    times: tuple[float, ...]  # t_l, the slowest case in seconds; NaN where not finished
    stopped: int | None = None  # the level at which it was stopped or failed
    why: str = ""


def references(times: Sequence[Sequence[float]], setting: Setting) -> tuple[list[float], float]:
    """ref_l from the reference's time of each case (level → cases), and T = α · max ref_l.

    −∞ where h_l = 0, so that such a level does not set the limit.
    """
    refs = [max(t) if h > 0 else -math.inf for t, h in zip(times, setting.hardness, strict=True)]
    return refs, setting.alpha * max(refs)


def score_program(
    run: Callable[[int, int, int], Outcome], refs: Sequence[float], setting: Setting
) -> Score:
    """Race one program: `run(level, case, repeat)` gives outcomes in order until one ends the race.

    A failed run makes the score 0. A censored run ends the race: its level and all later ones score
    0; at level 0 the program counts as failed.
    """
    limit = setting.alpha * max(refs)
    levels = [0.0] * len(refs)
    times = [math.nan] * len(refs)

    def passed(stopped: int | None = None, why: str = "") -> Score:
        value = float(np.dot(setting.hardness, levels) / sum(setting.hardness))
        return Score(True, value, tuple(levels), tuple(times), stopped, why)

    def failed(level: int, why: str) -> Score:
        return Score(False, 0.0, (0.0,) * len(refs), tuple(times), level, why)

    for level, reference in enumerate(refs):
        slowest = 0.0
        for case in range(setting.tests[level]):
            seconds = []
            for repeat in range(setting.runs(level)):
                outcome = run(level, case, repeat)
                if outcome.kind == "failed":
                    return failed(level, outcome.why)
                if outcome.kind == "censored":
                    end = failed if level == 0 else passed
                    return end(level, outcome.why)
                seconds.append(outcome.seconds)
            slowest = max(slowest, hodges_lehmann(seconds))
        times[level] = slowest
        if setting.hardness[level] > 0:
            levels[level] = efficiency(slowest, reference, limit)
    return passed()


# --- races on this machine ----------------------------------------------------------------------

CENSORED = ("timeout", "memory", "overflow")


class Race:
    """One problem on this machine.

    cases: arguments (level → cases); answers: what the reference returns; times: its seconds per
    case; refs, limit: ref_l and T. All measured when the race is made.
    """

    def __init__(self, problem: Task, setting: Setting = Setting()):
        if len(problem.sizes) != len(setting.tests):
            raise ValueError(
                f"{problem.name} has {len(problem.sizes)} levels, the setting's"
                f" tests={setting.tests!r} has {len(setting.tests)}"
            )
        self.problem = problem
        self.setting = setting
        self.cases: list[list[tuple]] = []
        self.answers: list[list] = []
        self.times: list[list[float]] = []
        with self.guarded(problem.reference) as program:
            for level, count in enumerate(setting.tests):
                cases = [make_case(problem, level, case, setting) for case in range(count)]
                runs = [self.reference_runs(program, level, args) for args in cases]
                self.cases.append(cases)
                self.answers.append([repeats[0].value for repeats in runs])
                self.times.append([median_of(repeats) for repeats in runs])
        self.refs, self.limit = references(self.times, setting)

    def guarded(self, code: str) -> sandbox.Program:
        """A program (a body for the prompt, or a whole definition), ready to be called."""
        return sandbox.Program(self.problem.program(code), self.problem.name, self.setting.memory)

    def reference_runs(
        self, program: sandbox.Program, level: int, args: tuple
    ) -> list[sandbox.Run]:
        """The repeated runs of the reference on one case."""
        runs = []
        for _ in range(self.setting.runs(level)):
            run = undisturbed(program, args, 60.0, 1 << 26, self.setting.hardness[level] > 0)
            if run.status != "ok":
                raise RuntimeError(
                    f"{self.problem.name}: the reference solution ended with {run.status} at level"
                    f" {level} ({run.detail})"
                )
            runs.append(run)
        return runs

    def score(self, code: str) -> Score:
        """The score of a program: a body for the prompt, or a whole definition."""
        with self.guarded(code) as program:
            return score_program(functools.partial(self.run, program), self.refs, self.setting)

    def run(self, program: sandbox.Program, level: int, case: int, repeat: int) -> Outcome:
        """One run of one case, judged."""
        args = self.cases[level][case]
        answer = self.answers[level][case]
        # an output much longer than the answer is wrong; not reading it bounds what it costs us
        most = (1 << 16) + 2 * len(json.dumps(sandbox.encode(answer)))
        seconds = self.limit + self.setting.tolerance
        done = undisturbed(program, args, seconds, most, self.setting.hardness[level] > 0)
        where = f"level {level}, case {case}"
        if done.status in CENSORED:
            return Outcome("censored", why=f"{done.status} at {where}")
        if done.status != "ok":
            return Outcome("failed", why=f"{done.status} at {where}: {done.detail}")
        if not self.problem.accepts(args, answer, done.value):
            return Outcome("failed", why=f"wrong output at {where}")
        return Outcome("ok", done.seconds)


def median_of(runs: Iterable[sandbox.Run]) -> float:
    """The Hodges–Lehmann estimate of their seconds."""
    return hodges_lehmann([run.seconds for run in runs])


def undisturbed(
    program: sandbox.Program, args: tuple, seconds: float, most: int, timed: bool
) -> sandbox.Run:
    """One call; of up to four where other work had the processor for more than half of the time.

    Of these, the call that waited least. seconds: the limit; most: bytes of output; timed: whether
    the time of a finished call counts (h_l > 0); where not, only a timeout is tried again.
    """
    runs = []
    while len(runs) < 4:
        run = program.call(args, seconds, most)
        runs.append(run)
        waited = run.seconds > 2 * run.cpu + 0.0003
        if not waited or (run.status != "timeout" and not timed):
            return run
    return min(runs, key=lambda run: run.seconds - run.cpu)


def make_case(problem: Task, level: int, case: int, setting: Setting) -> tuple:
    """Arguments from a seed of the case's own.

    It is seed XOR problem XOR (number of cases of earlier levels + case).
    """
    before = sum(setting.tests[:level])
    seed = setting.seed ^ zlib.crc32(problem.name.encode()) ^ (before + case)
    return problem.generate(problem.sizes[level], level, case, random.Random(seed))


def passes_examples(problem: Task, code: str, seconds: float = 2.0) -> bool:
    """Whether a program is right on the prompt's few examples: common practice's weak tests."""
    with sandbox.Program(problem.program(code), problem.name) as program:
        for args, answer in problem.examples:
            run = program.call(args, seconds)
            if run.status != "ok" or not problem.accepts(args, answer, run.value):
                return False
    return True


# --- a set of samples ---------------------------------------------------------------------------


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

    def estimates(
        self, ks: Iterable[int] = (1, 10, 100), problem: str | None = None
    ) -> dict[str, float]:
        """`eff@k` and `pass@k` of one problem, or their means over all that have samples.

        Only for those k for which every problem has enough samples.
        """
        groups = [self.scores(name) for name in self.problems]
        fewest = min(map(len, groups), default=0)
        ks = [k for k in ks if 1 <= k <= fewest]
        if problem is not None:
            groups = [self.scores(problem)]
        eff = {f"eff@{k}": float(np.mean([eff_of(g, k) for g in groups])) for k in ks}
        passed = {f"pass@{k}": float(np.mean([pass_of(g, k) for g in groups])) for k in ks}
        return eff | passed


def eff_of(scores: Sequence[Score], k: int) -> float:
    return eff_at_k([score.value for score in scores], k)


def pass_of(scores: Sequence[Score], k: int) -> float:
    return pass_at_k(len(scores), sum(score.passed for score in scores), k)


def evaluate(
    samples: Sequence[Sample],
    setting: Setting = Setting(),
    progress: Callable = iter,
    finished: Callable[[Evaluation], None] = lambda evaluation: None,
) -> Evaluation:
    """Race every sample against its problem's reference, never two programs at once.

    One problem after the other. progress: wraps the sequence of samples, as `tqdm` does; finished:
    called after every sample. An interruption (Ctrl-C) ends the evaluation early and keeps what is
    finished.
    """
    order = list(dict.fromkeys(sample.task for sample in samples))
    races = {name: task(name) for name in order}  # unknown problems are refused before any race
    done = Evaluation(setting, [])
    race: Race | None = None
    try:
        for sample in progress(sorted(samples, key=lambda sample: order.index(sample.task))):
            if race is None or race.problem.name != sample.task:
                race = Race(races[sample.task], setting)
            done.results.append((sample, race.score(sample.code)))
            finished(done)
    except KeyboardInterrupt:
        done.interrupted = True
    return done


if __name__ == "__main__":  # the command's earlier address
    from refimpl.bases.programs.__main__ import main

    raise SystemExit(main())
