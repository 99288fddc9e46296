"""Swin: equal to the reference outputs; windows, shifts and masks; names; maps in the image."""

from __future__ import annotations

import re

import pytest
import torch

import refimpl
from refimpl.bases.swin import (
    MASKED,
    NAMES,
    VARIANTS,
    PatchMerging,
    SwinTransformer,
    WindowAttention,
    offset_index,
    shift_mask,
)
from refimpl.lab import measure
from refimpl.viz.attention import record
from shared import models

STEM = "swin"
SMALL = dict(
    img_size=32,
    num_classes=5,
    embed_dim=12,
    depths=(2, 1),
    num_heads=(2, 3),
    window_size=4,
    patch_size=2,
)
LARGER = {"12": "_384", "7": ""}


def test_official(official_case):
    model = SwinTransformer(**official_case.kwargs).eval()
    official_case.fill(model, NAMES["timm"])
    official_case.check_params(model)
    if named := re.fullmatch(r"swin_(\w+?)_patch4_window(\d+)_\d+", official_case.name):
        with torch.device("meta"):
            ours = refimpl.create_model(f"swin_{named[1]}{LARGER[named[2]]}")
        official_case.check_params(ours)
    (images,) = official_case.inputs()
    with torch.inference_mode():
        official_case.check(model.fuse()(images))
        official_case.check(model(images))
    assert measure.macs(model, images) == official_case.data["macs"]


@pytest.mark.parametrize(
    ("variant", "params"),
    [
        ("tiny", 28_288_354),
        ("small", 49_606_258),
        ("base", 87_768_224),
        ("large", 196_532_476),
        ("base_384", 87_903_584),
    ],
)
def test_parameter_counts_of_the_paper(variant, params):
    with torch.device("meta"):
        assert measure.parameters(SwinTransformer(**VARIANTS[variant])) == params


@pytest.mark.parametrize(
    "options",
    [
        dict(img_size=224, window_size=7),
        dict(img_size=(96, 160), window_size=7),  # padded, one window high in the second stage
        dict(img_size=(56, 72), window_size=7),  # shifted along one side alone
        dict(img_size=60, window_size=4),  # odd maps
    ],
)
def test_timm_gives_the_same_output(timm, options):
    cut = dict(embed_dim=24, depths=(2, 2, 2), num_heads=(2, 2, 4), num_classes=9)
    theirs = timm.models.SwinTransformer(**cut, **options)
    size = options["img_size"]
    images = torch.randn(2, 3, *(size if isinstance(size, tuple) else (size, size)))
    models.assert_equals_peer(SwinTransformer(**cut, **options), theirs, images)


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_what_a_user_does_next(step):
    def build():
        torch.manual_seed(0)
        return models.lively(SwinTransformer(**SMALL))

    step(build, torch.randn(4, 3, 32, 32))


def test_official_names_merge_at_the_end_of_a_stage():
    """Official checkpoints hold computed buffers too; timm's merge at the head of a stage."""

    def build():
        torch.manual_seed(0)
        return SwinTransformer(**SMALL)

    def official(model):
        extra = {
            "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16),
            "layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16),
        }
        return {"model": model.state_dict() | extra}

    def timm(model):
        return {
            re.sub(r"^head", "head.fc", name.replace("s.0.downsample", "s.1.downsample")): tensor
            for name, tensor in model.state_dict().items()
        }

    models.assert_checkpoint_loads(build, official)
    models.assert_checkpoint_loads(build, timm)


def test_a_table_entry_for_each_offset():
    index = offset_index((3, 2))
    assert index.shape == (6, 6) and index.min() == 0 and index.max() == 14
    assert len(index.unique()) == 15  # (2·3 − 1)(2·2 − 1)
    assert (index.diagonal() == 7).all()
    assert index[0, 5] == 7 - 2 * 3 - 1  # the key lies two rows below and one column right


def neighbours_before_the_roll(size, window, shift):
    """By the definition: token pairs of a window that no seam of the roll separates."""
    rows, cols = size
    kept = []
    for i in range(0, rows, window[0]):
        for j in range(0, cols, window[1]):
            places = [(i + y, j + x) for y in range(window[0]) for x in range(window[1])]
            sides = [(y >= rows - shift[0], x >= cols - shift[1]) for y, x in places]
            kept.append([[a == b for b in sides] for a in sides])
    return torch.tensor(kept)


@pytest.mark.parametrize("shift", [(1, 1), (2, 1), (1, 2)])
def test_mask_separates_what_the_roll_brought_together(shift):
    mask = shift_mask((6, 9), (3, 3), shift)
    assert mask.shape == (6, 9, 9)
    assert torch.equal(mask == 0, neighbours_before_the_roll((6, 9), (3, 3), shift))
    assert set(mask.unique().tolist()) == {0.0, MASKED}


def test_without_a_shift_nothing_is_masked():
    assert not shift_mask((4, 4), (2, 2), (0, 0)).any()
    assert (shift_mask((4, 4), (2, 2), (0, 1))[0::2] == 0).all()  # left windows hold no seam


