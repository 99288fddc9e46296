"""Next-ViT: its sizes, timm's weights, pooling along rows, norms before a map, the fused model."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from refimpl.bases.nextvit import (
    VARIANTS,
    ConvBlock,
    Embed,
    NextViT,
    PooledAttention,
    TransformerBlock,
    stage_plan,
)
from refimpl.deploy.norms import fold_norms_before
from refimpl.lab import measure
from shared import models

PARAMETERS = {"small": 31_763_368, "base": 44_818_856, "large": 57_874_344}
SMALL = dict(depths=(1, 2), embed_dims=(32, 32), mixed_dims=(32, 128), num_classes=5)


def filled() -> NextViT:
    torch.manual_seed(0)
    model = NextViT(**SMALL)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # it starts small, for norms that see batches
            nn.init.normal_(layer.weight, std=0.8 * layer.weight[0].numel() ** -0.5)
    return models.lively(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_of_the_three_models(variant):
    with torch.device("meta"):
        assert measure.parameters(NextViT(**VARIANTS[variant])) == PARAMETERS[variant]


def test_multiply_adds_at_224():
    """5.76 G for the small one, as counted in timm; products of attention are left out."""
    assert measure.macs(NextViT(), torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(
        5.76, abs=0.1
    )


def test_timm_gives_the_same_output(timm):
    theirs = timm.create_model("nextvit_small")
    models.assert_equals_peer(NextViT(), theirs, torch.randn(1, 3, 96, 96))


def timm_name(name: str) -> str:
    name = re.sub(r"^stem\.(\d)", lambda m: f"stem.{int(m[1]) // 2}", name)
    return name.replace("head.norm.", "norm.")


def test_checkpoints_under_timm_s_names_load():
    models.assert_checkpoint_loads(
        filled, lambda source: {timm_name(n): t for n, t in source.state_dict().items()}
    )


def test_fused_model_is_equal():
    models.assert_fused_is_equal(filled(), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("step", models.NEXT_STEPS, ids=lambda step: step.__name__)
def test_next(step):
    step(filled, torch.randn(2, 3, 32, 32))


def test_which_blocks_attend():
    assert stage_plan(3, first=True) == [False] * 3
    assert stage_plan(4, first=False) == [False, False, False, True]
    assert [i for i, attends in enumerate(stage_plan(10, first=False), 1) if attends] == [5, 10]


def test_keys_are_means_of_runs_along_a_row():
    """Four tokens of a row make one key; a square of 2×2 would mix two rows."""
    layer = PooledAttention(8, 8, reduction=2).eval()
    seen = []
    layer.k.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    rows = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1).expand(-1, -1, 8)
    with torch.inference_mode():
        layer(rows)
    assert torch.allclose(seen[0][0, :, 0], torch.arange(4.0), atol=1e-4), "one key for each row"


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1, bias=False)]
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_norms_go_into_the_map_behind_them(layer, count):
    norms = nn.Sequential(*(nn.BatchNorm2d(6) for _ in range(count)))
    models.lively(norms)
    x = torch.randn(2, 6, 5, 5)
    with torch.inference_mode():
        normed, folded = norms(x), fold_norms_before(norms, layer)
        if isinstance(layer, nn.Linear):
            x, normed = x.permute(0, 2, 3, 1), normed.permute(0, 2, 3, 1)
        assert models.error(folded(x), layer(normed)) < 1e-6


def test_a_norm_before_a_padded_kernel_is_refused():
    norms = [nn.BatchNorm2d(6)]
    models.assert_refused(
        lambda: fold_norms_before(norms, nn.Conv2d(6, 6, 3, padding=1)), "kernel_size=(3, 3)"
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NextViT(depths=(1, 2)), "equally long"),
        (lambda: NextViT(in_chans=0), "in_chans=0"),
        (lambda: NextViT(num_classes=0), "num_classes=0"),
        (lambda: ConvBlock(8, 40), "dim=40"),
        (lambda: TransformerBlock(32, 64), "dim=64 must be more than 64"),
        (lambda: PooledAttention(8, 8, 0), "reduction=0"),
        (lambda: Embed(8, 8, 3), "stride=3"),
        (lambda: NextViT(**SMALL)(torch.zeros(1, 1, 32, 32)), "1 channels"),
    ],
)
def test_bad_calls_are_named(call, words):
    models.assert_refused(call, words)
