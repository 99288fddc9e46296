"""The two atlases: rows measure what they say and leave records; the book's pages show them all."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from refimpl.chapter import atlas, show
from refimpl.lab import data
from refimpl.layers import Layout, Probe
from refimpl.viz import artifacts, attention, charts

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]


class Looks(nn.Module):
    """Images -> nothing much, through layers with given maps: (weights (heads, n, m), layout)."""

    def __init__(
        self, *layers: tuple[Tensor, Layout | None], img_size: int = 32, in_chans: int = 3
    ):
        super().__init__()
        self.given, self.img_size, self.in_chans = layers, img_size, in_chans
        self.probes = nn.ModuleList(Probe(layout) for _, layout in layers)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        assert (
            images.shape[1:] == (self.in_chans, self.img_size, self.img_size) and not self.training
        )
        for probe, (weights, layout) in zip(self.probes, self.given, strict=True):
            windows = (
                1
                if layout is None or layout.window is None
                else -(-layout.grid[0] // layout.window) * -(-layout.grid[1] // layout.window)
            )
            probe(lambda w=weights, k=windows: w.expand(k * len(images), *w.shape))
        return images.mean((1, 2, 3))


def identity(side: int, heads: int = 2) -> Tensor:
    return torch.eye(side * side).expand(heads, -1, -1)


def uniform(n: int, heads: int = 2) -> Tensor:
    return torch.full((heads, n, n), 1 / n)


@pytest.fixture
def published(monkeypatch) -> list[tuple[dict, dict]]:
    """What the rows show: (bundle, metadata)."""
    shown = []
    monkeypatch.setattr(
        show, "publish", lambda bundle, metadata=None: shown.append((bundle, metadata))
    )
    charts.style()
    return shown


def test_known_maps_have_known_measures():
    grid = Layout((4, 4))
    prefixed = torch.cat([torch.full((2, 17, 1), 0.75), torch.full((2, 17, 16), 0.25 / 16)], -1)
    cases = {
        "itself": (identity(4), grid, 0.0, 0.0),
        "uniform": (uniform(16), grid, 1.0, 1.0),
        "uniform on patches, most weight on the class token": (
            prefixed,
            Layout((4, 4), prefix=1),
            1.0,
            None,
        ),
        "uniform over pooled keys": (
            torch.full((2, 16, 4), 0.25),
            Layout((4, 4), key_grid=(2, 2)),
            1.0,
            1.0,
        ),
    }
    for label, (weights, layout, far, bits) in cases.items():
        (found,) = atlas.measured([attention.Map("layer", weights[None], layout)])
        assert found["distance"] == pytest.approx(far, abs=1e-4), label
        assert bits is None or found["entropy"] == pytest.approx(bits, abs=1e-4), label
        assert found["similarity"] == pytest.approx(1, abs=1e-4) and found["on_image"], label


def test_windows_travel_less_than_the_whole_image():
    one, four = (
        attention.Map("", uniform(n)[:, None].expand(-1, k, -1, -1).transpose(0, 1), layout)
        for n, k, layout in windows()
    )
    (whole,), (inside,) = atlas.measured([one]), atlas.measured([four])
    assert whole["distance"] == pytest.approx(1, abs=1e-4) and inside["entropy"] == pytest.approx(
        1, abs=1e-4
    )
    side = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    small = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0))
    wanted = torch.cdist(small, small).mean() / torch.cdist(side, side).mean()
    assert inside["distance"] == pytest.approx(wanted.item(), abs=1e-4) and inside["window"] == 2


def windows():
    return (16, 1, Layout((4, 4))), (4, 4, Layout((4, 4), window=2))


def test_unlike_heads_and_single_heads():
    apart = torch.stack([torch.eye(16), torch.eye(16).roll(8, 1)])[None]
    (found,) = atlas.measured([attention.Map("", apart, Layout((4, 4)))])
    assert found["similarity"] == 0 and found["centred"] < 0
    (alone,) = atlas.measured([attention.Map("", apart[:, :1], Layout((4, 4)))])
    assert alone["similarity"] is None and alone["centred"] is None and alone["heads"] == 1


def test_attention_row_leaves_figure_and_record(published):
    model = Looks(
        (identity(4, 3), Layout((4, 4))),
        (uniform(16, 1), Layout((4, 4))),
        (uniform(10), None),
        (torch.ones(2, 1, 1), None),
    ).train()
    atlas.attention_row("convit", model, state=" at initialisation, seed 0 ")
    assert model.training, "the model is left as it was"
    ((bundle, metadata),) = published
    record = metadata["refimpl"]["attention_atlas"]
    assert (record["stem"], record["model"], record["state"]) == (
        "convit",
        "ConViT",
        "at initialisation, seed 0",
    )
    assert [layer["heads"] for layer in record["layers"]] == [3, 1, 2], (
        "a layer with a single key has nothing to choose and is left out"
    )
    assert [layer["on_image"] for layer in record["layers"]] == [True, True, False] and record[
        "layers"
    ][2]["distance"] is None
    assert record["drawn"] == [0, 1], "the last map that lies on the image"
    assert record["photos"] == list(atlas.PHOTOS) and "initialisation" in bundle["text/plain"]
    assert charts.dark_twin(base64.b64decode(bundle["image/png"])) is not None
    assert not matplotlib.pyplot.get_fignums(), "the notebook would show it a second time"
    assert torch.equal(model.seen, torch.stack([data.photo(name, 32) for name in atlas.PHOTOS]))


def test_every_input_gets_the_same_photographs(published):
    grey = atlas.photographs(16, 1)
    assert grey.shape == (len(atlas.PHOTOS), 1, 16, 16) and torch.allclose(
        grey[:, 0], atlas.photographs(16).mean(1)
    )
    model = Looks((identity(4), Layout((4, 4))), img_size=16)
    atlas.attention_row("convit", model, state="made for the test", prepare=data.normalised)
    assert torch.equal(model.seen, data.normalised(atlas.photographs(16))) and len(published) == 1


def test_drawn_maps_belong_to_the_asking_patch():
    """The identity map lights the outlined patch alone, in every photograph."""
    maps = [attention.Map("", identity(8)[None].expand(2, -1, -1, -1), Layout((8, 8)))]
    fig = atlas.draw_attention(atlas.photographs(32), maps, ["layer 1"])
    *pictures, bar = fig.axes
    drawn = [ax.images[0].get_array() for ax in pictures]
    assert len(drawn) == 2 * (1 + 2)
    for i, place in enumerate(atlas.PHOTOS.values()):
        row, column = atlas.patch_at(place, (8, 8))
        for picture in drawn[3 * i + 1 : 3 * i + 3]:
            assert picture[row, column] == atlas.OCTAVES
            assert (picture == -atlas.OCTAVES).sum() == 63
    assert [ax.get_title(loc="center") for ax in pictures[:3]] == ["", "head 1", "head 2"]
    assert [label.get_text() for label in bar.get_xticklabels()][1] == "even look"
    many = atlas.draw_attention(
        atlas.photographs(32),
        [attention.Map("", uniform(64, 12)[None].expand(2, -1, -1, -1), Layout((8, 8)))] * 2,
        ["a", "b"],
    )
    assert len(many.axes) == 2 * (1 + 2 * atlas.HEADS) + 1


def test_an_even_look_is_pale():
    """The scale is the same for all: a flat map is drawn in the paper's colour, not the map's."""
    maps = [attention.Map("", uniform(64)[None].expand(2, -1, -1, -1), Layout((8, 8)))]
    fig = atlas.draw_attention(atlas.photographs(32), maps, ["layer 1"])
    shown = fig.axes[1].images[0]
    assert shown.get_array().max() == shown.get_array().min() == pytest.approx(0, abs=1e-5)
    assert min(shown.to_rgba(0.0)[:3]) > 0.94
    assert (shown.norm.vmin, shown.norm.vmax) == (-atlas.OCTAVES, atlas.OCTAVES)


def codes(kept: dict) -> Tensor:
    """The kept maps of a record: (heads, asks, keys)."""
    text = zlib.decompress(base64.b64decode(kept["codes"]))
    found = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    sides = kept["asks"][0] * kept["asks"][1], kept["keys"][0] * kept["keys"][1]
    return found.reshape(kept["heads"], *sides)


def test_a_record_keeps_maps_to_compare():
    small = attention.Map("", identity(4)[None], Layout((4, 4)))
    kept = atlas.kept(small, 3)
    assert (kept["layer"], kept["keys"], kept["asks"]) == (3, [4, 4], [4, 4])
    found = codes(kept)
    assert torch.equal(found.argmax(-1), torch.arange(16).expand(2, -1))
    assert set(found.unique().tolist()) == {0, 15}
    even = codes(atlas.kept(attention.Map("", uniform(15 * 15, 6)[None], Layout((15, 15))), 0))
    assert even.shape == (atlas.KEPT_HEADS, 4 * 4, 8 * 8), "an odd side is rounded up"
    assert even.unique().tolist() == [8], "an even look is the middle, wherever a pool is cut"


def place_features(images: Tensor) -> Tensor:
    """Nothing but position: (b, 8, 8, 4)."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    return torch.stack([x, y, x * y, x - y], -1).expand(len(images), -1, -1, -1)


