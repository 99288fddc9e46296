"""TinyViT: equal to the official code; records and views; contraction; fused model, refusals."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import torch
from torch import nn

import refimpl
from refimpl import checks, golden
from refimpl.bases import fine_tuning
from refimpl.bases.levit import offset_index
from refimpl.bases.replayed_views import ReplayedRandom, mix_pairs
from refimpl.bases.teacher_records import TeacherRecords, pack
from refimpl.kernels.sparse_target_loss import sparse_target_loss
from refimpl.lab import measure
from refimpl.papers import tinyvit
from refimpl.papers.tinyvit import (
    NAMES,
    VARIANTS,
    Attention,
    Block,
    MBConv,
    PatchMerging,
    TinyViT,
    contract,
    contracted,
    distillation_loss,
)
from refimpl.viz import attention
from shared import models

STEM = "tinyvit"
RULES = NAMES["official"]
SMALL = dict(
    img_size=32,
    num_classes=5,
    embed_dims=(8, 12, 16),
    depths=(1, 2, 1),
    num_heads=(3, 4),
    window_size=(3, 2),
)


def filled(seed: int = 0, **kwargs) -> TinyViT:
    """A small model whose every branch and norm does something; its second stage is padded."""
    torch.manual_seed(seed)
    return models.lively(TinyViT(**SMALL | kwargs))


def official_name(name: str) -> str:
    """The authors' name of one of our tensors, by rule: the name map the other way round."""
    name = re.sub(r"^patch_embed\.", "patch_embed.seq.", name)
    name = re.sub(r"\.conv\.(?=weight)", ".c.", name)
    inside = r"(seq\.\d|conv\d|local_conv)\.norm\."
    return re.sub(inside, r"\1.bn.", name)


def timm_name(name: str) -> str:
    """timm's name of a tensor of ours."""
    name = re.sub(r"^patch_embed\.(\d)", lambda m: f"patch_embed.conv{int(m[1]) // 2 + 1}", name)
    name = re.sub(r"(patch_embed\.conv\d|conv\d|local_conv)\.norm\.", r"\1.bn.", name)
    name = re.sub(
        r"^layers\.(\d)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", name
    )
    name = re.sub(r"^layers\.", "stages.", name)
    return re.sub(r"^head\.", "head.fc.", name).replace("norm_head.", "head.norm.")


def official_spec(model: nn.Module) -> dict[str, list[int]]:
    return {official_name(name): list(tensor.shape) for name, tensor in model.state_dict().items()}


RENAMED = {"window_sizes": "window_size"}


def built(kwargs: dict) -> TinyViT:
    """The model of the official constructor's arguments, whose lists count the first stage too."""
    taken = {}
    for name, value in kwargs.items():
        name = RENAMED.get(name, name)
        if name in ("num_heads", "window_size"):
            value = value[1:]
        if name in inspect.signature(TinyViT).parameters:
            taken[name] = tuple(value) if isinstance(value, list) else value
    return TinyViT(**taken)


def part(k: dict) -> nn.Module:
    """A part of the network, from the official arguments."""
    if "expand_ratio" in k:
        return MBConv(k["in_chans"], k["expand_ratio"])
    if "out_dim" in k:
        return PatchMerging(k["dim"], k["out_dim"])
    if "key_dim" in k:
        return Attention(k["dim"], k["key_dim"], k["num_heads"], k["resolution"][0])
    grid = tuple(k["input_resolution"])
    return Block(k["dim"], k["num_heads"], grid, k["window_size"], k.get("mlp_ratio", 4.0))


def tokens(x: torch.Tensor) -> torch.Tensor:
    """(b, c, h, w) -> (b, h·w, c), as the authors pass maps on."""
    return x.flatten(2).mT


