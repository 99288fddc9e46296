"""What searches share: a table measured once, a loop that goes on from its log, refusals."""

from __future__ import annotations

import json
import random

import pytest

from refimpl.lab.search import MeasuredTable, Trial, best, search
from shared.models import assert_refused


class Climb:
    """Whole numbers near the best one so far; enough of a method to depend on what it is told."""

    def __init__(self, seed=0):
        self.random = random.Random(seed)
        self.best = (-1e9, 50)

    def ask(self):
        return self.best[1] + self.random.randint(-5, 5)

    def tell(self, candidate, score):
        self.best = max(self.best, (score, candidate))


def height(x):
    return -abs(x - 20)


def test_a_search_climbs_and_returns_every_trial():
    trials = search(Climb(), height, 60)
    assert len(trials) == 60 and best(trials).candidate == 20
    assert trials[0] == Trial(trials[0].candidate, height(trials[0].candidate))


def test_a_search_goes_on_from_its_log(tmp_path):
    whole = search(Climb(), height, 20)
    log = tmp_path / "log.jsonl"
    search(Climb(), height, 8, log=log)
    seen = []
    resumed = search(Climb(), lambda x: seen.append(x) or height(x), 20, log=log)
    assert resumed == whole and len(seen) == 12
    assert len(log.read_text(encoding="utf-8").splitlines()) == 20
    assert search(Climb(), lambda x: 1 / 0, 20, log=log) == whole


def test_a_search_that_broke_off_has_logged_what_it_evaluated(tmp_path):
    log = tmp_path / "log.jsonl"
    left = iter([1.0, 2.0])
    with pytest.raises(StopIteration):
        search(Climb(), lambda x: next(left), 5, log=log)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["score"] for line in lines] == [1.0, 2.0]


def test_what_is_over_the_limit_is_not_evaluated():
    trials = search(Climb(), height, 30, cost=lambda x: 2.0 * x, limit=99.0)
    assert all(trial.cost == 2.0 * trial.candidate <= 99.0 for trial in trials)


def test_a_table_is_measured_once_and_kept(tmp_path):
    asked = []

    def measure(key):
        asked.append(key)
        return key[1] / 2

    table = MeasuredTable("parts", measure, tmp_path)
    assert (table["conv", 3], table["conv", 3], table["conv", 5]) == (1.5, 1.5, 2.5)
    again = MeasuredTable("parts", measure, tmp_path)
    assert again["conv", 5] == 2.5 and again["mlp", 1] == 0.5
    assert asked == [("conv", 3), ("conv", 5), ("mlp", 1)]


def test_another_machine_measures_anew(tmp_path):
    assert MeasuredTable("parts", lambda key: 1.0, tmp_path)["x"] == 1.0
    path = tmp_path / "parts.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["machine"]["threads"] = 1024
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert MeasuredTable("parts", lambda key: 2.0, tmp_path)["x"] == 2.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(evaluations=0), "evaluations=0 must be an integer of at least 1"),
        (dict(evaluations=3, limit=1.0), "belong together"),
        (dict(evaluations=3, cost=abs, limit=-1.0), "is met by none of 1000 proposals: the chea"),
    ],
)
def test_refusals(options, words):
    assert_refused(lambda: search(Climb(), height, **options), words)


def test_the_log_of_another_search_is_refused(tmp_path):
    search(Climb(), height, 5, log=tmp_path / "log")
    assert_refused(
        lambda: search(Climb(seed=1), height, 5, log=tmp_path / "log"), "is of another search"
    )
