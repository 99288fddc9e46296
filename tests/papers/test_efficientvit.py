"""EfficientViT: equal to the official code, its traps, its fused model, its refusals."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import refimpl
from refimpl import weights
from refimpl.lab import measure
from refimpl.papers.efficientvit import (
    NAMES,
    VARIANTS,
    Block,
    CascadedGroupAttention,
    EfficientViT,
    PatchMerging,
    WindowAttention,
    offset_index,
)
from refimpl.viz import attention
from shared import models

STEM = "efficientvit"
RULES = NAMES["official"]
PARAMETERS = {
    "m0": 2_349_436,
    "m1": 2_980_560,
    "m2": 4_187_554,
    "m3": 6_900_722,
    "m4": 8_804_228,
    "m5": 12_473_772,
}


def official_name(name: str) -> str:
    """The authors' name of one of our tensors, by rule: the name map the other way round."""
    name = re.sub(r"stages\.0\.blocks\.", "blocks1.", name)
    name = re.sub(
        r"stages\.(\d)\.blocks\.(\d+)\.", lambda m: f"blocks{int(m[1]) + 1}.{int(m[2]) + 3}.", name
    )
    parts = {"dw0": "0.0.m", "ffn0": "0.1.m", "merge": "1", "dw1": "2.0.m", "ffn1": "2.1.m"}
    name = re.sub(
        r"stages\.(\d)\.downsample\.(\w+)\.",
        lambda m: f"blocks{int(m[1]) + 1}.{parts[m[2]]}.",
        name,
    )
    name = re.sub(r"(^|\.)(dw[01]|ffn[01]|mixer)\.(?!m\.)", r"\1\2.m.", name)
    name = re.sub(r"(^|\.)proj\.", r"\1proj.1.", name)
    words = {
        "conv": "c",
        "norm": "bn",
        "linear": "l",
        "qkv_projs": "qkvs",
        "query_convs": "dws",
    }
    return ".".join(words.get(part, part) for part in name.split("."))


def timm_name(name: str) -> str:
    """timm's name of a tensor, from the official one."""
    name = re.sub(r"^patch_embed\.(\d)", lambda m: f"patch_embed.conv{int(m[1]) // 2 + 1}", name)
    name = re.sub(r"^blocks1\.", "stages.0.blocks.", name)
    for part, theirs in (("0.", "res1."), ("1.", "patchmerge."), ("2.", "res2.")):
        name = re.sub(
            rf"^blocks(\d)\.{re.escape(part)}",
            lambda m, t=theirs: f"stages.{int(m[1]) - 1}.downsample.{t}",
            name,
        )
    name = re.sub(
        r"^blocks(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 3}.", name
    )
    return re.sub(r"(^|\.)l\.", r"\1linear.", re.sub(r"(^|\.)c\.", r"\1conv.", name))


def official_spec(model: nn.Module) -> dict[str, list[int]]:
    return {official_name(name): list(tensor.shape) for name, tensor in model.state_dict().items()}


RENAMED = {
    "embed_dim": "embed_dims",
    "depth": "depths",
    "kernels": "kernel_sizes",
    "distillation": "distilled",
}


def built(kwargs: dict) -> EfficientViT:
    """The model of the official constructor's arguments."""
    taken = {
        RENAMED.get(name, name): tuple(value) if isinstance(value, list) else value
        for name, value in kwargs.items()
        if name != "patch_size"
    }
    if isinstance(key_dim := taken.get("key_dim"), tuple):
        taken["key_dim"] = key_dim[0]
    return EfficientViT(**taken)


SMALL = dict(
    img_size=32,
    num_classes=5,
    embed_dims=(16, 24),
    depths=(1, 1),
    num_heads=(2, 3),
    window_size=(7, 7),
    kernel_sizes=(5, 3, 3),
    key_dim=4,
)


def filled(seed: int = 0, **kwargs) -> EfficientViT:
    """A small model whose every branch and norm does something."""
    torch.manual_seed(seed)
    return models.lively(EfficientViT(**SMALL | kwargs))


