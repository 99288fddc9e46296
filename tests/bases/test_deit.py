"""The plain ViT/DeiT: equal to the reference outputs; what positions do; bad input."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import refimpl
from refimpl import weights
from refimpl.bases.deit import VARIANTS, VisionTransformer, resample_positions, sincos_positions
from refimpl.lab import measure
from refimpl.viz.attention import record
from shared import models

STEM = "deit"
SMALL = dict(img_size=32, patch_size=8, num_classes=5, embed_dim=24, depth=2, num_heads=3)


def test_official(official_case):
    model = VisionTransformer(**official_case.kwargs).eval()
    official_case.fill(model)
    official_case.check_params(model)
    if named := re.fullmatch(r"deit_(\w+?)_patch16_224", official_case.name):
        with torch.device("meta"):
            official_case.check_params(refimpl.create_model(f"deit_{named[1]}"))
    (images,) = official_case.inputs()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        output = model(images)
    official_case.check(output)
    attention = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if "attention" in str(op)
    )
    if official_case.data["macs"]:  # timm's count leaves the attention products out
        assert (counter.get_total_flops() - attention) // 2 == official_case.data["macs"]


@pytest.mark.parametrize(
    ("variant", "params"),
    [
        ("tiny", 5_717_416),
        ("small", 22_050_664),
        ("base", 86_567_656),
        ("small_distilled", 22_436_432),
    ],
)
def test_parameter_counts_of_the_paper(variant, params):
    with torch.device("meta"):
        assert sum(p.numel() for p in VisionTransformer(**VARIANTS[variant]).parameters()) == params


def test_front_door_and_overrides():
    model = refimpl.create_model("deit_tiny_distilled", img_size=64, num_classes=7, depth=1)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(ValueError, match="deit_tiny"):
        refimpl.create_model("deit_tinny")
    with pytest.raises(ValueError, match="unknown model 'deit_huge'"):
        refimpl.create_model("deit_huge")


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("pos_embed", ["learned", "sincos", "none"])
def test_forward_is_head_of_features_and_every_parameter_learns(distilled, pos_embed):
    model = VisionTransformer(**SMALL, distilled=distilled, pos_embed=pos_embed, drop_path_rate=0.1)
    images = torch.randn(8, 3, 32, 32)  # so many that stochastic depth leaves every branch one
    model(images).square().sum().backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []
    model.eval()
    tokens = model.forward_features(images)
    assert tokens.shape == (8, 16 + 1 + distilled, 24)
    assert torch.equal(model.forward_head(tokens), model(images))


def test_distilled_output_is_the_mean_of_two_classifiers():
    model = VisionTransformer(**SMALL, distilled=True).eval()
    images = torch.randn(2, 3, 32, 32)
    one, two = model.forward_classifiers(images)
    assert not torch.allclose(one, two)
    torch.testing.assert_close(model(images), (one + two) / 2)
    with pytest.raises(ValueError, match="distilled=True"):
        VisionTransformer(**SMALL).forward_classifiers(images)


@pytest.mark.parametrize("distilled", [False, True])
def test_without_classes_the_features_come_out(distilled):
    model = VisionTransformer(**SMALL | dict(num_classes=0), distilled=distilled).eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = model.forward_features(images)
    assert model(images).shape == (2, 24)
    assert torch.equal(model(images), tokens[:, : 1 + distilled].mean(dim=1))


def test_images_need_not_be_square():
    model = VisionTransformer(**SMALL | dict(img_size=(32, 48)), pos_embed="sincos").eval()
    images = torch.randn(2, 3, 32, 48)
    with record(model) as maps:
        assert model(images).shape == (2, 5)
    assert maps[0].grid == (4, 6)
    assert maps[0].to_image().shape == (2, 3, 24, 24)
    torch.testing.assert_close(model.fuse()(images), model(images), rtol=1e-4, atol=1e-5)
    square = VisionTransformer(**SMALL | dict(img_size=(32, 32)))
    assert square.state_dict().keys() == VisionTransformer(**SMALL).state_dict().keys()


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_what_a_user_does_next(step):
    def build():
        torch.manual_seed(0)
        return models.lively(VisionTransformer(**SMALL, distilled=True))

    step(build, torch.randn(4, 3, 32, 32))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_fused_model_takes_any_batch():
    model = VisionTransformer(**SMALL, distilled=True).eval().fuse()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        traced = torch.jit.trace(model, images[:1])
        torch.testing.assert_close(traced(images), model(images))


def test_without_positions_a_blank_image_is_flat_and_tokens_are_a_set():
    model = VisionTransformer(**SMALL, pos_embed="none").eval()
    blank = model.forward_features(torch.zeros(1, 3, 32, 32))[0, 1:]
    torch.testing.assert_close(blank, blank[:1].expand_as(blank), rtol=0, atol=1e-6)
    images = torch.randn(1, 3, 32, 32)
    moved = images.roll((8, 16), (2, 3))  # whole patches
    grid = model.forward_features(images)[:, 1:].view(1, 4, 4, -1)
    torch.testing.assert_close(
        model.forward_features(moved)[:, 1:].view(1, 4, 4, -1),
        grid.roll((1, 2), (1, 2)),
        rtol=1e-4,
        atol=1e-5,
    )
    for pos_embed in ("learned", "sincos"):
        blank = (
            VisionTransformer(**SMALL, pos_embed=pos_embed)
            .eval()
            .forward_features(torch.zeros(1, 3, 32, 32))[0, 1:]
        )
        assert (blank - blank.mean(0)).norm() > 1e-2


def test_sincos_positions():
    table = sincos_positions(8, (3, 5))
    assert table.shape == (1, 15, 8)
    grid = table.view(3, 5, 8)
    assert torch.equal(grid[0, :, :4], grid[2, :, :4]) and torch.equal(
        grid[:, 0, 4:], grid[:, 3, 4:]
    )  # columns, then rows
    place = torch.tensor(2.0)
    torch.testing.assert_close(
        grid[1, 2, :4],
        torch.stack([place.sin(), (place / 100).sin(), place.cos(), (place / 100).cos()]),
    )
    model = VisionTransformer(**SMALL, pos_embed="sincos")
    assert "pos_embed" not in dict(model.named_parameters()) and "pos_embed" in model.state_dict()
    assert not model.pos_embed[:, 0].any()  # nothing on the class token


def test_resampled_positions_keep_a_constant_and_the_same_grid():
    table = torch.randn(1, 12, 4)
    assert resample_positions(table, (3, 4), (3, 4)) is table
    assert resample_positions(table, (3, 4), (5, 2)).shape == (1, 10, 4)
    torch.testing.assert_close(
        resample_positions(torch.ones(1, 12, 4), (3, 4), (5, 2)), torch.ones(1, 10, 4)
    )


@pytest.mark.parametrize("distilled", [False, True])
def test_recording_changes_nothing_and_gives_every_map(distilled):
    model = VisionTransformer(**SMALL, distilled=distilled).eval()
    images = torch.randn(2, 3, 32, 32)
    plain = model(images)
    with record(model) as maps:
        assert torch.equal(model(images), plain)
    n = 16 + 1 + distilled
    assert [m.weights.shape for m in maps] == [(2, 3, n, n)] * 2
    assert maps[0].to_image().shape == (2, 3, 16, 16)
    for m in maps:
        torch.testing.assert_close(m.weights.sum(-1), torch.ones(2, 3, n), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distilled": True},
        {"qkv_bias": False, "num_classes": 0},
        {"depth": 1, "pos_embed": "none"},
    ],
)
def test_fused_model_works_for_the_tokens_that_are_read(options):
    """Equal outputs, maps as before; other tokens cost 2 of the last block's 12 dim²."""
    model = VisionTransformer(**SMALL | options, drop_path_rate=0.3).eval()
    images = torch.randn(2, 3, 32, 32)
    fused, tokens = model.fuse(), model.layout.prefix
    with torch.no_grad(), record(model) as maps:
        wanted = model(images)
    with torch.no_grad(), record(fused) as again:
        torch.testing.assert_close(fused(images), wanted)
    assert [(m.name, m.layout) for m in again] == [(m.name, m.layout) for m in maps]
    for a, b in zip(again, maps, strict=True):
        torch.testing.assert_close(a.weights, b.weights)
    torch.testing.assert_close(
        fused.forward_features(images), model.forward_features(images)[:, :tokens]
    )
    n, dim = 16, SMALL["embed_dim"]
    # of each patch in the last block: queries, output and MLP; its queries' two products
    saved = n * 10 * dim**2 + 2 * n * (n + tokens) * dim
    assert measure.macs(model, images[:1]) - measure.macs(fused, images[:1]) == saved
    assert torch.equal(fused.fuse()(images), fused(images))


