"""The comparison across the part "Fewer tokens": its rule, its record, what its page draws."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

pytest.importorskip("sphinx", reason="needs the extra 'book'")
pytest.importorskip("quickjs", reason="needs the extra 'book'")

from refimpl_book import sources, tokens

FILE = sources.RESULTS / "cpu" / "tokens.json"
RIVALS = [(0.5, 80.0), (1.0, 90.0), (0.8, 70.0), (0.2, 60.0)]


def made_record(method: tuple[float, float]) -> dict:
    """A record of two starts: the full ViT, the smallest rival, and a method at (time, %)."""
    places = {tokens.FULL: (1.0, 90.0), tokens.SMALLEST: (0.2, 70.0), "STViT, 9 tokens": method}
    points = [
        {
            "name": name,
            "kind": name.split(",")[0] if name.startswith("STViT") else "ViT",
            "start": start,
            "accuracy": accuracy,
            "seconds": dict.fromkeys(tokens.BATCHES, 1e-3 * seconds),
            "ratio": dict.fromkeys(tokens.BATCHES, seconds),
        }
        for start in (0, 1)
        for name, (seconds, accuracy) in places.items()
    ]
    return {
        "machine": {"name": "a <machine>", "threads": 1, "torch": "2", "date": "2026-11-27"},
        "command": "python book/bench/tokens.py",
        "data": "lab.data.fashion()",
        "train_images": 10_000,
        "test_images": 2_000,
        "shape": dict(img_size=28, patch_size=4, embed_dim=48, depth=6, num_heads=4),
        "steps": 300,
        "batch_size": 32,
        "lr": 3e-3,
        "starts": [0, 1],
        "timed_images": 64,
        "rounds": 5,
        "points": points,
    }


def test_the_front_leaves_out_who_is_beaten_in_both():
    assert tokens.front(RIVALS) == ([0.2, 0.5, 1.0], [60.0, 80.0, 90.0])


@pytest.mark.parametrize(
    ("point", "points", "share"),
    [
        ((0.75, 85.0), 0.0, 1.0),  # on the front
        ((0.75, 87.0), 2.0, 0.75 / 0.85),
        ((1.5, 89.0), -1.0, 1.5 / 0.95),  # slower than all: the front goes on level
        ((0.1, 55.0), -5.0, 0.5),  # cheaper than all
        ((0.5, 91.0), 11.0, None),  # better than all
    ],
)
def test_distances_to_the_front(point, points, share):
    found, found_share = tokens.against(point, RIVALS)
    assert found == pytest.approx(points)
    assert found_share == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([(0.6, 0.95), (2.0, None)], "pays"),
        ([(0.4, 0.89), (0.6, 0.95)], "pays"),  # by time, by accuracy
        ([(0.6, 0.95), (0.5, 0.9)], "no difference"),  # one start only; exactly at the margin
        ([(-0.6, 1.05), (-0.1, 1.2)], "loses"),
        ([(-0.6, 1.05), (0.6, 0.95)], "no difference"),
    ],
)
def test_the_rule(differences, verdict):
    assert tokens.judge(differences) == verdict


@pytest.mark.parametrize(
    ("method", "verdict"),
    [((0.4, 85.0), "pays"), ((0.9, 75.0), "loses"), ((0.6, 80.2), "no difference")],
)
def test_sentences_table_and_drawing_say_the_verdict(method, verdict):
    comparison = tokens.Comparison(made_record(method))
    assert set(comparison.verdicts("1").values()) == {verdict}
    assert tokens.seen(comparison).count(f"<strong>{verdict}</strong>: STViT") == 2
    assert f"{verdict}</td>" in tokens.table(comparison)
    assert "&lt;machine&gt;" in tokens.table(comparison)
    drawn = ElementTree.fromstring(tokens.figure(comparison, "16"))
    picture = drawn.find("svg")
    assert f"STViT, 9 tokens: {method[1]:.1f} % at {method[0]:.2f}" in picture.get("aria-label")
    shown = {label.text for label in picture.iter("text")}
    assert {"full ViT", tokens.SMALLEST, "STViT, 9 tokens"} <= shown, "labelled directly"


def test_settings_are_named_where_a_method_is_divided():
    among = ["A, 1", "A, 2", "B, x"]
    assert tokens.listed(["A, 1", "A, 2"], among) == "A"
    assert tokens.listed(["A, 2", "B, x"], among) == "A (2), B"


def test_a_failed_control_is_said_first():
    record = made_record((0.5, 80.0))
    assert tokens.seen(tokens.Comparison(record)).startswith("<p>There is something to lose")
    for point in record["points"]:
        point["accuracy"] = 80.0
    assert tokens.seen(tokens.Comparison(record)).startswith("<p>The control fails")


@pytest.mark.skipif(not FILE.exists(), reason="not measured yet")
def test_the_record_is_whole():
    record = json.loads(FILE.read_text(encoding="utf-8"))
    wanted = made_record((0.5, 80.0))
    assert set(record) == set(wanted)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["machine"]["date"])
    assert record["machine"]["threads"] == 1 and record["starts"] == [0, 1]
    comparison = tokens.Comparison(record)
    kinds = list(comparison.kinds.values())
    assert set(kinds) == {"ViT", "STViT", "LookupViT", "LGViT"}
    assert kinds.count("ViT") >= 4 and kinds.count("LookupViT") >= 2 and kinds.count("LGViT") >= 4
    assert len(record["points"]) == 2 * len(kinds)
    for point in record["points"]:
        assert set(point) == set(wanted["points"][0])
        assert set(point["seconds"]) == set(point["ratio"]) == set(tokens.BATCHES)
        assert 10 < point["accuracy"] < 100, point
        assert min(point["seconds"].values()) > 0
    for start in record["starts"]:
        assert set(comparison.points[tokens.FULL, start]["ratio"].values()) == {1.0}
