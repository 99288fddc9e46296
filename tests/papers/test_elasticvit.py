"""ElasticViT: equal to the official code, slices, the space and its costs, sampling, refusals."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refimpl
from refimpl import golden
from refimpl.bases import elastic_space
from refimpl.bases.elastic import (
    adaptive_divergence,
    alpha_divergence,
    call_sliced,
    clip_by_weights,
    first,
    slices,
)
from refimpl.bases.elastic_blocks import (
    Attention,
    FeedForward,
    MobileBlock,
    NetworkLatency,
    TokenNorm,
)
from refimpl.bases.elastic_space import (
    PUBLISHED,
    SPACE,
    Evolution,
    Genotype,
    attention_cost,
    bottleneck_cost,
    crossed,
    mflops,
    mutated,
    preference,
)
from refimpl.lab import measure
from refimpl.lab.search import search
from refimpl.papers.elasticvit import (
    NAMES,
    Bank,
    ElasticViT,
    Supernet,
    cut,
    draw_step,
    new_banks,
    parameter_groups,
    soft_targets,
    train_step,
)
from shared import models

STEM = "elasticvit"
SMALL = SPACE._replace(
    img_sizes=(64, 96),
    embed_dims=((8, 16), (8, 16), (16, 24), (32, 48), (48, 64), (64,), (64, 80)),
    depths=((1, 2), (1, 2), (1,), (1, 2), (1,), (1,), (1,)),
    expand_ratios=(2, 3),
    mlp_ratios=(1, 2),
    value_ratios=(1, 2),
    levels=(8.0, 11.0, 14.0, 18.0),
    band=3.0,
    floors=((12.0, 64), (float("inf"), 96)),
)
OFFICIAL = NAMES["official"]


@pytest.fixture(scope="module")
def supernet():
    return Supernet().eval()


@pytest.fixture(scope="module")
def filled(supernet):
    """Fill the supernet by a case's rule, but where it is filled so already."""
    last = []

    def fill(case):
        if last != [case.salt]:
            case.fill(supernet, spec=spec_of(case))
            last[:] = [case.salt]
        return supernet

    return fill


@pytest.fixture
def small():
    torch.manual_seed(0)
    return models.lively(Supernet(SMALL, num_classes=5))


# ---------------------------------------------------------------- the official code


def spec_of(case) -> dict:
    """The supernet's names and shapes, which one case lists for all."""
    listed = golden.cases(STEM, golden.FOLDER)
    return case.data.get("state") or next(c.data["state"] for c in listed if c.name == "elastic_T1")


def test_official(official_case, supernet, filled):
    case = official_case
    if "params" not in case.data:
        name = next(name for name in FUNCTIONS if case.name.startswith(name))
        FUNCTIONS[name](case)
        return
    case.check_params(supernet)
    supernet = filled(case)
    genotype = Genotype.from_official(case.kwargs["arch"])
    if "flops_formula_M" in case.kwargs:
        assert mflops(genotype) == pytest.approx(case.kwargs["flops_formula_M"], rel=1e-9)
    (images,) = case.inputs()
    network = supernet.subnet(genotype)
    outputs = []
    counted = measure.macs(lambda x: outputs.append(network(x)), images, attention=False)
    assert counted == case.data["macs"]
    case.check(outputs[0])
    if genotype.img_size <= 160:
        with torch.inference_mode():
            torch.testing.assert_close(supernet(images, genotype), outputs[0])
            assert models.error(network.fuse()(images), outputs[0]) < 1e-5


def part_of(case, whole, part, x) -> torch.Tensor:
    """What a part with the slices of the filled whole makes of the input."""
    case.fill(whole, OFFICIAL, spec=case.arguments["state"])
    tensors = dict(whole.named_parameters()) | dict(whole.named_buffers())
    with torch.no_grad():
        return call_sliced(part.eval(), tensors, cut, x)


