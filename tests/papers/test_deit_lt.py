"""DeiT-LT: networks, losses, counts and choices equal to the official code; what the parts are for.

The ResNet teachers of `bases/resnet.py` are tested here, too.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refimpl
from refimpl import weights
from refimpl.bases import resnet
from refimpl.bases.deit import VisionTransformer
from refimpl.bases.resnet import ResNet, ldam_loss
from refimpl.papers.deit_lt import (
    RECIPES,
    DeferredLoss,
    Mix,
    SeenAt,
    class_counts,
    class_weights,
    draw_long_tail,
    group_accuracy,
    groups,
    rank_of_features,
    repeated_indices,
    resize_positions,
    sharpness_aware_loss,
    soft_distillation,
    soft_labels,
    two_experts_loss,
)
from shared import models

STEM = "deit_lt"
SMALL = dict(img_size=16, patch_size=8, num_classes=5, embed_dim=24, depth=2, num_heads=3)
COUNTS = [40, 20, 10, 5, 2]
TINY = dict(in_chans=3, num_classes=5, depths=(1, 1), widths=(4, 7))


def student(**options):
    torch.manual_seed(0)
    return models.lively(VisionTransformer(**SMALL | options, distilled=True))


# ---- Equal to the official code


def official_names(model):
    """Official tensor name -> shape, where a file of a ResNet leaves its `state` out."""
    spec = {}
    for name, tensor in model.state_dict().items():
        name = re.sub(r"stages\.(\d)", lambda found: f"layer{int(found[1]) + 1}", name)
        name = re.sub(r"conv(\d)\.norm", r"bn\1", name).replace(".conv.", ".")
        spec[name] = list(tensor.shape)
    return spec


def check_student(case):
    width = re.search(r"deit_(tiny|small|base)_", case.name)[1]
    (images,) = case.inputs()
    size = tuple(images.shape[2:])
    full = models.on_meta(f"deit_lt_{width}", **case.kwargs)
    spec = {name: list(tensor.shape) for name, tensor in full.state_dict().items()}
    case.fill(full, spec=spec)
    model = models.on_meta(f"deit_lt_{width}", img_size=size, **case.kwargs).eval()
    state = full.state_dict()
    grids = full.layout.grid, model.layout.grid
    state["pos_embed"] = resize_positions(state["pos_embed"], *grids)
    model.load_state_dict(state, assign=True)
    case.check_params(full)
    with torch.inference_mode():
        cls, dist = model.forward_classifiers(images)
        torch.testing.assert_close(model(images), (cls + dist) / 2)
    case.check({"output.0": cls, "output.1": dist})


def check_teacher(case):
    """PaCo's file counts two encoders with projections, and two classifiers."""
    kwargs = case.kwargs
    model = ResNet(num_classes=kwargs["num_classes"], cosine=kwargs.get("use_norm", False))
    spec = official_names(model)
    if "paco" in case.name:
        spec = {re.sub(r"^(?!linear)", "encoder_q.", name): s for name, s in spec.items()}
        case.fill(model, resnet.NAMES["paco"], spec)
        ours = sum(parameter.numel() for parameter in model.parameters())
        projection = 64 * 64 + 64 + 2 * 64 + 64 * kwargs["dim"] + kwargs["dim"]
        assert 2 * (ours + projection) == case.data["params"]
    else:
        case.fill(model, spec=spec)
        case.check_params(model)
    (images,) = case.inputs()
    with torch.inference_mode():
        case.check(model.eval()(images))


class Stub(VisionTransformer):
    """A student, or a teacher, that answers what a file recorded."""

    def __init__(self, cls, dist):
        super().__init__(**SMALL)
        self.answers = cls, dist

    def forward_classifiers(self, images):
        return self.answers


def check_losses(case):
    named = {n: torch.from_numpy(case.recorded(n)) for n in case.data["inputs"]}
    net = Stub(named["cls_logits"], named["dist_logits"])
    images = torch.zeros(len(named["labels"]), 3, 1, 1)
    alpha = case.arguments["alpha"]
    found = {}
    for weighted, w in (("unweighted", None), ("weighted", named["class_weights"])):
        for how, mix in (("mixup", lambda x, y: (x, named["soft_labels"])), ("plain", None)):
            cls, dist = two_experts_loss(
                net, lambda x: named["teacher_logits"], images, named["labels"], mix, w
            )
            soft = soft_distillation(
                named["dist_logits"], named["teacher_logits"], case.arguments["tau_soft"], w
            )
            for kind, taught in (("hard", dist), ("soft", soft)):
                name = f"{kind}.{weighted}.{how}"
                parts = (1 - alpha) * cls, alpha * taught
                found |= {f"{name}.total": sum(parts)}
                found |= {f"{name}.cls": parts[0], f"{name}.dist": parts[1]}
    case.check({name: found[name] for name in case.data["outputs"]}, rtol=1e-5)


