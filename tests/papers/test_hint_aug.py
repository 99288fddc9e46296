"""Hint-Aug: tuned networks and functions equal to the official code; where code and text part.

Adapters, low-rank updates and prompts of `bases/parameter_efficient.py` are tested here, too.
"""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refimpl
from refimpl import golden, weights
from refimpl.bases.deit import VisionTransformer, init_weights
from refimpl.bases.parameter_efficient import (
    Adapter,
    LowRank,
    TunedTransformer,
    adopt,
    freeze,
)
from refimpl.papers.hint_aug import (
    IMAGENET,
    HintAug,
    attention_scores,
    draw_shots,
    hint_augmented,
    in_units,
    logit_confusion,
    patch_mask,
    pushed,
    released_attack,
    released_label,
    released_patches,
    released_projection,
    released_rows,
    released_scores,
    released_target,
    restored_attack,
    tuning_step,
)
from shared import models

STEM = "hint_aug"
SIZES = dict(img_size=16, patch_size=4, in_chans=1, num_classes=4, embed_dim=32, depth=3)
SMALL = SIZES | dict(num_heads=4)
METHODS = {
    "adapter": dict(adapter_dim=8),
    "lora": dict(lora_rank=2),
    "prompts": dict(num_prompts=3),
    "all": dict(adapter_dim=8, lora_rank=2, num_prompts=3),
    "plain": {},
}
OFFICIAL = {"adapter": "adapter_dim", "lora": "lora_rank", "vpt": "num_prompts"}

every_method = pytest.mark.parametrize("method", METHODS)


def tuned(method="all", **options):
    torch.manual_seed(0)
    return models.lively(TunedTransformer(**SMALL | METHODS[method] | options))


def batch(n=6, channels=1):
    torch.manual_seed(1)
    return torch.rand(n, channels, 16, 16), torch.arange(n) % 4


# ---- Equal to the official code


def network(case):
    options = {OFFICIAL.get(name, name): value for name, value in case.kwargs.items()}
    with torch.device("meta"):
        return TunedTransformer(**options).eval()


def prompts_last(maps, count):
    """Maps (b, heads, n, n) of [class; prompts; patches] in the official order of tokens."""
    order = [0, *range(1 + count, maps.shape[-1]), *range(1, 1 + count)]
    return maps[:, :, order][:, :, :, order]


def prompts_first(maps, count):
    """The other way round."""
    n = maps.shape[-1]
    order = [0, *range(n - count, n), *range(1, n - count)]
    return maps[:, :, order][:, :, :, order]


def check_network(case):
    model = network(case)
    case.fill(model)
    case.check_params(model)
    learned = [p.numel() for p in freeze(model).parameters() if p.requires_grad]
    assert sum(learned) == case.data["params_trainable"]
    (images,) = case.inputs()
    with torch.inference_mode():
        logits = model(images)
        assert models.error(model.fuse()(images), logits) < 1e-5
        if "output" in case.data["outputs"]:
            case.check({"output": logits})
            return
        prompts = model.layout.prefix - 1
        maps = {
            f"output.1.{i}": prompts_last(model.attention_of(images, i), prompts)
            for i in range(len(model.blocks))
        }
    case.check({"output.0": logits} | maps)


def check_adapter(case):
    named = {name: torch.from_numpy(case.recorded(name)) for name in case.data["inputs"]}
    x = named.pop("x")
    adapter = Adapter(x.shape[1], len(named["ln1.bias"])).eval()
    given = {f"adapter.{name}": tensor for name, tensor in named.items()}
    rules = weights.names_of(tuned())["official"]
    state = weights.translate(given, rules)
    adapter.load_state_dict({name.removeprefix("adapter."): t for name, t in state.items()})
    case.check(adapter(x), rtol=1e-5)


