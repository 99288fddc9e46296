"""Breast tumours: losses, weights and reports equal to recorded ones; what the protocol guards."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refimpl
from refimpl.bases.efficientnet import EfficientNet
from refimpl.papers import breast_efficientnet as breast
from refimpl.papers.breast_efficientnet import (
    BREAKHIS,
    at_shares,
    class_weights,
    grown,
    intensive,
    interval,
    malignant,
    of_confusion,
    regular,
    report,
    shifted,
    split,
    start_from,
    weighted_loss,
)

STEM = "breast_efficientnet"
COUNTS = list(BREAKHIS.values())


# ---- Equal to what was recorded


def check_weights(case):
    counts = case.recorded("counts").tolist()
    found = {}
    for name in case.data["outputs"]:
        kind, beta = re.fullmatch(r"([a-z_]+?)(?:_b([\d.]+))?", name).groups()
        found[name] = class_weights(counts, kind, float(beta or 0.999))
    case.check(found, rtol=1e-6)


def check_loss(case):
    logits, labels, weights = case.inputs()
    found = {
        "weighted_mean": weighted_loss(logits, labels, weights),
        "weighted_sum_over_batch_size": weighted_loss(logits, labels, weights, "images"),
        "plain": weighted_loss(logits, labels, torch.ones_like(weights)),
    }
    case.check(found, rtol=1e-6)


def check_report(case):
    found = report(*case.inputs(), len(case.recorded("recall")))
    names = case.data["outputs"]
    given = {name: torch.as_tensor(value) for name, value in found._asdict().items()}
    assert torch.equal(found.confusion, torch.from_numpy(case.recorded("confusion")))
    case.check({name: given[name] for name in names}, rtol=1e-6)


def test_official(official_case):
    checks = {"class_weights": check_weights, "weighted_loss": check_loss, "report": check_report}
    next(check for name, check in checks.items() if official_case.name.startswith(name))(
        official_case
    )


def test_breakhis_as_published():
    """7,909 images, of which 2,480 are benign; the rarest type has an eighth of the commonest."""
    assert sum(COUNTS) == 7909
    assert sum(COUNTS[: breast.BENIGN]) == 2480
    assert max(COUNTS) / min(COUNTS) == pytest.approx(7.77, abs=0.01)


def test_the_published_figures_fit_together():
    """Errors of 2.65 and 1.77 % less what the benign recalls cost leave the malignant nearly 0."""
    share = 2480 / 7909
    for accuracy, benign in ((0.9735, 0.92), (0.9823, 0.95)):
        malignant_recall = (accuracy - share * benign) / (1 - share)
        assert 0.996 < malignant_recall < 0.9985


def test_the_model_is_efficientnet_for_eight_types():
    with torch.device("meta"):
        model = refimpl.create_model("breast_efficientnet_b0")
        binary = refimpl.create_model("breast_efficientnet_b0", num_classes=2)
    assert isinstance(model, EfficientNet)
    assert model.classifier.out_features == 8
    size = sum(p.numel() for p in model.parameters())
    assert size == 5_288_548 - 1281 * 1000 + 1281 * 8  # B0's, with its classifier replaced
    assert size - sum(p.numel() for p in binary.parameters()) == 1281 * 6


# ---- Cost-sensitive learning


def batch(n=12, classes=4):
    logits = torch.randn(n, classes, dtype=torch.float64)
    return logits, torch.arange(n) % classes


def test_the_loss_is_pytorch_s():
    logits, labels = batch()
    weights = torch.rand(4).double() + 0.1
    wanted = F.cross_entropy(logits, labels, weights)
    torch.testing.assert_close(weighted_loss(logits, labels, weights), wanted)
    plain = F.cross_entropy(logits, labels)
    torch.testing.assert_close(weighted_loss(logits, labels, torch.ones(4).double()), plain)


def test_what_a_batch_s_loss_is_divided_by():
    """Of one class: PyTorch's form does not see the weight, Keras's does."""
    logits, labels = batch()
    weights = torch.tensor([9.0, 1.0, 1.0, 1.0]).double()
    same = torch.zeros_like(labels)
    plain = F.cross_entropy(logits, same)
    torch.testing.assert_close(weighted_loss(logits, same, weights), plain)
    torch.testing.assert_close(weighted_loss(logits, same, weights, "images"), 9 * plain)
    mixed = [weighted_loss(logits, labels, weights, how) for how in ("weights", "images")]
    torch.testing.assert_close(mixed[0], mixed[1] / weights.mean())  # equally many of each


@pytest.mark.parametrize("kind", ["balanced", "inverse_sqrt", "effective_number"])
def test_weights_fall_with_the_count_and_not_with_the_order(kind):
    weights = class_weights(COUNTS, kind)
    turned = class_weights(COUNTS[::-1], kind)
    assert torch.allclose(weights.flip(0), turned)
    order = sorted(range(8), key=COUNTS.__getitem__)
    assert torch.all(weights[order].diff() < 0)
    even = class_weights([7, 7, 7], kind)
    torch.testing.assert_close(even, torch.ones(3).double())


def test_balanced_weights_give_every_class_the_same_say():
    shares = class_weights(COUNTS) * torch.tensor(COUNTS)
    torch.testing.assert_close(shares, torch.full((8,), 7909 / 8).double())
    flat = class_weights(COUNTS, "effective_number", beta=0.0)
    torch.testing.assert_close(flat, torch.ones(8).double())


def test_weighing_and_multiplying_have_one_mean_gradient():
    """Drawing class c with probability 1/K, or all alike with weights N / (K n_c)."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(60, 5).double(), torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    net = nn.Linear(5, 3).double()
    weights = class_weights([40, 15, 5])

    def gradient(chance, class_weights):
        costs = F.cross_entropy(net(inputs), labels, class_weights, reduction="none")
        return torch.autograd.grad((chance * costs).sum(), net.weight)[0]

    alike = torch.full((60,), 1 / 60).double()
    by_class = 1 / (3 * torch.tensor([40.0, 15.0, 5.0]).double()[labels])
    ones = torch.ones(3).double()
    torch.testing.assert_close(gradient(alike, weights), gradient(by_class, ones))


