"""MedViTV2: equal to the official code, both token orders, its windows, bumps and refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refimpl
from refimpl import golden, weights
from refimpl.bases import corruptions, nextvit
from refimpl.lab import measure
from refimpl.papers import medvitv2
from refimpl.papers.medvitv2 import (
    KAN,
    VARIANTS,
    GlobalBlock,
    KANLayer,
    LocalBlock,
    MedViTV2,
    NeighbourhoodAttention,
    bumps,
    neighbourhood_attention,
    neighbours,
    stage_plan,
    to_map,
    to_tokens,
)
from refimpl.viz import attention
from shared import models

STEM = "medvitv2"
PARAMETERS = {"tiny": 11_719_845, "small": 30_087_295, "base": 66_995_571, "large": 118_291_477}
UNUSED = {"tiny": 984_328, "small": 2_750_218, "base": 6_140_554, "large": 10_874_378}


def official_name(name: str) -> str:
    """The authors' name of one of our tensors: the name map the other way round."""
    name = re.sub(r"^stem\.(\d)\.", lambda m: f"stem.{int(m[1]) // 2}.", name)
    name = re.sub(r"^head\.norm\.", "norm.", name)
    name = re.sub(r"^head\.fc\.", "proj_head.0.", name)
    for number, ours in medvitv2.FEED_FORWARD.items():
        name = name.replace(f"ffn.{ours}.", f"conv.conv.{number}.")
    name = name.replace("ffn.squeeze.", "conv.conv.6.fc.0.")
    name = name.replace("ffn.excite.", "conv.conv.6.fc.2.")
    name = re.sub(r"kan\.(\d)\.norm\.", r"kan.layers.\1.layernorm.", name)
    name = re.sub(r"kan\.(\d)\.grid$", r"kan.layers.\1.rbf.grid", name)
    return re.sub(r"kan\.(\d)\.spline\.", r"kan.layers.\1.spline_linear.", name)


def official_spec(model: nn.Module) -> dict[str, list[int]]:
    return {official_name(name): list(tensor.shape) for name, tensor in model.state_dict().items()}


SMALL = dict(img_size=64, num_classes=5, embed_dims=(32, 128, 128, 128), window_size=3)
SMALL |= dict(depths=(1, 2, 3, 1), drop_path_rate=0.0)


def filled(seed: int = 0, **kwargs) -> MedViTV2:
    """A small model whose every branch and norm does something."""
    torch.manual_seed(seed)
    model = models.lively(MedViTV2(**SMALL | kwargs))
    return models.calibrated(model, torch.randn(4, model.in_chans, 64, 64))


# -- reference outputs, built by rule from what each file says


def block(case: golden.Case) -> nn.Module:
    k = case.kwargs
    layout = "permuted" if case.name.endswith("_permuted") else "official"
    sizes = k["in_channels"], k["out_channels"], k["stride"]
    if "sr_ratio" in k:
        mixed = k["sr_ratio"], k["head_dim"], k["mix_block_ratio"]
        return GlobalBlock(*sizes, *mixed, layout=layout)
    return LocalBlock(*sizes, k["kernel_size"], k["head_dim"], layout=layout)


def variant(case: golden.Case) -> nn.Module:
    return refimpl.create_model(f"medvitv2_{case.name.split('_')[0]}", **case.kwargs)


def official_macs(model: nn.Module, images: torch.Tensor) -> int:
    """Multiply-adds but for those inside windows, which the official counter does not see."""
    inside = []
    hooks = [
        layer.register_forward_hook(lambda _, args, out: inside.append(2 * out.numel() * 49))
        for layer in model.modules()
        if isinstance(layer, NeighbourhoodAttention)
    ]
    total = measure.macs(model, images)
    for hook in hooks:
        hook.remove()
    return total - sum(inside)


def tensors(case: golden.Case) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(golden.array(r)) for name, r in case.data["inputs"].items()}


def check_windows(case: golden.Case) -> None:
    given = tensors(case)
    window = tuple(case.arguments["kernel_size"]), tuple(case.arguments["dilation"])
    q, k, v = given["query"], given["key"], given["value"]
    found, weights_found = neighbourhood_attention(q, k, v, *window, given.get("rpb"))
    outputs = {"output": found}
    if "logits" in case.data["outputs"]:
        logits = torch.from_numpy(case.recorded("logits"))
        torch.testing.assert_close(weights_found, logits.softmax(-1), atol=1e-6, rtol=0)
        outputs["logits"] = logits
    case.check(outputs, rtol=1e-6)


