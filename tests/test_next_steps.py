"""What a user does next with a model works, or is refused in plain words: for every model.

A model of `list_models()` is found here by itself. By default the smallest of each family is taken,
with one block a stage and small images; with `--all-variants` every variant at its full depth.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

import refimpl
from refimpl import checks
from shared import models

SIDES = (64, 96, 128, 224)  # pixels: the first that a model can be built for
CLASSES = 10
ROUNDING = {  # in bfloat16
    "efficientnet": 0.15,  # the random lite0, all ReLU6, moves by 0.11
    "building_unetpp": 0.15,  # such an encoder, and a decoder behind it: 0.12
}
KINKS = {"building_unetpp": 1e-8}  # a million ReLUs: the usual difference meets a kink of some
QUIET = {"mpcvit": 4.0, "turbovit": 4.0}  # starts that hardly hear the image: weights × this
STEEP = {"medvitv2": 0.3}  # in bfloat16: each KAN's narrow bumps treble the rounding of its input
STRAIGHT_THROUGH = ("shiftaddvit",)  # codes have no slope, and get another's gradient
WRONG = {  # sizes that no model can have
    "img_size": (0, "large", (64,), 64.5),
    "num_classes": (-1, "10", 2.0),
    "in_chans": (0, "3", None),
}
ALSO = ("efficientnet_b0",)  # gates and another padding; the smallest, lite0, has neither


@dataclass(frozen=True)
class Other:
    """A model whose input is no image: how it is built small, and what it takes."""

    small: dict
    inputs: Callable[[nn.Module, int], Tensor]  # of a model and a batch size


OTHERS = {
    "dvt": Other(
        dict(noise_map_height=4, noise_map_width=5),
        lambda model, batch: torch.randn(batch, *model.grid, model.feat_dim),
    ),
    "llama": Other(
        dict(vocab_size=50, embed_dim=32, hidden_dim=48, depth=2, num_heads=4, num_kv_heads=2),
        lambda model, batch: torch.randint(model.vocab_size, (batch, 12)),
    ),
    "vivit": Other(
        dict(num_frames=4, img_size=32, num_classes=10, embed_dim=32, depth=2, num_heads=4),
        lambda model, batch: torch.randn(batch, 4, 3, 32, 32),
    ),
    "toc3d": Other(  # a detector's backbone: features of cameras' images, of any size
        dict(embed_dim=32, depth=6, num_heads=2, window_size=3, global_window_size=4),
        lambda model, batch: torch.randn(batch, model.in_chans, 64, 80),
    ),
}


def pytest_generate_tests(metafunc):
    """`model`: a stem, whose smallest model is taken, or with `--all-variants` a model's name."""
    every = metafunc.config.getoption("all_variants")
    if "model" in metafunc.fixturenames:
        names = refimpl.list_models() if every else [*models.families(), *ALSO]
        metafunc.parametrize("model", names)
    if "step" in metafunc.fixturenames:
        steps = models.NEXT_STEPS + models.MORE_STEPS + models.SLOW_STEPS * every
        metafunc.parametrize("step", steps, ids=lambda step: step.__name__)


def named(model: str) -> tuple[str, str]:
    """Stem and name."""
    families = models.families()
    if model in families:
        return model, models.smallest(model)
    return next(stem for stem, names in families.items() if model in names), model


@cache
def options(model: str) -> dict:
    """Arguments of `create_model` that make it small; the model must exist in that form."""
    stem, name = named(model)
    if stem in OTHERS:
        return OTHERS[stem].small
    short = model == stem or model in ALSO
    for depths in (*(few_blocks(name) if short else []), {}):
        for side in SIDES:
            small = dict(img_size=side, num_classes=CLASSES) | depths
            try:
                models.on_meta(name, **small)
            except ValueError:
                continue
            return small
    pytest.fail(f"{name} takes images of none of {SIDES} pixels; if it takes none, say in OTHERS")


def few_blocks(name: str) -> list[dict]:
    """Arguments for the same model with fewer blocks, as its constructor counts them."""
    path, variant = refimpl.model_index()[name]
    module = importlib.import_module(path)
    taken = inspect.signature(module.MODEL).parameters
    given = {key: p.default for key, p in taken.items()} | module.VARIANTS[variant]
    if isinstance(given.get("depths"), tuple):
        return [{"depths": tuple(1 for _ in given["depths"])}]
    if isinstance(given.get("depth"), float):
        return [{"depth": 0.5}]  # a multiple
    if "hidden_dims" in given:  # a width for every block
        widths = ("num_heads", "qk_dims", "value_dims", "hidden_dims")
        return [{name: given[name][:3] for name in widths}]
    if "local_up_to_layer" in given:
        return [{"depth": 3, "local_up_to_layer": 2}]
    return [{"depth": 3}, {"depth": 6}]


