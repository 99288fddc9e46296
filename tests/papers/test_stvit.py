"""STViT: equal to the reference outputs; centres, key windows, recovery; what the paper claims."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import refimpl
from refimpl.bases import swin
from refimpl.lab import measure
from refimpl.layers import CrossAttention
from refimpl.papers.stvit import (
    CrossBlock,
    DetectionStage,
    SemanticStage,
    STViT,
    STViTR,
    cross_macs,
    key_windows,
    semantic_tokens,
    spatial_pool,
)
from refimpl.viz.attention import record
from shared import models

STEM = "stvit"
OURS = {"use_global": "learned_tokens", "sample_window_size": "sample_size"}
SMALL = dict(img_size=32, patch_size=4, num_classes=5, embed_dim=24, depth=5, num_heads=3)
SMALL |= dict(dense_depth=2, sample_size=2)
SMALL_R = dict(img_size=64, num_classes=5, embed_dim=8, depths=(1, 1, 6, 1), num_heads=(1, 2, 2, 2))
SMALL_R |= dict(window_size=2, sample_size=1)


def build_block(dim, num_heads, qkv_bias=True, shortcut=True, **windows):
    return CrossBlock(dim, CrossAttention(dim, num_heads), shortcut=shortcut)


def build_stage(
    input_resolution, window_size, sample_window_size, embed_dim, depth, num_heads, **k
):
    sizes = (embed_dim, num_heads, tuple(input_resolution), window_size, 4.0)
    stage = swin.Stage(*sizes, [0.0] * depth, merge=False)
    options = {OURS.get(key, key): value for key, value in k.items()}
    return SemanticStage(stage, sample_window_size, **options)


def first_layer(block, tokens, window, sample_size):
    """The first generation layer alone: the second hands its queries on."""
    side = int(tokens.shape[1] ** 0.5)
    image = tokens.unflatten(1, (side, side))
    return semantic_tokens(image, block, lambda queries, _: queries, window, sample_size)


def test_official(official_case):
    name = official_case.name
    kwargs = official_case.kwargs
    inputs = official_case.inputs()
    if name == "key_windows":
        official_case.check(key_windows(*inputs, (7, 7)))
        return
    if name == "spatial_pool":
        official_case.check(spatial_pool(*inputs, **{"sample_size": 3}))
        return
    if name.startswith("swin_"):
        model = STViTR(**{OURS.get(key, key): value for key, value in kwargs.items()})
        forward = model
    elif name.startswith("semantic_stage"):
        model = build_stage(**kwargs)

        def forward(x):
            return model(x.unflatten(1, model.grid)).flatten(1, 2)
    else:
        model = forward = build_block(**kwargs)
        if name.startswith("semantic_attention"):
            side = kwargs["window_size"]

            def forward(x):
                return first_layer(model, x, (side, side), kwargs["sample_window_size"])

    official_case.fill(model)
    official_case.check_params(model)
    model.eval()
    with torch.inference_mode():
        official_case.check(forward(*inputs))
    assert measure.macs(forward, *inputs) == official_case.data["macs"]


@pytest.mark.parametrize(
    ("name", "options", "params"),
    [
        ("stvit_r_swin_tiny", {}, 28_320_214),
        ("stvit_r_swin_small", {}, 49_625_518),  # the official log says the same
        ("stvit_r_swin_base", {}, 87_812_336),
        ("stvit_r_swin_tiny", {"learned_tokens": True}, 28_334_038),
    ],
)
def test_parameter_counts_of_the_logs(name, options, params):
    with torch.device("meta"):
        assert measure.parameters(refimpl.create_model(name, **options)) == params


def macs_of(name):
    with torch.device("meta"):
        model = refimpl.create_model(name)
        return measure.macs(model, torch.empty(1, 3, 224, 224))


@pytest.mark.parametrize(
    ("name", "dense", "least", "most"),
    [
        ("stvit_deit_tiny", "deit_tiny", 0.55, 0.62),
        ("stvit_deit_small", "deit_small", 0.55, 0.62),
        ("stvit_deit_base", "deit_base", 0.55, 0.62),
        ("stvit_r_swin_tiny", "swin_tiny", 0.19, 0.21),
        ("stvit_r_swin_small", "swin_small", 0.33, 0.35),
        ("stvit_r_swin_base", "swin_base", 0.33, 0.35),
    ],
)
def test_share_of_multiply_adds_that_is_saved(name, dense, least, most):
    assert least < 1 - macs_of(name) / macs_of(dense) < most


@pytest.mark.parametrize(("k", "m"), [(1, 1), (16, 212), (196, 36)])
def test_cross_macs_are_what_is_counted(k, m):
    block = CrossBlock(24, CrossAttention(24, 3))
    counted = measure.macs(block, torch.randn(1, k, 24), torch.randn(1, m, 24))
    assert counted == cross_macs(k, m, 24)


# ---------------------------------------------------------------- properties of the idea


def test_centres_do_not_depend_on_the_order_of_what_they_ask():
    block = models.lively(build_block(24, 3))
    queries, others = torch.randn(2, 4, 24), torch.randn(2, 9, 24)
    order = torch.randperm(9)
    with torch.no_grad():
        wanted = block(queries, others)
        torch.testing.assert_close(block(queries, others[:, order]), wanted)
        torch.testing.assert_close(block(queries[:, [2, 0]], others), wanted[:, [2, 0]])


def test_equal_seeds_stay_equal():
    """Attention treats equal queries equally: centres that start alike end alike."""
    block = models.lively(build_block(24, 3))
    seeds = torch.randn(1, 1, 24).expand(1, 4, 24)
    with torch.no_grad():
        answers = block(seeds, torch.randn(1, 9, 24))
    assert torch.allclose(answers, answers[:, :1].expand_as(answers), atol=1e-6)


def test_one_step_of_attention_is_a_soft_step_of_k_means():
    """With scores −‖q − x‖²·β and growing β, centres move to the means of their groups."""
    points = torch.cat([torch.randn(20, 2) + 4, torch.randn(30, 2) - 4]).double()
    centres = torch.tensor([[3.0, 3.0], [-3.0, -3.0]]).double()
    nearest = torch.cdist(centres, points).argmin(0)
    means = torch.stack([points[nearest == k].mean(0) for k in range(2)])
    # ‖q − x‖² = ‖q‖² − 2⟨q, x⟩ + ‖x‖²; ‖q‖² falls out of the softmax, ‖x‖² is a bias of the key
    logits = 20 * (2 * centres @ points.T - points.square().sum(1))
    assert (logits.T.softmax(-1).argmax(-1) == nearest).all()
    weights = logits.T.softmax(-1)  # each point's share in each centre
    soft = weights.T @ points / weights.sum(0)[:, None]
    torch.testing.assert_close(soft, means)


def test_seeds_are_maxima_of_overlapping_cells():
    """stvit.d1: the mean of a cell, the usual reading of "pooling", is another token."""
    windows = torch.randn(3, 5, 7, 7)
    seeds = spatial_pool(windows, 3)
    assert seeds.shape == (3, 9, 5)
    for i, rows in enumerate([slice(0, 3), slice(2, 5), slice(4, 7)]):
        for j, cols in enumerate([slice(0, 3), slice(2, 5), slice(4, 7)]):
            assert torch.equal(seeds[:, 3 * i + j], windows[:, :, rows, cols].amax((2, 3)))
    means = F.adaptive_avg_pool2d(windows, 3).flatten(2).transpose(1, 2)
    assert models.error(means, seeds) > 0.5


@pytest.mark.parametrize("size", [7, 14, 21, 28, 56])
def test_key_windows_cover_the_image_and_their_own_window(size):
    """stvit.d2: kernel 10 and stride 4 at 14 tokens, as released; any multiple of 7 beside it."""
    image = torch.arange(size * size).view(1, size, size, 1)
    windows = key_windows(image, (7, 7)).squeeze(-1)
    count = size // 7
    assert len(windows) == count**2
    assert windows.unique().numel() == size * size
    for i in range(count):
        for j in range(count):
            own = image[0, 7 * i : 7 * i + 7, 7 * j : 7 * j + 7].flatten()
            assert torch.isin(own, windows[i * count + j]).all()
    if size == 14:
        unfolded = image.unfold(1, 10, 4).unfold(2, 10, 4).reshape(4, 100)
        assert torch.equal(windows, unfolded)


def test_the_classifier_takes_other_sizes():
    model = STViTR(**SMALL_R | dict(img_size=(64, 96))).eval()
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 5)


def test_without_the_shortcut_tokens_start_at_nothing():
    """stvit.d3: the released first layer is scaled by 10⁻⁵ and keeps no seed; the norm rescales."""
    sizes = {}
    for shortcut in (False, True):
        torch.manual_seed(0)
        stage = SemanticStage(
            swin.Stage(8, 2, (4, 4), 2, 4.0, [0.0] * 6, False), 1, shortcut=shortcut
        )
        first = stage.blocks[1]
        image = torch.randn(1, 4, 4, 8)
        with torch.no_grad():
            tokens = semantic_tokens(image, first, lambda queries, _: queries, (2, 2), 1)
            sizes[shortcut] = tokens.norm().item()
            assert stage.blocks[2].norm1(tokens).norm() > (0.01 if shortcut else 0)
    assert sizes[False] < 1e-3 * sizes[True]


def test_released_models_have_nine_tokens_a_window():
    """stvit.d4: 36 for 14×14, not sixteen; the parameter count is the same for any number."""
    model = refimpl.create_model("stvit_r_swin_tiny")
    stage = model.layers[2]
    assert stage.counts == (2, 2) and stage.centres == (6, 6)
    sixteen = refimpl.create_model("stvit_r_swin_tiny", sample_size=2)
    assert measure.parameters(model) == measure.parameters(sixteen)


def test_only_semantic_blocks_have_layer_scales():
    """stvit.d5: the logs say that layer scale is on; Swin's own blocks have none."""
    model = STViTR(**SMALL_R)
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters() if "scale" in name}
    assert owners == {f"layers.2.blocks.{i}" for i in range(1, 6)}


