"""Pictures: the house style keeps its promises, maps are where they belong, explorers answer."""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import pickle
import re
import zlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_pre_hooks

import refimpl
from refimpl import golden
from refimpl.lab import data, measure
from refimpl.layers import Layout, Probe, attention_map
from refimpl.layers import attention as attend
from refimpl.viz import artifacts, attention, charts, tokens
from refimpl.viz.explorer import in_words

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def styled():
    charts.style()


# -- the house style


def test_text_can_be_read_in_either_theme():
    """The paper is opaque, whatever theme is behind it; on it text has 4.5:1 and every line 3:1."""
    fig, ax = charts.figure()
    assert matplotlib.colors.to_hex(fig.get_facecolor(), keep_alpha=True) == charts.PAPER + "ff"
    for name in ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"):
        assert charts.contrast(matplotlib.rcParams[name], charts.PAPER) >= 4.5, name
    assert (
        charts.contrast(charts.SOFT, charts.PAPER) >= 4.5
        and charts.contrast(charts.INK, charts.WASH) >= 4.5
    )
    assert all(charts.contrast(colour, charts.PAPER) >= 3 for colour in charts.PALETTE)
    assert (
        min(
            matplotlib.rcParams[k]
            for k in ("font.size", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")
        )
        >= 11
    )
    best = max(
        min(charts.contrast((g, g, g), "#ffffff"), charts.contrast((g, g, g), "#14181e"))
        for g in np.linspace(0, 1, 256)
    )
    assert best < 4.5, "a transparent figure with one ink would do after all"


def test_dark_twin_keeps_the_contrast():
    def dark(colour: str) -> np.ndarray:
        return charts.from_oklab(charts.turn(charts.to_oklab(charts.rgb(colour))))

    assert np.abs(dark(charts.PAPER) - charts.rgb(charts.DARK_PAGE)).max() < 0.01
    assert min(charts.contrast(dark(c), charts.DARK_PAGE) for c in (charts.INK, charts.SOFT)) >= 4.5
    assert min(charts.contrast(dark(c), charts.DARK_PAGE) for c in charts.PALETTE) >= 3
    assert np.allclose(
        charts.from_oklab(charts.to_oklab(charts.rgb("#1f91fb"))), charts.rgb("#1f91fb"), atol=1e-6
    )


@pytest.mark.parametrize("titles", [["one"], ["one\ntwo"], ["one\ntwo\nthree"]])
@pytest.mark.parametrize("columns", [1, 3, 4, 6])
def test_boxes_are_where_the_pictures_are(titles, columns):
    """To the pixel, though the layout settles over several passes.

    Else the dark page would show a light line at a photograph's edge.
    """
    import io

    from PIL import Image

    grey = [np.full((8, 8), 0.5)] * columns * 2
    fig = charts.image_grid(grey, titles * columns, columns, "gray", (0, 1))
    picture = Image.open(io.BytesIO(charts.png(fig)))
    inside = np.zeros(picture.size[::-1], bool)
    for left, top, right, bottom in json.loads(picture.info["pictures"]):
        inside[top:bottom, left:right] = True
    grey = np.abs(np.asarray(picture.convert("RGB"), float) - 128).max(-1) < 2
    assert grey.any() and grey[inside].all() and grey[~inside].sum() < 20, (
        "20: pixels of a letter's edge may have this grey too"
    )


def test_dark_twin_leaves_pictures_alone():
    import io

    from PIL import Image

    checker = np.indices((4, 4)).sum(0) % 2 * 1.0
    fig, ax = charts.figure(height=3)
    ax.imshow(np.repeat(checker[..., None], 3, -1))
    charts.bare(ax)
    ax.set_title("black on paper")
    file = charts.png(fig)
    light, twin = (
        np.asarray(Image.open(io.BytesIO(f)).convert("RGB"), float)
        for f in (file, charts.dark_twin(file))
    )
    (left, top, right, bottom) = json.loads(Image.open(io.BytesIO(file)).info["pictures"])[0]
    inside = np.s_[top + 2 : bottom - 2, left + 2 : right - 2]
    assert light.shape == twin.shape and np.array_equal(light[inside], twin[inside])
    assert {tuple(p) for p in light[inside].reshape(-1, 3)[::7]} == {(0, 0, 0), (255, 255, 255)}, (
        "the box is where the picture is"
    )
    assert np.abs(twin[1, 1] / 255 - charts.rgb(charts.DARK_PAGE)).max() < 0.01
    assert light[:top].min() < 60 and twin[:top].max() > 190, (
        "the title is dark on paper, light on the dark page"
    )
    plain = io.BytesIO()
    Image.new("RGB", (2, 2)).save(plain, "PNG")
    assert charts.dark_twin(plain.getvalue()) is None


def test_contrast_is_wcags():
    assert charts.contrast("#000000", "#ffffff") == pytest.approx(21) and charts.contrast(
        "#777777", "#ffffff"
    ) == pytest.approx(4.48, abs=0.01)


# Machado, Oliveira, Fernandes 2009: simulation at full severity, in linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("name", DEFICIENCIES)
def test_palette_is_told_apart(name):
    colour = pytest.importorskip("skimage.color")
    palette = np.array([matplotlib.colors.to_rgb(c) for c in charts.PALETTE])
    linear = np.where(palette <= 0.04045, palette / 12.92, ((palette + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(DEFICIENCIES[name]).T).clip(0, 1)
    lab = colour.rgb2lab(
        np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    )
    distances = colour.deltaE_ciede2000(lab[:, None], lab[None])[np.triu_indices(len(lab), 1)]
    assert distances.min() >= 20, distances.min()


def test_palette_is_told_apart_in_grey():
    lightness = sorted(116 * charts.luminance(c) ** (1 / 3) - 16 for c in charts.PALETTE)
    assert np.diff(lightness).min() >= 6
    assert len(set(charts.DASHES)) == len(set(charts.MARKERS)) == len(charts.PALETTE)


@pytest.mark.filterwarnings("error")
def test_every_chart_form_draws():
    rng = np.random.default_rng(0)
    fig, axes = charts.figure(2, 2, height=6)
    charts.lines(
        axes[0, 0],
        range(30),
        {"a": rng.random(30), "b": rng.random((3, 30))},
        xlabel="step",
        ylabel="loss",
    )
    charts.lines(axes[0, 1], range(5), {"a": range(5)}, direct=False)
    charts.bars(
        axes[1, 0],
        {"eager": 1.0, "fused": 0.7},
        errors={"eager": 0.1, "fused": 0.1},
        label="time",
        highlight="fused",
    )
    charts.heatmap(
        axes[1, 1], rng.random((3, 3)), rows="abc", columns="abc", digits=2, bar="cosine"
    )
    charts.png(fig)
    fig, ax = charts.figure()
    charts.roofline(
        ax, measure.Ceilings(80, 20, 1, "cpu", "float32"), {"softmax": (0.6, 5), "qkv": (42, None)}
    )
    assert ax.lines[-1].get_ydata() == [80]
    charts.png(fig)
    diagram = charts.Diagram(10, 4)
    a, b, g = diagram.box(1, 1, "a"), diagram.box(6, 1, "b", tone=1), diagram.grid(1, 3, np.eye(2))
    diagram.arrow(a, b, "to", tone=0, dashed=True)
    diagram.arrow(g, (6, 3), bend=0.1)
    charts.png(diagram.fig)
    charts.png(
        charts.image_grid(
            [data.photo("chelsea", 32), torch.zeros(1, 8, 8), np.zeros((4, 4))],
            ["a", "b", "c"],
            columns=2,
            row_titles=["x", "y"],
        )
    )


def test_arrows_run_from_edge_to_edge():
    assert charts.edge_points((0, 0, 2, 1), (6, 0, 2, 1)) == ((2, 0.5), (6, 0.5))
    assert charts.edge_points((0, 0, 2, 2), (0, 6, 2, 2)) == ((1, 2), (1, 6))
    assert charts.edge_points((0.0, 0.0), (3.0, 4.0)) == ((0, 0), (3, 4))


def test_photographs_make_small_files():
    fig = charts.image_grid([data.photo(name, 160) for name in data.PHOTOS], columns=4)
    file = charts.png(fig)
    assert file[:4] == b"\x89PNG" and len(file) < 180_000


@pytest.mark.parametrize(
    "call",
    [
        lambda: charts.image_grid([]),
        lambda: charts.image_grid([torch.zeros(3, 4, 4)] * 3, ["one", "two"]),
        lambda: charts.image_grid([torch.zeros(3, 4, 4)], row_titles=["one", "two"]),
        lambda: charts.image_grid([torch.zeros(4)]),
        lambda: charts.heatmap(charts.figure()[1], torch.zeros(3)),
        lambda: charts.heatmap(charts.figure()[1], torch.zeros(3, 3), rows="ab"),
        lambda: charts.lines(charts.figure()[1], range(3), {"a": range(4)}),
    ],
)
def test_charts_refuse(call):
    with pytest.raises(ValueError):
        call()


# -- attention maps


class Windows(nn.Module):
    """A toy layer: attention in padded windows, one call of its probe per head."""

    def __init__(self, dim: int = 8, heads: int = 2, window: int = 3):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.heads, self.window, self.probe = heads, window, Probe(Layout((4, 6), window=window))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        r, pad = self.window, (-x.shape[1] % self.window, -x.shape[2] % self.window)
        x = nn.functional.pad(x, (0, 0, 0, pad[1], 0, pad[0]))
        rows, columns = x.shape[1] // r, x.shape[2] // r
        x = x.reshape(b, rows, r, columns, r, c).transpose(2, 3).reshape(-1, r * r, c)
        parts = [t.chunk(self.heads, -1) for t in self.qkv(x).chunk(3, -1)]
        outputs = []
        for q, k, v in zip(*parts, strict=True):
            self.probe(lambda q=q, k=k: attention_map(q[:, None], k[:, None]), (h, w))
            outputs.append(attend(q[:, None], k[:, None], v[:, None])[:, 0])
        out = torch.cat(outputs, -1)
        return (
            out.reshape(b, rows, columns, r, r, c)
            .transpose(2, 3)
            .reshape(b, rows * r, columns * r, c)[:, :h, :w]
        )


class Global(nn.Module):
    """A toy layer with a class token and, if asked for, pooled keys."""

    def __init__(self, dim: int = 8, heads: int = 2, pool: int = 1, grid=(4, 6)):
        super().__init__()
        keys = (grid[0] // pool, grid[1] // pool) if pool > 1 else None
        self.probe = Probe(Layout(grid, prefix=1, key_grid=keys))
        self.qkv, self.heads, self.pool = nn.Linear(dim, 3 * dim), heads, pool

    def per_head(self, x: Tensor) -> Tensor:
        """(b, n, c) -> queries, keys, values (3, b, heads, n, d)."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        patches = x.flatten(1, 2)
        keys = nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), self.pool).flatten(2).transpose(1, 2)
        first = patches.mean(1, keepdim=True)
        q, _, _ = self.per_head(torch.cat([first, patches], 1))
        _, k, v = self.per_head(torch.cat([first, keys], 1))
        self.probe(lambda: attention_map(q, k), (h, w))
        return attend(q, k, v).transpose(1, 2).flatten(2)[:, 1:].reshape(b, h, w, c)


def run(model: nn.Module, shape=(2, 4, 5, 8)) -> tuple[Tensor, list[attention.Map]]:
    torch.manual_seed(0)
    x = torch.randn(shape)
    with torch.no_grad(), attention.record(model) as maps:
        return model(x), maps


@pytest.mark.parametrize(
    "model",
    [Windows(), Global(), Global(pool=2), nn.Sequential(Windows(), Global(), Windows(window=2))],
)
def test_recording_changes_nothing(model):
    shape = (2, 4, 6, 8)
    recorded, maps = run(model, shape)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(recorded, model(torch.randn(shape)))
    assert len(maps) == sum(isinstance(m, Probe) for m in model.modules())
    for m in maps:
        assert m.heads == 2 and torch.allclose(
            m.weights.sum(-1), torch.ones(m.weights.shape[:-1]), atol=1e-6
        )
    assert not any(m._forward_pre_hooks for m in model.modules())


def listens(model: nn.Module) -> bool:
    """Whether anything is called besides the modules themselves."""
    return bool(_global_forward_pre_hooks) or any(m._forward_pre_hooks for m in model.modules())


def test_recording_ends_with_an_error_and_nests():
    model = Global()
    with attention.record(model) as outer:
        with pytest.raises(RuntimeError), attention.record(model) as inner:
            model(torch.randn(1, 2, 2, 8))
            raise RuntimeError
        model(torch.randn(1, 2, 2, 8))
    assert len(inner) == 1 and len(outer) == 2, "both listen while both are open"
    assert not listens(model)
    with (
        pytest.raises(ValueError, match="Linear has no attention"),
        attention.record(nn.Linear(1, 1)),
    ):
        pass


@pytest.mark.parametrize("made_by", ["deepcopy", "pickle", "fuse"])
def test_copies_made_while_recording_do_not_record(made_by):
    """Neither then nor afterwards; the model itself records on."""
    torch.manual_seed(0)
    model = refimpl.create_model("deit_tiny", img_size=32, depth=2).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad(), attention.record(model) as maps:
        model(images)
        if made_by == "deepcopy":
            twin = copy.deepcopy(model)
        elif made_by == "pickle":
            twin = pickle.loads(pickle.dumps(model))
        else:
            twin = model.fuse()
        twin(images)
        assert len(maps) == 2
        model(images)
        assert len(maps) == 4
    with torch.no_grad(), attention.record(twin) as own:
        twin(images)
    assert len(maps) == 4 and len(own) == 2
    twin(images)
    assert len(own) == 2 and not listens(nn.ModuleList(model.modules()))


def test_a_compiled_model_is_recorded_as_written():
    """Before and after its compiled form has run, which does not record for ever."""
    torch.manual_seed(0)
    model = nn.Sequential(Global(), Windows()).eval()
    x = torch.randn(2, 4, 6, 8)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        with attention.record(compiled) as early:
            wanted = compiled(x)
        compiled(x)
        with attention.record(compiled) as late:
            assert torch.equal(compiled(x), wanted)
        with attention.record(model) as own:
            model(x)
        compiled(x)
    assert [m.name for m in early] == [m.name for m in late] == [m.name for m in own] == ["0", "1"]
    for a, b in zip(late, own, strict=True):
        assert torch.equal(a.weights, b.weights)


class Many(nn.Module):
    """A toy layer that shows several maps, each to a probe of its own."""

    def __init__(self):
        super().__init__()
        self.probes = nn.ModuleList(Probe() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for probe in self.probes:
            probe(lambda: x.softmax(-1))
        return x


def test_probes_in_a_list_belong_to_the_layer_that_calls_them():
    model = nn.Sequential(Many())
    with attention.record(model) as maps:
        for _ in range(2):
            model(torch.randn(1, 1, 4, 4))
    assert [(m.name, m.heads) for m in maps] == [("0", 1)] * 4


def test_heads_of_one_pass_merge_and_passes_stay_apart():
    model = nn.Sequential(Windows())
    with attention.record(model) as maps:
        for _ in range(3):
            model(torch.randn(1, 3, 3, 8))
    assert [(m.name, m.heads) for m in maps] == [("0", 2)] * 3


def test_windows_go_back_to_their_places():
    """Entry by entry against the definition, with padding at the right and at the bottom."""
    _, (recorded,) = run(Windows(window=3), (2, 4, 5, 8))
    whole = recorded.to_image()
    assert whole.shape == (2, 2, 20, 20)
    windows = recorded.weights.reshape(
        2, 2, 2, 2, 9, 9
    )  # image, window row, window column, head, query, key
    for y, x, v, u in np.ndindex(4, 5, 4, 5):
        found = whole[:, :, y * 5 + x, v * 5 + u]
        if (y // 3, x // 3) != (v // 3, u // 3):
            assert (found == 0).all()
        else:
            assert torch.equal(
                found, windows[:, y // 3, x // 3, :, y % 3 * 3 + x % 3, v % 3 * 3 + u % 3]
            )


def test_prefix_tokens_are_left_out_and_pooled_keys_spread():
    _, (plain,) = run(Global())
    assert torch.equal(plain.to_image(), plain.weights[:, :, 1:, 1:])
    _, (pooled,) = run(Global(pool=2), (1, 4, 6, 8))
    whole = pooled.to_image()
    assert whole.shape == (1, 2, 24, 24) and torch.allclose(
        whole.sum(-1), 1 - pooled.weights[:, :, 1:, 0], atol=1e-6
    )
    grid = whole.reshape(1, 2, 24, 4, 6)
    assert torch.equal(grid[..., 0, 0], grid[..., 1, 1]) and torch.allclose(
        4 * grid[..., 3, 5], pooled.weights[:, :, 1:, -1]
    )


def test_a_map_without_layout_is_taken_for_a_square():
    assert attention.Map("x", torch.zeros(1, 1, 9, 9)).grid == (3, 3)
    for bad in (
        attention.Map("x", torch.zeros(1, 1, 8, 8)),
        attention.Map("x", torch.zeros(1, 1, 9, 9), Layout((2, 2))),
        attention.Map("x", torch.zeros(1, 1, 4, 7), Layout((2, 2), prefix=0)),
        attention.Map("x", torch.zeros(3, 1, 4, 4), Layout((4, 4), window=2)),
    ):
        with pytest.raises(ValueError, match="x"):
            bad.to_image()


def test_head_similarity_is_the_recorded_one():
    case = golden.load("efficientvit", "head_similarity")
    case.check(attention.head_similarity(*case.inputs()))


def test_head_similarity_properties():
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 30, 30).softmax(-1)
    for centred in (False, True):
        same = attention.head_similarity(maps[:, :1].expand(-1, 4, -1, -1), centred)
        assert torch.allclose(same, torch.ones(2, 4))
        order = torch.tensor([2, 0, 3, 1])
        assert torch.allclose(
            attention.head_similarity(maps[:, order], centred),
            attention.head_similarity(maps, centred)[:, order],
        )
    assert (
        attention.head_similarity(maps).min() > 0.3
        and attention.head_similarity(maps, centred=True).abs().max() < 0.1
    )
    by_hand = torch.stack(
        [torch.cosine_similarity(maps[:, 0].flatten(1), maps[:, j].flatten(1)) for j in (1, 2, 3)]
    ).mean(0)
    assert torch.allclose(attention.head_similarity(maps)[:, 0], by_hand, atol=1e-6)
    with pytest.raises(ValueError, match="one head"):
        attention.head_similarity(maps[:, :1])
    with pytest.raises(ValueError, match="heads, n, m"):
        attention.head_similarity(maps[0])


def test_entropy():
    uniform, sharp = torch.full((1, 1, 4, 4), 0.25), torch.eye(4)[None, None]
    assert (
        attention.entropy(uniform).item() == pytest.approx(1)
        and attention.entropy(sharp).item() == 0
    )
    assert attention.entropy(uniform, relative=False).item() == pytest.approx(np.log(4))


def test_non_locality():
    """The grid's mean distance for a uniform map, 0 for the identity, 1 for a neighbour."""
    for n, mean_distance in ((196, 7.281), (64, 4.136)):  # of ConViT's sheet
        uniform = torch.full((1, 1, n, n), 1 / n)
        assert attention.non_locality(uniform).item() == pytest.approx(mean_distance, abs=5e-4)
    assert attention.non_locality(torch.eye(9)[None, None]).item() == 0
    right = torch.zeros(9, 9)
    right[range(9), [1, 2, 2, 4, 5, 5, 7, 8, 8]] = 1
    assert attention.non_locality(right[None, None]).item() == pytest.approx(6 / 9)
    assert torch.allclose(attention.offsets(right[None, None]), torch.tensor([[0, 6 / 9]]))
    case = golden.load("convit", "mhsa_nonlocality")
    mean = torch.from_numpy(case.recorded("attention_mean"))[None]
    assert np.allclose(attention.non_locality(mean), case.recorded("nonlocality"), rtol=1e-5)


def test_overlay():
    _, (recorded,) = run(Global())
    fig = attention.overlay(torch.rand(3, 40, 50), recorded, (1, 2), heads=[0, 1])
    assert [ax.get_title(loc="center") for ax in fig.axes] == ["query", "head 1", "head 2"]
    with pytest.raises(ValueError, match=r"query=\(4, 0\)"):
        attention.overlay(torch.rand(3, 40, 50), recorded, (4, 0))
    with pytest.raises(ValueError, match="sample=2"):
        attention.overlay(torch.rand(3, 40, 50), recorded, (0, 0), sample=2)


# -- the explorer


def test_explorer_holds_the_maps():
    _, maps = run(nn.Sequential(Windows(), Global(pool=2)), (2, 4, 6, 8))
    made = attention.explorer(data.photo("chelsea", 64), maps, sample=1, title="Two <layers>")
    assert (
        made._repr_html_() == made.html
        and "Two &lt;layers&gt;" in made.html
        and "http" not in made.html
        and " id=" not in made.html
    )
    meta = json.loads(html.unescape(re.search('data-meta="([^"]*)"', made.html)[1]))
    stored = np.frombuffer(
        zlib.decompress(base64.b64decode(re.search('data-maps="([^"]*)"', made.html)[1])), np.uint8
    )
    at = 0
    for entry, recorded in zip(meta["layers"], maps, strict=True):
        n = entry["rows"] * entry["columns"]
        size = entry["heads"] * n * n
        values = stored[at : at + size].reshape(-1, n, n) / (meta["levels"] - 1)
        peaks = stored[at + size : at + size + entry["heads"] * n].reshape(-1, n, 1) / 255
        assert np.abs(values * peaks - recorded.to_image()[1].numpy()).max() < 1 / meta["levels"]
        at += size + entry["heads"] * n
    assert at == len(stored)


def test_explorer_pools_large_maps_and_keeps_to_its_size():
    torch.manual_seed(0)
    large = attention.Map("large", torch.randn(1, 1, 32 * 32, 32 * 32).softmax(-1))
    weights, grid = attention.coarse(large.weights[0], (32, 32))
    assert grid == (16, 16) and torch.allclose(weights.sum(-1), torch.ones(1, 256), atol=1e-5)
    sharp = [
        attention.Map(f"layer {i}", (3 * torch.randn(1, 6, 196, 196)).softmax(-1))
        for i in range(12)
    ]
    assert len(attention.explorer(data.photo("coffee", 64), sharp[:1]).html) <= 150_000
    with pytest.raises(ValueError, match="give fewer layers"):
        attention.explorer(data.photo("coffee", 64), sharp)
    with pytest.raises(ValueError, match="no maps"):
        attention.explorer(data.photo("coffee", 64), [])
    with pytest.raises(ValueError, match="query"):
        attention.explorer(data.photo("coffee", 64), sharp[:1], query=(2, 0))


@pytest.mark.browser
def test_explorer_in_a_browser(window, tmp_path):
    """Two on one page answer pointer, finger and arrow keys, each for itself, on a phone too."""
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.ui import WebDriverWait

    peak = torch.zeros(1, 1, 16, 16)
    peak[0, 0, range(16), range(15, -1, -1)] = 1  # every patch looks at the opposite one
    layers_shown = [
        attention.Map("first", peak),
        attention.Map("second", torch.eye(4)[None, None].expand(1, 2, 4, 4)),
    ]
    pieces = [
        attention.explorer(data.photo("chelsea", 64), layers_shown, title=title).html
        for title in ("One", "Other")
    ]
    page = tmp_path / "page.html"
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    body = f'<body style="margin-left:min(15vw,120px)"><main>{"".join(pieces)}</main></body>'
    page.write_text(
        f'<!doctype html><html lang="en">{head}<title>Test</title>{body}</html>', encoding="utf-8"
    )
    window.set_window_size(1000, 1400)
    window.get(page.as_uri())

    def find(selector: str) -> list:
        return window.find_elements("css selector", f".attention-explorer {selector}")

    def said(i: int) -> str:
        return find(".ax-summary")[i].text

    WebDriverWait(window, 20).until(lambda _: len(find("canvas")) == 2)
    assert (
        len(find(".ax-mark")) == 2
        and len(find("select")[0].find_elements("css selector", "option")) == 2
    ), "each was started once"
    assert (
        said(0)
        == said(1)
        == "Query in row 3, column 3: head 1 looks most at row 2, column 2 (100 %)."
    )

    pad = find(".ax-pad")[0]
    width, height = pad.size["width"], pad.size["height"]
    ActionChains(window).move_to_element_with_offset(
        pad, -width // 2 + 5, -height // 2 + 5
    ).perform()
    assert said(0).startswith(
        "Query in row 1, column 1: head 1 looks most at row 4, column 4"
    ) and said(1).startswith("Query in row 3")
    pixels = """const c = document.querySelector(".attention-explorer canvas").getContext("2d");
        return [60, 170].map(i => Array.from(c.getImageData(i, i, 1, 1).data));"""
    dark, bright = window.execute_script(pixels)
    assert sum(bright[:3]) > 2 * sum(dark[:3])

    find(".ax-pad")[1].send_keys(
        Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT
    )  # the border stops it
    assert said(1).startswith(
        "Query in row 4, column 4: head 1 looks most at row 1, column 1"
    ) and said(0).startswith("Query in row 1")
    role = window.execute_script(
        """const pad = document.querySelectorAll(".ax-pad")[1];
        return [pad.getAttribute("role"), pad.tabIndex, document.activeElement === pad]"""
    )
    assert role == ["application", 0, True] and find("canvas")[1].get_attribute(
        "aria-label"
    ).startswith("Head 1 looks most at row 1")

    hints = find(".ax-hint")
    assert hints[0].is_displayed() and "arrow keys" in hints[0].text
    assert find(".ax-heads img") == [], "the maps stand in place of the still"
    find(".ax-only")[0].click()
    map_alone = """const c = document.querySelector(".attention-explorer canvas").getContext("2d");
        return [60, 170].map(i => Array.from(c.getImageData(i, i, 1, 1).data.slice(0, 3)));"""
    assert window.execute_script(map_alone) == [[33, 102, 172], [178, 24, 43]], "blue, red"
    assert find(".ax-key")[0].is_displayed() and not find(".ax-key")[1].is_displayed()

    find("select")[1].send_keys("second")
    assert len(find(".ax-heads")[1].find_elements("css selector", "canvas")) == 2 and said(
        1
    ).startswith("Query in row 2, column 2")

    window.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 320, "height": 1400, "deviceScaleFactor": 1, "mobile": True},
    )
    window.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    assert window.execute_script("return document.documentElement.scrollWidth") <= 320
    box = window.execute_script(
        """const box = document.querySelector(".ax-pad").getBoundingClientRect();
        return [box.right - 6, box.top + 6]"""
    )
    point = [{"x": box[0], "y": box[1]}]
    window.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": point})
    window.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert said(0).startswith("Query in row 1, column 4: head 1 looks most at row 4, column 1")
    assert [entry for entry in window.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_layers_are_named_in_words():
    names = ["blocks.0.attn", "stages.1.blocks.3.token_mixer", "5.branch", "down_blocks.0.attn"]
    said = ["block 1", "stage 2, block 4", "layer 6", "down block 1"]
    assert in_words(names) == said
    assert in_words(["first", ""]) == ["first", ""]
    alike = ["blocks.0.rows", "blocks.0.columns"]
    assert in_words(alike) == alike


def test_an_explorer_shows_a_still_without_a_script():
    """Where the heads look from the first patch: the chosen patches are the bright ones."""
    from PIL import Image

    looks = torch.zeros(1, 2, 16, 16)
    looks[0, 0, :, 0] = looks[0, 1, :, 15] = 1  # one head at the first patch, one at the last
    page = attention.explorer(torch.ones(3, 64, 64), attention.Map("blocks.2.attn", looks)).html
    still = re.search(r'<img alt="([^"]*)" [^>]*src="data:image/webp;base64,([^"]*)"', page)
    assert "heads of block 3" in still[1] and len(still[1]) >= 40
    picture = Image.open(io.BytesIO(base64.b64decode(still[2]))).convert("L")
    first, second = (picture.crop((x, 0, x + 120, 120)) for x in (0, 128))
    for tile, bright, dark in ((first, (15, 15), (105, 105)), (second, (105, 105), (15, 15))):
        assert tile.getpixel(bright) > 200 > 60 > tile.getpixel(dark)


# -- artifacts


def test_similarity_and_norm_maps_are_the_recorded_ones():
    case = golden.load("dvt", "maps")
    features = case.inputs()[0]
    case.check(
        {
            "similarity_to_centre": artifacts.similarity_map(features)[0],
            "norm_map": artifacts.norm_map(features[0]),
        }
    )


def test_position_measures():
    torch.manual_seed(0)
    content, place = torch.randn(40, 6, 6, 48), torch.randn(6, 6, 48)
    assert artifacts.position_share(content) < 0.05 and artifacts.position_readout(content) < 0.1
    assert (
        artifacts.position_share(0.0 * content + place) == pytest.approx(1)
        and artifacts.position_readout(content + 3 * place) > 0.7
    )
    shares = [artifacts.position_share(content + a * place) for a in (0, 0.3, 1, 3)]
    assert shares == sorted(shares)
    assert artifacts.position_share(content + 5.0) == pytest.approx(
        artifacts.position_share(content), abs=1e-4
    )
    for measure_of in (artifacts.position_share, artifacts.position_readout):
        with pytest.raises(ValueError, match="b of at least 2"):
            measure_of(content[:1])


def test_pca_colours():
    torch.manual_seed(0)
    features = torch.randn(3, 5, 7, 10) * torch.arange(10, 0, -1)
    colours = artifacts.pca_colours(features)
    assert colours.shape == (3, 5, 7, 3) and colours.min() == 0 and colours.max() == 1
    assert torch.allclose(artifacts.pca_colours(-features), 1 - colours, atol=1e-4)
    assert artifacts.pca_colours(features[0]).shape == (5, 7, 3)
    with pytest.raises(ValueError, match="3 channels"):
        artifacts.pca_colours(features[..., :2])
    with pytest.raises(ValueError, match=r"query=\(9, 0\)"):
        artifacts.similarity_map(features, (9, 0))


# -- tokens


def test_tokens():
    image = torch.full((3, 8, 8), 0.2)
    keep = torch.tensor([True, False, False, True])
    picture = tokens.kept(image, keep)
    assert (
        np.allclose(picture[:4, :4], 0.2)
        and np.allclose(picture[4:, 4:], 0.2)
        and picture[:4, 4:].min() > 0.8
    )
    image[:, :4] = 0.6
    joined = tokens.merged(image, torch.tensor([0, 1, 0, -1]))
    assert (
        np.allclose(joined[:, :4], 0.4)
        and np.allclose(joined[:4, 4:], 0.6)
        and joined[4:, 4:].min() > 0.9
    )
    fig = tokens.kept_by_layer(image, [keep, keep])
    assert fig.axes[1].get_title(loc="center") == "layer 1: 50%"
    tokens.outline(fig.axes[0], torch.tensor([0, 0, 0, 1]), (8, 8))
    assert len(fig.axes[0].lines) == 4, "two borders, each drawn twice"
    with pytest.raises(ValueError, match="give grid"):
        tokens.kept(image, torch.ones(6))
    assert tokens.kept(image, torch.ones(6), (2, 3)).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="1 names for 2 layers"):
        tokens.kept_by_layer(image, [keep, keep], ["a"])
