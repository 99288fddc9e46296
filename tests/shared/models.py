"""What tests of models share: weights that make every part matter, fused models, checkpoints,
refusals, and what a user does next with a model (`NEXT_STEPS`)."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from refimpl import weights

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Build = Callable[[], nn.Module]


def lively(model: nn.Module) -> nn.Module:
    """In place: draw statistics of batch norms, and noise onto parameters that start constant.

    So no branch is switched off by a zero, and no order of channels or heads goes unnoticed.
    Returns the model in evaluation mode; draws from PyTorch's generator.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and not parameter.is_meta and parameter.std() == 0:
                parameter += 0.2 * torch.randn_like(parameter)
        for norm in model.modules():
            if isinstance(norm, NORMS):
                norm.weight.uniform_(0.5, 1.0)
                norm.running_var.uniform_(0.5, 1.0)
                norm.bias.normal_(std=0.2)
                norm.running_mean.normal_(std=0.2)
    return model.eval()


def error(got: Tensor, wanted: Tensor) -> float:
    """‖got − wanted‖ / ‖wanted‖."""
    return float(torch.dist(got, wanted) / wanted.norm())


def assert_same_tensors(ours: nn.Module, theirs: nn.Module) -> None:
    """Equal names, equal values."""
    state, other = ours.state_dict(), theirs.state_dict()
    assert state.keys() == other.keys()
    assert [name for name in state if not torch.equal(state[name], other[name])] == []


def assert_fused_is_equal(model: nn.Module, images: Tensor, rtol: float = 1e-5) -> nn.Module:
    """The fused model computes the same, has no batch norm, can be fused again; it is returned.

    The model that it was made from is left alone.
    """
    before = copy.deepcopy(model)
    fused = model.fuse()
    with torch.inference_mode():
        wanted, got, again = model(images), fused(images), fused.fuse()(images)
    assert error(got, wanted) <= rtol
    assert torch.equal(again, got)
    assert not any(isinstance(module, NORMS) for module in fused.modules())
    assert_same_tensors(model, before)
    assert {p.dtype for p in fused.parameters()} == {p.dtype for p in model.parameters()}
    return fused


def assert_checkpoint_loads(build: Build, checkpoint: Callable[[nn.Module], Mapping]) -> None:
    """What `checkpoint` makes of one model's tensors loads into another, tensor by tensor."""
    source, target = build(), build()
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.random_(1, 100)
    weights.load_official(target, checkpoint(source))
    assert_same_tensors(source, target)


def assert_refused(call: Callable[[], object], words: str) -> None:
    """The call raises a `ValueError` in these words."""
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def logits_of(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """One number per class and image; a pair of heads side by side."""
    return outputs if isinstance(outputs, Tensor) else torch.cat(outputs, dim=1)


def hooks_keep_what_layers_gave(build: Build, images: Tensor) -> None:
    """A forward hook's tensor is not written over later, and full backward hooks work."""
    model = build()
    kept = {}
    called = set()
    for name, module in model.named_modules():

        def keep(module, args, output, name=name):
            if isinstance(output, Tensor):
                kept[name] = output, output.clone()

        module.register_forward_hook(keep)
        module.register_full_backward_hook(lambda m, gi, go, name=name: called.add(name))
    logits_of(model(images.clone().requires_grad_())).sum().backward()
    assert [name for name, (held, copied) in kept.items() if not torch.equal(held, copied)] == []
    assert called >= kept.keys()


def gradient_of_one_image_is_right(build: Build, images: Tensor) -> None:
    """In evaluation mode: as in a batch of two, and as finite differences say."""
    model = build().double()
    images = images[:2].double()
    direction = torch.randn_like(images[:1])

    def loss(x):
        return logits_of(model(x)).square().sum()

    def gradients(x):
        x = x.clone().requires_grad_()
        model.zero_grad()
        loss(x).backward()
        return x.grad, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    one, of_weights = gradients(images[:1])
    both, _ = gradients(images)
    _, of_weights_twice = gradients(images[:1].expand(2, -1, -1, -1))
    assert error(one, both[:1]) < 1e-9
    for single, double in zip(of_weights, of_weights_twice, strict=True):
        torch.testing.assert_close(2 * single, double, rtol=1e-7, atol=1e-9)
    step = 1e-6 * direction
    with torch.no_grad():
        slope = (loss(images[:1] + step) - loss(images[:1] - step)) / 2e-6
    assert (one * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def meta_device_then_load_is_right(build: Build, images: Tensor) -> None:
    """Built without memory, then filled by a strict load: nothing is left to chance."""
    model = build()
    with torch.device("meta"):
        empty = build()
    empty = empty.to_empty(device="cpu")
    for buffer in empty.buffers():
        buffer.fill_(-1)  # whatever the memory held
    empty.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(empty.eval()(images), model(images))


def autocast_runs_everywhere(build: Build, images: Tensor) -> None:
    """bfloat16 forward and backward: in training, in evaluation, fused."""
    model = build()
    with torch.no_grad():
        wanted = model(images)
    for form in (build().train(), model, model.fuse()):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = logits_of(form(images))
        outputs.float().square().sum().backward()
        missing = [n for n, p in form.named_parameters() if p.requires_grad and p.grad is None]
        assert outputs.isfinite().all() and missing == []
        if not form.training:
            assert error(outputs.detach().float(), wanted) < 0.1


def traced_and_exported_take_any_batch(build: Build, images: Tensor) -> None:
    """Recorded at batch 2, run at batch 1 and 3, with gradients wanted or not."""
    model = build()
    two = images[:1].expand(2, -1, -1, -1)
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's about Python numbers in checks of shapes
        traced = torch.jit.trace(model, two)
    exported = torch.export.export(model, (two,), dynamic_shapes=({0: batch},)).module()
    for size in (1, 3):
        x = torch.randn(size, *images.shape[1:])
        for form in (traced, exported):
            torch.testing.assert_close(form(x), model(x), rtol=1e-4, atol=1e-5)


def fused_model_is_saved_and_loaded(build: Build, images: Tensor) -> None:
    """By the functions of safetensors, and by ours."""
    safetensors = pytest.importorskip("safetensors.torch")
    fused, other = build().fuse(), build()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    other = other.fuse()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.safetensors"
        safetensors.save_model(fused, path)
        safetensors.save_file(fused.state_dict(), path)
        weights.load(other, path)
    with torch.inference_mode():
        assert torch.equal(other(images), fused(images))


def fused_model_is_for_inference(build: Build, images: Tensor) -> None:
    """What was frozen stays frozen, what was not is not, and training mode is refused."""
    model = build()
    assert all(p.requires_grad for p in model.fuse().parameters())
    fused = model.requires_grad_(False).fuse()
    assert not any(p.requires_grad for p in fused.parameters())
    assert_refused(lambda: fused.train()(images), "is fused, for inference only")


NEXT_STEPS = [
    hooks_keep_what_layers_gave,
    gradient_of_one_image_is_right,
    meta_device_then_load_is_right,
    autocast_runs_everywhere,
    traced_and_exported_take_any_batch,
    fused_model_is_saved_and_loaded,
    fused_model_is_for_inference,
]
