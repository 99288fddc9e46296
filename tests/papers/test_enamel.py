"""ENAMEL: reference outputs, the estimator's properties, the races, the command."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.bases.programs.__main__ import Results, record, table
from refimpl.bases.programs.tasks import Sample, Task, read_samples, read_task, task, tasks
from refimpl.papers import enamel
from refimpl.papers.enamel import (
    Evaluation,
    Outcome,
    Race,
    Score,
    Setting,
    eff_at_k,
    efficiency,
    estimator_weights,
    evaluate,
    hodges_lehmann,
    pass_at_k,
    score_program,
)

STEM = "enamel"
posix = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="the runner refuses systems without fork"
)
QUICK = Setting(
    tests=(8, 2, 2, 2), repeats=1, tolerance=0.5
)  # a tolerance that a busy machine does not use up: no verdict here hangs on speed
SWALLOW = """    while True:
        try:
            while True: pass
        except BaseException: pass"""
ROOT = Path(enamel.__file__).parents[2]


# --- reference outputs --------------------------------------------------------------------------


def test_official(official_case):
    """Which function a file records shows in the names of what it records."""
    recorded = official_case.data["inputs"] | official_case.data["outputs"]
    compute = next(function for name, function in OFFICIAL.items() if name in recorded)
    small = "n" not in recorded or np.max(official_case.recorded("n")) <= 1500
    official_case.check(compute(official_case), rtol=1e-12 if small else 1e-9)


def rows(case, *names):
    return zip(*(case.recorded(name) for name in names), strict=True)


def official_eff(case):
    n, k = case.recorded("n"), case.recorded("k")
    e = (
        case.recorded("e")
        if "e" in case.data["inputs"]
        else [np.arange(1, size + 1) / size for size in n]
    )
    got = np.array([eff_at_k(row[:size], draws) for row, size, draws in zip(e, n, k, strict=True)])
    return dict.fromkeys(case.data["outputs"], got)


def official_weights(case):
    got = estimator_weights(int(case.recorded("n")), int(case.recorded("k")))
    return dict.fromkeys(case.data["outputs"], got)


def official_score(case):
    """The official control flow with the runs replaced by recorded times."""
    given = case.arguments
    times, wrong, n_tests = (
        case.recorded("times"),
        case.recorded("wrong_output"),
        case.recorded("n_tests"),
    )
    setting = Setting(
        tuple(map(int, n_tests)),
        tuple(given["hardness"]),
        given["n_reps"],
        given["timeout_factor"],
        given["tolerance_sec"],
    )
    refs, limit = enamel.references(
        [row[:n] for row, n in zip(case.recorded("reference_time"), n_tests, strict=True)], setting
    )

    def race(code: int) -> Score:
        def run(level, test, repeat):
            if times[code, level, test, repeat] > limit + setting.tolerance:
                return Outcome("censored")
            return Outcome(
                "failed" if wrong[code, level, test] else "ok", times[code, level, test, repeat]
            )

        return score_program(run, refs, setting)

    scores = [race(code) for code in range(len(times))]
    values, passed = [s.value for s in scores], [s.passed for s in scores]
    return {
        "passed": np.array(passed, np.int64),
        "level_scores": np.array([s.levels for s in scores]),
        "score": np.array(values),
        "eff_at_k": np.array([eff_at_k(values, k) for k in given["k"]]),
        "pass_at_k": np.array([pass_at_k(len(scores), sum(passed), k) for k in given["k"]]),
        "timeout": np.array(limit),
        "level_ref": np.array(
            [-1.0 if math.isinf(r) else r for r in refs]
        ),  # the file writes −1 for −∞
    }


OFFICIAL = {
    "times": official_score,
    "weights": official_weights,
    "eff_at_k": official_eff,
    "pass_at_k": lambda case: np.array(
        [pass_at_k(int(n), int(c), int(k)) for n, c, k in rows(case, "n", "c", "k")]
    ),
    "estimate": lambda case: np.array([hodges_lehmann(t[:m]) for t, m in rows(case, "t", "m")]),
    "f": lambda case: np.array(
        [efficiency(*row) for row in rows(case, "elapsed", "ref", "timeout")]
    ),
}


# --- the estimator ------------------------------------------------------------------------------

unit = st.floats(0, 2, allow_subnormal=False)


@settings(deadline=None, max_examples=60)
@given(st.lists(unit, min_size=1, max_size=10), st.data())
def test_estimator_is_the_mean_over_all_subsets(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    best = [max(subset) for subset in itertools.combinations(scores, k)]
    assert eff_at_k(scores, k) == pytest.approx(math.fsum(best) / len(best), abs=1e-14)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 300), st.data())
def test_generalises_pass_at_k(n, data):
    k, c = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    assert eff_at_k([1.0] * c + [0.0] * (n - c), k) == pytest.approx(pass_at_k(n, c, k), abs=1e-12)


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (7, 3), (20, 20), (200, 1), (1029, 500), (1500, 750), (1500, 2)]
)
def test_recurrence_against_exact_fractions(n, k):
    exact = [Fraction(math.comb(r - 1, k - 1), math.comb(n, k)) for r in range(k, n + 1)]
    error = max(
        abs(Fraction(float(w)) / x - 1)
        for w, x in zip(estimator_weights(n, k), exact, strict=True)
        if x > Fraction(1, 10**300)
    )
    assert error < 1e-12
    assert estimator_weights(n, k).sum() == pytest.approx(1, abs=1e-12)


def test_factorials_overflow_where_the_recurrence_does_not():
    with pytest.raises(OverflowError):
        float(math.factorial(171))
    assert np.isfinite(estimator_weights(20_000, 10_000)).all()


def test_average_of_all_subsets_varies_less_than_one():
    """Over new sets of samples its variance is at most k/n of one subset's (U-statistics)."""
    rng = np.random.default_rng(0)
    n, k, draws = 20, 5, 4000
    samples = rng.random((draws, n)) ** 3
    one = samples[:, :k].max(1)
    all_ = np.array([eff_at_k(row, k) for row in samples])
    assert all_.var() <= k / n * one.var() * 1.05
    assert abs(all_.mean() - one.mean()) < 4 * one.std() / math.sqrt(draws)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=8))
