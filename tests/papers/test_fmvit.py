"""FMViT-R, a reconstruction: branches fold into one convolution; its bands, refusals, fused model.

No code of FMViT was released: the reference outputs prove the algebra, by timm's forms of MobileOne
and Next-ViT, and none of them is a network of the authors.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refimpl
from refimpl import golden, weights
from refimpl.bases.nextvit import ConvBlock, TransformerBlock
from refimpl.deploy import deploy
from refimpl.deploy.norms import fold_norms_before
from refimpl.lab import measure, spectra
from refimpl.papers.fmvit import (
    VARIANTS,
    Branches,
    ConvMixer,
    FMViTR,
    GroupMlp,
    LightAttention,
    MixingBlock,
    band_widths,
    fold_branches,
    multi_group,
    rep_conv,
    spread,
)
from refimpl.viz import attention
from shared import models

STEM = "fmvit"
RTOL = 1e-5


def filled(seed: int = 0, **kwargs) -> FMViTR:
    """A small model whose every branch and norm does something, and whose input matters."""
    torch.manual_seed(seed)
    options = VARIANTS["r_nano"] | {"num_classes": 5} | kwargs
    model = FMViTR(**options)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # it starts small, for norms that see batches
            nn.init.normal_(layer.weight, std=0.8 * layer.weight[0].numel() ** -0.5)
    return models.lively(model)


# -- reference outputs, built by rule from what each file says


def tensors(case: golden.Case) -> dict[str, torch.Tensor]:
    """Every recorded tensor of a file without a model, by name."""
    return {
        name: torch.from_numpy(golden.array(record)) for name, record in case.data["inputs"].items()
    }


def unit_of_mobileone(case: golden.Case) -> Branches:
    """`rep_conv` with the recorded tensors: timm's names, from ours."""
    given = case.arguments
    group = given.get("group_size") or 0
    layer = rep_conv(
        given["in_chs"],
        given["out_chs"],
        given["kernel_size"],
        given.get("stride", 1),
        given["in_chs"] // group if group else 1,
        given["num_conv_branches"],
    )
    count = given["num_conv_branches"]
    state = {}
    for name, tensor in tensors(case).items():
        name = re.sub(r"^conv_kxk\.(\d+)\.", r"branches.\1.", name)
        name = re.sub(r"^conv_scale\.", f"branches.{count}.", name)
        name = re.sub(r"^identity\.", f"branches.{len(layer.branches) - 1}.", name)
        name = name.replace(".bn.", ".norm.")
        if name != "x":
            state[name] = tensor
    return weights.load_official(layer, state, rules=[]).eval()


def check_folded(case: golden.Case, layer: Branches) -> None:
    """Train form, folded form, kernel and bias, against the recorded ones."""
    x = tensors(case)["x"]
    conv = layer.fuse()
    kernel = "kernel" if "kernel" in case.data["outputs"] else "weight"
    shape = case.data["outputs"][kernel]["shape"]
    with torch.inference_mode():
        for form in (layer, conv):
            outputs = {"y": form(x), kernel: conv.weight.view(shape), "bias": conv.bias}
            case.check(outputs, rtol=RTOL)


def check_multi_group(case: golden.Case) -> None:
    given = case.arguments
    layer = multi_group(given["in_channels"], given["out_channels"], given["groups"]).eval()
    names = {"0": "conv", "1": "norm"}
    state = {}
    for name, tensor in tensors(case).items():
        if name != "x":
            branch, part, rest = name.split(".")
            state[f"branches.{branch}.{names[part]}.{rest}"] = tensor
    check_folded(case, weights.load_official(layer, state, rules=[]))


def check_norms_before(case: golden.Case) -> None:
    given = tensors(case)
    out_chans, in_chans = given["lin.weight"].shape[:2]
    parts = nn.ModuleDict(
        {
            "lin": nn.Conv2d(in_chans, out_chans, 1),
            "bn1": nn.BatchNorm2d(in_chans),
            "bn2": nn.BatchNorm2d(in_chans),
        }
    ).eval()
    x = given.pop("x")
    weights.load_official(parts, given, rules=[])
    outputs = {}
    with torch.inference_mode():
        for name, norms in (("one", ["bn1"]), ("two", ["bn1", "bn2"])):
            folded = fold_norms_before([parts[norm] for norm in norms], parts["lin"])
            outputs |= {
                f"y_{name}": folded(x),
                f"weight_{name}": folded.weight,
                f"bias_{name}": folded.bias,
            }
        case.check(outputs, rtol=RTOL)


