"""Buildings with U-Net++: equal to the reference outputs; its wiring, heads, pruning, refusals."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from torch import nn

import refimpl
from refimpl import golden, weights
from refimpl.bases.efficientnet import same_padding
from refimpl.bases.segmentation import confusion, focal_loss, overlap_loss, scores
from refimpl.lab import measure
from refimpl.papers.building_unetpp import (
    NAMES,
    VARIANTS,
    FixedPadding,
    Node,
    UNetPlusPlus,
    make_nodes,
    nested_nodes,
    place,
    plain_nodes,
)
from shared import models

STEM = "building_unetpp"
RULES = NAMES["official"]
PARAMETERS = {
    "b0": 6_569_581,
    "b1": 9_075_217,
    "b2": 10_401_299,
    "b3": 13_624_793,
    "b4": 20_813_113,
}


def official_name(name: str) -> str:
    """segmentation_models.pytorch's name of one of our tensors, by rule: the map turned round."""
    if name.startswith("encoder."):
        outside = {"stem.conv": "_conv_stem", "stem.norm": "_bn0"}
        outside |= {"head.conv": "_conv_head", "head.norm": "_bn1"}
        name = re.sub(r"(stem|head)\.(conv|norm)", lambda m: outside[m[0]], name)
        norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
        name = re.sub(r"(expand|depthwise|project)\.norm", lambda m: norms[m[1]], name)
        name = re.sub(r"(expand|depthwise|project)\.conv", r"_\1_conv", name)
        return re.sub(r"gate\.(\w+)", r"_se_\1", name).replace(".blocks", "._blocks")
    name = re.sub(r"conv(\d)\.conv", r"conv\1.0", name)
    name = re.sub(r"conv(\d)\.norm", r"conv\1.1", name)
    return name.replace("head.", "segmentation_head.0.")


def official_node(name: str, nested: bool) -> str:
    """The same for the nodes, which the library counts the other way."""
    last = "decoder.blocks.x_0_4." if nested else "decoder.blocks.4."

    def renamed(match: re.Match) -> str:
        i, j = int(match[1]), int(match[2])
        return f"decoder.blocks.x_{4 - i - j}_{3 - i}." if nested else f"decoder.blocks.{3 - i}."

    return re.sub(r"^nodes\.(\d)_(\d)\.", renamed, name).replace("full.", last)


def official_spec(model: UNetPlusPlus) -> dict[str, list[int]]:
    return {
        official_node(official_name(name), model.nested): list(tensor.shape)
        for name, tensor in model.state_dict().items()
    }


def built(case: golden.Case) -> UNetPlusPlus:
    """The model that a case's name and the official constructor's arguments describe."""
    kind, encoder = re.match(r"(unet|unetpp)_(b\d)", case.name).groups()
    renamed = {
        "classes": "num_classes",
        "in_channels": "in_chans",
        "decoder_channels": "decoder_dims",
    }
    options = {renamed[name]: value for name, value in case.kwargs.items() if name in renamed}
    if "decoder_dims" in options:
        options["decoder_dims"] = tuple(options["decoder_dims"])
    encoder = case.kwargs.get("encoder_name", encoder).removeprefix("efficientnet-")
    return UNetPlusPlus(**VARIANTS[encoder if kind == "unetpp" else f"unet_{encoder}"] | options)


def check_model(case: golden.Case) -> None:
    model = built(case).eval()
    case.fill(model, spec=case.data.get("state") or official_spec(model))
    case.check_params(model)
    (images,) = case.inputs()
    with torch.inference_mode():
        if "nodes" in case.name:
            case.check(nodes_of(model, images))
            return
        case.check(model.fuse()(images))
        case.check(model(images))
    assert measure.macs(model, images) == case.data["macs"]