def check_kan(case: golden.Case) -> None:
    x = tensors(case)["x"]
    if case.name == "kan_basis":
        grid = torch.linspace(-2, 2, 8)
        case.check({"basis": bumps(x, grid), "grid": grid}, rtol=1e-6)
        return
    if case.name == "kan_net":
        layer = KAN((8, 12, 8))
        shapes = {}
        for name, tensor in layer.state_dict().items():
            name = official_name(f"kan.{name}").removeprefix("kan.")
            if not name.endswith("grid"):
                shapes[name] = list(tensor.shape)
        given = case.state(shapes) | {f"layers.{i}.rbf.grid": layer[i].grid for i in range(2)}
    else:
        given = tensors(case)
        given.pop("x")
        out_dim, reads = given["spline_linear.weight"].shape
        layer = KANLayer(reads // 8, out_dim)
    weights.load_official(layer, given)
    with torch.inference_mode():
        case.check(layer.double()(x), rtol=1e-6)


def check_corruptions(case: golden.Case) -> None:
    """Within one grey level, as images are cut off to integers; noise by NumPy's old generator."""
    image = case.recorded("image")
    for name, record in case.data["outputs"].items():
        np.random.seed(7)
        kind, *parameters = re.fullmatch(r"([a-z_]+?)_([\d._]+)", name).groups()
        parameters = [float(number) for number in parameters[0].split("_")]
        found = corruptions.corrupt(image, kind, *parameters, g=np.random)
        assert found.dtype == np.uint8
        apart = np.abs(found.astype(int) - golden.array(record).astype(int))
        assert apart.max() <= 1, name


def check_errors(case: golden.Case) -> None:
    given = {name: golden.array(record) for name, record in case.data["inputs"].items()}
    truth = given.pop("truth")[:, 0]
    clean = given.pop("clean")
    base_clean = float(given.pop("baseline_clean"))
    base = given.pop("baseline")
    by_kind = {}
    for (kind, scores), level in zip(given.items(), base, strict=True):
        errors = [
            corruptions.balanced_error(part.argmax(1), truth)
            for part in np.split(scores, len(scores) // len(truth))
        ]
        by_kind[kind] = errors, float(level)
    clean_error = corruptions.balanced_error(clean.argmax(1), truth)
    found = corruptions.relative_errors(by_kind, clean_error, base_clean)
    outputs = {"clean_error": clean_error} | found
    case.check({name: np.array(value) for name, value in outputs.items()}, rtol=1e-9)


def as_natten_rounds(q, k, v, window_size, dilation, bias):
    """`neighbourhood_attention` with sums in the order of natten 0.17.5 on a CPU, in float32.

    Scores: eight partial sums of every eighth product, added up one after the other; values: one
    after the other; nothing is fused.
    """
    height, width, d = q.shape[2:]
    rows = neighbours(height, window_size[0], dilation[0])
    columns = neighbours(width, window_size[1], dilation[1])
    window = rows[:, None, :, None], columns[None, :, None, :]
    near_keys = k[:, :, window[0], window[1]].flatten(4, 5)
    near_values = v[:, :, window[0], window[1]].flatten(4, 5)
    products = (q * d**-0.5)[..., None, :] * near_keys
    lanes = products[..., :8]
    for start in range(8, d, 8):
        lanes = lanes + products[..., start : start + 8]
    scores = lanes[..., 0]
    for lane in range(1, 8):
        scores = scores + lanes[..., lane]
    down = rows - torch.arange(height)[:, None] + window_size[0] - 1
    right = columns - torch.arange(width)[:, None] + window_size[1] - 1
    scores = scores + bias[:, down[:, None, :, None], right[None, :, None, :]].flatten(3, 4)
    attended = scores.softmax(-1)
    y = attended[..., 0, None] * near_values[..., 0, :]
    for j in range(1, attended.shape[-1]):
        y = y + attended[..., j, None] * near_values[..., j, :]
    return y, attended


def written_out(q, k, v):
    return ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1) @ v


@pytest.fixture
def official_order(monkeypatch):
    """Every sum in the official code's order; the number of threads is set back afterwards."""
    monkeypatch.setattr(medvitv2, "neighbourhood_attention", as_natten_rounds)
    monkeypatch.setattr(nextvit, "attention", written_out)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rounds_like_the_recording() -> bool:
    """Whether blocks, which were recorded in one thread, come out equal to the last bit.

    A matter of the processor and of PyTorch's version, and of nothing that is ours.
    """
    torch.set_num_threads(1)
    for name in ("lfp_s1", "gfp_s2_sr4"):
        case = golden.load(STEM, name)
        model = case.fill(block(case).eval())
        with torch.inference_mode():
            found = model(*case.inputs()).flatten()[:: case.data["outputs"]["output"]["stride"]]
        wanted = np.array(case.data["outputs"]["output"]["values"], np.float32)
        digits = [np.float32(f"{value:.8g}") for value in found.numpy()[: len(wanted)]]
        if not np.array_equal(digits, wanted):
            return False
    return True


def check_network(case: golden.Case, model: nn.Module) -> None:
    """Filled by the rule, a network amplifies rounding, so that already the number of threads
    matters: see `test_a_filled_network_amplifies_rounding`. What was recorded, in two threads, is
    met with every sum in the official order, by a processor that rounds alike, and only there.
    """
    if not rounds_like_the_recording():
        pytest.skip("this processor or PyTorch rounds otherwise than in the recording")
    torch.set_num_threads(2)
    with torch.inference_mode():
        case.check(model(*case.inputs()))


def check_counts(case: golden.Case) -> None:
    """Names, shapes and multiply-adds of a network without numbers in it: these take a minute, and
    are computed with `--all-variants`."""
    with torch.device("meta"):
        model = variant(case)
        images = torch.empty(case.data["inputs"][0])
    case.check_params(model)
    if spec := case.data.get("state"):
        assert official_spec(model) == spec
    assert official_macs(model, images) == case.data["macs"]


def test_official(official_case, request):
    case = official_case
    if case.name == "neighbours_1d":
        for name, record in case.data["outputs"].items():
            found = neighbours(*golden.array(case.data["inputs"][name]).tolist())
            assert found.tolist() == golden.array(record).tolist()
    elif case.name.startswith("dina"):
        check_windows(case)
    elif case.name.startswith("kan"):
        check_kan(case)
    elif case.name == "medmnistc_corruptions":
        check_corruptions(case)
    elif case.name == "medmnistc_disk":
        parameters = case.recorded("radius_alias")
        disks = [corruptions.disk(*row) for row in parameters]
        case.check({f"disk{i}": disk for i, disk in enumerate(disks)}, rtol=1e-6)
    elif case.name == "medmnistc_be":
        check_errors(case)
    else:
        network = case.name.split("_")[0] in VARIANTS
        if network and not (case.name == "tiny" or request.config.getoption("all_variants")):
            check_counts(case)
            return
        model = (variant if network else block)(case).eval()
        case.fill(model, medvitv2.NAMES["official"], case.data.get("state") or official_spec(model))
        case.check_params(model)
        images = case.inputs()[0]
        if case.data.get("macs"):
            assert len(images) * official_macs(model, images[:1]) == case.data["macs"]
        if network:
            request.getfixturevalue("official_order")
            check_network(case, model)
        else:
            with torch.inference_mode():
                case.check(model(images), rtol=1e-5)


def test_a_filled_network_amplifies_rounding():
    """A change of the image by one part in 10⁵ moves the logits of a network that is filled by the
    rule by nine tenths of their norm, those of a network as it starts by a few thousandths: where
    scores are in the thousands, a softmax that is about to change its mind does so at once."""
    case = golden.load(STEM, "tiny")
    torch.manual_seed(0)
    started = variant(case).eval().double()
    filled_by_rule = case.fill(variant(case).eval()).double()
    image = case.inputs()[0][1:, :, :112, :112].double()
    moved = image * (1 + 1e-5 * torch.randn_like(image))
    with torch.inference_mode():
        far = models.error(filled_by_rule(moved), filled_by_rule(image))
        near = models.error(started(moved), started(image))
    assert far > 0.1 > 20 * near


# -- the network


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_of_the_four_models(name):
    """About a tenth of them belongs to feed-forward layers that are never run."""
    model = models.on_meta(f"medvitv2_{name}")
    assert measure.parameters(model) == PARAMETERS[name]
    blocks = [part for part in model.features if isinstance(part, GlobalBlock)]
    unused = sum(measure.parameters(part.ffn) for part in blocks)
    assert unused == UNUSED[name]
    assert 0.08 < unused / PARAMETERS[name] < 0.1


def test_the_feed_forward_layer_of_a_global_block_is_never_run():
    model = filled()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(images)
        for part in model.features:
            if isinstance(part, GlobalBlock):
                for parameter in part.ffn.parameters():
                    assert not parameter.requires_grad
                    parameter.fill_(torch.nan)
        assert torch.equal(model(images), before)


def test_order_of_blocks():
    assert stage_plan(0, 2) == [False, False]
    assert stage_plan(1, 2) == [False, True]
    assert stage_plan(2, 6) == [False, False, True] * 2
    assert stage_plan(3, 2) == [True, True]


def test_checkpoints_under_official_names_load():
    def checkpoint(source):
        state = {official_name(key): tensor for key, tensor in source.state_dict().items()}
        return {"model": state}

    small = dict(depths=(1, 1, 1, 1), num_classes=3)
    models.assert_checkpoint_loads(
        lambda: refimpl.create_model("medvitv2_tiny", **small), checkpoint
    )


def test_the_squeeze_has_three_channels():
    assert LocalBlock(32, 64).ffn.squeeze.out_features == 3


def test_keys_are_means_of_runs_along_rows():
    """The first key of a 4 × 8 map with runs of four is the mean of half a row, of no square."""
    layer = nextvit.PooledAttention(32, 32, 2).eval()
    seen = []
    layer.k.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(1, 4, 8, 32)
    with torch.inference_mode():
        layer(x.flatten(1, 2))
    torch.testing.assert_close(seen[0][0, 0] * (1 + 1e-5) ** 0.5, x[0, 0, :4].mean(0))


# -- windows


@pytest.mark.parametrize("length", [9, 12, 13])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_windows_hold_equally_many_keys_of_one_remainder(length, dilation):
    table = neighbours(length, 3, dilation)
    assert table.shape == (length, 3)
    assert (table.diff(dim=1) == dilation).all()
    assert ((table - torch.arange(length)[:, None]) % dilation == 0).all()
    assert (table == torch.arange(length)[:, None]).any(1).all(), "a token sees itself"


def test_a_window_that_fills_the_map_is_plain_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 5, 5, 4)
    found, _ = neighbourhood_attention(q, k, v, (5, 5))
    flat = [x.flatten(2, 3) for x in (q, k, v)]
    torch.testing.assert_close(found.flatten(2, 3), F.scaled_dot_product_attention(*flat))