def check_mobile_block(case):
    given, chosen = case.arguments, case.arguments["selected"]
    most, ratio = given["max_channels"], max(given["ratio"])
    whole = MobileBlock(most, most, 5, ratio, given["stride"], given["se"], spare=True)
    sizes = (chosen["in_channels"], chosen["out_channels"])
    form = (chosen["kernel"], chosen["ratio"])
    part = MobileBlock(*sizes, *form, given["stride"], given["se"])
    (x,) = case.inputs()
    y = part_of(case, whole, part, x)
    cost = bottleneck_cost(*sizes, *form[::-1], (x.shape[2], y.shape[2]), given["se"])
    check_given(case, {"y": y, "mflops": np.array([cost])})


def check_attention(case):
    given, chosen = case.arguments, case.arguments["selected"]
    whole = Attention(given["super_dim"], max(given["res"]), max(given["v_scale"]))
    width, ratio, side = chosen["channels"], chosen["v_scale"], chosen["res"]
    (x,) = case.inputs()
    y = part_of(case, whole, Attention(width, side, ratio), x)
    check_given(case, {"y": y, "mflops": np.array([attention_cost(width, ratio, side**2)])})


def check_feed_forward(case):
    given, chosen = case.arguments, case.arguments["selected"]
    whole = FeedForward(given["super_dim"], given["super_dim"] * max(given["ratio"]))
    part = FeedForward(chosen["channels"], chosen["channels"] * chosen["ratio"])
    (x,) = case.inputs()
    check_given(case, {"y": part_of(case, whole, part, x)})


def check_given(case, found):
    """Only what this case records."""
    case.check({name: value for name, value in found.items() if name in case.data["outputs"]})


def check_losses(case):
    logits, teacher = case.inputs()
    logits.requires_grad_()
    clip = case.arguments["iw_clip"]
    ends = (case.arguments["alpha_min"], case.arguments["alpha_max"])
    adaptive = adaptive_divergence(logits, teacher, ends, clip)
    (slope,) = torch.autograd.grad(adaptive, logits)
    found = {"adaptive": adaptive, "adaptive_grad": slope}
    found["soft_ce"] = F.cross_entropy(logits, teacher)
    for name in case.data["outputs"]:
        kind, _, alpha = name.rpartition("_")
        if kind in ("loss", "grad_loss"):
            value, surrogate = alpha_divergence(logits, teacher, float(alpha), clip)
            found[name] = value if kind == "loss" else surrogate
    check_given(case, found)


def check_archs(case):
    genotypes = [Genotype.from_official(arch) for arch in case.arguments["archs"]]
    for genotype in genotypes:
        SPACE.check(genotype)
    found = {"mflops": np.array([mflops(genotype) for genotype in genotypes])}
    smallest = SPACE.smallest()
    scores = [preference(genotype, smallest) for genotype in genotypes]
    found["preference_vs_smallest"] = np.array(scores)
    case.check(found, rtol=1e-12)


def check_formula(case):
    ends = {"min": SPACE.smallest(), "max": SPACE.largest()}
    names = [name.removeprefix("elastic_").lower() for name in case.arguments["archs"]]
    genotypes = [ends.get(name) or PUBLISHED[name.replace(".", "_")] for name in names]
    case.check(np.array([mflops(genotype) for genotype in genotypes]), rtol=1e-12)


def check_bank(case):
    bank = Bank(len(case.recorded("neg_loss")))
    for i, loss in enumerate(-case.recorded("neg_loss")):
        bank.add(loss, i)
    case.check(np.array(bank.probabilities()), rtol=1e-12)