def check_counts(case):
    found = {}
    for name in case.data["outputs"]:
        kind, classes, share = re.fullmatch(r"(\w+)_c(\d+)_f([\d.]+)", name).groups()
        kind = {"exp": "exponential"}.get(kind, kind)
        classes = int(classes)
        counts = class_counts(classes, 1 / float(share), 50_000 // classes, kind)
        found[name] = torch.tensor(counts)
    case.check(found, rtol=0)


def check_subset(case):
    labels = torch.from_numpy(case.recorded("targets"))
    wanted = case.arguments["img_num_per_cls"]
    there = torch.bincount(labels, minlength=len(wanted)).tolist()
    counts = [min(count, most) for count, most in zip(wanted, there, strict=True)]
    kept = draw_long_tail(labels, counts, case.arguments["numpy_seed"])
    case.check({"kept_index": kept, "kept_target": labels[kept]}, rtol=0)


def check_weights(case):
    found = {}
    for name in case.data["outputs"]:
        counts, beta = name.rsplit("_b", 1)
        found[name] = class_weights(case.recorded(counts).tolist(), float(beta))
    case.check(found, rtol=1e-9)


def check_repeated(case):
    case.check({"indices": repeated_indices(**case.arguments)}, rtol=0)


def test_official(official_case):
    checks = {
        "deit": check_student,
        "timm": check_student,
        "teacher": check_teacher,
        "distillation": check_losses,
        "class_counts": check_counts,
        "subset": check_subset,
        "class_weights": check_weights,
        "repeated": check_repeated,
    }
    found = [check for start, check in checks.items() if official_case.name.startswith(start)]
    found[0](official_case)


@pytest.mark.parametrize(
    ("classes", "params"),
    [(10, 85_815_572), (100, 85_953_992), (1000, 87_338_192), (8142, 98_322_588)],
)
def test_parameters_of_the_paper_s_students(classes, params):
    model = models.on_meta("deit_lt_base", num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == params


@pytest.mark.parametrize("width", ["tiny", "small", "base"])
def test_every_width_runs_at_its_own_size(width):
    """The official patch embedding keeps 768 channels: there, only the base model runs."""
    model = refimpl.create_model(f"deit_lt_{width}", num_classes=4, depth=1, img_size=32).eval()
    assert model.patch_embed.proj.out_channels == model.cls_token.shape[-1]
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 4)


def test_official_containers_load(tmp_path):
    source = student()
    holder = {"model": source.state_dict(), "epoch": 1200, "model_ema": student().state_dict()}
    torch.save(holder, tmp_path / "student.pth")
    models.assert_same_tensors(weights.load_official(student(), tmp_path / "student.pth"), source)


@pytest.mark.parametrize("names", ["official", "paco"])
def test_official_teachers_load(names, tmp_path):
    """PaCo's file also holds what it needs in training: it is left aside."""
    torch.manual_seed(1)
    source = models.lively(ResNet(**TINY))
    state = official_names(source)
    own = list(source.state_dict().values())
    given = {f"module.{name}": value for name, value in zip(state, own, strict=True)}
    if names == "paco":
        given = {
            re.sub(r"^module\.(?!linear)", "module.encoder_q.", n): v for n, v in given.items()
        }
        slow = {
            n.replace("encoder_q", "encoder_k").replace("linear", "linear_k"): v + 1
            for n, v in given.items()
        }
        extra = ("queue", "queue_l", "queue_ptr", "encoder_q.fc.0.weight", "encoder_q.fc.3.bias")
        given |= slow | {f"module.{name}": torch.ones(3) for name in extra}
    torch.save({"state_dict": given}, tmp_path / "teacher.pth.tar")
    loaded = weights.load_official(ResNet(**TINY), tmp_path / "teacher.pth.tar")
    models.assert_same_tensors(loaded, source)


# ---- The loss


def pair(n=6, classes=5):
    torch.manual_seed(3)
    return torch.randn(n, 3, 16, 16), torch.arange(n) % classes


def test_the_teacher_sees_the_mixed_image_and_gets_no_gradient():
    images, labels = pair()
    teacher = ResNet(**TINY).eval()
    seen = []

    def watching(x):
        seen.append(x)
        return teacher(x)

    mix = Mix(5, seed=1)
    cls, dist = two_experts_loss(student(), watching, images, labels, mix)
    (cls + dist).backward()
    wanted, _ = Mix(5, seed=1)(images, labels)
    assert torch.equal(seen[0], wanted) and not torch.equal(wanted, images)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_each_token_hears_its_own_teacher():
    """Before the blocks mix them, the classifiers' gradients come from one loss each."""
    net = student()
    images, labels = pair()
    cls, dist = two_experts_loss(net, ResNet(**TINY).eval(), images, labels)
    heads = [net.head.weight, net.head_dist.weight]
    one = torch.autograd.grad(cls, heads, retain_graph=True, allow_unused=True)
    other = torch.autograd.grad(dist, heads, allow_unused=True)
    assert one[1] is None and other[0] is None
    assert one[0].abs().sum() > 0 and other[1].abs().sum() > 0


def test_only_the_distillation_half_is_weighted_and_the_scale_of_weights_is_nothing():
    net = student()
    images, labels = pair()
    named = F.one_hot(labels.flip(0), 5)

    def teacher(x):
        return named

    even = two_experts_loss(net, teacher, images, labels)
    w = torch.rand(5) + 0.1
    weighted = two_experts_loss(net, teacher, images, labels, class_weights=w)
    scaled = two_experts_loss(net, teacher, images, labels, class_weights=7 * w)
    assert torch.equal(even[0], weighted[0])
    assert not torch.allclose(even[1], weighted[1])
    torch.testing.assert_close(weighted[1], scaled[1])


def test_deferred_loss_changes_at_its_step():
    """Without re-weighting nothing is weighted: the official flag is the tuple (False,), true."""
    net, teacher = student(), ResNet(**TINY)
    images, labels = pair()
    loss = DeferredLoss(teacher, COUNTS, deferred_from=1, mix=Mix(5, seed=2))
    first, second = loss(net, images, labels), loss(net, images, labels)
    assert teacher.training  # as it was
    teacher.eval()
    early = two_experts_loss(net, teacher, images, labels, Mix(5, seed=2))
    w = class_weights(COUNTS).float()
    late = two_experts_loss(net, teacher, images, labels, class_weights=w)
    torch.testing.assert_close(first, sum(early) / 2)
    torch.testing.assert_close(second, sum(late) / 2)


def test_a_step_of_training_reaches_every_parameter():
    net = student().train()
    images, labels = pair()
    DeferredLoss(ResNet(**TINY), COUNTS, 0, None)(net, images, labels).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_weighted_log_probabilities_are_no_distribution():
    """As released: after weighting and dividing, exp of the teacher's values sums to anything."""
    torch.manual_seed(0)
    dist, teacher = torch.randn(4, 5), torch.randn(4, 5)
    w = class_weights(COUNTS).float()
    weighted = teacher.log_softmax(1) * w
    sums = (weighted / weighted.sum(1, keepdim=True)).exp().sum(1)
    assert (sums > 4).all()
    even = soft_distillation(dist, teacher, 1.0)
    assert even >= 0 and soft_distillation(teacher, teacher, 1.0).abs() < 1e-6
    assert soft_distillation(teacher, teacher, 1.0, w) > 0.1  # equal, and yet punished


# ---- The long tail


def test_cifar_counts_and_groups_of_the_paper():
    assert class_counts(10, 100, 5000) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    for recipe in RECIPES.values():
        parts = groups(recipe.num_classes, recipe.borders)
        covered = [c for part in parts.values() for c in range(recipe.num_classes)[part]]
        assert covered == list(range(recipe.num_classes))
        assert 0 < recipe.deferred_from < recipe.epochs
    assert {r.epochs - r.deferred_from for r in RECIPES.values()} == {100, 200}


def test_effective_number_counts_few_images_and_saturates():
    w = class_weights([10**7, 10**7 + 1, 3, 6], beta=0.999)
    torch.testing.assert_close(w[0], w[1])  # both have reached 1 / (1 − β)
    assert abs(float(w[2] / w[3]) - 2) < 0.01  # hardly any copies among six
    torch.testing.assert_close(w.mean(), torch.tensor(1.0, dtype=torch.float64))


def test_late_weights_are_a_gentle_nudge():
    """The recipe's cosine has fallen to 2 % of its range when they begin."""
    for recipe in RECIPES.values():
        left = (1 + np.cos(np.pi * recipe.deferred_from / recipe.epochs)) / 2
        assert left < 0.05


def test_classes_count_alike_in_a_group_s_accuracy():
    labels = torch.tensor([0] * 8 + [1, 2, 3])
    answers = labels.clone()
    answers[8] = 0  # the only image of class 1
    found = group_accuracy(answers, labels, 4, (1, 3))
    assert found == {"overall": 0.75, "head": 1.0, "middle": 0.5, "tail": 1.0}


# ---- What student and teacher see


@pytest.mark.parametrize("switch", [0.0, 1.0])
def test_labels_are_mixed_in_the_shares_of_the_pixels(switch):
    """On images of one value each, the mean of a mixed image tells its label's shares."""
    labels = torch.arange(6) % 5
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 20, 20)
    mix = Mix(5, switch=switch, smoothing=0.0, seed=4)
    for _ in range(20):
        mixed, soft = mix(images, labels)
        share = (mixed[0].mean() - 5) / (0 - 5)  # image 0 with its partner, image 5
        assert soft[0, 0] == pytest.approx(1.0)  # both are of class 0
        assert float(soft[1, 1]) == pytest.approx(float(share), abs=1e-5)
        assert float(soft[1, 4]) == pytest.approx(1 - float(share), abs=1e-5)
        values = set(mixed[1].unique().tolist())
        assert values <= {1.0, 4.0} if switch else len(values) == 1
    torch.testing.assert_close(soft.sum(1), torch.ones(6))


