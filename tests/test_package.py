"""The front door, and what holds for every model: interface, refusals, gradients, maps, fusing."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import refimpl
from refimpl import checks, weights
from refimpl.catalogue import PARTS
from refimpl.layers import Probe
from refimpl.viz import attention
from shared.models import families, logits_shape, on_meta, smallest

HEAVY = (
    "matplotlib",
    "sklearn",
    "skimage",
    "triton",
    "scipy",
    "IPython",
    "pandas",
    "timm",
    "einops",
)
IMPORT = """
import sys, time, torch
begun = time.perf_counter()
import refimpl
print(time.perf_counter() - begun, *sys.modules)
"""


every_family = pytest.mark.parametrize("stem", families())


@every_family
def test_an_array_of_numpy_is_no_image(stem):
    model = image_model(stem)
    with pytest.raises(ValueError, match="images must be a torch.Tensor, got a numpy.ndarray"):
        model(images_for(model).numpy())


def build(name: str, **kwargs):
    torch.manual_seed(0)
    return refimpl.create_model(name, **kwargs).eval()


def image_model(stem: str, **kwargs):
    """The family's smallest model; skips the test where its input is no image."""
    name = smallest(stem)
    if not hasattr(on_meta(name), "img_size"):
        pytest.skip("takes no images")
    return build(name, **kwargs)


def images_for(model, batch: int = 1):
    torch.manual_seed(1)
    return torch.randn(batch, model.in_chans, *checks.image_size(model.img_size))


def test_import_is_light():
    """No heavy library, no model, and a budget of time: one of the two that tests hold."""
    command = [sys.executable, "-c", IMPORT]
    runs = []
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
        seconds, *imported = done.stdout.split()
        runs.append(float(seconds))
    assert not set(HEAVY) & set(imported)
    rooms = {name for name in imported if name.startswith("refimpl.")}
    assert not {
        name for name in rooms if not name.startswith(("refimpl.catalogue", "refimpl.checks"))
    }
    assert min(runs) < 0.2


def test_front_door():
    stems = [stem for part in PARTS.values() for stem in part.stems]
    assert [paper.stem for paper in refimpl.list_papers()] == stems
    assert refimpl.paper("efficientvit").name == "EfficientViT"
    assert refimpl.list_models("efficientvit_m*") == [f"efficientvit_m{i}" for i in range(6)]
    assert refimpl.list_models("nothing*") == []
    assert set(refimpl.list_models("*_m0")) <= set(refimpl.list_models())


def test_a_name_that_two_claim_is_refused(monkeypatch):
    """`deit_lt` could name a model of the base `deit`, or of the paper `deit_lt`: say so."""
    paper = replace(refimpl.paper("efficientvit"), stem="deit", variants=("tiny",))
    monkeypatch.setitem(refimpl.PAPERS, "deit", paper)
    refimpl.model_index.cache_clear()
    try:
        with pytest.raises(ValueError, match="deit and refimpl.bases.deit .*'deit_tiny'"):
            refimpl.model_index()
    finally:
        refimpl.model_index.cache_clear()


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda: refimpl.create_model("efficientvit_m9"), "efficientvit_m5"),
        (lambda: refimpl.create_model("eficientvit_m0"), "efficientvit_m0"),
        (lambda: refimpl.create_model(""), "unknown model"),
        (lambda: refimpl.paper("eficientvit"), "efficientvit"),
        (lambda: refimpl.paper("resnet"), "unknown paper"),
    ],
)
def test_unknown_names_suggest_the_nearest(call, wanted):
    with pytest.raises(ValueError, match="unknown (model|paper)") as error:
        call()
    assert wanted in str(error.value)


def test_a_family_suggests_its_own_models_or_says_that_it_has_none():
    with pytest.raises(ValueError, match="unknown model 'edge_moe'; did you mean 'edge_moe_tiny'"):
        refimpl.create_model("edge_moe")
    without = [paper for paper in refimpl.list_papers() if not paper.variants]
    for paper in without:
        with pytest.raises(ValueError, match=f"there is no model of {re.escape(paper.name)} here"):
            refimpl.create_model(f"{paper.stem}_small")


