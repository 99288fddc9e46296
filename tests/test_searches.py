"""The race on the page of searches: methods play by the rules, the page says what was recorded."""

from __future__ import annotations

import json

import pytest

import searches

every_method = pytest.mark.parametrize("name", searches.METHODS)


@every_method
def test_what_is_proposed_meets_the_limits_and_the_same_seed_proposes_it_again(name):
    heard = searches.table(0)
    runs = []
    for _ in range(2):
        method = searches.METHODS[name](3)
        asked = []
        for _ in range(15):
            picks = method.ask()
            assert searches.met(picks)
            asked.append(tuple(picks))
            method.tell(picks, heard[tuple(picks)])
        runs.append(asked)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", [n for n in searches.METHODS if n[:6] not in ("As-ViT", "Elasti")])
def test_who_trains_everything_delivers_the_best_that_was_heard(name):
    heard, judged = searches.table(0), searches.table(1)
    worth = searches.race(searches.METHODS[name](0), heard, judged, len(searches.WITHIN))
    assert worth[-1] == judged[max(heard, key=heard.get)]


def test_pruning_goes_down_one_notch_at_a_time():
    method = searches.Pruning(0)
    largest = method.ask()
    assert largest == max(searches.WITHIN, key=lambda picks: searches.COUNTS[picks].multiply_adds)
    method.tell(largest, 50.0)
    notch = method.ask()
    assert sum(largest) - sum(notch) == 1


def test_the_page_says_what_the_record_holds():
    record = json.loads(searches.RESULT.read_text(encoding="utf-8"))
    assert searches.text(record) == searches.TEXT.read_text(encoding="utf-8")
    assert record["within"] == len(searches.WITHIN) and list(record["methods"]) == list(
        searches.METHODS
    )
    assert searches.verdict(dict(lead=1.0, error=0.4)) == "no better and no worse"
    assert searches.verdict(dict(lead=1.3, error=0.4)) == "better"
    assert searches.verdict(dict(lead=-1.3, error=0.4)) == "worse"