def nodes_of(model: UNetPlusPlus, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every map under the library's name: its x_d_l is X^{3−l, l−d+1}."""
    maps = model.encoder(images)
    grid = nested_nodes(maps, model.nodes)
    found = {f"output.encoder{i + 1}": x for i, x in enumerate(maps)}
    for level in range(4):
        for d in range(level + 1):
            found[f"output.x_{d}_{level}"] = grid[3 - level][level - d + 1]
    return found | {"output.x_0_4": model.full(grid[0][4])}


def check_metrics(case: golden.Case) -> None:
    said = torch.from_numpy(case.recorded("probability")) >= case.arguments["threshold"]
    counts = confusion(said, torch.from_numpy(case.recorded("mask")))
    found = dict(zip(("tp", "fp", "fn", "tn"), counts.split(1, dim=1), strict=True))
    ours = {
        "iou_score": "building IoU",
        "f1_score": "F1",
        "accuracy": "pixel accuracy",
        "precision": "building precision",
        "recall": "recall",
        "specificity": "specificity",
        "balanced_accuracy": "class-mean accuracy",
    }
    reductions = {"micro": "set", "micro-imagewise": "image", "None": "none"}
    for name in case.data["outputs"].keys() - found.keys():
        score, reduction = name.split("|")
        value = torch.as_tensor(scores(counts, reductions[reduction])[ours[score]])
        found[name] = value[:, None] if value.dim() else value
    case.check(found, rtol=1e-6)


def check_definitions(case: golden.Case) -> None:
    masks = (torch.from_numpy(case.recorded(name)) for name in ("prediction", "mask"))
    ours = {name.replace(" ", "_").replace("-", "_").lower(): name for name in scores(ONE)}
    turned = {"iou_building": "building_iou", "iou_background": "background_iou"}
    turned |= {"precision_building": "building_precision"}
    found = scores(confusion(*masks))
    case.check({n: found[ours[turned.get(n, n)]] for n in case.data["outputs"]}, rtol=1e-6)


ONE = torch.ones(1, 4, dtype=torch.int64)


def check_losses(case: golden.Case) -> None:
    logits, masks = case.inputs()
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, masks)
    case.check(
        {
            "dice": overlap_loss(logits, masks),
            "dice_smooth1": overlap_loss(logits, masks, smooth=0.5),
            "dice_log": overlap_loss(logits, masks, log=True),
            "jaccard": overlap_loss(logits, masks, 1.0, 1.0),
            "soft_bce": entropy,
            "focal": focal_loss(logits, masks),
            "tversky_a03_b07": overlap_loss(logits, masks, 0.3, 0.7),
        },
        rtol=1e-6,
    )


TABLES = {
    "metrics_binary": check_metrics,
    "metric_definitions": check_definitions,
    "losses_binary": check_losses,
}


def test_official(official_case):
    TABLES.get(official_case.name, check_model)(official_case)


# -- the encoder


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_names(name):
    model = models.on_meta(f"building_unetpp_{name}")
    assert measure.parameters(model) == PARAMETERS[name]
    for kind in ("", "unet_"):
        model = models.on_meta(f"building_unetpp_{kind}{name}")
        official = official_spec(model)
        assert {weights.rename(n, RULES) for n in official} == model.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "paddings"),
    [
        ("b0", [(0, 1), (0, 1), (1, 2), (0, 1), (1, 2)]),
        ("b1", [(0, 1), (0, 1), (1, 2), (0, 1), (2, 2)]),
        ("b2", [(0, 1), (0, 1), (2, 2), (1, 1), (2, 2)]),
        ("b3", [(0, 1), (0, 1), (2, 2), (0, 1), (2, 2)]),
        ("b4", [(0, 1), (0, 1), (2, 2), (0, 1), (1, 2)]),
    ],
)
def test_paddings_are_those_of_the_nominal_size(name, paddings):
    """At 256 pixels TensorFlow's rule gives B0's row to all of them."""
    model = models.on_meta(f"building_unetpp_{name}")
    fixed = [part for part in model.modules() if isinstance(part, FixedPadding)]
    assert [part.before_after for part in fixed] == paddings
    kernel_sizes = [part.kernel_size[0] for part in fixed]
    at_256 = [same_padding(256 >> i, k, 2) for i, k in enumerate(kernel_sizes)]
    assert at_256 == [(0, 1), (0, 1), (1, 2), (0, 1), (1, 2)]


def test_b0_alone_hands_over_its_map_at_stride_16_early():
    cuts = {name: models.on_meta(f"building_unetpp_{name}").encoder.cuts for name in PARAMETERS}
    assert cuts == {
        "b0": (3, 5, 9, 16),
        "b1": (5, 8, 16, 23),
        "b2": (5, 8, 16, 23),
        "b3": (5, 8, 18, 26),
        "b4": (6, 10, 22, 32),
    }


