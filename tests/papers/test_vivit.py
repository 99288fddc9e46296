"""Optimizing ViViT: networks and resizing equal to the official code; what freezing saves, and what
the second stage starts from. The parts of `bases/video.py` are tested here, too."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

import refimpl
from refimpl import weights
from refimpl.bases import video
from refimpl.bases.deit import VisionTransformer
from refimpl.bases.video import LayerDrop, from_scenic, inflate, resize_grid, resize_time
from refimpl.lab import measure
from refimpl.papers.vivit import (
    VARIANTS,
    Adapter,
    ViViT,
    forward_macs,
    freeze_space,
    second_stage,
    start_from_image,
    step_macs,
    with_frames,
)
from refimpl.viz import attention
from shared import models

STEM = "vivit"
SMALL = dict(
    num_frames=4,
    img_size=16,
    num_classes=5,
    patch_size=8,
    embed_dim=24,
    depth=2,
    temporal_depth=1,
    num_heads=3,
)


def build(**options):
    torch.manual_seed(0)
    return models.lively(ViViT(**SMALL | options))


def clips(model, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, model.embed.num_frames, model.in_chans, *model.embed.img_size)


# ---- Equal to the official code


def options_of(kwargs):
    """Our constructor's arguments for scenic's, as the files and the table of counts name them."""
    side, _, depth = kwargs.get("patch", (16, 16, 2))
    return dict(
        num_frames=kwargs["frames"],
        img_size=kwargs["size"],
        num_classes=kwargs["classes"],
        tubelet_size=depth,
        patch_size=side,
        embed_dim=kwargs["hidden"],
        depth=kwargs["ls"] if "ls" in kwargs else kwargs["layers"],
        temporal_depth=kwargs.get("lt", 0),
        num_heads=kwargs["heads"],
        mlp_ratio=kwargs["mlp"] / kwargs["hidden"],
    )


def check_network(case):
    with torch.device("meta"):
        model = ViViT(**options_of(case.kwargs)).eval()
    case.fill(model)
    case.check_params(model)
    (given,) = case.inputs()
    if case.data.get("macs"):
        assert sum(forward_macs(model).values()) * len(given) == case.data["macs"]
    found = {}
    with torch.inference_mode():
        found["output.prelogits"] = model.forward_features(given)
        found["output.logits"] = model.forward_head(found["output.prelogits"])
        if "output.spatial_tokens" in case.data["outputs"]:
            found["output.spatial_tokens"] = model.forward_spatial(given)
    case.check(found)


def check_counts(case):
    for row in case.data["rows"]:
        with torch.device("meta"):
            model = ViViT(**options_of(row))
        macs = forward_macs(model)
        found = {"params": measure.parameters(model), "macs": sum(macs.values())}
        if row["kind"] == "fe":
            found |= {
                "params_spatial": measure.parameters(model.spatial) - row["hidden"],
                "params_temporal": measure.parameters(model.temporal) - row["hidden"],
                "params_embedding": measure.parameters(model.embed),
                "params_head": measure.parameters(model.head),
                "macs_spatial": macs["spatial"],
                "macs_temporal": macs["temporal"],
            }
        assert found == {name: row[name] for name in found}, row["name"]


def check_inflation(case):
    kernel = torch.from_numpy(case.recorded("kernel2d"))
    found = {}
    for name in case.data["outputs"]:
        how, frames = re.fullmatch(r"(\w+)_frame_initializer_t(\d+)", name).groups()
        how = {"average_arp": "arp"}.get(how, how)
        found[name] = inflate(kernel, int(frames), how)
    case.check(found)


def check_resizing(case):
    table = torch.from_numpy(case.recorded("pos_embedding_without_cls"))
    positions = torch.cat([torch.ones(1, table.shape[1]), table])[None]
    found = {}
    for name in case.data["outputs"]:
        n = int(name.removeprefix("to_"))
        if case.name.startswith("temporal"):
            resized = resize_time(positions, n)
        else:
            old, new = (round(count**0.5) for count in (len(table), n))
            resized = resize_grid(positions, (old, old), (new, new))
        assert torch.equal(resized[0, 0], torch.ones(table.shape[1]))
        found[name] = resized[0, 1:]
    case.check(found, rtol=1e-6)


def test_official(official_case):
    special = {
        "counts": check_counts,
        "kernel_inflation": check_inflation,
        "temporal_posemb": check_resizing,
        "spatial_posemb": check_resizing,
    }
    found = [check for start, check in special.items() if official_case.name.startswith(start)]
    (found or [check_network])[0](official_case)


def scenic_arrays(model):
    """A model's weights under scenic's paths, in Flax's layouts."""
    state = model.state_dict()
    heads, d = model.spatial.blocks[0].attn.num_heads, model.head.in_features
    rest = [
        ("temporal.cls_token", "cls_TemporalTransformer"),
        ("spatial.cls_token", "cls_SpatialTransformer"),
        ("embed.", "embedding/"),
        ("spatial.", "SpatialTransformer/"),
        ("temporal.", "TemporalTransformer/"),
        ("pos_embed", "posembed_input/pos_embedding"),
        ("blocks.", "encoderblock_"),
        (".norm1.", "/LayerNorm_0/"),
        (".norm2.", "/LayerNorm_1/"),
        (".attn.", "/MultiHeadDotProductAttention_0/"),
        (".mlp.fc1.", "/MlpBlock_0/Dense_0/"),
        (".mlp.fc2.", "/MlpBlock_0/Dense_1/"),
        ("norm.", "encoder_norm/"),
        ("head.", "output_projection/"),
        (".", "/"),
    ]
    arrays = {}
    for name, tensor in state.items():
        path = name
        for ours, theirs in rest:
            path = path.replace(ours, theirs)
        array = tensor.numpy()
        if path.endswith("weight") and array.ndim == 1:
            path = path.replace("weight", "scale")
        elif path == "embedding/weight":
            array = array[0].transpose(2, 3, 4, 1, 0)
        elif path.endswith("weight"):
            array = array.T
            if re.search("/(query|key|value)/", path):
                array = array.reshape(d, heads, -1)
            elif "/out/" in path:
                array = array.reshape(heads, -1, d)
        elif re.search("/(query|key|value)/bias", path):
            array = array.reshape(heads, -1)
        arrays[path.replace("weight", "kernel")] = array
    return arrays


