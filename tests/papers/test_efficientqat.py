"""EfficientQAT: reference outputs; the quantiser's gradients; packing; both phases; sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import refimpl
from refimpl import weights
from refimpl.bases.llama import Llama, causal_loss
from refimpl.kernels.packed_product import pack, packed_product
from refimpl.papers import efficientqat
from refimpl.papers.efficientqat import (
    PackedLinear,
    QuantLinear,
    block_optimizer,
    empty_packed,
    fake_quantise,
    initial_grid,
    packed_bytes,
    reconstruct,
    replace_layers,
    round_to_nearest,
    train_blocks,
    train_scales,
    training_bytes,
)
from shared import models

STEM = "efficientqat"
GIB = 2**30


def test_official(official_case):
    """By what the file records: the quantiser, the packed layer, or steps of Block-AP."""
    if "qweight" in official_case.data["outputs"]:
        check_packing(official_case)
    elif "losses" in official_case.data["outputs"]:
        check_steps(official_case)
    else:
        check_quantiser(official_case)


def tensors(case, *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(case.recorded(name)) for name in names]


def check_quantiser(case):
    bits, group_size = case.arguments["bits"], case.arguments["group_size"]
    weight, scale, zero_point, upstream = tensors(case, *case.data["inputs"])
    leaves = [tensor.requires_grad_() for tensor in (weight, scale, zero_point)]
    dequantised = fake_quantise(*leaves, bits)
    gradients = torch.autograd.grad(dequantised, leaves, upstream)
    init_scale, init_zero_point = initial_grid(weight.detach(), bits, group_size)
    outputs = {
        "init_scale": init_scale,
        "init_zero_point": init_zero_point,
        "dequantised": dequantised,
        "grad_weight": gradients[0],
        "grad_scale": gradients[1],
        "grad_zero_point": gradients[2],
    }
    check_every_value(case, outputs)


def check_packing(case):
    bits = case.arguments["bits"]
    weight, scale, zero, bias, x, upstream = tensors(
        case, "weight", "scale", "zero_point", "bias", "x", "upstream"
    )
    groups = scale.T  # (out, in/g)
    codes = (weight.unflatten(1, (len(scale), -1)) / groups[..., None]).round()
    codes = (codes + zero.T[..., None]).flatten(1).long()
    layer = PackedLinear.from_integers(codes, zero.T.long(), groups, bits, bias)
    assert torch.equal(layer.qweight, torch.from_numpy(case.recorded("qweight")))
    assert torch.equal(layer.qzeros, torch.from_numpy(case.recorded("qzeros")))
    y = layer(x.requires_grad_())
    grad_scales, grad_x = torch.autograd.grad(y, (layer.scales, x), upstream)
    outputs = {"scales_fp16": layer.scales, "output": y}
    outputs |= {"grad_scales": grad_scales, "grad_x": grad_x}
    words = {"qweight": layer.qweight, "qzeros": layer.qzeros}
    check_every_value(case, outputs | words)


def check_every_value(case, outputs, rtol=1e-5, atol=1e-6):
    """Value by value, and as a fraction of the norm for the book's table."""
    for name, tensor in outputs.items():
        wanted = torch.from_numpy(case.recorded(name))
        torch.testing.assert_close(tensor.detach(), wanted, rtol=rtol, atol=atol, msg=name)
        if wanted.any():
            case.deviations[name] = models.error(tensor.detach().double(), wanted.double())


class SmallBlock(nn.Module):
    """x + down(silu(up(LayerNorm(x)))), as the recorded steps have it."""

    def __init__(self, up, down):
        super().__init__()
        self.norm = nn.LayerNorm(up.shape[1])
        self.up = nn.Linear(up.shape[1], up.shape[0], bias=False)
        self.down = nn.Linear(down.shape[1], down.shape[0], bias=False)
        self.up.weight.data = up
        self.down.weight.data = down

    def forward(self, x):
        return x + self.down(F.silu(self.up(self.norm(x))))