def test_an_encoder_s_own_checkpoint_loads():
    """efficientnet_pytorch's names, with the classifier that a decoder has no use for."""
    source, target = small().encoder, small(seed=1).encoder
    state = {
        official_name(f"encoder.{name}").removeprefix("encoder."): tensor
        for name, tensor in source.state_dict().items()
    }
    weights.load_official(target, state | {"_fc.weight": torch.zeros(3, 3)})
    models.assert_same_tensors(source, target)


# -- the decoder


def small(seed: int = 0, **options) -> UNetPlusPlus:
    """A narrow, shallow network whose every branch and norm does something."""
    torch.manual_seed(seed)
    shape = dict(width=0.3, depth=0.3, padding_size=64, img_size=64, decoder_dims=(12, 10, 9, 8, 6))
    model = models.lively(UNetPlusPlus(**shape | options))
    return models.calibrated(model, torch.randn(6, model.in_chans, 64, 64))


IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
FORMS = {"nested": {}, "plain": {"nested": False}, "supervised": {"deep_supervision": True}}


class Listing(nn.Module):
    """A node that says what came in, and gives a map of its own number."""

    def __init__(self, number: float):
        super().__init__()
        self.number, self.seen = number, []

    def forward(self, below, *left):
        self.seen = [float(x[0, 0, 0, 0]) for x in (below, *left)]
        return torch.full((1, 1, 2 * below.shape[2], 2 * below.shape[3]), self.number)


def test_what_each_node_sees():
    """From below a column earlier, then its own level from the nearest column to the encoder."""
    depth = 3
    maps = [torch.full((1, 1, 8 >> i, 8 >> i), 10.0 * i) for i in range(depth + 1)]
    nodes = {}
    for j in range(1, depth + 1):
        nodes |= {f"{i}_{j}": Listing(10 * i + j) for i in range(depth + 1 - j)}
    grid = nested_nodes(maps, nodes)
    for name, node in nodes.items():
        i, j = place(name)
        assert node.seen == [10 * (i + 1) + j - 1, *(10 * i + k for k in reversed(range(j)))]
        assert grid[i][j][0, 0, 0, 0] == 10 * i + j
    plain_nodes(maps, nodes)
    assert [nodes[name].seen for name in ("2_1", "1_2", "0_3")] == [[30, 20], [21, 10], [12, 0]]


def test_a_shallower_network_is_a_part_of_the_deeper_one():
    maps = [torch.randn(1, 4, 16 >> i, 16 >> i) for i in range(4)]
    nodes = models.lively(make_nodes((4, 4, 4, 4), (4, 4, 4), nested=True))
    grid, part = nested_nodes(maps, nodes), nested_nodes(maps[:3], nodes)
    for i, row in enumerate(part):
        for j, x in enumerate(row):
            assert torch.equal(x, grid[i][j])


def test_widths_of_b0():
    """What goes into the first convolution of each node, and what comes out."""
    model = models.on_meta("building_unetpp_b0")
    widths = {
        name: (node.conv1.conv.in_channels, node.conv2.conv.out_channels)
        for name, node in model.nodes.items()
    }
    assert widths == {
        "3_1": (432, 256),
        "2_2": (336, 128),
        "2_1": (152, 40),
        "1_3": (200, 64),
        "1_2": (88, 24),
        "1_1": (64, 24),
        "0_4": (192, 32),
        "0_3": (120, 32),
        "0_2": (88, 32),
        "0_1": (56, 32),
    }
    assert (model.full.conv1.conv.in_channels, model.full.conv2.conv.out_channels) == (32, 16)


def test_the_library_counts_nodes_the_other_way():
    for theirs, ours in {"x_0_0": "3_1", "x_3_3": "0_1", "x_0_3": "0_4", "x_1_2": "1_2"}.items():
        official = f"decoder.blocks.{theirs}.conv1.0.weight"
        assert weights.rename(official, RULES) == f"nodes.{ours}.conv1.conv.weight"


def test_norms_of_encoder_and_decoder_differ():
    model = models.on_meta("building_unetpp_b0")
    assert model.encoder.blocks[3].depthwise.norm.eps == 1e-3
    assert model.nodes["0_1"].conv1.norm.eps == 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_fused_is_equal(form):
    models.assert_fused_is_equal(small(**FORMS[form]), IMAGES, rtol=2e-5)


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_next(step):
    step(lambda: small(deep_supervision=True), IMAGES[..., :64])