def check_detector(case):
    pretrained = torch.from_numpy(case.recorded("pretrained_attention"))
    found = {}
    for name, recorded in (("adapter", "tuned"), ("vpt", "tuned_attention_with_prompts")):
        recorded = recorded if "_" in recorded else f"{recorded}_attention"
        maps = torch.from_numpy(case.recorded(recorded))
        prompts = maps.shape[-1] - pretrained.shape[-1]
        maps = prompts_first(maps, prompts)
        before, after = released_scores(pretrained), released_scores(maps, 1 + prompts)
        always = released_patches(pretrained, maps, (1, 1 + prompts), threshold=0.0)
        found |= {f"{name}.pretrained_score": before, f"{name}.tuned_score": after}
        found |= {f"{name}.difference": before - after, f"{name}.patches": always}
        found |= {f"{name}.max_abs": (before - after).abs().max()}
    assert [found[f"{name}.patches"].tolist() for name in ("adapter", "vpt")] == [
        case.recorded(f"{name}.patches").tolist() for name in ("adapter", "vpt")
    ]
    case.check(found, rtol=1e-5)


def attacked_network(case):
    """`small_adapter8` for the pictures of this file, filled by its rule, and what it attacks."""
    of = golden.Case(STEM, case.name, golden.load(STEM, "small_adapter8").data | {"fill_salt": ""})
    images, target, noise, fixed = case.inputs()
    model = TunedTransformer(
        img_size=tuple(images.shape[2:]),
        embed_dim=64,
        depth=6,
        num_heads=2,
        num_classes=target.shape[1],
        adapter_dim=8,
    )
    spec = of.data["state"] | {"pos_embed": list(model.pos_embed.shape)}
    golden.Case(STEM, case.name, {"fill_salt": case.salt}).fill(model.eval(), spec=spec)
    return model, images, target, noise, fixed


def cut(images, patches):
    """Pixels of patches (b, m) of 16×16: (b, m, c, 16, 16)."""
    of_all = images.unfold(2, 16, 16).unfold(3, 16, 16).flatten(2, 3).transpose(1, 2)
    return torch.stack([picture[chosen] for picture, chosen in zip(of_all, patches, strict=True)])


def check_attack(case):
    """The released ones bit for bit; of the restored ones all but the rare flat pixel."""
    model, images, target, noise, fixed = attacked_network(case)
    patches = torch.from_numpy(case.recorded("patches"))
    maps = model.attention_of(images, case.arguments["atten_select"])
    assert torch.equal(released_patches(maps, maps), patches)
    found = {
        "patches": patches,
        "released.patch_fool": cut(released_attack(model, images, patches, noise), patches),
        "released.patch_fool_fixed": cut(released_attack(model, images, fixed, noise), fixed),
    }
    for name in list(found)[1:]:
        assert torch.equal(found[name], torch.from_numpy(case.recorded(name)))
    lr = case.arguments["attack_learning_rate"]
    for name in case.data["outputs"]:
        if not name.startswith("restored"):
            continue
        iterations, radius = re.fullmatch(r"restored.iters(\d+)_linf([\d.]+)", name).groups()
        options = dict(iterations=int(iterations), epsilon=float(radius), lr=lr)
        moved = restored_attack(model, images, patches, target, noise, **options)
        found[name] = cut(moved, patches)
        off = (found[name] - torch.from_numpy(case.recorded(name))).abs()
        assert (off > 1e-5).float().mean() < 0.005
    case.check(found)


def check_projection(case):
    case.check(released_projection(*case.inputs()), rtol=1e-5)


def check_labels(case):
    named = {name: torch.from_numpy(case.recorded(name)) for name in case.data["inputs"]}
    classes = named["train_logits"].shape[1]
    confusion = logit_confusion(named["train_logits"], named["train_labels"], classes)
    found = {
        "logit_matrix": confusion,
        "attack_labels": released_label(confusion, named["batch_labels"]),
        "kept_targets": released_target(named["batch_labels"], classes),
        "confusion_rows": released_rows(named["confusion_counts"]),
    }
    case.check(found, rtol=1e-5)


def test_official(official_case):
    checks = {
        "adapter": check_adapter,
        "aod": check_detector,
        "patch_attack": check_attack,
        "pcgrad": check_projection,
        "confusion": check_labels,
    }
    starts = [start for start in checks if official_case.name.startswith(start)]
    checks.get(next(iter(starts), ""), check_network)(official_case)


