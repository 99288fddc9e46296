"""EfficientMod: equal to the official code, its traps, its fused model, its refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refimpl
from refimpl.lab import measure
from refimpl.papers.efficientmod import (
    NAMES,
    VARIANTS,
    Attention,
    AttentionBlock,
    ContextLayer,
    EfficientMod,
    Modulation,
    ModulationBlock,
    effective_kernel,
    modulation,
)
from refimpl.viz import attention
from refimpl.weights import translate
from shared import models

STEM = "efficientmod"
PARAMETERS = {"xxs": 4_736_264, "xs": 6_627_544, "s": 12_897_184, "s_conv": 12_872_336}


def built(case) -> nn.Module:
    """The model or part that a case names, from the official constructor's arguments."""
    k = case.kwargs
    if "variant" in k:
        return EfficientMod(**VARIANTS[k["variant"].lower()])
    if "num_heads" in k:
        return AttentionBlock(k["dim"], k["mlp_ratio"], k["num_heads"])
    if "mlp_ratio" in k:
        return ModulationBlock(k["dim"], k["mlp_ratio"], k["context_size"])
    return ContextLayer(k["in_dim"], *k["context_size"])


def test_official(official_case):
    model = official_case.fill(built(official_case).eval())
    official_case.check_params(model)
    images = official_case.inputs()[0]
    with torch.inference_mode():
        official_case.check(model(images), rtol=1e-5)
    assert measure.macs(model, images, attention=False) == official_case.data["macs"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_of_the_four_models(variant):
    with torch.device("meta"):
        model = refimpl.create_model(f"efficientmod_{variant}")
    assert measure.parameters(model) == PARAMETERS[variant]


SMALL = dict(
    img_size=32,
    num_classes=5,
    embed_dims=(8, 12),
    depths=(3, 1),
    mlp_ratios=(1, 3),
    attention_depths=(0, 1),
    attention_mlp_ratios=(4, 2),
)


def filled(seed: int = 0, **kwargs) -> EfficientMod:
    """A small model whose every branch and norm does something."""
    torch.manual_seed(seed)
    model = EfficientMod(**SMALL | kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def official_name(name: str) -> str:
    """The authors' name of one of our tensors."""
    name = name.replace("stages.", "layers.").replace(".gamma", ".gamma_1")
    for ours, theirs in (("proj_in", "f"), ("proj_out", "g"), ("conv", "context_list.0")):
        name = name.replace(f"context_layer.{ours}.", f"context_layer.{theirs}.")
    return name


@pytest.mark.parametrize("variant", ["xs", "s_conv"])
def test_checkpoints_under_official_names_load(variant):
    models.assert_checkpoint_loads(
        lambda: refimpl.create_model(f"efficientmod_{variant}"),
        lambda model: {
            "state_dict_ema": {official_name(k): v for k, v in model.state_dict().items()}
        },
    )


# ---------------------------------------------------------------- the idea


def modulation_alone(ratio: int, dim: int = 4, kernel_size: int = 5):
    torch.manual_seed(0)
    return Modulation(dim, ratio, kernel_size).double(), torch.randn(
        2, 7, 9, dim, dtype=torch.float64
    )


@pytest.mark.parametrize("ratio", [1, 2, 6])
def test_equation_pixel_by_pixel(ratio):
    """y = W₂(φ(W₁ n) ⊙ tile_r(c)): hidden channel j meets context channel j mod d."""
    layer, x = modulation_alone(ratio)
    c = layer.context_layer(x)
    y = torch.zeros_like(x)
    for j in range(4 * ratio):
        value = x @ layer.fc1.weight[j] + layer.fc1.bias[j]
        value = F.gelu(value) if ratio > 1 else value
        y = y + (value * c[..., j % 4])[..., None] * layer.fc2.weight[:, j]
    torch.testing.assert_close(layer(x), y + layer.fc2.bias)


def test_tiling_is_end_to_end_and_not_channel_by_channel():
    layer, x = modulation_alone(3)
    interleaved = layer.context_layer(x).repeat_interleave(3, -1)
    other = layer.fc2(F.gelu(layer.fc1(x)) * interleaved)
    assert models.error(layer(x), other) > 0.1


def test_value_of_a_narrow_block_is_linear():
    """r = 1: with a fixed context the block is linear in the value: no activation on it."""
    layer, x = modulation_alone(1)
    c = layer.context_layer(x)

    def product(n):
        return modulation(n, lambda _: c, layer.fc1, layer.fc2)

    zero = product(torch.zeros_like(x))
    torch.testing.assert_close(product(3 * x) - zero, 3 * (product(x) - zero))
    wide, x = modulation_alone(2)
    c = wide.context_layer(x)
    zero = modulation(0 * x, lambda _: c, wide.fc1, wide.fc2)
    gained = modulation(3 * x, lambda _: c, wide.fc1, wide.fc2) - zero
    assert models.error(gained, 3 * (modulation(x, lambda _: c, wide.fc1, wide.fc2) - zero)) > 0.1


def test_a_pixel_reads_its_neighbourhood_and_no_more():
    layer, x = modulation_alone(2, kernel_size=5)
    changed = x.clone()
    changed[:, 3, 4] += 1
    moved = (layer(changed) - layer(x)).abs().amax((0, 3)) > 0
    wanted = torch.zeros(7, 9, dtype=torch.bool)
    wanted[1:6, 2:7] = True
    assert torch.equal(moved, wanted)


def test_gamma_starts_small_and_scales_the_branch():
    block = ModulationBlock(8, 1)
    assert torch.equal(block.gamma, torch.full((8,), 1e-4))
    x = torch.randn(1, 5, 5, 8)
    with torch.no_grad():
        before = block(x) - x
        block.gamma.mul_(1000)
        torch.testing.assert_close(block(x) - x, 1000 * before, rtol=1e-2, atol=1e-4)


def test_heads_have_at_least_32_channels():
    assert Attention(144).qkv.out_features == 768
    assert Attention(312).head_dim == 39
    assert Attention(256).head_dim == 32


# ---------------------------------------------------------------- the effective kernel


def test_effective_kernel_of_a_convolution_is_its_kernel():
    conv = nn.Conv2d(3, 2, 5, padding=2)

    def layer(x):
        return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    kernels = effective_kernel(layer, torch.randn(3, 9, 8, 3), (4, 4), 2, 1, size=7)
    wanted = F.pad(conv.weight[1, 2], [1, 1, 1, 1]).expand(3, 7, 7)
    torch.testing.assert_close(kernels, wanted)


@pytest.mark.parametrize("ratio", [1, 3])
def test_effective_kernel_is_the_derivative_in_two_terms(ratio):
    """The docstring's formula, from parts that are differentiated by hand."""
    layer, x = modulation_alone(ratio)
    i, o, pixel = 2, 1, (3, 4)
    found = effective_kernel(layer, x, pixel, i, o, size=5)
    ctx = layer.context_layer
    before = (x @ layer.fc1.weight.T + layer.fc1.bias)[:, 3, 4]  # (b, r·d)
    value = F.gelu(before) if ratio > 1 else before
    slope = torch.ones_like(before)
    if ratio > 1:
        normal = torch.distributions.Normal(0.0, 1.0)
        slope = normal.cdf(before) + before * normal.log_prob(before).exp()
    c = ctx(x)[:, 3, 4]
    wanted = torch.zeros_like(found)
    for j in range(4 * ratio):
        wanted += (layer.fc2.weight[o, j] * value[:, j, None, None]) * effective_kernel(
            ctx, x, pixel, i, j % 4, size=5
        )
        wanted[:, 2, 2] += (
            layer.fc2.weight[o, j] * slope[:, j] * layer.fc1.weight[j, i] * c[:, j % 4]
        )
    torch.testing.assert_close(found, wanted)
    assert models.error(found[0], found[1]) > 0.1  # another input, another kernel


def test_effective_kernel_at_the_border_is_zero_outside():
    layer, x = modulation_alone(2)
    kernels = effective_kernel(layer, x, (0, 8), 0, 0, size=5)
    assert kernels[:, 2:, :3].all() and not kernels[:, :2].any() and not kernels[:, :, 3:].any()


def test_effective_kernel_leaves_no_gradient_behind():
    layer, x = modulation_alone(2)
    with torch.no_grad():
        effective_kernel(layer, x, (1, 1), 0, 0)
    assert x.grad is None and all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pixel": (7, 0)}, "pixel=(7, 0) lies outside the map of 7×9"),
        ({"pixel": (0, -1)}, "pixel=(0, -1) lies outside"),
        ({"in_channel": 4}, "in_channel=4 must be at least 0 and below 4"),
        ({"out_channel": -1}, "out_channel=-1 must be at least 0 and below 4"),
        ({"size": 4}, "size=4 must be odd"),
        ({"size": 0}, "size=0"),
    ],
)
def test_effective_kernel_names_bad_arguments(change, words):
    layer, x = modulation_alone(2)
    asked = dict(pixel=(1, 1), in_channel=0, out_channel=0, size=5) | change
    models.assert_refused(lambda: effective_kernel(layer, x, **asked), words)


