"""MobileViT: equal to the reference outputs; patches, separable attention; maps in the image."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import refimpl
from refimpl.bases.mobilevit import (
    VARIANTS,
    MobileViT,
    MobileViTBlock,
    MobileViTv2Block,
    PatchAttention,
    SeparableAttention,
    fold,
    in_image,
    separable_attention,
    unfold,
)
from refimpl.lab import measure
from refimpl.viz.attention import record
from shared import models

STEM = "mobilevit"
SMALL = dict(
    img_size=64,
    num_classes=5,
    stem_chans=8,
    embed_dims=(8, 12, 16, 16),
    attn_dims=(12, 20),
    depths=(1, 2, 1, 2),
    num_features=24,
)
SMALL_V2 = SMALL | dict(num_features=None, separable=True)
SMALLS = [SMALL, SMALL_V2]
VERSIONS = ["v1", "v2"]
PARTS = {"expand": "conv1_1x1", "depthwise": "conv2_kxk", "project": "conv3_1x1"}


def variant_of(name: str) -> str:
    """timm's name -> ours."""
    return name.replace("mobilevitv2_", "mobilevit_v2_")


def small(options: dict, **more) -> MobileViT:
    torch.manual_seed(0)
    return models.lively(MobileViT(**options | more))


def test_official(official_case):
    given = official_case.kwargs
    model = refimpl.create_model(variant_of(given["name"]), img_size=given["resolution"]).eval()
    official_case.fill(model)
    official_case.check_params(model)
    (images,) = official_case.inputs()
    with torch.inference_mode():
        official_case.check(model.fuse()(images))
        official_case.check(model(images))
    assert measure.macs(model, images, attention=False) == official_case.data["macs"]


@pytest.mark.parametrize(
    ("variant", "params"),
    [
        ("xxs", 1_272_024),
        ("xs", 2_317_848),
        ("s", 5_578_632),
        ("v2_050", 1_370_593),
        ("v2_075", 2_866_009),
        ("v2_100", 4_901_841),
        ("v2_150", 10_594_753),
        ("v2_175", 14_251_833),
        ("v2_200", 18_449_329),
    ],
)
def test_parameter_counts(variant, params):
    with torch.device("meta"):
        assert measure.parameters(MobileViT(**VARIANTS[variant])) == params


@pytest.mark.parametrize("size", [(96, 96), (96, 160), (80, 48)])  # odd maps where 32 divides
@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevit_v2_050", "mobilevit_v2_125"])
def test_timm_gives_the_same_output(timm, name, size):
    theirs = timm.create_model(name.replace("_v2_", "v2_"), num_classes=9)
    ours = refimpl.create_model(name, num_classes=9)
    models.assert_equals_peer(ours, theirs, torch.randn(2, 3, *size))


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_what_a_user_does_next_with_version_2(step):
    step(lambda: small(SMALL_V2), torch.randn(4, 3, 64, 64))


@pytest.mark.parametrize("options", SMALLS, ids=VERSIONS)
def test_timm_names_load(options):
    """Convolutions' norms are `bn` there; the inverted residual's parts have other names."""

    def timm(model):
        state = {}
        for name, tensor in model.state_dict().items():
            name = re.sub(r"(conv_\w+|stem|expand|depthwise|project)\.norm\.", r"\1.bn.", name)
            for part, official in PARTS.items():
                name = name.replace(f".{part}.", f".{official}.")
            state[re.sub(r"^head\.", "head.fc.", name)] = tensor
        return state

    models.assert_checkpoint_loads(lambda: small(options), timm)


def test_unfolded_tokens_are_the_places_of_all_patches():
    x = torch.arange(24.0).view(1, 1, 4, 6)
    tokens = unfold(x)
    assert tokens.shape == (1, 2, 2, 2, 3, 1)
    for row, col in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert torch.equal(tokens[0, row, col, ..., 0], x[0, 0, row::2, col::2])
    assert torch.equal(fold(tokens), x)


def test_a_pixel_hears_its_place_in_every_patch_and_no_other():
    layer = PatchAttention(8, 2)
    x = torch.randn(1, 8, 6, 4, requires_grad=True)
    y = fold(layer(unfold(x)))
    y[0, :, 3, 2].square().sum().backward()
    reached = x.grad[0].abs().sum(0) > 1e-9
    wanted = torch.zeros(6, 4, dtype=torch.bool)
    wanted[1::2, 0::2] = True
    assert torch.equal(reached, wanted)


def test_separable_attention_by_its_definition():
    query, key, value = torch.randn(2, 1, 4, 6), torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6)
    got = separable_attention(query, key, value)
    for b in range(2):
        for place in range(4):
            weight = query[b, 0, place].exp() / query[b, 0, place].exp().sum()
            context = sum(weight[j] * key[b, :, place, j] for j in range(6))
            for i in range(6):
                wanted = value[b, :, place, i].clamp(min=0) * context
                torch.testing.assert_close(got[b, :, place, i], wanted)


def test_separable_attention_grows_with_tokens_and_not_with_their_square():
    layer = SeparableAttention(8)
    few, many = torch.randn(1, 8, 4, 16), torch.randn(1, 8, 4, 64)
    costs = [measure.macs(layer, x, (2, 2 * x.shape[-1])) for x in (few, many)]
    assert costs[1] == 4 * costs[0]


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_maps_say_what_version_1_does(size):
    """out = A v for the values of the whole map, pixel by pixel."""
    layer = PatchAttention(6, 2).eval()
    x = torch.randn(2, 6, *size)
    with torch.no_grad(), record(layer) as maps:
        wanted = fold(layer(unfold(x)))
        v = layer.qkv(x.permute(0, 2, 3, 1)).flatten(1, 2)[..., 12:]
        v = v.unflatten(-1, (2, 3)).transpose(1, 2)  # (b, heads, h·w, d)
        image = maps[0].to_image()
        assert image.shape == (2, 2, size[0] * size[1], size[0] * size[1])
        y = layer.proj((image @ v).transpose(1, 2).flatten(2))
        y = y.transpose(1, 2).unflatten(-1, size)
    assert maps[0].grid == size
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(image.sum(-1), torch.ones(2, 2, size[0] * size[1]))