FUNCTIONS = {
    "mobile_block": check_mobile_block,
    "attention": check_attention,
    "ffn": check_feed_forward,
    "losses": check_losses,
    "random_archs": check_archs,
    "flops_formula": check_formula,
    "bank_probability": check_bank,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_in_the_space(name):
    SPACE.check(PUBLISHED[name])
    assert refimpl.create_model(f"elasticvit_{name}", num_classes=2).img_size in SPACE.img_sizes


# ---------------------------------------------------------------- slices


def test_a_subnet_is_the_network_with_the_sliced_weights(small):
    rng = random.Random(0)
    images = torch.randn(2, 3, 70, 70)
    for _ in range(3):
        genotype = SMALL.draw(rng)
        network = small.subnet(genotype)
        with torch.inference_mode():
            torch.testing.assert_close(network(images), small(images, genotype))
        models.assert_fused_is_equal(network, images)


def test_gradients_reach_the_slice_and_nothing_else(small):
    genotype = SMALL.smallest()._replace(img_size=96)  # of one token no bias would count
    small.train()(torch.randn(2, 3, 96, 96), genotype).square().sum().backward()
    network = small.subnet(genotype)
    used = {name: p.shape for name, p in network.named_parameters()}
    for name, parameter in small.named_parameters():
        if name not in used:
            assert parameter.grad is None
            continue
        touched = cut(name, parameter.grad.abs(), used[name])
        total = parameter.grad.abs().sum()
        torch.testing.assert_close(touched.sum(), total, msg=name)
        assert name.endswith("project.norm.weight") or touched.sum() > 0, name


def test_training_writes_the_shared_statistics_of_the_slice(small):
    small.train()
    before = small.stem.norm.running_mean.clone()
    small(torch.randn(2, 3, 64, 64), SMALL.smallest())
    changed = small.stem.norm.running_mean != before
    assert changed.tolist() == [True] * 8 + [False] * 8


def test_a_slice_is_a_view_without_a_copy():
    whole = torch.randn(64, 48, 5, 5)
    part = first(whole, (10, 20, 3, 3))
    assert part.data_ptr() == whole[0, 0, 1, 1].data_ptr()
    assert part._base is whole and torch.equal(part, whole[:10, :20, 1:4, 1:4])
    assert torch.equal(first(whole[:, :, 0, 0], (10, 20)), whole[:10, :20, 0, 0])


def test_a_bias_table_keeps_the_offsets_that_the_smaller_grid_has():
    """Cell (Δrow, Δcolumn) of the small table is that of the large one."""
    large, side, heads = 5, 3, 2
    span = range(-(large - 1), large)
    whole = torch.tensor([[r * 100 + c, -r] for r in span for c in span], dtype=torch.float32)
    part = cut("blocks.0.bias_table", whole, torch.Size([(2 * side - 1) ** 2, heads]))
    span = range(-(side - 1), side)
    wanted = [[r * 100 + c, -r] for r in span for c in span]
    assert part.tolist() == wanted


def test_what_a_head_calls_keys_straddles_the_thirds():
    """elasticvit.d1: the joint rows are cut by thirds, and read head by head."""
    dim, rows = 32, 32 + 32 + 64
    whole = torch.arange(48 * 2 + 96.0)[:, None].expand(-1, 48)  # row numbers
    found = cut("qkv.weight", whole, torch.Size([rows, dim]))[:, 0]
    assert found.tolist() == [*range(32), *range(48, 80), *range(96, 160)]
    per_head = found.view(2, 64)  # two heads: 16 queries, 16 keys, 32 values
    assert per_head[0, 16:32].tolist() == list(range(16, 32))  # keys, from the queries' third
    assert per_head[1, :16].min() >= 96  # queries, from the values' third


def test_the_norm_looks_at_all_tokens():
    """elasticvit.d2: a token's output depends on the others, unlike a layer norm's."""
    torch.manual_seed(0)
    x = torch.randn(1, 5, 8)
    other = x.clone()
    other[:, 4] *= 3
    norm = TokenNorm(8)
    assert not torch.allclose(norm(x)[:, 0], norm(other)[:, 0])
    assert torch.allclose(F.layer_norm(x, (8,))[:, 0], F.layer_norm(other, (8,))[:, 0])
    torch.testing.assert_close(norm(x), F.group_norm(x.mT, 1).mT)


def test_some_columns_are_used_by_no_network(supernet):
    """elasticvit.d7: expansions of a stage's first block are as wide as the stage itself."""
    whole = supernet.stages[0][0].expand.conv.weight
    used = supernet.subnet(SPACE.largest()).stages[0][0].expand.conv.weight
    assert whole.shape[1] == 32 and used.shape[1] == 24
    assert measure.parameters(supernet) > measure.parameters(supernet.subnet(SPACE.largest()))


# ---------------------------------------------------------------- costs


def test_the_formula_leaves_out_gates_shortcuts_and_most_of_the_values_convolution():
    """elasticvit.d3: what the counter finds beyond it, layer by layer."""
    genotype = PUBLISHED["t1"]
    network = ElasticViT(**genotype._asdict())
    missing = 0
    for stage in network.stages[2:]:
        gate, shortcut = stage.reduction.gate, stage.reduction.shortcut
        missing += gate.fc1.weight.numel() + gate.fc2.weight.numel()
        missing += shortcut.weight.numel() * stage.side**2
        for layer in stage.blocks[::2]:
            tokens, heads = stage.side**2, layer.num_heads
            missing += 8 * tokens * layer.value_conv.in_channels
            missing -= tokens**2 * heads  # softmax, which the counter leaves out
    found = measure.macs(network, torch.randn(1, 3, 128, 128), attention=False)
    assert found == round(1e6 * mflops(genotype)) + missing == 64_899_104


def test_an_odd_side_is_counted_as_even():
    """elasticvit.d6: 5 tokens a side, halved to 3, are charged as 6."""
    genotype = PUBLISHED["t2"]
    side, dim = 5, genotype.embed_dims[5]
    true = mflops(genotype) * 1e6 - 6 * dim * dim * (6**2 - side**2)
    assert mflops(genotype) == pytest.approx(119.97959)
    assert round(true) == 119_979_590 - 6 * 176 * 176 * 11


def test_wide_networks_are_preferred_to_deep_ones():
    anchor = SPACE.smallest()
    wide = anchor._replace(embed_dims=(*anchor.embed_dims[:3], 96, 160, 288, 320))
    deep = anchor._replace(depths=(*anchor.depths[:3], 5, 6, 6, 6))
    assert preference(wide, anchor) < 0 < preference(deep, anchor)
    assert preference(anchor, anchor) == 0


# ---------------------------------------------------------------- sampling


class Line:
    """A space in which a network is its level and a number, and low numbers are wide."""

    def smallest(self):
        return (0, 0)

    def near(self, level, rng):
        return (level, rng.randrange(1000))

    def preference(self, network, anchor):
        return network[1] - anchor[1]


def full_bank(level, capacity=4):
    bank = Bank(capacity)
    for i in range(capacity):
        bank.add(float(i), (level, 10_000 + i))
    return bank


def test_the_walk_stays_near_and_visits_all_levels_equally():
    rng, banks, level = random.Random(0), [Bank(4) for _ in range(5)], 2
    visits = Counter()
    for _ in range(20_000):
        before = level
        level, networks = draw_step(level, banks, Line(), 0.0, rng)
        assert abs(level - before) <= 1
        assert {network[0] for network, _ in networks} == {level} and len(networks) == 3
        visits[level] += 1
    # as it stays put where it would step off an end
    assert [visits[i] / 20_000 for i in range(5)] == pytest.approx([0.2] * 5, abs=0.02)


@pytest.mark.parametrize(("rho", "share"), [(0.0, 0.0), (0.35, 0.35), (1.0, 1.0)])
def test_old_networks_are_drawn_from_a_memory_that_is_more_than_half_full(rho, share):
    rng = random.Random(0)
    banks = [full_bank(0), full_bank(1)]
    drawn = [draw_step(0, banks, Line(), rho, rng)[1] for _ in range(1000)]
    known = [known for networks in drawn for _, known in networks]
    assert sum(known) / len(known) == pytest.approx(share, abs=0.04)
    half = [Bank(4), Bank(4)]
    for bank in half:
        bank.add(1.0, (0, 0))
        bank.add(1.0, (0, 1))
    assert not any(known for _, known in draw_step(0, half, Line(), 1.0, rng)[1])


def test_of_five_the_widest_is_taken_once_the_memory_fills():
    def mean_number(banks):
        rng = random.Random(0)
        drawn = [draw_step(0, banks, Line(), 0.0, rng)[1] for _ in range(500)]
        return np.mean([network[1] for networks in drawn for network, _ in networks])

    assert mean_number([Bank(4)]) == pytest.approx(500, abs=25)
    assert mean_number([full_bank(0)]) == pytest.approx(1000 / 6, abs=20)  # the least of five


def test_a_bank_keeps_the_best_and_prefers_low_losses():
    bank = Bank(3)
    for loss in (3.0, 1.0, 2.0, 5.0, 0.5):
        bank.add(loss, f"net {loss}")
    assert sorted(loss for loss, _ in bank.entries) == [0.5, 1.0, 2.0]
    assert bank.best() == "net 0.5" and bank.filled() == 1.0
    rng = random.Random(0)
    drawn = Counter(bank.draw(rng) for _ in range(4000))
    wanted = dict(zip([name for _, name in bank.entries], bank.probabilities(), strict=True))
    for name, probability in wanted.items():
        assert drawn[name] / 4000 == pytest.approx(probability, abs=0.03)
    ratio = wanted["net 0.5"] / wanted["net 2.0"]
    assert ratio == pytest.approx(math.exp(1.5))
    bank.refresh(lambda name: -float(name.split()[1]))
    assert bank.best() == "net 2.0"


@pytest.mark.parametrize("level", range(len(SPACE.levels)))
def test_networks_of_a_level_cost_what_it_says(level):
    rng = random.Random(level)
    least = SPACE.least(level)
    for _ in range(2):
        genotype = SPACE.near(level, rng)
        SPACE.check(genotype)
        assert 0 <= mflops(genotype) - SPACE.levels[level] <= 20
        assert genotype.img_size >= least.img_size
    assert mflops(least) < SPACE.levels[level]


def test_capacities_of_the_paper():
    assert [bank.capacity for bank in new_banks(SPACE)] == [150] * 4 + [50] * 4


# ---------------------------------------------------------------- training


def test_a_step_trains_judges_and_remembers(small):
    torch.manual_seed(0)
    images, classes = torch.randn(8, 3, 64, 64), torch.randint(5, (8,))
    targets = F.one_hot(classes, 5).float()
    optimizer = torch.optim.AdamW(parameter_groups(small), lr=1e-3)
    banks, rng, level = [Bank(6) for _ in SMALL.levels], random.Random(0), 1
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    small.train()
    for _ in range(3):
        level = train_step(
            small, optimizer, images, targets, (images, classes), level, banks, 0.5, rng
        )
    moved = [n for n, p in small.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 50
    entries = [entry for bank in banks for entry in bank.entries]
    assert len(entries) == 9 and all(math.isfinite(loss) for loss, _ in entries)
    for i, bank in enumerate(banks):
        for _, genotype in bank.entries:
            assert 0 <= mflops(genotype) - SMALL.levels[i] <= SMALL.band


def test_bias_tables_decay_and_bottlenecks_do_not(small):
    """elasticvit.d5: the model's own exclusion of the tables is overwritten by another list."""
    decayed, free = parameter_groups(small, 0.05)
    names = {id(p): name for name, p in small.named_parameters()}
    kept = {names[id(p)] for p in free["params"]}
    assert free["weight_decay"] == 0 and decayed["weight_decay"] == 0.05
    assert len(kept) + len(decayed["params"]) == len(names)
    assert not [name for name in kept if "bias_table" in name]
    assert all(
        "stem" in n or "reduction" in n or n.startswith(("stages.0", "stages.1")) for n in kept
    )


def test_teachers_are_sharpened_and_averaged():
    logits = torch.tensor([[1.0, 0.0]])
    wanted = (torch.tensor([[5.0, 0.0]]).softmax(1) + 0.5) / 2
    torch.testing.assert_close(soft_targets([logits, 0 * logits]), wanted)


@pytest.mark.parametrize("alpha", [-0.7, 0.5, 1.0, 2.0])
def test_divergences_are_zero_for_equals_and_have_their_own_gradient(alpha):
    """Without a clip; the surrogate's gradient is that of the definition."""
    torch.manual_seed(0)
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 6, dtype=torch.float64).softmax(1)
    same, _ = alpha_divergence(teacher.log(), teacher, alpha)
    assert same.abs().max() < 1e-12
    value, surrogate = alpha_divergence(logits, teacher, alpha, clip=1e9)
    student = logits.softmax(1)
    ratio = teacher / student
    if alpha == 1:
        defined = (teacher * ratio.log()).sum(1)
    else:
        defined = (student * (ratio**alpha - 1)).sum(1) / (alpha * (alpha - 1))
    torch.testing.assert_close(value, defined)
    wanted = torch.autograd.grad(defined.sum(), logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(surrogate.sum(), logits), wanted)


def test_gradients_are_clipped_by_their_weights():
    weight = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], requires_grad=True)
    weight.grad = torch.tensor([[0.1, 0.1], [0.3, 0.4], [1.0, 0.0]])
    bias = torch.tensor([3.0, 4.0], requires_grad=True)
    bias.grad = torch.tensor([6.0, 8.0])
    free = torch.zeros(1, requires_grad=True)
    clip_by_weights([weight, bias, free], 0.1)
    wanted = torch.tensor([[0.1, 0.1], [0.03, 0.04], [1e-4, 0.0]])
    torch.testing.assert_close(weight.grad, wanted)
    torch.testing.assert_close(bias.grad, torch.tensor([0.3, 0.4]))
    assert free.grad is None


