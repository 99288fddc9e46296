"""MPCViT: equal to the official code, its search and losses, its fused form, its refusals."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import refimpl
from refimpl import lab, weights
from refimpl.bases import secret_sharing as ss
from refimpl.lab import measure
from refimpl.papers.mpcvit import (
    ATTENTIONS,
    UNUSED,
    VARIANTS,
    MPCViT,
    alphas,
    assign,
    betas,
    binarise,
    block_weights,
    distillation_loss,
    heterogeneous_attention,
    merge,
    network_cost,
    relu_softmax,
    scaling,
    search_loss,
    soft_cross_entropy,
)
from refimpl.viz.attention import record
from shared import models

STEM = "mpcvit"
SMALL = dict(img_size=16, num_classes=5, embed_dim=24, depth=2, num_heads=3)


def build(seed=0, **options):
    torch.manual_seed(seed)
    return models.lively(MPCViT(**SMALL | options))


def alternating(depth: int, heads: int) -> torch.Tensor:
    """1 where layer · heads + head is even."""
    return (torch.arange(depth * heads) % 2 == 0).float().view(depth, heads)


FLAGS = {
    "mixed": alternating,
    "relu": lambda depth, heads: torch.ones(depth, heads),
    "scale": lambda depth, heads: torch.zeros(depth, heads),
}


def variant_of(case) -> dict:
    """Our variant of the constructor's name that begins the case's name."""
    name = case.name.removeprefix("vit_")
    return VARIANTS[max((v for v in VARIANTS if name.startswith(v)), key=len)]


def built(case) -> MPCViT:
    given = dict(case.kwargs)
    kind = given.pop("alpha")
    options = variant_of(case) | given | dict(heterogeneous=kind != "teacher")
    model = MPCViT(**options).eval()
    if kind in FLAGS:
        assign(model, FLAGS[kind](options["depth"], options["num_heads"]))
    if options.get("linear_gelu"):
        with torch.no_grad():
            for block in model.blocks:
                block.mlp.beta[:, 1::2] = 0
    return model


def official_name(name: str) -> str:
    """The authors' name of one of our tensors: the name map the other way round."""
    name = name.replace("patch_embed.proj", "tokenizer.conv_layers.0.0")
    name = re.sub(r"\.attn\.", ".self_attn.", name)
    name = re.sub(r"\.mlp\.fc", ".linear", name).replace(".mlp.beta", ".beta")
    name = re.sub(r"^head\.", "fc.", name)
    name = {"cls_token": "class_emb", "pos_embed": "positional_emb"}.get(name, name)
    return name if name.startswith("tokenizer") else f"classifier.{name}"


def official_spec(model) -> dict[str, list[int]]:
    return {official_name(name): list(tensor.shape) for name, tensor in model.state_dict().items()}


def check_function(case):
    if case.name.startswith("attention_weights"):
        scores = case.inputs()[0]
        found = {name: make(scores) for name, make in ATTENTIONS.items()}
        mixture = torch.from_numpy(case.recorded("alpha"))
        found["mixture"] = mixture * found["relu_softmax"] + (1 - mixture) * found["scaling"]
        case.check(found, rtol=1e-6)
    elif case.name.startswith("binarise"):
        alpha = case.inputs()[0]
        ratios = case.arguments["ratios"]
        case.check({f"flags_{ratio}": binarise(alpha, ratio) for ratio in ratios}, rtol=0)
    else:
        check_losses(case)


def check_losses(case):
    names = ("student", "student_tokens", "teacher", "teacher_tokens")
    logits, tokens, teacher, teacher_tokens = (
        torch.from_numpy(case.recorded(name)) for name in names
    )
    labels = torch.from_numpy(case.recorded("target"))
    pair = logits, tokens, teacher, teacher_tokens
    case.check(
        {
            "soft": soft_cross_entropy(logits, teacher, case.arguments["temperature"]),
            "token_kd": distillation_loss(*pair, token_weight=case.arguments["kd_alpha"]),
            "total": distillation_loss(*pair, labels, case.arguments["kd_alpha"]),
        },
        rtol=1e-6,
    )


