"""ShiftAddViT: equal to the official code, codes, shifts, routers and their balance, refusals."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refimpl
from refimpl import golden, weights
from refimpl.bases import accelerator
from refimpl.bases.deepshift import (
    ShiftLinear,
    fixed_point,
    power_of_two,
    shift_weight,
    sum_of_two_powers,
)
from refimpl.lab import measure
from refimpl.papers.shiftaddvit import (
    NAMES,
    NOISE,
    VARIANTS,
    HashAttention,
    MixtureLinear,
    ShiftAddViT,
    ThresholdAttention,
    add_attention,
    balance_loss,
    code_map,
    hash_codes,
    mixture,
    mixture_loss,
    routes,
    stay_probability,
    threshold_codes,
    variation,
    with_experts,
)
from refimpl.viz import attention
from shared import models

STEM = "shiftaddvit"
SMALL = dict(img_size=64, num_classes=5, embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
SMALL |= dict(num_heads=(1, 2, 2, 4), mlp_ratios=(2, 2, 2, 2))
KINDS = {"sra": "sra", "msa": "msa", "LinAngular": "hash", "LinAngular_binary": "threshold"}


def build(seed=0, **options):
    torch.manual_seed(seed)
    return models.lively(ShiftAddViT(**SMALL | options))


# ---------------------------------------------------------------- the official code


def official_name(name: str) -> str:
    """The authors' name of one of our tensors: the name map the other way round."""

    def stage(found):
        part = {"blocks": "block"}.get(found[2], found[2])
        return f"{part}{int(found[1]) + 1}."

    name = re.sub(r"^stages\.(\d)\.(patch_embed|blocks|norm)\.", stage, name)
    name = name.replace("dwconv.", "dwconv.dwconv.").replace(".router.", ".gate.gate.")
    ours = {".projection": "A", ".centre": "mvec", ".anchors": "anchor"}
    for ending, theirs in ours.items():
        name = re.sub(rf"{ending}$", f".qk_quant.ksh.{theirs}", name)
    return name


def official_spec(model) -> dict[str, list[int]]:
    return {official_name(name): list(tensor.shape) for name, tensor in model.state_dict().items()}


