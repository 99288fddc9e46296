"""LGViT: equal to the reference outputs; exits, heads, rules on batches, both stages, true cost."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import refimpl
from refimpl.bases.early_exit import Confidence, Entropy, Patience
from refimpl.lab import measure
from refimpl.papers import lgvit
from refimpl.papers.lgvit import (
    ExitSwin,
    GlobalHead,
    LocalHead,
    create,
    freeze_backbone,
    head_body,
    heterogeneous_loss,
    homogeneous_loss,
    leave_early,
    stage_one_loss,
    stage_two_loss,
)
from shared import models

STEM = "lgvit"
OURS = {
    "num_labels": "num_classes",
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "image_size": "img_size",
    "layer_norm_eps": "norm_eps",
    "position_exits": "exits",
}
SMALL = dict(img_size=32, patch_size=8, num_classes=5, embed_dim=16, depth=4, num_heads=2)
SMALL_SWIN = dict(img_size=32, num_classes=5, embed_dim=8, depths=(1, 2, 2), num_heads=(1, 2, 2))
SMALL_SWIN |= dict(window_size=2)


def build(backbone="Swin", highway_type="LGViT", intermediate_size=3072, **kwargs):
    """A model from the official constructor's arguments."""
    ours = {OURS.get(key, key): value for key, value in kwargs.items()}
    if backbone == "Swin":
        return ExitSwin(**ours)
    ratio = intermediate_size / ours.get("embed_dim", 768)
    return create(backbone.lower(), mlp_ratio=ratio, heads=highway_type.lower(), **ours)


def logits_by_name(model, images):
    *exits, final = model.forward_exits(images).items()
    return {f"output.exit{layer}": logits for layer, logits in exits} | {"output.final": final[1]}


def stage_losses(case):
    """Every loss on the filled model, norms in training mode."""
    kwargs = {k: v for k, v in case.arguments.items() if k in OURS or k == "intermediate_size"}
    spec = refimpl.golden.load("lgvit", "deit_cut_lgvit").data["state"]
    model = build("DeiT", **kwargs)
    case.fill(model, spec=spec)
    images = torch.from_numpy(refimpl.golden.values("input", (4, 3, 112, 112), case.salt))
    images = images * (3 * 112 * 112) ** 0.5  # the rule scales what has two or more dimensions
    labels = torch.tensor([0, 3, 7, 3])
    model.train()
    logits = model.forward_exits(images)
    losses = torch.stack([nn.functional.cross_entropy(x, labels) for x in logits.values()])
    return {
        "normal": losses.mean(),
        "weighted": stage_one_loss(logits, labels, step=1),
        "alternating_weighted": stage_one_loss(logits, labels, step=0),
        "alternating_weighted_second_step": stage_one_loss(logits, labels, step=1),
        "stage2": stage_two_loss(model, images, labels, normed_teacher=False),
    }


def layers_left(probabilities, positions, rule):
    """After which layer each sample leaves: probabilities (b, exits and the last, k)."""
    logits = probabilities.log().transpose(0, 1)
    blocks = [nn.Identity()] * positions[-1]
    exits = {layer: lambda images, x=logits[i]: x[images] for i, layer in enumerate(positions[:-1])}
    _, layers = leave_early(
        torch.arange(logits.shape[1]), blocks, exits, lambda images: logits[-1][images], rule
    )
    return layers


def rule_named(name):
    strategy, _, value = name.rpartition("_")
    value = float(value)
    if strategy == "patience":
        return Patience(int(value))
    kinds = {"confidence": Confidence, "entropy": Entropy}
    return Entropy(value, times=2) if strategy not in kinds else kinds[strategy](value)


def test_official(official_case):
    name, inputs = official_case.name, official_case.inputs()
    if name == "stage_losses":
        official_case.check({k: v.detach() for k, v in stage_losses(official_case).items()}, 1e-3)
    elif name == "exit_layers":
        positions = official_case.arguments["positions"]
        names = official_case.data["outputs"]
        found = {key: layers_left(*inputs, positions, rule_named(key)) for key in names}
        assert official_case.check(found) == 0
    elif name == "exit_scores":
        p = inputs[0].softmax(-1)
        entropy = entropy_of(p)
        official_case.check(
            {"entropy": entropy, "confidence": p.amax(-1), "prediction": p.argmax(-1)}
        )
    elif name == "feature_losses":
        student, teacher, fewer = inputs
        divergence = heterogeneous_loss(student, teacher)
        official_case.check(
            {
                "homo_mse_none": homogeneous_loss(student, teacher, gram=False),
                "homo_mse_inner": homogeneous_loss(fewer, teacher, gram=True),
                "homo_kldiv_none": divergence,
                "hete": divergence,
            }
        )
    elif name == "soft_distillation":
        student, teacher = inputs[:2]
        labels = torch.zeros(len(student), dtype=torch.int64)
        taught = lgvit.distillation_loss((student, student), labels, teacher, "soft", 1.0, 2.0)
        official_case.check(taught)
    elif name == "downsampling":
        side = int(inputs[0].shape[1] ** 0.5)
        x = inputs[0].unflatten(1, (side, side))
        names = official_case.data["outputs"]
        official_case.check({k: x[:, :: int(k[1:]), :: int(k[1:])].flatten(1, 2) for k in names})
    elif name.startswith("head_"):
        check_head(official_case)
    else:
        model = build(**official_case.kwargs)
        official_case.fill(model)
        official_case.check_params(model)
        with torch.inference_mode():
            official_case.check(logits_by_name(model.eval(), *inputs))