def test_official(official_case):
    case = official_case
    if "kwargs" not in case.data:
        check_function(case)
        return
    model = built(case)
    spec = case.data.get("state") or official_spec(model)
    case.fill(model, spec=spec)
    unused = [torch.Size(shape) for name, shape in spec.items() if re.search(UNUSED, name)]
    extra = sum(shape.numel() for shape in unused)
    assert measure.parameters(model) + extra == case.data["params"]
    assert spec.keys() - {n for n in spec if re.search(UNUSED, n)} == official_spec(model).keys()
    images = case.inputs()[0]
    with torch.inference_mode():
        tokens = model.forward_features(images)
        outputs = {"output.0": model.forward_head(tokens), "output.1.0": tokens}
        case.check(outputs, rtol=1e-5)
        assert models.error(model.fuse()(images), outputs["output.0"]) < 1e-5
    # The official teacher makes one more n × n product in each layer, which nothing depends on.
    spare = len(images) * len(model.blocks) * tokens.shape[1] ** 2 * tokens.shape[2]
    assert measure.macs(model, images) + (spare if unused else 0) == case.data["macs"]


# ---------------------------------------------------------------- properties of the idea


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_of_the_table(variant):
    published = {
        **{"2_4_32": 214_670, "4_4_32": 413_074, "7_4_32": 3_716_902, "9_12_64": 2_766_068},
        **{"7_4_32_wider": 8_327_846, "12_12_224": 5_710_648},
        **{"7_4_32_teacher": 3_716_874, "9_12_64_teacher": 2_765_960, "7_4_32_plus": 3_717_357},
    }
    with torch.device("meta"):
        model = refimpl.create_model(f"mpcvit_{variant}")
    if variant in published:
        assert measure.parameters(model) == published[variant]
    assert ("teacher" in variant) == (not any("alpha" in n for n, _ in model.named_parameters()))


def test_heads_with_binary_alpha_are_one_map_or_the_other():
    q, k, v = torch.randn(3, 2, 2, 9, 8)
    scores = q @ k.mT / 8**0.5
    found, weights = heterogeneous_attention(q, k, v, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(weights[:, 0], relu_softmax(scores)[:, 0])
    torch.testing.assert_close(weights[:, 1], scores[:, 1] / 9)
    linear = q @ (k.mT @ v) / (9 * 8**0.5)  # reordered: n d² in place of n² d
    torch.testing.assert_close(found[:, 1], linear[:, 1], rtol=1e-5, atol=1e-5)


def test_the_mixture_is_straight_in_alpha_and_passes_no_raw_scores():
    """mpcvit.d1: the official inference code passes the raw scores where alpha is neither."""
    q, k, v = torch.randn(3, 1, 1, 9, 8)
    at = [heterogeneous_attention(q, k, v, torch.tensor(a))[1] for a in (0.0, 0.5, 1.0, 2.0)]
    torch.testing.assert_close(at[1], (at[0] + at[2]) / 2)
    torch.testing.assert_close(at[3], 2 * at[2] - at[0])
    assert (at[1] - q @ k.mT / 8**0.5).abs().max() > 0.1


def test_rows_without_a_positive_score_read_nothing():
    scores = torch.tensor([[-1.0, -2.0], [3.0, -1.0]])
    torch.testing.assert_close(relu_softmax(scores), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))


def test_scaling_counts_all_tokens_and_keeps_signs():
    assert torch.equal(scaling(torch.tensor([[-1.0, 3.0]])), torch.tensor([[-0.5, 1.5]]))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
def test_binarise_keeps_the_largest(ratio):
    """mpcvit.d3: the count is cut off, as floating products fall."""
    alpha = torch.randn(7, 4)
    flags = binarise(alpha, ratio)
    count = {0.0: 0, 0.1: 3, 0.3: 9, 0.5: 14, 0.7: 20, 1.0: 28}[ratio]
    assert flags.shape == (7, 4) and flags.sum() == count
    if 0 < count < 28:
        assert alpha[flags == 1].min() >= alpha[flags == 0].max()