def test_scenic_checkpoints_load():
    models.assert_checkpoint_loads(build, lambda model: from_scenic(scenic_arrays(model)))


# ---- The network


def test_every_slice_has_the_same_weights_and_the_spatial_encoder_knows_no_time():
    model = build()
    given = clips(model)
    swapped = torch.cat([given[:, 2:], given[:, :2]], dim=1)
    with torch.inference_mode():
        tokens, other = model.forward_spatial(given), model.forward_spatial(swapped)
    torch.testing.assert_close(tokens, other.flip(1))


def test_without_temporal_positions_the_order_of_slices_is_lost():
    model = build()
    given = clips(model)
    swapped = torch.cat([given[:, 2:], given[:, :2]], dim=1)
    with torch.inference_mode():
        assert models.error(model(swapped), model(given)) > 1e-3
        model.temporal.pos_embed[:, 1:] = 0
        assert models.error(model(swapped), model(given)) < 1e-5


def test_a_tubelet_is_a_piece_of_a_convolution():
    model = build(num_frames=6, tubelet_size=3, img_size=(8, 24), in_chans=2)
    given = clips(model)
    embed = model.embed
    with torch.inference_mode():
        wanted = nn.functional.conv3d(
            given.transpose(1, 2), embed.weight[0], embed.bias, stride=embed.weight.shape[3:]
        )
        assert embed.grid == (2, 1, 3)
        torch.testing.assert_close(embed(given), wanted.flatten(3).permute(0, 2, 3, 1))


