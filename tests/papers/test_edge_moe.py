"""Edge-MoE: M³ViT equal to the official code, the chip's arithmetic, gates, schedules."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import refimpl
from refimpl import golden
from refimpl.bases import fixed_point as fp
from refimpl.kernels.grouped_experts import grouped_experts
from refimpl.lab import measure
from refimpl.papers.edge_moe import (
    SCHEDULES,
    VARIANTS,
    Gates,
    M3ViT,
    MoE,
    balance_loss,
    chance_in_top_k,
    cv_squared,
    expert_by_expert,
    one_step,
    rotated_attention,
    schedule,
    top_k_gate,
    top_k_then_softmax,
    weight_loads,
    with_balance_loss,
)
from shared import models

STEM = "edge_moe"
SMALL = dict(
    img_size=32, patch_size=8, num_classes=5, embed_dim=24, depth=2, num_experts=4, num_heads=3
)
OURS = {
    "moe_experts": "num_experts",
    "moe_top_k": "top_k",
}
STEP = 2.0**-22


def build(seed=0, **options):
    torch.manual_seed(seed)
    return models.lively(M3ViT(**SMALL | options))


# ---------------------------------------------------------------- reference outputs


def official_spec(model) -> dict[str, list[int]]:
    """Official names and shapes: ours, but for the gates'."""
    spec = {}
    for name, tensor in model.state_dict().items():
        before, found, number = name.partition(".gate.w_gate.")
        one = model.num_tasks == 1
        theirs = f"{before}.gate.{'' if one else number + '.'}w_gate" if found else name
        spec[theirs] = list(tensor.shape)
    return spec


def check_model(case):
    given = {OURS.get(name, name): value for name, value in case.kwargs.items()}
    task = given.pop("task_id")
    given["img_size"] = tuple(given["img_size"])
    given["num_tasks"] = 2 if given.pop("multi_gate") else 1
    assert given.pop("moe_gate_type") == "noisy_vmoe" and given.pop("vmoe_noisy_std") == 0
    model = M3ViT(num_classes=0, **given).eval()
    spec = case.data.get("state") or official_spec(model)
    assert spec == official_spec(model)
    case.fill(model, spec=spec)
    case.check_params(model)
    images = case.inputs()[0]
    with torch.inference_mode():
        tokens = model.forward_features(images, task)
        case.check({"output": tokens}, rtol=1e-5)
        assert models.error(model.fuse().forward_features(images, task), tokens) < 1e-5


def check_formats(case):
    formats = {
        "fm_t_32_10": (fp.FEATURE, "x", np.inf),
        "wt_linear_t_16_2": (fp.WEIGHT, "x_small", 1.99),
        "wt_attn_bias_t_16_7": (fp.ATTENTION_BIAS, "x_small", 63),
        "wt_bias_t_16_5": (fp.BIAS, "x_small", 15),
        "wt_patch_embed_t_16_0": (fp.PATCH_WEIGHT, "x_small", np.inf),
        "pixel_t_u8_0": (fp.PIXEL, "pixel", np.inf),
    }
    assert formats.keys() == case.data["outputs"].keys()
    for name, (form, given, most) in formats.items():
        source = case.recorded("x" if np.isfinite(most) else given).clip(-most, most)
        assert np.array_equal(form.quantise(source), case.recorded(name)), name
        case.deviations[name] = 0.0


def queues_of(chosen, score, experts: int):
    """Queue of each expert, its scores and lengths, padded as the chip's memory is."""
    n = len(chosen)
    queues, scores = np.full((experts, n), -1), np.zeros((experts, n))
    for expert in range(experts):
        token, place = (chosen == expert).nonzero()
        queues[expert, : len(token)] = token
        scores[expert, : len(token)] = score[token, place]
    return {"queues": queues, "scores": scores, "lengths": (queues >= 0).sum(1)}