def test_official(official_case, tmp_path):
    case, k = official_case, official_case.kwargs
    if "state" not in case.data:
        return official_function(case, tmp_path)
    whole = "embed_dims" in k
    model = built(k) if whole else part(k)
    case.fill(model.eval(), RULES, spec=case.data["state"] or official_spec(model))
    case.check_params(model)
    (x,) = case.inputs()
    takes_map = isinstance(model, (Block, PatchMerging)) and x.dim() == 3
    if takes_map:
        grid = tuple(k["input_resolution"])
        x = x.mT.unflatten(2, grid)
    with torch.inference_mode():
        if "output" not in case.data["outputs"]:  # intermediate maps
            y, outputs = model.patch_embed(x), {}
            outputs["output.patch_embed"] = y
            for i, stage in enumerate(model.layers):
                y = stage(y)
                outputs[f"output.layer{i}"] = tokens(y)
            y = y.mean((2, 3))
            outputs |= {"output.pooled": y, "output.norm_head": model.norm_head(y)}
            case.check(outputs | {"output.logits": model(x)}, rtol=1e-5)
        else:
            if whole:
                case.check(model.fuse()(x), rtol=1e-5)
            y = model(x)
            case.check(tokens(y) if takes_map else y, rtol=1e-5)
    if case.data.get("macs"):
        assert measure.macs(model, x) == case.data["macs"]


def official_function(case, tmp_path) -> None:
    """Recorded functions of records, views and fine-tuning, told by what they record."""
    outputs = case.data["outputs"]
    if "record_bytes" in outputs:
        check_records(case)
    elif "first_uniform" in outputs:
        check_reader(case, tmp_path)
    elif "x_mixed" in outputs:
        check_mix(case)
    elif "resized" in outputs:
        biases, size = case.inputs()[0], case.arguments["to"]
        case.check(fine_tuning.resize_bias(biases, size), rtol=1e-6)
    elif "mapping" in case.arguments:
        mapping = case.arguments["mapping"]
        case.check(fine_tuning.remap_logits(case.inputs()[0], mapping), rtol=1e-7)
    elif "layer_lr_decay" in case.arguments:
        check_layer_decay(case)
    else:
        case.check({name: stream(int(name.split("_")[1])) for name in outputs}, 1e-12)


def check_records(case) -> None:
    """Bytes, label, loss and gradient."""
    k, classes = case.arguments["K"], case.arguments["C"]
    seeds = case.recorded("seeds")
    records = pack(seeds, torch.from_numpy(case.recorded("teacher_logits")).softmax(1), k)
    raw = np.frombuffer(records.tobytes(), np.uint8).reshape(len(seeds), -1)
    indices = torch.from_numpy(records["classes"].astype(np.int64))
    p = torch.from_numpy(records["probabilities"].astype(np.float32))
    rest = (1 - p.sum(1, keepdim=True)) / (classes - k)
    logits = torch.from_numpy(case.recorded("student_logits")).requires_grad_()
    loss = distillation_loss(logits, indices, p)
    (grad,) = torch.autograd.grad(loss, logits)
    outputs = {"record_bytes": raw, "indices": records["classes"], "values": p, "minor": rest}
    outputs["soft_label"] = rest.expand(-1, classes).scatter(1, indices, p)
    outputs |= {"loss": loss, "grad_student": grad}
    case.check(outputs, rtol=1e-6)
    assert np.array_equal(raw, case.recorded("record_bytes"))


def stream(seed: int) -> np.ndarray:
    """Numbers as the recorded case draws them."""
    rng = ReplayedRandom(seed)
    drawn = [rng.random(), rng.random(), rng.uniform(-2, 3), rng.randint(0, 9), rng.randint(-5, 5)]
    drawn += [rng.gauss(0, 1), rng.randint(0, 223), rng.beta(0.8, 0.8), rng.random(), rng.random()]
    return np.array(drawn)