# ---------------------------------------------------------------- search


def test_mutation_reaches_every_resolution_and_depth():
    """elasticvit.d4: as the paper says; the released code reaches neither."""
    rng = random.Random(0)
    children = [mutated(SPACE.smallest(), SPACE, rng) for _ in range(600)]
    for child in children:
        SPACE.check(child)
    assert {child.img_size for child in children} == set(SPACE.img_sizes)
    assert {child.depths[4] for child in children} == {1, 2, 3, 4, 5, 6}


def test_children_have_their_parents_genes():
    rng = random.Random(0)
    low, high = SPACE.smallest(), SPACE.largest()
    assert mutated(high, SPACE, rng) != high
    for _ in range(20):
        child = crossed(low, high, SPACE, rng)
        SPACE.check(child)
        for gene, places in SPACE.choices().items():
            for value, options in zip(
                elastic_space.as_tuple(getattr(child, gene)), places, strict=True
            ):
                assert value in (options[0], options[-1]) or gene == "embed_dims"


def test_evolution_beats_chance_at_equal_evaluations():
    """Score: how wide the network is, within a band of costs."""

    def legal(genotype):
        return 300 <= mflops(genotype) <= 400

    def score(genotype):
        return float(sum(genotype.embed_dims[3:]))

    def mean_score(trials):
        """Of the last 20."""
        return np.mean([trial.score for trial in trials[-20:]])

    method = Evolution(SPACE, legal, initial=30, parents=10, children=20, seed=0)
    trials = search(method, score, 130)
    chance = Evolution(SPACE, legal, initial=130, seed=0)
    assert mean_score(trials) > 1.1 * mean_score(search(chance, score, 130))
    assert all(legal(trial.candidate) for trial in trials)
    assert len({trial.candidate for trial in trials}) == 130
    again = Evolution(SPACE, legal, initial=30, parents=10, children=20, seed=0)
    assert search(again, score, 40) == trials[:40]