# ---------------------------------------------------------------- differences


def test_more_parameters_than_efficientformerv2_s2():
    """EfficientFormerV2-S2 has 12,710,112 with both heads, 12,421,112 with one (timm 1.0.31)."""
    with torch.device("meta"):
        model = refimpl.create_model("efficientmod_s")
    assert measure.parameters(model) > 12_710_112


def test_convolutions_keep_pytorch_s_start():
    """Linear weights are drawn within two units of σ = 0.02, convolutions uniformly ±1/√fan-in."""
    model = refimpl.create_model("efficientmod_s_conv")
    conv = model.stages[3].blocks[0].mlp.context_layer.conv.weight
    linear = model.stages[3].blocks[0].mlp.fc1.weight
    assert linear.std().item() == pytest.approx(0.02, rel=0.02)
    assert conv.abs().max() <= 1 / 7 and conv.std().item() == pytest.approx(
        1 / 7 / 3**0.5, rel=0.02
    )


def test_lists_are_longer_than_the_stages():
    """Only the first `depth` ratios count: three blocks of xs have 1, 4, 1."""
    with torch.device("meta"):
        model = refimpl.create_model("efficientmod_xs")
    ratios = []
    for stage in model.stages:
        mods = [b.mlp for b in stage.blocks if isinstance(b, ModulationBlock)]
        ratios.append([m.fc1.out_features // m.fc1.in_features for m in mods])
    assert ratios == [[1, 4, 1], [1, 4, 1], [1, 4, 1, 4], [1, 4]]


# ---------------------------------------------------------------- what a user does next


@pytest.mark.parametrize(
    "options",
    [{}, {"num_classes": 0}, {"in_chans": 2, "mlp_ratios": (1,)}, {"attention_depths": (1, 0)}],
)
def test_fused_model_is_equal_and_leaves_the_model_alone(options):
    model = filled(0, **options)
    models.assert_fused_is_equal(model, torch.randn(3, model.in_chans, 32, 32))


def test_fused_model_keeps_the_precision_and_takes_any_size():
    models.assert_fused_is_equal(filled().double(), torch.randn(2, 3, 45, 33).double())


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_next(step):
    step(filled, torch.randn(2, 3, 32, 32))


def test_every_parameter_gets_a_gradient_in_training():
    model = filled(drop_path_rate=0.1, img_size=64).train()
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_drop_path_rises_over_all_blocks_of_both_kinds():
    model = refimpl.create_model("efficientmod_s")
    rates = [block.drop_path.p for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.02 * i / 27 for i in range(28)])


def test_evaluation_is_free_of_chance():
    """The official attention passes its dropout rate in evaluation too; here there is none."""
    model, images = filled(drop_path_rate=0.5), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(images), model(images))


