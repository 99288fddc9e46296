"""Hiera: equal to the reference outputs; the order of tokens, pooled queries, masks, maps."""

from __future__ import annotations

import pytest
import torch

import refimpl
from refimpl import golden
from refimpl.bases.hiera import (
    VARIANTS,
    Hiera,
    HieraBlock,
    MaskUnitAttention,
    multiply_adds,
    places,
    pooled,
    reroll,
    unroll,
)
from refimpl.lab import measure
from refimpl.viz.attention import record
from shared import models

STEM = "hiera"
SMALL = dict(
    img_size=(64, 32),
    num_classes=5,
    embed_dim=8,
    depths=(1, 2, 1),
    q_pool=2,
    mask_unit_attn=(True, True, False),
    mask_unit_size=4,
)
RENAMED = {"stages": "depths", "input_size": "img_size"}  # official argument -> ours


def small(**more) -> Hiera:
    torch.manual_seed(0)
    return models.lively(Hiera(**SMALL | more))


def arguments(official: dict) -> dict:
    """Our constructor's arguments from the official ones."""
    ours = {RENAMED.get(name, name): value for name, value in official.items()}
    for name in ("name", "mask"):
        ours.pop(name, None)
    if "mask_unit_size" in ours:
        (ours["mask_unit_size"],) = set(ours["mask_unit_size"])
    return {name: tuple(v) if isinstance(v, list) else v for name, v in ours.items()}


def official_shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    """Official name -> shape, where a file leaves them out."""
    state = model.state_dict()
    return {name.replace("head.", "head.projection."): list(x.shape) for name, x in state.items()}


def test_official(official_case):
    if "params" in official_case.data:
        check_model(official_case)
    elif "configs" in official_case.arguments:
        check_sizes(official_case)
    elif "dim" in official_case.arguments:
        check_layer(official_case)
    else:
        (x,) = official_case.inputs()
        side = round(x.shape[1] ** 0.5)
        official_case.check(unroll(x.view(1, side, side, 1), side.bit_length() - 1))


def check_model(case: golden.Case) -> None:
    with torch.device("meta"):  # what the file fills need not be drawn first
        model = Hiera(**arguments(case.kwargs)).eval()
    case.fill(model, spec=case.data.get("state") or official_shapes(model))
    case.check_params(model)
    (images,) = case.inputs()
    forms = [model, model.fuse()] if measure.parameters(model) < 1e8 else [model]  # memory
    for form in forms:
        with torch.inference_mode():
            if "mask" in case.kwargs:
                mask = torch.tensor(case.kwargs["mask"]).bool()
                case.check(form.forward_masked(images, mask))
            elif len(case.data["outputs"]) > 1:
                maps = form.forward_stages(images)
                outputs = {f"output.1.{i}": stage for i, stage in enumerate(maps)}
                case.check(outputs | {"output.0": form(images)})
            elif "softmax" in case.name:
                case.check(form(images).softmax(-1))
            else:
                case.check(form(images))
    if case.data["macs"] is not None:
        assert multiply_adds(model) * len(images) == case.data["macs"]


def check_sizes(case: golden.Case) -> None:
    """Parameters and multiply-adds of configurations, for which nothing is computed."""
    sizes = case.recorded("params_macs")
    for config, (params, macs) in zip(case.arguments["configs"], sizes, strict=True):
        with torch.device("meta"):
            model = Hiera(**arguments(config))
            if "name" in config:
                model = refimpl.create_model(f"hiera_{config['name']}")
        assert (measure.parameters(model), multiply_adds(model)) == (params, macs)


def check_layer(case: golden.Case) -> None:
    """Weights stand in the file, or are filled by the rule under the layer's own names."""
    given = case.arguments
    x = torch.from_numpy(case.recorded("x"))
    side = round(x.shape[1] ** 0.5)
    unit = given["q_stride"] * given["window_size"]  # tokens, before pooling
    attn = MaskUnitAttention(
        given["dim"],
        given["dim_out"],
        given["heads"],
        (side, side),
        round(unit**0.5).bit_length() - 1,
        local=given["use_mask_unit_attn"],
        pool=given["q_stride"] > 1,
    )
    layer = attn
    if "mlp_ratio" in given:
        layer = HieraBlock(given["dim"], given["dim_out"], attn, given["mlp_ratio"], norm_eps=1e-5)
    case.fill(layer, spec={name: list(t.shape) for name, t in layer.state_dict().items()})
    for name, parameter in layer.named_parameters():
        if name in case.data["inputs"]:
            parameter.data = torch.from_numpy(case.recorded(name))
    with torch.inference_mode():
        case.check(layer(x))


@pytest.mark.parametrize(
    "options",
    [
        dict(img_size=(64, 96)),
        dict(q_pool=1, mask_unit_size=8, depths=(1, 1, 2, 1), mask_unit_attn=(True, False) * 2),
        dict(embed_dim=12, dim_mul=1.5, head_mul=1.0, mlp_ratio=3.0),
    ],
)
def test_timm_gives_the_same_output(timm, options):
    ours = small(**dict(img_size=(64, 64), mask_unit_size=4) | options)
    given = dict(SMALL, img_size=(64, 64)) | options
    given["stages"] = given.pop("depths")
    given["mask_unit_size"] = (given["mask_unit_size"],) * 2
    theirs = models.lively(timm.models.Hiera(**given))  # its classifier starts at 0
    models.assert_equals_peer(ours, theirs, torch.randn(2, 3, *given["img_size"]))