def special(name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    """What a case keeps at its start, by the rule of the sheet; `None` for other tensors."""
    if name.endswith("ksh.anchor"):
        return F.normalize(torch.from_numpy(golden.values(name, shape)), dim=-1)
    if name.endswith("ksh.mvec"):
        return torch.full(shape, 0.6)
    if re.search(r"experts\.1\.(shift|sign)$", name):
        dense = re.sub(r"experts\.1\.(shift|sign)$", "experts.0.weight", name)
        shift, sign = power_of_two(torch.from_numpy(golden.values(dense, shape)))
        return shift if name.endswith("shift") else sign
    return None


def built(case) -> ShiftAddViT:
    given = dict(case.kwargs)
    size = re.match(r"pvt_v2_(b\d)", case.name)[1]
    kind = "li" if "_li" in case.name.replace("_linangular", "") else KINDS[given["attn_type"]]
    options = dict(img_size=given["img"], attention=kind, weighted=False)
    if "num_classes" in given:
        options["num_classes"] = given["num_classes"]
    base = {k: v for k, v in VARIANTS[f"{size}_sra"].items() if k != "attention"}
    model = ShiftAddViT(**base | options, moe=bool(given.get("moe_mlp"))).eval()
    spec = case.data["state"] or official_spec(model)
    own = model.state_dict()
    for name, shape in spec.items():
        tensor = special(name, tuple(shape))
        if tensor is not None:
            own[weights.rename(name, NAMES["official"])].copy_(tensor)
    return case.fill(model, spec=spec)


def test_official(official_case):
    case = official_case
    if "kwargs" not in case.data:
        name = next(name for name in sorted(FUNCTIONS, key=len)[::-1] if case.name.startswith(name))
        FUNCTIONS[name](case)
        return
    model = built(case)
    case.check_params(model)
    images = case.inputs()[0]
    exact = case.kwargs["attn_type"] in ("sra", "msa")
    with torch.inference_mode():
        logits = model(images)
        # Where codes or routes have thresholds, a bit may flip on a rounding
        case.check(logits, rtol=1e-4 if exact else 1e-3)
        if case.kwargs["img"] == 64:
            assert models.error(model.fuse()(images), logits) < (1e-5 if exact else 1e-3)
    if not case.kwargs.get("moe_mlp"):
        assert measure.macs(model, images) == pytest.approx(case.data["macs"], rel=2e-2)


def tensors(case, *names):
    return [torch.from_numpy(case.recorded(name)) for name in names]


def check_powers(case):
    (weight,) = case.inputs()
    shift, sign = power_of_two(weight)
    found = {"shift": shift, "sign": sign, "rounded": torch.exp2(shift) * sign}
    for name, value in found.items():
        torch.testing.assert_close(value, tensors(case, name)[0], rtol=1e-6, atol=0)
    two = tensors(case, "apot_value")[0]
    torch.testing.assert_close(sum_of_two_powers(weight), two, rtol=1e-6, atol=1e-7)


def check_fixed_point(case):
    (x,) = case.inputs()
    found = {}
    for name in case.data["outputs"]:
        integer, fraction = re.fullmatch(r"i(\d+)f(\d+)", name).groups()
        found[name] = fixed_point(x, int(integer), int(fraction))
    case.check(found, rtol=1e-7)


def check_shift_linear(case):
    x, shift, sign, bias, upstream = case.inputs()
    layer = ShiftLinear(shift.shape[1], shift.shape[0])
    layer.load_state_dict(dict(shift=shift, sign=sign, bias=bias))
    x.requires_grad_()
    y = layer(x)
    y.backward(upstream)
    found = {"output": y, "shift_after": shift.clamp(-14, 0), "grad_x": x.grad}
    found |= {f"grad_{name}": p.grad for name, p in layer.named_parameters()}
    case.check(found, rtol=1e-6)


def check_hash(case):
    unit, anchors, centre, projection = case.inputs()
    case.check(hash_codes(unit, anchors, centre, projection), rtol=0)


def check_attention(case):
    x = case.inputs()[0]
    heads, grid = case.arguments["num_heads"], (case.arguments["H"], case.arguments["W"])
    layer = ThresholdAttention(x.shape[-1], heads)
    if case.name.startswith("attention_ksh"):
        layer = HashAttention(x.shape[-1], heads, nn.Linear)
    state = {name: torch.from_numpy(case.recorded(name)) for name in [*case.data["inputs"]][1:]}
    rules = [(r"qk_quant\.ksh\.A$", "projection"), (r"qk_quant\.ksh\.mvec$", "centre")]
    rules += [(r"qk_quant\.ksh\.anchor$", "anchors")]
    weights.load_official(layer, state, rules=rules)
    case.check(layer(x, grid), rtol=1e-6)


def check_naive_gate(case):
    """The released default: exact ones; and a counter that can't tell experts apart (d1, d5)."""
    x, weight, bias = case.inputs()
    gates = F.one_hot((x @ weight.T + bias).argmax(-1), 2).float()
    case.check({"gates": gates, "shift_ratio": np.float64(1.0)}, rtol=0)


def released_load(clean, noisy, top, scale):
    """The released estimate of the load; its thresholds come from what `top` holds."""
    high, low = top.max(-1, keepdim=True).values, top.min(-1, keepdim=True).values
    threshold = torch.where(noisy > low, low, high)
    return torch.special.ndtr((clean - threshold) / scale).sum(0)


def check_noisy_gate(case):
    """Both noisy gates: the second takes its thresholds from probabilities (d2)."""
    second = case.name.startswith("gate_noisy_v2")
    x, noise, weight = case.inputs()[:3]
    weight.requires_grad_()
    clean = x @ weight
    scale = NOISE if second else F.softplus(x @ case.inputs()[3]) + 0.01
    noisy = clean + noise * scale
    top = noisy.softmax(-1) if second else noisy
    chosen = F.one_hot(noisy.argmax(-1), 2)
    gates = chosen * (top if second else 1.0)
    importance = clean.softmax(-1).sum(0) if second else gates.sum(0)
    latencies = torch.tensor(case.arguments["latency_weights"], dtype=torch.float32)
    load = released_load(clean, noisy, top, scale)
    loss = variation(latencies * importance) + variation(latencies * load)
    (grad,) = torch.autograd.grad(loss, weight)
    case.check({"gates": gates, "loss": loss, "grad_w_gate": grad}, rtol=1e-4)


def check_dispatch(case):
    """The released way back to tokens equals a plain sum where gates are ones (d3)."""
    x, gates = case.inputs()
    experts = (lambda x: 2 * x, lambda x: x - 1)
    y = mixture(x, gates, experts, weighted=False)
    case.check({"part_sizes": (gates > 0).sum(0), "output": y}, rtol=1e-6)


def check_energy(case):
    kinds = {"Conv": "conv", "FC": "linear", "Shift": "shift", "Add": "add"}
    found = []
    for kind, sizes in zip(case.arguments["types"], case.recorded("layers"), strict=True):
        layer = accelerator.Layer(kinds[kind], *(int(size) for size in sizes))
        costs = list(accelerator.bill(layer))
        found.append(costs[:6] + [0.0] + costs[6:])  # from memory to buffer is free in the code
    case.check({"metrics": np.array(found)}, rtol=1e-9)


FUNCTIONS = {
    "energy_model": check_energy,
    "power_of_two": check_powers,
    "fixed_point": check_fixed_point,
    "shift_linear": check_shift_linear,
    "kernel_hash": check_hash,
    "attention_": check_attention,
    "gate_naive": check_naive_gate,
    "gate_noisy": check_noisy_gate,
    "dispatch": check_dispatch,
}


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        *(("b0_sra", 3_666_760), ("b0_msa", 3_198_280), ("b0", 3_136_472), ("b0_moe", 6_771_484)),
        *(("b1_sra", 14_009_000), ("b1_msa", 12_138_152), ("b2", 20_367_897)),
        *(("b2_sra", 25_362_856), ("b2_msa", 21_062_376), ("b2_li", 22_553_512)),
        *(("b3", 34_084_917), ("b3_sra", 45_238_696), ("b3_msa", 36_011_496)),
        *(("b4", 45_667_090), ("b4_sra", 62_556_072), ("b4_msa", 48_583_720)),
        *(("b5", 58_953_015), ("b5_sra", 81_956_008), ("b5_msa", 63_171_432)),
    ],
)
def test_parameters_of_the_table(variant, parameters):
    with torch.device("meta"):
        assert measure.parameters(refimpl.create_model(f"shiftaddvit_{variant}")) == parameters