def check_head(case):
    kwargs = case.kwargs
    grid = kwargs["H"], kwargs["W"]
    kind = case.name.removeprefix("head_")
    model = head_body(kind, kwargs["dim"], grid)
    case.fill(model, rules=[])
    case.check_params(model)
    with torch.inference_mode():
        case.check(model.eval()(case.inputs()[0].unflatten(1, grid)))


@pytest.mark.parametrize(
    ("name", "classes", "params"),
    [
        ("lgvit_vit_base", 100, 101_277_060),
        ("lgvit_deit_base", 100, 101_970_696),
        ("lgvit_swin_base", 100, 96_356_924),
        ("lgvit_vit_base", 1000, 107_505_960),
        ("lgvit_deit_base", 1000, 114_428_496),
        ("lgvit_swin_base", 1000, 101_203_424),
    ],
)
def test_parameter_counts(name, classes, params):
    model = models.on_meta(name, num_classes=classes)
    assert measure.parameters(model) == params


@pytest.mark.parametrize(
    ("exits", "kinds"),
    [
        ((4, 5, 6, 7, 8, 9, 10, 11), "L L l l 2 2 3 3"),
        ((4, 5, 6, 7, 9, 11), "L l 2 2 3 3"),
        ((3, 6, 9, 11), "L l 2 3"),
        ((5, 9), "L 2"),
        (None, "L L l l 2 2 3 3"),
    ],
)
def test_which_head_stands_where(exits, kinds):
    """Of ViT and DeiT: with (L) and without (l) neighbours, then attention of stride 2 and 3."""
    model = models.on_meta("lgvit_vit_base", exits=exits)
    assert " ".join(map(kind, model.exits)) == kinds
    assert model.places == (exits or tuple(range(4, 12)))


def kind(way):
    if isinstance(way.body, LocalHead):
        return "L" if way.body.proj is not None else "l"
    return str(way.body.stride)


def test_exits_of_swin():
    model = models.on_meta("lgvit_swin_base")
    assert model.places == (4, 7, 10, 13, 16, 19, 22, 23)
    assert [len(stage.exits) for stage in model.layers] == [0, 1, 6, 1]
    assert " ".join(map(kind, model.exits_at().values())) == "L L l l 1 1 2 2"


# ---------------------------------------------------------------- who leaves, and when


def small(backbone, **options):
    torch.manual_seed(0)
    if backbone == "swin":
        return models.lively(ExitSwin(**SMALL_SWIN | options))
    return models.lively(create(backbone, **SMALL | options))


backbones = pytest.mark.parametrize("backbone", ["vit", "deit", "swin"])


def outspoken(backbone, images):
    """A model whose exits say various things of these images: small differences, enlarged."""
    model = small(backbone, exits=(1, 2, 3)).double()
    with torch.no_grad():
        before = model.forward_exits(images)
        for layer, way in model.exits_at().items():
            scale = 2 / before[layer].std(0).mean()
            for classifier in filter(None, (way.head, way.head_dist)):
                classifier.weight.mul_(scale)
                classifier.bias.sub_(before[layer].mean(0)).mul_(scale)
    return model


def middle(rule, score):
    """The rule, at the middle of this score, between two images."""
    return rule(threshold=score.quantile(0.44).item())


def entropy_of(p):
    return torch.distributions.Categorical(p).entropy()


RULES = {
    "confidence": lambda p: middle(Confidence, p.amax(-1)),
    "entropy": lambda p: middle(Entropy, entropy_of(p)),
    "entropy twice": lambda p: Entropy(middle(Entropy, entropy_of(p)).threshold * 1.2, times=2),
    "patience": lambda p: Patience(2),
}


