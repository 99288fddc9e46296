"""EfficientViM: equal to the official code, its derivation, its dead parameter, its fused model."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import refimpl
from refimpl import golden
from refimpl.kernels.hsm_ssd import hsm_ssd
from refimpl.kernels.ssd import semiseparable, ssd
from refimpl.kernels.ssd.noncausal import nc_ssd
from refimpl.lab import measure
from refimpl.papers.efficientvim import (
    HSMSSD,
    NAMES,
    VARIANTS,
    Block,
    EfficientViM,
    PatchMerging,
    hidden_state_mixer,
)
from refimpl.viz import attention
from shared import models

STEM = "efficientvim"
RULES = NAMES["official"]
PARAMETERS = {
    "m1": 6_679_458,
    "m2": 13_903_842,
    "m4": 19_606_505,
    "m1_dist": 7_643_462,
    "m2_dist": 15_315_846,
    "m4_dist": 21_178_509,
}
SMALL = dict(img_size=32, num_classes=5, embed_dims=(16, 24), depths=(1, 2), state_dims=(5, 3))


def official_spec(model: nn.Module) -> dict[str, list[int]]:
    """The authors' names and shapes of our tensors, by rule: the name map the other way round."""
    spec = {}
    for name, tensor in model.state_dict().items():
        shape = list(tensor.shape)
        one_more = (
            re.search(r"(^|\.)(norms\.\d|norm)\.(weight|bias)$", name)
            and "dw" not in name
            and re.search(r"norms|blocks\.\d+\.norm|^norm\.", name)
        )
        name = re.sub(r"^patch_embed\.(\d)", lambda m: f"patch_embed.conv.{int(m[1]) // 2}", name)
        name = re.sub(
            r"downsample\.conv(\d)\.",
            lambda m: f"downsample.conv.{int(m[1]) - (m[1] != '3')}.",
            name,
        )
        name = name.replace("downsample.se.", "downsample.conv.2.")
        name = re.sub(r"mixer\.bcdt\.", "mixer.BCdt_proj.conv.", name)
        name = re.sub(r"mixer\.dw\.", "mixer.dw.conv.", name)
        name = re.sub(r"mixer\.(hz|out)$", r"mixer.\1_proj.conv.weight", name)
        name = re.sub(r"\.dw([12])\.", r".dwconv\1.", name)
        name = re.sub(r"ffn\.pw(\d)\.", r"ffn.fc\1.", name)
        name = re.sub(r"^head(_dist)?\.source_logits$", r"weights\1", name)
        name = re.sub(r"^head(_dist)?\.linears\.", r"heads\1.", name)
        if one_more:
            shape = [1, *shape, 1]
        if name.startswith("norms."):
            last = max(int(n.split(".")[1]) for n in model.state_dict() if n.startswith("norms."))
            shape += [1] * (name.split(".")[1] == str(last))
            name = name.replace("norms.", "norm.")
        if re.search(r"(BCdt_proj|hz_proj|out_proj)\.conv\.weight$", name):
            shape = [*shape[:2], 1]
        spec[name] = shape
    return spec


RENAMED = {"embed_dim": "embed_dims", "state_dim": "state_dims", "distillation": "distilled"}


def built(kwargs: dict) -> EfficientViM:
    """The model of the official constructor's arguments."""
    taken = {
        RENAMED.get(name, name): tuple(value) if isinstance(value, list) else value
        for name, value in kwargs.items()
    }
    return EfficientViM(**taken)


def filled(seed: int = 0, **kwargs) -> EfficientViM:
    """A small model whose every branch, norm and blend does something."""
    torch.manual_seed(seed)
    return models.lively(EfficientViM(**SMALL | kwargs))


def check_function(case):
    given = {name: torch.from_numpy(case.recorded(name)) for name in case.data["inputs"]}
    if "hz_weight" in given:
        for backend in ("naive", "numpy", "torch", "triton"):
            y, h = hsm_ssd(**given, backend=backend)
            y = y.unflatten(2, case.data["outputs"]["y"]["shape"][2:])
            case.check({"y": y, "h": h}, rtol=1e-5)
    elif "X" in given:
        length = given["X"].shape[1]
        for chunk in (1, 3, case.arguments["block_len"], length, 2 * length):
            for backend in ("naive", "numpy", "torch", "triton"):
                y, last = ssd(
                    given["X"],
                    given["A"],
                    given["B"],
                    given["C"],
                    chunk=chunk,
                    return_last_state=True,
                    backend=backend,
                )
                case.check({"Y": y, "final_state": last}, rtol=1e-5)
    else:
        case.check(
            nc_ssd(
                **given,
                positive=case.arguments["ssd_positive_dA"],
                groups=case.arguments["ngroups"],
            ),
            rtol=1e-5,
        )


