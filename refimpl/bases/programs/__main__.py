"""Score generated programs: how many are right, and how efficient they are (ENAMEL's eff@k).

    python -m refimpl.bases.programs samples.jsonl       # lines of {"problem": …, "code": …}
    python -m refimpl.bases.programs --prompts           # the tasks, for a model
    python -m refimpl.bases.programs --example           # a file of samples to try

Results go to a JSON file, rewritten while the races run, and to a table at the end.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from refimpl.bases.programs.tasks import Sample, read_samples, tasks
from refimpl.papers.enamel import Evaluation, Score, Setting, evaluate

SIGNALS = """
Ctrl-C (SIGINT), SIGTERM and SIGHUP end an evaluation early and keep what is finished. A SIGINT or
SIGHUP that was ignored when the command started (nohup, a background job of a script) stays
ignored: use SIGTERM. Exit status: 0 when every line was evaluated, 1 when some were malformed or
the results could not be written, 2 for wrong arguments or no sample, 130 when interrupted.
"""
SAVE_SECONDS = 5.0  # between two writings of the results


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments()
    options = parser.parse_args(argv)
    if options.prompts or options.example:
        print_lines(prompts() if options.prompts else example())
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
    print(f"to race: {counted(samples)}", flush=True)
    results = Results(options.json or options.samples.with_suffix(".results.json"))
    try:
        results.check()
    except OSError as error:
        parser.error(f"results can't be written to {results.path}: {error.strerror or error}")

    interrupt_on_signals()
    save = functools.partial(results.save, ks=options.k, complaints=complaints)
    done = evaluate(samples, setting, progress_bar(), save)
    print(table(done, options.k))
    if done.interrupted:
        print(f"interrupted after {len(done.results)} of {len(samples)} samples", file=sys.stderr)
    written = save(done, now=True)
    if written:
        print(f"results: {results.path}")
    return 130 if done.interrupted else int(bool(complaints) or not written)


def arguments() -> argparse.ArgumentParser:
    default = Setting()
    parser = argparse.ArgumentParser(
        prog="python -m refimpl.bases.programs",
        description="Evaluate the efficiency of generated programs (eff@k).",
        epilog=SIGNALS,
    )
    add = parser.add_argument
    lines = 'JSON lines of {"problem": name, "code": a body for the prompt, or a whole definition}'
    add("samples", type=Path, nargs="?", help=lines)
    beside = "where results go (default: beside the samples, ending in .results.json)"
    add("--json", type=Path, metavar="FILE", help=beside)
    draws = "draws (default: 1 10 100; those with too few samples are left out)"
    add("--k", type=int, nargs="+", default=[1, 10, 100], help=draws)
    cases = f"cases per level (default: {' '.join(map(str, default.tests))})"
    add("--tests", type=int, nargs="+", default=default.tests, help=cases)
    shown = "(default: %(default)s)"
    add("--repeats", type=int, default=default.repeats, help=f"runs per case {shown}")
    limit = f"time limit, in times of the reference {shown}"
    add("--alpha", type=float, default=default.alpha, help=limit)
    add("--seed", type=int, default=default.seed, help=f"seed of the cases {shown}")
    add("--prompts", action="store_true", help="print the problems' prompts and end")
    add("--example", action="store_true", help="print our own solutions as samples and end")
    return parser


def counted(samples: list[Sample]) -> str:
    """How many samples there are, of which problems."""
    problems = list(dict.fromkeys(sample.task for sample in samples))
    more = f" and {len(problems) - 6} more problems" if len(problems) > 6 else ""
    plural = "s" * (len(samples) != 1)
    return f"{len(samples)} sample{plural} of {', '.join(problems[:6])}{more}"


def prompts() -> list[dict]:
    return [{"problem": problem.name, "prompt": problem.prompt} for problem in tasks().values()]


def example() -> list[dict]:
    lines = []
    for problem in tasks().values():
        for solution in problem.solutions.values():
            lines.append({"problem": problem.name, "code": solution.code})
    return lines


def print_lines(entries: Iterable[dict]) -> None:
    for entry in entries:
        print(json.dumps(entry))


def interrupt_on_signals() -> None:
    """SIGTERM and SIGHUP end the evaluation as Ctrl-C does; an ignored SIGHUP stays ignored."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def progress_bar() -> Callable:
    """tqdm's bar on the error stream, or none where tqdm is missing (the extra `chapters`)."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return iter
    return functools.partial(tqdm, unit="sample")


class Results:
    """The file of results, written whole or not at all, again and again."""

    def __init__(self, path: Path):
        self.path = path.resolve()
        self.part = self.path.with_name(self.path.name + ".part")
        self.saved = time.monotonic()
        self.complained = False

    def check(self) -> None:
        """An `OSError` where the file could not be written later."""
        if self.path.exists() and not self.path.is_file():
            raise OSError("it is there and is no file")
        self.part.write_text("", encoding="utf-8")
        self.part.unlink()

    def save(
        self, done: Evaluation, ks: Iterable[int], complaints: list[str], now: bool = False
    ) -> bool:
        """Write what is finished, at most every few seconds; False where that failed."""
        if not now and time.monotonic() - self.saved < SAVE_SECONDS:
            return True
        self.saved = time.monotonic()
        text = json.dumps(record(done, ks) | {"malformed": complaints}, indent=1) + "\n"
        try:
            self.part.write_text(text, encoding="utf-8")
            os.replace(self.part, self.path)
        except OSError as error:
            if now or not self.complained:
                print(f"results could not be written: {error}", file=sys.stderr)
            self.complained = True
            return False
        return True


def table(done: Evaluation, ks: Iterable[int] = (1, 10, 100)) -> str:
    """One line per problem and their mean, as text."""
    rows = [["problem", "samples", "passed", *done.estimates(ks)]]
    for name in done.problems:
        rows.append(table_row(name, done.scores(name), done.estimates(ks, name)))
    if len(done.problems) > 1:
        scores = [score for _, score in done.results]
        rows.append(table_row("mean over problems", scores, done.estimates(ks)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for title, *numbers in rows:
        cells = [f"  {text:>{w}}" for text, w in zip(numbers, widths[1:], strict=True)]
        lines.append(title.ljust(widths[0]) + "".join(cells))
    return "\n".join(lines)


def table_row(title: str, scores: list[Score], estimates: dict[str, float]) -> list[str]:
    passed = sum(score.passed for score in scores)
    return [title, str(len(scores)), str(passed), *(f"{x:.3f}" for x in estimates.values())]


def record(done: Evaluation, ks: Iterable[int] = (1, 10, 100)) -> dict:
    """Everything as JSON data; times that were not finished are null."""
    problems = {}
    for name in done.problems:
        scores = done.scores(name)
        counts = {"samples": len(scores), "passed": sum(score.passed for score in scores)}
        problems[name] = counts | done.estimates(ks, name)
    return {
        "setting": asdict(done.setting),
        "interrupted": done.interrupted,
        "mean": done.estimates(ks),
        "problems": problems,
        "samples": [sample_record(sample, score) for sample, score in done.results],
    }


def sample_record(sample: Sample, score: Score) -> dict:
    times = [None if math.isnan(t) else t for t in score.times]
    return {"line": sample.line, "problem": sample.task} | asdict(score) | {"times": times}


if __name__ == "__main__":
    sys.exit(main())
