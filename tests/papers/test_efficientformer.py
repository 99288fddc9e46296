"""EfficientFormer: equal to the official code, its traps, its fused model, slimming, refusals."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refimpl
from refimpl import golden
from refimpl.bases.distillation import distillation_loss
from refimpl.bases.levit import Attention, offset_index
from refimpl.bases.slimming import Architecture, actions, least_latency
from refimpl.bases.supernet import (
    NOISES,
    MetaPath,
    block_importance,
    copy_channels,
    milliseconds,
    path_weights,
    places,
    recalibrate,
    strongest,
    train_supernet,
)
from refimpl.lab import measure
from refimpl.papers.efficientformer import (
    NAMES,
    VARIANTS,
    EfficientFormer,
    Flatten,
    Meta3D,
    Meta4D,
    NetworkLatency,
    Supernet,
    inherit,
    pooling,
    slim,
)
from refimpl.viz import attention
from shared import models

STEM = "efficientformer"
RULES = NAMES["official"]
PARAMETERS = {  # with two heads, with one
    "l1": (12_289_928, 11_840_928),
    "l3": (31_406_000, 30_893_000),
    "l7": (82_229_328, 81_460_328),
}
RENAMED = {"layers": "depths", "vit_num": "num_vit", "distillation": "distilled"}
SMALL = dict(
    img_size=48,
    num_classes=5,
    embed_dims=(8, 16, 24),
    depths=(1, 2, 3),
    num_vit=2,
    key_dim=4,
    num_heads=2,
)


def built(kwargs: dict) -> EfficientFormer:
    """The model of the official constructor's arguments."""
    taken = {
        RENAMED.get(name, name): tuple(value) if isinstance(value, list) else value
        for name, value in kwargs.items()
    }
    return EfficientFormer(**taken)


def filled(seed: int = 0, **kwargs) -> EfficientFormer:
    """A small model whose every branch and norm does something."""
    torch.manual_seed(seed)
    return models.lively(EfficientFormer(**dict(SMALL, layer_scale=0.5) | kwargs))


def timm_name(name: str) -> str:
    """timm's name of a tensor, from the official one."""
    stem = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}
    name = re.sub(r"^patch_embed\.(\d)", lambda m: f"stem.{stem[m[1]]}", name)
    name = re.sub(
        r"^network\.([135])\.(proj|norm)",
        lambda m: (
            f"stages.{int(m[1]) // 2 + 1}.downsample." + {"proj": "conv", "norm": "norm"}[m[2]]
        ),
        name,
    )
    name = re.sub(r"^network\.([0246])\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.", name)
    name = re.sub(r"layer_scale_(\d)", r"ls\1.gamma", name)
    return name.replace("dist_head.", "head_dist.")