def test_official(official_case):
    case, k = official_case, official_case.kwargs
    if not k:
        return check_function(case)
    if "d_model" in k:
        model, side = (
            HSMSSD(k["d_model"], k["state_dim"], k["ssd_expand"]),
            round(k["length"] ** 0.5),
        )
        run = lambda x: model(x.unflatten(2, (side, side)))  # noqa: E731
    elif "in_dim" in k:
        run = model = PatchMerging(k["in_dim"], k["out_dim"], k["ratio"])
    elif "dim" in k:
        run = model = Block(k["dim"], k["state_dim"], k["mlp_ratio"], k["ssd_expand"])
    else:
        run = model = built(k)
    case.fill(model.eval(), RULES, spec=case.data.get("state") or official_spec(model))
    case.check_params(model)
    images = case.inputs()[0]
    with torch.inference_mode():
        outputs = run(images)
        if "output.stem" in case.data["outputs"]:
            stem, maps, hidden = model.forward_intermediates(images)
            outputs = {"output.stem": stem}
            for i, (x, h) in enumerate(zip(maps, hidden, strict=True)):
                outputs |= {f"output.stage{i}_tokens": x, f"output.stage{i}_hidden": h}
        elif isinstance(outputs, tuple):
            outputs = {f"output.{i}": x for i, x in enumerate(outputs)}
        case.check(outputs)
        if isinstance(model, EfficientViM) and "output" in case.data["outputs"]:
            case.check(model.fuse()(images))
    if case.data.get("macs"):
        assert (
            measure.macs(run if run is model else Squared(model, side), images) == case.data["macs"]
        )


class Squared(nn.Module):
    """The layer on tokens (b, dim, side²), as the official classifier calls it."""

    def __init__(self, layer, side):
        super().__init__()
        self.layer, self.side = layer, side

    def forward(self, x):
        return self.layer(x.unflatten(2, (self.side, self.side)))


def test_spec_by_rule_is_the_recorded_one():
    case = golden.load(STEM, "m1_dist_eval")
    assert official_spec(built(case.kwargs)) == case.data["state"]


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameters(variant):
    with torch.device("meta"):
        model = refimpl.create_model(f"efficientvim_{variant}")
    assert measure.parameters(model) == PARAMETERS[variant]


def test_published_size_of_the_third_model():
    with torch.device("meta"):
        assert round(measure.parameters(refimpl.create_model("efficientvim_m3")) / 1e6, 1) == 16.6


@pytest.mark.parametrize(
    ("variant", "published"), [("m1", 239), ("m2", 355), ("m3", 656), ("m4", 1111)]
)
def test_multiply_adds_beside_the_published_flops(variant, published):
    """The README's FLOPs are multiply-adds; its counter adds about one in a hundred."""
    model = refimpl.create_model(f"efficientvim_{variant}").eval()
    counted = measure.macs(model, torch.randn(1, 3, model.img_size, model.img_size)) / 1e6
    assert 0.985 * published < counted < published


@pytest.mark.parametrize("variant", ["m1", "m3", "m4_dist"])
def test_checkpoints_under_official_names_load(variant):
    def checkpoint(source):
        names = official_spec(source).items()
        tensors = source.state_dict().values()
        return {
            "model": {
                name: tensor.reshape(shape)
                for (name, shape), tensor in zip(names, tensors, strict=True)
            }
        }

    models.assert_checkpoint_loads(
        lambda: refimpl.create_model(f"efficientvim_{variant}"), checkpoint
    )


@pytest.mark.parametrize("variant", ["m1", "m2", "m3", "m4"])
def test_timm_gives_the_same_output(timm, variant):
    name = f"efficientvim_{variant}"
    ours = refimpl.create_model(name)
    images = torch.randn(1, 3, ours.img_size, ours.img_size)
    models.assert_equals_peer(ours, timm.create_model(name), images, within=1e-5)