@pytest.mark.parametrize(("variant", "wanted"), [("adapter", 8), ("lora", 8), ("vpt", 5)])
def test_front_door_has_the_papers_sizes(variant, wanted):
    case = golden.load(STEM, f"vit_b16_{variant}{wanted}")
    model = models.on_meta(f"hint_aug_{variant}", num_classes=37)
    case.check_params(model)


@pytest.mark.parametrize("switchable", [False, True])
def test_official_names_load(switchable):
    """Also from the option of separate norms, where both branches share one parameter."""

    def official(model):
        state = {}
        for name, tensor in model.state_dict().items():
            name = name.replace("adapter.down", "adapter.ln1").replace("adapter.up", "adapter.ln2")
            name = name.replace("attn.lora.", "attn.LoRA_").replace(".tokens", "")
            name = name.replace("prompts", "visual_prompt_token")
            both = [re.sub(r"(norm\d?)\.", rf"\1.norm.{i}.", name) for i in (0, 1)]
            state |= dict.fromkeys(both if switchable else [name], tensor)
            if "adapter.ln2.bias" in name:
                state[name.replace("ln2.bias", "sampled_bias_1")] = tensor
        return state

    models.assert_checkpoint_loads(tuned, official)


def test_plain_network_is_the_vision_transformer():
    """Same names, same numbers, as `bases/deit.py` and timm's `vit_base_patch16_224` have them."""
    plain = tuned("plain")
    vit = VisionTransformer(**SMALL)
    vit.load_state_dict(plain.state_dict())
    images, _ = batch()
    torch.testing.assert_close(plain(images), vit.eval()(images))


# ---- What is tuned


@every_method
def test_tuned_networks_do_what_a_user_does_next(method):
    images = torch.randn(4, 1, 16, 16)
    net = tuned(method)
    fused = net.fuse()
    with torch.inference_mode():
        assert models.error(fused(images), net(images)) < 1e-5
        assert models.error(fused.fuse()(images), fused(images)) < 1e-6
    models.assert_same_tensors(net, tuned(method))
    if method in ("all", "prompts"):
        for step in models.NEXT_STEPS:
            step(partial(tuned, method), images)