@backbones
@pytest.mark.parametrize("rule", RULES)
def test_in_a_batch_each_image_leaves_as_it_would_alone(backbone, rule):
    """lgvit.d4: the official test takes the maximum over the batch."""
    images = (torch.randn(9, 3, 32, 32) + 3 * torch.randn(9, 3, 1, 1)).double()
    model = outspoken(backbone, images)
    with torch.no_grad():
        every = model.forward_exits(images)
    model.rule = RULES[rule](every[2].softmax(-1))
    logits, layers = model.early_exit(images)
    assert layers.unique().numel() > 1, "the test has images that leave and images that stay"
    for i in range(len(images)):
        alone, layer = model.early_exit(images[i : i + 1])
        assert layer == layers[i]
        torch.testing.assert_close(alone[0], logits[i], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-5)
    picked = torch.stack([every[int(layer)][i] for i, layer in enumerate(layers)])
    torch.testing.assert_close(picked, logits, rtol=1e-4, atol=1e-5)


def test_one_sure_image_keeps_nobody_from_staying():
    """lgvit.d4, by hand: of two images one is sure at the first exit, the other never."""
    sure, unsure = torch.tensor([9.0, 0.0]), torch.tensor([0.1, 0.0])
    tokens = torch.stack([unsure, sure])
    calls = []

    def block(x):
        calls.append(len(x))
        return x

    logits, layers = leave_early(
        tokens, [block] * 3, {1: nn.Identity()}, lambda x: -x, Confidence(0.8)
    )
    assert layers.tolist() == [3, 1] and calls == [2, 1, 1]
    assert torch.equal(logits, torch.stack([-unsure, sure]))


def test_when_all_have_left_nothing_more_is_computed():
    def never(x):
        raise AssertionError("nobody is left to compute for")

    tokens = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    logits, layers = leave_early(
        tokens, [nn.Identity(), never], {1: nn.Identity()}, never, Confidence(0.5)
    )
    assert torch.equal(logits, tokens) and layers.tolist() == [1, 1]


@backbones
def test_nobody_leaves_at_threshold_one_and_all_at_zero(backbone):
    model = small(backbone)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        every = model.forward_exits(images)
    for threshold, layer in ((0.0, model.places[0]), (1.0, len(model.steps()))):
        model.rule = Confidence(threshold)
        logits, layers = model.early_exit(images)
        assert (layers == layer).all()
        torch.testing.assert_close(logits, every[layer])
    none, no_layers = model.early_exit(images[:0])
    assert none.shape == (0, 5) and no_layers.shape == (0,)


def test_exits_read_blocks_without_the_last_norm():
    model = small("vit")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model.forward_exits(images)
        model.norm.weight.mul_(2)
        found = model.forward_exits(images)
    *inner, last = wanted
    assert all(torch.equal(wanted[layer], found[layer]) for layer in inner)
    assert not torch.allclose(wanted[last], found[last])


# ---------------------------------------------------------------- heads


def test_a_local_head_reaches_eight_neighbours_and_a_light_one_none():
    for depthwise, reach in ((True, 1), (False, 0)):
        head = models.lively(LocalHead(4, (5, 6), depthwise)).requires_grad_(False)
        x = torch.randn(1, 5, 6, 4, requires_grad=True)
        head(x)[0, 2 * 6 + 3].square().sum().backward()
        reached = x.grad[0].abs().sum(-1) > 0
        wanted = torch.zeros(5, 6, dtype=torch.bool)
        wanted[2 - reach : 3 + reach, 3 - reach : 4 + reach] = True
        assert torch.equal(reached, wanted)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_global_head_drops_tokens_and_averages_none(stride):
    """lgvit.d1: pooling with a kernel of one; most tokens of a strided head change nothing."""
    head = GlobalHead(8, (7, 7), stride)
    x = torch.randn(1, 7, 7, 8, requires_grad=True)
    y = head(x)
    side = -(-7 // stride)
    assert y.shape == (1, side * side, 8)
    y.square().sum().backward()
    reached = x.grad[0].abs().sum(-1) > 0
    assert reached.sum() == side * side and reached[::stride, ::stride].all()


# ---------------------------------------------------------------- training


def test_the_second_stage_leaves_backbone_and_classifier_bit_for_bit():
    model = small("deit")
    parameters = freeze_backbone(model)
    exits = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith("exits.") for name in exits) and len(exits) == len(parameters)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 5
    with torch.no_grad():
        wanted = model.forward_exits(images)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        stage_two_loss(model.train(), images, labels).backward()
        assert [n for n, p in model.named_parameters() if n in exits and p.grad is None] == []
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        found = model.eval().forward_exits(images)
    *inner, last = wanted
    assert torch.equal(found[last], wanted[last])
    assert not any(torch.equal(found[layer], wanted[layer]) for layer in inner)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("exits.") for name in moved)