@pytest.mark.parametrize("variant", ["tiny", "base_plus"])
def test_the_closed_form_counts_what_is_computed(variant):
    with torch.device("meta"):
        model = refimpl.create_model(f"hiera_{variant}", depths=(1, 1, 2, 1))
        images = torch.empty(1, 3, 224, 224)
    assert measure.macs(model, images) == multiply_adds(model)


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_what_a_user_does_next(step):
    step(small, torch.randn(4, 3, 64, 32))


def test_official_and_timm_names_load():
    def named(norm, head):
        def checkpoint(model):
            state = model.state_dict()
            renamed = {}
            for name, tensor in state.items():
                place, _, rest = name.partition(".")
                renamed[f"{dict(norm=norm, head=head).get(place, place)}.{rest}".strip(".")] = (
                    tensor
                )
            return {"model_state": renamed}

        return checkpoint

    models.assert_checkpoint_loads(small, named("norm", "head.projection"))
    models.assert_checkpoint_loads(small, named("head.norm", "head.fc"))


@pytest.mark.parametrize(("grid", "times"), [((8, 8), 3), ((8, 12), 2), ((6, 4), 1), ((3, 5), 0)])
def test_rolled_back_tokens_lie_where_they_were(grid, times):
    x = torch.randn(2, *grid, 3)
    tokens = unroll(x, times)
    assert torch.equal(reroll(tokens, grid, times), x)
    assert torch.equal(
        unroll(x[..., :1], times)[0, :, 0], x[0, ..., 0].flatten()[flat(grid, times)]
    )


def flat(grid, times):
    """Row-major index of each unrolled token, by the definition: last bits first."""

    def key(place):
        row, col = divmod(place, grid[1])
        bits = [(row >> i & 1, col >> i & 1) for i in range(times)]
        return [*bits, (row >> times, col >> times)]

    return sorted(range(grid[0] * grid[1]), key=key)


@pytest.mark.parametrize("grid", [(8, 8), (8, 16)])
def test_pooling_unrolled_tokens_pools_neighbours(grid):
    x = torch.randn(2, *grid, 3)
    once = pooled(unroll(x, 3))
    twice = pooled(once)
    images = x.permute(0, 3, 1, 2)
    for tokens, side, left in ((once, 2, 2), (twice, 4, 1)):
        wanted = torch.nn.functional.max_pool2d(images, side).permute(0, 2, 3, 1)
        assert torch.equal(reroll(tokens, tuple(wanted.shape[1:3]), left), wanted)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_a_token_hears_its_mask_unit_and_no_further(local, pool):
    layer = MaskUnitAttention(8, 8, 2, (8, 12), 2, local, pool)
    x = torch.randn(1, 8, 12, 8, requires_grad=True)
    y = reroll(layer(unroll(x, 2)), (4, 6) if pool else (8, 12), 2 - pool)
    place = (2, 2) if pool else (5, 5)  # in the unit of rows 4–7, columns 4–7
    y[0, place[0], place[1]].square().sum().backward()
    reached = x.grad[0].abs().sum(-1) > 1e-9
    wanted = torch.ones(8, 12, dtype=torch.bool)
    if local:
        wanted[:] = False
        wanted[4:8, 4:8] = True
    assert torch.equal(reached, wanted)


def test_a_masked_run_sees_the_kept_units_alone():
    model = small()
    images = torch.randn(2, 3, 64, 32)
    mask = torch.tensor([[1, 0, 0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0, 0, 1]]).bool()
    assert mask.shape[1] == 4 * 2
    changed = images.clone()
    changed[0, :, :16, 16:] += 1  # unit 1 of the first image, masked
    changed[1, :, 48:, :16] += 1  # unit 6 of the second
    with torch.no_grad():
        tokens = model.forward_masked(images, mask)
        assert tokens.shape == (2, 3, 32)
        assert torch.equal(model.forward_masked(changed, mask), tokens)
        everything = model.forward_masked(images, torch.ones_like(mask))
        whole = model.forward_features(images)
    torch.testing.assert_close(everything, whole.flatten(1, 2))


@pytest.mark.parametrize("local", [False, True])
def test_maps_say_what_the_layer_does(local):
    """out = A v for the values of the whole map, row by row."""
    layer = MaskUnitAttention(6, 6, 2, (4, 8), 2, local, pool=False).eval()
    x = torch.randn(2, 4, 8, 6)
    with torch.no_grad(), record(layer) as maps:
        wanted = reroll(layer(unroll(x, 2)), (4, 8), 2)
        v = layer.qkv(x).flatten(1, 2)[..., 12:].unflatten(-1, (2, 3)).transpose(1, 2)
        image = maps[0].to_image()
        y = layer.proj((image @ v).transpose(1, 2).flatten(2)).view_as(wanted)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)


