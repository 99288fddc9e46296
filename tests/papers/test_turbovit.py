"""TurboViT, a reconstruction: the search under hard requirements, counts without a network.

Nothing was released. The reference outputs are Hiera's, whose family the stand-ins belong to: sizes
of its configurations here, all the rest in tests/bases/test_hiera.py.
"""

from __future__ import annotations

import inspect
import random

import numpy as np
import pytest
import torch

import refimpl
from refimpl import golden
from refimpl.bases import hiera
from refimpl.lab import measure
from refimpl.lab.search import best, search
from refimpl.papers import turbovit
from refimpl.papers.turbovit import (
    EARLY,
    PAPER,
    SPACE,
    VARIANTS,
    Counts,
    Generator,
    Requirements,
    Space,
    TurboLike,
    counts,
    generate,
    inquire,
    netscore,
)
from shared import models

STEM = "turbovit"
MINI = Space((8, 16), ((1, 2), (1, 2), (1,)), (1.0, 2.0, 4.0), ((True, True, False),))
SETTING = dict(img_size=32, in_chans=1, num_classes=10, q_pool=2, mask_unit_size=4)


def everything(picks) -> bool:
    return True


# -- counts


def test_official(official_case):
    """Sizes that Hiera's code gives: random configurations, and the published ones."""
    taken = inspect.signature(counts).parameters
    sizes = []
    for config in official_case.arguments["configs"]:
        given = {"depths" if name == "stages" else name: v for name, v in config.items()}
        sizes.append(counts(**{name: v for name, v in given.items() if name in taken}))
    wanted = official_case.recorded("params_macs")
    assert [tuple(size) for size in sizes] == [tuple(row) for row in wanted.tolist()]
    official_case.check({"params_macs": torch.tensor(sizes)})


@pytest.mark.parametrize(
    "options",
    [
        dict(img_size=(64, 96), depths=(1, 2, 1, 1)),
        dict(img_size=64, depths=(2, 1, 2), q_pool=1, mask_unit_attn=(True, False, True)),
        dict(img_size=64, depths=(1, 1, 1), q_pool=2, mask_unit_attn=(False,) * 3, num_classes=7),
        dict(img_size=32, in_chans=1, embed_dim=9, mlp_ratio=1.5, depths=(1,) * 4, dim_mul=1.4),
    ],
)
def test_counts_are_those_of_the_network_that_would_be_built(options):
    with torch.device("meta"):
        model = TurboLike(**options, head_mul=1.0)
    assert counts(**options) == (measure.parameters(model), hiera.multiply_adds(model))


@pytest.mark.parametrize(
    ("variant", "parameters", "multiply_adds"),
    [
        ("tiny", 27_910_216, 4_900_830_720),
        ("base_plus", 69_896_616, 12_640_506_368),
        ("huge", 672_779_752, 124_732_960_768),
    ],
)
def test_published_sizes_of_hiera(variant, parameters, multiply_adds):
    options = dict(hiera.VARIANTS[variant])
    options.pop("num_heads")
    assert counts(**options) == (parameters, multiply_adds)


@pytest.mark.parametrize("variant", VARIANTS)
def test_stand_ins_meet_the_bounds_of_the_paper(variant):
    with torch.device("meta"):
        model = refimpl.create_model(f"turbovit_{variant}")
    found = Counts(measure.parameters(model), hiera.multiply_adds(model))
    assert found == counts(**VARIANTS[variant])
    assert PAPER.met(found)
    assert found.parameters < 12.72e6 and found.multiply_adds < 2.21e9


def test_what_misses_a_bound_by_three_percent_is_refused():
    near = counts(embed_dim=56, depths=(1, 2, 11, 2))
    assert not PAPER.met(near) and PAPER.load(near) == pytest.approx(1.035, abs=0.005)
    assert near.parameters < PAPER.parameters, "it is the multiply-adds that are too many"
    assert not PAPER.met(counts(**{"embed_dim": 96, "depths": (1, 2, 7, 2)})), "Hiera-tiny"


def test_requirements_are_what_they_say():
    both = Requirements(parameters=10, multiply_adds=20)
    assert both.met(Counts(10, 20)) and not both.met(Counts(11, 1)) and not both.met(Counts(1, 21))
    assert both.load(Counts(5, 15)) == 0.75
    assert Requirements().met(Counts(10**12, 10**15))


def test_netscore_by_hand():
    assert netscore(10, 1, 1) == pytest.approx(40)
    halved = netscore(50, 2, 3) - netscore(50, 4, 6)
    assert halved == pytest.approx(20 * np.log10(2)), "half of both sizes: 6 dB"
    assert netscore(50 * 2**0.5, 4, 6) - netscore(50, 4, 6) == pytest.approx(halved)
    assert netscore(80, 5, 5, alpha=1, beta=0, gamma=0) == pytest.approx(20 * np.log10(80))


# -- the search