@every_method
def test_only_what_is_tuned_learns(method):
    net = freeze(tuned(method))
    before = {name: p.clone() for name, p in net.named_parameters()}
    images, labels = batch()
    learned = [p for p in net.parameters() if p.requires_grad]
    tuning_step(net.train(), torch.optim.SGD(learned, 0.1), images, labels)
    moved = {n.split(".")[-2] for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    parts = {"adapter": {"down", "up"}, "lora": {"a", "b"}, "prompts": {"prompts"}, "plain": set()}
    parts["all"] = {"down", "up", "a", "b", "prompts"}
    assert moved == parts[method] | {"head"}


@pytest.mark.parametrize("method", ["adapter", "lora"])
def test_tuning_starts_from_the_pretrained_network_and_as_released_beside_it(method):
    """The released start runs over all linear layers again, B and W₂ among them."""
    torch.manual_seed(0)
    pretrained = TunedTransformer(**SMALL)
    net = adopt(TunedTransformer(**SMALL | METHODS[method]), pretrained)
    images, _ = batch()
    wanted = pretrained.eval()(images).detach()
    torch.testing.assert_close(net.eval()(images), wanted)
    for module in net.modules():
        if isinstance(module, (Adapter, LowRank)):
            module.apply(init_weights)
    assert models.error(net(images).detach(), wanted) > 1e-4


def test_the_first_prompts_are_replaced_before_anybody_reads_them():
    net = tuned("prompts")
    images, _ = batch()
    wanted = net(images)
    wanted.square().sum().backward()
    for dead in (net.prompts, net.prompts_pos_embed):
        assert dead.requires_grad and not dead.grad.any()
    with torch.no_grad():
        net.prompts.normal_()
    assert torch.equal(net(images), wanted)
    assert net.blocks[0].prompts.tokens.grad.any()


def test_switchable_norms_change_nothing_but_epsilon():
    """Both branches hold one parameter, so clean and disturbed images are normed alike."""
    net, other = tuned(), tuned(norm_eps=1e-5)
    images, _ = batch()
    wide = torch.arange(32.0).sin() * 1e-2  # where ε can be felt
    assert models.error(other.norm(wide), net.norm(wide)) > 1e-3
    assert models.error(other(images), net(images)) < 1e-3


def test_low_rank_updates_cost_nothing_when_fused():
    net = tuned("lora")
    plain = tuned("plain")
    assert sum(p.numel() for p in net.fuse().parameters()) == sum(
        p.numel() for p in plain.fuse().parameters()
    )
    assert {p.requires_grad for p in freeze(net).fuse().blocks.parameters()} == {False}


def test_adopting_keeps_another_classifier_and_refuses_another_network():
    torch.manual_seed(0)
    pretrained = TunedTransformer(**SMALL)
    net = TunedTransformer(**SMALL | METHODS["all"] | dict(num_classes=7))
    head = net.head.weight.clone()
    adopt(net, pretrained)
    assert torch.equal(net.head.weight, head)
    assert torch.equal(net.blocks[2].mlp.fc1.weight, pretrained.blocks[2].mlp.fc1.weight)


@every_method
def test_attention_of_a_block_is_what_its_probe_shows(method):
    from refimpl.viz import attention

    net = tuned(method)
    images, _ = batch()
    with torch.no_grad(), attention.record(net) as maps:
        net(images)
    for i, entry in enumerate(maps):
        torch.testing.assert_close(net.attention_of(images, i), entry.weights)
        assert entry.to_image().shape == (6, 4, 16, 16)


# ---- The detector


def test_the_papers_query_is_token_90_of_the_patches():
    """s_j of one query: what the centre gives away, over all heads."""
    net = tuned("prompts", img_size=56)  # 14×14 patches
    images = torch.rand(2, 1, 56, 56)
    maps = net.attention_of(images, 1)
    given = maps[:, :, 4 + 90, 4:].sum(1)
    torch.testing.assert_close(attention_scores(net, images, 1), given)
    torch.testing.assert_close(attention_scores(net, images, 1, "class"), maps[:, :, 0, 4:].sum(1))
    mean = attention_scores(net, images, 1, "mean")
    torch.testing.assert_close(mean, maps.sum(1).mean(1)[:, 4:])


def hinted(threshold=0.1, epsilon=0.1, net=None):
    net = net or tuned()
    images, labels = batch()
    scores = attention_scores(tuned("plain"), images, 1), attention_scores(net, images, 1)
    torch.manual_seed(2)
    confusion = torch.rand(4, 4)
    found = hint_augmented(net, images, labels, scores, confusion[labels], epsilon, threshold)
    return found, images, labels, scores, confusion


def test_one_patch_of_each_image_changes_by_at_most_the_radius():
    (disturbed, patch, _), images, *_ = hinted()
    moved = (disturbed - images).abs()
    mask = patch_mask(tuned(), patch[:, None])
    assert not moved[~mask.expand_as(moved)].any() and moved.max() <= 0.1 + 1e-6
    assert (moved.flatten(1).amax(1) > 0).all()
    assert disturbed.min() >= 0 and disturbed.max() <= 1


def test_threshold_decides_between_drift_and_attention():
    for threshold, wanted in ((0.0, True), (math.inf, False)):
        (_, patch, fired), _, _, (before, after), _ = hinted(threshold)
        assert fired.tolist() == [wanted] * 6
        largest = (before - after).abs() if wanted else after
        assert torch.equal(patch, largest.argmax(1))


def test_the_step_goes_towards_the_confusable_classes():
    """Down the cross-entropy to softmax t, and never by the true class's own logits."""
    net = tuned()
    (disturbed, *_), images, labels, _, confusion = hinted(epsilon=0.01, net=net)
    likely = confusion[labels].scatter(1, labels[:, None], 0.0)
    target = (likely / likely.sum(1, keepdim=True)).softmax(1)
    before, after = F.cross_entropy(net(images), target), F.cross_entropy(net(disturbed), target)
    assert after < before
    inside = patch_mask(net, hinted()[0][1][:, None])
    assert torch.equal(pushed(net, images, inside, target, 0.01), disturbed)
    other = confusion.clone().fill_diagonal_(1e6)
    scores = hinted()[3]
    again = hint_augmented(net, images, labels, scores, other[labels], 0.01)[0]
    assert torch.equal(again, disturbed)


def test_images_do_not_disturb_each_other():
    net = tuned()
    (disturbed, *_), images, labels, scores, confusion = hinted(net=net)
    one = tuple(part[2:3] for part in scores)
    alone = hint_augmented(net, images[2:3], labels[2:3], one, confusion[labels[2:3]], 0.1)[0]
    torch.testing.assert_close(alone, disturbed[2:3])


def test_a_second_softmax_flattens_the_confusion():
    """t sums to 1, so that no class of k can outweigh another by more than e."""
    likely = torch.tensor([[0.0, 1.0, 0.0, 0.0]])  # all confusion with one class
    target = likely.softmax(1)
    assert target.max() / target.min() <= math.e + 1e-5
    assert target[0, 0] > 0.17  # the own class, of which t has nothing


# ---- Training


def hint(**options):
    return HintAug(tuned("plain"), 4, **dict(epsilon=0.1, block=1) | options)


def test_two_steps_and_the_true_label_for_the_disturbed_image():
    net = tuned()
    images, labels = batch()
    seen = []

    def augment(model, given, truth):
        seen.append((model, given, truth))
        return given.flip(3)

    steps = []
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    optimizer.register_step_post_hook(lambda *_: steps.append(net.head.bias.detach().clone()))
    first = net(images).detach()
    torch.testing.assert_close(tuning_step(net, optimizer, images, labels, augment), first)
    assert len(steps) == 2 and seen[0][0] is net and torch.equal(seen[0][2], labels)
    other = tuned()
    optimizer = torch.optim.SGD(other.parameters(), 0.01)
    tuning_step(other, optimizer, images, labels)
    tuning_step(other, optimizer, images.flip(3), labels)
    torch.testing.assert_close(other.head.bias, net.head.bias)


def test_confusion_of_one_epoch_serves_the_next():
    aug, net = hint(), tuned()
    images, labels = batch()
    assert aug(net, images, labels) is images
    for part in (slice(0, 2), slice(2, 6)):
        aug.observe(net(images[part]), labels[part])
    aug.end_epoch()
    torch.testing.assert_close(aug.confusion, logit_confusion(net(images), labels, 4).detach())
    scores = attention_scores(aug.pretrained, images, 1), attention_scores(net, images, 1)
    wanted = hint_augmented(net, images, labels, scores, aug.confusion[labels], 0.1)[0]
    torch.testing.assert_close(aug(net, images, labels), wanted)
    assert not aug.collected.any()


def test_normalised_images_move_by_the_radius_in_pixels():
    mean, std = (0.4,), (0.25,)
    images, labels = batch()
    images = (images - 0.4) / 0.25
    aug, net = hint(mean=mean, std=std, epsilon=0.05), tuned()
    aug.observe(net(images), labels)
    aug.end_epoch()
    moved = aug(net, images, labels) * 0.25 + 0.4
    assert 0.049 < (moved - images * 0.25 - 0.4).abs().max() < 0.051
    assert moved.min() > -1e-6 and moved.max() < 1 + 1e-6


def test_training_with_hints_fits_the_shots():
    torch.manual_seed(0)
    pretrained = TunedTransformer(**SMALL)
    for layer in pretrained.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()  # a start that hears the image
    net = freeze(adopt(TunedTransformer(**SMALL | METHODS["adapter"], dropout=0.0), pretrained))
    aug = HintAug(pretrained, 4, epsilon=0.1, block=1)
    images, labels = batch(4)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-2)
    for _ in range(60):
        aug.observe(tuning_step(net, optimizer, images, labels, aug), labels)
        aug.end_epoch()
    assert (net(images).argmax(1) == labels).all()