def test_hodges_lehmann_by_definition(times):
    pairs = sorted((times[i] + times[j]) / 2 for i in range(len(times)) for j in range(i + 1))
    middle = len(pairs) // 2
    assert hodges_lehmann(times) == (
        pairs[middle] if len(pairs) % 2 else (pairs[middle - 1] + pairs[middle]) / 2
    )
    assert hodges_lehmann([1.0, 1.1, 0.9, 1.0, 1.1, 60.0]) < 1.2  # one outlier of six


# --- scores -------------------------------------------------------------------------------------


def test_faster_than_the_reference_scores_above_one():
    """The official code does not clip f, nor do we."""
    assert efficiency(0.05, 0.1, 0.2) == pytest.approx(1.5)
    assert efficiency(0.0, 0.1, 0.2) == 2.0 and efficiency(0.2, 0.1, 0.2) == 0.0


def race_of(times):
    """Race recorded times (level → seconds) against a reference of 1, 2, 4 seconds."""
    refs, setting = [-math.inf, 1.0, 2.0, 4.0], Setting(repeats=1)

    def run(level, case, repeat):
        t = times[level]
        if isinstance(t, str):
            return Outcome(t)
        return Outcome("censored") if t > 8.0 + setting.tolerance else Outcome("ok", t)

    return score_program(run, refs, setting)


def test_control_flow():
    assert race_of([0, 1, 2, 4]).value == 1.0
    assert race_of([0, 1, 2, 99]) == Score(
        True, 0.6, (0.0, 1.0, 1.0, 0.0), (0, 1, 2, pytest.approx(math.nan, nan_ok=True)), 3, ""
    )
    assert race_of([0, 1, 99, 4]).levels == (0, 1, 0, 0), "a stopped level ends the race"
    assert race_of([0, 99, 1, 1]).passed and race_of([0, 99, 1, 1]).value == 0
    assert not race_of([99, 1, 1, 1]).passed, "stopped at level 0 is failed"
    assert not race_of([0, 1, 2, "failed"]).passed and race_of([0, 1, 2, "failed"]).levels == (
        0,
        0,
        0,
        0,
    )
    assert race_of([0, 1, 2, 8.005]).levels[3] == 0 and race_of([0, 1, 2, 8.005]).stopped is None, (
        "within the tolerance it finishes, and scores 0"
    )