def block_of_nextvit(case: golden.Case) -> nn.Module:
    """The block whose shapes the file states; keys are means of runs of four where it has a norm.

    The files give no arguments: widths, groups and stride are read from shapes.
    """
    shapes = case.data["state"]
    in_chans, side = case.data["inputs"][0][1:3]
    dim, out_side = case.data["outputs"]["output"]["shape"][1:3]
    stride = side // out_side
    head_dim = shapes["mhca.group_conv3x3.weight"][1]
    mlp_ratio = shapes["mlp.fc1.weight"][0] / dim
    if "e_mhsa.q.weight" not in shapes:
        return ConvBlock(in_chans, dim, stride, head_dim, mlp_ratio)
    reduction = 2 if "e_mhsa.norm.weight" in shapes else 1
    mix_ratio = shapes["e_mhsa.q.weight"][0] / dim
    return TransformerBlock(in_chans, dim, stride, reduction, head_dim, mix_ratio, mlp_ratio)


def attention_products(block: nn.Module, images: torch.Tensor) -> int:
    """Multiply-adds of q kᵀ and A v, which the recorded counts leave out."""
    if isinstance(block, ConvBlock):
        return 0
    with attention.record(block) as maps:
        block(images)
    return sum(2 * m.weights.numel() * block.e_mhsa.q.out_features // m.heads for m in maps)


def test_official(official_case):
    case = official_case
    if "state" in case.data:
        block = block_of_nextvit(case)
        assert golden.certify(block, case) < RTOL
        images = case.inputs()[0]
        with torch.inference_mode():
            assert models.error(block.fuse()(images), block(images)) < RTOL
        if case.data.get("macs"):
            recorded = case.data["macs"] + attention_products(block, images)
            assert measure.macs(block, images) == recorded
    elif "lin.weight" in case.data["inputs"]:
        check_norms_before(case)
    elif "groups" in case.arguments:
        check_multi_group(case)
    else:
        check_folded(case, unit_of_mobileone(case))


# -- the algebra of branches, as properties

UNITS = [
    (rep_conv, (8, 8)),
    (rep_conv, (8, 8, 3, 1, 2, 3)),
    (rep_conv, (8, 8, 5, 1, 8, 1)),
    (rep_conv, (8, 8, 1, 1, 4, 2)),
    (rep_conv, (8, 12, 3, 2, 4, 2)),
    (rep_conv, (8, 8, 7, 2, 1, 1)),
    (multi_group, (8, 12)),
    (multi_group, (12, 24, (1, 3, 4, 6))),
    (multi_group, (8, 8, (8,))),
]


@pytest.mark.parametrize(("make", "arguments"), UNITS)
@pytest.mark.parametrize("shape", [(2, 7, 9), (1, 1, 1), (3, 4, 4)])
def test_branches_equal_one_convolution(make, arguments, shape):
    layer = models.lively(make(*arguments)).double()
    x = torch.randn(shape[0], arguments[0], *shape[1:], dtype=torch.float64)
    with torch.inference_mode():
        assert models.error(layer.fuse()(x), layer(x)) < 1e-12
        assert models.error(layer.float().fuse()(x.float()), layer(x.float())) < RTOL


def test_an_identity_alone_is_a_delta_of_its_group():
    """In group order: output o of a grouped kernel reads input o mod (width of a group)."""
    ones = torch.ones(6, 1, 1, 1)
    kernel = spread(ones, groups=6, fewer=2)
    assert kernel.shape == (6, 3, 1, 1)
    assert torch.equal(kernel[:, :, 0, 0], torch.eye(3).repeat(2, 1))
    assert torch.equal(spread(ones, 6, 1)[:, :, 0, 0], torch.eye(6))
    assert torch.equal(spread(ones, 6, 6), ones)


@pytest.mark.parametrize(("groups", "fewer"), [(1, 1), (2, 1), (4, 2), (4, 4), (12, 3)])
def test_spread_kernel_computes_the_same(groups, fewer):
    weight = torch.randn(24, 12 // groups, 3, 3, dtype=torch.float64)
    x = torch.randn(2, 12, 5, 5, dtype=torch.float64)
    wanted = F.conv2d(x, weight, groups=groups)
    assert torch.allclose(F.conv2d(x, spread(weight, groups, fewer), groups=fewer), wanted)


def test_fold_by_loops():
    """The definition, written out for every entry."""
    layer = models.lively(rep_conv(6, 6, 3, groups=2))
    layer.requires_grad_(False)
    kernel, bias = fold_branches(layer.kernels(), 3, 2)
    wanted = np.zeros((6, 3, 3, 3))
    offset = np.zeros(6)
    for branch in layer.branches:
        norm = getattr(branch, "norm", branch)
        for o in range(6):
            scale = float(norm.weight[o]) / np.sqrt(float(norm.running_var[o]) + norm.eps)
            offset[o] += float(norm.bias[o]) - scale * float(norm.running_mean[o])
            if norm is branch:
                wanted[o, o % 3, 1, 1] += scale
                continue
            side = branch.conv.kernel_size[0]
            first = (3 - side) // 2
            for i in range(3):
                for row in range(side):
                    for column in range(side):
                        w = float(branch.conv.weight[o, i, row, column])
                        wanted[o, i, first + row, first + column] += scale * w
    assert np.allclose(kernel.numpy(), wanted, atol=1e-6)
    assert np.allclose(bias.numpy(), offset, atol=1e-6)


def test_folding_holds_in_evaluation_alone():
    """While training, norms use the batch's statistics, and the sum is another function."""
    layer = models.lively(rep_conv(8, 8))
    x = torch.randn(4, 8, 6, 6)
    conv = layer.fuse()
    assert models.error(layer.train()(x), conv(x)) > 0.05


def test_a_norm_before_a_padded_3x3_differs_at_the_border_alone():
    norm = models.lively(nn.BatchNorm2d(4))
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - scale * norm.running_mean
    x = torch.randn(1, 4, 6, 6)
    with torch.inference_mode():
        bias = (conv.weight.sum((2, 3)) @ shift).view(1, -1, 1, 1)
        folded = F.conv2d(x, conv.weight * scale.view(1, -1, 1, 1), padding=1) + bias
        apart = (folded - conv(norm(x))).abs().amax((0, 1))
    assert apart[1:-1, 1:-1].max() < 1e-5
    border = torch.cat([apart[0], apart[-1], apart[:, 0], apart[:, -1]])
    assert border.min() > 1e-3


def test_count_of_one_unit():
    """n·9C²/G + C²/G kernel values and (n + 2)·2C of norms; folded 9C²/G + C."""
    c, groups, n = 16, 4, 3
    layer = rep_conv(c, c, 3, groups=groups, num_conv_branches=n)
    assert measure.parameters(layer) == (9 * n + 1) * c * c // groups + (n + 2) * 2 * c
    assert measure.parameters(layer.fuse()) == 9 * c * c // groups + c


@pytest.mark.parametrize(
    "layer",
    [
        GroupMlp(16, 3),
        ConvMixer(16, 8),
        LightAttention(16, 8, 2),
        LightAttention(16, 8),
        MixingBlock(16, (16, 8, 8), 2, 2, group_width=8),
        MixingBlock(16, (0, 0, 16), group_width=8),
        MixingBlock(16, (8, 8, 0), group_width=8),
        MixingBlock(16, (8, 0, 8), group_width=8),
        MixingBlock(16, (16, 0, 0), group_width=8),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_part_folds(layer):
    """On an odd map too, where the last mean of a pool covers fewer positions."""
    models.lively(layer)
    model = nn.Sequential(layer)
    fused = deploy(model)
    for side in (8, 7):
        x = torch.randn(2, 16, side, side)
        with torch.inference_mode():
            assert models.error(fused(x), model(x)) < RTOL
    assert not any(isinstance(part, models.NORMS) for part in fused.modules())
    assert measure.parameters(fused) < measure.parameters(model)


# -- bands


@pytest.mark.parametrize(
    ("dim", "bands", "of", "wanted"),
    [
        (1024, (2, 1, 1), 32, (512, 256, 256)),
        (48, (2, 1, 1), 8, (32, 8, 8)),
        (32, (3, 1, 0), 8, (24, 8, 0)),
        (32, (1, 0, 1), 8, (16, 0, 16)),
        (32, (1, 0, 0), 8, (32, 0, 0)),
        (32, (0, 0, 1), 8, (0, 0, 32)),
        (32, (9, 1, 1), 8, (16, 8, 8)),
    ],
)
def test_widths_of_bands(dim, bands, of, wanted):
    assert band_widths(dim, bands, of) == wanted


def reach(block: nn.Module, side: int = 8) -> torch.Tensor:
    """Which outputs change with the input at the corner: (channels, side, side)."""
    block.mlp = nn.Sequential(nn.Conv2d(32, 32, 1, bias=False))
    nn.init.zeros_(block.mlp[0].weight)
    x = torch.randn(1, 32, side, side, dtype=torch.float64)
    changed = x.clone()
    changed[..., 0, 0] += 1
    with torch.inference_mode():
        return (block.double()(changed) - block(x)).abs()[0] > 1e-9


def test_what_each_band_sees():
    """Low: everything. Middle, of attended features: everything. High: its neighbours alone."""
    block = models.lively(MixingBlock(32, (16, 8, 8), group_width=8))
    seen = reach(block)
    assert seen[:16].all() and seen[16:24].any((1, 2)).all()
    assert seen[16:24, 4:, 4:].any(), "the middle band reads what attention brought"
    assert not seen[24:, 2:].any() and not seen[24:, :, 2:].any()


def test_bands_are_swappable_by_argument():
    names = {
        (3, 1, 0): {"low", "middle"},
        (1, 0, 1): {"low", "high"},
        (0, 0, 1): {"high"},
        (1, 0, 0): {"low"},
    }
    for bands, wanted in names.items():
        model = filled(bands=bands)
        mixed = model.stages[1][1]
        assert {n for n in ("low", "middle", "high") if hasattr(mixed, n)} == wanted
        models.assert_fused_is_equal(model, torch.randn(2, 3, 64, 64))


def test_keys_are_means_of_squares():
    """The lineage's code averages runs along a row (see tests/bases/test_nextvit.py)."""
    layer = LightAttention(8, 8, pool=2).eval()
    seen = []
    layer.k.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    squares = torch.arange(4.0).view(1, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.inference_mode():
        layer(squares.expand(-1, 8, -1, -1))
    assert torch.allclose(seen[0][0, 0].flatten(), torch.arange(4.0), atol=1e-4)


# -- names, sizes, the network


def test_it_never_looks_like_the_authors_model():
    """No code was released: every name says R, and the catalogue says what the repository holds."""
    assert refimpl.list_models("fmvit*") == ["fmvit_r_nano", "fmvit_r_s"]
    assert FMViTR.__name__.endswith("R") and "reconstruction" in FMViTR.__doc__
    paper = refimpl.paper("fmvit")
    assert paper.top1 == () and "no code" in paper.licence
    for word in ("[P]", "[L]", "[A]"):
        assert word in __import__(FMViTR.__module__, fromlist=["_"]).__doc__


def test_the_name_gmlp_is_not_the_gated_mlp():
    """What folds has no gate: doubling the input of a linear part doubles its output."""
    layer = models.lively(GroupMlp(8, 2))
    first = layer.fc1.fuse()
    x = torch.randn(1, 8, 3, 3)
    with torch.inference_mode():
        moved = first(2 * x) - first(x)
        assert torch.allclose(moved, F.conv2d(x, first.weight), atol=1e-5)


SIZES = {"r_nano": (226_120, 156_000), "r_s": (52_579_240, 30_777_832)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_before_and_after_folding(variant):
    model = refimpl.create_model(f"fmvit_{variant}")
    fused = model.fuse()
    assert (measure.parameters(model), measure.parameters(fused)) == SIZES[variant]


def test_maps_of_the_nano_model_have_the_stated_sizes():
    model = filled()
    x = model.stem(torch.randn(1, 3, 64, 64))
    shapes = [tuple(x.shape[1:])]
    for stage in model.stages:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 16, 16), (16, 16, 16), (32, 8, 8), (48, 4, 4), (64, 2, 2)]


@pytest.mark.parametrize(
    "options", [{}, {"img_size": 32}, {"img_size": (96, 64)}, {"in_chans": 1}, {"pools": (1,) * 4}]
)
def test_fused_model_is_equal_and_leaves_the_model_alone(options):
    model = filled(**options)
    size = options.get("img_size", 64)
    height, width = (size, size) if isinstance(size, int) else size
    models.assert_fused_is_equal(model, torch.randn(3, model.in_chans, height, width))


def test_fused_model_keeps_the_precision():
    models.assert_fused_is_equal(filled().double(), torch.randn(2, 3, 64, 64).double(), 1e-12)


def test_two_stages_for_small_images():
    """The form for 24×24 pictures: the network's stride is then 8."""
    model = filled(
        img_size=24, depths=(1, 2), embed_dims=(16, 32), mixed_dims=(16, 32), pools=(2, 1)
    )
    assert model(torch.randn(2, 3, 24, 24)).shape == (2, 5)
    models.assert_fused_is_equal(model, torch.randn(2, 3, 24, 24))


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_next(step):
    step(filled, torch.randn(2, 3, 64, 64))


def test_every_parameter_gets_a_gradient():
    model = filled().train()
    model(torch.randn(3, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    still = [n for n, p in model.named_parameters() if not p.grad.any()]
    assert all(re.search(r"\.k\.branches\.\d\.norm\.bias$", name) for name in still), (
        "a shift of all keys alike changes no softmax; all else learns"
    )


def test_without_classes_features_come_out():
    model, images = filled(num_classes=0), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features = model.forward_features(images).mean((2, 3))
        assert torch.equal(model(images), features) and features.shape == (2, 64)
    models.assert_fused_is_equal(model, images)


@pytest.mark.parametrize("size", [64, 96])
def test_attention_maps_lie_on_the_image(size):
    model = filled(img_size=size)
    images = torch.randn(2, 3, size, size)
    fused = model.fuse()
    with torch.inference_mode():
        plain = model(images)
        with attention.record(model) as maps:
            assert torch.equal(model(images), plain)
        with attention.record(fused) as again:
            fused(images)
    assert [m.heads for m in maps] == [2, 4, 4]
    assert [m.grid[0] for m in maps] == [size // 8, size // 16, size // 32]
    for a, b in zip(maps, again, strict=True):
        whole = a.to_image()
        assert whole.shape[-1] == a.grid[0] ** 2
        assert torch.allclose(whole.sum(-1), torch.ones(()), atol=1e-5)
        assert torch.allclose(a.weights, b.weights, atol=1e-5)


# -- frequencies


def test_attention_without_positions_has_no_frequency_response():
    """x → 7x mod 16 turns frequency 1 into 7; softmax attention commutes with it."""
    n = 16
    places = torch.arange(n, dtype=torch.float64)
    gains = {}
    for frequency in range(1, 9):
        angle = 2 * torch.pi * frequency * places / n
        x = torch.stack([angle.cos(), angle.sin()], dim=1)
        y = (x @ x.T).softmax(-1) @ x
        gains[frequency] = spectra.gain(x, y, frequency)
    odd = [gains[f] for f in (1, 3, 5, 7)]
    assert max(odd) - min(odd) < 1e-12 and odd[0] == pytest.approx(0.4464, abs=1e-4)
    assert gains[4] == pytest.approx(0.4621, abs=1e-4)
    assert gains[8] == pytest.approx(0.7616, abs=1e-4)


def test_spectra_of_waves():
    """A wave's energy stands at its frequency; a constant map has none but its mean."""
    side = 16
    column = torch.arange(side) * 2 * torch.pi / side
    for periods in (0, 1, 3, 7):
        wave = (periods * column).cos().expand(2, 3, side, side)
        frequencies, energies = spectra.spectrum(wave)
        assert int(energies.argmax()) == periods
        assert frequencies[periods] == periods / 8
        assert spectra.high_frequency_share(wave) == pytest.approx(float(periods > 4), abs=1e-9)


def test_energy_is_parseval_s():
    features = torch.randn(3, 5, 9, 9)
    found, radius = spectra.energy(features)
    squares = float(features.square().sum((2, 3)).mean())
    assert float(found.sum()) == pytest.approx(squares, rel=1e-6)
    assert radius[0, 0] == 0 and radius.max() == pytest.approx(2**0.5 * 4)


# -- refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": 48}, "img_size=48 must be a positive multiple of 32"),
        ({"img_size": (64, 20)}, "img_size=20"),
        ({"img_size": "64"}, "img_size='64'"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"depths": (1, 2)}, "equally long"),
        ({"depths": (1, 0, 2, 1)}, "depths=(1, 0, 2, 1) must be at least 1"),
        ({"pools": (8, 0, 2, 1)}, "pools=(8, 0, 2, 1)"),
        ({"embed_dims": (20, 32, 48, 64)}, "dim=20 must be a positive multiple of 8"),
        ({"mixed_dims": (16, 32, 50, 64)}, "dim=50"),
        ({"group_width": 0}, "group_width=0"),
        ({"bands": (0, 1, 1)}, "a middle band reads what a low band attended to"),
        ({"bands": (2, -1, 1)}, "bands=(2, -1, 1)"),
        ({"bands": (0, 0, 0)}, "bands=(0, 0, 0)"),
        ({"mixed_dims": (16, 16, 48, 64)}, "widths=(0, 8, 8)"),
        ({"stem_dims": (16, 8, 16)}, "stem_dims=(16, 8, 16)"),
    ],
)
def test_bad_arguments_are_named(change, words):
    models.assert_refused(lambda: FMViTR(**VARIANTS["r_nano"] | change), words)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rep_conv(8, 8, 4), "kernel_size=4 must be odd"),
        (lambda: rep_conv(8, 8, groups=3), "in_chans=8 must be a positive multiple of 3"),
        (lambda: rep_conv(8, 8, num_conv_branches=0), "num_conv_branches=0"),
        (lambda: multi_group(8, 10), "out_chans=10 must be a positive multiple of 4"),
        (lambda: multi_group(8, 8, (0, 1)), "groups=(0, 1) must be at least 1"),
        (lambda: LightAttention(12, 8), "dim=12"),
        (lambda: LightAttention(8, 8, 0), "pool=0"),
        (lambda: MixingBlock(8, (0, 8, 0)), "widths=(0, 8, 0)"),
        (lambda: MixingBlock(8, (-8, 0, 8)), "widths=(-8, 0, 8)"),
        (lambda: filled()(torch.zeros(1, 3, 48, 48)), "48×48"),
        (lambda: filled()(torch.zeros(1, 1, 64, 64)), "1 channels"),
        (lambda: filled()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), "torch.uint8"),
        (lambda: spectra.energy(torch.zeros(1, 2, 4, 5)), "features must be"),
        (lambda: spectra.high_frequency_share(torch.zeros(1, 1, 4, 4)), "all zero"),
        (lambda: spectra.high_frequency_share(torch.ones(1, 1, 4, 4), 1.0), "beyond=1.0"),
        (lambda: spectra.gain(torch.ones(4, 1), torch.ones(4, 1), 3), "frequency=3"),
        (lambda: spectra.gain(torch.ones(4, 1), torch.ones(4, 1), 1), "its amplitude is 0"),
        (lambda: refimpl.create_model("fmvit_r_t"), "fmvit_r_s"),
    ],
)
def test_bad_calls_are_named(call, words):
    models.assert_refused(call, words)
