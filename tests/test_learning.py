"""The table on the page of learning with less: what it says is what is counted now."""

from __future__ import annotations

import pytest

import learning


@pytest.mark.parametrize("count", [learning.of_tinyvit, learning.of_deit_lt, learning.of_vivit])
def test_the_page_says_what_is_counted(count):
    """Hint-Aug's row needs real weights and ten seconds: it is counted when the table is made."""
    assert f"| {' | '.join(count())} |\n" in learning.TEXT.read_text(encoding="utf-8")


def test_every_paper_of_the_part_has_its_row():
    rows = learning.TEXT.read_text(encoding="utf-8").splitlines()[2:]
    names = ("TinyViT", "DeiT-LT", "Hint-Aug", "Optimizing ViViT")
    assert [row[2:].startswith(name) for row, name in zip(rows, names, strict=True)] == [True] * 4