def test_what_is_drawn_meets_the_requirements():
    def meets(picks):
        return sum(picks) <= 2

    logits = [np.zeros(3)] * 3
    rng = random.Random(0)
    drawn = [generate(logits, meets, rng) for _ in range(200)]
    assert all(map(meets, drawn)) and len(set(drawn)) == 10, "all ten designs, and no other"


def test_draws_follow_the_softmax():
    logits = [np.log([0.7, 0.2, 0.1]) + 5, np.log([0.5, 0.5])]
    rng = random.Random(0)
    drawn = np.array([generate(logits, everything, rng) for _ in range(4000)])
    assert np.bincount(drawn[:, 0]) / 4000 == pytest.approx([0.7, 0.2, 0.1], abs=0.03)
    assert np.bincount(drawn[:, 1]) / 4000 == pytest.approx([0.5, 0.5], abs=0.03)


def test_the_inquisitor_moves_towards_the_elite():
    """Two of three in the elite have option 1: (2 + ½) / (3 + 1), half way in the logarithm."""
    told = [(0.9, (1,)), (0.8, (1,)), (0.7, (0,)), (0.1, (0,)), (0.0, (0,))]
    (moved,) = inquire([np.log([0.5, 0.5])], told, elite=3)
    shares = np.array([1.5 / 4, 2.5 / 4])
    assert moved == pytest.approx((np.log(0.5) + np.log(shares)) / 2)


def test_a_design_that_was_told_twice_counts_once():
    once = inquire([np.zeros(2)], [(1.0, (1,)), (0.5, (0,))], elite=2)
    twice = inquire([np.zeros(2)], [(1.0, (1,)), (1.0, (1,)), (0.5, (0,))], elite=2)
    assert np.array_equal(once, twice)


def test_no_option_dies_out():
    generator = Generator((4,), everything, (0,), trust=0.0, per_round=1)
    for _ in range(50):
        generator.told.clear()
        generator.tell((0,), 1.0)
    assert min(generator.probabilities()[0]) > 0.05


def test_it_begins_at_the_prototype():
    generator = Generator((3, 1, 2), everything, (2, 0, 1))
    first, only, last = generator.probabilities()
    assert first == pytest.approx([0.2, 0.2, 0.6]) and only == pytest.approx([1.0])
    assert last == pytest.approx([0.3, 0.7])
    assert Generator((4,), everything, (1,), trust=0.0).probabilities()[0] == pytest.approx(0.25)


def test_every_evaluation_buys_a_new_design_until_none_is_left():
    generator = Generator((2, 3), lambda p: p != (1, 2), (0, 0))
    trials = search(generator, lambda picks: float(sum(picks)), 5)
    assert len({trial.candidate for trial in trials}) == 5
    models.assert_refused(generator.ask, "meets: none of 10000 designs drawn")


def test_the_same_seed_the_same_search_also_from_a_log(tmp_path):
    def run(count, **more):
        generator = Generator((4, 4, 4), everything, (0, 0, 0), seed=3)
        return search(generator, lambda p: p[0] - p[1] ** 2, count, **more)

    whole = run(20)
    run(9, log=tmp_path / "log")
    assert run(20, log=tmp_path / "log") == whole


def test_it_finds_what_choices_add_up_to_and_is_blind_to_parity():
    """Independent choices: a sum of effects they learn, a parity they can't."""
    places = range(6)
    effects = np.random.default_rng(0).normal(size=(6, 4))

    def additive(picks):
        return float(sum(effects[i, p] for i, p in enumerate(picks)))

    def parity(picks):
        return float(sum(picks) % 2)

    found = {}
    for quality in (additive, parity):
        late = []
        for seed in range(10):
            generator = Generator((4,) * 6, everything, (0,) * 6, trust=0.0, seed=seed)
            trials = search(generator, quality, 60)
            late.append(np.mean([trial.score for trial in trials[-15:]]))
        found[quality] = np.mean(late)
    spread = np.sqrt(sum(effects[i].var() for i in places))
    assert found[additive] > effects.mean(1).sum() + spread, "by chance within a tenth of it"
    assert abs(found[parity] - 0.5) < 0.15


def test_requirements_are_learned_too():
    """Cheap designs are feasible: after some rounds fewer draws are in vain."""

    def meets(picks):
        return sum(picks) <= 4

    def share_met(generator):
        rng = random.Random(1)
        drawn = [generate(generator.logits, everything, rng) for _ in range(500)]
        return np.mean([meets(picks) for picks in drawn])

    generator = Generator((4,) * 5, meets, (0,) * 5, trust=0.0)
    before = share_met(generator)
    search(generator, lambda picks: 0.0, 24)
    assert share_met(generator) > before + 0.2


def test_a_search_on_small_networks_from_a_few_lines():
    """What the method is for: designs within bounds, closed-form requirements, a score to hear."""
    bounds = Requirements(parameters=30_000)

    def size(picks):
        return counts(**MINI.design(picks), **SETTING)

    generator = Generator(MINI.sizes, lambda p: bounds.met(size(p)), (0, 0, 0, 0, 0, 0))
    trials = search(generator, lambda p: netscore(50, *size(p)), 8)
    assert all(size(trial.candidate).parameters <= 30_000 for trial in trials)
    net = TurboLike(**MINI.design(best(trials).candidate), **SETTING)
    assert net(torch.randn(2, 1, 32, 32)).shape == (2, 10)