def test_a_token_reaches_its_window_and_no_further():
    layer = WindowAttention(8, 2, (8, 8), 4, shifted=True)
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    layer(x)[0, 3, 4].square().sum().backward()
    reached = x.grad[0].abs().sum(-1) > 1e-9
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    wanted[2:6, 2:6] = True  # the shifted window that holds (3, 4)
    assert torch.equal(reached, wanted)


def test_windows_come_back_to_where_they_were_cut():
    layer = WindowAttention(8, 2, (7, 9), 4, shifted=True)
    x = torch.randn(2, 7, 9, 3)
    assert torch.equal(layer.stitch(layer.cut(x)), x)
    assert layer.cut(x).shape == (2 * 2 * 3, 16, 3)


def test_merging_keeps_the_order_of_checkpoints():
    """Top left, bottom left, top right, bottom right; an odd map is padded with zeros."""
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    x = torch.arange(1.0, 10.0).view(1, 3, 3, 1)
    merged = merging(x)
    assert merged[0, 0, 0].tolist() == [1, 4, 2, 5]
    assert merged[0, 1, 1].tolist() == [9, 0, 0, 0]


@pytest.mark.parametrize(
    ("grid", "window_size"),
    [((8, 8), 4), ((8, 12), 4), ((7, 9), 4), ((3, 8), 4), ((4, 4), 4)],
)
@pytest.mark.parametrize("shifted", [False, True])
def test_maps_come_back_to_image_coordinates(grid, window_size, shifted):
    """Drawn maps say what the layer does: out = A v for the values of the whole, unrolled map."""
    layer = WindowAttention(6, 2, grid, window_size, shifted).eval()
    x = torch.randn(2, *grid, 6)
    with torch.no_grad(), record(layer) as maps:
        wanted = layer(x)
    image = maps[0].to_image()
    n = grid[0] * grid[1]
    assert image.shape == (2, 2, n, n)
    with torch.no_grad():
        v = layer.qkv(x).flatten(1, 2)[..., 12:].unflatten(-1, (2, 3)).transpose(1, 2)
        padding = layer.qkv.bias[12:].view(2, 1, 3) * (1 - image.sum(-1, keepdim=True))
        y = (image @ v + padding).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer.proj(y).view_as(wanted), wanted, rtol=1e-4, atol=1e-5)


def test_recording_changes_nothing_and_fused_maps_are_equal():
    model = SwinTransformer(**SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = model(images)
    with torch.no_grad(), record(model) as maps:
        assert torch.equal(model(images), plain)
    assert [m.layout.shift for m in maps] == [(0, 0), (2, 2), (0, 0)]
    fused = model.fuse()
    with torch.no_grad(), record(fused) as again:
        fused(images)
    for a, b in zip(again, maps, strict=True):
        assert a.layout == b.layout
        torch.testing.assert_close(a.weights, b.weights)


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (20, 36)])
def test_features_head_and_gradients(size):
    model = SwinTransformer(**SMALL | dict(img_size=size), drop_path_rate=0.1)
    images = torch.randn(2, 3, *size)
    model(images).square().sum().backward()
    assert [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []
    model.eval()
    features = model.forward_features(images)
    assert features.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 24)
    assert torch.equal(model.forward_head(features), model(images))
    bare = SwinTransformer(**SMALL | dict(img_size=size, num_classes=0))
    assert bare(images).shape == (2, 24)
    models.assert_fused_is_equal(model, images)


def test_drop_path_rises_over_all_blocks():
    model = SwinTransformer(**SMALL, drop_path_rate=0.5)
    rates = [block.drop_path.p for stage in model.layers for block in stage.blocks]
    assert rates == [0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(img_size=31), "img_size=31 is not divisible by patch_size=2"),
        (dict(num_heads=(2, 5)), "num_heads=5 must be at least 1 and divide dim=24"),
        (dict(num_heads=(2,)), "depths=(2, 1), num_heads=(2,) must be equally long"),
        (dict(depths=(2, 0)), "depths=(2, 0) must be at least 1"),
        (dict(window_size=0), "window_size=0 must be at least 1"),
        (dict(num_classes=-1), "num_classes=-1 must be an integer of at least 0"),
        (dict(in_chans=0), "in_chans=0 must be at least 1"),
        (dict(mlp_ratio=0), "mlp_ratio=0 must be above 0"),
        (dict(drop_path_rate=1), "drop_path_rate=1 must be at least 0 and less than 1"),
    ],
)
def test_bad_arguments(change, message):
    models.assert_refused(lambda: SwinTransformer(**SMALL | change), message)


def test_bad_images_and_maps():
    model = SwinTransformer(**SMALL)
    models.assert_refused(lambda: model(torch.randn(1, 3, 32, 36)), "images are 32×36 pixels")
    models.assert_refused(lambda: model(torch.randn(1, 1, 32, 32)), "images have 1 channels")
    layer = WindowAttention(8, 2, (8, 8), 4, shifted=False)
    models.assert_refused(lambda: layer(torch.randn(1, 8, 7, 8)), "the map is 8×7, this attention")