def colour_features(images: Tensor) -> Tensor:
    """Nothing but content: mean colours less grey, (b, 8, 8, 3)."""
    return rearrange(nn.functional.adaptive_avg_pool2d(images - 0.5, 8), "b c h w -> b h w c")


def test_artifact_row_tells_position_from_content(published):
    for features in (place_features, colour_features):
        atlas.artifact_row(
            "dvt", features, img_size=32, state="made for the test", name=features.__name__
        )
    place, content = (metadata["refimpl"]["artifact_atlas"] for _, metadata in published)
    assert place["share"] == pytest.approx(1, abs=1e-3) and place["readout"] > 0.99
    assert place["blank_agreement"] == pytest.approx(1, abs=1e-3) and place[
        "blank_spread"
    ] == pytest.approx(1, abs=1e-2)
    assert content["share"] < 0.05 and content["readout"] < 0.1
    assert content["blank_agreement"] is None and content["blank_spread"] == 0, (
        "a blank image has no content"
    )
    assert (place["pixels_share"], place["pixels_readout"]) == (
        content["pixels_share"],
        content["pixels_readout"],
    ), "the same crops for everybody"
    assert place["grid"] == [8, 8] and place["model"] == "place_features"
    crops = data.photo_crops(size=32, n=atlas.CROPS).images
    assert content["share"] == pytest.approx(
        artifacts.position_share(colour_features(crops)), abs=1e-4
    )


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m: atlas.attention_row("convit", m, state=" "), "state is empty"),
        (lambda m: atlas.attention_row("convitt", m, state="x"), "unknown paper 'convitt'.*convit"),
        (lambda m: atlas.attention_row("convit", m, state="x", layers=(0, 5)), r"layers=\(0, 5\)"),
        (lambda m: atlas.attention_row("convit", m, state="x", layers=(0,)), r"layers=\(0,\)"),
        (
            lambda m: atlas.attention_row("convit", nn.Sequential(m), state="x"),
            "img_size=None.*Sequential",
        ),
        (lambda m: atlas.attention_row("convit", m, state="x", in_chans=4), "in_chans=4"),
        (
            lambda m: atlas.attention_row("convit", Looks((uniform(10), None)), state="x"),
            "no attention map of ConViT lies on the image",
        ),
        (
            lambda m: atlas.attention_row(
                "convit", nn.Linear(2, 2), state="x", img_size=16, in_chans=3
            ),
            "layers.Probe",
        ),
        (
            lambda m: atlas.artifact_row("dvt", lambda x: x.flatten(1), img_size=16, state="x"),
            r"features\(images\) must be \(b, h, w, c\)",
        ),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call(Looks((identity(4), Layout((4, 4)))))