def test_search_then_binarise_then_train_again():
    """mpcvit.d2: nothing keeps alpha between 0 and 1, and the penalty alone pulls it to 0."""
    data = lab.data.digits(8)

    def fresh():
        torch.manual_seed(0)
        return MPCViT(8, 2, 1, 10, embed_dim=16, depth=2, num_heads=2)

    net = fresh()
    how = dict(steps=10, lr=2e-2, batch_size=32, device="cpu")
    lab.train.fit(net, data, loss=lambda *a: search_loss(*a, penalty=10.0), **how)
    pulled = alphas(net).detach()
    assert pulled.shape == (2, 2) and (pulled < 1).all()
    net = fresh()
    with torch.no_grad():
        net.blocks[0].attn.alpha += torch.tensor([1.0, -2.5]).view(1, 2, 1, 1)
    lab.train.fit(net, data, loss=search_loss, **how)
    found = alphas(net).detach()
    assert found[0, 0] > 1 and found[0, 1] < 0
    flags = binarise(found, 0.5)
    again = assign(fresh(), flags)
    lab.train.fit(again, data, **how)
    assert torch.equal(alphas(again), flags)
    assert not torch.equal(again.head.weight, net.head.weight)


def test_search_loss_is_cross_entropy_and_the_size_of_alpha_and_beta():
    net, images = build(linear_gelu=True), torch.randn(4, 3, 16, 16)
    labels = torch.tensor([0, 1, 2, 3])
    plain = F.cross_entropy(net(images), labels)
    size = alphas(net).abs().sum() + betas(net).abs().sum()
    torch.testing.assert_close(search_loss(net, images, labels, 0.1), plain + 0.1 * size)
    mixed = F.one_hot(labels, 5).float()
    torch.testing.assert_close(search_loss(net, images, mixed, 0.1), plain + 0.1 * size)
    with pytest.raises(ValueError, match="penalty=-1 must be at least 0"):
        search_loss(net, images, labels, -1)


def test_distillation_pulls_the_student_to_its_teacher():
    logits, tokens = torch.randn(4, 5), torch.randn(4, 17, 24)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    same = distillation_loss(logits, tokens, logits, tokens)
    torch.testing.assert_close(same, entropy)  # no entropy is taken off: this is its least
    assert distillation_loss(logits + 1, tokens + 1, logits, tokens) == pytest.approx(
        same.item() + 1, abs=1e-5
    )


def test_merged_layers_are_what_both_are_without_gelu():
    net = build(linear_gelu=True)
    mlp = net.blocks[0].mlp
    x = torch.randn(2, 17, 24)
    with torch.no_grad():
        mlp.beta.zero_()
        merged = merge(mlp)
        torch.testing.assert_close(merged(x).relu(), mlp(x), rtol=1e-5, atol=1e-6)
    assert measure.macs(merged, x) * 4 == measure.macs(mlp, x)  # ratio 2: 4 dim² against dim²


def test_norm1_acts_on_the_stream_itself():
    """mpcvit.d5: a constant on all channels between attention and norm changes nothing."""
    block, x = build().blocks[0], torch.randn(2, 17, 24)
    with torch.no_grad():
        wanted = block(x)
        block.attn.proj.bias += 5
        torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-4)


def test_the_official_teacher_holds_tensors_that_nothing_reads():
    """mpcvit.d4: they load, and are dropped."""
    model = build(heterogeneous=False)
    state = {official_name(name): tensor for name, tensor in model.state_dict().items()}
    state["classifier.blocks.0.self_attn.W"] = torch.zeros(1, 256, 64, 64)
    state["classifier.blocks.1.linear_expand.0.weight"] = torch.zeros(5, 5)
    other = build(1, heterogeneous=False)
    weights.load_official(other, {"state_dict": state})
    models.assert_same_tensors(other, model)


# ---------------------------------------------------------------- the fused form


def mixed_flags():
    return torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    "flags", [mixed_flags(), torch.zeros(2, 3), torch.ones(2, 3), torch.rand(2, 3), None]
)
@pytest.mark.parametrize("plus", [False, True])
def test_fused_is_equal(flags, plus):
    """Binarised or not, with softmax (None), with GELU linear for some tokens, all or none."""
    net = build(heterogeneous=flags is not None, linear_gelu=plus)
    if flags is not None:
        assign(net, flags)
    images = torch.randn(2, 3, 16, 16)
    for kept in (slice(0), slice(None, None, 2), slice(1, None, 3), slice(None)):
        if plus:
            with torch.no_grad():
                net.blocks[0].mlp.beta.zero_()[:, kept] = 1
                net.blocks[1].mlp.beta.copy_(net.blocks[0].mlp.beta)
        fused = net.fuse()
        with torch.no_grad():  # gathered tokens lie anywhere in memory: bits may differ
            assert models.error(fused(images), net(images)) < 1e-5
            assert models.error(fused.fuse()(images), fused(images)) < 1e-6
    with torch.no_grad(), record(net) as maps:
        net(images)
    with torch.no_grad(), record(fused) as again:
        fused(images)
    for mine, its in zip(maps, again, strict=True):
        torch.testing.assert_close(its.weights, mine.weights, rtol=1e-4, atol=1e-6)


