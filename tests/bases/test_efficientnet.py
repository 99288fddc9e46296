"""EfficientNet: equal to the reference outputs; its rules; names of others; what is fused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import refimpl
from refimpl import golden, weights
from refimpl.bases.efficientnet import (
    NAMES,
    SCALES,
    STAGES,
    STRIDES,
    TIMM,
    EfficientNet,
    MBConv,
    SameConv2d,
    compound_scaling,
    round_channels,
    round_repeats,
    same_padding,
    stage_repeats,
)
from refimpl.lab import measure
from shared import models

STEM = "efficientnet"
ALONE = [  # timm's names of a block outside a model, without and with expansion
    [(r"^", f"blocks.{stage}.0."), *TIMM, (rf"^blocks\.{stage}\.0\.", "")] for stage in (0, 1)
]


def timm_name(name: str) -> str:
    """timm's name of one of our tensors, by rule: the other way round than `NAMES`."""
    outside = {"stem.norm": "bn1", "head.norm": "bn2"}
    name = re.sub(r"^(stem|head)\.norm", lambda m: outside[m[0]], name)
    name = re.sub(r"^(stem|head)\.conv", r"conv_\1", name)
    name = re.sub(r"gate\.", "se.conv_", name)
    first = name.startswith("blocks.0.")
    for i, (part, conv) in enumerate(
        (("expand", "conv_pw"), ("depthwise", "conv_dw"), ("project", "conv_pwl"))
    ):
        name = name.replace(f"{part}.norm", f"bn{i + 1 - first}")
        name = name.replace(f"{part}.conv", "conv_pw" if first and i == 2 else conv)
    return name


def spec(case: golden.Case, model: nn.Module) -> dict[str, list[int]]:
    """The official names and shapes; files leave them out where another variant's are the same."""
    return case.data.get("state") or {
        timm_name(name): list(tensor.shape) for name, tensor in model.state_dict().items()
    }


def check_model(case: golden.Case, name: str, stages: bool) -> None:
    model = refimpl.create_model(f"efficientnet_{name}", **case.kwargs).eval()
    case.fill(model, spec=spec(case, model))
    case.check_params(model)
    (images,) = case.inputs()
    with torch.inference_mode():
        if stages:
            case.check(stage_maps(model, images))
            return
        case.check(model.fuse()(images))
        case.check(model(images))
    assert measure.macs(model, images) == case.data["macs"]


def stage_maps(model: EfficientNet, images: torch.Tensor) -> dict[str, torch.Tensor]:
    x = model.stem(images)
    maps = {"output.stem": x}
    for i, stage in enumerate(model.blocks, 1):
        x = stage(x)
        maps[f"output.stage{i}"] = x
    return maps | {"output.head": model.head(x)}


def check_block(case: golden.Case) -> None:
    kwargs = case.kwargs
    block = MBConv(
        kwargs["in_chs"],
        kwargs["out_chs"],
        kwargs["kernel"],
        kwargs["stride"],
        kwargs["expand"],
        kwargs["padding"],
    ).eval()
    assert block.gate.reduce.out_channels == kwargs["se_width"]
    assert block.project.norm.eps == kwargs["bn_eps"]
    case.fill(block, ALONE[kwargs["expand"] != 1])
    case.check_params(block)
    with torch.inference_mode():
        case.check(block(*case.inputs()))


def check_scaling(case: golden.Case) -> None:
    given = {name: case.recorded(name).tolist() for name in case.data["inputs"]}
    channels = [[round_channels(f, w) for f in given["filters"]] for w in given["width"]]
    repeats = [[round_repeats(r, d) for r in given["repeats"]] for d in given["depth"]]
    found = {"rounded_filters": channels, "rounded_repeats": repeats}
    case.check({name: torch.tensor(table) for name, table in found.items()}, rtol=0)