# -- the pages


@pytest.fixture
def pages(monkeypatch, tmp_path, published):
    """The book's extension over a folder with one made chapter that has one row of each kind."""
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    from refimpl_book import atlas as made
    from refimpl_book import sources

    atlas.attention_row(
        "convit",
        Looks((uniform(16), Layout((4, 4))), (identity(4), Layout((4, 4)))),
        state="made for the test",
        name="One & Two",
    )
    atlas.artifact_row("convit", place_features, img_size=32, state="made for the test")
    outputs = [
        {
            "output_type": "display_data",
            "data": {**bundle, "image/png": [bundle["image/png"]]},
            "metadata": metadata,
        }
        for bundle, metadata in published
    ]
    cells = [
        {
            "cell_type": "code",
            "outputs": [o],
            "metadata": {"mystnb": {"image": {"alt": f"Row {i}"}}},
        }
        for i, o in enumerate(outputs)
    ]
    cells += [
        {"cell_type": "markdown", "source": "", "metadata": {}},
        {"cell_type": "code", "outputs": [{"output_type": "stream", "text": ""}], "metadata": {}},
    ]
    (tmp_path / "convit.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    monkeypatch.setattr(sources, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(sources, "written", lambda stem: stem == "convit")
    return made


def test_pages_collect_what_chapters_left(pages):
    (attends,), (places,) = pages.rows("attention_atlas"), pages.rows("artifact_atlas")
    assert (attends.paper.stem, attends.alt, attends.id) == ("convit", "Row 0", "convit-1") and (
        places.alt,
        places.id,
    ) == ("Row 1", "convit-1")
    assert charts.dark_twin(attends.figure) is not None
    page = object.__new__(pages.AttentionAtlas)
    summary, details = page.summary([attends]), page.details(attends)
    assert (
        "One &amp; Two" in summary
        and "made for the test" in summary
        and '<a href="#convit-1">' in summary
    )
    assert 'data-value="1.0">1.00</td>' in summary and 'data-value="0.0">0.00</td>' in summary, (
        "distance of the first layer and of the last"
    )
    assert details.count("<tr") == 1 + 2 and "<code>Looks</code>" in details
    assert "layer 2 (<code>Looks</code>, 4 × 4 patches)" in page.caption(
        attends.record
    ) and "32 × 32 pixels" in page.caption(attends.record)
    assert "Rachel Michetti" in page.credits([attends])
    assert ">1.000<" in object.__new__(pages.ArtifactAtlas).summary([places])


def test_pages_keep_to_their_budget(pages):
    from PIL import Image

    picture = Image.open(io.BytesIO(pages.rows("attention_atlas")[0].figure)).convert("RGB")
    free = pages.squeezed(picture, 10**6)
    tight = pages.squeezed(picture, 9 * len(free) // 10)
    assert len(tight) <= 9 * len(free) // 10
    assert Image.open(io.BytesIO(tight)).size == picture.size


def test_numbers_and_lines_of_the_pages(pages):
    assert [pages.number(v).shown for v in (None, 0.5, -0.256, -0.001, 1)] == [
        "–",
        "0.50",
        "−0.26",
        "0.00",
        "1.00",
    ]
    assert pages.spark([0.2, 0.9, 1.3]).count("<circle") == 3 and "aria-hidden" in pages.spark(
        [0.5]
    )


def stored() -> list[tuple[str, dict, dict]]:
    """(stem of the notebook, cell, record) of every row in the stored chapters."""
    found = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                said = output.get("metadata", {}).get("refimpl", {})
                found += [
                    (path.stem, cell, said[kind])
                    for kind in ("attention_atlas", "artifact_atlas")
                    if kind in said
                ]
    return found


@pytest.mark.parametrize(
    "stem, cell, record",
    stored(),
    ids=lambda v: v["model"] if isinstance(v, dict) and "model" in v else None,
)
def test_stored_rows_stand_in_their_own_chapter(stem, cell, record):
    assert record["stem"] == stem
    assert record["photos"] == list(atlas.PHOTOS), "the same photographs for everybody"
    assert sum("image/png" in o.get("data", {}) for o in cell["outputs"]) == 1, (
        "one row a cell, so that its alternative text is its own"
    )
