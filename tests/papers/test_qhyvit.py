"""Q-HyViT: reference outputs of quantisers and searches; grids; the search; bridges; networks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import refimpl
from refimpl.bases import quantisers
from refimpl.bases.mobilevit import MobileViT
from refimpl.bases.quantisers import Grid, grid_between, minmax_grid
from refimpl.papers import qhyvit
from refimpl.papers.qhyvit import (
    Grids,
    Option,
    QuantLayer,
    bridge_layers,
    calibrate,
    entering,
    factors,
    full_outputs,
    layers_of,
    minmax,
    options_of,
    output_gradients,
    quantise,
    reconstruct,
    search,
    squares,
    switch,
)
from shared import models

STEM = "qhyvit"
TENSOR = Option(per_channel=False, symmetric=True)


# ---- Reference outputs


def test_official(official_case):
    """By what the file records: an observer, a quantiser, a reparameterisation, or a search."""
    recorded = official_case.data["outputs"]
    if "w_interval" in recorded:
        outputs = searched(official_case)
    elif "gamma2" in recorded:
        outputs = reparameterised(official_case)
    elif "log2_int" in recorded:
        outputs = logarithms(official_case)
    elif "gelu_value" in recorded:
        outputs = twins(official_case)
    elif "tok" in official_case.data["inputs"]:
        outputs = percentiles(official_case)
    elif "steps" in official_case.arguments:
        outputs = shrunk(official_case)
    else:
        outputs = observed(official_case)
    assert outputs.keys() == recorded.keys()
    for name, tensor in outputs.items():
        wanted = tensors(official_case, name)[0]
        found = tensor.detach().reshape(wanted.shape).to(wanted.dtype)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=name)
        if wanted.any():
            official_case.deviations[name] = models.error(found.double(), wanted.double())


def tensors(case, *names):
    return [torch.from_numpy(case.recorded(name)) for name in names]


def of_grid(prefix, grid, x, scale="scale"):
    parts = {scale: grid.scale, "zero_point": grid.zero_point, "value": grid(x)}
    return {f"{prefix}{name}": tensor for name, tensor in parts.items()}


def observed(case):
    (x,) = tensors(case, "act")
    outputs = {}
    for where, axis in (("layer", None), ("channel", 1)):
        for kind, bits in (("uint8", 8), ("int8", 8), ("uint4", 4)):
            grid = minmax_grid(x, bits, kind.startswith("int"), axis)
            outputs |= of_grid(f"{where}_wise_{kind}_", grid, x)
    return outputs


def shrunk(case):
    (x,) = tensors(case, "act")
    grid = quantisers.mean_squared_grid(x, **case.arguments)
    return of_grid("", grid, x)


def percentiles(case):
    act, weight, tokens = tensors(case, "act", "w", "tok")
    rows = {f"tensor_{bits}_": (act, bits, None) for bits in (4, 6, 8)}
    rows |= {"weight_4_": (weight, 4, 0), "tokens_4_": (tokens, 4, 2)}
    outputs = {}
    for prefix, (x, bits, axis) in rows.items():
        grid = quantisers.percentile_grid(x, bits, axis)
        outputs |= of_grid(prefix, grid, x, scale="delta")
    return outputs


def logarithms(case):
    (p,) = tensors(case, "p")
    codes, values = quantisers.log2_quantise(p, **case.arguments)
    delta, by_root = quantisers.log_root2_quantise(p, **case.arguments)
    outputs = {"log2_int": codes, "log2_value": values}
    return outputs | {"logsqrt2_delta": delta, "logsqrt2_value": by_root}


def twins(case):
    hidden, attention = tensors(case, "post_gelu", "post_softmax")
    arguments = case.arguments
    split = eval_power(arguments["split"])
    gelu = quantisers.twin_after_gelu(hidden, arguments["a_interval"], arguments["bits"])
    softmax = quantisers.twin_after_softmax(attention, split, arguments["bits"])
    return {"gelu_value": gelu, "softmax_value": softmax}


def eval_power(text: str) -> float:
    """`"2^-4"` -> 0.0625."""
    base, exponent = text.split("^")
    return float(base) ** int(exponent)


def reparameterised(case):
    gamma, beta, weight, bias, x = tensors(case, "gamma", "beta", "W", "B", "x")
    normed = F.layer_norm(x, gamma.shape, gamma, beta)
    grid = quantisers.percentile_grid(normed, case.arguments["bits"], axis=2)
    _, *new = quantisers.move_scales_into_norm(grid, gamma, beta, weight, bias)
    after = F.linear(F.layer_norm(x, gamma.shape, *new[:2]), *new[2:])
    outputs = {"delta": grid.scale, "zero_point": grid.zero_point}
    outputs |= dict(zip(("gamma2", "beta2", "W2", "B2"), new, strict=True))
    return outputs | {"out_before": F.linear(normed, weight, bias), "out_after": after}


def searched(case):
    arguments = case.arguments
    weight, bias, x, gradient = tensors(case, "weight", "bias", "x", "grad")
    layer = plain_layer(weight, bias, arguments.get("groups", 1))
    bits = arguments.get("bits") or arguments["w_bits"]
    row_groups = arguments.get("n_V", len(weight))
    own = QuantLayer(layer, bits, row_groups)
    off = str(arguments.get("a_bits", "")).startswith("off")
    start = own.minmax(x, None if off else TENSOR)
    by = factors(arguments["eq_n"], arguments["eq_alpha"], arguments["eq_beta"])
    known = x, layer(x).detach(), gradient
    if arguments.get("groups", 1) > 1:
        grids = Grids(as_grouped_convolutions_are_searched(own, start, *known, by), None)
    else:
        grids = search(own, start, *known, by, arguments["search_round"])
    rows = len(weight) // row_groups
    outputs = {"w_interval": grids.weight.scale.flatten()[::rows]}
    if off:
        outputs["a_interval"] = x.abs().max() / (2**31 - 0.5)
    else:
        outputs["a_interval"] = grids.inputs.scale
    if "init_w_interval" in case.data["outputs"]:
        outputs["init_w_interval"] = start.weight.scale.flatten()[::rows]
        outputs["init_a_interval"] = start.inputs.scale
    return outputs | {"output": own.quantised(x, grids)}


def plain_layer(weight, bias, groups):
    if weight.dim() == 2:
        layer = nn.Linear(weight.shape[1], len(weight))
    else:
        sizes = weight.shape[1] * groups, len(weight), weight.shape[-1]
        layer = nn.Conv2d(*sizes, padding=weight.shape[-1] // 2, groups=groups)
    layer.weight.data, layer.bias.data = weight, bias
    return layer


def as_grouped_convolutions_are_searched(own, start, x, target, gradient, by) -> Grid:
    """PTQ4ViT's way: all candidates of all channels are the outputs of one grouped convolution.

    They lie candidate by candidate, but a grouped convolution deals its outputs out to its inputs
    in blocks. So most candidates meet the input of another channel.
    """
    layer = own.layer
    outputs = len(layer.weight)
    candidates = [start.weight.times(factor)(layer.weight) for factor in by]
    bias = layer.bias.repeat(len(by))
    made = F.conv2d(x, torch.cat(candidates), bias, padding=layer.padding, groups=layer.groups)
    apart = gradient[:, None] * (target[:, None] - made.unflatten(1, (len(by), outputs)))
    best = apart.square().mean((0, 3, 4)).argmin(0)  # (outputs,)
    return start.weight.times(own.per_row(by[best]))


def test_candidates_of_grouped_convolutions_meet_other_channels():
    """The recorded search is right for a sixth of the factors; ours errs far less."""
    case = refimpl.golden.load(STEM, "search_conv_depthwise")
    weight, bias, x, gradient = tensors(case, "weight", "bias", "x", "grad")
    layer = plain_layer(weight, bias, case.arguments["groups"])
    own = QuantLayer(layer, 6, len(weight))
    start = own.minmax(x, None)
    known = x, layer(x).detach(), gradient
    ours = search(own, start, *known, factors())
    theirs = as_grouped_convolutions_are_searched(own, start, *known, factors())
    apart = squares(own, ours, *known).item()
    assert squares(own, Grids(theirs, None), *known).item() > 100 * apart


# ---- Grids


def scheme(bits, symmetric, axis, zero, x):
    return minmax_grid(x, bits, symmetric, axis, zero)


schemes = given(
    st.integers(2, 9), st.booleans(), st.sampled_from([None, 1]), st.sampled_from(quantisers.ZEROS)
)
few = settings(deadline=None, max_examples=25, derandomize=True)


def shifted(seed=0):
    """Channels whose ranges lie on both sides of zero, above it, below it, and at one point."""
    x = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(seed))
    x[:, 1] = x[:, 1].clamp(-0.9, 0.9) + 4
    x[:, 2] = x[:, 2].clamp(-0.9, 0.9) - 3
    x[:, 3] = 0
    x[:, 4] = 2.5
    return x


@few
@schemes
def test_rounding_twice_is_rounding_once(bits, symmetric, axis, zero):
    x = shifted()
    grid = scheme(bits, symmetric, axis, zero, x)
    once = grid(x)
    torch.testing.assert_close(grid(once), once)
    assert torch.equal(grid.codes(x), grid.codes(x).round())
    assert grid.codes(x).min() >= grid.lowest and grid.codes(x).max() <= grid.highest
    for channel in range(5):
        assert len(once[:, channel].unique()) <= 2**bits


@few
@schemes
def test_zero_is_a_level_unless_its_code_overflows(bits, symmetric, axis, zero):
    grid = scheme(bits, symmetric, axis, zero, shifted())
    zeros = grid(torch.zeros(1, 5, 1, 1)).expand(1, 5, 1, 1)
    overflow = grid.overflows.expand(1, 5, 1, 1)
    assert torch.equal(zeros == 0, ~overflow)
    assert not (overflow.any() and (symmetric or axis is None or zero != "free"))


@few
@given(st.floats(-6, 6), st.floats(0.01, 5), st.integers(2, 8))
def test_the_zero_point_overflows_where_the_range_leaves_out_zero(least, width, bits):
    low, high = torch.tensor(least), torch.tensor(least + width)
    grid = grid_between(low, high, bits, zero="free")
    step = grid.scale
    inside = low <= step / 2 and high >= -step / 2
    near = min((low - step / 2).abs(), (high + step / 2).abs()) < 1e-3 * step
    assert near or bool(grid.overflows) == (not inside)


def test_exactly_two_channels_of_the_recorded_activation_overflow():
    case = refimpl.golden.load(STEM, "minmax_observer")
    (x,) = tensors(case, "act")
    free = minmax_grid(x, 8, axis=1, zero="free").overflows.flatten()
    assert free.nonzero().flatten().tolist() == [1, 2]
    clamped = minmax_grid(x, 8, axis=1)(x)
    highest = x[:, 1].max() - x[:, 1].min()
    assert (clamped[:, 1] <= highest + 1e-5).all() and x[:, 1].min() > highest
    contained = minmax_grid(x, 8, axis=1, zero="contained")
    errors = (contained(x) - x).abs().amax((0, 2, 3))
    assert (errors <= contained.scale.flatten() * 0.51).all()


def test_symmetric_levels_end_at_the_range_and_half_a_step():
    x = shifted()
    grid = minmax_grid(x, 8, symmetric=True)
    assert grid(x).abs().max() <= 128 * grid.scale
    assert grid.scale.item() == pytest.approx(x.abs().max().item() / 127.5)
    assert not grid.zero_point.any()


@few
@given(st.integers(2, 8), st.integers(0, 20))
def test_a_scale_per_channel_is_within_half_a_step_of_the_layers(bits, seed):
    x = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(seed))
    x *= torch.logspace(-2, 1, 6)[:, None]
    apart = []
    for axis in (None, 1):
        grid = minmax_grid(x, bits, symmetric=True, axis=axis)
        within = grid(x) - x
        assert (within.abs() <= grid.scale * 0.5001).all()
        apart.append(within.square().mean((0, 2)).sqrt())
        step = grid.scale.expand(1, 6, 1).flatten()
    assert (apart[1] <= apart[0] + step / 2).all()


def test_gradients_pass_where_codes_are_not_clipped():
    x = torch.linspace(-2, 2, 9, requires_grad=True)
    grid = Grid(torch.tensor(0.25), torch.tensor(0.0), -4, 3)
    (grad,) = torch.autograd.grad(grid(x).sum(), x)
    wanted = ((x / 0.25) >= -4) & ((x / 0.25) <= 3)
    assert torch.equal(grad, wanted.float())


def test_the_mean_zero_point_of_moved_scales_is_not_rounded():
    """As in the official code: 0 is then none of the levels."""
    x = torch.randn(2, 7, 6) * torch.rand(6) + torch.rand(6)
    grid = quantisers.percentile_grid(x, 4, axis=2)
    eye, zeros = torch.eye(6), torch.zeros(6)
    one, *_ = quantisers.move_scales_into_norm(grid, torch.ones(6), zeros, eye, zeros)
    assert one.zero_point != one.zero_point.round()
    assert one(torch.zeros(())) != 0


def test_twin_halves_after_softmax_add_up_to_too_much():
    """As in the official code: the upper half is never below the split, and both are added."""
    p = torch.linspace(0, 1, 101)
    values = quantisers.twin_after_softmax(p, 2**-4, 8)
    assert (values - p).mean().item() == pytest.approx(2**-4, rel=0.05)
    assert values.max() > 1.06


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: minmax_grid(x, 1), "bits=1 must be an integer of at least 2"),
        (lambda x: minmax_grid(x, 17), "bits=17 must be at most 16"),
        (lambda x: minmax_grid(x, 8.0), "bits=8.0 must be an integer"),
        (lambda x: minmax_grid(x, 8, zero="clamp"), "did you mean 'clamped'"),
        (lambda x: minmax_grid(x / 0, 8), "x holds NaN or infinity"),
        (lambda x: quantisers.mean_squared_grid(x, 8, steps=0), "steps=0"),
    ],
)
def test_bad_input_of_grids_is_named(call, words):
    models.assert_refused(lambda: call(torch.zeros(2, 3)), words)


# ---- One layer


def a_convolution(groups=1, bits=5, options=(TENSOR,)):
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, 3, padding=1, groups=groups)
    own = QuantLayer(layer, bits, 6, options)
    x = torch.randn(4, 6, 5, 5) * torch.tensor([1, 1, 1, 1, 1, 6.0]).view(6, 1, 1)
    with torch.no_grad():
        return own, x, layer(x), torch.randn(4, 6, 5, 5)


def test_a_hundred_factors_and_the_last_is_left_out():
    by = factors()
    assert len(by) == 100
    assert by[0].item() == pytest.approx(0.01) and by[-1].item() == pytest.approx(1.2 - 0.0119)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("option", [Option(*kind) for kind in ((0, 1), (0, 0), (1, 1), (1, 0))])
def test_searched_scales_are_on_the_list_and_err_no_more(groups, option):
    own, x, target, gradient = a_convolution(groups)
    start = own.minmax(x, option)
    known = x, target, gradient
    found = search(own, start, *known, factors(), rounds=2)
    for side in ("weight", "inputs"):
        ratio = (getattr(found, side).scale / getattr(start, side).scale).flatten()
        index = (ratio - 0.01) / 0.0119
        torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-3)
        assert index.min() > -0.5 and index.max() < 99.5
    shared = len((found.inputs.scale / start.inputs.scale).flatten().round(decimals=4).unique())
    assert shared == 1 or (groups == 6 and option.per_channel)
    nearest = factors()[83]
    near = Grids(start.weight.times(nearest), start.inputs.times(nearest))
    assert squares(own, found, *known) <= squares(own, near, *known) * (1 + 1e-5)


def test_what_is_found_for_a_depthwise_channel_does_not_depend_on_the_others():
    own, x, target, gradient = a_convolution(6)
    start = own.minmax(x, Option(True, True))
    both = search(own, start, x, target, gradient, factors(20), rounds=1)
    gradient[:, 3:] *= 100
    again = search(own, start, x, target, gradient, factors(20), rounds=1)
    torch.testing.assert_close(both.inputs.scale[:, :3], again.inputs.scale[:, :3])
    torch.testing.assert_close(both.weight.scale[:3], again.weight.scale[:3])


def test_the_gradient_says_which_errors_count():
    own, x, target, gradient = a_convolution(bits=3)
    gradient[...] = 0
    gradient[:, 2] = 1
    start = own.minmax(x, TENSOR)
    found = search(own, start, x, target, gradient, factors())
    plain = search(own, start, x, target, torch.ones_like(gradient), factors())
    errors = [(target - own.quantised(x, g)).square()[:, 2].mean() for g in (found, plain)]
    assert errors[0] < errors[1]


def test_recipes_of_the_paper_and_of_the_released_code():
    dense, depthwise, linear = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 8)
    assert options_of(dense) == options_of(linear) == [Option(False, True)]
    assert options_of(depthwise) == [Option(True, True)]
    assert set(options_of(dense, "paper")) == {Option(a, b) for a in (0, 1) for b in (0, 1)}
    assert set(options_of(linear, "paper")) == {Option(False, True), Option(False, False)}
    models.assert_refused(lambda: options_of(dense, "papers"), "did you mean 'paper'")


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("option", [TENSOR, Option(False, False)])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 9), (2, 5, 12)),
        (nn.Linear(12, 9, bias=False), (3, 12)),
        (nn.Conv2d(6, 4, 1), (2, 6, 5, 3)),
    ],
)
def test_integers_give_what_is_faked_in_floats(layer, shape, option, bits):
    own = QuantLayer(copy.deepcopy(layer), bits, row_groups=1)
    x = torch.rand(shape) * 3 - 1
    own.grids = own.minmax(x, option)
    own.on = True
    with torch.no_grad():
        torch.testing.assert_close(own.in_integers(x), own(x), rtol=1e-5, atol=1e-5)


def test_scales_inside_the_sum_are_refused():
    own, x, *_ = a_convolution()
    models.assert_refused(lambda: own.in_integers(x), "dense 1×1 convolutions")
    dense = QuantLayer(nn.Conv2d(6, 6, 1), 8)
    models.assert_refused(lambda: dense.in_integers(x), "inputs must share one scale")
    dense.grids = dense.minmax(x, Option(True, True))
    models.assert_refused(lambda: dense.in_integers(x), "inputs must share one scale")


def test_row_groups_must_divide_the_outputs():
    models.assert_refused(lambda: QuantLayer(nn.Linear(3, 7), 8, 3), "outputs=7 must be")
    models.assert_refused(lambda: QuantLayer(nn.Linear(3, 7), 8, 0), "row_groups=0")


# ---- Networks


SMALL = dict(img_size=32, in_chans=1, num_classes=5, stem_chans=6, embed_dims=(6, 8, 10))
SMALL |= dict(attn_dims=(16, 20), depths=(1, 2, 1), num_features=16)


def small(separable=False):
    torch.manual_seed(0)
    how = dict(SMALL, separable=True, num_features=None) if separable else SMALL
    model = models.lively(MobileViT(**how))
    return models.calibrated(model, images(16)).eval()


def images(count=6):
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(1))


FAST = dict(count=12, rounds=1)


@pytest.mark.parametrize("separable", [False, True])
def test_folded_norms_leave_the_function_and_no_batch_norm(separable):
    model = small(separable)
    net = quantise(model, 8)
    torch.testing.assert_close(net(images()), model(images()), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in net.modules())
    kept = nn.GroupNorm if separable else nn.LayerNorm
    assert any(isinstance(part, kept) for part in net.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules())


@pytest.mark.parametrize(("name", "last"), [("xxs", "qkv"), ("s", "qkv"), ("v2_050", "qkv_proj")])
def test_bridges_are_found_by_what_they_are(name, last):
    model = refimpl.create_model(f"mobilevit_{name}")
    wanted = [
        [f"stages.{i}.1.conv_1x1", f"stages.{i}.1.transformer.0.attn.{last}"] for i in (2, 3, 4)
    ]
    assert bridge_layers(model) == wanted
    assert bridge_layers(nn.Sequential(nn.Conv2d(3, 3, 1))) == []


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("rule", ["released", "paper"])
def test_calibrated_at_eight_bits_it_answers_alike_and_is_a_copy(separable, rule):
    model = small(separable)
    before = copy.deepcopy(model)
    net = calibrate(model, images(), 8, rule=rule, **FAST)
    models.assert_same_tensors(model, before)
    with torch.no_grad():
        assert models.error(net(images()), model(images())) < 0.1
    for layer in layers_of(net).values():
        assert layer.on and not layer.grids.inputs.overflows.any()


def test_fewer_bits_are_worse_and_the_search_is_better_than_ranges():
    model = small()
    with torch.no_grad():
        wanted = model(images())
        errors = [
            models.error(minmax(quantise(model, b), images())(images()), wanted) for b in (8, 6, 4)
        ]
        assert errors[0] < errors[1] < errors[2]
        found = calibrate(model, images(), 4, **FAST)
        assert models.error(found(images()), wanted) < errors[2]


def test_the_divergence_has_no_gradient_where_nothing_is_rounded():
    """At its minimum; so the weights are taken where all layers are rounded by their ranges."""
    model = small()
    net = quantise(model, 4)
    _, answer = full_outputs(net, images())
    blind = output_gradients(net, images(), answer)
    seen = output_gradients(minmax(net, images()), images(), answer)
    assert blind.keys() == seen.keys() == set(layers_of(net))
    for name in seen:
        assert blind[name].abs().max() < 1e-6, name
        assert blind[name].norm() < 0.02 * seen[name].norm(), name


def block_error(net, block, outputs, gradients):
    """The weighted error at the end of a block, its own layers on and no other."""
    switch(net, False)
    for name in block:
        net.get_submodule(name).on = True
    last = net.get_submodule(block[-1])
    known = entering(net, block[-1], images()), outputs[block[-1]], gradients[block[-1]]
    with torch.no_grad():
        error = squares(last, last.grids, *known).item()
    switch(net, False)
    return error


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("bits", [3, 5])
def test_a_bridge_searched_in_turn_errs_no_more_than_one_layer_by_layer(separable, bits):
    model = small(separable)
    net = quantise(model, bits)
    outputs, answer = full_outputs(net, images())
    gradients = output_gradients(minmax(net, images()), images(), answer)
    switch(net, False)
    better = 0
    for block in bridge_layers(model):
        for name in block:
            reconstruct(net, [name], images(), outputs, gradients, factors(20), 1)
        apart = block_error(net, block, outputs, gradients)
        reconstruct(net, block, images(), outputs, gradients, factors(20), 1)
        as_one = block_error(net, block, outputs, gradients)
        assert as_one <= apart * (1 + 1e-6)
        better += as_one < apart
    assert better > 0


def test_calibration_is_each_layer_then_the_bridges(monkeypatch):
    blocks = []
    original = qhyvit.reconstruct

    def spy(net, block, *arguments):
        blocks.append(block)
        assert not any(layer.on for layer in layers_of(net).values())
        return original(net, block, *arguments)

    monkeypatch.setattr(qhyvit, "reconstruct", spy)
    model = small()
    calibrate(model, images(), 6, count=2, rounds=1)
    names = set(layers_of(quantise(model, 6)))
    assert {block[0] for block in blocks[: len(names)]} == names
    assert blocks[len(names) :] == bridge_layers(model)


def test_a_bridges_second_layer_gets_what_the_first_one_rounded_gives():
    model = small()
    net = calibrate(model, images(), 3, bridges=[], **FAST)
    switch(net, False)
    first, second = bridge_layers(model)[0]
    clean = entering(net, second, images())
    net.get_submodule(first).on = True
    assert models.error(entering(net, second, images()), clean) > 0.01


def test_a_shift_that_changes_nothing_ruins_clamped_zero_points_alone():
    """+8 on the output of a linear bottleneck, taken back in the bias of the layer behind it."""
    model = refimpl.create_model("efficientnet_lite0", num_classes=20)
    torch.manual_seed(0)
    x = torch.randn(8, 3, 64, 64)
    models.calibrated(models.lively(model), x).eval()
    net = quantise(model, 8, weights="channel")
    with torch.no_grad():
        wanted = net(x)
        c = 64.0
        bottleneck = net.get_submodule("blocks.1.0.project.conv").layer
        behind = net.get_submodule("blocks.1.1.expand.conv").layer
        after = net.get_submodule("blocks.1.1.project.conv").layer
        bottleneck.bias += c
        behind.bias -= c * behind.weight.sum((1, 2, 3))
        after.bias -= c  # the residual connection brings the shift along
        torch.testing.assert_close(net(x), wanted, rtol=1e-3, atol=1e-3)
        errors = {}
        layer = net.get_submodule("blocks.1.1.expand.conv")
        shifted_inputs = entering(net, "blocks.1.1.expand.conv", x)
        target = layer(shifted_inputs)
        for zero in quantisers.ZEROS:
            grids = layer.minmax(shifted_inputs, Option(True, False), zero)
            errors[zero] = models.error(layer.quantised(shifted_inputs, grids), target)
    assert errors["clamped"] > 10 * errors["contained"]
    assert errors["free"] < errors["contained"]


def test_weights_by_channel_by_tensor_and_by_kind():
    model = small()
    for weights, convolution, linear, qkv in (
        ("channel", 16, 16, 48),
        ("tensor", 1, 1, 1),
        ("released", 16, 1, 3),
    ):
        net = layers_of(quantise(model, 8, weights=weights))
        assert net["stages.1.1.conv_1x1"].row_groups == convolution
        assert net["stages.1.1.transformer.0.attn.proj"].row_groups == linear
        assert net["stages.1.1.transformer.0.attn.qkv"].row_groups == qkv


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (dict(bits=1), "bits=1 must be an integer of at least 2"),
        (dict(bits=8, rule="official"), "rule='official' is not known"),
        (dict(bits=8, weighting="hessian"), "weighting='hessian' is not known"),
        (dict(bits=8, count=0), "count=0"),
        (dict(bits=8, rounds=0), "rounds=0"),
        (dict(bits=8, bridges=[["stages.1.1.conv_1x2"]]), "did you mean 'stages.1.1.conv_1x1'"),
    ],
)
def test_bad_input_of_calibration_is_named(how, words):
    models.assert_refused(lambda: calibrate(small(), images(2), **how), words)


def test_unknown_weights_are_named():
    models.assert_refused(lambda: quantise(small(), 8, weights="row"), "weights='row'")