@pytest.mark.parametrize("name", ["t1", "t2"])
def test_the_parts_of_a_latency_table_are_the_whole_network(name):
    """With a counter for a clock the table counts, and must find what the network has."""
    genotype = PUBLISHED[name]
    table = NetworkLatency(clock=lambda layer, x: measure.macs(layer, x))
    images = torch.randn(1, 3, genotype.img_size, genotype.img_size)
    network = ElasticViT(**genotype._asdict())
    assert table(genotype) == measure.macs(network.fuse(), images)


def test_search_under_a_measured_table():
    """The budget is in milliseconds of this machine; what costs more is never evaluated."""
    table = NetworkLatency(clock=lambda layer, x: 1e-6 * measure.macs(layer, x))
    low = SPACE._replace(img_sizes=(128,))
    limit = 30 * table(low.smallest())
    method = Evolution(low, lambda genotype: table(genotype) <= limit, initial=2, children=2)
    trials = search(method, mflops, 3, cost=table, limit=limit)
    assert max(trial.cost for trial in trials) <= limit
    head = table.parts(low.smallest())[-1]
    assert NetworkLatency()[head] > 0  # by its own clock, in milliseconds


def test_known_networks_come_first():
    known = [PUBLISHED["s1"], PUBLISHED["l3"]]
    method = Evolution(SPACE, lambda genotype: mflops(genotype) < 300, known, initial=2)
    assert method.ask() == PUBLISHED["s1"]