def check_mix(case) -> None:
    """Mixed images and the ratios drawn; targets follow from these."""
    a = case.arguments
    x, target, seeds = case.inputs()
    names = ("mixup_alpha", "cutmix_alpha")
    mixed, drawn = mix_pairs(
        *(x, seeds.tolist()),
        **{name: a[name] for name in names},
        probability=a["prob"],
        switch_probability=a["switch_prob"],
    )
    off = a["label_smoothing"] / a["num_classes"]
    label = torch.full((len(x), a["num_classes"]), off)
    label[torch.arange(len(x)), target] += 1 - a["label_smoothing"]
    ratio = torch.tensor(drawn).repeat_interleave(2)[:, None]
    partner = label.flip(0)  # of the whole batch, where images are mixed within pairs
    outputs = {"x_mixed": mixed, "lam": np.array(drawn)}
    outputs["target_mixed"] = ratio * label + (1 - ratio) * partner
    outputs["use_cutmix"] = case.recorded("use_cutmix")  # shown by the mixed images
    case.check(outputs, rtol=1e-6)


def check_reader(case, tmp_path) -> None:
    """Files as the authors write them, without ours beside them, give what their reader gives."""
    kept = case.arguments["K"]
    seeds, classes, p = (case.recorded(name) for name in ("seeds", "logits_index", "logits_value"))
    keys = [f"picture {i}" for i in range(len(seeds))]
    folder = tmp_path / f"logits_top{kept}_epoch0"
    folder.mkdir()
    (folder / "rank0-keys.txt").write_text("\n".join(keys) + "\n", encoding="utf-8")
    with (folder / "rank0-values.bin").open("wb") as file:
        for row in zip(seeds.astype("<i4"), classes.astype("<i2"), p.astype("<f2"), strict=True):
            file.writelines(part.tobytes() for part in row)
    reader = TeacherRecords(tmp_path, int(classes.max()) + 1, kept)
    found = reader.read(0, keys)
    assert found.seeds.tolist() == seeds.tolist()
    assert reader.verify(0) == len(keys)
    firsts = np.array([ReplayedRandom(int(seed)).random() for seed in found.seeds])
    outputs = {"first_uniform": firsts, "logits_index": found.classes}
    case.check(outputs | {"logits_value": found.probabilities}, rtol=1e-12)


def check_layer_decay(case) -> None:
    """Factors by official module, and which tensors are not decayed."""
    model = refimpl.create_model(f"tinyvit_{case.arguments['variant'].removesuffix('_224')}")
    decay = case.arguments["layer_lr_decay"]
    groups = fine_tuning.parameter_groups(model, 1.0, 0.5, decay)
    owner = {id(p): group for group in groups for p in group["params"]}
    named = {official_name(name): owner[id(p)] for name, p in model.named_parameters()}
    assert len(named) == sum(len(group["params"]) for group in groups)
    for module, factors in case.data["outputs"].items():
        found = {group["lr"] for name, group in named.items() if name.startswith(module + ".")}
        assert sorted(found) == pytest.approx(sorted(factors)), module
    undecayed = {name for name, group in named.items() if not group["weight_decay"]}
    assert undecayed == set(case.data["no_weight_decay"])


def test_recorded_targets_are_mixed_with_those_of_the_mirrored_batch():
    """Image 1 is mixed with image 0; its recorded target holds image 4's class, not image 0's."""
    case = golden.load(STEM, "mixup_pair2")
    target = case.recorded("target")
    mixed = case.recorded("target_mixed")
    smallest = mixed.min()
    for i, row in enumerate(mixed):
        named = set(np.flatnonzero(row > smallest + 1e-6))
        assert named == {target[i], target[len(target) - 1 - i]}
    assert target[0] not in np.flatnonzero(mixed[1] > smallest + 1e-6)


@pytest.mark.parametrize(
    ("variant", "classes", "params"),
    [
        ("5m", 1000, 5_392_764),
        ("21m", 1000, 21_198_568),
        ("21m_384", 1000, 21_230_488),
        ("21m_512", 1000, 21_268_120),
        ("5m", 21_841, 12_082_725),
        ("21m", 21_841, 33_223_825),
    ],
)
def test_parameters(variant, classes, params):
    model = models.on_meta(f"tinyvit_{variant}", num_classes=classes)
    assert measure.parameters(model) == params