def test_equal_dilations_never_leave_their_remainder():
    """Two layers of dilation 4 never see the token beside; 1 and then 4 do, and farther."""

    def reached(*dilations: int) -> torch.Tensor:
        reach = torch.eye(12)
        for dilation in dilations:
            step = torch.zeros(12, 12).scatter(1, neighbours(12, 3, dilation), 1.0)
            reach = step @ reach
        return reach > 0

    def share(reach: torch.Tensor, distance: int) -> float:
        return float(reach.diagonal(distance).float().mean())

    same, mixed, small = reached(4, 4), reached(1, 4), reached(1, 1)
    assert [share(same, d) for d in (1, 4, 5)] == [0, 1, 0]
    assert [share(mixed, d) for d in (1, 4, 5)] == [1, 1, 1]
    assert [share(small, d) for d in (1, 4, 5)] == [1, 0, 0]
    assert round(float(mixed.float().mean()), 2) == 0.75
    assert float(same.float().mean()) == 0.25


def test_bias_counts_steps_of_the_dilation():
    """With no scores of its own a query's weights are the bias table's, moved to its window."""
    zero = torch.zeros(1, 1, 6, 6, 4)
    bias = torch.randn(1, 5, 5)
    _, found = neighbourhood_attention(zero, zero, zero, (3, 3), (2, 2), bias)
    middle = bias[0, 1:4, 1:4].flatten().softmax(0)
    torch.testing.assert_close(found[0, 0, 2, 3], middle)
    corner = bias[0, 2:5, 2:5].flatten().softmax(0)
    torch.testing.assert_close(found[0, 0, 0, 1], corner)