def build(model: str, **more) -> nn.Module:
    torch.manual_seed(0)
    stem, name = named(model)
    made = models.lively(refimpl.create_model(name, **options(model) | more))
    if stem in QUIET:
        with torch.no_grad():
            for layer in made.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight *= QUIET[stem]
    if stem in OTHERS or any(parameter.is_meta for parameter in made.parameters()):
        return made
    size = checks.image_size((options(model) | more)["img_size"])
    return models.calibrated(made, torch.randn(8, made.in_chans, *size))


def inputs(model: str, batch: int = 4) -> Tensor:
    stem, name = named(model)
    torch.manual_seed(1)
    if stem in OTHERS:
        return OTHERS[stem].inputs(models.on_meta(name, **options(model)), batch)
    side = options(model)["img_size"]
    return torch.randn(batch, 3, side, side)


def test_outputs_depend_on_inputs(model):
    """Else the other tests would pass whatever the model did."""
    with torch.inference_mode():
        first, second, *_ = build(model)(inputs(model))
    assert 0.03 < models.error(first, second) < 30


def test_next_step(model, step):
    stem, _ = named(model)
    if step is models.autocast_runs_everywhere:
        pixels = options(model)["img_size"] ** 2 if stem in models.DENSE else 1
        rounding = STEEP.get(stem, ROUNDING.get(stem, 0.1))
        step = partial(step, rounding=rounding, loss_scale=1 / pixels)
    if step is models.half_precision_runs and stem in STEEP:
        step = partial(step, rounding=STEEP[stem])
    if step is models.gradient_of_one_image_is_right:
        step = partial(step, slope_too=stem not in STRAIGHT_THROUGH, length=KINKS.get(stem, 1e-6))
    step(partial(build, model), inputs(model))


def test_other_classes_channels_and_sizes(model):
    """What a constructor is asked for: computed, or refused with the argument's name."""
    stem, _ = named(model)
    if stem in OTHERS:
        pytest.skip("takes no images")
    side = options(model)["img_size"]
    with torch.inference_mode():
        logits = build(model, num_classes=7, in_chans=1)(torch.randn(2, 1, side, side))
        assert logits.shape == models.logits_shape(stem, 2, 7, (side, side))
        pair = build(model, img_size=(side, side))
        assert torch.equal(pair(inputs(model)), build(model)(inputs(model)))
        for height, width in ((side, 2 * side), (224, 224)):
            try:
                other = build(model, img_size=(height, width))
            except ValueError as refusal:
                assert f"img_size={(height, width)}" in str(refusal)
            else:
                shape = models.logits_shape(stem, 1, CLASSES, (height, width))
                assert other(torch.randn(1, 3, height, width)).shape == shape
    for argument, values in WRONG.items():
        for wrong in values:
            with pytest.raises(ValueError, match=f"{argument}="):
                build(model, **{argument: wrong})


def test_without_classes_features_come_out(model):
    """What the classifier would read, also from the fused model."""
    stem, _ = named(model)
    if stem in OTHERS:
        pytest.skip("takes no images")
    headless = build(model, num_classes=0)
    with torch.inference_mode():
        features = headless(inputs(model))
        assert features.dim() == (4 if stem in models.DENSE else 2)
        assert features.shape[0] == 4 and features.shape[1] != CLASSES
        assert torch.equal(
            features, headless.forward_head(headless.forward_features(inputs(model)))
        )
        assert models.error(headless.fuse()(inputs(model)), features) < 1e-4


def test_blocks_are_dropped_in_training_alone(model):
    """Stochastic depth, where the paper has it."""
    kind = inspect.signature(type(models.on_meta(named(model)[1])).__init__).parameters
    if "drop_path_rate" not in kind:
        pytest.skip("no stochastic depth")
    dropping = build(model, drop_path_rate=0.5)
    whole = build(model, drop_path_rate=0.0)  # calibrated outside of the next mode, like the other
    images = inputs(model)
    with torch.inference_mode():
        assert torch.equal(dropping(images), whole(images))
        dropping.train()
        first, *others = [models.logits_of(dropping(images)) for _ in range(8)]
        assert not all(torch.equal(first, other) for other in others)
    models.assert_refused(lambda: build(model, drop_path_rate=1.0), "drop_path_rate=1.0")