# ---------------------------------------------------------------- refusals


ARCH = [128, [16, 24, 32, 64, 96, 176, 272], [1, 2, 3, 1, 1, 1, 1], [1, 3, 3, 3, 3, 3], [3] * 6]
ARCH += [[2, 2, 3, 4], [4, 6, 11, 17], [1] * 4, [1] * 4, [2] * 4]


def arch_with(place, value):
    return [*ARCH[:place], value, *ARCH[place + 1 :]]


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (arch_with(3, [1, 3, 4, 3, 3, 3]), "expand_ratios=[1, 3, 4, 3, 3, 3] must hold one value"),
        (arch_with(4, [3] * 5), "kernel_sizes=[3, 3, 3, 3, 3] must hold one value a stage"),
        (arch_with(4, [3] * 7), "must have 6 entries"),
        (arch_with(6, [4, 6, 11, 16]), "must be [4, 6, 11, 17], 16 channels each"),
        (arch_with(7, [2, 1, 1, 1]), "windows and query-key scales 1"),
    ],
)
def test_official_lists_that_are_no_network_are_refused(arch, words):
    assert Genotype.from_official(ARCH) == PUBLISHED["t1"]
    models.assert_refused(lambda: Genotype.from_official(arch), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(img_size=100), "img_size=(100,): 100 at place 0 is outside the space"),
        (dict(kernel_sizes=(3, 7, 3)), "7 at place 1 is outside the space, which has (3, 5)"),
        (dict(embed_dims=(24, 16, 32, 64, 96, 176, 272)), "must not fall along the network"),
        (dict(mlp_ratios=(2, 2, 3)), "mlp_ratios=(2, 2, 3) must have 4 entries"),
    ],
)
def test_networks_outside_the_space_are_refused(small, change, words):
    models.assert_refused(lambda: SPACE.check(PUBLISHED["t1"]._replace(**change)), words)
    images = torch.randn(1, 3, 64, 64)
    models.assert_refused(lambda: small(images, PUBLISHED["t1"]), "is outside the space")
    models.assert_refused(lambda: small.subnet(PUBLISHED["t1"]), "is outside the space")
    models.assert_refused(small.fuse, "take subnet(genotype).fuse()")
    models.assert_refused(lambda: small.forward_features(images), "take subnet(genotype)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(embed_dims=(16, 24, 40)), "embed_dims=(16, 24, 40) must have 7 entries"),
        (dict(embed_dims=(16, 24, 40, 60, 96, 192, 272)), "embed_dims[3]=60 must be a positive"),
        (dict(depths=(1, 3, 3, 0, 2, 2, 2)), "must be at least 1"),
        (dict(kernel_sizes=(3, 4, 3)), "kernel_sizes=(3, 4, 3) must be odd"),
        (dict(value_ratios=(2, 2)), "value_ratios=(2, 2) must have 4 entries"),
        (dict(img_size=(64, 96)), "must be square"),
        (dict(drop_rate=1.0), "drop_rate=1.0 must be at least 0 and less than 1"),
    ],
)
def test_bad_arguments_are_refused(options, words):
    models.assert_refused(lambda: ElasticViT(**options), words)


def test_other_refusals(monkeypatch):
    monkeypatch.setattr(elastic_space, "TRIES", 50)
    rng = random.Random(0)
    poor = SPACE._replace(levels=(10,))
    models.assert_refused(lambda: poor.near(0, rng), "level 0 is met by no network")
    models.assert_refused(
        lambda: Evolution(SPACE, lambda genotype: False), "the budget is met by no further network"
    )
    models.assert_refused(lambda: Bank(0), "capacity=0 must be an integer of at least 1")
    models.assert_refused(lambda: first(torch.ones(3, 3), (4, 3)), "is no part of weights (3, 3)")
    models.assert_refused(lambda: soft_targets([], 0), "temperature=0 must be above 0")
    models.assert_refused(lambda: clip_by_weights([], 0), "ratio=0 must be above 0")


def test_slices_of_a_state_dict(small):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    whole = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).state_dict()
    found = slices(whole, network, cut)
    assert torch.equal(found["0.weight"], whole["0.weight"][:2, :3])
    assert found.keys() == network.state_dict().keys()