def two_layers(case, moe):
    """The whole chip, one dense layer and one of experts: every recorded stage."""

    def drawn(name):
        return np.random.default_rng(zlib.crc32((case.salt + name).encode()))

    height, width = case.arguments["image"]
    dim = case.arguments["dim"]
    image = np.floor(256 * drawn("image").uniform(0, 0.999, (3, height, width))) / 256
    patches = drawn("patch.weight").standard_normal((dim, 3, 16, 16)) / np.sqrt(768)
    patches = np.floor(65536 * patches.clip(-0.49, 0.49)) / 65536
    x = fp.patch_embed(image, patches, case.recorded("patch_bias"), case.recorded("pos_embed"))
    stages = {"patch_embed": x}
    for layer in range(2):
        weight, bias = (case.recorded(f"attn_{name}")[layer] for name in ("weight", "bias"))
        norms = [case.recorded(f"norm_{name}")[layer] for name in ("weight", "bias")]
        normed = fp.layer_norm(x, norms[0][0], norms[1][0])
        q, k, v, _ = (fp.linear(normed, *pair) for pair in zip(weight, bias, strict=True))
        read = fp.attention(q, k, v, case.arguments["heads"])["out"]
        x = fp.add(x, fp.linear(read, weight[3], bias[3]))
        stages[f"layer{layer}_after_attention"] = x
        normed = fp.layer_norm(x, norms[0][1], norms[1][1])
        if layer == 0:
            first, second = (
                [case.recorded(f"{name}{i}")[0] for name in ("v", "vb")] for i in (1, 2)
            )
            y = fp.linear(fp.gelu(fp.linear(normed, *first)), *second)
        else:
            chosen, score = fp.gate(normed, moe.recorded("gate"), case.arguments["top_k"])
            y = fp.experts(normed, chosen, score, *map(moe.recorded, ("w1", "b1", "w2", "b2")))
        x = fp.add(x, y)
        stages[f"layer{layer}"] = x
    return stages


def fixed_point_results(case, folder):
    """What our chip computes for a case, and how many steps of 2⁻²² each may be off."""
    if case.name.startswith("gelu"):
        return {"y": fp.gelu(case.recorded("x"))}, {}
    if case.name.startswith("linear"):
        y = fp.linear(*map(case.recorded, ("x", "weight", "bias")))
        return {"y": y, "y_gelu": fp.gelu(y)}, {}
    if case.name.startswith("layernorm"):
        return {"y": fp.layer_norm(*map(case.recorded, ("x", "weight", "bias")))}, {"y": 4}
    if case.name.startswith("attention"):
        found = fp.attention(*map(case.recorded, "qkv"), case.arguments["heads"])
        return found, {"inv_sum": 4, "out": 4}
    if case.name.startswith("moe"):
        chosen, score = fp.gate(case.recorded("x"), case.recorded("gate"), case.arguments["top_k"])
        found = queues_of(chosen, score, case.arguments["experts"])
        weights = map(case.recorded, ("w1", "b1", "w2", "b2"))
        found["out"] = fp.experts(case.recorded("x"), chosen, score, *weights)
        return found, {"scores": 4, "out": 16}
    moe = golden.load(STEM, case.name.replace("vit_two_layers", "moe"), folder)
    found = two_layers(case, moe)
    return found, {name: 256 for name in found if name != "patch_embed"}


def check_gates(case):
    x, w_gate = (torch.from_numpy(case.recorded(name)) for name in ("x", "w_gate"))
    clean, noisy, top = (
        torch.from_numpy(case.recorded(name)) for name in ("clean", "noisy", "noisy_top3")
    )
    k, experts = case.arguments["top_k"], case.arguments["experts"]
    chosen, score = top_k_gate(x, w_gate, k)
    other, among = top_k_then_softmax(x, w_gate, k)
    found = {"vmoe.balance_loss": balance_loss(chosen, score, experts)}
    for mode in ("vmoe.trainFalse", "vmoe.trainTrue"):
        found |= {f"{mode}.index": chosen, f"{mode}.score": score}
    found |= {"topk_then_softmax.index": other, "topk_then_softmax.score": among}
    std = case.arguments["noise_std_for_prob"]
    found["prob_in_top_k"] = chance_in_top_k(clean, noisy, top, std)
    found["cv_squared"] = cv_squared(clean.exp().sum(0))
    case.check(found, rtol=1e-5)