def test_maps_of_pooled_queries_add_up_the_keys_in_a_querys_place():
    layer = MaskUnitAttention(4, 4, 1, (4, 4), 1, local=True, pool=True).eval()
    x = torch.randn(1, 4, 4, 4)
    with torch.no_grad(), record(layer) as maps:
        layer(unroll(x, 1))
    assert maps[0].grid == (2, 2)
    torch.testing.assert_close(maps[0].to_image()[0, 0], torch.eye(4))  # units of 2×2: one query
    assert places((4, 4), 1, 4)[1].tolist() == [2, 3, 6, 7]


def test_recording_changes_nothing_and_fused_maps_are_equal():
    model = small()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        plain = model(images)
    with torch.no_grad(), record(model) as maps:
        assert torch.equal(model(images), plain)
    assert [m.grid for m in maps] == [(16, 8), (8, 4), (8, 4), (4, 2)]
    for m in maps:
        torch.testing.assert_close(m.to_image().sum(-1), torch.ones(m.to_image().shape[:3]))
    fused = model.fuse()
    with torch.no_grad(), record(fused) as again:
        fused(images)
    for a, b in zip(again, maps, strict=True):
        torch.testing.assert_close(a.weights, b.weights, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), record(model) as masked:
        model.forward_masked(images, torch.tensor([[True] * 4 + [False] * 4] * 2))
    assert masked == []


def test_features_head_and_gradients():
    model = small(drop_path_rate=0.1).train()
    images = torch.randn(2, 3, 64, 32)
    model(images).square().sum().backward()
    assert [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []
    model.eval()
    features = model.forward_features(images)
    assert features.shape == (2, 4, 2, 32)
    assert torch.equal(model.forward_head(features), model(images))
    assert torch.equal(model.forward_stages(images)[-1], features)
    assert small(num_classes=0)(images).shape == (2, 32)
    models.assert_fused_is_equal(model, images)


def test_first_blocks_attend_as_the_stage_before():
    """The first block of a global stage is local still, and pools."""
    with torch.device("meta"):
        attns = [block.attn for block in Hiera(**VARIANTS["tiny"]).blocks]
    assert [a.local for a in attns] == [True] * 4 + [False] * 8
    assert [i for i, a in enumerate(attns) if a.pool] == [1, 3, 10]
    assert [a.num_heads for a in attns] == [1, 2, 2] + [4] * 7 + [8] * 2
    assert [a.times for a in attns] == [3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 0]


def test_weights_start_as_the_authors_start_them():
    model = Hiera(**SMALL)
    assert (model.blocks[0].norm1.bias == 0.02).all() and (
        model.blocks[0].mlp.fc1.bias == 0.02
    ).all()
    assert model.head.weight.abs().max() < 1e-4 and model.pos_embed.std() > 0.015


def test_drop_path_rises_over_all_blocks():
    rates = [block.drop_path.p for block in small(drop_path_rate=0.6).blocks]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.6])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(img_size=36), "img_size=36 must be a positive multiple of 16, a mask unit's side"),
        (dict(img_size=0), "img_size=0 must be a positive number of pixels"),
        (dict(depths=(1, 2)), "depths=(1, 2), mask_unit_attn=(True, True, False) must be equally"),
        (dict(depths=(1, 0, 1)), "depths=(1, 0, 1) must be at least 1"),
        (dict(num_heads=3), "num_heads=3 must be at least 1 and divide dim=8"),
        (dict(q_pool=3), "q_pool=3 must be less than the number of stages: depths=(1, 2, 1)"),
        (dict(mask_unit_size=2), "mask_unit_size=2 must be a power of two and at least 2^q_pool"),
        (dict(mask_unit_size=6), "mask_unit_size=6 must be a power of two"),
        (dict(mlp_ratio=0), "mlp_ratio=0 must be above 0"),
        (dict(dim_mul=0), "dim_mul=0 must be above 0"),
        (dict(num_classes=-1), "num_classes=-1 must be an integer of at least 0"),
        (dict(in_chans=0), "in_chans=0 must be an integer of at least 1"),
        (dict(drop_path_rate=1), "drop_path_rate=1 must be at least 0 and less than 1"),
    ],
)
def test_bad_arguments(change, message):
    models.assert_refused(lambda: Hiera(**SMALL | change), message)


def test_bad_images_and_masks():
    model = Hiera(**SMALL)
    images = torch.randn(2, 3, 64, 32)
    models.assert_refused(lambda: model(images.transpose(2, 3)), "images are 32×64 pixels")
    models.assert_refused(lambda: model(images[:, :1]), "images have 1 channels")
    mask = torch.zeros(2, 8, dtype=torch.bool)
    models.assert_refused(lambda: model.forward_masked(images, mask[:, :4]), "(2, 8) of torch.bool")
    models.assert_refused(lambda: model.forward_masked(images, mask.float()), "of torch.float32")
    models.assert_refused(lambda: model.forward_masked(images, mask), "at least 1, got [0, 0]")
    mask[0, 0] = True
    models.assert_refused(lambda: model.forward_masked(images, mask), "equally many units of each")