def test_every_repeat_counts():
    """A wrong output at any repeat fails; level 0 is run once."""
    runs = []

    def run(level, case, repeat):
        runs.append((level, case, repeat))
        return Outcome("failed" if (level, case, repeat) == (2, 1, 5) else "ok", 1.0)

    assert not score_program(run, [-math.inf, 1.0, 1.0, 1.0], Setting()).passed
    assert runs[:9] == [(0, case, 0) for case in range(8)] + [(1, 0, 0)] and runs[-1] == (2, 1, 5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: estimator_weights(3, 4), "k=4 .* n=3"),
        (lambda: estimator_weights(3, 0), "k=0"),
        (lambda: eff_at_k([], 1), "n=0"),
        (lambda: eff_at_k([0.5, math.nan], 1), "finite"),
        (lambda: eff_at_k([[0.5]], 1), "shape"),
        (lambda: pass_at_k(3, 4, 1), "c=4"),
        (lambda: pass_at_k(3, 1, 9), "k=9"),
        (lambda: hodges_lehmann([]), "at least one time"),
        (lambda: efficiency(1.0, 2.0, 2.0), "must exceed reference=2.0"),
        (lambda: Setting(tests=(8, 4)), "tests="),
        (lambda: Setting(tests=(8, 4, 4, 0)), "tests="),
        (lambda: Setting(hardness=(0, 0, 0, 0)), "hardness="),
        (lambda: Setting(repeats=0), "repeats=0"),
        (lambda: Setting(alpha=1.0), "alpha=1.0"),
        (lambda: Setting(tolerance=-1), "tolerance=-1"),
        (lambda: task("two_sums"), "did you mean 'two_sum'"),
        (lambda: Race(task("two_sum"), Setting(tests=(4, 4), hardness=(0, 1))), "has 4 levels"),
        (lambda: evaluate([Sample("nothing like it", "")]), "unknown problem 'nothing like it'"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# --- the problem set ----------------------------------------------------------------------------


def test_problem_set_is_large_enough():
    assert len(tasks()) >= 8
    for t in tasks().values():
        assert 4 <= len(t.solutions) <= 6, t.name
        assert {s.right for s in t.solutions.values()} == {True, False}
        assert len({s.cost for s in t.solutions.values() if s.right}) >= 2, (
            f"{t.name}: solutions of different cost"
        )
        assert (
            list(t.sizes) == sorted(t.sizes)
            and len(t.sizes) == 4
            and t.prompt.count(f"def {t.name}(") == 1
        )


@pytest.mark.parametrize("name", tasks())
def test_cases_follow_from_their_seeds(name):
    def make(seed, case):
        return enamel.make_case(task(name), 1, case, Setting(seed=seed))

    assert make(1, 0) == make(1, 0)
    assert any(make(1, case) != make(2, case) for case in range(4))


@posix
@pytest.mark.parametrize("name", tasks())
def test_solutions_are_what_their_authors_say(name):
    """Right ones pass, wrong ones fail; quadratic cost or worse ends before the last level."""
    race = Race(task(name), QUICK)
    for solution in task(name).solutions.values():
        score = race.score(solution.code)
        assert score.passed == solution.right, (solution.name, score)
        if solution.cost in ("O(n²)", "O(n³)", "O(2ⁿ)"):
            assert score.levels[3] == 0, (solution.name, score)
    assert race.score(task(name).reference).passed


@posix
def test_strong_tests_reject_what_weak_tests_accept():
    wrong = [(t, s) for t in tasks().values() for s in t.solutions.values() if not s.right]
    accepted = [s.name for t, s in wrong if enamel.passes_examples(t, s.code)]
    assert len(wrong) - 3 <= len(accepted) and "fermat" in accepted


@posix
def test_whole_definitions_serve_as_well_as_bodies():
    race = Race(task("max_subarray"), QUICK)
    whole = """
from itertools import accumulate

def max_subarray(xs):
    return best(xs)

def best(xs):
    low, most = 0, xs[0]
    for s in accumulate(xs):
        most, low = max(most, s - low), min(low, s)
    return most
"""
    assert race.score(whole).passed
    assert not race.score("").passed and not race.score("    return xs[").passed
    assert "SyntaxError" in race.score("    return xs[").why


@posix
def test_checkers_do_not_trust_outputs():
    race = Race(task("two_sum"), QUICK)
    for output in (
        "'ab'",
        "(0, 0)",
        "(-1, 2)",
        "(0.0, 1)",
        "[0, 1]",
        "(0, 10**9)",
        "(True, 2)",
        "{}",
        "(None, None)",
        "float('nan')",
    ):
        assert not race.score(f"    return {output}").passed, output
    assert not task("merge_intervals").accepts(([],), [], ()) and not task(
        "has_close_pair"
    ).accepts((), True, 1)


@posix
def test_stopped_for_memory_passes_from_level_one_on():
    """MemoryError and OverflowError are censored as a timeout is."""
    race = Race(task("max_subarray"), QUICK)
    honest = task("max_subarray").solutions["prefix_sums"].code
    for trouble in ("raise MemoryError", "raise OverflowError", "while xs: pass"):
        score = race.score(f"    if len(xs) > 500:\n        {trouble}\n{honest}")
        assert (
            score.passed
            and score.stopped == 2
            and score.levels[1] > 0
            and score.levels[2:] == (0, 0)
        ), score
    assert not race.score("    raise MemoryError").passed


@posix
def test_hostile_samples_leave_the_rest_unharmed():
    good = task("max_subarray").solutions["prefix_sums"].code
    bad = (
        "    import os; os.kill(os.getppid(), 9)",
        "    import os; os._exit(0)",
        SWALLOW,
        "    import sys; sys.stdout.write('x' * (1 << 28)); return 0",
    )
    done = evaluate([Sample("max_subarray", code) for code in (good, *bad, good)], QUICK)
    assert [score.passed for _, score in done.results] == [True, False, False, False, False, True]
    assert "refused" in done.results[1][1].why and "exit" in done.results[2][1].why


# --- samples and results ------------------------------------------------------------------------


def test_malformed_lines_are_reported_by_number():
    lines = [
        b'{"problem": "two_sum", "code": "    return None"}',
        b"",
        b"not json",
        b"[1]",
        b'{"problem": "two_sum"}',
        b'{"problem": 3, "code": ""}',
        b'{"problem": "twosum", "code": ""}',
        b'\xff{"problem": "two_sum", "code": ""}',
        b'{"problem": "two_sum", "code": null}',
        b"[" * 100_000,
        b'\xef\xbb\xbf{"problem": "two_sum", "code": "", "model": "other keys are fine"}',
    ]
    samples, complaints = read_samples(lines)
    assert [s.line for s in samples] == [1, 11]
    assert [c.split(":")[0] for c in complaints] == [f"line {n}" for n in (3, 4, 5, 6, 7, 8, 9, 10)]
    assert (
        'no "code"' in complaints[2]
        and "did you mean 'two_sum'" in complaints[4]
        and "NoneType" in complaints[6]
    )


def made_up() -> Evaluation:
    scores = {"two_sum": [0.0, 0.5, 1.0], "fib_mod": [0.25, 0.25]}
    return Evaluation(
        Setting(),
        [
            (Sample(name, ""), Score(e > 0, e, (0, e, e, e), (0.0, 1.0, math.nan, math.nan)))
            for name, es in scores.items()
            for e in es
        ],
    )


def test_estimates_are_means_over_problems():
    done = made_up()
    estimates = done.estimates((1, 2, 3))
    assert estimates == {
        "eff@1": 0.375,
        "eff@2": pytest.approx((0.25 + 5 / 6) / 2),
        "pass@1": pytest.approx(5 / 6),
        "pass@2": 1.0,
    }, "k = 3 needs three samples of each"
    assert done.estimates((1,), "fib_mod") == {"eff@1": 0.25, "pass@1": 1.0}
    assert "mean over problems" in table(done) and table(done).count("\n") == 3
    assert json.loads(json.dumps(record(done), allow_nan=False))["samples"][0]["times"] == [
        0.0,
        1.0,
        None,
        None,
    ]


def test_nothing_evaluated_is_no_error():
    empty = Evaluation(Setting(), [])
    assert (
        empty.estimates() == {}
        and table(empty).startswith("problem")
        and record(empty)["samples"] == []
    )


def default_signals() -> None:
    """In a child, before it starts: it must not inherit that SIGINT is ignored (nohup, `&`)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def command(*arguments, temporary: Path | None = None) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if temporary:
        environment["TMPDIR"] = str(temporary)
    line = [sys.executable, "-m", "refimpl.bases.programs", *map(str, arguments)]
    return subprocess.Popen(
        line,
        env=environment,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=default_signals if hasattr(os, "fork") else None,
    )


def sample_file(
    path: Path, codes: list[str], more: str = "", problem: str = "max_subarray"
) -> Path:
    path.write_text(
        "".join(json.dumps({"problem": problem, "code": code}) + "\n" for code in codes) + more,
        encoding="utf-8",
    )
    return path


QUICKLY = ("--tests", 2, 1, 1, 1, "--repeats", 1)


@posix
def test_command(tmp_path):
    solutions = [s.code for s in task("longest_unique").solutions.values()]
    process = command(
        sample_file(tmp_path / "samples.jsonl", solutions, "oops\n", "longest_unique"),
        *QUICKLY,
        "--alpha",
        50,
        "--k",
        1,
        3,
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "line 6: " in err and "skipped" in err
    assert (
        "eff@3" in out and "longest_unique" in out and out.strip().endswith("samples.results.json")
    )
    record = json.loads((tmp_path / "samples.results.json").read_text(encoding="utf-8"))
    assert len(record["samples"]) == len(solutions) and record["malformed"][0].startswith("line 6")
    assert (
        record["samples"][-1]["passed"] is False
        and record["problems"]["longest_unique"]["passed"] == 4
    )
    if importlib.util.find_spec("tqdm"):
        assert "sample/s" in err or "s/sample" in err


@posix
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_keeps_what_is_finished(tmp_path, how):
    """Every process of the sandbox works in a folder under TMPDIR.

    At the end that must be empty, and no process may be there.
    """
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    quick = task("longest_unique").solutions["shrinking_window"].code
    slow = SWALLOW.replace("while True:", "while len(s) < 50:", 1) + "\n    return 0"
    path = sample_file(
        tmp_path / "samples.jsonl", [quick, quick] + [slow] * 50, problem="longest_unique"
    )
    process = command(path, *QUICKLY, "--alpha", 30_000, temporary=temporary)
    end = time.perf_counter() + 60
    while not running_for(temporary, 3.0) and process.poll() is None and time.perf_counter() < end:
        time.sleep(0.05)
    if sys.platform == "linux":
        assert living_in(temporary), "the slow sample runs"
    process.send_signal(how)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "interrupted after" in err and "longest_unique" in out
    kept = json.loads((tmp_path / "samples.results.json").read_text(encoding="utf-8"))
    assert kept["interrupted"] and len(kept["samples"]) == 2 and kept["samples"][0]["passed"]
    assert not list(temporary.iterdir()) and not living_in(temporary)


def running_for(temporary: Path, seconds: float) -> bool:
    """Whether one working directory has been there that long: only the slow sample's is."""
    return any(time.time() - folder.stat().st_mtime > seconds for folder in temporary.glob("run-*"))


def living_in(folder: Path) -> list[str]:
    """Processes with their working directory in or under the folder (Linux)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                os.readlink(process / "cwd").startswith(str(folder))
                and (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
                != "Z"
            ):
                found.append(process.name)
        except OSError:
            continue
    return found


def test_command_refuses_what_it_cannot_do(tmp_path):
    for arguments, words in (
        ((), "--example"),
        ((tmp_path / "missing.jsonl",), "missing.jsonl"),
        ((sample_file(tmp_path / "a.jsonl", [""]), "--alpha", "0.5"), "alpha=0.5"),
        ((sample_file(tmp_path / "b.jsonl", [], "junk\n"),), "no sample to evaluate"),
    ):
        process = command(*arguments)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2 and words in err, err


@posix
def test_outputs_are_checked_before_the_first_race(tmp_path):
    """A target that can't be written costs a sentence, not minutes of races."""
    samples = sample_file(tmp_path / "samples.jsonl", [""] * 50)
    for target in (tmp_path / "no" / "such" / "x.json", tmp_path):
        before = time.perf_counter()
        process = command(samples, "--json", target)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 2 and "results can't be written" in err
        assert out == "to race: 50 samples of max_subarray\n", "no race was run"
        assert "Traceback" not in err and time.perf_counter() - before < 20
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_results_are_written_as_they_come(tmp_path, monkeypatch, capsys):
    """Every few seconds, whole or not at all; a full disk loses neither the races nor the table."""
    monkeypatch.setattr("refimpl.bases.programs.__main__.SAVE_SECONDS", 0.0)
    results = Results(tmp_path / "r.json")
    results.check()
    done = made_up()
    first = Evaluation(done.setting, done.results[:2])
    assert results.save(first, (1,), [])
    assert len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["samples"]) == 2
    monkeypatch.setattr(os, "replace", full_disk)
    assert not results.save(done, (1,), []) and not results.save(done, (1,), [])
    assert capsys.readouterr().err.count("No space left") == 1, "said once"
    assert len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["samples"]) == 2


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_evaluation_tells_after_every_sample(monkeypatch):
    seen = []
    monkeypatch.setattr(enamel.Race, "__init__", quick_race)
    monkeypatch.setattr(enamel.Race, "score", lambda self, code: Score(True, 1.0, (), ()))
    samples = [Sample("two_sum", ""), Sample("fib_mod", ""), Sample("two_sum", "")]
    evaluate(samples, QUICK, finished=lambda done: seen.append(len(done.results)))
    assert seen == [1, 2, 3]
    assert [s.task for s, _ in evaluate(samples, QUICK).results] == ["two_sum"] * 2 + ["fib_mod"]