def test_linear_heads_are_cheaper_fused():
    """Q (Kᵀ V): n d² in place of n² d, here 257 tokens of 16."""
    net = refimpl.create_model("mpcvit_9_12_64", depth=2).eval()
    images = torch.randn(1, 3, 64, 64)
    cost = {}
    for name, flags in (("relu", torch.ones(2, 12)), ("scale", torch.zeros(2, 12))):
        cost[name] = measure.macs(assign(net, flags).fuse(), images)
    saved = 2 * 257 * 257 * 192 - 2 * 257 * 16 * 192  # of the first block
    last = 2 * 257 * 192 - (257 + 1) * 16 * 192  # and of the last, with one query
    assert cost["relu"] - cost["scale"] == saved + last


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_what_a_user_does_next_with_linear_gelu(step):
    step(lambda: build(linear_gelu=True, depth=1), torch.randn(4, 3, 16, 16))


def test_images_need_not_be_square():
    assert build(img_size=(16, 24))(torch.randn(1, 3, 16, 24)).shape == (1, 5)


# ---------------------------------------------------------------- secure computation


@pytest.mark.parametrize("flags", [[1.0, 0.0, 1.0], [0.0] * 3, [1.0] * 3])
def test_a_block_between_two_parties_is_the_block(flags):
    net = assign(build(), torch.tensor([flags, flags]))
    x = torch.randn(17, 24)
    kinds = tuple("relu_softmax" if flag else "scaling" for flag in flags)
    program = partial(ss.secure_block, attention=kinds)
    found = ss.run(program, x.numpy(), *block_weights(net.blocks[0]))
    with torch.no_grad():
        wanted = net.blocks[0](x[None])[0]
    assert models.error(torch.from_numpy(found.value).float(), wanted) < 0.01
    rows = 17 * int(sum(flags))
    assert found.parts.get("map", ss.Traffic()).bits == ss.map_cost("relu_softmax", 17, rows).bits


def test_network_cost_waits_for_layers_not_for_heads():
    spread, packed = torch.zeros(7, 4), torch.zeros(7, 4)
    spread[:, 0] = 1
    packed.view(-1)[:7] = 1
    costs = [network_cost(flags, 65) for flags in (spread, packed)]
    assert costs[0].bits == costs[1].bits
    assert [cost.rounds for cost in costs] == [7 * 38, 2 * 38]
    everywhere = torch.ones(7, 4)
    assert network_cost(everywhere, 65, "softmax").rounds == 700
    assert network_cost(everywhere, 65, "two_quad").rounds == 210
    assert network_cost(everywhere, 65, "scaling") == ss.Traffic()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(img_size=18), "img_size=18 is not divisible by patch_size=4"),
        (dict(num_heads=5), "num_heads=5 must be at least 1 and divide dim=24"),
        (dict(depth=0), "depth=0 must be at least 1"),
        (dict(mlp_ratio=0), "mlp_ratio=0 must be above 0"),
        (dict(num_classes=-1), "num_classes=-1 must be an integer of at least 0"),
        (dict(drop_path_rate=1), "drop_path_rate=1 must be at least 0"),
    ],
)
def test_bad_arguments(change, message):
    models.assert_refused(lambda: MPCViT(**SMALL | change), message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binarise(torch.ones(2, 2), 1.5), "ratio=1.5 must be between 0 and 1"),
        (lambda: binarise(torch.tensor([[torch.nan]]), 0.5), "alpha must be finite"),
        (lambda: assign(build(), torch.ones(3, 2)), "flags must be (depth, heads) = (2, 3)"),
        (lambda: alphas(build(heterogeneous=False)), "has no heads with an alpha"),
        (lambda: soft_cross_entropy(*torch.ones(2, 2, 3), 0), "temperature=0 must be above 0"),
        (lambda: ss.map_cost("max", 65), "attention='max' is not known"),
    ],
)
def test_bad_calls(call, message):
    models.assert_refused(call, message)