@pytest.mark.parametrize("name", refimpl.list_models())
def test_every_model_has_the_uniform_interface(name):
    model = on_meta(name)
    module, variant = refimpl.model_index()[name]
    assert callable(model.forward_features)
    assert "official" in weights.names_of(model) or not weights.names_of(model)
    assert variant in sys.modules[module].VARIANTS
    for parameter in inspect.signature(type(model).__init__).parameters.values():
        assert parameter.kind is not parameter.VAR_KEYWORD, (
            f"{type(model).__name__} swallows unknown arguments"
        )
    with pytest.raises(TypeError):
        on_meta(name, no_such_argument=1)


@every_family
def test_classes_and_channels_can_be_chosen(stem):
    model = image_model(stem, num_classes=7, in_chans=1)
    images = images_for(model, 2)
    with torch.inference_mode():
        assert model(images).shape == logits_shape(stem, 2, 7, images.shape[2:])


@every_family
def test_bad_images_are_refused_with_a_reason(stem):
    model = image_model(stem)
    good = images_for(model)
    for bad, word in [
        (good[0], "dimensions"),
        (good[:, :1].expand(-1, model.in_chans + 1, -1, -1), "channels"),
    ]:
        with pytest.raises(ValueError, match=word):
            model(bad)


@every_family
def test_another_size_is_computed_or_refused_with_a_reason(stem):
    model = image_model(stem)
    other = images_for(model)[..., :-3]
    try:
        with torch.inference_mode():
            logits = model(other)
    except ValueError as error:
        said = str(error)
        assert "pixels" in said and str(other.shape[-1]) in said
        assert f"img_size={model.img_size}" in said or "multiples of" in said
    else:
        assert logits.shape == logits_shape(stem, 1, model.num_classes, other.shape[2:])
        assert logits.isfinite().all()


@every_family
def test_an_empty_batch_gives_no_logits(stem):
    model = image_model(stem)
    images = images_for(model, 1)[:0]
    with torch.inference_mode():
        shape = logits_shape(stem, 0, model.num_classes, images.shape[2:])
        assert model(images).shape == shape


@every_family
def test_every_parameter_receives_a_gradient(stem):
    model = image_model(stem)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(norm.weight)  # a zero γ would hide the branch before it
    model(images_for(model)).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@every_family
def test_one_image_alone_or_in_a_batch(stem):
    model = image_model(stem)
    images = images_for(model, 2)
    with torch.inference_mode():
        both, one = model(images), model(images[1:])
    assert torch.dist(both[1:], one) <= 1e-4 * one.norm()


@every_family
def test_fused_model_is_equal_and_the_model_left_alone(stem):
    model = image_model(stem)
    if not hasattr(model, "fuse"):
        pytest.skip("nothing to fold")
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(norm.weight, 0.3, 0.45)
            torch.nn.init.uniform_(norm.running_var, 0.5, 0.75)
            torch.nn.init.normal_(norm.running_mean, std=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = images_for(model, 2)
    with torch.inference_mode():
        wanted, got = model(images), model.fuse()(images)
    assert torch.dist(wanted, got) <= 1e-4 * wanted.norm()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@every_family
def test_recording_attention_changes_no_bit(stem):
    model = image_model(stem)
    layers = [m for m in model.modules() if isinstance(m, Probe)]
    if not layers:
        pytest.skip("no attention in this model")
    images = images_for(model, 2)
    with torch.inference_mode():
        plain = model(images)
        with attention.record(model) as maps:
            recorded = model(images)
        again = model(images)
    assert torch.equal(plain, recorded) and torch.equal(plain, again)
    assert len(maps) == len(layers) and not any(layer._forward_pre_hooks for layer in layers)
    for entry in maps:
        assert entry.weights.dim() == 4, entry.name
        assert (entry.weights.sum(-1) - 1).abs().max() < 1e-5, entry.name
