"""LookupViT, of which no official code exists: reference outputs computed from the equations and by
a re-implementation, and properties of the idea."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refimpl
from refimpl import lab
from refimpl.bases.deit import Block
from refimpl.lab import measure
from refimpl.papers.lookupvit import (
    Gather,
    LookupBlock,
    LookupViT,
    Scatter,
    look_up,
    lookup_macs,
    multi_resolution_loss,
    resize_tokens,
    resize_weights,
    vit_macs,
)
from refimpl.viz.attention import record
from shared import models

STEM = "lookupvit"
SMALL = dict(img_size=32, patch_size=4, num_classes=5, embed_dim=24, depth=2, num_heads=3, side=3)


def build(**options):
    torch.manual_seed(0)
    return models.lively(LookupViT(**SMALL | options))


def bare(dim, heads, renormalise, weights):
    """Gather and scatter without norms and biases, from explicit (out, in) matrices."""
    pair = Gather(dim, heads), Scatter(dim, heads, renormalise)
    for part in pair:
        part.to(weights["Wq"].dtype)
        for name in ("norm", "norm_lookup"):
            if hasattr(part, name):
                setattr(part, name, nn.Identity())
        for layer in part.children():
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
    gather, scatter = pair
    gather.q.weight.data = weights["Wq"]
    gather.kv.weight.data = torch.cat([weights["Wk"], weights["Wv"]])
    gather.proj.weight.data = weights["Wo"]
    scatter.v.weight.data = weights["Uv"]
    scatter.proj.weight.data = weights["Uo"]
    return pair


def exchange(compressed, lookup, refined, gather, scatter):
    """What gather and scatter add to their streams, as `look_up` computes it; the middle is given.

    Inputs without the batch's axis get one, and lose it again.
    """
    lone = compressed.dim() == 2
    if lone:
        compressed, lookup, refined = compressed[None], lookup[None], refined[None]
    found = {}

    def refine(tokens):
        found["gather"] = tokens - compressed
        return refined

    with torch.no_grad():
        _, written = look_up(compressed, lookup, gather, refine, scatter)
    found["scatter"] = written - lookup
    return {name: value[0] if lone else value for name, value in found.items()}


def check_mhbc(case):
    names = ("compressed", "lookup", "refined", "Wq", "Wk", "Wv", "Wo", "Uv", "Uo")
    arrays = {name: torch.from_numpy(case.recorded(name)) for name in names}
    tokens = [arrays[name] for name in names[:3]]
    outputs = {}
    for how, renormalise in (("softmax", True), ("transposed", False)):
        pair = bare(tokens[0].shape[-1], case.arguments["heads"], renormalise, arrays)
        found = exchange(*tokens, *pair)
        outputs |= {"gather": found["gather"], f"scatter_{how}": found["scatter"]}
    queries, keys, _ = pair[0](tokens[0][None], tokens[1][None])
    outputs["scores"] = (queries @ keys.mT)[0] * queries.shape[-1] ** -0.5
    case.check(outputs, rtol=1e-5)


def check_resize(case):
    grid = case.inputs()[0]
    tokens = grid.flatten(2).mT
    outputs = {}
    for name in case.data["outputs"]:
        size, _, antialias = name.partition("_")
        new = tuple(int(side) for side in size.split("x"))
        resized = resize_tokens(tokens, tuple(grid.shape[2:]), new, bool(antialias))
        outputs[name] = resized.mT.unflatten(2, new)
    case.check(outputs)


def check_formula(case):
    rows = case.inputs()[0].tolist()
    ours = [lookup_macs(n, m, dim, depth) for dim, depth, n, m in rows]
    plain = [vit_macs(n, dim, depth) for dim, depth, n, _ in rows]
    case.check({"lookupvit": torch.tensor(ours), "vit": torch.tensor(plain)}, rtol=0)


def check_vit_pytorch(case):
    """Its names a and b are gather and scatter; its norms have no bias and multiply by γ + 1."""
    state = case.state()
    kwargs = case.kwargs
    assert sum(tensor.numel() for tensor in state.values()) == case.data["params"]
    weights = {f"W{x}": state[f"a.to_{x}.weight"] for x in "qkv"}
    weights |= {"Wo": state["a.to_out.1.weight"], "Uv": state["b.to_v.weight"]}
    weights["Uo"] = state["b.to_out.1.weight"]
    gather, scatter = bare(kwargs["dim"], kwargs["heads"], True, weights)
    norms = {"a.norm": (gather, "norm"), "a.norm_context": (gather, "norm_lookup")}
    norms["b.norm_context"] = scatter, "norm"
    for name, (part, place) in norms.items():
        norm = nn.LayerNorm(kwargs["dim"])
        norm.weight.data = state[f"{name}.gamma"] + 1
        setattr(part, place, norm)
    found = exchange(*case.inputs(), gather, scatter)
    case.check({f"output.{name}": value for name, value in found.items()})


def test_official(official_case):
    """No official code exists: what the cases come from stands in their `source`."""
    checks = {"mhbc": check_mhbc, "resize_tokens": check_resize, "macs_formula": check_formula}
    name = official_case.name
    if name.startswith("vit_pytorch_pair"):
        check_vit_pytorch(official_case)
    else:
        checks[next(known for known in checks if name.startswith(known))](official_case)


# ---------------------------------------------------------------- cost


@pytest.mark.parametrize(("n", "m"), [(196, 25), (64, 9), (36, 36)])
def test_formula_is_what_is_counted(n, m):
    for dim, heads in ((24, 3), (64, 4)):
        compressed, lookup = torch.randn(1, m, dim), torch.randn(1, n, dim)
        counted = measure.macs(LookupBlock(dim, heads), compressed, lookup)
        assert counted == lookup_macs(n, m, dim) == closed_form(n, m, dim)
        assert measure.macs(Block(dim, heads), lookup) == vit_macs(n, dim)


def closed_form(n, m, c):
    return (3 * n * m + 2 * m**2) * c + (4 * n + 15 * m) * c**2


def test_too_many_compressed_tokens_cost_more_than_they_save():
    """lookupvit.d3: at 196 tokens of 768 channels the balance is even at about 105."""
    dearer = [m for m in range(1, 197) if lookup_macs(196, m, 768) > vit_macs(196, 768)]
    assert dearer == list(range(105, 197))


def test_the_block_has_more_weights_than_vit_s():
    """lookupvit.d1: 19 c² against 12 c², biases and norms aside; 134 M against 86 M for base."""
    with torch.device("meta"):
        block, plain = LookupBlock(768, 12), Block(768, 12)
        model, vit = refimpl.create_model("lookupvit_base"), refimpl.create_model("deit_base")
    for module, count in ((block, 19), (plain, 12)):
        weights = sum(p.numel() for p in module.parameters() if p.dim() == 2)
        assert weights == count * 768**2
    assert measure.parameters(model) / 1e6 == pytest.approx(134.5, abs=0.1)
    assert measure.parameters(vit) / 1e6 == pytest.approx(86.6, abs=0.1)


# ---------------------------------------------------------------- properties of the idea


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("size", "count"), [(14, 5), (8, 3), (7, 7), (5, 9), (24, 7), (3, 1)])
def test_resize_is_bilinear(size, count, antialias):
    image = torch.randn(2, 3, size, size + 2)
    wanted = F.interpolate(image, (count, count + 1), mode="bilinear", antialias=antialias)
    new = (count, count + 1)
    found = resize_tokens(image.flatten(2).mT, (size, size + 2), new, antialias)
    torch.testing.assert_close(found.mT.unflatten(2, new), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(resize_weights(size, count).sum(1), torch.ones(count))


def test_only_the_antialiased_resize_passes_no_token_over():
    assert resize_weights(14, 3).sum(0).min() > 0
    assert (resize_weights(14, 3, antialias=False).sum(0) == 0).any()


def test_at_full_resolution_compressed_tokens_are_the_lookup_tokens():
    model = build()
    tokens = torch.randn(2, 64, 24)
    assert torch.equal(resize_tokens(tokens, model.grid, model.grid), tokens)


def test_resize_is_linear_so_positions_come_along():
    """P₀ = resize(X) + resize(E) = resize(X + E)."""
    x, positions = torch.randn(2, 64, 24), torch.randn(1, 64, 24)
    apart = [resize_tokens(part, (8, 8), (3, 3)) for part in (x, positions)]
    together = resize_tokens(x + positions, (8, 8), (3, 3))
    torch.testing.assert_close(apart[0] + apart[1], together)


def test_the_order_of_tokens_does_not_matter():
    """Within a block: permuted lookup tokens are permuted, and compressed ones do not notice."""
    torch.manual_seed(0)
    block = models.lively(LookupBlock(24, 3))
    compressed, lookup = torch.randn(2, 4, 24), torch.randn(2, 9, 24)
    order, other = torch.randperm(9), torch.randperm(4)
    with torch.no_grad():
        few, many = block(compressed, lookup)
        found = block(compressed[:, other], lookup[:, order])
    torch.testing.assert_close(found, (few[:, other], many[:, order]), rtol=1e-5, atol=1e-5)


def test_without_a_scatter_no_lookup_token_learns_of_another():
    """Lookup tokens are treated one by one but for what comes back through the compressed ones."""
    torch.manual_seed(0)
    block = models.lively(LookupBlock(24, 3))
    compressed, lookup = torch.randn(1, 4, 24), torch.randn(1, 9, 24)
    other = lookup.clone()
    other[:, 5:] += 1
    for writes in (True, False):
        if not writes:
            nn.init.zeros_(block.scatter.proj.weight)
        with torch.no_grad():
            first, second = block(compressed, lookup)[1], block(compressed, other)[1]
        assert torch.equal(first[:, :5], second[:, :5]) is not writes


def test_the_transposed_weights_do_not_sum_to_one():
    """lookupvit.d2: with them a lookup token gets as much as it was looked at."""
    torch.manual_seed(0)
    maps = {}
    for renormalise in (True, False):
        block = models.lively(LookupBlock(24, 3, renormalise=renormalise))
        with torch.no_grad(), record(block) as seen:
            block(torch.randn(2, 4, 24), torch.randn(2, 9, 24))
        maps[renormalise] = {m.name: m.weights for m in seen}
    mine, transposed = (maps[renormalise]["scatter"].sum(-1) for renormalise in (True, False))
    torch.testing.assert_close(mine, torch.ones(2, 3, 9))
    torch.testing.assert_close(transposed, maps[False]["gather"].sum(-2))
    assert (transposed - 1).abs().max() > 0.1


def test_any_number_of_compressed_tokens():
    """One model serves all; more than there are lookup tokens along a side are refused."""
    model, images = build(), torch.randn(2, 3, 32, 32)
    for form in (model, model.fuse()):
        with torch.inference_mode():
            answers = [form(images, side) for side in range(1, 9)]
            assert torch.equal(answers[2], form(images))
        assert {answer.shape for answer in answers} == {(2, 5)}
        assert all(models.error(answer, answers[2]) > 1e-4 for answer in answers[:2])
        models.assert_refused(lambda form=form: form(images, 9), "side=9 must be at most 8")
    other = build(side=7)
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(other(images), model(images, 7))


def test_multi_resolution_loss_is_the_loss_at_one_of_the_sides():
    model, images, labels = build(), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        wanted = {F.cross_entropy(model(images, side), labels).item() for side in (2, 4)}
        found = {multi_resolution_loss(model, images, labels, (2, 4)).item() for _ in range(20)}
    assert found == wanted
    models.assert_refused(lambda: multi_resolution_loss(model, images, labels, ()), "len(sides)=0")
    models.assert_refused(
        lambda: multi_resolution_loss(model, images, labels, (9,)), "side=9 must be at most 8"
    )


def test_one_model_is_trained_at_several_sides():
    data = lab.data.digits(16)
    torch.manual_seed(0)
    net = LookupViT(16, 4, 1, 10, embed_dim=32, depth=1, num_heads=2, side=2)
    loss = partial(multi_resolution_loss, sides=(2, 3))
    lab.train.fit(net, data, steps=80, lr=6e-3, loss=loss, device="cpu")
    with torch.no_grad():
        for side in (2, 3):
            right = net(data.test_images, side).argmax(1) == data.test_labels
            assert right.float().mean() > 0.3


# ---------------------------------------------------------------- what holds for every model


@pytest.mark.parametrize("options", [dict(pool="both"), dict(renormalise=False)], ids=str)
@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_what_a_user_does_next(step, options):
    step(lambda: build(**options), torch.randn(4, 3, 32, 32))


@pytest.mark.parametrize("pool", ["compressed", "both"])
def test_features_head_gradients_and_fused_form(pool):
    """Where only compressed tokens are classified, the last block has nothing to write back."""
    model = build(pool=pool)
    assert (model.blocks[-1].scatter is None) == (pool == "compressed")
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, 9 if pool == "compressed" else 73, 24)
    assert torch.equal(model.forward_head(features), model(images))
    model.train()(images).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    models.assert_fused_is_equal(model.eval(), images)


def test_images_need_not_be_square():
    model = build(img_size=(32, 48), side=8)
    assert model(torch.randn(1, 3, 32, 48)).shape == (1, 5)
    models.assert_refused(lambda: model(torch.randn(1, 3, 32, 48), 9), "there are 8×12 lookup")


def test_recorded_maps():
    model, images = build(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = model(images)
        with record(model) as maps:
            assert torch.equal(model(images), plain)
    found = {m.name: m for m in maps}
    assert found["blocks.0.gather"].weights.shape == (2, 3, 9, 64)
    assert found["blocks.0.refine.attn"].to_image().shape == (2, 3, 9, 9)
    scatter = found["blocks.0.scatter"]
    assert scatter.weights.shape == (2, 3, 64, 9)
    torch.testing.assert_close(scatter.to_image().sum(-1), torch.ones(2, 3, 64))
    assert "blocks.1.scatter" not in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(side=0), "side=0 must be an integer of at least 1"),
        (dict(side=2.5), "side=2.5 must be an integer of at least 1"),
        (dict(side=9), "side=9 must be at most 8: there are 8×8 lookup tokens"),
        (dict(pool="class"), "pool='class' is not known"),
        (dict(img_size=30), "img_size=30 is not divisible by patch_size=4"),
        (dict(num_heads=5), "num_heads=5 must be at least 1 and divide dim=24"),
        (dict(depth=0), "depth=0 must be at least 1"),
        (dict(embed_dim=1, num_heads=1), "embed_dim=1 must be at least 2"),
        (dict(mlp_ratio=0), "mlp_ratio=0 must be above 0"),
        (dict(num_classes=-1), "num_classes=-1 must be an integer of at least 0"),
    ],
)
def test_bad_arguments(change, message):
    models.assert_refused(lambda: LookupViT(**SMALL | change), message)


def test_bad_images():
    model = build()
    models.assert_refused(lambda: model(torch.randn(1, 3, 32, 28)), "images are 32×28 pixels")
    models.assert_refused(lambda: model(torch.randn(1, 3, 32, 32), 0), "side=0 must be")