def test_released_network_passes_no_dilation():
    for name in VARIANTS:
        model = models.on_meta(f"medvitv2_{name}")
        layers = [part for part in model.modules() if isinstance(part, NeighbourhoodAttention)]
        assert layers and {layer.dilation for layer in layers} == {1}


# -- token orders


def test_official_tokens_are_runs_of_one_channel():
    """Token (0, 0) holds the first C numbers of channel 0, and no other channel's."""
    x = torch.arange(2 * 6 * 4 * 4.0).view(2, 6, 4, 4)
    tokens = to_tokens(x, "official")
    assert tokens[0, 0, 0].tolist() == x[0, 0].flatten()[:6].tolist()
    assert to_tokens(x, "permuted")[0, 0, 0].tolist() == x[0, :, 0, 0].tolist()
    for layout in ("official", "permuted"):
        assert torch.equal(to_map(to_tokens(x, layout), layout), x)


def test_layouts_are_two_networks_of_the_same_tensors():
    official, permuted = filled(), filled(layout="permuted")
    permuted.load_state_dict(official.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert models.error(permuted(images), official(images)) > 0.1


def test_no_layout_mixes_images():
    for layout in ("official", "permuted"):
        model = filled(layout=layout)
        images = torch.randn(2, 3, 64, 64)
        with torch.inference_mode():
            alone = model(images[:1])
            assert models.error(model(images)[:1], alone) < 1e-5


@pytest.mark.parametrize("layout", ["official", "permuted"])
def test_recorded_maps(layout):
    model = filled(layout=layout)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        plain = model(images)
        with attention.record(model) as maps:
            assert torch.equal(model(images), plain)
        fused = model.fuse()
        with attention.record(fused) as again:
            fused(images)
    first = maps[0].weights
    assert first.shape == (2, 1, 256, 256)
    torch.testing.assert_close(first.sum(-1), torch.ones(2, 1, 256))
    assert ((first > 0).sum(-1) == 9).all()
    for one, other in zip(maps, again, strict=True):
        torch.testing.assert_close(one.weights, other.weights, atol=1e-5, rtol=1e-4)


# -- KAN layers


def test_bumps_overlap_by_an_eighth_at_their_neighbours():
    grid = torch.linspace(-2, 2, 8)
    heights = bumps(grid[3:4], grid)[0]
    assert heights[3] == 1
    torch.testing.assert_close(heights[[2, 4]], torch.full((2,), 0.118), atol=5e-4, rtol=0)


def test_bumps_are_silent_beyond_the_grid():
    total = bumps(torch.tensor([-2.0, 0.0, 2.0, 3.0, 5.0]), torch.linspace(-2, 2, 8)).sum(-1)
    assert (total[:3] > 1).all()
    assert 0 < total[3] < 0.02
    assert total[4] < 1e-5


def test_a_kan_layer_is_linear_in_its_weights_and_additive_in_its_coordinates():
    """The bumps are fixed and shared: nothing else is learned behind the norm."""
    torch.manual_seed(0)
    first, second = KANLayer(4, 3), KANLayer(4, 3)
    both = KANLayer(4, 3)
    x = torch.randn(5, 4)
    with torch.no_grad():
        both.spline.weight.copy_(2 * first.spline.weight - second.spline.weight)
        torch.testing.assert_close(both(x), 2 * first(x) - second(x), atol=1e-5, rtol=1e-4)
        z = first.norm(x)
        parts = [
            bumps(z[:, i], first.grid) @ first.spline.weight[:, 8 * i : 8 * i + 8].T
            for i in range(4)
        ]
        torch.testing.assert_close(sum(parts), first(x))
    assert not first.grid.requires_grad


def test_a_kan_has_eight_times_an_mlps_weights():
    layers = KAN((64, 128, 64))
    weights_of_bumps = sum(layer.spline.weight.numel() for layer in layers)
    assert weights_of_bumps == 8 * (64 * 128 + 128 * 64)


def test_a_softmax_lets_one_label_pass_at_most():
    """What the training script does to 14 labels that are trained one by one."""
    logits = torch.full((1, 14), 4.0)
    assert (logits.sigmoid() > 0.5).all()
    assert not (logits.softmax(1) > 0.5).any()
    assert (torch.randn(1000, 14).softmax(1) > 0.5).sum(1).max() == 1


# -- corruptions and errors


def test_impulse_noise_makes_as_much_salt_as_pepper():
    image = np.full((64, 64, 3), 100, np.uint8)
    found = corruptions.corrupt(image, "impulse_noise", 0.2, g=np.random.default_rng(0))
    assert abs((found == 0).mean() - 0.1) < 0.01
    assert abs((found == 255).mean() - 0.1) < 0.01


def test_balanced_error_counts_classes_alike():
    truth = [0] * 9 + [1]
    assert corruptions.balanced_error([0] * 10, truth) == 0.5


def test_fewer_errors_everywhere_can_go_with_a_greater_loss():
    errors = {"blur": ([0.25, 0.35], 0.4)}
    found = corruptions.relative_errors(errors, clean=0.05, baseline_clean=0.3)
    assert found["be"] < 1 < found["rbe"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: corruptions.corrupt(np.zeros((4, 4), np.uint8), "gamma", 2), "must be (h, w, 3)"),
        (lambda: corruptions.corrupt(np.zeros((4, 4, 3)), "gamma", 2), "of float64"),
        (lambda: corruptions.corrupt(np.zeros((4, 4, 3), np.uint8), "gama", 2), "'gamma'"),
        (
            lambda: corruptions.corrupt(np.zeros((4, 4, 3), np.uint8), "shot_noise", 2),
            "give g, a generator",
        ),
        (lambda: corruptions.balanced_error([0, 1], [0]), "one class for each image"),
        (
            lambda: corruptions.relative_errors({"blur": ([0.1], 0.2)}, 0.1, 0.2),
            "must be above 0 and differ",
        ),
    ],
)
def test_bad_corruptions_are_named(call, words):
    models.assert_refused(call, words)