@pytest.mark.parametrize("temporal_depth", [0, 2])
def test_multiply_adds_are_those_that_are_counted(temporal_depth):
    model = build(temporal_depth=temporal_depth)
    assert sum(forward_macs(model).values()) == measure.macs(model, clips(model, 1))
    if temporal_depth:
        longer = second_stage(model, 8)
        counted = measure.macs(longer, clips(longer, 1))
        assert sum(forward_macs(longer).values()) == counted


def test_gelu_is_that_by_tanh():
    acts = [m for m in build().modules() if isinstance(m, nn.GELU)]
    assert {act.approximate for act in acts} == {"tanh"}
    norms = [m for m in build().modules() if isinstance(m, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}


def test_dropped_branches_are_not_scaled_up():
    drop = LayerDrop(0.5).train()
    x = torch.ones(400, 2, 3)
    y = drop(x)
    assert set(y.unique().tolist()) == {0.0, 1.0} and 0.4 < y.mean() < 0.6
    assert torch.equal(drop.eval()(x), x)


def test_the_large_models_have_twenty_four_temporal_layers_on_kinetics_alone():
    layers = {}
    for name in VARIANTS:
        model = models.on_meta(f"vivit_{name}")
        layers[name] = 0 if model.temporal is None else len(model.temporal.blocks)
    assert {name for name, count in layers.items() if count == 24} == {
        "fe_l16x2_k400",
        "fe_l16x2_k600",
    }
    assert {layers[name] for name in ("fe_b16x2_k400", "fe_l16x2_ek100", "fe_l16x2_ssv2")} == {4}


def test_as_the_constructor_starts_it_all_clips_have_the_same_logits():
    model = ViViT(**SMALL).eval()
    assert not model(clips(model)).any()


def assert_fused_is_equal(model, given):
    """As `models.assert_fused_is_equal`, whose bits hang on a copy made in inference mode here."""
    before = copy.deepcopy(model)
    fused = model.fuse()
    with torch.no_grad():
        wanted, got = model(given), fused(given)
        assert models.error(got, wanted) < 1e-5
        assert torch.equal(fused.fuse()(given), got)
    models.assert_same_tensors(model, before)
    return fused


@pytest.mark.parametrize(
    "options", [{}, dict(temporal_depth=0), dict(num_classes=0), dict(img_size=(8, 24))]
)
def test_fused_model_is_equal(options):
    model = build(**options)
    fused = assert_fused_is_equal(model, clips(model))
    with attention.record(fused) as maps, torch.inference_mode():
        fused(clips(model))
    assert len(maps) == sum(len(e.blocks) for e in (model.spatial, model.temporal) if e)


def test_recording_attention_changes_no_bit():
    model = build()
    with torch.inference_mode():
        plain = model(clips(model))
        with attention.record(model) as maps:
            assert torch.equal(model(clips(model)), plain)
    assert [tuple(m.weights.shape) for m in maps] == [(4, 3, 5, 5), (4, 3, 5, 5), (2, 3, 3, 3)]


def test_blocks_are_dropped_in_training_alone():
    model = build(drop_path_rate=0.5)
    given = clips(model)
    with torch.inference_mode():
        assert torch.equal(model(given), build()(given))
        model.train()
        first, *others = [model(given) for _ in range(8)]
        assert not all(torch.equal(first, other) for other in others)


def test_without_classes_the_class_token_comes_out():
    model = build(num_classes=0)
    with torch.inference_mode():
        assert model(clips(model)).shape == (2, 24)
        assert torch.equal(model(clips(model)), model.forward_features(clips(model)))


# ---- From images to clips


def test_the_official_random_start_puts_the_kernel_into_one_column_of_every_frame():
    """scenic's `central_frame_initializer` sets `init[:, w // 2]` of (w, t, h, in, out)-like axes:
    it counts the frames and indexes the width. `inflate` means the frame."""
    kernel = torch.randn(6, 3, 4, 4)
    official = torch.zeros(2, 4, 4, 3, 6)  # t, h, w, in, out
    official[:, :, 2 // 2] = kernel.permute(2, 3, 1, 0)[:, 2 // 2]
    per_frame = official.abs().sum((1, 3, 4))  # t, w
    assert (per_frame[:, 1] > 0).all() and not per_frame[:, [0, 2, 3]].any()
    ours = inflate(kernel, 2)
    assert not ours[:, :, 0].any() and torch.equal(ours[:, :, 1], kernel)


@pytest.mark.parametrize("how", ["central", "average"])
def test_a_still_clip_is_seen_as_the_image_model_saw_the_image(how):
    torch.manual_seed(3)
    sizes = dict(img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=4)
    image_model = models.lively(VisionTransformer(**sizes))
    for block in image_model.blocks:
        block.mlp.act = nn.GELU(approximate="tanh")
    model = start_from_image(build(), image_model, how)
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        wanted = image_model.forward_features(images)[:, 0]
        tokens = model.forward_spatial(images[:, None].expand(-1, 4, -1, -1, -1))
    torch.testing.assert_close(tokens, wanted[:, None].expand(-1, 2, -1))


def test_a_larger_image_model_s_positions_are_resized():
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=4)
    image_model = models.lively(VisionTransformer(**sizes))
    model = start_from_image(build(), image_model)
    corners = image_model.pos_embed[:, [0, 1, 4, 13, 16]]
    assert torch.equal(model.spatial.pos_embed, corners)


def test_rank_pooling_ignores_what_stands_still():
    kernel = torch.randn(2, 3, 4, 4)
    assert inflate(kernel, 5, "arp").sum(2).abs().max() < 1e-6


# ---- Freezing, and the second stage


def saved(model):
    """Bytes that a training step keeps, parameters and clips left out."""
    given = clips(model)
    return measure.saved_for_backward(lambda: model(given).sum(), [*model.parameters(), given])


def test_what_is_frozen_gets_no_gradient_and_the_rest_does():
    model = second_stage(build(), 8).train()
    model(clips(model)).square().sum().backward()
    held = [n for n, p in model.named_parameters() if p.grad is None]
    assert {name.partition(".")[0] for name in held} == {"embed", "spatial"}
    moving = {"temporal", "adapter", "head"}
    assert {
        n.partition(".")[0] for n, p in model.named_parameters() if p.grad is not None
    } == moving
    assert not any(p.requires_grad for n, p in model.named_parameters() if n in held)


def test_a_frozen_spatial_encoder_keeps_nothing_for_the_backward_pass():
    model = freeze_space(build()).train()
    given = clips(model).requires_grad_()
    with torch.enable_grad():
        kept = measure.saved_for_backward(
            lambda: model.embed(given).detach(), [*model.parameters(), given]
        )
        assert kept == 0 and not model.forward_spatial(given).requires_grad


def test_saved_bytes_grow_with_frames_where_space_trains_and_hardly_where_it_is_frozen():
    base = build()
    full, frozen = [], []
    for frames in (4, 8, 16):
        full.append(saved(with_frames(base, frames)))
        frozen.append(saved(second_stage(base, frames)))
    steps = [(full[2] - full[1]) / 8, (full[1] - full[0]) / 4]
    assert steps[0] == pytest.approx(steps[1], rel=0.1)
    assert (frozen[2] - frozen[0]) < 0.2 * (full[2] - full[0])


def test_freezing_weights_behind_a_trainable_part_saves_no_activation_of_its_output():
    """A trainable embedding before a frozen encoder makes the gradient pass through all of it."""
    half, whole = build(), build()
    half.spatial.requires_grad_(False)
    freeze_space(whole)
    assert saved(half) > 3 * saved(whole)


def test_frozen_space_stays_in_evaluation_mode_and_trains_no_more():
    model = second_stage(build(drop_path_rate=0.5), 4, adapter=False).train()
    assert model.training and model.temporal.training and not model.spatial.training
    given = clips(model)
    assert torch.equal(model.forward_spatial(given), model.forward_spatial(given))
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    model(given).square().sum().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {name.partition(".")[0] for name in moved} == {"temporal", "head"}


def test_the_second_stage_starts_exactly_from_the_first():
    first = build()
    given = clips(first)
    second = second_stage(first, 4)
    nn.init.zeros_(second.adapter.up.weight)
    with torch.inference_mode():
        assert torch.equal(second(given), first(given))
    fresh = Adapter(24)
    assert not fresh(torch.randn(3, 24)).any()
    assert not first.frozen and all(p.requires_grad for p in first.parameters())


def test_a_longer_model_has_the_same_weights_but_for_the_positions_of_time():
    model = build()
    longer = with_frames(model, 12)
    state, other = model.state_dict(), longer.state_dict()
    changed = {name for name in state if not torch.equal(state[name], other[name])}
    assert changed == {"temporal.pos_embed"}
    ours, stretched = model.temporal.pos_embed, longer.temporal.pos_embed
    assert torch.equal(stretched[:, [0, 1, 6]], ours)
    torch.testing.assert_close(stretched[:, 3], 0.6 * ours[:, 1] + 0.4 * ours[:, 2])
    with torch.inference_mode():
        assert longer(clips(longer)).shape == (2, 5)
    with attention.record(longer) as maps, torch.inference_mode():
        longer(clips(longer))
    assert maps[-1].layout.grid == (1, 6)


def test_without_its_time_the_second_stage_starts_as_the_constructor_does():
    first = build()
    torch.manual_seed(4)
    second = second_stage(first, 8, adapter=False, keep_time=False)
    assert not second.head.weight.any() and not second.temporal.cls_token.any()
    assert (second.temporal.norm.weight == 1).all()
    assert 0.015 < second.temporal.pos_embed.std() < 0.025
    models.assert_same_tensors(second.spatial, first.spatial)
    assert not second.spatial.cls_token.requires_grad and second.temporal.cls_token.requires_grad


def test_a_frozen_step_of_the_base_model_costs_a_third():
    full = models.on_meta("vivit_fe_b16x2_k400")
    frozen = freeze_space(models.on_meta("vivit_fe_b16x2_k400"))
    assert step_macs(full) == 3 * sum(forward_macs(full).values())
    assert step_macs(frozen) / step_macs(full) == pytest.approx(0.334, abs=5e-4)
    macs = forward_macs(full)
    assert macs["spatial"] / sum(macs.values()) == pytest.approx(0.985, abs=5e-4)


def test_the_adapter_is_ours_and_small():
    """No official code gives its form: two layers, a quarter of the width, per slice."""
    adapter = Adapter(768)
    assert measure.parameters(adapter) == 2 * 768 * 192 + 192 + 768 == 295_872


@pytest.mark.parametrize(
    "step", [models.autocast_runs_everywhere, models.model_and_fused_model_survive_copies]
)
def test_the_unfactorised_model_does_what_a_user_does_next(step):
    model = build(temporal_depth=0)
    step(lambda: build(temporal_depth=0), clips(model, 4))


def test_a_frozen_model_is_exported_copied_and_fused_like_others():
    def frozen():
        model = second_stage(build(), 4)
        nn.init.normal_(model.adapter.up.weight, std=0.3)
        return model

    given = clips(frozen(), 4)
    models.traced_and_exported_take_any_batch(frozen, given)
    models.model_and_fused_model_survive_copies(frozen, given)
    fused = assert_fused_is_equal(frozen(), given)
    assert not any(p.requires_grad for p in fused.spatial.parameters())
    assert all(p.requires_grad for p in fused.temporal.parameters())


# ---- Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(num_frames=3), "num_frames=3 must be a positive multiple of 2, the frames"),
        (lambda: build(num_frames=1), "num_frames=1 must be a positive multiple of 2, the frames"),
        (lambda: build(num_frames=4.0), "num_frames=4.0 must be an integer of at least 1"),
        (lambda: build(tubelet_size=0), "tubelet_size=0 must be an integer of at least 1"),
        (lambda: build(patch_size=0), "patch_size=0 must be an integer of at least 1"),
        (lambda: build(img_size=20), "img_size=20 must be a positive multiple of 8"),
        (lambda: build(img_size=0), "img_size=0 must be a positive number of pixels"),
        (lambda: build(img_size="large"), "img_size='large' must be"),
        (lambda: build(img_size=(64,)), "img_size=(64,) must be"),
        (lambda: build(num_classes=-1), "num_classes=-1 must be an integer of at least 0"),
        (lambda: build(num_classes="10"), "num_classes='10' must be an integer"),
        (lambda: build(in_chans=0), "in_chans=0 must be at least 1"),
        (lambda: build(in_chans="3"), "in_chans='3' must be at least 1"),
        (lambda: build(depth=0), "depth=0 must be at least 1"),
        (lambda: build(temporal_depth=-1), "temporal_depth=-1 must be an integer of at least 0"),
        (lambda: build(num_heads=5), "num_heads=5 must be at least 1 and divide dim=24"),
        (lambda: build(drop_path_rate=1.0), "drop_path_rate=1.0 must be at least 0"),
        (lambda: build()(torch.randn(4, 3, 16, 16)), "got 4 dimensions: (4, 3, 16, 16)"),
        (
            lambda: build()(torch.randn(1, 1, 3, 16, 16)),
            "clips have 1 frames, this model was built",
        ),
        (lambda: build()(torch.randn(1, 6, 3, 16, 16)), "clips have 6 frames"),
        (lambda: build()(torch.randn(1, 4, 1, 16, 16)), "images have 1 channels"),
        (lambda: build()(torch.randn(1, 4, 3, 16, 24)), "16×24 pixels"),
        (lambda: build()(torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)), "floating type"),
        (lambda: build()(np.zeros((1, 4, 3, 16, 16))), "clips must be a torch.Tensor, got a numpy"),
        (lambda: with_frames(build(), 5), "num_frames=5 must be a positive multiple of 2"),
        (lambda: with_frames(build(), 1), "num_frames=1 must be a positive multiple of 2"),
        (lambda: with_frames(build(temporal_depth=0), 8), "with_frames wants a factorised model"),
        (lambda: freeze_space(build(temporal_depth=0)), "freeze_space wants a factorised model"),
        (
            lambda: build(temporal_depth=0).forward_spatial(torch.randn(1, 4, 3, 16, 16)),
            "forward_spatial wants a factorised model",
        ),
        (lambda: inflate(torch.ones(2, 3, 4, 4), 2, "middle"), "how='middle' is not known"),
        (lambda: inflate(torch.ones(2, 3, 4, 4), 0), "tubelet_size=0 must be an integer"),
        (lambda: resize_time(torch.ones(1, 3, 4), 0), "num_slices=0 must be an integer"),
        (
            lambda: resize_grid(torch.ones(1, 5, 4), (2, 3), (4, 4)),
            "grid=(2, 3) does not fit the 4",
        ),
        (lambda: Adapter(10), "dim=10 must be a positive multiple of 4"),
        (
            lambda: start_from_image(build(), VisionTransformer(32, 8, depth=3, embed_dim=24)),
            "image_model has depth=3, the spatial encoder has 2",
        ),
        (
            lambda: start_from_image(build(), VisionTransformer(32, 8, depth=2, embed_dim=48)),
            "image_model has embed_dim=48, the spatial encoder has 24",
        ),
        (
            lambda: start_from_image(
                build(), VisionTransformer(32, 8, depth=2, embed_dim=24, pos_embed="none")
            ),
            "image_model must have learned positions",
        ),
    ],
)
def test_bad_input(call, message):
    models.assert_refused(call, message)


def test_wrong_weights_are_refused():
    state = build().state_dict()
    with pytest.raises(ValueError, match="positions have another size"):
        weights.load_official(build(num_frames=8), state)


def test_variants_stand_at_the_front_door():
    assert set(refimpl.list_models("vivit_*")) == {f"vivit_{name}" for name in VARIANTS}
    assert video.NAMES is weights.names_of(models.on_meta("vivit_fe_b16x2_k400"))