def test_forward_is_head_of_features():
    model, images = filled(), torch.randn(2, 3, 32, 40)
    with torch.inference_mode():
        features = model.forward_features(images)
        assert features.shape == (2, 12, 4, 5)
        assert torch.equal(model.forward_head(features), model(images))
        without = filled(num_classes=0)
        assert without(images).shape == (2, 12)


def test_maps_are_recorded_with_their_grid():
    model = filled(attention_depths=(1, 1))
    with torch.inference_mode(), attention.record(model) as maps:
        model(torch.randn(2, 3, 32, 48))
    assert [m.weights.shape for m in maps] == [(2, 8, 96, 96), (2, 8, 24, 24)]
    assert [m.grid for m in maps] == [(8, 12), (4, 6)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": 0}, "img_size=0"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"embed_dims": (8, 0)}, "embed_dims=(8, 0)"),
        ({"depths": (1,)}, "one entry for each stage"),
        ({"attention_depths": (1, 1, 1)}, "one entry for each stage"),
        ({"depths": (1, -1)}, "depths=(1, -1)"),
        ({"mlp_ratios": ()}, "mlp_ratios=() must have at least one entry"),
        ({"mlp_ratios": (1, 0)}, "mlp_ratio=0 must be an integer of at least 1"),
        ({"mlp_ratios": (1, 2.5)}, "mlp_ratio=2.5 must be an integer"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
    ],
)
def test_bad_arguments_are_named(change, words):
    models.assert_refused(lambda: EfficientMod(**SMALL | change), words)


def test_bad_parts_and_images_are_named():
    models.assert_refused(lambda: ContextLayer(8, 4), "kernel_size=4 must be odd")
    models.assert_refused(lambda: Attention(8, 0), "num_heads=0")
    models.assert_refused(lambda: filled()(torch.zeros(1, 1, 32, 32)), "1 channels")
    models.assert_refused(lambda: filled()(torch.zeros(3, 32, 32)), "3 dimensions")
    models.assert_refused(lambda: filled()(torch.zeros(1, 3, 8, 8).byte()), "torch.uint8")
    models.assert_refused(lambda: refimpl.create_model("efficientmod_s_con"), "efficientmod_s_conv")


def test_official_names_map_to_ours_without_a_clash():
    state = EfficientMod(**SMALL).state_dict()
    official = {official_name(name): tensor for name, tensor in state.items()}
    assert translate(official, NAMES["official"]).keys() == state.keys()