# -- what every model must bear, in the forms that no variant has


@pytest.mark.parametrize("options", [{}, {"layout": "permuted"}, {"dilations": (4, 2, 1, 1)}])
def test_fused_model_is_equal_and_leaves_the_model_alone(options):
    model = filled(0, **options)
    fused = models.assert_fused_is_equal(model, torch.randn(3, 3, 64, 64))
    assert measure.parameters(fused) < measure.parameters(model)


def test_meta_device_then_load():
    images = torch.randn(2, 3, 64, 64)
    models.meta_device_then_load_is_right(lambda: filled(layout="permuted"), images)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: NeighbourhoodAttention(4, 2, 3, 2), (1, 6, 7, 4)),
        (lambda: KANLayer(3, 2), (4, 3)),
    ],
)
def test_gradients(layer, shape):
    torch.manual_seed(0)
    layer = layer().double()
    x = torch.randn(shape).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


def test_rectangular_images_are_taken():
    model = filled(img_size=(64, 96))
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        assert model.forward_features(images).shape == (2, 128, 2, 3)
        assert models.error(model.fuse()(images), model(images)) < 1e-5


def test_without_classes_features_come_out():
    model = filled(num_classes=0)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), model.forward_features(images).mean((2, 3)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": 32, "window_size": 7}, "the grid of 4×4 tokens is too small"),
        ({"dilations": (1, 1, 2, 1)}, "window_size=3 with dilation=2, which need 6"),
        ({"window_size": 4}, "window_size=(4, 4) must be odd"),
        ({"window_size": 0}, "window_size[0]=0"),
        ({"dilations": (1, 1)}, "must be equally long"),
        ({"dilations": (0, 1, 1, 1)}, "dilation[0]=0"),
        ({"depths": (1, 1), "embed_dims": (32, 64), "dilations": (1, 1)}, "four entries"),
        ({"depths": (1, 0, 1, 1)}, "must be at least 1"),
        ({"embed_dims": (48, 128, 128, 128)}, "dim=48 must be a positive multiple of 32"),
        ({"embed_dims": (32, 32, 128, 128)}, "dim=32 must be more than 32"),
        ({"layout": "permute"}, "did you mean 'permuted'"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"drop_path_rate": 1.5}, "drop_path_rate=1.5"),
    ],
)
def test_bad_arguments_are_named(change, words):
    models.assert_refused(lambda: MedViTV2(**SMALL | change), words)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: filled()(torch.randn(1, 3, 32, 32)), "the grid of 2×2 tokens is too small"),
        (lambda: filled()(torch.randn(1, 1, 64, 64)), "1 channels"),
        (lambda: neighbours(5, 3, 2), "too small for window_size=3 with dilation=2"),
        (lambda: neighbours(5, 2), "must be odd"),
        (lambda: NeighbourhoodAttention(30, 4), "num_heads=4"),
        (lambda: KANLayer(0, 3), "in_dim=0"),
        (lambda: GlobalBlock(64, 128, reduction=4)(torch.randn(1, 64, 2, 2)), "means of 16 tokens"),
        (lambda: refimpl.create_model("medvitv2_huge"), "medvitv2_"),
    ],
)
def test_bad_calls_are_named(call, words):
    models.assert_refused(call, words)
