"""EfficientVMamba: equal to the official code, its index maps, what a pixel sees, its refusals."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import refimpl
from refimpl import golden
from refimpl.kernels.selective_scan import selective_scan
from refimpl.lab import measure
from refimpl.papers.efficientvmamba import (
    ES2D,
    NAMES,
    VARIANTS,
    BiAttn,
    EfficientVMamba,
    EVSSBlock,
    InvertedResidual,
    PatchMerging,
    atrous_merge,
    atrous_scan,
)
from shared import models

STEM = "efficientvmamba"
RULES = NAMES["official"]
PARAMETERS = {"tiny": 6_493_660, "small": 11_273_688, "base": 33_717_136}
SMALL = dict(img_size=32, num_classes=5, embed_dim=16, depths=(1, 1, 1), state_dim=3)


def official_name(name: str) -> str:
    """The authors' name of one of our tensors, by rule: the name map the other way round."""
    stage = re.match(r"stages\.(\d)\.", name)
    if stage and int(stage[1]) >= 2:
        name = re.sub(
            r"^stages\.(\d)\.blocks\.(\d+)\.", lambda m: f"layers.{m[1]}.{int(m[2]) + 1}.", name
        )
        name = re.sub(
            r"^stages\.(\d)\.downsample\.", r"layers.\1.99.", name
        )  # the position there depends on the depth, the name map does not
    name = re.sub(r"^stages\.", "layers.", name)
    name = re.sub(
        r"^patch_norm\.", "patch_embed.2.", re.sub(r"^patch_embed\.", "patch_embed.0.", name)
    )
    name = re.sub(r"^(norm|head)\.", r"classifier.\1.", name)
    name = re.sub(r"^(layers\.[2-9]\.\d+\.)se\.fc1\.", r"\1se.conv_reduce.", name)
    name = re.sub(r"^(layers\.[2-9]\.\d+\.)se\.fc2\.", r"\1se.conv_expand.", name)
    name = re.sub(
        r"\.(pw1|pw2|dw)\.(conv|norm)\.",
        lambda m: f".conv_{m[1].replace('1', '')}.{int(m[2] == 'norm')}.",
        name,
    )
    return name.replace("scan.", "op.")


def official_part(model: nn.Module) -> dict[str, list[int]]:
    """Official names and shapes of a part of the model that another case does not record."""
    place = {
        ES2D: "stages.0.blocks.0.scan.",
        EVSSBlock: "stages.0.blocks.0.",
        BiAttn: "stages.0.blocks.0.se.",
        PatchMerging: "stages.0.downsample.",
    }
    place |= {InvertedResidual: "stages.2.blocks.0.", EfficientVMamba: ""}
    prefix = place[type(model)]
    return {
        official_name(prefix + name).removeprefix(official_name(prefix)): list(tensor.shape)
        for name, tensor in model.state_dict().items()
    }


def built(kwargs: dict) -> EfficientVMamba:
    return EfficientVMamba(
        embed_dim=kwargs["dims"],
        depths=tuple(kwargs["depths"]),
        state_dim=kwargs["d_state"],
        expand=kwargs["ssm_ratio"],
    )


def filled(seed: int = 0, **kwargs) -> EfficientVMamba:
    """A small model whose every branch and norm does something."""
    torch.manual_seed(seed)
    return models.lively(EfficientVMamba(**SMALL | kwargs))


def check_function(case):
    given = {name: torch.from_numpy(case.recorded(name)) for name in case.data["inputs"]}
    if "pixel_number" in given:
        assert case.arguments["step_size"] == 2, (
            "with any other step the official code loses pixels"
        )
        size = case.arguments["H"], case.arguments["W"]
        scanned = atrous_scan(given["pixel_number"])
        outputs = {
            "scan": scanned,
            "merged": atrous_merge(given["ys"], size).flatten(2),
            "merge_of_scan": atrous_merge(scanned, size).flatten(2),
        }
        case.check(outputs, rtol=0)
        return
    cotangent = given.pop("cotangent")
    for backend in ("torch", "triton"):
        leaves = {name: t.clone().requires_grad_() for name, t in given.items()}
        y, last = selective_scan(
            **leaves,
            delta_softplus=case.arguments["delta_softplus"],
            return_last_state=True,
            backend=backend,
        )
        (y * cotangent).sum().backward()
        case.check(
            {"y": y, "last_state": last} | {f"grad_{name}": t.grad for name, t in leaves.items()},
            rtol=1e-5,
        )