def test_the_middle_model_has_the_published_size():
    model = models.on_meta("tinyvit_11m")
    assert round(measure.parameters(model) / 1e6) == 11
    macs = measure.macs(model, torch.zeros(1, 3, 224, 224, device="meta"))
    assert round(macs / 1e9, 1) == 2.0


@pytest.mark.parametrize("names", [official_name, timm_name])
@pytest.mark.parametrize("variant", ["5m", "21m_384"])
def test_checkpoints_under_foreign_names_load(names, variant):
    """As the authors save them: under `model`, with the index buffers of older files."""

    def checkpoint(source):
        state = {"layers.1.blocks.0.attn.attention_bias_idxs": offset_index(7)}
        state |= {names(name): tensor for name, tensor in source.state_dict().items()}
        return {"model": state}

    models.assert_checkpoint_loads(lambda: refimpl.create_model(f"tinyvit_{variant}"), checkpoint)


@pytest.mark.parametrize("variant", ["5m", "11m", "21m_384"])
def test_timm_gives_the_same_output(timm, variant):
    name, _, size = variant.partition("_")
    theirs = timm.create_model(f"tiny_vit_{name}_{size or 224}", num_classes=1000)
    ours = refimpl.create_model(f"tinyvit_{variant}")
    models.assert_equals_peer(ours, theirs, torch.randn(1, 3, ours.img_size, ours.img_size))


def test_no_stale_bias_after_loading():
    """The official code gathers the bias in `eval()`: weights loaded later keep the old one."""
    model, other = filled(0), filled(1)
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        model(images)
        model.load_state_dict(other.state_dict())
        assert torch.equal(model(images), other(images))
        model.layers[1].blocks[0].attn.attention_biases += torch.randn(3, 9)
        assert not torch.equal(model(images), other(images))
    fused = model.fuse()
    left = [name for name, _ in fused.named_parameters() if "attention_biases" in name]
    assert left == [], "a fused model has no table that its stored bias could differ from"


def test_shortcut_passes_the_last_activation():
    """With a branch of zero a block is GELU, not the identity."""
    block = MBConv(6).eval()
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        assert torch.equal(block(x), nn.functional.gelu(x))


def padded_block() -> Block:
    torch.manual_seed(0)
    return models.lively(Block(12, 3, (4, 5), 3))