def test_shots_are_drawn_class_by_class_and_seeded():
    labels = torch.randint(5, (200,), generator=torch.Generator().manual_seed(0))
    drawn = draw_shots(labels, 4, 5, seed=3)
    assert torch.equal(labels[drawn], torch.arange(5).repeat_interleave(4))
    assert len(drawn.unique()) == 20 and torch.equal(drawn, draw_shots(labels, 4, 5, seed=3))
    assert not torch.equal(drawn, draw_shots(labels, 4, 5, seed=4))


# ---- As released


def normalised(n=4):
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in IMAGENET)
    return (torch.rand(n, 3, 16, 16) - mean) / std


def test_the_released_attack_knows_neither_network_nor_label():
    """Cross-entropy against a target of zeros is zero, and so is its gradient."""
    images, noise = normalised(), torch.rand(4, 3, 16, 16)
    patches = torch.tensor([[0, 3], [5, 6], [1, 2], [9, 15]])
    leaf = images.clone().requires_grad_()
    logits = tuned(in_chans=3)(leaf)
    loss = -(torch.zeros_like(logits) * logits.log_softmax(1)).sum()
    (slope,) = torch.autograd.grad(loss, leaf)
    assert loss == 0 and not slope.any()
    radius = in_units(0.001, *IMAGENET)[0]
    low, high = in_units(0.001, *IMAGENET)[1]
    plain = (images + (2 * radius * noise - radius)).clamp(low, high)
    found = [
        released_attack(tuned(method, in_chans=3), images, patches, noise)
        for method in ("all", "plain")
    ]
    mask = patch_mask(tuned("plain"), patches).expand_as(images)
    for moved in found:
        assert torch.equal(moved[mask], plain[mask]) and torch.equal(moved[~mask], images[~mask])


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_restored_attack_moves_away_from_its_target(iterations):
    net = tuned(in_chans=3)
    images, noise = normalised(), torch.full((4, 3, 16, 16), 0.5)
    patches = torch.tensor([[0, 3], [5, 6], [1, 2], [9, 15]])
    target = torch.rand(4, 4).softmax(1)
    moved = restored_attack(net, images, patches, target, noise, iterations, epsilon=0.05)
    before, after = (F.cross_entropy(net(x), target) for x in (images, moved))
    assert after > before
    radius = in_units(0.05, *IMAGENET)[0]
    assert ((moved - images).abs() <= radius + 1e-5).all()