def quick_race(self, problem, setting):
    self.problem = problem


@posix
def test_an_ignored_sigint_is_no_trouble(tmp_path):
    """Started with nohup or in the background of a script: SIGTERM ends it, as the help says."""
    out, _ = command("--help").communicate(timeout=60)
    assert "SIGTERM" in out and "nohup" in out
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.argv = ["x", {str(sample_file(tmp_path / "s.jsonl", [""]))!r}, *{list(map(str, QUICKLY))!r}]
from refimpl.bases.programs.__main__ import main
sys.exit(main())"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60
    )
    assert done.returncode == 0 and "max_subarray" in done.stdout, done.stderr


def test_earlier_address_of_the_command():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "refimpl.papers.enamel", "--prompts"]
    out = subprocess.run(
        line, env=environment, capture_output=True, encoding="utf-8", timeout=60
    ).stdout
    assert len(out.splitlines()) == len(tasks())


def test_command_prints_prompts_and_an_example():
    out, _ = command("--prompts").communicate(timeout=60)
    assert {json.loads(line)["problem"] for line in out.splitlines()} == set(tasks())
    out, _ = command("--example").communicate(timeout=60)
    samples, complaints = read_samples(out.encode().splitlines())
    assert not complaints and len(samples) == sum(len(t.solutions) for t in tasks().values())