def test_timm_gives_the_same_output(timm):
    ours, theirs = refimpl.create_model("shiftaddvit_b0_sra"), timm.create_model("pvt_v2_b0")
    models.assert_equals_peer(ours, theirs, torch.randn(1, 3, 224, 224))


# ---------------------------------------------------------------- codes and sums


def test_masked_sums_are_the_products():
    queries, keys = (torch.rand(2, 2, 3, 9, 16) > 0.5).float()
    values = torch.randn(2, 3, 9, 4)
    found = add_attention(queries, keys, values)
    for b, head, n in ((0, 0, 0), (1, 2, 8)):
        bits = [values[b, head][keys[b, head, :, j] > 0].sum(0) for j in range(16)]
        read = sum((bits[j] for j in range(16) if queries[b, head, n, j]), torch.zeros(4))
        read = values[b, head, n] / 2 + read / math.pi
        torch.testing.assert_close(found[b, head, n], read / read.norm(), rtol=1e-4, atol=1e-5)


def test_the_map_of_codes_is_what_attention_reads_by():
    queries, keys = (torch.rand(2, 2, 3, 9, 16) > 0.5).double()
    values = torch.randn(2, 3, 9, 4, dtype=torch.float64)
    weights = code_map(queries, keys)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 9, dtype=torch.float64))
    assert weights.min() >= 0
    found = F.normalize(weights @ values, dim=-1)
    torch.testing.assert_close(found, add_attention(queries, keys, values))