def test_the_log_counts_the_third_stage_as_nothing():
    """stvit.d6: 2.31 GFLOPs in the log of Swin-S are, within a tenth, all but the third stage."""
    with torch.device("meta"):
        model = refimpl.create_model("stvit_r_swin_small")
        stage = measure.macs(model.layers[2].blocks[0], torch.empty(1, 14, 14, 384))
        whole = measure.macs(model, torch.empty(1, 3, 224, 224))
        model.layers[2].blocks = torch.nn.ModuleList()
        rest = measure.macs(model, torch.empty(1, 3, 224, 224))
    assert whole / 1e9 == pytest.approx(5.80, abs=0.01)
    assert rest / 1e9 == pytest.approx(2.31, rel=0.1)
    assert whole - rest > 3 * stage


def test_only_the_first_and_the_last_block_of_a_group_write_to_the_image():
    stage = models.lively(build_stage([4, 4], 2, 1, 8, 6, 2))
    with torch.no_grad():
        stage.blocks[5].layer_scale_1.zero_()
        stage.blocks[5].layer_scale_2.zero_()
        x = torch.randn(2, 4, 4, 8)
        assert torch.equal(stage(x), stage.blocks[0](x))


# ---------------------------------------------------------------- detection form


def detection_stage(grid):
    torch.manual_seed(0)
    return models.lively(DetectionStage(swin.Stage(8, 2, grid, 7, 4.0, [0.0] * 6, False)))