# --- where the official code departs ------------------------------------------------------------


@posix
def test_swallowed_exceptions_end_at_the_limit():
    """Here its process is killed.

    Where a time limit is an exception raised inside the program, as in the official executor, this
    one never ends.
    """
    race = Race(task("longest_unique"), QUICK)
    before = time.perf_counter()
    score = race.score(SWALLOW)
    assert not score.passed and "timeout" in score.why and time.perf_counter() - before < 10


@posix
def test_patched_clock_gains_nothing():
    """Here the caller holds the clock.

    Where program and timer share a process, patching `time` makes any program instant.
    """
    race = Race(task("max_subarray"), QUICK)
    patch = "    import time\n    time.time = time.perf_counter = lambda: 0.0\n"
    slow = task("max_subarray").solutions["all_runs"].code
    score = race.score(patch + slow)
    assert score.passed and score.levels[3] == 0 and score.stopped is not None


@posix
def test_memory_between_runs_gains_nothing():
    """Every run is a fresh process; where repeats share one, a program can remember outputs."""
    race = Race(task("max_subarray"), Setting(tests=(1, 1, 1, 1), repeats=3, tolerance=0.5))
    remember = """
    import sys
    memo = sys.__dict__.setdefault("memo", {})
    if len(xs) in memo:
        raise ValueError("remembered")
    memo[len(xs)] = True
"""
    assert race.score(remember + task("max_subarray").solutions["prefix_sums"].code).passed