def test_the_official_teacher_is_not_the_deployed_classifier():
    """lgvit.d2: without the last norm the teacher's logits are others."""
    model = small("deit")
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    with torch.no_grad():
        *_, last = model.forward_features(images)
        deployed = list(model.forward_exits(images).values())[-1]
        assert torch.equal(model.final(last), deployed)
        assert models.error(model.final(last, normed=False), deployed) > 0.1
        ours = stage_two_loss(model, images, labels)
        theirs = stage_two_loss(model, images, labels, normed_teacher=False)
    assert ours != theirs


def test_the_second_stage_works_for_one_special_token():
    """lgvit.d3: two leading tokens are dropped in the official code, also where there is one: the
    remaining tokens are no square, and their number is not that of the heads' tokens."""
    model = small("vit")
    freeze_backbone(model)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    assert stage_two_loss(model.train(), images, labels).isfinite()
    with torch.no_grad():
        *inner, last = model.forward_features(images)
        features = model.exits[0].features(inner[0])
    assert last[:, 1:].shape == features.shape
    assert last[:, 2:].shape != features.shape


def test_stage_two_of_swin_has_no_feature_losses():
    """lgvit.d3: stages have different widths; the official class has no such loss."""
    model = small("swin")
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    freeze_backbone(model)
    loss = stage_two_loss(model.train(), images, labels, beta=0)
    loss.backward()
    assert loss.isfinite()
    models.assert_refused(lambda: stage_two_loss(model, images, labels), "beta=0.01 must be 0")


def test_first_stage_weighs_exits_by_their_layer():
    logits = {layer: torch.randn(3, 5) for layer in (1, 2, 4)}
    labels = torch.tensor([0, 1, 2])
    each = {layer: nn.functional.cross_entropy(x, labels) for layer, x in logits.items()}
    assert stage_one_loss(logits, labels, 0) == each[4] == stage_one_loss(logits, labels, 2)
    wanted = (each[1] + 2 * each[2] + 4 * each[4]) / 7
    torch.testing.assert_close(stage_one_loss(logits, labels, 3), wanted)


# ---------------------------------------------------------------- cost


def test_heads_cost_seven_per_cent_that_counting_layers_leaves_out():
    """lgvit.d5: leaving ViT-B at layer 6 is worth 1.85, not 12/6, of the multiply-adds."""
    with torch.device("meta"):
        model = refimpl.create_model("lgvit_vit_base", num_classes=100).eval()
        tokens = torch.empty(1, 197, 768)
        block = measure.macs(model.blocks[0], tokens)
        heads = {layer: measure.macs(way, tokens) for layer, way in model.exits_at().items()}
        stem = measure.macs(model.patch_embed, torch.empty(1, 3, 224, 224))
    assert block / 1e9 == pytest.approx(1.454, abs=0.03)
    assert heads[4] / 1e9 == pytest.approx(0.233, abs=0.002)
    assert sum(heads.values()) / (12 * block) == pytest.approx(0.074, abs=0.003)
    passed = sum(cost for layer, cost in heads.items() if layer <= 6)
    assert (stem + 12 * block) / (stem + 6 * block + passed) == pytest.approx(1.85, abs=0.03)


# ---------------------------------------------------------------- what holds for every model


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_what_a_user_does_next(step):
    """With a ViT; the smallest model at the front door, which all shared tests take, is a Swin."""
    step(lambda: small("deit"), torch.randn(4, 3, 32, 32))


@backbones
def test_fused_model_is_equal_at_every_exit(backbone):
    model = small(backbone)
    images = torch.randn(3, 3, 32, 32)
    fused = models.assert_fused_is_equal(model, images)
    with torch.no_grad():
        wanted, found = model.forward_exits(images), fused.forward_exits(images)
    for layer, logits in wanted.items():
        assert models.error(found[layer], logits) < 1e-5, layer
    model.rule = fused.rule = Confidence(0.28)
    logits, layers = model.early_exit(images)
    fused_logits, fused_layers = fused.early_exit(images)
    assert torch.equal(layers, fused_layers) and models.error(fused_logits, logits) < 1e-5