def test_drop_path_acts_in_training_alone():
    model = VisionTransformer(**SMALL, drop_path_rate=0.9)
    assert [b.drop_path.p for b in model.blocks] == [0.0, 0.9]
    images = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    ],
)
def test_checkpoints_load(wrap, tmp_path):
    source, target = (
        VisionTransformer(**SMALL, distilled=True).eval(),
        VisionTransformer(**SMALL, distilled=True).eval(),
    )
    torch.save(wrap(source.state_dict()), tmp_path / "deit.pth")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(weights.load_official(target, tmp_path / "deit.pth")(images), source(images))
    with pytest.raises(ValueError, match="dist_token"):
        weights.load_official(VisionTransformer(**SMALL), tmp_path / "deit.pth")


def test_timm_gives_the_same_output(timm):
    small = dict(img_size=64, depth=2)
    theirs = timm.create_model("deit_small_distilled_patch16_224", **small)
    ours = refimpl.create_model("deit_small_distilled", **small)
    models.assert_equals_peer(ours, theirs, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(img_size=30), "img_size=30 is not divisible by patch_size=8"),
        (dict(img_size=(32, 30)), "img_size=(32, 30) is not divisible by patch_size=8"),
        (dict(img_size=(32, 32, 3)), "img_size=(32, 32, 3) must be a positive number of pixels"),
        (dict(img_size=0), "img_size=0 must be a positive number of pixels"),
        (dict(patch_size=0), "patch_size=0 must be at least 1"),
        (dict(num_heads=5), "num_heads=5 must be at least 1 and divide dim=24"),
        (dict(depth=0), "depth=0 must be at least 1"),
        (dict(num_classes=-1), "num_classes=-1 must be an integer of at least 0"),
        (dict(in_chans=0), "in_chans=0 must be at least 1"),
        (dict(mlp_ratio=0), "mlp_ratio=0 must be above 0"),
        (dict(drop_path_rate=1.0), "drop_path_rate=1.0 must be at least 0 and less than 1"),
        (
            dict(pos_embed="rotary"),
            "pos_embed='rotary' is not known; there are 'learned', 'sincos'",
        ),
        (dict(pos_embed="sincos", embed_dim=30), "embed_dim=30 must be a positive multiple of 4"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        VisionTransformer(**SMALL | change)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), "got 3 dimensions"),
        ((1, 1, 32, 32), "1 channels"),
        ((1, 3, 48, 32), "48×32 pixels"),
    ],
)
def test_bad_images(shape, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**SMALL)(torch.randn(shape))


def test_whole_numbers_are_refused_as_images():
    with pytest.raises(ValueError, match="torch.uint8.*images.float"):
        VisionTransformer(**SMALL)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