def test_the_released_detector_can_never_fire():
    """Not even for maps that agree nowhere: every score lies between 0 and 1/√n."""
    n = 17
    for seed in range(5):
        torch.manual_seed(seed)
        maps = [(10 * torch.randn(2, 3, n, n)).softmax(-1) for _ in range(2)]
        scores = [released_scores(m) for m in maps]
        assert all(s.min() >= 0 and s.max() <= n**-0.5 + 1e-6 for s in scores)
        attended = maps[1].mean((1, 2))[:, 1:].topk(2).indices
        assert torch.equal(released_patches(*maps), attended)
    assert 197**-0.5 < 0.0713 < 0.7
    uniform = torch.full((1, 1, 197, 197), 1 / 197)
    assert float(released_scores(uniform).max()) == pytest.approx(197**-0.5)


def test_the_released_difference_is_signed():
    """Asked the other way round, the paper's detector points at the same patch, this one not."""
    before, after = ((4 * torch.randn(1, 2, 17, 17)).softmax(-1) for _ in range(2))
    drift = (released_scores(before) - released_scores(after))[0]
    here = released_patches(before, after, threshold=0.0)[0]
    there = released_patches(after, before, threshold=0.0)[0]
    assert torch.equal(here, drift.topk(2).indices) and torch.equal(there, (-drift).topk(2).indices)
    assert set(here.tolist()).isdisjoint(there.tolist())


def test_the_released_score_forgets_how_much_a_patch_is_looked_at():
    """A column scaled to length 1 is the same, whatever it was multiplied with before."""
    maps = torch.rand(1, 1, 6, 6)
    louder = maps.clone()
    louder[..., 3] *= 10
    torch.testing.assert_close(released_scores(louder), released_scores(maps))


def test_the_released_label_is_mostly_the_own_class():
    """Sums of logits are tens: their softmax is nearly one class, as a rule the image's own."""
    torch.manual_seed(0)
    labels = torch.arange(40) % 5
    logits = torch.randn(40, 5) + 3 * F.one_hot(labels, 5)
    confusion = logit_confusion(logits, labels, 5)
    label = released_label(confusion, torch.arange(5))
    assert torch.equal(label.argmax(1), torch.arange(5)) and label.max(1).values.min() > 0.99