@pytest.mark.parametrize("grid", [(14, 14), (13, 20), (7, 30)])
def test_detection_form_takes_maps_of_any_size(grid):
    stage = detection_stage(grid)
    x = torch.randn(2, *grid, 8)
    with torch.no_grad():
        both = stage(x)
        assert both.shape == x.shape and both.isfinite().all()
        torch.testing.assert_close(stage(x[1:]), both[1:], rtol=1e-4, atol=1e-5)


def test_recovery_of_the_detection_form_looks_nine_windows_far():
    """Image tokens ask 27×27 semantic tokens: their window's, and four windows on either side."""
    stage = detection_stage((7, 7 * 11))
    tokens = torch.randn(1, 9 * 11, 8, requires_grad=True)
    image = torch.randn(1, 7, 7 * 11, 8)
    stage.recover(image, tokens, stage.blocks[5])[0, :, :7].square().sum().backward()
    reached = tokens.grad.abs().sum(-1).view(3, 33) > 0
    assert reached[:, :15].all() and not reached[:, 15:].any()


def test_mask_of_the_detection_form_covers_a_corner_or_everything():
    """stvit.d7: rows and columns that pad the map are masked where both meet alone; and where the
    map is not padded all keys are, so that zeros beyond the border count like tokens."""
    block_of = {grid: detection_stage((grid, grid)) for grid in (13, 14)}
    tokens = torch.randn(1, 36, 8)
    with torch.no_grad():
        for grid, stage in block_of.items():
            image = torch.randn(1, grid, grid, 8)
            block = stage.blocks[5]
            found = stage.recover(image, tokens, block)
            seen = tokens[:, :35] if grid == 13 else torch.cat([tokens, torch.zeros(1, 693, 8)], 1)
            wanted = block(image.flatten(1, 2), seen).view_as(found)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- what holds for every model


