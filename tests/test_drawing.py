"""Figures as drawings: sharp and small, alike in both themes, readable on a phone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from refimpl.viz import charts, drawing

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def styled():
    charts.style()


def chart():
    figure, ax = charts.figure(height=2.6)
    charts.bars(ax, {"attention": 1.2, "feed-forward": 0.9}, label="time (ms)")
    return figure


def map_with_digits():
    figure, ax = charts.figure()
    charts.heatmap(ax, np.array([[0.0, 0.25], [0.75, 1.0]]), digits=2, bar="share")
    return figure


def test_a_chart_is_packed_small_and_comes_back():
    packed = drawing.pack(chart())
    made = drawing.unpack(packed)
    assert set(made) == {"wide", "narrow"} and len(packed) < 12_000
    assert all(text.startswith("<svg") and text.endswith("</svg>") for text in made.values())
    assert "<text" not in made["wide"], "text must be outlines: a reader's fonts are not ours"


def test_drawing_twice_gives_the_same_text():
    assert drawing.pack(chart()) == drawing.pack(chart())


def test_the_narrow_drawing_leaves_the_figure_alone():
    figure = chart()
    before = figure.get_size_inches().copy()
    width = re.search(r'width="([\d.]+)pt"', drawing.narrow(figure))[1]
    assert float(width) < 72 * (drawing.NARROW + 2 * drawing.PAD) + 1
    assert np.array_equal(before, figure.get_size_inches())


def test_pictures_and_diagrams_are_not_squeezed():
    diagram = charts.Diagram(10, 4)
    diagram.box(1, 1, "query")
    assert not drawing.fits_narrow(diagram.fig)
    assert not drawing.fits_narrow(map_with_digits())
    assert drawing.fits_narrow(chart())


def test_dark_turns_paper_and_ink_and_keeps_the_digits_on_a_map():
    light = drawing.svg(map_with_digits())
    dark = drawing.dark(light)
    assert charts.PAPER in light and charts.PAPER not in dark
    assert charts.DARK_PAGE in dark
    kept = [dark[first:last] for first, last in drawing.kept_places(dark)]
    digits = [group for group in kept if f'id="{drawing.KEPT}' in group]
    assert len(digits) == 4
    inks = [re.search(r"fill: ?(#\w{6})", group) for group in digits]
    assert [ink[1] for ink in inks if ink].count("#ffffff") == 2  # on the two dark cells
    assert all('fill="#000000"' in group.split(">")[0] for group in digits)


def test_photographs_inside_become_light():
    slopes = np.linspace(0, 1, 160)
    waves = np.sin(40 * slopes)[:, None] * np.cos(30 * slopes)[None, :]
    figure = charts.image_grid([np.stack([0.5 + 0.5 * waves] * 3, -1)])
    text = drawing.svg(figure)
    assert "data:image/webp" in text and "data:image/png" not in text


def test_what_is_too_large_is_left_to_the_png():
    figure, ax = charts.figure()
    rng = np.random.default_rng(0)
    ax.scatter(rng.random(20_000), rng.random(20_000))
    png, about = drawing.stored(figure)
    assert png.startswith(b"\x89PNG") and about == {}


def test_a_notebook_keeps_both():
    png, about = drawing.stored(chart())
    assert png.startswith(b"\x89PNG")
    assert set(drawing.unpack(about["refimpl"][drawing.KEY])) == {"wide", "narrow"}
