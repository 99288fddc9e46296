"""The front door, and what holds for every model alike: uniform interface, clear refusals, gradients, recording, deployment."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

import refimpl
from refimpl import weights
from refimpl.layers import Probe
from refimpl.viz import attention

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


def families() -> dict[str, list[str]]:
    """Model names by the module that defines them."""
    found = {}
    for name, (module, _) in refimpl.model_index().items():
        found.setdefault(module, []).append(name)
    return found


def on_meta(name: str, **kwargs):
    with torch.device("meta"):
        return refimpl.create_model(name, **kwargs)


def smallest(names: list[str]) -> str:
    return min(names, key=lambda name: sum(p.numel() for p in on_meta(name).parameters()))


FAMILIES = {module.rsplit(".", 1)[1]: smallest(names) for module, names in families().items()}
IMAGE_MODELS = {stem: name for stem, name in FAMILIES.items() if hasattr(on_meta(name), "img_size")}


def build(name: str, **kwargs):
    torch.manual_seed(0)
    return refimpl.create_model(name, **kwargs).eval()


def images_for(model, batch: int = 1):
    torch.manual_seed(1)
    return torch.randn(batch, model.in_chans, model.img_size, model.img_size)


def test_import_is_light():
    probe = "import sys, torch, time; t = time.perf_counter(); import refimpl; print(time.perf_counter() - t, *(m for m in {!r} if m in sys.modules))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", probe.format(HEAVY)], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(3)
    ]
    assert not runs[0][1:], f"import refimpl pulls in {runs[0][1:]}"
    assert min(float(seconds) for seconds, *_ in runs) < 0.2


def test_front_door():
    assert len(refimpl.list_papers()) == 31
    assert refimpl.paper("efficientvit").name == "EfficientViT"
    assert refimpl.list_models("efficientvit_m*") == [f"efficientvit_m{i}" for i in range(6)]
    assert refimpl.list_models("nothing*") == []
    assert set(refimpl.list_models("*_m0")) <= set(refimpl.list_models())


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


@pytest.mark.parametrize("stem", IMAGE_MODELS)
def test_classes_and_channels_can_be_chosen(stem):
    model = build(IMAGE_MODELS[stem], num_classes=7, in_chans=1)
    with torch.inference_mode():
        assert model(images_for(model, 2)).shape == (2, 7)


@pytest.mark.parametrize("stem", IMAGE_MODELS)
def test_bad_images_are_refused_with_a_reason(stem):
    model = build(IMAGE_MODELS[stem])
    good = images_for(model)
    for bad, word in [
        (good[0], "dimensions"),
        (good[:, :1].expand(-1, model.in_chans + 1, -1, -1), "channels"),
    ]:
        with pytest.raises(ValueError, match=word):
            model(bad)


@pytest.mark.parametrize("stem", IMAGE_MODELS)
def test_another_size_is_computed_or_refused_with_a_reason(stem):
    model = build(IMAGE_MODELS[stem])
    other = images_for(model)[..., :-3]
    try:
        with torch.inference_mode():
            logits = model(other)
    except ValueError as error:
        assert "pixels" in str(error) and str(other.shape[-1]) in str(error)
    else:
        assert logits.shape == (1, model.num_classes) and logits.isfinite().all()


@pytest.mark.parametrize("stem", IMAGE_MODELS)
def test_an_empty_batch_gives_no_logits(stem):
    model = build(IMAGE_MODELS[stem])
    with torch.inference_mode():
        assert model(images_for(model, 1)[:0]).shape == (0, model.num_classes)


@pytest.mark.parametrize("stem", IMAGE_MODELS)
def test_every_parameter_receives_a_gradient(stem):
    model = build(IMAGE_MODELS[stem])
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.ones_(norm.weight)  # a zero γ would hide the branch before it
    model(images_for(model)).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("stem", IMAGE_MODELS)
def test_one_image_alone_or_in_a_batch(stem):
    model = build(IMAGE_MODELS[stem])
    images = images_for(model, 2)
    with torch.inference_mode():
        both, one = model(images), model(images[1:])
    assert torch.dist(both[1:], one) <= 1e-4 * one.norm()


@pytest.mark.parametrize("stem", FAMILIES)
def test_deployment_form_is_equal_and_leaves_the_model_alone(stem):
    name = FAMILIES[stem]
    model = build(name)
    if not hasattr(model, "fuse"):
        pytest.skip("nothing to fold")
    for norm in (
        m for m in model.modules() if isinstance(m, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d))
    ):
        for tensor, low in ((norm.weight, 0.3), (norm.running_var, 0.5)):
            torch.nn.init.uniform_(tensor, low, 1.5 * low)
        torch.nn.init.normal_(norm.running_mean, std=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = images_for(model, 2)
    with torch.inference_mode():
        wanted, got = model(images), model.fuse()(images)
    assert torch.dist(wanted, got) <= 1e-4 * wanted.norm()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("stem", IMAGE_MODELS)
def test_recording_attention_changes_no_bit(stem):
    model = build(IMAGE_MODELS[stem])
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
        assert entry.weights.dim() == 4 and (entry.weights.sum(-1) - 1).abs().max() < 1e-5, (
            entry.name
        )