def test_maps_say_what_version_2_does():
    """context = A key, pixel by pixel."""
    layer = SeparableAttention(3).eval()
    x = torch.randn(2, 3, 4, 6)
    with torch.no_grad(), record(layer) as maps:
        wanted = layer(x, (4, 6))
        _, key, value = layer.qkv_proj(x).split([1, 3, 3], dim=1)
    image = maps[0].to_image()[:, 0]  # (b, N, N)
    torch.testing.assert_close(image.sum(-1), torch.ones(2, 24))

    def on_map(y):
        return fold(y.view(2, 3, 2, 2, 2, 3).permute(0, 2, 3, 4, 5, 1)).flatten(2)

    y = on_map(value).relu() * (on_map(key) @ image.transpose(1, 2))
    y = layer.out_proj(y[..., None])[..., 0]
    torch.testing.assert_close(y, on_map(wanted), rtol=1e-4, atol=1e-5)


def test_places_do_not_mix_in_a_map():
    whole = in_image(torch.ones(4, 1, 2, 2), (2, 4))
    assert whole.shape == (1, 1, 8, 8)
    assert whole[0, 0, 0].tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    assert whole[0, 0, 5].tolist() == [0, 0, 0, 0, 0, 1, 0, 1]


@pytest.mark.parametrize("options", SMALLS, ids=VERSIONS)
def test_recording_changes_nothing_and_fused_maps_are_equal(options):
    model = small(options)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        plain = model(images)
    with torch.no_grad(), record(model) as maps:
        assert torch.equal(model(images), plain)
    assert [m.grid for m in maps] == [(8, 12), (4, 6), (4, 6)]
    fused = model.fuse()
    with torch.no_grad(), record(fused) as again:
        fused(images)
    for a, b in zip(again, maps, strict=True):
        assert a.grid == b.grid
        torch.testing.assert_close(a.weights, b.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (48, 80), (33, 50)])
@pytest.mark.parametrize("options", SMALLS, ids=VERSIONS)
def test_features_head_and_gradients(options, size):
    model = small(options, drop_path_rate=0.1).train()
    images = torch.randn(2, 3, *size)
    model(images).square().sum().backward()
    assert [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []
    model = small(options)
    features = model.forward_features(images)
    assert features.shape[:2] == (2, model.num_features)
    assert torch.equal(model.forward_head(features), model(images))
    assert small(options, num_classes=0)(images).shape == (2, model.num_features)
    models.assert_fused_is_equal(model, images)


def test_odd_maps_keep_their_size_in_version_1_alone():
    x = torch.randn(1, 8, 5, 6)
    assert MobileViTBlock(8, 12, 1, 4)(x).shape == (1, 8, 5, 6)
    assert MobileViTv2Block(8, 12, 1)(x).shape == (1, 8, 6, 6)


def test_norms_of_version_2_see_the_whole_image():
    """A change of one pixel reaches tokens of every place in its patch."""
    block = MobileViTv2Block(8, 12, 1).eval()
    x = torch.randn(1, 8, 4, 4)
    changed = x.clone()
    changed[0, :, 0, 0] += 5
    with torch.no_grad():
        difference = (block(changed) - block(x)).abs().sum(1)
    assert (difference > 1e-6).all()
    assert isinstance(block.norm, nn.GroupNorm) and block.norm.num_groups == 1


def test_drop_path_rises_over_all_blocks():
    model = MobileViT(**SMALL | dict(drop_path_rate=0.6))
    rates = [module.p for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(img_size=0), "img_size=0 must be a positive number of pixels"),
        (dict(num_heads=5), "num_heads=5 must be at least 1 and divide dim=12"),
        (dict(depths=(1, 2)), "depths=(1, 2) must be equally long"),
        (dict(depths=(1, 2, 0, 1)), "depths=(1, 2, 0, 1) must be at least 1"),
        (dict(attn_dims=(12,) * 5), "has more entries than there are stages"),
        (dict(attn_dims=(0, 12)), "attn_dims=(0, 12) must be at least 1"),
        (dict(stem_chans=0), "stem_chans=0 must be an integer of at least 1"),
        (dict(expand_ratio=1.5), "expand_ratio=1.5 must be an integer of at least 1"),
        (dict(num_features=0), "num_features=0 must be an integer of at least 1"),
        (dict(num_classes=-1), "num_classes=-1 must be an integer of at least 0"),
        (dict(in_chans=0), "in_chans=0 must be an integer of at least 1"),
        (dict(drop_path_rate=1), "drop_path_rate=1 must be at least 0 and less than 1"),
    ],
)
def test_bad_arguments(change, message):
    models.assert_refused(lambda: MobileViT(**SMALL | change), message)


def test_bad_images_and_names():
    model = MobileViT(**SMALL)
    models.assert_refused(lambda: model(torch.randn(1, 1, 64, 64)), "images have 1 channels")
    models.assert_refused(lambda: model(torch.randn(3, 64, 64)), "images must be (batch, channels")
    models.assert_refused(
        lambda: refimpl.create_model("mobilevitv2_050"), "did you mean 'mobilevit_v2_050'"
    )