def test_the_released_target_is_no_distribution():
    target = released_target(torch.tensor([1, 2]), 37)
    torch.testing.assert_close(target.sum(1), torch.full((2,), 1 + 3.6))


def test_the_released_projection_leaves_some_conflict():
    g, h = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 2.0]])
    assert float((released_projection(g, h) * h).sum()) == 2.0  # −2 before, and 0 if by ‖h‖²
    agreeing = torch.tensor([[1.0, 1.0]])
    assert torch.equal(released_projection(agreeing, h), agreeing)
    unit = h / 2
    torch.testing.assert_close((released_projection(g, unit) * unit).sum(), torch.tensor(0.0))


# ---- Bad input


def call_hint(**options):
    images, labels = batch()
    return hint(**options)(tuned(), images, labels)


def observed(labels):
    aug = hint()
    aug.observe(torch.rand(len(labels), 4), torch.tensor(labels))
    aug.end_epoch()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: draw_shots(torch.tensor([0, 0, 1]), 2, 2),
            "shots=2 must be at most 1, which is all that class 1",
        ),
        (
            lambda: draw_shots(torch.tensor([0, 0]), 1, 2),
            "shots=1 must be at most 0, which is all that class 1",
        ),
        (lambda: draw_shots(torch.tensor([0, 1]), 0, 2), "shots=0 must be an integer of at least"),
        (lambda: draw_shots(torch.tensor([0, 2]), 1, 2), "labels from 0 to 2 must be from 0 to 1"),
        (lambda: draw_shots(torch.tensor([0.0]), 1, 1), "labels must be integers, got torch.float"),
        (lambda: draw_shots(torch.zeros(2, 2).long(), 1, 1), "labels must be (samples,)"),
        (lambda: observed([0, 1, 3]), "no samples of class 2 were observed"),
        (lambda: observed([0, 1, 4]), "labels from 0 to 4 must be from 0 to 3"),
        (lambda: logit_confusion(torch.rand(2, 3), torch.tensor([0, 1]), 4), "logits must be"),
        (lambda: call_hint(epsilon=0), "epsilon=0 must be above 0"),
        (lambda: call_hint(threshold=-0.1), "threshold=-0.1 must be at least 0"),
        (lambda: call_hint(query="center"), "query='center' is not known; did you mean 'centre'?"),
        (lambda: call_hint(std=(0.2, 0.0)), "std[1]=0.0 must be above 0"),
        (lambda: HintAug(tuned("plain"), 1), "num_classes=1 must be an integer of at least 2"),
        (lambda: tuned().attention_of(batch()[0], 3), "block=3 must be at most 2, the last one"),
        (lambda: tuned().attention_of(batch()[0], -1), "block=-1 must be an integer of at least 0"),
        (
            lambda: patch_mask(tuned(), torch.tensor([[16]])),
            "patches must be from 0 to 15, got [[16]]",
        ),
        (lambda: TunedTransformer(adapter_dim=-1), "adapter_dim=-1 must be an integer of at least"),
        (lambda: TunedTransformer(lora_rank=2.5), "lora_rank=2.5 must be an integer of at least 0"),
        (lambda: TunedTransformer(num_prompts=-2), "num_prompts=-2 must be an integer"),
        (lambda: TunedTransformer(dropout=1.0), "dropout=1.0 must be at least 0 and less than 1"),
        (
            lambda: adopt(tuned(), TunedTransformer(**SMALL | dict(img_size=20))),
            "pretrained has pos_embed of shape (1, 26, 32), the model has (1, 17, 32)",
        ),
        (
            lambda: adopt(tuned(), TunedTransformer(**SMALL | dict(depth=2))),
            "pretrained has no blocks.2.",
        ),
        (
            lambda: adopt(tuned("plain"), tuned("adapter")),
            "pretrained has blocks.0.adapter.down.weight of shape (8, 32), the model has none",
        ),
        (lambda: refimpl.create_model("hint_aug_adaptor"), "hint_aug_adapter"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