@pytest.mark.parametrize("kind", ["hash", "threshold", "msa"])
def test_maps_of_every_stage_can_be_recorded(kind):
    net = build(attention=kind, img_size=(64, 96)).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad(), attention.record(net) as maps:
        seen = net(images)
    with torch.no_grad():
        assert torch.equal(net(images), seen)
    assert [found.grid for found in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for found, heads in zip(maps, SMALL["num_heads"], strict=True):
        tokens = found.grid[0] * found.grid[1]
        assert found.to_image().shape == (2, heads, tokens, tokens)
        torch.testing.assert_close(found.weights.sum(-1), torch.ones(2, heads, tokens))


def test_hashed_codes_of_an_image_do_not_depend_on_its_batch():
    """shiftaddvit.d4: those by the threshold do, as in the released code."""
    net = build(attention="hash").double()
    other = build(attention="threshold").double()
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(images)[:1], net(images[:1]))
    x = torch.randn(2, 2, 9, 4)
    apart = threshold_codes(x)[:1] != threshold_codes(torch.cat([x[:1], 1 + x[1:].abs()]))[:1]
    assert apart.any() and other(images).isfinite().all()


def test_fitting_the_hash_is_asked_for_and_makes_codes_agree_with_angles():
    """shiftaddvit.d7: the forward pass never fits."""
    torch.manual_seed(0)
    layer, x = HashAttention(16, 2, nn.Linear), torch.randn(2, 36, 16)
    before = layer.state_dict()["projection"].clone()
    layer(x, (6, 6))
    assert torch.equal(layer.projection, before)
    layer.fit(x)
    assert not torch.equal(layer.projection, before)
    unit = layer.unit_tokens(x)
    codes = hash_codes(unit, layer.anchors, layer.centre, layer.projection)
    assert set(codes.unique().tolist()) == {0.0, 1.0}
    cosine = (unit @ unit.mT)[0, 0].flatten()
    agree = (codes[0, 0][:, None] == codes[0, 0][None]).float().mean(-1).flatten()
    assert torch.corrcoef(torch.stack([cosine, agree]))[0, 1] > 0.3


# ---------------------------------------------------------------- shifts


def test_a_power_of_two_is_within_a_factor_of_root_two():
    torch.manual_seed(0)
    dense, layer = nn.Linear(50, 40), ShiftLinear(50, 40)
    layer.copy_dense(dense)
    ratio = shift_weight(layer.shift, layer.sign) / dense.weight
    inside = dense.weight.abs() > 2**-14.4
    assert ratio[inside].min() >= 2**-0.5 - 1e-6 and ratio[inside].max() <= 2**0.5 + 1e-6
    spread = torch.rand(200_000, dtype=torch.float64) * 8 - 9
    weight = torch.exp2(spread)  # uniform in its logarithm
    wrong = (torch.exp2(power_of_two(weight)[0]) / weight - 1).abs()
    assert wrong.mean() == pytest.approx((2**0.5 + 2**-0.5 - 2) / math.log(2), rel=5e-3)
    assert wrong.max() <= 2**0.5 - 1 + 1e-9


def test_rounding_down_is_biased():
    """shiftaddvit.d6."""
    x = torch.rand(10_000) * 8 - 4
    gap = (fixed_point(x, 16, 4) - x) * 16
    assert gap.min() >= -1 and gap.max() <= 0
    assert gap.mean().item() == pytest.approx(-0.5, abs=0.02)