@posix
def test_limit_is_measured_anew():
    """T is α times the reference's slowest level as this machine ran it just now.

    So two races of one problem differ, and so do scores of equal times.
    """
    first, second = (Race(task("fib_mod"), QUICK) for _ in range(2))
    for race in (first, second):
        assert (
            race.limit == QUICK.alpha * max(map(max, race.times[1:]))
            and race.answers == first.answers
        )
    assert first.limit != second.limit
    busy = [2 * ref for ref in first.refs]
    once, again = (
        score_program(lambda *_: Outcome("ok", max(first.refs)), refs, QUICK).value
        for refs in (first.refs, busy)
    )
    assert again > once


def test_a_task_is_read_from_its_module(tmp_path):
    path = tmp_path / "double.py"
    path.write_text(
        '''
PROMPT = "def double(x):"
SIZES = (1, 2)
EXAMPLES = [((1,), 2)]

def generate(size, level, case, rng):
    return (size,)

def reference(x):
    return 2 * x

def add(x):
    """O(1), right: x + x."""

    # a comment of its own
    return x + x
''',
        encoding="utf-8",
    )
    spec = importlib.util.spec_from_file_location("double", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    read = read_task(module)
    assert isinstance(read, Task) and read.name == "double"
    assert read.reference == "    return 2 * x\n"
    assert read.solutions["add"].cost == "O(1)" and read.solutions["add"].right
    assert read.solutions["add"].code == "    # a comment of its own\n    return x + x\n"