def test_official(official_case):
    case, k = official_case, official_case.kwargs
    if not k:
        return check_function(case)
    if "dims" in k:
        model = built(k)
    elif "d_model" in k:
        model = ES2D(k["d_model"], k.get("d_state", 16), k.get("ssm_ratio", 2.0), k.get("dt_rank"))
    elif "hidden_dim" in k:
        model = EVSSBlock(k["hidden_dim"])
    elif "act_ratio" in k:
        model = BiAttn(k["in_channels"], k["act_ratio"])
    elif "expand_ratio" in k:
        model = ChannelsFirst(InvertedResidual(k["in_channels"], k["expand_ratio"], k["se_ratio"]))
    else:
        model = PatchMerging(k["dim"], k["out_dim"])
    module = getattr(model, "block", model)
    case.fill(module.eval(), RULES, spec=case.data.get("state") or official_part(module))
    case.check_params(module)
    images = case.inputs()[0]
    with torch.inference_mode():
        case.check(model(images))
        if isinstance(model, EfficientVMamba):
            case.check(model.fuse()(images))
    if case.data.get("macs"):
        assert measure.macs(model, images) - read_outs(model, images) == case.data["macs"]


class ChannelsFirst(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def read_outs(model, images) -> int:
    """Multiply-adds of the products C·h in the scans (and of a Δ of rank one).

    Our counter sees them, the recorded count leaves them out.
    """
    counted = []

    def count(module, args, result):
        b, h, w, _ = args[0].shape
        inner_dim, rank = module.dt_projs_weight.shape[1:]
        # the official einsum for a rank of one multiplies without summing, and is not counted
        per_token = inner_dim * (module.A_logs.shape[1] + (rank == 1))
        counted.append(b * 4 * -(-h // 2) * -(-w // 2) * per_token)

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, ES2D)]
    with torch.inference_mode():
        model(images)
    for hook in hooks:
        hook.remove()
    return sum(counted)


def test_names_by_rule_are_the_recorded_ones():
    case = golden.load(STEM, "small")
    found, recorded = official_part(built(case.kwargs)), case.data["state"]
    assert {re.sub(r"\.99\.", ".6.", name): shape for name, shape in found.items()} == recorded


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters(variant):
    with torch.device("meta"):
        model = refimpl.create_model(f"efficientvmamba_{variant}")
    assert measure.parameters(model) == PARAMETERS[variant]


def test_small_is_the_released_model_and_not_the_configuration_file():
    """`vssm_efficient_small.yaml` says width 96, another model; the released weights have 64."""
    with torch.device("meta"):
        wide = refimpl.create_model("efficientvmamba_small", embed_dim=96)
        released = refimpl.create_model("efficientvmamba_small")
    assert round(measure.parameters(wide) / 1e6, 2) == 24.76
    assert round(measure.parameters(released) / 1e6, 2) == 11.27


@pytest.mark.parametrize(("variant", "published"), [("tiny", 0.8), ("small", 1.3), ("base", 4.0)])
def test_published_flops_add_multiply_adds_and_scan_operations(variant, published):
    """Multiply-adds; for the scans 9 operations per token, channel and state, 1 for the skip."""
    model = refimpl.create_model(f"efficientvmamba_{variant}").eval()
    image = torch.randn(1, 3, 224, 224)
    reads = read_outs(model, image)  # token · channel · state
    total = measure.macs(model, image) - reads + 9 * reads + reads / 16
    assert abs(total / 1e9 - published) < 0.051


@pytest.mark.parametrize("variant", ["tiny", "base"])
@pytest.mark.parametrize("older", [False, True])
def test_checkpoints_under_official_names_load(variant, older):
    changes = [
        (r"^patch_embed\.0", "patch_embed.proj"),
        (r"^patch_embed\.2", "patch_embed.norm"),
        (r"^classifier\.", ""),
        (r"(blocks\.\d+)\.norm", r"\1.ln_1"),
        (r"\.op\.", ".self_attention."),
    ]

    def checkpoint(source):
        state = {}
        for name, tensor in zip(official_part(source), source.state_dict().values(), strict=True):
            for pattern, old in changes if older else []:
                name = re.sub(pattern, old, name)
            state[f"module.{name}"] = tensor
        return {"state_dict": state}

    models.assert_checkpoint_loads(
        lambda: refimpl.create_model(f"efficientvmamba_{variant}"), checkpoint
    )


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9))
def test_merge_undoes_scan_on_any_map(height, width):
    x = torch.randn(2, 3, height, width)
    s = atrous_scan(x)
    assert s.shape == (2, 4, 3, -(-height // 2) * -(-width // 2)) and torch.equal(
        atrous_merge(s, (height, width)), x
    )
    assert s.numel() == 6 * (height + height % 2) * (width + width % 2), (
        "every pixel once, and the padding"
    )


def test_order_of_the_four_scans():
    s = atrous_scan(torch.arange(1.0, 17).reshape(1, 1, 4, 4))[0, :, 0].int().tolist()
    assert s == [[1, 3, 9, 11], [5, 13, 7, 15], [2, 4, 10, 12], [6, 14, 8, 16]]


def seen(layer, side=12, pixel=(6, 6)) -> torch.Tensor:
    """Which pixels the output at `pixel` depends on: (side, side) bool."""
    x = torch.randn(1, side, side, 16, dtype=torch.float64, requires_grad=True)
    layer(x)[0, pixel[0], pixel[1]].sum().backward()
    return x.grad[0].abs().sum(-1) > 0


def layers(count, convolution=True):
    torch.manual_seed(0)
    stack = nn.Sequential(*(ES2D(16) for _ in range(count))).double()
    for layer in stack if not convolution else ():
        layer.conv2d = nn.Identity()
    return stack


def test_a_scan_alone_sees_earlier_pixels_of_its_parity_class():
    mask = seen(layers(1, convolution=False))
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    own = (rows % 2 == 0) & (columns % 2 == 0)
    earlier = (rows < 6) | ((rows == 6) & (columns <= 6))
    assert torch.equal(mask, own & earlier)
    assert torch.equal(seen(layers(3, convolution=False)), mask), "stacked, too: classes never mix"


@pytest.mark.parametrize(("count", "share"), [(1, 0.611), (2, 0.965), (3, 1.0)])
def test_with_its_convolution_a_stack_sees_everything_after_three_layers(count, share):
    assert seen(layers(count)).double().mean().item() == pytest.approx(share, abs=1e-3)


def test_first_order_input_step_is_not_the_exact_hold():
    """B̄ = ΔB, where the zero-order hold has (e^{ΔA} − 1)/A · B: the ratio leaves 1 as Δ grows."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    for step in (0.001, 0.1, 1.0):
        y = selective_scan(one, step * one, -one[0], one, one)
        exact = 1 - torch.exp(torch.tensor(-step, dtype=torch.float64))
        assert y.item() == pytest.approx(step) and abs(exact / step - 1 + step / 2) < step * step


def test_only_a_step_of_two_visits_every_pixel():
    """The official slices start at offsets 0 and 1 of each step: 3 would miss most pixels."""
    pixels = torch.arange(36).reshape(6, 6)
    for step, visited in ((2, 36), (3, 16)):
        seen_pixels = {
            pixel
            for row in (0, 1)
            for column in (0, 1)
            for pixel in pixels[row::step, column::step].flatten().tolist()
        }
        assert len(seen_pixels) == visited


@pytest.mark.parametrize("options", [{}, {"in_chans": 2, "img_size": 36}])
def test_fused_model_is_equal_and_leaves_the_model_alone(options):
    model = filled(0, **options)
    images = torch.randn(2, model.in_chans, model.img_size, model.img_size)
    models.assert_fused_is_equal(model, images)


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_next(step):
    step(filled, torch.randn(2, 3, 32, 32))


def test_forward_is_head_of_features():
    model, images = filled(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model.forward_head(model.forward_features(images)), model(images))


def test_without_classes_features_come_out():
    with torch.inference_mode():
        assert filled(num_classes=0)(torch.randn(2, 3, 32, 32)).shape == (2, 64)


def test_image_size_may_be_a_pair():
    assert EfficientVMamba(**SMALL | {"img_size": (32, 64)}).img_size == (32, 64)


def test_any_map_whose_sides_are_multiples_of_four():
    model = filled()
    with torch.inference_mode():
        for size in ((4, 4), (32, 44), (20, 12)):
            assert model(torch.randn(2, 3, *size)).shape == (2, 5)
        assert model.forward_features(torch.randn(1, 3, 36, 20)).shape == (1, 64, 3, 2)


def test_every_parameter_gets_a_gradient():
    model = filled().train()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert not [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]


def test_drop_path_grows_and_acts_in_training_only():
    model = filled(0, drop_path_rate=0.5)
    assert [m.p for m in model.modules() if type(m).__name__ == "DropPath"] == [0.0, 0.25, 0.5]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(images), filled()(images))


def test_starts_as_the_paper_says():
    scan = ES2D(32)
    assert torch.allclose(scan.A_logs.exp(), torch.arange(1, 17.0).expand(256, -1))
    assert (scan.Ds == 1).all()
    dt = torch.nn.functional.softplus(scan.dt_projs_bias)
    assert 0.9e-3 < dt.min() < 3e-3 and 0.05 < dt.max() < 0.11
    assert scan.dt_projs_weight.abs().max() <= 2**-0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"img_size": 30}, "img_size=30"),
        ({"img_size": (32, 30)}, "img_size=30"),
        ({"embed_dim": 4}, "embed_dim=4"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"depths": (1, 0)}, "depths=(1, 0) must be at least 1"),
        ({"depths": ()}, "depths=()"),
        ({"state_dim": 0}, "state_dim=0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
    ],
)
def test_bad_arguments_are_named(change, words):
    models.assert_refused(lambda: EfficientVMamba(**SMALL | change), words)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 3, 30, 32), "multiples of 4"),
        (torch.zeros(1, 1, 32, 32), "1 channels"),
        (torch.zeros(3, 32, 32), "3 dimensions"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_bad_images_are_named(images, words):
    models.assert_refused(lambda: filled()(images), words)


def test_bad_calls_are_named():
    models.assert_refused(lambda: atrous_merge(torch.randn(1, 4, 1, 9), (4, 6)), "y must be")
    models.assert_refused(
        lambda: refimpl.create_model("efficientvmamba_huge"),
        "unknown model 'efficientvmamba_huge'",
    )