def check_padding(case: golden.Case) -> None:
    found = []
    for size, kernel_size, stride in case.recorded("cases").tolist():
        before, after = same_padding(size, kernel_size, stride)
        found.append([before, after, (before + size + after - kernel_size) // stride + 1])
    case.check(torch.tensor(found), rtol=0)


def check_costs(case: golden.Case) -> None:
    found = {}
    for name in case.data["inputs"]:
        with torch.device("meta"):
            model = refimpl.create_model(f"efficientnet_{name}")
            (size,) = case.recorded(name).tolist()
            assert size == model.img_size
            products = measure.macs(model, torch.empty(1, 3, size, size))
        found[name] = torch.tensor([measure.parameters(model), products])
    case.check(found, rtol=0)


TABLES = {"scaling_rule": check_scaling, "same_padding": check_padding, "costs": check_costs}


def test_official(official_case):
    name = official_case.name
    if name in TABLES:
        TABLES[name](official_case)
    elif name.startswith("mbconv"):
        check_block(official_case)
    else:
        variant = re.match(r"(tf_)?b\d", name)[0]
        check_model(official_case, variant, stages="_stages" in name)


# -- the rules


def test_compound_scaling_buys_what_it_says():
    """α·β²·γ² of the work per step of φ, and published coefficients that are no such powers."""
    depth, width, resolution = compound_scaling(1)
    assert (depth, width, resolution) == (1.2, 1.1, 1.15)
    assert depth * width**2 * resolution**2 == pytest.approx(1.92, abs=0.005)
    assert compound_scaling(0) == (1, 1, 1)
    published = SCALES["b1"]
    assert published[:2] == (1.0, 1.1)
    assert published[:2] != compound_scaling(1)[1::-1]


def test_a_width_is_never_cut_by_more_than_a_tenth():
    assert round_channels(32, 0.35) == 16  # 11.2 would become 8
    assert round_channels(16, 0.1) == 8
    for channels in range(8, 400, 8):
        for width in (0.35, 0.5, 1.0, 1.1, 1.37, 2.0):
            rounded = round_channels(channels, width)
            assert rounded % 8 == 0
            assert rounded >= 0.9 * channels * width


def test_gates_are_a_quarter_of_the_blocks_input():
    """Not of its hidden width; the first block of a stage takes the width of the stage before."""
    model = refimpl.create_model("efficientnet_b4")
    widths = [stage[0].gate.reduce.out_channels for stage in model.blocks]
    assert widths == [12, 6, 8, 14, 28, 40, 68]


def test_drop_path_counts_all_blocks():
    model = refimpl.create_model("efficientnet_b0", drop_path_rate=0.16)
    rates = [block.drop_path.p for stage in model.blocks for block in stage]
    assert rates == pytest.approx([0.01 * i for i in range(16)])


@pytest.mark.parametrize("size", [(64, 65), (33, 40), (7, 9)])
def test_same_padding_gives_the_ceiling(size):
    for kernel_size in (3, 5):
        conv = SameConv2d(2, 2, kernel_size, stride=2)
        shape = conv(torch.zeros(1, 2, *size)).shape[2:]
        assert tuple(shape) == tuple(-(-side // 2) for side in size)


def test_the_paddings_lie_half_a_pixel_apart():
    """At an even size SAME pads (0, 1), symmetric (1, 1): the same kernel sees one pixel more."""
    ramp = torch.arange(16.0).expand(1, 1, 16, 16).clone()
    same = SameConv2d(1, 1, 3, stride=2, bias=False)
    symmetric = nn.Conv2d(1, 1, 3, stride=2, padding=1, bias=False)
    for conv in (same, symmetric):
        nn.init.constant_(conv.weight, 1 / 9)
    with torch.no_grad():
        inner = (same(ramp) - symmetric(ramp))[0, 0, 1:-1, 1:-1]
    assert torch.allclose(inner, torch.ones_like(inner), atol=1e-5)


def test_depth_and_widths_of_lite():
    """Stem, head and the blocks of the outer stages are B0's; all between them is scaled."""
    assert stage_repeats(1.2) == [2, 3, 3, 4, 4, 5, 2]
    assert stage_repeats(1.2, lite=True) == [1, 3, 3, 4, 4, 5, 1]
    for name, params, widths in (
        ("lite0", 4_652_008, [16, 24, 40, 80, 112, 192, 320]),
        ("lite1", 5_416_680, [16, 24, 40, 80, 112, 192, 320]),
        ("lite2", 6_092_072, [16, 24, 48, 88, 120, 208, 352]),
    ):
        with torch.device("meta"):
            model = refimpl.create_model(f"efficientnet_{name}")
        assert measure.parameters(model) == params
        assert (model.stem.conv.out_channels, model.num_features) == (32, 1280)
        assert [stage[0].project.conv.out_channels for stage in model.blocks] == widths
    with torch.device("meta"):  # by the same rule: TensorFlow's Lite3 and Lite4
        wider = [EfficientNet(1.2, 1.4, lite=True), EfficientNet(1.4, 1.8, lite=True)]
    assert [measure.parameters(model) for model in wider] == [8_197_096, 13_006_568]


def test_lite_has_no_gates_and_relu6():
    model = refimpl.create_model("efficientnet_lite0").eval()
    assert measure.parameters(model) == 4_652_008
    kinds = {type(part) for part in model.modules()}
    assert nn.ReLU6 in kinds
    assert nn.SiLU not in kinds
    for size, products in ((224, 385_187_552), (128, 126_637_568), (64, 32_619_392)):
        with torch.device("meta"):
            small = refimpl.create_model("efficientnet_lite0")
            assert measure.macs(small, torch.empty(1, 3, size, size)) == products


# -- names elsewhere


def their_names(model: EfficientNet, kind: str) -> dict[str, torch.Tensor]:
    """The model's tensors under the names of torchvision or of efficientnet_pytorch."""
    flat = {}
    for i, stage in enumerate(model.blocks):
        flat |= {(i, j): len(flat) + j for j in range(len(stage))}
    renamed = {}
    for name, tensor in model.state_dict().items():
        place = re.match(r"blocks\.(\d+)\.(\d+)\.(\w+)\.(\w+)\.", name)
        if kind == "torchvision":
            theirs = torchvision_name(name, place)
        else:
            theirs = flat_name(name, place, flat)
        renamed[theirs] = tensor
    return renamed


def torchvision_name(name: str, place: re.Match | None) -> str:
    layer = {"conv": "0", "norm": "1", "reduce": "fc1", "expand": "fc2"}
    if place is None:
        name = re.sub(r"^(stem|head)\.(conv|norm)", lambda m: f"{m[1]}.{layer[m[2]]}", name)
        name = name.replace("stem", "features.0").replace("head", "features.8")
        return name.replace("classifier", "classifier.1")
    stage, block, part, inner = place.groups()
    index = ["expand", "depthwise", "gate", "project"].index(part) - (stage == "0")
    front = f"features.{int(stage) + 1}.{block}.block.{index}.{layer[inner]}."
    return front + name[place.end() :]


def flat_name(name: str, place: re.Match | None, flat: dict) -> str:
    whole = {
        "stem.conv": "_conv_stem",
        "stem.norm": "_bn0",
        "head.conv": "_conv_head",
        "head.norm": "_bn1",
        "classifier": "_fc",
    }
    if place is None:
        return re.sub(r"^(stem|head)\.(conv|norm)|^classifier", lambda m: whole[m[0]], name)
    stage, block, part, inner = place.groups()
    norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
    layer = {"conv": f"_{part}_conv", "norm": norms.get(part)}.get(inner, f"_se_{inner}")
    return f"_blocks.{flat[int(stage), int(block)]}.{layer}.{name[place.end() :]}"


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_tf_b3", "efficientnet_lite2"])
@pytest.mark.parametrize("kind", ["torchvision", "efficientnet_pytorch", "timm"])
def test_weights_of_others_load_by_their_names(name, kind):
    source, target = refimpl.create_model(name), refimpl.create_model(name)
    if kind == "timm":
        state = {timm_name(key): tensor for key, tensor in source.state_dict().items()}
    else:
        state = their_names(source, kind)
    assert not set(state) & set(target.state_dict()) or kind == "timm"
    weights.load_official(target, state)
    for ours, theirs in zip(
        target.state_dict().values(), source.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_known_names_of_others():
    """As their own code writes them."""
    rules = NAMES["efficientnet_pytorch, depth 1.0"]
    assert weights.rename("_blocks.15._bn2.weight", rules) == "blocks.6.0.project.norm.weight"
    assert weights.rename("_blocks.0._se_reduce.bias", rules) == "blocks.0.0.gate.reduce.bias"
    for front, last in (("", "blocks.5.4"), ("Lite, ", "blocks.6.0")):  # of B2 and of Lite2
        rules = NAMES[f"efficientnet_pytorch, {front}depth 1.2"]
        found = weights.rename("_blocks.20._bn2.weight", rules)
        assert found == f"{last}.project.norm.weight"
    tv = NAMES["torchvision"]
    assert weights.rename("features.1.0.block.1.fc1.bias", tv) == "blocks.0.0.gate.reduce.bias"
    assert weights.rename("features.2.1.block.3.1.weight", tv) == "blocks.1.1.project.norm.weight"
    assert weights.rename("features.8.0.weight", tv) == "head.conv.weight"


# -- as a model


def test_a_step_reaches_every_parameter():
    model = refimpl.create_model("efficientnet_b0", num_classes=5, in_chans=1, drop_path_rate=0.0)
    model(torch.randn(4, 1, 40, 52)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_features_and_head():
    model = refimpl.create_model("efficientnet_tf_b0").eval()
    images = torch.randn(2, 3, 65, 40)
    with torch.no_grad():
        features = model.forward_features(images)
        assert features.shape == (2, 1280, 3, 2)
        assert torch.equal(model.forward_head(features), model(images))
        bare = refimpl.create_model("efficientnet_tf_b0", num_classes=0).eval()
        bare.load_state_dict(model.state_dict(), strict=False)
        torch.testing.assert_close(bare(images), features.mean((2, 3)))


@pytest.mark.parametrize("name", ["efficientnet_tf_b0", "efficientnet_lite2"])
@pytest.mark.parametrize("size", [(64, 96), (65, 50)])
def test_maps_of_all_stages(name, size):
    """At their strides, the last of them what the head reads, and the same maps once fused."""
    model = refimpl.create_model(name).eval()
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        maps = model.forward_stages(images)
        torch.testing.assert_close(model.head(maps[-1]), model.forward_features(images))
        fused = model.fuse().forward_stages(images)
    for found, quick, stride in zip(maps, fused, STRIDES, strict=True):
        assert tuple(found.shape[2:]) == tuple(-(-side // stride) for side in size)
        torch.testing.assert_close(quick, found, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="images have 1 channels"):
        model.forward_stages(images[:, :1])


@pytest.mark.parametrize("name", ["efficientnet_b1", "efficientnet_tf_b1", "efficientnet_lite0"])
def test_what_is_fused_has_no_norm_left(name):
    torch.manual_seed(0)
    model = refimpl.create_model(name)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        model.train()(images)  # running statistics that are not 0 and 1
        fused = model.eval().fuse()
        torch.testing.assert_close(fused(images), model(images), rtol=1e-4, atol=1e-4)
    assert not [part for part in fused.modules() if isinstance(part, nn.BatchNorm2d)]


def test_initial_weights():
    model = refimpl.create_model("efficientnet_b0")
    depthwise = model.blocks[3][1].depthwise.conv
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert model.classifier.weight.abs().max() <= 1000**-0.5
    assert len(STAGES) == len(model.blocks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "valid"}, "padding='valid'"),
        ({"width": 0}, "width=0"),
        ({"depth": -1.0}, "depth=-1.0"),
        ({"drop_rate": 1.0}, "drop_rate=1.0"),
        ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"img_size": 0}, "img_size=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EfficientNet(**arguments)


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_b0", "tf_efficientnet_lite2"])
def test_timm_gives_the_same_output(timm, name):
    ours = name.replace("tf_efficientnet_b", "efficientnet_tf_b").removeprefix("tf_")
    images = torch.randn(2, 3, 97, 80)
    models.assert_equals_peer(refimpl.create_model(ours), timm.create_model(name), images)