# -- names, the space, the network


def test_it_never_looks_like_the_authors_network():
    """Nothing was released: every name says like, and no accuracy is published for it."""
    assert all("like" in name for name in refimpl.list_models("turbovit*"))
    assert "Like" in TurboLike.__name__ and "not* the authors' network" in TurboLike.__doc__
    paper = refimpl.paper("turbovit")
    assert paper.top1 == () and paper.code == "" and "neither code" in paper.licence
    for mark in ("[P]", "[H]", "[D]", "[A]"):
        assert mark in turbovit.__doc__


def test_the_update_rule_is_marked_as_ours():
    assert "was never published; a cross-entropy method takes its place. [A]" in " ".join(
        turbovit.__doc__.split()
    )
    heart = inspect.getsource(turbovit).partition("def generate")[0].splitlines()[-3]
    assert heart.startswith("# The heart") and heart.endswith("[A]")


def test_stand_ins_return_logits_where_the_official_head_returns_scores():
    case = golden.load("hiera", "mini64_softmax")
    given = {"depths" if n == "stages" else n: v for n, v in case.kwargs.items()}
    if "input_size" in given:
        given["img_size"] = tuple(given.pop("input_size"))
    given["mask_unit_size"] = given["mask_unit_size"][0]
    model = TurboLike(**given).eval()
    shapes = {n: list(x.shape) for n, x in model.state_dict().items()}
    official = {n.replace("head.", "head.projection."): shape for n, shape in shapes.items()}
    case.fill(model, spec=case.data.get("state") or official)
    (images,) = case.inputs()
    with torch.no_grad():
        logits = model(images)
    case.check(logits.softmax(-1))
    assert not torch.allclose(logits.sum(-1), torch.ones(len(logits)), atol=0.1)


def test_pooled_at_three_places_and_most_layers_after_the_second():
    """What the paper says of its network holds of every stand-in."""
    for variant in VARIANTS.values():
        with torch.device("meta"):
            blocks = TurboLike(**variant).blocks
        pools = [i for i, block in enumerate(blocks) if block.attn.pool]
        assert len(pools) == 3
        assert len(blocks) - pools[1] > len(blocks) / 2


def test_designs_of_the_space():
    assert MINI.sizes == (2, 2, 2, 1, 3, 1) and len(MINI.all()) == 24
    assert MINI.design((1, 0, 1, 0, 2, 0)) == {
        "embed_dim": 16,
        "depths": (1, 2, 1),
        "mlp_ratio": 4.0,
        "mask_unit_attn": (True, True, False),
    }
    rng = random.Random(0)
    for _ in range(20):
        design = SPACE.design(tuple(rng.randrange(size) for size in SPACE.sizes))
        assert design["mask_unit_attn"] == EARLY
        assert counts(**design).parameters > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Generator((2, 0), everything, (0, 0)), "sizes=(2, 0) must be at least 1"),
        (lambda: Generator((2, 2), everything, (0,)), "must be equally long"),
        (lambda: Generator((2, 2), everything, (0, 2)), "prototype=(0, 2): choice 1 has 2 options"),
        (lambda: Generator((2,), everything, (0,), trust=1.0), "trust=1.0 must be at least 0"),
        (lambda: Generator((2,), everything, (0,), per_round=0), "per_round=0 must be an integer"),
        (lambda: Generator((2,), everything, (0,), elite=0), "elite=0 must be an integer"),
        (lambda: Generator((2,), lambda p: False, (0,)).ask(), "meets: none of 10000 designs"),
        (lambda: MINI.design((2, 0, 0, 0, 0, 0)), "picks=(2, 0, 0, 0, 0, 0) must name an option"),
        (lambda: MINI.design((0, 0)), "picks=(0, 0) must name an option of each choice"),
        (lambda: netscore(0, 1, 1), "accuracy=0 must be above 0"),
        (lambda: netscore(50, -1, 1), "parameters=-1 must be above 0"),
        (lambda: counts(img_size=100), "img_size=100 must be a positive multiple of 32"),
        (lambda: counts(depths=(1, 2)), "must be equally long"),
        (lambda: counts(depths=(1, 0, 1, 1)), "depths=(1, 0, 1, 1) must be at least 1"),
        (lambda: counts(embed_dim=0), "embed_dim=0 must be an integer of at least 1"),
        (lambda: counts(mlp_ratio=0), "mlp_ratio=0 must be above 0"),
        (lambda: counts(q_pool=4), "q_pool=4 must be less than the number of stages"),
        (lambda: counts(mask_unit_size=6, img_size=48), "mask_unit_size=6 must be a power of two"),
    ],
)
def test_refusals(call, message):
    models.assert_refused(call, message)