def test_every_size_that_32_divides():
    model = small()
    for height, width in ((32, 32), (64, 96), (160, 32)):
        with torch.inference_mode():
            assert model(torch.randn(1, 3, height, width)).shape == (1, 1, height, width)


# -- deep supervision and pruning


def test_heads_give_a_tuple_in_training_and_their_mean_otherwise():
    model = small(deep_supervision=True)
    with torch.no_grad():
        features = model.forward_features(IMAGES)
        model.training = True  # the norms stay in evaluation mode
        heads = model(IMAGES)
        model.training = False
        assert [tuple(z.shape) for z in heads] == [(2, 1, 64, 96)] * 4
        assert len(features) == 4
        torch.testing.assert_close(model(IMAGES), torch.stack(heads).mean(0))


def test_there_is_no_head_on_the_reference_s_finest_nodes():
    """One head, behind a block at full size that the U-Net++ paper does not have."""
    model = models.on_meta("building_unetpp_b0")
    assert len(model.heads) == 0
    assert model.full is not None
    supervised = models.on_meta("building_unetpp_b0_supervised")
    assert list(supervised.heads) == ["1", "2", "3", "4"]
    assert supervised.full is None


@pytest.mark.parametrize("column", [1, 2, 3, 4])
def test_pruned_equals_the_head_of_the_whole(column):
    model = small(deep_supervision=True)
    pruned = model.pruned(column)
    with torch.inference_mode():
        heads = model.heads[str(column)](model.forward_features(IMAGES)[column - 1])
        wanted = nn.functional.interpolate(heads, scale_factor=2.0, mode="bilinear")
        assert torch.equal(pruned(IMAGES), wanted)
    models.assert_fused_is_equal(pruned, IMAGES, rtol=2e-5)
    assert all(sum(place(name)) <= column for name in pruned.nodes)
    assert len(model.heads) == 4  # the whole is left alone


def test_pruning_saves_work_in_decoder_and_encoder():
    model = models.on_meta("building_unetpp_b4_supervised")
    images = torch.empty(1, 3, 256, 256, device="meta")
    work = [measure.macs(model.pruned(column), images) for column in (1, 2, 3, 4)]
    assert all(less < 0.8 * more for less, more in pairwise(work))
    assert work[3] == measure.macs(model, images) - heads_of(model, images)


def heads_of(model: UNetPlusPlus, images: torch.Tensor) -> int:
    """Multiply-adds of the heads before the last."""
    pixels = images.shape[2] * images.shape[3] // 4
    return sum(pixels * model.heads[str(j)].in_channels for j in (1, 2, 3))


def test_pruning_wants_heads():
    models.assert_refused(lambda: small().pruned(1), "built without deep_supervision")
    supervised = small(deep_supervision=True)
    for wrong in (0, 5, "all"):
        models.assert_refused(lambda w=wrong: supervised.pruned(w), f"column={wrong!r}")


# -- refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": 240}, "img_size=240 must be a positive multiple of 32"),
        ({"padding_size": 0}, "padding_size=0"),
        ({"decoder_dims": (8, 8)}, "decoder_dims=(8, 8) must be five"),
        ({"decoder_dims": (8, 8, 8, 8, 0)}, "decoder_dims=(8, 8, 8, 8, 0) must be at least 1"),
        ({"nested": False, "deep_supervision": True}, "wants nested=True"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"width": 0}, "width=0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
    ],
)
def test_bad_arguments_are_named(change, words):
    models.assert_refused(lambda: UNetPlusPlus(**dict(width=0.3, depth=0.3) | change), words)


def test_images_that_32_does_not_divide_are_refused():
    for model in (small(), small().fuse(), small(nested=False)):
        models.assert_refused(
            lambda m=model: m(torch.zeros(1, 3, 64, 80)), "both sides must be multiples of 32"
        )


def test_maps_that_do_not_fit_are_refused():
    node = Node(2, 3, 4)
    models.assert_refused(
        lambda: node(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 7, 8)),
        "a map of 7×8 pixels does not fit the one below it, 4×4: it must be 8×8",
    )


def test_front_door():
    names = refimpl.list_models("building_unetpp_*")
    assert len(names) == len(VARIANTS) == 15
    model = refimpl.create_model("building_unetpp_b0", in_chans=4, num_classes=3).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 4, 32, 64)).shape == (1, 3, 32, 64)