def test_a_shift_answers_as_the_weighted_posterior():
    """argmax of p·w, with w ∝ n^−τ; τ = 0 leaves all as it was; more τ, more rare answers."""
    logits = torch.randn(500, 8)
    n = torch.tensor(COUNTS, dtype=torch.float32)
    for tau in (0.5, 1.0):
        weighted = logits.softmax(1) * n**-tau
        assert torch.equal(shifted(logits, COUNTS, tau).argmax(1), weighted.argmax(1))
    assert torch.equal(shifted(logits, COUNTS, 0.0), logits)
    ductal = [
        int((shifted(logits, COUNTS, tau).argmax(1) == 4).sum()) for tau in (0, 0.25, 0.5, 1, 2)
    ]
    assert ductal == sorted(ductal, reverse=True)
    assert ductal[0] > ductal[-1] == 0


def test_the_best_weighted_answer_is_the_shifted_one():
    """A net of one bias, fitted under weights, ends where the plain one ends after the shift."""
    counts = [30, 8, 2]
    labels = torch.tensor([0] * 30 + [1] * 8 + [2] * 2)
    found = {}
    for name, weights in (("plain", torch.ones(3)), ("weighted", class_weights(counts).float())):
        bias = nn.Parameter(torch.zeros(3))
        optimiser = torch.optim.LBFGS([bias], max_iter=100)

        def closure(bias=bias, weights=weights, optimiser=optimiser):
            optimiser.zero_grad()
            loss = weighted_loss(bias.expand(40, 3), labels, weights)
            loss.backward()
            return loss

        optimiser.step(closure)
        found[name] = bias.detach()
    moved = shifted(found["plain"], counts).softmax(0)
    torch.testing.assert_close(moved, found["weighted"].softmax(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(moved, torch.full((3,), 1 / 3), atol=1e-3, rtol=0)


# ---- Augmentation


def test_regular_is_one_of_four_flips():
    images = torch.rand(40, 3, 6, 5)
    seen = regular(images, torch.Generator().manual_seed(0))
    kinds = set()
    for before, after in zip(images, seen, strict=True):
        flips = [before, before.flip(1), before.flip(2), before.flip(1).flip(2)]
        (kind,) = [i for i, flip in enumerate(flips) if torch.equal(flip, after)]
        kinds.add(kind)
    assert kinds == {0, 1, 2, 3}


def test_intensive_changes_every_image_and_keeps_what_an_image_is():
    images = torch.rand(16, 3, 24, 20)
    seen = intensive(images, torch.Generator().manual_seed(1))
    again = intensive(images, torch.Generator().manual_seed(1))
    other = intensive(images, torch.Generator().manual_seed(2))
    assert torch.equal(seen, again)
    assert not torch.equal(seen, other)
    assert seen.shape == images.shape
    assert seen.min() >= 0 and seen.max() <= 1
    assert (seen - images).abs().flatten(1).mean(1).min() > 0.01


def test_a_turn_keeps_areas():
    """A disc in the middle keeps its size, within the scale's range, and its place, about."""
    side = 64
    line = torch.arange(side) - (side - 1) / 2
    disc = ((line[:, None] ** 2 + line**2) < 12**2).float().expand(200, 1, side, side)
    seen = breast.moved(disc, torch.Generator().manual_seed(0))
    ratio = seen.sum((1, 2, 3)) / disc[0].sum()
    assert ratio.min() > 0.85**2 - 0.02 and ratio.max() < 1.15**2 + 0.02
    assert ratio.mean() == pytest.approx(1, abs=0.05)
    rows = (seen.sum((1, 3)) * line).sum(1) / seen.sum((1, 2, 3))
    assert rows.std() == pytest.approx(0.1 * side / 2, rel=0.25)


def test_blur_keeps_the_mean_of_a_flat_image_and_softens_an_edge():
    flat = torch.full((1, 2, 5, 7), 0.3)
    torch.testing.assert_close(breast.blurred(flat), flat)
    edge = (torch.arange(6) > 2).float().expand(1, 1, 4, 6)
    wanted = torch.tensor([0, 0, 0.25, 0.75, 1, 1]).expand(1, 1, 4, 6)
    torch.testing.assert_close(breast.blurred(edge), wanted)


def test_rare_classes_multiply():
    labels = torch.tensor([0] * 9 + [1] * 2 + [2] * 4)
    found = grown(labels, target=6)
    assert torch.bincount(labels[found]).tolist() == [9, 6, 6]
    times = torch.bincount(found, minlength=15)
    assert times.min() == 1
    assert times[labels == 1].tolist() == [3, 3]
    assert torch.equal(grown(labels, target=1), torch.arange(15))


# ---- Protocol


def patients_of(images_each, types):
    labels, patients = [], []
    for i, kind in enumerate(types):
        labels += [kind] * images_each
        patients += [i] * images_each
    return torch.tensor(labels), torch.tensor(patients)


def test_a_patient_stands_on_one_side():
    labels, patients = patients_of(4, [0] * 5 + [1] * 2 + [2] * 11)
    for seed in range(5):
        train, test = split(labels, patients, 0.4, seed)
        assert sorted(torch.cat([train, test]).tolist()) == list(range(len(labels)))
        assert not set(patients[train].tolist()) & set(patients[test].tolist())
        sizes = torch.bincount(labels[test]) // 4
        assert sizes.tolist() == [2, 1, 4]  # of 5, 2 and 11 patients
    assert not torch.equal(split(labels, patients, 0.4, 0)[1], split(labels, patients, 0.4, 1)[1])


def test_split_by_image_shares_patients():
    labels, patients = patients_of(4, [0] * 5 + [1] * 5)
    train, test = split(labels, torch.arange(len(labels)), 0.5)
    assert set(patients[train].tolist()) & set(patients[test].tolist())


def test_copies_made_before_a_split_fall_on_both_sides():
    """Multiply first, and a split by image puts twins of one image into the test."""
    labels, patients = patients_of(3, [0] * 8 + [1] * 2)
    copies = grown(labels, target=24)
    train, test = split(labels[copies], torch.arange(len(copies)), 0.5)
    assert set(copies[train].tolist()) & set(copies[test].tolist())
    train, test = split(labels, patients, 0.5)
    first = train[grown(labels[train], target=12)]
    assert not set(first.tolist()) & set(test.tolist())
    assert torch.bincount(labels[first]).tolist() == [12, 12]


def test_the_second_stage_keeps_all_but_the_classifier():
    torch.manual_seed(0)
    binary = refimpl.create_model("breast_efficientnet_b0", num_classes=2, depth=0.3, width=0.25)
    binary.train()(torch.randn(2, 3, 32, 32))  # statistics that are not those of a new net
    eight = refimpl.create_model("breast_efficientnet_b0", depth=0.3, width=0.25)
    own = eight.classifier.weight.clone()
    start_from(eight, binary)
    assert torch.equal(eight.classifier.weight, own)
    for name, tensor in eight.state_dict().items():
        if not name.startswith("classifier"):
            assert torch.equal(tensor, binary.state_dict()[name])
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = eight.eval().forward_features(images)
        torch.testing.assert_close(found, binary.eval().forward_features(images))


# ---- Reports


def test_shares_move_precision_and_not_recall():
    confusion = torch.tensor([[40, 10], [5, 45]])
    even = of_confusion(confusion)
    rare = at_shares(confusion, [10, 990])
    torch.testing.assert_close(even.recall, rare.recall)
    assert rare.precision[0] == pytest.approx(0.01 * 0.8 / (0.01 * 0.8 + 0.99 * 0.1))
    assert rare.accuracy == pytest.approx(0.01 * 0.8 + 0.99 * 0.9)
    assert rare.balanced == pytest.approx(even.balanced)
    assert at_shares(confusion, [5, 5]).accuracy == pytest.approx(even.accuracy)


def test_precision_at_shares_is_that_of_a_resampled_test():
    torch.manual_seed(0)
    truth = torch.arange(3).repeat(60)
    answers = torch.where(torch.rand(180) < 0.7, truth, torch.randint(3, (180,)))
    counts = [1, 5, 20]
    times = torch.tensor(counts)[truth]
    wanted = report(truth.repeat_interleave(times), answers.repeat_interleave(times), 3)
    found = at_shares(report(truth, answers, 3).confusion, counts)
    for name in ("precision", "recall", "f1"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))
    assert found.accuracy == pytest.approx(wanted.accuracy)


def test_a_lazy_model_is_accurate_and_useless():
    truth = torch.repeat_interleave(torch.arange(8), torch.tensor(COUNTS))
    lazy = report(truth, torch.full_like(truth, 4), 8)
    assert lazy.accuracy == pytest.approx(3451 / 7909)
    assert lazy.balanced == pytest.approx(1 / 8)
    assert lazy.precision.nonzero().flatten().tolist() == [4]  # 0 where nothing is named so
    assert lazy.f1[0] == 0


def test_two_classes():
    labels = torch.arange(8)
    assert malignant(labels).tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [(0.0, 10, 0.0, 0.2775), (1.0, 8, 0.6756, 1.0), (0.5, 4, 0.15, 0.85)],
)
def test_wilson(share, n, low, high):
    found = interval(share, n)
    assert found == pytest.approx((low, high), abs=2e-3)
    wide = interval(share, n, z=3.0)
    assert wide[0] <= found[0] and wide[1] >= found[1]
    middle = interval(share, 1e9)
    assert middle == pytest.approx((share, share), abs=1e-3)