# ---------------------------------------------------------------- energy


def block_linears():
    """Tokens, inputs and outputs of the linear layers that the paper turns into shifts, in B0."""
    with torch.device("meta"):
        net = refimpl.create_model("shiftaddvit_b0")
        sizes = []
        for name, part in net.named_modules():
            dense = name.startswith("stages.3") and ".attn." in name
            if isinstance(part, nn.Linear) and part is not net.head and not dense:
                part.register_forward_hook(
                    lambda layer, args, y: sizes.append((y.shape[1], *layer.weight.shape[::-1]))
                )
        net(torch.empty(1, 3, 224, 224))
    return sizes


def test_linear_layers_of_b0_cost_what_the_official_code_says():
    """19.32 mJ by products of which 1.50 compute, and 5.62 mJ by shifts of which 0.05 do."""
    sizes = block_linears()
    assert len(sizes) == 34
    for kind, total, arithmetic in (("linear", 19.32, 1.50), ("shift", 5.62, 0.053)):
        bills = [accelerator.bill(accelerator.linear(*each, kind)) for each in sizes]
        assert sum(bill.energy for bill in bills) == pytest.approx(total, rel=1e-3)
        assert sum(bill.arithmetic for bill in bills) == pytest.approx(arithmetic, rel=1e-2)
        for bill in bills:
            moved = bill.dram + bill.buffer + bill.network + bill.registers
            assert bill.arithmetic + moved == pytest.approx(bill.energy)
            assert bill.energy >= bill.least_energy and bill.latency >= bill.least_latency


def test_additions_are_moved_for_free():
    """shiftaddvit.d8: neither memory nor buffer; the same layer by products pays for both."""
    added, multiplied = (
        accelerator.bill(accelerator.linear(64, 16, 32, kind)) for kind in ("add", "linear")
    )
    assert added.dram == added.buffer == 0 < min(multiplied.dram, multiplied.buffer)
    assert added.energy < multiplied.energy / 2


def test_8_bits_move_fewer_bits_and_do_more_at_once():
    layer = accelerator.linear(64, 64, 128)
    narrow, wide = accelerator.bill(layer, 8), accelerator.bill(layer)
    assert narrow.arithmetic == pytest.approx(wide.arithmetic * 0.2 / 3.7)
    assert narrow.least_energy < wide.least_energy / 4
    assert narrow.least_latency < wide.least_latency


# ---------------------------------------------------------------- the mixture


def tokens_and_mixture(weighted):
    torch.manual_seed(0)
    layer = MixtureLinear(6, 4, weighted)
    layer.experts[1] = layer.experts[0]  # both alike
    return torch.randn(5, 6), layer


def test_with_equal_experts_the_mixture_is_the_dense_layer_but_for_the_gate():
    x, layer = tokens_and_mixture(weighted=False)
    torch.testing.assert_close(layer(x), layer.experts[0](x))
    x, layer = tokens_and_mixture(weighted=True)
    layer.eval()
    gate = layer.router(x)[0].softmax(-1).max(-1, keepdim=True).values
    torch.testing.assert_close(layer(x), gate * layer.experts[0](x))


def test_the_released_gate_teaches_its_router_nothing():
    """shiftaddvit.d1."""
    for weighted in (True, False):
        x, layer = tokens_and_mixture(weighted)
        layer(x).square().sum().backward()
        assert (layer.router.weight.grad is not None) == weighted


def test_the_released_sum_is_output_plus_log_gate():
    """shiftaddvit.d3."""
    output, gate = torch.tensor([1.0, -2.0, 90.0]), 0.6
    released = (output.exp() * gate + 2.2e-16).log()
    torch.testing.assert_close(released[:2], output[:2] + math.log(gate))
    assert released[2].isinf()