def test_official(official_case, pytestconfig):
    case = official_case
    if "kwargs" in case.data:
        check_model(case)
    elif case.name.startswith("formats"):
        check_formats(case)
    elif case.name.startswith("m3vit_gates"):
        check_gates(case)
    else:
        folder = pytestconfig.getoption("golden") or golden.FOLDER
        found, allowed = fixed_point_results(case, folder)
        assert found.keys() == case.data["outputs"].keys()
        for name, result in found.items():
            apart = np.abs(result - case.recorded(name)).max() / STEP
            assert apart <= allowed.get(name, 0), name
        case.check(found, rtol=1e-4)


@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("tiny", 17_983_680),
        ("small", 71_768_448),
        ("small_k4", 43_420_032),
        ("base_k4", 171_774_720),
    ],
)
def test_parameters_of_the_table(variant, count):
    """edge_moe.d5: the same name with two experts and ratio 2, or four and ratio 1."""
    with torch.device("meta"):
        model = refimpl.create_model(f"edge_moe_{variant}", num_classes=0)
    assert measure.parameters(model) == count
    assert VARIANTS[variant].get("top_k", 2) == (4 if variant.endswith("k4") else 2)


# ---------------------------------------------------------------- experts and gates


def choices(tokens=9, experts=4, k=2):
    score, chosen = torch.randn(tokens, experts).softmax(-1).topk(k)
    return chosen, score


def layer(experts=4, dim=6, hidden=5):
    shapes = ((experts, hidden, dim), (experts, hidden), (experts, dim, hidden), (experts, dim))
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_expert_by_expert_is_each_token_by_itself(k):
    x, weights = torch.randn(9, 6), layer()
    chosen, score = choices(k=k)
    found = expert_by_expert(x, chosen, score, *weights)
    torch.testing.assert_close(found, grouped_experts(x, chosen, score, *weights, backend="naive"))


def test_all_tokens_may_choose_one_expert():
    """edge_moe.d1: a full queue, where the chip waits for indices that never come."""
    x, weights = torch.randn(1, 6).expand(9, 6), [w.clamp(-1.9, 1.9) for w in layer()]
    chosen, score = torch.tensor([[2, 0]]).expand(9, 2), torch.tensor([[0.6, 0.3]]).expand(9, 2)
    found = expert_by_expert(x, chosen, score, *weights)
    wanted = expert_by_expert(x[:1], chosen[:1], score[:1], *weights)
    torch.testing.assert_close(found, wanted.expand(9, 6))
    on_chip = fp.experts(x.numpy(), chosen.numpy(), score.numpy(), *(w.numpy() for w in weights))
    assert (
        np.abs(on_chip - found.numpy()).max() < 1e-2
    )  # of 1: weights have 14 bits behind the point


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_the_two_best_are_found_in_any_order(order):
    """edge_moe.d2: rising and falling logits; of equals the lower number wins."""
    logits = np.arange(-1.0, 1.0, 0.25)[order]
    chosen, score = fp.gate(np.eye(8)[:1], logits[:, None] * np.ones((1, 8)))
    assert chosen[0].tolist() == ([7, 6] if logits[0] < 0 else [0, 1])
    wanted = np.sort(np.exp(logits) / np.exp(logits).sum())[:-3:-1]
    np.testing.assert_allclose(score[0], wanted, atol=1e-5)
    tied, _ = fp.gate(np.eye(8)[:1], np.ones((8, 8)))
    assert tied[0].tolist() == [0, 1]


def test_probabilities_are_of_all_experts():
    x, w_gate = torch.randn(7, 5), torch.randn(5, 8)
    chosen, score = top_k_gate(x, w_gate, 3)
    everything = (x @ w_gate).softmax(-1)
    torch.testing.assert_close(score, everything.gather(1, chosen))
    same, among = top_k_then_softmax(x, w_gate, 3)
    assert torch.equal(same, chosen)
    torch.testing.assert_close(among, score / score.sum(-1, keepdim=True))