def test_wilson_covers_about_95_percent():
    """Of 40 trials at 0.9, counted exactly over all outcomes."""
    p, n = 0.9, 40
    covered = 0.0
    for k in range(n + 1):
        low, high = interval(k / n, n)
        if low <= p <= high:
            covered += math.comb(n, k) * p**k * (1 - p) ** (n - k)
    assert 0.93 < covered < 0.98


# ---- Bad input

EIGHT = torch.arange(8)
CONFUSION = torch.eye(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_weights([5, 0, 2]), "counts[1]=0 must be an integer of at least 1"),
        (lambda: class_weights([5]), "len(counts)=1"),
        (lambda: class_weights([5, 2], "balance"), "did you mean 'balanced'"),
        (lambda: class_weights([5, 2], "effective_number", beta=1.0), "beta=1.0"),
        (lambda: shifted(torch.zeros(2, 3), [4, 5]), "logits are of 3 classes, counts of 2"),
        (lambda: shifted(torch.zeros(2, 2), [4, 5], tau=-1), "tau=-1"),
        (lambda: breast.count(torch.tensor([0, 0, 2]), 3), "class 1 of 3 has no images"),
        (lambda: malignant(torch.tensor([8])), "from 8 to 8 must be from 0 to 7"),
        (lambda: malignant(torch.tensor([0.5])), "one integer per image"),
        (lambda: report(EIGHT[:7], EIGHT[:7], 8), "class 7 of 8 has no images"),
        (lambda: report(EIGHT, EIGHT[:7], 8), "truth has 8 images, prediction 7"),
        (lambda: report(EIGHT, EIGHT + 1, 8), "prediction from 1 to 8"),
        (lambda: of_confusion(torch.ones(2, 3)), "confusion must be"),
        (lambda: of_confusion(torch.tensor([[1, 0], [0, 0]])), "class 1 has no images"),
        (lambda: at_shares(CONFUSION, [1, 2]), "confusion is of 3 classes, counts of 2"),
        (lambda: at_shares(CONFUSION, [1, 2, 0]), "counts[2]=0"),
        (lambda: interval(1.2, 5), "share=1.2"),
        (lambda: interval(0.5, 0), "n=0"),
        (lambda: split(EIGHT[:2], torch.tensor([0, 1])), "class 0 has one patient only"),
        (lambda: split(EIGHT[:3] % 2, torch.tensor([0, 0, 1])), "0 has images of two types"),
        (lambda: split(EIGHT, EIGHT[:5]), "patients must be"),
        (lambda: split(EIGHT, EIGHT, 1.0), "test_share=1.0"),
        (lambda: grown(EIGHT, 0), "target=0"),
        (lambda: regular(torch.rand(3, 8, 8)), "images must be"),
        (lambda: intensive(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "torch.uint8"),
        (lambda: start_from(nn.Linear(2, 2), nn.Linear(2, 2)), "has no weights of that name"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_weights_of_another_net_are_refused():
    eight = refimpl.create_model("breast_efficientnet_b0", depth=0.3, width=0.25)
    wider = refimpl.create_model("breast_efficientnet_b0", depth=0.3, width=0.5, num_classes=2)
    with pytest.raises(ValueError, match="source does not fit: stem"):
        start_from(eight, wider)
    deeper = refimpl.create_model("breast_efficientnet_b0", depth=1.0, width=0.25)
    with pytest.raises(ValueError, match="source does not fit: blocks"):
        start_from(eight, deeper)