def official_spec(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def test_official(official_case):
    case, k = official_case, official_case.kwargs
    if case.name == "pooling":
        case.check(pooling(torch.from_numpy(case.recorded("x"))), rtol=1e-6)
        return
    if case.name == "distillation_loss":
        check_distillation_loss(case)
        return
    if case.name == "slimming_path_weights":
        logits, noise = (torch.from_numpy(case.recorded(n)) for n in ("alpha", "uniform"))
        case.check(path_weights(logits, noise, case.arguments["tau"]), rtol=1e-12)
        return
    if case.name == "slimming_importance":
        identity, maps, tokens = (
            torch.from_numpy(case.recorded(f"alpha_{n}")) for n in ("identity", "4d", "3d")
        )
        stage12 = block_importance(torch.stack([identity, maps], -1))
        stage34 = block_importance(torch.stack([identity, maps, tokens], -1))
        case.check({"stage12": stage12, "stage34": stage34}, rtol=1e-12)
        return
    if case.name == "profile":
        check_official_counter(case)
        return
    if case.name.startswith("attention"):
        model = Attention(**k)
    elif case.name.startswith("meta4d"):
        model = Meta4D(k["dim"])
    elif case.name.startswith("meta3d"):
        model = Meta3D(k["dim"])
    else:
        model = built(k)
    case.fill(model.eval(), RULES, spec=case.data.get("state") or official_spec(model))
    case.check_params(model)
    images = case.inputs()[0]
    with torch.inference_mode():
        if "stages" in case.name:
            outputs = {"output.patch_embed": model.patch_embed(images)}
            x = outputs["output.patch_embed"]
            for i, part in enumerate(model.network):
                outputs[f"output.network{i}"] = x = part(x)
            outputs["output.norm"] = model.norm(x)
            outputs["output.pooled"] = pooled = model.norm(x).mean(1)
            outputs["output.head"] = model.head(pooled)
            outputs["output.dist_head"] = model.dist_head(pooled)
            case.check(outputs, rtol=1e-5)
        else:
            case.check(model(images), rtol=1e-5)
    if case.data.get("macs"):
        assert measure.macs(model, images) == case.data["macs"]


def check_distillation_loss(case: golden.Case) -> None:
    """Every recorded setting; its name says kind and temperature."""
    head, distilled, teacher, target = (
        torch.from_numpy(case.recorded(n)) for n in ("head", "dist_head", "teacher", "soft_target")
    )
    found = {}
    for name in case.data["outputs"]:
        kind, temperature = name.split("_tau")
        found[name] = distillation_loss(
            (head, distilled), target, teacher, kind, case.arguments["alpha"], float(temperature)
        )
    case.check(found, rtol=1e-6)


def official_count(model: nn.Module, images: torch.Tensor) -> tuple[float, float, int]:
    """(G multiply-adds, M parameters, layers) as the official repository counts them.

    A GELU is 1 per number of a token, but on maps 1 per channel and row, as if (b, c, h) were
    tokens; a LayerNorm 2, a 3×3 mean 9; a convolution has as many biases as it has *input*
    channels; batch norms have no parameters, nor have layer scales and bias tables.
    """
    counts = {"macs": 0, "parameters": 0, "layers": 0}

    def note(module, args, output):
        x = args[0]
        parameters = 0
        if isinstance(module, nn.Conv2d):
            macs = module.weight.numel() * output[0, 0].numel()
            parameters = module.weight.numel() + module.in_channels
        elif isinstance(module, nn.Linear):
            macs = module.weight.numel() * (output.numel() // module.out_features)
            parameters = module.weight.numel() + module.out_features
        elif isinstance(module, nn.LayerNorm):
            macs = 2 * x.numel()
            parameters = 2 * x.shape[-1]
        elif isinstance(module, nn.GELU):
            macs = x.shape[1] * x.shape[2]
        elif isinstance(module, Meta4D):
            macs = 9 * x.numel()
        elif isinstance(module, Attention):
            macs = module.num_heads * x.shape[1] ** 2 * (module.widths[0] + module.widths[2])
        else:
            return
        counts["macs"] += macs
        counts["parameters"] += parameters
        counts["layers"] += 1

    handles = [m.register_forward_hook(note) for m in model.modules()]
    with torch.inference_mode():
        model(images)
    for handle in handles:
        handle.remove()
    return counts["macs"] / 1e9, counts["parameters"] / 1e6, counts["layers"]


def check_official_counter(case: golden.Case) -> None:
    """Their counter, rewritten, gives their totals; and the numbers of parameters are right."""
    for variant, wanted in case.data["outputs"].items():
        model = refimpl.create_model(f"efficientformer_{variant}").eval()
        found = official_count(model, torch.zeros(1, 3, 224, 224))
        assert found == pytest.approx([wanted[n] for n in ("gmacs", "mparams", "layers")], rel=1e-9)
        assert measure.parameters(model) == wanted["params"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_with_two_heads_and_with_one(variant):
    for distilled, wanted in zip((True, False), PARAMETERS[variant], strict=True):
        with torch.device("meta"):
            model = refimpl.create_model(f"efficientformer_{variant}", distilled=distilled)
        assert measure.parameters(model) == wanted


@pytest.mark.parametrize("names", [str, timm_name], ids=["official", "timm"])
def test_checkpoints_under_foreign_names_load(names):
    """As they are saved: under `model`, with the index buffer."""

    def checkpoint(source):
        state = {names("network.6.4.token_mixer.attention_bias_idxs"): torch.zeros(49, 49).long()}
        for name, tensor in source.state_dict().items():
            state[names(name)] = tensor
        return {"model": state}

    models.assert_checkpoint_loads(
        lambda: refimpl.create_model("efficientformer_l1", num_classes=3), checkpoint
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_timm_gives_the_same_output(timm, variant):
    name = f"efficientformer_{variant}"
    theirs = timm.create_model(name)
    with torch.no_grad():
        for part, parameter in theirs.named_parameters():
            if "gamma" in part:
                parameter.normal_(std=0.1)
    images = torch.randn(1, 3, 224, 224)
    models.assert_equals_peer(refimpl.create_model(name), theirs, images)


def test_the_mean_is_over_real_pixels_and_less_the_middle():
    """Corners have 4 pixels, edges 6; a constant map gives nothing, unlike x + pool(x)."""
    x = torch.randn(1, 2, 5, 6)
    found = pooling(x)
    for i, j, rows, columns in ((0, 0, 2, 2), (4, 5, 2, 2), (0, 3, 2, 3), (2, 2, 3, 3)):
        top, left = max(i - 1, 0), max(j - 1, 0)
        window = x[..., top : top + rows, left : left + columns]
        torch.testing.assert_close(found[..., i, j], window.mean((2, 3)) - x[..., i, j])
    assert pooling(torch.full((1, 2, 4, 4), 3.0)).abs().max() < 1e-6
    block = Meta4D(3, layer_scale=0.5).eval()
    nn.init.zeros_(block.layer_scale_2)
    with torch.no_grad():
        assert torch.allclose(block(torch.ones(1, 3, 4, 4)), torch.ones(1, 3, 4, 4), atol=1e-6)


def test_attention_s_widths_do_not_follow_the_network_s():
    for dim in (24, 448):
        layer = Attention(dim)
        assert layer.qkv.weight.shape == (1536, dim) and layer.proj.weight.shape == (dim, 1024)


def test_bias_goes_by_distance():
    bias = torch.arange(9.0)[offset_index(3)]  # the entry's own number
    for i in range(9):
        for j in range(9):
            rows, columns = abs(i // 3 - j // 3), abs(i % 3 - j % 3)
            assert bias[i, j] == 3 * rows + columns


def test_batch_norms_and_layer_scale_fold_into_the_block():
    torch.manual_seed(0)
    block = models.lively(nn.Sequential(Meta4D(6, layer_scale=0.5)))
    x = torch.randn(2, 6, 5, 4)
    with torch.no_grad():
        fused = refimpl.papers.efficientformer.deploy(block)
        assert models.error(fused(x), block(x)) < 1e-6
    names = [name for name, _ in fused.named_parameters()]
    assert not any("layer_scale_2" in name or "norm" in name for name in names)


def test_layout_changes_once():
    for variant, k in VARIANTS.items():
        with torch.device("meta"):
            model = refimpl.create_model(f"efficientformer_{variant}")
        kinds = [type(m) for m in model.modules() if isinstance(m, (Meta4D, Flatten, Meta3D))]
        maps = sum(k["depths"]) - k["num_vit"]
        assert kinds == [Meta4D] * maps + [Flatten] + [Meta3D] * k["num_vit"]


@pytest.mark.parametrize("num_vit", [0, 1, 3])
def test_any_number_of_3d_blocks_at_the_end(num_vit):
    model = filled(num_vit=num_vit)
    images = torch.randn(2, 3, 48, 48)
    fused = models.assert_fused_is_equal(model, images)
    for form in (model, fused) if num_vit else ():
        with torch.inference_mode(), attention.record(form) as maps:
            form(images)
        assert len(maps) == num_vit
        assert all(m.grid == (3, 3) and m.heads == 2 for m in maps)


@pytest.mark.parametrize(
    "options", [{}, {"distilled": False}, {"img_size": 28, "in_chans": 1}, {"img_size": (50, 50)}]
)
def test_fused_model_is_equal_and_leaves_the_model_alone(options):
    model = filled(0, **options)
    models.assert_fused_is_equal(model, torch.randn(3, model.in_chans, *[model.img_size] * 2))


def test_fused_model_keeps_the_precision():
    models.assert_fused_is_equal(filled().double(), torch.randn(2, 3, 48, 48).double())


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_next(step):
    step(filled, torch.randn(2, 3, 48, 48))


def test_two_heads_in_training_their_mean_in_evaluation():
    model = filled()
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        pooled = model.forward_features(images).mean(1)
        mean = (model.head(pooled) + model.dist_head(pooled)) / 2
        assert torch.equal(model(images), mean)
    logits, distilled = model.train()(images)
    assert logits.shape == distilled.shape == (2, 5)
    (logits.square().sum() + distilled.square().sum()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # what a batch norm takes away again: the biases before it
    assert [n for n in without if not re.search(r"(fc\d|proj|patch_embed\.[03])\.bias", n)] == []


def test_without_classes_features_come_out():
    model, images = filled(num_classes=0), torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        features = model.forward_features(images)
        assert features.shape == (2, 9, 24)
        assert torch.equal(model(images), features.mean(1))


def test_drop_path_rises_linearly_and_acts_in_training_alone():
    model = filled(drop_path_rate=0.5)
    rates = [m.drop_path.p for m in model.modules() if isinstance(m, (Meta4D, Meta3D))]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(model(images), filled()(images))
        block = model.network[4][-1].train()
        assert len(block(torch.ones(16, 9, 24)).flatten(1).unique(dim=0)) > 1


def test_starts_as_the_paper_says():
    model = refimpl.create_model("efficientformer_l1")
    block = model.network[6][-1]
    assert (block.layer_scale_1 == 1e-5).all() and (block.layer_scale_2 == 1e-5).all()
    assert not block.token_mixer.attention_biases.any() and not block.mlp.fc1.bias.any()
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.network[0][0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("kind", ["none", "hard", "soft"])
def test_the_loss_teaches_the_second_head(kind):
    g = torch.Generator().manual_seed(0)
    head, distilled, teacher = torch.randn(3, 4, 6, generator=g).unbind()
    head, distilled = head.requires_grad_(), distilled.requires_grad_()
    loss = distillation_loss((head, distilled), torch.tensor([0, 1, 2, 3]), teacher, kind, 0.3)
    of_head, of_distilled = torch.autograd.grad(loss, (head, distilled), allow_unused=True)
    assert of_head.any() and (kind == "none") == (of_distilled is None)
    if kind == "hard":
        wanted = 0.7 * F.cross_entropy(head, torch.arange(4))
        wanted = wanted + 0.3 * F.cross_entropy(distilled, teacher.argmax(1))
        torch.testing.assert_close(loss, wanted)


# ---- slimming


def small_supernet(noise: str = "uniform", seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    return Supernet(
        embed_dims=(32, 48),
        depths=(2, 3),
        noise=noise,
        layer_scale=0.5,
        img_size=16,
        in_chans=1,
        num_classes=3,
        key_dim=4,
        num_heads=2,
    )


def counted(layer: nn.Module, x: torch.Tensor) -> float:
    """A clock that always shows the same: millions of multiply-adds."""
    return measure.macs(layer, x) / 1e6


LARGEST = Architecture((32, 48), (("4d", "4d"), ("4d", "3d", "3d")))
IMPORTANCE = ((3.0, 1.0), (5.0, 4.0, 2.0))


def spread(architecture: Architecture) -> float:
    """An accuracy that falls with every block and channel that is lost."""
    return sum(architecture.depths) / 10 + sum(architecture.embed_dims) / 1000


def test_noises_have_their_distributions():
    torch.manual_seed(0)
    logits = torch.zeros(200_000)
    uniform, gumbel = NOISES["uniform"](logits), NOISES["gumbel"](logits)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert uniform.std().item() == pytest.approx(12**-0.5, rel=0.01)
    assert gumbel.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert gumbel.std().item() == pytest.approx(torch.pi / 6**0.5, rel=0.01)


def test_only_gumbel_noise_draws_from_the_softmax():
    """How often each path wins: exactly its softmax with Gumbel noise, far from it with uniform."""
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(100_000, 3)
    wins = {}
    for name, noise in NOISES.items():
        wins[name] = F.one_hot((logits + noise(logits)).argmax(1), 3).float().mean(0)
    wanted = logits[0].softmax(0)
    assert torch.allclose(wins["gumbel"], wanted, atol=0.01)
    assert wins["uniform"][2] == 1, "noise below 1 never lets a logit win that is 1 behind"


def test_a_place_mixes_its_paths():
    place = MetaPath({"identity": nn.Identity(), "4d": Meta4D(4, layer_scale=0.5)}).eval()
    x = torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        place.logits.copy_(torch.tensor([-50.0, 50.0]))
        assert torch.allclose(place(x), place.blocks["4d"](x))
        place.logits.copy_(torch.tensor([50.0, -50.0]))
        assert torch.allclose(place(x), x)
        place.logits.zero_()
        assert torch.equal(place(x), place(x)), "no noise in evaluation"
        torch.manual_seed(0)
        place.train()
        assert not torch.equal(place(x), place(x))


def test_every_place_has_its_paths():
    supernet = small_supernet()
    kinds = [[list(place.blocks) for place in row] for row in supernet.stages()]
    assert kinds == [[["identity", "4d"]] * 2, [["identity", "4d", "3d"]] * 3]
    assert supernet(torch.randn(2, 1, 16, 16)).shape == (2, 3)


def test_3d_blocks_are_forced_to_the_end():
    supernet = small_supernet()
    wants = [[0.0, 0.0, 3.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]  # 3D, 4D, 3D
    with torch.no_grad():
        for place, logits in zip(supernet.stages()[1], wants, strict=True):
            place.logits.copy_(torch.tensor(logits))
    assert supernet.largest().kinds[1] == ("3d", "3d", "3d")  # 5, more than 4D 4D 3D with 3
    with torch.no_grad():
        supernet.stages()[1][0].logits.copy_(torch.tensor([9.0, 1.0, 0.0]))
    assert supernet.largest().kinds[1] == ("4d", "4d", "3d")  # identity is no choice here


def test_importance_is_per_place():
    supernet = small_supernet()
    with torch.no_grad():
        supernet.stages()[1][2].logits.copy_(torch.tensor([0.0, 1.0, 2.0]))
    first, last = supernet.importance()
    assert first == pytest.approx([1.0, 1.0])
    assert last == pytest.approx([2.0, 2.0, torch.tensor([1.0, 2.0]).exp().sum().item()])


def test_the_whole_network_inherits_exactly():
    """With no path but the chosen ones and equal statistics, supernet and network are one."""
    supernet = small_supernet().eval()
    images = torch.randn(8, 1, 16, 16)
    with torch.no_grad():
        for row, kinds in zip(supernet.stages(), LARGEST.kinds, strict=True):
            for place, kind in zip(row, kinds, strict=True):
                place.logits.copy_(torch.tensor([60.0 * (name == kind) for name in place.blocks]))
                place.noise = "uniform"
        recalibrate(supernet, images)
        network = inherit(supernet, LARGEST, images)
        assert models.error(network(images), supernet(images)) < 1e-5
    assert network.num_classes == 3 and network.dist_head is None


def test_a_cut_stage_keeps_its_strongest_channels():
    supernet = small_supernet()
    with torch.no_grad():
        supernet.network[1].norm.weight.copy_(torch.linspace(-2, 1, 48))
    narrow = LARGEST.narrowing(1)
    network = inherit(supernet, narrow, torch.randn(8, 1, 16, 16))
    kept = torch.linspace(-2, 1, 48).abs().topk(32).indices.sort().values
    assert narrow.embed_dims == (32, 32) and network.head.in_features == 32
    assert torch.equal(network.head.weight, supernet.head.weight[:, kept])
    block = supernet.stages()[1][2].blocks["3d"][0]
    assert torch.equal(network.network[2][-1].mlp.fc1.weight, block.mlp.fc1.weight[:128, kept])
    assert torch.equal(network.network[1].proj.weight, supernet.network[1].proj.weight[kept])
    first = LARGEST.narrowing(0)
    network = inherit(supernet, first, torch.randn(8, 1, 16, 16))
    assert network.patch_embed[0].weight.shape == (8, 1, 3, 3)
    assert network.network[1].proj.weight.shape == (48, 16, 3, 3)


def test_recalibration_takes_the_mean_over_batches():
    norm = nn.BatchNorm2d(2)
    images = torch.randn(6, 2, 4, 4) * 3 + 1
    recalibrate(norm, images, batch_size=2)
    assert not norm.training and norm.momentum == 0.1
    means = torch.stack([batch.mean((0, 2, 3)) for batch in images.split(2)]).mean(0)
    assert torch.allclose(norm.running_mean, means, atol=1e-6)


def test_channels_are_copied_by_index():
    wide, narrow = nn.Linear(6, 4), nn.Linear(3, 2)
    inputs, outputs = torch.tensor([0, 2, 5]), strongest(torch.tensor([1.0, -3.0, 0.5, 2.0]), 2)
    copy_channels(narrow, wide.state_dict(), [inputs, outputs])
    assert outputs.tolist() == [1, 3]
    assert torch.equal(narrow.weight, wide.weight[outputs][:, inputs])
    assert torch.equal(narrow.bias, wide.bias[outputs])


def test_a_table_is_the_sum_of_its_parts_and_measures_each_once():
    calls = []

    def clock(layer, x):
        calls.append(x.shape)
        return counted(layer, x)

    supernet = small_supernet()
    latency = NetworkLatency(supernet, clock=clock)
    network = inherit(supernet, LARGEST, torch.randn(4, 1, 16, 16))
    total = measure.macs(network, torch.zeros(1, 1, 16, 16)) / 1e6
    head = network.head.in_features * 3 / 1e6
    assert latency(LARGEST) == pytest.approx(total - head)
    assert latency(LARGEST) == pytest.approx(total - head) and len(calls) == 5
    assert set(latency.entries) == {
        ("stem", 16, 1, 32),
        ("4d", 4, 32),
        ("embedding", 4, 32, 48),
        ("4d", 2, 48),
        ("3d", 2, 48),
    }


def test_a_given_table_is_not_measured_again():
    latency = NetworkLatency(small_supernet(), clock=None, entries={("4d", 4, 32): 2.5})
    assert latency["4d", 4, 32] == 2.5


def test_the_clock_reads_milliseconds():
    layer, x = nn.Linear(256, 256), torch.randn(256, 256)
    twice = nn.Sequential(layer, nn.Linear(256, 256), nn.Linear(256, 256), nn.Linear(256, 256))
    one = milliseconds(layer, x, rounds=3)
    assert 0 < one < milliseconds(twice, x, rounds=3)


def test_three_actions_from_the_least_important():
    found = actions(LARGEST, IMPORTANCE)
    assert [a.kinds for a in found["remove"][:2]] == [
        (("4d", "identity"), ("4d", "3d", "3d")),
        (("4d", "4d"), ("4d", "3d", "identity")),
    ]
    assert [a.kinds[1] for a in found["exchange"]] == [("4d", "4d", "3d")]
    assert [a.embed_dims for a in found["narrow"]] == [(16, 48), (32, 32)]
    bottom = Architecture((16, 16), (("identity", "4d"), ("4d", "identity", "identity")))
    assert actions(bottom, IMPORTANCE) == {"remove": [], "exchange": [], "narrow": []}


@pytest.mark.parametrize("target", [0.9, 0.6, 0.3])
def test_slimming_falls_in_latency_and_keeps_3d_blocks_last(target):
    latency = NetworkLatency(small_supernet(), clock=counted)
    start = latency(LARGEST)
    path = slim(LARGEST, target * start, latency, spread, IMPORTANCE)
    times = [step.latency for step in path]
    assert path[0].action == "start" and times == sorted(set(times), reverse=True)
    assert times[-1] <= target * start < times[-2]
    for before, step in zip(path, path[1:], strict=False):
        assert step.action in ("remove", "exchange", "narrow")
        assert step.architecture in actions(before.architecture, IMPORTANCE)[step.action]
        EfficientFormer(img_size=16, in_chans=1, **step.architecture.arguments())


def test_slimming_takes_the_least_drop_per_millisecond():
    """Two blocks of one size: the one that costs no accuracy goes, whatever the other saves."""
    latency = NetworkLatency(small_supernet(), clock=counted)
    harmless = LARGEST.placing(0, 1, "identity")
    path = slim(
        LARGEST,
        0.999 * latency(LARGEST),
        latency,
        lambda a: 1.0 if a in (LARGEST, harmless) else 0.0,
        IMPORTANCE,
    )
    assert [step.architecture for step in path] == [LARGEST, harmless]


def test_another_price_can_choose_otherwise():
    """The drop is divided by the price; what must fall is the latency."""
    cheap = {("4d", 2, 48): 1.0, ("3d", 2, 48): 2.0, ("4d", 4, 32): 4.0}
    ends = {("stem", 16, 1, w): 1.0 for w in (16, 32)}
    ends |= {("embedding", 4, a, b): 1.0 for a in (16, 32) for b in (16, 32, 48)}
    widths = {(k, s, w): cheap[k, s, m] * w / m for k, s, m in cheap for w in (16, 32, 48)}
    latency = NetworkLatency(small_supernet(), clock=None, entries=ends | widths)
    dear = widths | {("3d", 2, w): 100.0 * w for w in (16, 32, 48)}
    price = NetworkLatency(small_supernet(), clock=None, entries=ends | dear)
    target = latency(LARGEST) - 0.1

    def accuracy(architecture):
        tokens = architecture.kinds[1].count("3d")
        return sum(architecture.depths) / 10 + tokens / 12 + sum(architecture.embed_dims)

    by_time = slim(LARGEST, target, latency, accuracy, IMPORTANCE)
    by_price = slim(LARGEST, target, latency, accuracy, IMPORTANCE, price)
    assert [step.action for step in by_time] == ["start", "remove"]
    assert [step.action for step in by_price] == ["start", "exchange"]


def test_a_target_below_reach_is_refused_with_the_least_one():
    latency = NetworkLatency(small_supernet(), clock=counted)
    least = least_latency(LARGEST, latency)
    bottom = latency(Architecture((16, 16), (("4d", "identity"), ("4d",) + ("identity",) * 2)))
    assert least == pytest.approx(bottom)
    path = slim(LARGEST, least, latency, spread, IMPORTANCE)
    assert path[-1].latency == pytest.approx(least)
    models.assert_refused(
        lambda: slim(LARGEST, 0.9 * least, latency, spread, IMPORTANCE),
        f"the least reachable latency is {least:.4g}",
    )
    models.assert_refused(lambda: slim(LARGEST, 0, latency, spread, IMPORTANCE), "target=0")


@pytest.mark.parametrize("noise", NOISES)
def test_a_supernet_learns_weights_and_paths(noise):
    """Three classes told apart by brightness, in some twenty steps."""
    supernet = small_supernet(noise)
    labels = torch.arange(192) % 3
    images = torch.randn(192, 1, 16, 16) * 0.1 + labels[:, None, None, None]
    history = train_supernet(
        supernet, images, labels, steps=25, batch_size=32, temperatures=(1.0, 0.5), seed=1
    )
    assert len(history) == 25 and [len(row) for row in history[0]] == [2, 2, 3, 3, 3]
    assert all(sum(row) == pytest.approx(1) for row in history[-1])
    assert not supernet.training and places(supernet)[0].temperature == pytest.approx(0.5)
    assert all(place.logits.any() for place in places(supernet))
    recalibrate(supernet, images)
    with torch.no_grad():
        assert (supernet(images).argmax(1) == labels).float().mean() > 0.8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": 0}, "img_size=0"),
        ({"img_size": (48, 64)}, "img_size=(48, 64) must be square"),
        ({"img_size": "48"}, "img_size='48'"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"embed_dims": (9, 16, 24)}, "embed_dims[0]=9 must be a positive multiple of 2"),
        ({"embed_dims": (8, 16)}, "one entry for each stage"),
        ({"depths": (1, 2)}, "one entry for each stage"),
        ({"depths": (1, 0, 3)}, "depths=(1, 0, 3) must be at least 1"),
        ({"num_vit": 4}, "num_vit=4 must be between 0 and depths[-1]=3"),
        ({"num_vit": -1}, "num_vit=-1"),
        ({"key_dim": 0}, "key_dim=0"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
    ],
)
def test_bad_arguments_are_named(change, words):
    models.assert_refused(lambda: EfficientFormer(**SMALL | change), words)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 3, 64, 64), "64×64"),
        (torch.zeros(1, 3, 47, 48), "47×48"),
        (torch.zeros(1, 1, 48, 48), "1 channels"),
        (torch.zeros(3, 48, 48), "3 dimensions"),
        (torch.zeros(1, 3, 48, 48, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_bad_images_are_named(images, words):
    models.assert_refused(lambda: filled()(images), words)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: small_supernet(noise="gauss"), "noise='gauss'"),
        (lambda: path_weights(torch.zeros(2), 0.0, 0.0), "temperature=0.0 must be above 0"),
        (lambda: Architecture((32,), (("4d",), ("4d",))), "one entry for each stage"),
        (lambda: Architecture((32,), (("5d",),)), "kinds='5d'"),
        (lambda: Architecture((32,), (("identity",),)), "depths=(0,)"),
        (lambda: Architecture((32,), (("3d", "4d"),)), "3D blocks must stand at the end"),
        (lambda: Architecture((32, 32), (("3d",), ("3d",))), "3D blocks must stand at the end"),
        (
            lambda: train_supernet(small_supernet(), torch.zeros(1), torch.zeros(1), steps=0),
            "steps=0",
        ),
        (
            lambda: distillation_loss((torch.zeros(1, 2),) * 2, torch.zeros(1).long(), None, "hrd"),
            "kind='hrd'",
        ),
        (
            lambda: distillation_loss(
                (torch.zeros(1, 2),) * 2, torch.zeros(1).long(), None, alpha=2
            ),
            "alpha=2",
        ),
        (lambda: refimpl.create_model("efficientformer_l2"), "efficientformer_l"),
    ],
)
def test_bad_calls_are_named(call, words):
    models.assert_refused(call, words)