def test_tasks_share_experts_and_differ_in_their_gates():
    model, images = build(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        first, second = model(images, 0), model(images, 1)
        assert models.error(first, second) > 1e-3
        for module in model.modules():
            if isinstance(module, Gates):
                module.w_gate[1].copy_(module.w_gate[0])
        assert torch.equal(model(images, 1), first)
    loss = model(images, 1).square().sum()
    loss.backward()
    gates = next(module for module in model.modules() if isinstance(module, Gates))
    assert gates.w_gate[1].grad.any() and not gates.w_gate[0].grad.any()


def test_balance_loss_is_zero_for_equal_work_and_largest_for_one_expert():
    even = torch.arange(8).view(4, 2) % 4
    score = torch.full((4, 2), 0.5, requires_grad=True)
    assert balance_loss(even, score, 4).item() == pytest.approx(0, abs=1e-6)
    alone = balance_loss(torch.zeros(4, 2, dtype=torch.int64), score, 4)
    assert alone.item() == pytest.approx(8)  # CV² = e, twice
    alone.backward()
    assert score.grad.isfinite().all()
    assert cv_squared(torch.ones(1)) == 0


def test_training_with_balance_spreads_the_work():
    """A few steps on the loss alone: the busiest expert has less to do, all parameters learn."""
    model, images = build().train(), torch.randn(8, 3, 32, 32)
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(15):
        outputs, balance = with_balance_loss(model, images, 1)
        losses.append(balance.item())
        optimiser.zero_grad()
        (outputs.square().mean() + balance).backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    plain, none = with_balance_loss(build(depth=1), images)
    assert plain.shape == (8, 5) and none == 0


def test_the_chance_of_a_choice_needs_one_unit():
    """edge_moe.d4: thresholds from probabilities make every expert likely to be chosen."""
    clean = 3 * torch.randn(400, 8)
    noisy = clean + 0.3 * torch.randn(400, 8)
    right = chance_in_top_k(clean, noisy, noisy.topk(3).values, 0.3)
    mixed = chance_in_top_k(clean, noisy, noisy.softmax(-1).topk(3).values, 0.3)
    assert right.sum(-1).mean().item() == pytest.approx(2, abs=0.1)
    assert mixed.sum(-1).mean() > 3


# ---------------------------------------------------------------- one pass, rotated


@pytest.mark.parametrize("parallel", [1, 2, 4, 5])
@pytest.mark.parametrize("n", [5, 9, 12])
def test_rotated_attention_is_attention(parallel, n):
    q, k, v = 3 * torch.randn(3, n, 8, dtype=torch.float64)
    wanted = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    found = rotated_attention(q, k, v, parallel)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_one_pass_finds_sum_and_maximum_whatever_the_order(spread):
    scores = spread * torch.randn(6, 20, dtype=torch.float64)
    for given in (scores, scores.sort().values, scores.sort(descending=True).values):
        total, highest = torch.zeros(6, dtype=torch.float64), torch.full((6,), -torch.inf).double()
        for score in given.T:
            total, highest = one_step(total, highest, score)
        assert torch.equal(highest, scores.amax(-1))
        torch.testing.assert_close(highest + total.log(), scores.logsumexp(-1))


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("tokens", "parallel"), [(9, 4), (12, 4), (6, 5), (7, 1), (129, 16)])
def test_every_query_sees_every_key_once(kind, tokens, parallel):
    keys, fetched = schedule(kind, tokens, parallel)
    assert keys.shape == (len(fetched), parallel)
    seen = [np.sort(slot[slot >= 0]) for slot in keys.T]
    for slot, found in enumerate(seen):
        queries = len(range(slot, tokens, parallel))
        assert np.array_equal(found, np.repeat(np.arange(tokens), queries))
    for step in keys:  # one key is on the wire at a time
        assert len(set(step[step >= 0])) <= 1
    assert fetched.max() == (1 + parallel if kind == "plain" else 2)


def test_rotation_is_free_where_one_query_is_left_over():
    assert [len(schedule(kind, 129, 4)[1]) for kind in SCHEDULES] == [4257, 4261, 4257]
    assert [len(schedule(kind, 132, 4)[1]) for kind in SCHEDULES] == [4356, 4360, 4359]


def test_expert_order_loads_each_used_expert_once():
    chosen = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])
    assert weight_loads(chosen) == 4
    assert [weight_loads(chosen, on_chip) for on_chip in (1, 2, 3, 4)] == [8, 8, 8, 4]
    assert weight_loads(torch.tensor([[1, 1], [1, 2]]), 2) == 2