def test_the_heart_is_what_the_kernel_computes():
    """`hidden_state_mixer` beside the kernel's forms, arguments in another order."""
    b, d, n, length, e = 2, 6, 3, 10, 4
    x, B, C, dt = randn(b, d, length), randn(b, n, length), randn(b, n, length), randn(b, n, length)
    A, delta, W_hz, W_out = randn(n), randn(1), randn(2 * e, d), randn(d, e)
    y, h = hidden_state_mixer(x, B, C, dt, A, delta, W_hz, W_out)
    for backend in ("naive", "numpy", "torch"):
        got = hsm_ssd(x, dt, B, C, A, delta, W_hz, W_out, backend=backend)
        torch.testing.assert_close(got, (y, h))


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_dropping_the_decay_leaves_linear_attention():
    """NC-SSD is the matrix form with the mask gone: a product of rank n, weighted a token."""
    torch.manual_seed(0)
    x, dt, A, B, C, D = (
        randn(2, 9, 3, 4),
        randn(2, 9, 3).exp(),
        -randn(3).exp(),
        randn(2, 9, 5),
        randn(2, 9, 5),
        randn(3),
    )
    weight = (-dt * A).transpose(1, 2)  # (b, h, l)
    matrix = (C @ B.transpose(1, 2))[:, None] * weight[:, :, None]
    wanted = (matrix @ x.transpose(1, 2)).transpose(1, 2) + x * D[:, None]
    torch.testing.assert_close(nc_ssd(x, dt, A, B, C, D, positive=True), wanted)
    torch.testing.assert_close(
        nc_ssd(x, dt, A, B, C, D) - x * D[:, None],
        -(nc_ssd(x, dt, A, B, C, D, positive=True) - x * D[:, None]),
    )
    causal = semiseparable(torch.zeros(2, 9, 3, dtype=torch.float64), B[:, :, None], C[:, :, None])
    torch.testing.assert_close(
        causal[:, 0],
        (C @ B.transpose(1, 2)).tril(),
        msg="without decay the causal matrix is the lower triangle of the same product",
    )


def test_heads_take_groups_in_turn():
    """As in VSSD: head i reads group i mod groups."""
    torch.manual_seed(0)
    x, dt, A, B, C, D = (
        randn(1, 6, 4, 3),
        randn(1, 6, 4),
        randn(4),
        randn(1, 6, 10),
        randn(1, 6, 10),
        randn(4),
    )
    both = nc_ssd(x, dt, A, B, C, D, groups=2)
    for group in (0, 1):
        alone = nc_ssd(
            x[:, :, group::2],
            dt[:, :, group::2],
            A[group::2],
            *(m[..., 5 * group : 5 * group + 5] for m in (B, C)),
            D[group::2],
        )
        torch.testing.assert_close(both[:, :, group::2], alone)


def test_projections_commute_with_the_hidden_state_and_the_gate_does_not():
    torch.manual_seed(0)
    d, n, length = 12, 4, 50
    x, w, C, P, Q, Z = (
        randn(d, length),
        randn(n, length),
        randn(n, length),
        randn(d, d),
        randn(d, d),
        randn(d, d),
    )
    on_tokens, on_states = Q @ (((P @ x) @ w.T) @ C), (Q @ (P @ (x @ w.T))) @ C
    torch.testing.assert_close(on_tokens, on_states, rtol=1e-10, atol=1e-10)
    silu = torch.nn.functional.silu
    gated_tokens = Q @ (((P @ x) @ w.T @ C) * silu(Z @ x))
    h = x @ w.T
    gated_states = (Q @ ((P @ h) * silu(Z @ h))) @ C
    assert torch.dist(gated_tokens, gated_states) > 0.1 * gated_tokens.norm()


def test_A_is_dead():
    """A cancels in the softmax over tokens: no gradient but rounding, no influence."""
    model = filled()
    images = torch.randn(2, 3, 32, 32)
    mixers = [m for m in model.modules() if isinstance(m, HSMSSD)]
    before = model(images)
    before.square().sum().backward()
    assert max(m.A.grad.abs().max() for m in mixers) < 1e-4 * min(
        m.D.grad.abs().max() for m in mixers
    )
    with torch.no_grad():
        for m in mixers:
            m.A.normal_(std=5)
        assert torch.dist(model(images), before) <= 1e-5 * before.norm()


@pytest.mark.parametrize("variant", ["m1", "m4"])
def test_counted_multiply_adds_are_the_formula(variant):
    d, n = VARIANTS[variant]["embed_dims"][0], VARIANTS[variant]["state_dims"][0]
    for side in (7, 14, 28):
        length = side * side
        formula = 3 * length * n * d + 27 * length * n + 2 * length * n * d + 3 * n * d * d
        assert measure.macs(HSMSSD(d, n), torch.randn(1, d, side, side)) == formula