def check_steps(case):
    arguments = case.arguments
    x, up, down = tensors(case, "x", "up", "down")
    block = SmallBlock(up, down)
    with torch.no_grad():
        targets = block(x)
    sizes = arguments["bits"], arguments["group_size"]
    replace_layers(block, nn.Linear, lambda layer: QuantLinear(layer, *sizes))
    optimizer = block_optimizer(block, arguments["quant_lr"], arguments["weight_lr"])
    losses = []
    for step in range(arguments["steps"]):
        rows = slice(8 * (step % 3), 8 * (step % 3) + 8)
        loss = F.mse_loss(block(x[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    outputs = {"losses": torch.stack(losses)}
    for name in ("up", "down"):
        layer = getattr(block, name)
        grid = (layer.scale, layer.zero_point)
        outputs |= {f"{name}_scale": grid[0], f"{name}_zero": grid[1]}
        outputs[f"{name}_final"] = fake_quantise(layer.weight, *grid, arguments["bits"])
    outputs |= {"norm_weight": block.norm.weight, "norm_bias": block.norm.bias}
    recorded = case.data["outputs"]
    if "up_weight" in recorded:
        outputs["up_weight"] = outputs["up_final"]
    check_every_value(case, {k: v for k, v in outputs.items() if k in recorded}, rtol=1e-3)
    assert recorded.keys() <= outputs.keys()


# ---- The quantiser


def a_layer(bits=2, group_size=16, outputs=6, inputs=32, bias=False) -> QuantLinear:
    torch.manual_seed(0)
    layer = QuantLinear(nn.Linear(inputs, outputs, bias), bits, group_size)
    with torch.no_grad():
        layer.scale *= 0.6  # so that some weights are clipped
    return layer


@settings(deadline=None, max_examples=12, derandomize=True)
@given(st.integers(1, 8), st.sampled_from([4, 8, 32, -1]))
def test_gradients_have_the_closed_forms(bits, group_size):
    layer = a_layer(bits, group_size).double()
    upstream = torch.randn(6, 32, dtype=torch.float64)
    leaves = (layer.weight, layer.scale, layer.zero_point)
    found = torch.autograd.grad(fake_quantise(*leaves, bits), leaves, upstream)
    w = layer.weight.reshape(len(layer.scale), -1)
    u = upstream.reshape(w.shape)
    s, z = layer.scale, layer.zero_point.round().clamp(0, 2**bits - 1)
    steps = (w / s).round()
    bound = (steps + z).clamp(0, 2**bits - 1)
    inside = bound == steps + z
    of_scale = torch.where(inside, u * (steps - w / s), u * (bound - z))
    of_zero = torch.where(inside, 0, -u * s)
    torch.testing.assert_close(found[0], (u * inside).view_as(upstream))
    torch.testing.assert_close(found[1], of_scale.sum(1, keepdim=True))
    torch.testing.assert_close(found[2], of_zero.sum(1, keepdim=True))


@settings(deadline=None, max_examples=12, derandomize=True)
@given(st.integers(1, 8), st.sampled_from([8, 16, -1]))
def test_levels_are_a_fixed_point(bits, group_size):
    layer = a_layer(bits, group_size)
    once = fake_quantise(layer.weight, layer.scale, layer.zero_point, bits)
    codes, *_ = layer.integers()
    layer.weight.data = once.detach()
    torch.testing.assert_close(fake_quantise(once, layer.scale, layer.zero_point, bits), once)
    assert torch.equal(layer.integers()[0], codes)
    assert codes.min() >= 0 and codes.max() <= 2**bits - 1
    for group in once.reshape(len(layer.scale), -1):
        assert len(group.unique()) <= 2**bits


def test_eight_bits_per_row_are_nearly_the_layer():
    linear = nn.Linear(64, 32)
    x = torch.randn(5, 64)
    with torch.no_grad():
        assert models.error(QuantLinear(linear, 8, -1)(x), linear(x)) < 0.01


def test_weights_within_a_range_stay_within_half_a_step():
    linear = nn.Linear(32, 8, bias=False)
    scale, zero_point = initial_grid(linear.weight, 4, 8)
    apart = fake_quantise(linear.weight, scale, zero_point, 4) - linear.weight
    # the zero point is rounded as well, which moves the ends of the range by half a step
    assert (apart.reshape(len(scale), -1).abs() <= scale * (1 + 1e-5)).all()


# ---- Packing


def test_a_zero_point_outside_the_codes_is_clamped_before_it_is_packed():
    """As the official code packs it, −2 would set bits of its neighbours."""
    layer = a_layer(outputs=4)
    layer.weight.data = layer.weight.data.abs() + 1
    layer.scale.data, layer.zero_point.data = initial_grid(layer.weight, 2, 16)
    unclamped = layer.zero_point.long().view(4, 2)
    assert (unclamped < 0).all()
    models.assert_refused(lambda: pack(unclamped, 2), "must lie between 0 and 3")
    packed = PackedLinear.of(layer)
    assert not packed.integers()[1].any()
    x = torch.randn(3, 32)
    torch.testing.assert_close(packed(x), layer(x), rtol=2e-3, atol=2e-3)


def test_codes_of_a_float16_block_can_differ_from_those_that_trained():
    """The official code casts to float16, then rounds: weights near a middle change sides."""
    torch.manual_seed(0)
    layer = QuantLinear(nn.Linear(512, 256, bias=False), 4, 128)
    trained, *_ = layer.integers()
    layer.weight.data = layer.weight.data.half().float()
    layer.scale.data = layer.scale.data.half().float()
    recovered, *_ = layer.integers()
    changed = (recovered - trained).abs()
    assert 0 < (changed > 0).float().mean() < 0.02 and changed.max() == 1


def test_three_bits_take_more_than_three():
    layer = PackedLinear(320, 8, 3, 64)
    assert layer.qweight.numel() * 32 / (320 * 8) == 3.2


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group_size", [5, 15, -1])
def test_a_packed_layer_computes_what_was_trained(bits, group_size):
    layer = a_layer(bits, group_size, outputs=7, inputs=30, bias=True)
    packed = PackedLinear.of(layer)
    codes, zeros, _ = layer.integers()
    assert torch.equal(packed.integers()[0].long(), codes)
    assert torch.equal(packed.integers()[1].long(), zeros)
    x = torch.randn(2, 3, 30)
    assert models.error(packed(x), layer(x)) < 2e-3  # scales and bias are float16


# ---- The two phases


SMALL = dict(vocab_size=40, embed_dim=16, hidden_dim=32, depth=3, num_heads=2, num_kv_heads=1)


def small() -> Llama:
    torch.manual_seed(0)
    model = models.lively(Llama(**SMALL))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 12  # so that blocks change what passes them
    return model


def some_ids(segments: int = 12, length: int = 8) -> torch.Tensor:
    return torch.randint(40, (segments, length), generator=torch.Generator().manual_seed(1))


RATES = dict(epochs=3, batch_size=4, quant_lr=1e-2, weight_lr=1e-2)


def test_blocks_are_trained_one_by_one_on_what_the_blocks_before_give():
    model, ids = small(), some_ids()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []

    def listen(i, learner, losses):
        assert losses[-1] < losses[0] and len(losses) == 9
        seen.append(i)

    packed = train_blocks(model, ids, 2, 8, listen=listen, **RATES)
    assert seen == [0, 1, 2]
    models.assert_same_tensors(model, small())
    assert before.keys() == model.state_dict().keys()
    for name in ("embed_tokens.weight", "norm.weight", "lm_head.weight"):
        assert torch.equal(packed.state_dict()[name], before[name])
    assert not any(isinstance(layer, nn.Linear) for layer in packed.layers.modules())


def test_the_second_block_gets_noisy_inputs_and_clean_targets(monkeypatch):
    model, ids = small(), some_ids()
    given = []
    original = efficientqat.reconstruct

    def spy(block, inputs, targets, **options):
        given.append((inputs, targets))
        return original(block, inputs, targets, **options)

    monkeypatch.setattr(efficientqat, "reconstruct", spy)
    packed = train_blocks(model, ids, 2, 8, **RATES)
    with torch.no_grad():
        clean = [model.embed(ids)]
        noisy = [packed.embed(ids)]
        for block, other in zip(model.layers, packed.layers, strict=True):
            clean.append(block(clean[-1]))
            noisy.append(other(noisy[-1]))
    for i, (inputs, targets) in enumerate(given):
        torch.testing.assert_close(inputs, noisy[i])
        torch.testing.assert_close(targets, clean[i + 1])
    assert torch.equal(given[0][0], clean[0])
    assert models.error(given[1][0], clean[1]) > 0.01


def test_training_blocks_comes_closer_than_rounding_and_weights_matter():
    model, ids = small(), some_ids()
    with torch.no_grad():
        wanted = model.forward_features(ids)
        errors = {}
        for name, rate in (("all", 1e-2), ("grids", 0.0)):
            packed = train_blocks(model, ids, 2, 8, **RATES | {"weight_lr": rate, "epochs": 12})
            errors[name] = models.error(packed.forward_features(ids), wanted)
        nearest = round_to_nearest(model, 2, 8)
        errors["nearest"] = models.error(nearest.forward_features(ids), wanted)
    assert errors["all"] < errors["grids"] < errors["nearest"]


def test_all_weights_train_and_biases_stay():
    """Every parameter that is named a weight, the norms' too; a bias is a buffer."""
    block = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16))
    replace_layers(block, nn.Linear, lambda layer: QuantLinear(layer, 2, 8))
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    x, y = torch.randn(2, 8, 16)
    reconstruct(block, x, y, **RATES)
    moved = {n for n, t in block.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {"0.weight", "1.weight", "1.scale", "1.zero_point"}


def test_gradients_of_a_block_are_not_clipped():
    """Losses a million times larger move AdamW's weights as far: there is no bound on a norm."""
    ends = []
    for factor in (1.0, 1e3):
        torch.manual_seed(0)
        block = nn.Sequential(QuantLinear(nn.Linear(16, 8, bias=False), 8, 8))
        gradients = []
        block[0].weight.register_hook(lambda g, kept=gradients: kept.append(g.norm().item()))
        x = torch.randn(4, 16)
        y = factor * torch.randn(4, 8)
        reconstruct(block, x, y, epochs=1, batch_size=4, quant_lr=0.0, weight_lr=1e-3)
        ends.append(gradients[0])
    assert ends[1] > 100 * ends[0]


def test_learning_rates_follow_a_plain_cosine():
    steps = [efficientqat.cosine(step, 4) for step in range(5)]
    assert steps == pytest.approx([1, 0.86088, 0.525, 0.18912, 0.05], abs=1e-5)


def test_only_scales_learn_end_to_end():
    ids = some_ids()
    model = round_to_nearest(small(), 2, 8)
    trained = train_scales(model, ids, steps=20, batch_size=6, lr=1e-2)
    state, other = model.state_dict(), trained.state_dict()
    moved = {name.rsplit(".", 1)[-1] for name in state if not torch.equal(state[name], other[name])}
    assert moved == {"scales"}
    asked = {n.rsplit(".", 1)[-1] for n, p in trained.named_parameters() if p.requires_grad}
    assert asked == {"scales"}
    assert causal_loss(trained, ids) < causal_loss(model, ids)
    for layer in trained.modules():
        if isinstance(layer, PackedLinear):
            assert torch.equal(layer.scales, layer.scales.half().float())


def test_the_gradient_of_a_scale_is_the_groups_sum():
    packed = PackedLinear.of(a_layer())
    x, upstream = torch.randn(5, 32), torch.randn(5, 6)
    (found,) = torch.autograd.grad(packed(x), packed.scales, upstream)
    codes, zeros = packed.integers()
    of_weight = upstream.T @ x  # (out, in)
    levels = codes.unflatten(1, (2, 16)) - zeros[..., None]
    wanted = (of_weight.unflatten(1, (2, 16)) * levels).sum(-1).T
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_model():
    ids = some_ids()
    first, second = (train_blocks(small(), ids, 3, 16, **RATES, seed=3) for _ in range(2))
    models.assert_same_tensors(first, second)


# ---- Sizes, files, what a user does next


TABLE = {  # GiB, from the shapes: float16, then (bits, group size)
    "2_7b": (12.55, {(4, 128): 3.62, (3, 128): 3.02, (2, 64): 2.21, (2, 128): 2.10}),
    "2_13b": (24.24, {(4, 128): 6.75, (3, 128): 5.56, (2, 64): 3.98, (2, 128): 3.77}),
    "2_70b": (128.48, {(4, 128): 34.10, (3, 128): 27.69, (2, 64): 19.16, (2, 128): 18.04}),
    "3_8b": (14.96, {(4, 128): 5.33, (3, 128): 4.68, (2, 64): 3.81, (2, 128): 3.70}),
    "3_70b": (131.42, {(4, 128): 37.04, (3, 128): 30.63, (2, 64): 22.10, (2, 128): 20.97}),
}


@pytest.mark.parametrize("variant", TABLE)
def test_sizes_follow_from_the_shapes_in_gib(variant):
    with torch.device("meta"):
        model = refimpl.create_model(f"llama_{variant}")
    whole, packed = TABLE[variant]
    assert packed_bytes(model) / GIB == pytest.approx(whole, abs=0.01)
    for sizes, wanted in packed.items():
        assert packed_bytes(model, *sizes) / GIB == pytest.approx(wanted, abs=0.01)


def test_counted_bytes_are_those_of_the_tensors():
    """The published 19.2 and 24.2 are GiB."""
    model = small()
    for bits in (2, 3, 4, 8):
        packed = round_to_nearest(model, bits, 8)
        real = 0
        for name, tensor in packed.state_dict().items():
            real += tensor.numel() * (4 if name.endswith(("qweight", "qzeros")) else 2)
        assert packed_bytes(model, bits, 8) == real


def test_training_memory_is_that_of_a_block_then_of_the_scales():
    with torch.device("meta"):
        model = refimpl.create_model("llama_2_7b")
    held = training_bytes(model, 2, 64)
    assert held["everything"] / 1e9 == pytest.approx(107.8, abs=0.1)
    groups = 202_375_168 // 64
    assert held["block"] == 16 * (202_375_168 + 2 * 4096 + 2 * groups)
    assert held["scales"] == packed_bytes(model, 2, 64) + 16 * 32 * groups


def test_official_packed_checkpoints_load():
    """Their names, with the unused index of groups that the format keeps."""

    def checkpoint(model):
        state = {}
        for name, tensor in model.state_dict().items():
            theirs = name if name == "lm_head.weight" else f"model.{name}"
            state[theirs] = tensor if tensor.dtype == torch.int32 else tensor.half()
            if name.endswith("qweight"):
                state[theirs.replace("qweight", "g_idx")] = torch.zeros(3, dtype=torch.int32)
        return state

    def build():
        return empty_packed(Llama(**SMALL), 2, 16).eval()

    models.assert_checkpoint_loads(build, checkpoint)
    with torch.device("meta"):
        empty = empty_packed(refimpl.create_model("llama_2_70b"), 2, 64)
    assert empty.layers[79].mlp.down_proj.qweight.shape == (28_672 // 16, 8192)


def test_a_packed_model_is_saved_loaded_and_fused(tmp_path):
    model, ids = round_to_nearest(small(), 3, 8).eval(), some_ids()
    weights.save(model, tmp_path / "packed.safetensors")
    other = weights.load(empty_packed(small(), 3, 8), tmp_path / "packed.safetensors")
    with torch.inference_mode():
        assert torch.equal(other(ids), model(ids))
        assert models.error(model.fuse()(ids), model(ids)) < 1e-5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: round_to_nearest(small(), 9, 8), "bits=9 must be at most 8"),
        (lambda: round_to_nearest(small(), 0, 8), "bits=0"),
        (lambda: round_to_nearest(small(), 2, 5), "group_size=5 must be -1 or divide"),
        (lambda: round_to_nearest(small(), 2, 0), "group_size=0"),
        (lambda: packed_bytes(small(), 2, 7), "group_size=7"),
        (lambda: empty_packed(small(), 2, 7), "group_size=7"),
        (lambda: initial_grid(torch.full((2, 4), torch.nan), 2, 4), "weight holds NaN"),
        (lambda: train_scales(small(), some_ids(), steps=1), "model has no packed layer"),
        (lambda: train_blocks(small(), some_ids().float(), 2, 8), "must be integers"),
        (lambda: train_blocks(small(), some_ids(), 2, 8, epochs=0), "epochs=0"),
        (lambda: train_blocks(small(), some_ids(), 2, 8, weight_lr=-1.0), "weight_lr=-1.0"),
        (
            lambda: train_scales(round_to_nearest(small(), 2, 8), some_ids(), steps=0),
            "steps=0",
        ),
        (
            lambda: train_scales(round_to_nearest(small(), 2, 8), some_ids(), steps=1, lr=0.0),
            "lr=0.0",
        ),
    ],
)
def test_bad_arguments_are_named(call, words):
    models.assert_refused(call, words)


def test_bad_calibration_and_bad_integers_are_named():
    block = nn.Sequential(QuantLinear(nn.Linear(4, 4), 2, 4))
    bad = torch.full((2, 4), torch.nan)
    models.assert_refused(
        lambda: reconstruct(block, bad, torch.ones(2, 4), **RATES), "inputs of a block hold NaN"
    )
    codes, zeros = torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 1, dtype=torch.int64)
    scales = torch.tensor([[0.1], [0.0]])
    models.assert_refused(
        lambda: PackedLinear.from_integers(codes, zeros, scales, 2),
        "must be finite and above 0",
    )
    models.assert_refused(
        lambda: PackedLinear.from_integers(codes * 4, zeros, scales + 1, 2), "codes run from 4"
    )
    layer = PackedLinear.from_integers(codes, zeros, scales + 1, 2)
    models.assert_refused(
        lambda: packed_product(torch.ones(1, 17), layer.qweight, layer.qzeros, layer.scales, 2),
        "qweight must be",
    )