def test_padding_takes_part_with_the_bias_of_the_norm():
    """Moving the norm's bias moves keys that lie beyond the map; unpadded windows see none."""
    block = padded_block()
    x = torch.randn(1, 12, 4, 5)
    with torch.inference_mode(), attention.record(block) as maps:
        block(x)
    (found,) = maps
    last = found.weights[3, 0, 0]  # its window holds one row and two columns of the map
    beyond = [i for i in range(9) if i // 3 >= 1 or i % 3 >= 2]
    assert (last[beyond] > 0).all()
    assert last[beyond].sum() > 0.3
    assert found.to_image().shape == (1, 3, 20, 20)


def test_only_the_local_convolution_joins_windows():
    """Without it, a pixel changes its own window alone."""
    block = models.lively(Block(12, 3, (6, 6), 3))
    x = torch.randn(1, 12, 6, 6)
    changed = x.clone()
    changed[0, 0, 0, 0] += 1  # all channels alike would be lost in the norm
    with torch.no_grad():
        joined = (block(changed) - block(x)).abs().amax((0, 1)) > 0
        block.local_conv = nn.Identity()
        apart = (block(changed) - block(x)).abs().amax((0, 1)) > 0
    window = torch.zeros(6, 6, dtype=torch.bool)
    window[:3, :3] = True
    assert torch.equal(apart, window)
    assert joined[:4, :4].all() and not joined[4:].any() and not joined[:, 4:].any()


@pytest.mark.parametrize("classes", [2, 7])
def test_loss_is_a_cross_entropy_whose_gradient_is_softmax_less_label(classes):
    logits = torch.randn(3, classes, dtype=torch.float64, requires_grad=True)
    p, indices = torch.randn(3, classes).double().softmax(1).topk(2)
    loss = distillation_loss(logits, indices, p)
    label = ((1 - p.sum(1, keepdim=True)) / max(classes - 2, 1)).expand(-1, classes)
    label = label.scatter(1, indices, p)
    assert torch.allclose(label.sum(1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(loss, nn.functional.cross_entropy(logits, label))
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(grad, (logits.softmax(1) - label) / 3)
    assert torch.allclose(loss, sparse_target_loss(logits, indices, p).mean())


def test_a_sum_above_one_is_harmless():
    """float16 can push the kept mass above 1: the rest is negative, the loss finite."""
    p = torch.tensor([[0.9, 0.1005]])
    logits = torch.randn(1, 30, requires_grad=True)
    loss = distillation_loss(logits, torch.tensor([[3, 4]]), p)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and grad.isfinite().all()
    assert float(grad.sum()) == pytest.approx(0, abs=1e-6)


def test_contraction_changes_one_factor_as_little_as_it_takes():
    start = tinyvit.DEFAULTS | SMALL | {"embed_dims": (32, 64, 96), "num_heads": (2, 3)}

    def parameters(config):
        with torch.device("meta"):
            return measure.parameters(TinyViT(**config))

    most = 0.9 * parameters(start)
    options = tinyvit.candidates(start, lambda config: parameters(config) <= most)
    assert len(options) >= 4
    for option in options:
        changed = [name for name in tinyvit.FACTORS if option[name] != start[name]]
        assert len(changed) == 1
        assert parameters(option) <= most
    chosen = contract(
        start, [(most, 0), (0.6 * most, 0)], lambda model: -len(model.layers[1].blocks)
    )
    assert chosen[0] in options
    assert parameters(chosen[0]) <= most and parameters(chosen[1]) <= 0.6 * most
    steps = [
        [name for name in tinyvit.FACTORS if new[name] != old[name]]
        for old, new in zip([start, *chosen], chosen, strict=False)
    ]
    assert all(len(changed) == 1 for changed in steps)


def test_contraction_keeps_the_limit_of_throughput():
    start = SMALL | {"embed_dims": (32, 64), "num_heads": (2,), "depths": (1, 3)}
    start["window_size"] = (3,)

    def throughput(model):
        return 10 / sum(len(stage.blocks) for stage in model.layers)

    (chosen,) = contract(start, [(1e9, 10 / 3)], lambda model: 0.0, throughput)
    assert sum(chosen["depths"]) == 3


def test_contraction_reaches_the_published_family():
    """From 21M to 5M by widths alone, a head at a time."""
    config = tinyvit.DEFAULTS | VARIANTS["21m"]
    for stage, width in enumerate(VARIANTS["5m"]["embed_dims"]):
        while config["embed_dims"][stage] > width:
            config = contracted(config, "embed_dims", stage)
    assert config == tinyvit.DEFAULTS | VARIANTS["5m"]
    assert contracted(config | {"mlp_ratio": 1}, "mlp_ratio") is None


def test_limits_that_nothing_keeps_are_refused():
    models.assert_refused(
        lambda: contract(SMALL, [(10, 0.0)], lambda model: 0.0), "limits=(10, 0.0)"
    )


def test_biases_and_classifier_move_to_another_model():
    """224 → 384 pixels: all tensors but the bias tables fit; these are resized."""
    small, large = filled(window_size=(3, 2)), filled(1, window_size=(6, 4), img_size=64)
    state = fine_tuning.resize_biases(small.state_dict(), large)
    large.load_state_dict(state)
    table = small.layers[1].blocks[0].attn.attention_biases
    assert torch.equal(
        large.layers[1].blocks[0].attn.attention_biases, fine_tuning.resize_bias(table, 6)
    )
    assert torch.equal(fine_tuning.resize_bias(table, 3), table)
    assert torch.equal(small.head.weight, large.head.weight)


def test_a_head_for_other_classes_takes_rows_or_their_mean():
    head = nn.Linear(4, 6)
    new = fine_tuning.remap_head(head, [5, -1, 0, 0])
    assert torch.equal(new.weight[0], head.weight[5]) and torch.equal(new.bias[2], head.bias[0])
    mean = (head.weight[5] + 2 * head.weight[0]) / 3
    assert torch.allclose(new.weight[1], mean)
    models.assert_refused(lambda: fine_tuning.remap_head(head, [-1, -1]), "not all −1")
    models.assert_refused(lambda: fine_tuning.remap_head(head, [6]), "places from 0 to 5")
    models.assert_refused(lambda: fine_tuning.remap_logits(torch.ones(1, 3), [4]), "from 0 to 3")


@pytest.mark.parametrize("options", [{}, {"img_size": (32, 64), "in_chans": 2}, {"num_classes": 0}])
def test_fused_model_is_equal_and_leaves_the_model_alone(options):
    model = filled(0, **options)
    images = torch.randn(3, model.in_chans, *checks.image_size(model.img_size))
    models.assert_fused_is_equal(model, images)


def test_fused_model_keeps_the_precision():
    models.assert_fused_is_equal(filled().double(), torch.randn(2, 3, 32, 32).double())


@pytest.mark.parametrize("fused", [False, True])
def test_recorded_maps_are_layers_by_heads(fused):
    model = filled(img_size=(32, 48))
    images = torch.randn(2, 3, 32, 48)
    model = model.fuse() if fused else model
    with torch.inference_mode():
        plain = model(images)
        with attention.record(model) as maps:
            assert torch.equal(model(images), plain)
    assert [(m.heads, m.grid) for m in maps] == [(3, (4, 6)), (3, (4, 6)), (4, (2, 3))]
    for found in maps:
        n = found.grid[0] * found.grid[1]
        assert found.to_image().shape == (2, found.heads, n, n)


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_next(step):
    step(filled, torch.randn(2, 3, 32, 32))


def test_starts_as_the_official_code_does():
    """A branch of convolutions starts at zero; bias tables are zero; weights deviate by 0.02."""
    model = refimpl.create_model("tinyvit_5m")
    assert not model.layers[0].blocks[0].conv3.norm.weight.any()
    block = model.layers[2].blocks[0]
    assert not block.attn.attention_biases.any() and (block.local_conv.norm.weight == 1).all()
    assert float(block.mlp.fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not model.head.bias.any()


def test_drop_path_rises_over_all_blocks():
    model = TinyViT(**SMALL, drop_path_rate=0.3)
    rates = [block.drop_path.p for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": 40}, "img_size=40 must be a positive multiple of 16"),
        ({"img_size": "32"}, "img_size='32'"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"embed_dims": (7, 12, 16)}, "embed_dims[0]=7 must be a positive multiple of 2"),
        ({"depths": (1, 1)}, "one entry for each stage"),
        ({"num_heads": (3,)}, "one entry for each stage"),
        ({"depths": (1, 0, 1)}, "depths=(1, 0, 1) must be at least 1"),
        ({"num_heads": (5, 4)}, "num_heads=5"),
        ({"window_size": (0, 2)}, "window_size=0"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
    ],
)
def test_bad_arguments_are_named(change, words):
    models.assert_refused(lambda: TinyViT(**SMALL | change), words)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 3, 48, 48), "48×48"),
        (torch.zeros(1, 1, 32, 32), "1 channels"),
        (torch.zeros(3, 32, 32), "3 dimensions"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_bad_images_are_named(images, words):
    models.assert_refused(lambda: filled()(images), words)


def test_a_block_names_the_map_that_it_was_built_for():
    models.assert_refused(lambda: padded_block()(torch.randn(1, 12, 5, 4)), "a grid of 4×5")