def test_official(official_case):
    case, k = official_case, official_case.kwargs
    if case.name == "attention_bias_idxs":
        assert torch.equal(
            offset_index(int(case.recorded("resolution"))), torch.from_numpy(case.recorded("idxs"))
        )
        return
    if case.name == "head_similarity":
        case.check(attention.head_similarity(torch.from_numpy(case.recorded("attention"))))
        return
    if case.name.startswith("cga"):
        model = CascadedGroupAttention(
            k["dim"], k["key_dim"], k["num_heads"], k["resolution"], tuple(k["kernels"])
        )
    elif case.name.startswith("window"):
        model = WindowAttention(
            k["dim"],
            k["key_dim"],
            k["num_heads"],
            k["resolution"],
            k["window_resolution"],
            tuple(k["kernels"]),
        )
    elif case.name.startswith("patch_merging"):
        model = PatchMerging(k["dim"], k["out_dim"])
    elif case.name.startswith("block"):
        model = Block(
            k["ed"], k["kd"], k["nh"], k["resolution"], k["window_resolution"], tuple(k["kernels"])
        )
    else:
        model = built(k)
    case.fill(model.eval(), RULES, spec=case.data.get("state") or official_spec(model))
    case.check_params(model)
    images = case.inputs()[0]
    if "fused" in case.name:
        model = model.fuse()
        assert measure.parameters(model) == case.data["params_fused"]
        if spec := case.data.get("fused_state"):
            theirs = {name: torch.zeros(shape) for name, shape in spec.items()}
            assert not weights.compare(model.state_dict(), weights.translate(theirs, RULES))
    with torch.inference_mode():
        if "stages" in case.name:
            x, outputs = model.patch_embed(images), {}
            outputs["output.patch_embed"] = x
            for i, stage in enumerate(model.stages, 1):
                outputs[f"output.blocks{i}"] = x = stage(x)
            case.check(
                outputs | {"output.pooled": x.mean((2, 3)), "output.logits": model(images)},
                rtol=1e-5,
            )
        else:
            case.check(model(images), rtol=1e-5)
    if case.data.get("macs"):
        assert measure.macs(model, images) == case.data["macs"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_of_the_six_models(variant):
    with torch.device("meta"):
        model = refimpl.create_model(f"efficientvit_{variant}")
    assert measure.parameters(model) == PARAMETERS[variant]


@pytest.mark.parametrize(
    ("variant", "published"), list(zip(VARIANTS, (79, 167, 201, 263, 299, 522), strict=True))
)
def test_published_flops_are_multiply_adds_without_softmax(variant, published):
    """The README's "FLOPs" are millions of multiply-adds of convolutions and matrix products.

    Half of what both operations would count.
    """
    model = refimpl.create_model(f"efficientvit_{variant}")
    assert round(measure.macs(model, torch.zeros(1, 3, 224, 224)) / 1e6) == published


@pytest.mark.parametrize(
    "names", [official_name, lambda name: timm_name(official_name(name))], ids=["official", "timm"]
)
@pytest.mark.parametrize("variant", ["m0", "m3"])
def test_checkpoints_under_foreign_names_load(names, variant):
    """As the authors save them: under `model`, with the index buffer, matrices in two axes."""

    def checkpoint(source):
        state = {"blocks1.0.mixer.m.attn.attention_bias_idxs": offset_index(7)}
        for name, tensor in source.state_dict().items():
            state[names(name)] = tensor.squeeze() if tensor.dim() == 4 else tensor
        return {"model": state}

    models.assert_checkpoint_loads(
        lambda: refimpl.create_model(f"efficientvit_{variant}"), checkpoint
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_timm_gives_the_same_output(timm, variant):
    name = f"efficientvit_{variant}"
    images = torch.randn(1, 3, 224, 224)
    models.assert_equals_peer(refimpl.create_model(name), timm.create_model(name), images)


def test_no_stale_bias_after_loading():
    """The official code gathers the bias in `eval()`: weights loaded later keep the old one."""
    model, other = filled(0), filled(1)
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        model(images)
        model.load_state_dict(other.state_dict())
        assert torch.equal(model(images), other(images))
        fused = other.fuse()
        before = fused(images)
        fused.stages[0].blocks[0].mixer.attn.attention_biases += torch.randn(2, 4)
        assert not torch.equal(fused(images), before)


def attention_alone(heads: int = 3, dim: int = 12, side: int = 5, kernel_sizes=(5, 3, 3, 7)):
    torch.manual_seed(0)
    model = CascadedGroupAttention(dim, 4, heads, side, kernel_sizes).eval()
    nn.init.ones_(model.proj.norm.weight)
    nn.init.normal_(model.attention_biases)
    return model, torch.randn(2, dim, side, side)


def test_kernels_go_by_head():
    model, _ = attention_alone()
    sizes = [query_conv.conv.kernel_size[0] for query_conv in model.query_convs]
    assert sizes == [5, 3, 3], "three heads use the first three entries"


def test_cascade_runs_forwards_only():
    """Head j reads slice j and the outputs of the heads before it, never a later slice."""
    model, x = attention_alone()
    model.proj = nn.Identity()
    with torch.inference_mode():
        before = model(x)
        for j in range(3):
            changed = x.clone()
            changed[:, 4 * j : 4 * j + 4] += 1
            moved = (model(changed) - before).abs().amax((0, 2, 3)) > 0
            assert not moved[: 4 * j].any() and moved[4 * j :].any()


def test_cascade_adds_the_output_before_relu_and_projection():
    model, x = attention_alone(heads=2, dim=8)
    model.proj = nn.Identity()
    seen = []
    model.qkv_projs[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        first = model(x)[:, :4]
    handed_on = seen[0] - x[:, 4:]
    assert (handed_on < 0).any() and torch.allclose(handed_on.clamp(min=0), first, atol=1e-6)


def test_depthwise_convolution_is_on_queries_alone():
    """With its weights at zero every query is zero: attention is then the bias alone."""
    model, x = attention_alone(heads=2, dim=8)
    for query_conv in model.query_convs:
        nn.init.zeros_(query_conv.conv.weight)
    with torch.inference_mode(), attention.record(model) as maps:
        model(x)
    wanted = model.attention_biases[:, offset_index(5)].softmax(-1)
    assert torch.allclose(maps[0].weights, wanted.expand_as(maps[0].weights), atol=1e-6)


def test_bias_is_shared_by_reflections():
    index = offset_index(4)
    flip = torch.arange(16).reshape(4, 4).flip(1).flatten()
    assert (
        torch.equal(index, index.T)
        and torch.equal(index[flip][:, flip], index)
        and index.unique().numel() == 16
    )


def test_padding_is_attended_to():
    """A 10×10 map in 7×7 windows: of the last one's 49 tokens 40 are zeros, and take part."""
    torch.manual_seed(0)
    model = WindowAttention(12, 4, 2, 10, 7, (3, 3)).eval()
    with torch.inference_mode(), attention.record(model) as maps:
        model(torch.randn(1, 12, 10, 10))
    assert maps[0].weights.shape == (4, 2, 49, 49) and maps[0].layout.window == 7
    assert (maps[0].weights[3, 0, 0, 3:7] > 0).all()
    assert maps[0].to_image().shape == (1, 2, 100, 100)


@pytest.mark.parametrize("variant", ["m0", "m5"])
def test_recorded_maps_are_layers_by_heads(variant):
    model, kwargs = refimpl.create_model(f"efficientvit_{variant}").eval(), VARIANTS[variant]
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        plain = model(images)
        with attention.record(model) as maps:
            assert torch.equal(model(images), plain)
        fused = model.fuse()
        with attention.record(fused) as again:
            fused(images)
    assert [m.heads for m in maps] == [
        heads
        for heads, depth in zip(kwargs["num_heads"], kwargs["depths"], strict=True)
        for _ in range(depth)
    ]
    assert [m.grid for m in maps] == [
        (side, side)
        for side, depth in zip((14, 7, 4), kwargs["depths"], strict=True)
        for _ in range(depth)
    ]
    for a, b in zip(maps, again, strict=True):
        whole = a.to_image()
        assert whole.shape == (2, a.heads, a.grid[0] ** 2, a.grid[0] ** 2) and torch.allclose(
            whole.sum(-1), torch.ones(()), atol=1e-6
        )
        assert torch.allclose(a.weights, b.weights, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"distilled": True}, {"img_size": 160, "in_chans": 2}])
def test_fused_model_is_equal_and_leaves_the_model_alone(options):
    model = filled(0, **options)
    images = torch.randn(3, model.in_chans, model.img_size, model.img_size)
    models.assert_fused_is_equal(model, images)


def test_fused_model_keeps_the_precision():
    models.assert_fused_is_equal(filled().double(), torch.randn(2, 3, 32, 32).double())


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_next(step):
    step(filled, torch.randn(2, 3, 32, 32))


def test_windows_with_padding_next():
    """The same where the map is larger than a window."""
    models.gradient_of_one_image_is_right(lambda: filled(img_size=160), torch.randn(2, 3, 160, 160))


def test_every_parameter_gets_a_gradient_and_two_heads_in_training():
    model = filled(distilled=True, img_size=64).train()
    logits, distilled = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == distilled.shape == (2, 5)
    (logits.square().sum() + distilled.square().sum()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_without_classes_features_come_out():
    model, images = filled(num_classes=0, distilled=True), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features = model.forward_features(images).mean((2, 3))
        assert torch.equal(model(images), features)


def test_image_size_may_be_a_square_pair():
    assert EfficientViT(**SMALL | {"img_size": (64, 64)}).img_size == 64


def test_forward_is_head_of_features():
    model, images = filled(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features = model.forward_features(images)
        assert features.shape == (2, 24, 1, 1) and torch.equal(
            model.forward_head(features), model(images)
        )


def test_drop_path_is_per_sample_and_only_in_training():
    model = filled(drop_path_rate=0.5)
    images = torch.randn(1, 3, 32, 32).expand(16, -1, -1, -1)
    with torch.no_grad():
        assert torch.allclose(model(images), filled()(images))
        block = model.stages[0].blocks[0].train()
        for m in block.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        assert len(block(torch.ones(16, 16, 2, 2)).flatten(1).unique(dim=0)) > 1


def test_starts_as_the_paper_says():
    """γ = 0 ends every residual branch of a block, 1 the downsampling's; bias tables are zero."""
    model = refimpl.create_model("efficientvit_m0")
    block, down = model.stages[1].blocks[0], model.stages[1].downsample
    for norm in (
        block.dw0.norm,
        block.dw1.norm,
        block.ffn0.pw2.norm,
        block.ffn1.pw2.norm,
        block.mixer.attn.proj.norm,
        down.ffn0.pw2.norm,
    ):
        assert not norm.weight.any()
    assert (down.dw0.norm.weight == 1).all() and (down.dw1.norm.weight == 1).all()
    assert not block.mixer.attn.attention_biases.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": 30}, "img_size=30"),
        ({"img_size": 0}, "img_size=0"),
        ({"img_size": (32, 64)}, "img_size=(32, 64) must be square"),
        ({"img_size": "32"}, "img_size='32'"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"embed_dims": (12, 24)}, "embed_dims[0]=12 must be a positive multiple of 8"),
        ({"depths": (1,)}, "one entry for each stage"),
        ({"depths": (1, 0)}, "depths=(1, 0) must be at least 1"),
        ({"num_heads": (2, 5)}, "num_heads=5"),
        ({"kernel_sizes": (5, 3)}, "num_heads=3"),
        ({"kernel_sizes": (4, 3, 3)}, "odd sizes"),
        ({"key_dim": 0}, "key_dim=0"),
        ({"window_size": (0, 7)}, "window_size=0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
    ],
)
def test_bad_arguments_are_named(change, words):
    models.assert_refused(lambda: EfficientViT(**SMALL | change), words)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 3, 48, 48), "48×48"),
        (torch.zeros(1, 1, 32, 32), "1 channels"),
        (torch.zeros(3, 32, 32), "3 dimensions"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_bad_images_are_named(images, words):
    models.assert_refused(lambda: filled()(images), words)


def test_bad_calls_are_named():
    layer = WindowAttention(8, 4, 2, 5, 7, (3, 3))
    models.assert_refused(lambda: layer(torch.randn(1, 8, 4, 4)), "resolution=5")
    models.assert_refused(lambda: refimpl.create_model("efficientvit_m6"), "efficientvit_m")