def test_mixing_is_seeded_and_leaves_images_alone():
    images, labels = pair()
    before = images.clone()
    one, other = Mix(5, seed=9), Mix(5, seed=9)
    for _ in range(6):
        for a, b in zip(one(images, labels), other(images, labels), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(images, before)


def test_label_smoothing():
    soft = soft_labels(torch.tensor([2]), 4, 0.1)
    torch.testing.assert_close(soft, torch.tensor([[0.025, 0.025, 0.925, 0.025]]))


def test_a_teacher_of_another_size():
    teacher = ResNet(**TINY).eval()
    images = torch.randn(2, 3, 48, 48)
    wanted = teacher(F.interpolate(images, (32, 32), mode="bicubic"))
    assert torch.equal(SeenAt(teacher, 32)(images), wanted)


def test_repeated_augmentation_shares_each_image_among_the_workers():
    parts = [repeated_indices(512, 7, replicas=3, rank=rank) for rank in range(3)]
    assert {len(part) for part in parts} == {512 // 3}
    for part in parts:  # three workers, three copies: each sees an image once
        assert len(part.unique()) == len(part)
    assert torch.equal(parts[0], parts[1])


# ---- Teachers and flat minima


def test_shortcuts_have_no_weights():
    block = resnet.BasicBlock(4, 7, stride=2).eval()
    nn.init.zeros_(block.conv2.norm.weight)
    x = torch.rand(1, 4, 6, 6)
    y = block(x)
    assert y.shape == (1, 7, 3, 3)
    assert torch.equal(y[:, 1:5], x[:, :, ::2, ::2])
    assert not y[:, 0].any() and not y[:, 5:].any()


@pytest.mark.parametrize("options", [{}, {"cosine": True}, {"num_classes": 0}])
def test_teachers_fold_and_do_what_a_user_does_next(options):
    def build():
        torch.manual_seed(0)
        return models.lively(ResNet(**TINY | options))

    images = torch.randn(4, 3, 16, 16)
    models.assert_fused_is_equal(build(), images)
    if not options:
        for step in models.NEXT_STEPS:
            step(build, images)


def test_cosines_forget_lengths():
    net = models.lively(ResNet(**TINY, cosine=True))
    images = torch.randn(3, 3, 16, 16)
    logits = net(images)
    assert logits.abs().max() <= 1 + 1e-6
    net.linear.weight.data *= torch.rand(5) + 0.5
    torch.testing.assert_close(net(images), logits)


def test_margins_fall_with_the_count():
    logits = torch.zeros(5, 5)
    labels = torch.arange(5)
    losses = [ldam_loss(logits[c : c + 1], labels[c : c + 1], COUNTS) for c in range(5)]
    assert losses == sorted(losses)  # rarer, larger margin, more loss at equal cosines
    even = ldam_loss(logits, labels, [3] * 5)
    wanted = F.cross_entropy(-15 * torch.eye(5), labels)
    torch.testing.assert_close(even, wanted)


def test_sharpness_aware_gradient_is_taken_up_the_slope():
    """On a quadratic: at w with gradient A w, it is A (w + ρ A w / ‖A w‖)."""
    net = nn.Linear(3, 1, bias=False)
    a = torch.diag(torch.tensor([1.0, 4.0, 9.0]))

    def loss(call):
        w = call(torch.eye(3))[:, 0]
        return w @ a @ w / 2

    before = net.weight.detach().clone()
    sharpness_aware_loss(net, loss, rho=0.1).backward()
    slope = before[0] @ a
    wanted = (before[0] + 0.1 * slope / slope.norm()) @ a
    torch.testing.assert_close(net.weight.grad[0], wanted)
    assert torch.equal(net.weight.detach(), before)


def test_rank_counts_the_directions_that_vary():
    torch.manual_seed(0)
    thin = torch.randn(50, 3) @ torch.randn(3, 16) + 100  # far from the origin
    assert rank_of_features(thin) <= 3
    assert rank_of_features(torch.eye(16)[:, :5].repeat(9, 1), 0.999) == 5
    assert rank_of_features(torch.tensor([[0.0, 0.0], [1.0, 0.1]])) == 1


def test_positions_of_the_same_grid_stay_and_a_constant_stays_constant():
    table = torch.randn(1, 2 + 12, 4)
    assert resize_positions(table, (3, 4), (3, 4)) is table
    flat = torch.ones(1, 14, 4)
    flat[:, 0] = 5
    larger = resize_positions(flat, (3, 4), (6, 2))
    assert larger.shape == (1, 14, 4) and torch.equal(larger[:, :2], flat[:, :2])
    torch.testing.assert_close(larger[:, 2:], torch.ones(1, 12, 4))


# ---- Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_counts(10, 100, 50), "leaves class 9 without images"),
        (lambda: class_counts(10, 0.5, 50), "imbalance=0.5 must be at least 1"),
        (lambda: class_counts(1, 2, 50), "num_classes=1 must be an integer of at least 2"),
        (lambda: class_counts(4, 2, 50, "linear"), "kind='linear' is not known; there are 'expo"),
        (lambda: class_weights([5, 0, 2]), "counts[1]=0 must be an integer of at least 1"),
        (lambda: class_weights([5, 2], 1.0), "beta=1.0 must be at least 0 and less than 1"),
        (lambda: draw_long_tail(torch.tensor([0, 0, 1]), [2, 2]), "counts[1]=2 must be at most 1"),
        (lambda: draw_long_tail(torch.tensor([0, 2]), [1, 1]), "labels from 0 to 2 must be from 0"),
        (lambda: draw_long_tail(torch.zeros(3), [1, 1]), "labels must be one integer per image"),
        (lambda: soft_labels(torch.tensor([-1]), 3), "labels from -1 to -1 must be from 0 to 2"),
        (lambda: groups(10, (7, 3)), "borders=(7, 3) must rise, from 1 to 9"),
        (
            lambda: group_accuracy(torch.tensor([0, 2]), torch.tensor([0, 2]), 3, (1, 2)),
            "class 1 has no images to be tested on",
        ),
        (lambda: repeated_indices(100, 0), "n=100 must be an integer of at least 256"),
        (lambda: repeated_indices(300, 0, 2, 2), "rank=2 must be from 0 to 1"),
        (lambda: Mix(5, mixup=0), "mixup=0 must be above 0"),
        (lambda: Mix(5, switch=2), "switch=2 must be between 0 and 1"),
        (lambda: rank_of_features(torch.ones(4, 3)), "features are all equal"),
        (lambda: rank_of_features(torch.ones(1, 3)), "len(features)=1 must be at least 2"),
        (lambda: sharpness_aware_loss(nn.Linear(1, 1), sum, rho=0), "rho=0 must be above 0"),
        (lambda: soft_distillation(torch.ones(1, 2), torch.ones(1, 2), 0), "temperature=0 must be"),
        (
            lambda: resize_positions(torch.ones(1, 6, 2), (3, 2), (2, 2)),
            "grid=(3, 2) does not fit the 4 patches",
        ),
        (lambda: ResNet(depths=(1,), widths=(4, 8)), "must be equally long"),
        (lambda: ResNet(widths=(8, 4, 4)), "widths=(8, 4, 4) must not fall"),
        (lambda: ResNet(**TINY)(torch.randn(1, 1, 8, 8)), "images have 1 channels"),
        (lambda: ldam_loss(torch.ones(1, 3), torch.tensor([0]), [1, 2]), "counts has 2 classes"),
        (
            lambda: two_experts_loss(VisionTransformer(**SMALL), ResNet(**TINY), *pair()),
            "forward_classifiers wants a model built with distilled=True",
        ),
        (
            lambda: DeferredLoss(ResNet(**TINY), COUNTS[:3], 0, None)(student(), *pair()),
            "labels from 0 to 4 must be from 0 to 2: counts names 3 classes",
        ),
        (
            lambda: DeferredLoss(ResNet(**TINY), [3, 0, 1], 0, None),
            "counts[1]=0 must be an integer of at least 1",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