@pytest.mark.parametrize("kind", ["deit", "swin"])
@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_what_a_user_does_next(step, kind):
    def build():
        torch.manual_seed(0)
        return models.lively(STViT(**SMALL) if kind == "deit" else STViTR(**SMALL_R))

    step(build, torch.randn(4, 3, 32, 32) if kind == "deit" else torch.randn(4, 3, 64, 64))


@pytest.mark.parametrize("kind", ["deit", "swin"])
def test_features_head_gradients_and_fused_form(kind):
    model = STViT(**SMALL) if kind == "deit" else STViTR(**SMALL_R, learned_tokens=True)
    side = 32 if kind == "deit" else 64
    models.lively(model)
    images = torch.randn(2, 3, side, side)
    features = model.forward_features(images)
    assert features.shape == ((2, 4, 24) if kind == "deit" else (2, 2, 2, 64))
    assert torch.equal(model.forward_head(features), model(images))
    model.train()(images).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    models.assert_fused_is_equal(model.eval(), images)


@pytest.mark.parametrize("name", ["stvit_deit_base", "stvit_r_swin_base"])
def test_fused_models_of_base_size_are_equal(name):
    """What the chapter leaves to this test, as they are too large to fill in passing."""
    model = models.lively(refimpl.create_model(name, num_classes=7))
    models.assert_fused_is_equal(model, torch.randn(1, 3, 224, 224))


def test_recorded_maps_lie_on_the_image():
    model = models.lively(STViTR(**SMALL_R | dict(img_size=64)))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = model(images)
        with record(model) as maps:
            assert torch.equal(model(images), plain)
    found = {m.name: m for m in maps}
    recovery = found["layers.2.blocks.5.attn"]
    assert recovery.weights.shape == (2, 2, 16, 4)  # 4×4 image tokens ask 2×2 centres
    assert recovery.to_image().shape == (2, 2, 16, 16)
    torch.testing.assert_close(recovery.to_image().sum(-1), torch.ones(2, 2, 16))
    assert found["layers.2.blocks.1.attn"].weights.shape == (8, 2, 1, 10)  # a seed, a 3×3 window
    assert found["layers.2.blocks.3.attn"].to_image().shape == (2, 2, 4, 4)


def test_official_checkpoints_load():
    def build():
        torch.manual_seed(0)
        return STViTR(**SMALL_R, learned_tokens=True)

    def official(model):
        state = {}
        for name, tensor in model.state_dict().items():
            name = name.replace("learned_tokens", "semantic_token2")
            if name.startswith("patch_embed."):
                name = name.replace("patch_embed.", "patch_embed.proj.")
                name = name.replace(".conv.", ".c.").replace(".norm.", ".bn.")
            state[name] = tensor
        state["layers.2.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4)
        return {"model": state}

    models.assert_checkpoint_loads(build, official)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (STViT, dict(sample_size=9), "sample_size=9 must be at least 1 and at most 8"),
        (STViT, dict(sample_size=0), "sample_size=0 must be at least 1"),
        (STViT, dict(dense_depth=4), "depth=5 must be at least 6"),
        (STViT, dict(dense_depth=-1), "dense_depth=-1 must be at least 0"),
        (STViT, dict(img_size=30), "img_size=30 is not divisible by patch_size=4"),
        (STViT, dict(num_heads=5), "num_heads=5 must be at least 1 and divide dim=24"),
        (STViTR, dict(sample_size=3), "sample_size=3 must be at least 1 and at most 2"),
        (STViTR, dict(window_size=3), "windows of 3×3 must divide the grid of 4×4 tokens"),
        (STViTR, dict(depths=(1, 1, 5, 1)), "depth=5 must be a positive multiple of 6"),
        (STViTR, dict(depths=(1, 6), num_heads=(1, 2)), "stages=2 must be at least 3"),
        (STViTR, dict(embed_dim=9), "embed_dim=9 must be a positive multiple of 2"),
        (STViTR, dict(drop_path_rate=1.5), "drop_path_rate=1.5 must be at least 0"),
    ],
)
def test_bad_arguments(kind, change, message):
    small = SMALL if kind is STViT else SMALL_R
    models.assert_refused(lambda: kind(**small | change), message)


def test_bad_images_and_names():
    model = STViTR(**SMALL_R)
    models.assert_refused(lambda: model(torch.randn(1, 3, 64, 60)), "images are 64×60 pixels")
    models.assert_refused(
        lambda: refimpl.create_model("stvit_deit_tiny", backbone="resnet"), "backbone='resnet'"
    )