# ---------------------------------------------------------------- fixed point


def test_products_are_cut_one_by_one_and_drift():
    """edge_moe.d6: half a step for each input; rounding would drift by none."""
    g = np.random.default_rng(0)
    x, weight = fp.FEATURE.quantise(g.standard_normal((40, 192))), g.uniform(-1, 1, (50, 192))
    weight = fp.WEIGHT.quantise(weight)
    exact = x @ weight.T
    cut = (fp.linear(x, weight) - exact).mean() / STEP
    rounded = (fp.linear(x, weight, rounded=True) - exact).mean() / STEP
    assert -97 < cut < -95 and abs(rounded) < 1


def test_values_beyond_the_range_come_back_at_the_other_end():
    assert fp.FEATURE.quantise(513.0) == -511 and fp.WEIGHT.quantise(-2.5) == 1.5
    assert fp.PIXEL.quantise(1.25) == 0.25 and fp.FEATURE.quantise(-1e-9) == -STEP


def test_gelu_is_relu_minus_an_even_bump():
    x = np.linspace(-8, 8, 4001)
    exact = F.gelu(torch.from_numpy(x)).numpy()
    assert len(fp.TABLE) == 177
    assert np.abs(fp.gelu(x) - exact).max() < 1e-4
    grid = np.arange(0, 6, 0.01)
    apart = fp.gelu(grid) - fp.gelu(-grid) - fp.FEATURE.quantise(grid)
    assert np.abs(apart).max() <= STEP


def test_layer_norm_of_constant_tokens_is_refused():
    """edge_moe.d3: E[x²] − E[x]², cut, is below zero."""
    ones = np.ones(32)
    with pytest.raises(ValueError, match="variance, cut to 22 bits, is not above zero"):
        fp.layer_norm(np.full((1, 32), 0.1), ones, ones)
    y = fp.layer_norm(np.random.default_rng(0).standard_normal((3, 32)), ones, 0 * ones)
    assert np.abs(y.std(1) - 1).max() < 1e-3


@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_one_pass_on_the_chip_is_two_passes_but_for_cuts(spread):
    scores = fp.FEATURE.codes(spread * np.random.default_rng(0).standard_normal((20, 129)))
    one, two = fp.running_softmax(scores), fp.two_pass_softmax(scores)
    assert np.array_equal(one[1], two[1])
    assert np.abs(one[0] - two[0]).max() < 1000  # of 4 million


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(img_size=30), "img_size=30 is not divisible by patch_size=8"),
        (dict(num_heads=5), "num_heads=5 must be at least 1 and divide dim=24"),
        (dict(depth=0), "depth=0 must be at least 1"),
        (dict(top_k=0), "top_k=0 must be at least 1"),
        (dict(top_k=5), "top_k=5 must be at most num_experts=4"),
        (dict(num_tasks=0), "num_tasks=0 must be at least 1"),
        (dict(moe_mlp_ratio=0.0), "hidden_dim=0 must be at least 1"),
        (dict(drop_path_rate=1), "drop_path_rate=1 must be at least 0"),
    ],
)
def test_bad_arguments(change, message):
    models.assert_refused(lambda: M3ViT(**SMALL | change), message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build()(torch.randn(1, 3, 32, 32), 2), "task=2 must be one of 0 to 1"),
        (lambda: schedule("rotate", 9, 4), "kind='rotate' is not known"),
        (lambda: schedule("plain", 3, 4), "tokens=3 must be at least 4"),
        (lambda: weight_loads(torch.zeros(2, 2), 0), "on_chip=0 must be at least 1"),
        (lambda: chance_in_top_k(*torch.ones(3, 1, 3), 0), "std=0 must be above 0"),
        (lambda: fp.Format(70, 2), "integer=2 of bits=70"),
        (lambda: fp.attention(*np.ones((3, 4, 12)), 1), "head_dim=12 must be a positive multiple"),
    ],
)
def test_bad_calls(call, message):
    models.assert_refused(call, message)


def test_experts_run_masked_where_a_graph_is_recorded():
    moe, x = MoE(8, 4, 3, 2, 1).eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        exported = torch.export.export(moe, (x,)).module()
        torch.testing.assert_close(exported(x), moe(x))