def test_balance_is_zero_where_latencies_are_and_pushes_to_the_faster():
    share = torch.tensor([0.4, 0.6])
    sure = torch.tensor([[30.0, 0.0]] * 20 + [[0.0, 30.0]] * 30)  # 40 % to the multiplier
    alpha = torch.tensor([6.0, 4.0])
    assert variation(alpha * share) < 1e-10 < variation(share)
    even = torch.zeros(50, 2, requires_grad=True)
    balance_loss(even, even).backward()
    assert (even.grad[:, 0] > 0).all() and (even.grad[:, 1] < 0).all()
    assert balance_loss(sure, sure) < 1e-10 < balance_loss(even, even)
    torch.testing.assert_close(stay_probability(even, even), torch.full((50, 2), 0.5))


def test_thresholds_are_logits_not_probabilities():
    """shiftaddvit.d2: with both noisy logits raised by 100 nothing changes here."""
    clean, noisy = torch.randn(2, 30, 2)
    torch.testing.assert_close(
        stay_probability(clean + 100, noisy + 100),
        stay_probability(clean, noisy),
        atol=1e-4,
        rtol=1e-4,
    )
    top = noisy.softmax(-1)
    raised = released_load(clean + 100, noisy + 100, top, NOISE)
    assert (raised - released_load(clean, noisy, top, NOISE)).abs().max() > 1


def test_shares_are_counted_by_expert():
    """shiftaddvit.d5: the released counter says 1.0 whatever the tokens do."""
    net = build(moe=True)
    with routes(net) as found, torch.no_grad():
        net(torch.randn(2, 3, 64, 64))
    shares = [float((logits[0].argmax(-1) == 1).float().mean()) for logits in found]
    assert len(shares) == 4 * 2 + 3 * 3 and 0 < sum(shares) / len(shares) < 1


def test_conversion_keeps_dense_weights_and_training_moves_routers():
    net = build(attention="hash")
    mixed = with_experts(net)
    assert measure.parameters(mixed) > measure.parameters(net)
    first = mixed.stages[0].blocks[0].mlp.fc1
    assert torch.equal(first.experts[0].weight, net.stages[0].blocks[0].mlp.fc1.weight)
    assert isinstance(mixed.stages[3].blocks[0].attn.qkv, nn.Linear)
    assert mixed.state_dict().keys() == build(moe=True).state_dict().keys()
    before = first.router.weight.detach().clone()
    images = torch.randn(8, 3, 64, 64)
    optimiser = torch.optim.SGD(mixed.train().parameters(), 0.1)
    mixture_loss(mixed, images, torch.arange(8) % 5).backward()
    optimiser.step()
    assert not torch.equal(first.router.weight, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accelerator.bill(accelerator.linear(4, 4, 4, "product")), "kind='product'"),
        (lambda: accelerator.bill(accelerator.linear(4, 4, 4), bits=16), "bits='16' is not known"),
        (lambda: accelerator.bill(accelerator.linear(0, 4, 4)), "batch=0 must be an integer of"),
        (
            lambda: accelerator.bill(accelerator.Layer("conv", 1, 13, 1, 20, 20, 4, 8, 8, 4)),
            "fits in no way on the accelerator",
        ),
        (lambda: build(attention="linear"), "attention='linear' is not known"),
        (lambda: build(img_size=48), "img_size=48 must be a positive multiple of 32"),
        (lambda: build(num_heads=(1, 2, 5, 4)), "num_heads=5 must be at least 1 and divide dim=24"),
        (lambda: build(depths=(1, 1, 1)), "must be equally long"),
        (lambda: build(num_classes=-1), "num_classes=-1 must be an integer of at least 0"),
        (lambda: balance_loss(torch.ones(3, 2), torch.ones(3, 2), (0, 4)), "multiplying=0"),
        (
            lambda: mixture_loss(build(), torch.randn(1, 3, 64, 64), torch.tensor([0])),
            "has no routers: build it with moe=True",
        ),
    ],
)
def test_refusals(call, message):
    models.assert_refused(call, message)