@pytest.mark.parametrize("variant", ["m1", "m4"])
def test_recorded_maps_are_one_a_state_and_change_nothing(variant):
    model, kwargs = refimpl.create_model(f"efficientvim_{variant}").eval(), VARIANTS[variant]
    images = torch.randn(1, 3, model.img_size, model.img_size)
    with torch.inference_mode():
        plain = model(images)
        with attention.record(model) as maps:
            assert torch.equal(model(images), plain)
        fused = model.fuse()
        with attention.record(fused) as again:
            fused(images)
    assert [m.heads for m in maps] == [
        n
        for n, depth in zip(kwargs["state_dims"], kwargs["depths"], strict=True)
        for _ in range(depth)
    ]
    for m in maps:
        whole = m.to_image()
        assert whole.shape[-2:] == (m.grid[0] * m.grid[1],) * 2 and torch.allclose(
            whole.sum(-1), torch.ones(()), atol=1e-5
        )
        assert torch.equal(whole[..., :1, :].expand_as(whole), whole), (
            "all tokens read the same states"
        )
    assert all(
        torch.allclose(a.weights, b.weights, atol=1e-5) for a, b in zip(maps, again, strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distilled": True},
        {"img_size": 48, "in_chans": 2},
        {"ssd_expand": 2.0, "mlp_ratio": 2.0},
    ],
)
def test_fused_model_is_equal_and_leaves_the_model_alone(options):
    model = filled(0, **options)
    images = torch.randn(3, model.in_chans, model.img_size, model.img_size)
    fused = models.assert_fused_is_equal(model, images)
    assert not any(name.endswith("mixer.A") for name in fused.state_dict()), "A cancels"


def test_fused_model_keeps_the_precision():
    fused = models.assert_fused_is_equal(filled().double(), torch.randn(2, 3, 32, 32).double())
    assert {t.dtype for t in fused.state_dict().values()} == {torch.float64}


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_next(step):
    step(filled, torch.randn(2, 3, 64, 64))


def test_forward_is_head_of_features():
    model, images = filled(distilled=True), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features = model.forward_features(images)
        assert [tuple(x.shape) for x in features] == [(2, 16, 5), (2, 24, 3), (2, 24, 1, 1)]
        assert torch.equal(model.forward_head(features), model(images))


def test_without_classes_pooled_sources_come_out():
    with torch.inference_mode():
        assert filled(num_classes=0)(torch.randn(2, 3, 32, 32)).shape == (2, 16 + 24 + 24)


def test_image_size_may_be_a_pair():
    assert EfficientViM(**SMALL | {"img_size": (32, 64)}).img_size == (32, 64)


def test_any_rectangle_is_mixed_where_the_official_classifier_needs_a_square():
    model = filled()
    with torch.inference_mode():
        for size in ((16, 16), (32, 48), (33, 50), (64, 17)):
            assert model(torch.randn(2, 3, *size)).shape == (2, 5)
        flat = torch.randn(1, 3, 32, 64)
        assert model.forward_features(flat)[-1].shape[2:] == (1, 2)


def test_starts_as_the_official_code_really_does():
    """Norm scales asked for as zero end up as 1; blends start at ½; A in 1 … 16, δ = 1."""
    model = refimpl.create_model("efficientvim_m1")
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    block = model.stages[0].blocks[0]
    assert (
        torch.allclose(torch.sigmoid(block.alpha), torch.tensor(0.500025))
        and block.mixer.D.item() == 1
    )
    assert (
        block.mixer.A.min() >= 1
        and block.mixer.A.max() <= 16
        and (model.head.source_logits.softmax(0) == 0.25).all()
    )


def test_every_parameter_but_A_gets_a_gradient_and_two_heads_in_training():
    model = filled(0, distilled=True, img_size=64).train()
    logits, distilled = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == distilled.shape == (2, 5)
    (logits.square().sum() + distilled.square().sum()).backward()
    assert not [
        name
        for name, p in model.named_parameters()
        if p.grad is None or (not name.endswith("mixer.A") and not p.grad.abs().sum() > 0)
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": 8}, "img_size=8"),
        ({"img_size": (32, 8)}, "img_size=(32, 8)"),
        ({"img_size": "32"}, "img_size='32'"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"embed_dims": (12, 24)}, "multiple of 8"),
        ({"depths": (1,)}, "one entry for each stage"),
        ({"depths": (1, 0)}, "depths=(1, 0) must be at least 1"),
        ({"state_dims": (5, 0)}, "state_dims=(5, 0) must be at least 1"),
        ({"ssd_expand": 0.0}, "expand·dim=0"),
    ],
)
def test_bad_arguments_are_named(change, words):
    models.assert_refused(lambda: EfficientViM(**SMALL | change), words)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 3, 8, 32), "at least 16"),
        (torch.zeros(1, 1, 32, 32), "1 channels"),
        (torch.zeros(3, 32, 32), "3 dimensions"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_bad_images_are_named(images, words):
    models.assert_refused(lambda: filled()(images), words)


def test_unknown_variant_is_named():
    models.assert_refused(lambda: refimpl.create_model("efficientvim_m5"), "efficientvim_m4")