@pytest.mark.parametrize("heads", ["conv_normal", "self_attention", "linear", "vit"])
@pytest.mark.parametrize("backbone", ["vit", "deit"])
def test_baseline_heads(heads, backbone):
    model = small(backbone, heads=heads)
    images = torch.randn(3, 3, 32, 32)
    *exits, final = model.train()(images)
    assert len(exits) == len(model.places) and final.shape == (3, 5)
    torch.cat([*exits, final]).square().sum().backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    with torch.no_grad():
        assert models.error(model.eval().fuse()(images), model(images)) < 1e-5


def test_a_distilled_model_gives_both_classifiers():
    model = small("deit")
    model.rule = Confidence(1.0)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        first, second = model.forward_classifiers(images)
        torch.testing.assert_close((first + second) / 2, model(images))
    models.assert_refused(lambda: small("vit").forward_classifiers(images), "distilled=True")


@backbones
def test_official_checkpoints_load(backbone):
    def official(model):
        names = HUGGING_FACE_NAMES[backbone == "swin"]
        state = {}
        for name, tensor in model.state_dict().items():
            for ours, theirs in names:
                name = re.sub(ours, theirs, name)
            state[name] = tensor
        return state

    models.assert_checkpoint_loads(lambda: small(backbone), official)


BLOCK_NAMES = [
    (r"^(blocks\.\d+)\.attn\.qkv\.", r"encoder.layer.\1.attention.attention."),
    (r"\.blocks\.(\d+)\.attn\.(qkv\.|(?=rel))", r".blocks.\1.attention.self."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"(blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"exits\.(\d+)\.body\.", r"highway.\1.mlp."),
    (r"^cls_token$", "deit.embeddings.cls_token"),
    (r"^dist_token$", "deit.embeddings.distillation_token"),
    (r"^pos_embed$", "deit.embeddings.position_embeddings"),
]
HUGGING_FACE_NAMES = {
    False: [
        *BLOCK_NAMES,
        (r"^(encoder\.layer\.)?blocks\.", "deit.encoder.layer."),
        (r"^patch_embed\.proj\.", "deit.embeddings.patch_embeddings.projection."),
        (r"^norm\.", "deit.layernorm."),
        (r"^pooler\.", "deit.pooler.dense."),
        (r"^highway\.", "deit.encoder.highway."),
        (r"^exits\.(\d+)\.", r"deit.encoder.highway.\1."),
        (r"(^|\.)head_dist\.", r"\1distillation_classifier."),
        (r"(^|\.)head\.", r"\1classifier."),
    ],
    True: [
        *BLOCK_NAMES,
        (r"^layers\.", "swin.encoder.layers."),
        (r"^patch_embed\.proj\.", "swin.embeddings.patch_embeddings.projection."),
        (r"^patch_embed\.norm\.", "swin.embeddings.norm."),
        (r"^norm\.", "swin.layernorm."),
        (r"exits\.(\d+)\.norm\.", r"highway.\1.classifier.layernorm."),
        (r"exits\.(\d+)\.head\.", r"highway.\1.classifier.classifier."),
        (r"^head\.", "classifier."),
    ],
}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small("vit", exits=(2, 1)), "exits=(2, 1) must be layers in rising order"),
        (lambda: small("vit", exits=(1, 4)), "from 1 to 3"),
        (lambda: small("vit", exits=()), "at least one"),
        (lambda: small("vit", exits=(0, 1)), "exits[0]=0 must be an integer of at least 1"),
        (lambda: small("vit", exits=(1.5,)), "exits[0]=1.5 must be an integer"),
        (lambda: small("swin", exits=(5,)), "from 1 to 4"),
        (lambda: small("vit", heads="lgvti"), "heads='lgvti' is not known; did you mean 'lgvit'"),
        (lambda: small("vit", depth=1), "from 1 to 0"),
        (lambda: small("vit", embed_dim=20), "num_heads=8 must be at least 1 and divide dim=20"),
        (lambda: small("vit", threshold=1.1), "threshold=1.1 must be at most 1"),
        (lambda: small("vit", threshold=-0.1), "threshold=-0.1 must be at least 0"),
        (lambda: small("vit").train().early_exit(torch.randn(1, 3, 32, 32)), "call eval()"),
        (lambda: create("resnet"), "backbone='resnet' is not known"),
        (lambda: head_body("conv3_1", 8, (4, 4)), "kind='conv3_1' is not known"),
        (lambda: Entropy(0.0), "threshold=0.0 must be above 0"),
        (lambda: Entropy(0.5, times=0), "times=0 must be an integer of at least 1"),
        (lambda: Patience(1.5), "times=1.5 must be an integer"),
        (lambda: stage_one_loss({1: torch.randn(2, 3)}, torch.zeros(2).long(), -1), "step=-1"),
    ],
)
def test_bad_input(call, message):
    models.assert_refused(call, message)
