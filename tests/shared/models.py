"""What tests of models share: weights that make every part matter, fused models, checkpoints,
refusals, and what a user does next with a model.

`NEXT_STEPS` are functions `step(build, images)`: `build()` gives a model in evaluation mode with
`lively` weights, always the same; `images` are what it takes. `tests/test_next_steps.py` runs them
and `MORE_STEPS` over every model that can be created, so a paper to come inherits them. A paper's
own tests run `NEXT_STEPS` over forms that no variant has.
"""

from __future__ import annotations

import copy
import io
import pickle
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute

import refimpl
from refimpl import weights
from refimpl.lab import measure
from refimpl.layers import Probe
from refimpl.viz import attention

DENSE = ("building_unetpp",)  # stems whose models give logits for every pixel, not for the image
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Build = Callable[[], nn.Module]


def families() -> dict[str, list[str]]:
    """Stem of the module that defines them -> names of models; builds nothing."""
    found: dict[str, list[str]] = {}
    for name, (module, _) in refimpl.model_index().items():
        found.setdefault(module.rsplit(".", 1)[1], []).append(name)
    return found


def logits_shape(stem: str, batch: int, classes: int, size: tuple[int, ...]) -> tuple[int, ...]:
    """What a model of this family gives for images of `size`, (height, width)."""
    return (batch, classes, *size) if stem in DENSE else (batch, classes)


def on_meta(name: str, **kwargs) -> nn.Module:
    """A model without memory behind its parameters."""
    with torch.device("meta"):
        return refimpl.create_model(name, **kwargs)


@cache
def smallest(stem: str) -> str:
    """The family's model with the fewest parameters."""
    return min(families()[stem], key=lambda name: measure.parameters(on_meta(name)))


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


def calibrated(model: nn.Module, images: Tensor) -> nn.Module:
    """In place: statistics of batch norms are those of these images, so that signals neither vanish
    nor explode on their way. Returns the model in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
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


def assert_equals_peer(
    ours: nn.Module, theirs: nn.Module, images: Tensor, within: float = 1e-6
) -> None:
    """With the peer's weights, under its names, ours gives its answers; so does ours fused."""
    weights.load_official(ours.eval(), theirs.eval().state_dict())
    with torch.inference_mode():
        wanted = theirs(images)
        assert error(ours(images), wanted) <= within
        assert error(ours.fuse()(images), wanted) <= max(within, 1e-5)


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


def is_real(inputs: Tensor) -> bool:
    """Whether there is a gradient by them, and half of them; token ids have neither."""
    return inputs.is_floating_point()


def leaf(inputs: Tensor) -> Tensor:
    """A copy that asks for a gradient, where there is one."""
    return inputs.clone().requires_grad_(is_real(inputs))


def drawn_like(inputs: Tensor, batch: int) -> Tensor:
    """Other inputs of the same kind: noise, or these ids in another order."""
    if is_real(inputs):
        return torch.randn(batch, *inputs.shape[1:])
    return inputs.flatten()[torch.randint(inputs.numel(), (batch, *inputs.shape[1:]))]


def repeated(inputs: Tensor, batch: int) -> Tensor:
    """The first input, so often."""
    return inputs[:1].expand(batch, *inputs.shape[1:])


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
    logits_of(model(leaf(images))).sum().backward()
    assert [name for name, (held, copied) in kept.items() if not torch.equal(held, copied)] == []
    assert called >= kept.keys()


def gradient_of_one_image_is_right(
    build: Build, images: Tensor, slope_too: bool = True, length: float = 1e-6
) -> None:
    """In evaluation mode: as in a batch of two, and as finite differences say.

    slope_too: without the second, where thresholds pass gradients straight through; length: of the
    difference, shorter where so many ReLUs are met that some kink lies within it.
    """
    model = build().double()
    images = images[:2].double() if is_real(images) else images[:2]

    def loss(x):
        return logits_of(model(x)).square().sum()

    def gradients(x):
        x = leaf(x)
        model.zero_grad()
        loss(x).backward()
        return x.grad, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    one, of_weights = gradients(images[:1])
    both, _ = gradients(images)
    _, of_weights_twice = gradients(repeated(images, 2))
    for single, double in zip(of_weights, of_weights_twice, strict=True):
        torch.testing.assert_close(2 * single, double, rtol=1e-7, atol=1e-9)
    if not is_real(images):
        slope_by_weights_is_right(model, images[:1], of_weights, loss)
        return
    assert error(one, both[:1]) < 1e-9
    if not slope_too:
        return
    direction = torch.randn_like(images[:1])
    step = length * direction
    with torch.no_grad():
        slope = (loss(images[:1] + step) - loss(images[:1] - step)) / (2 * length)
    assert (one * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def slope_by_weights_is_right(
    model: nn.Module, inputs: Tensor, of_weights: list[Tensor], loss: Callable[[Tensor], Tensor]
) -> None:
    """As finite differences say, along one direction of all weights."""
    directions = [torch.randn_like(gradient) for gradient in of_weights]
    wanted = sum((g * d).sum().item() for g, d in zip(of_weights, directions, strict=True))
    learned = [p for p in model.parameters() if p.grad is not None]
    ends = []
    with torch.no_grad():
        for shift in (1e-6, -2e-6):  # one step up, then from there to one step down
            for parameter, direction in zip(learned, directions, strict=True):
                parameter += shift * direction
            ends.append(loss(inputs))
    assert wanted == pytest.approx(((ends[0] - ends[1]) / 2e-6).item(), rel=1e-4)


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


def autocast_runs_everywhere(
    build: Build, images: Tensor, rounding: float = 0.1, loss_scale: float = 1.0
) -> None:
    """bfloat16 forward and backward in training, in evaluation and fused; float16 in evaluation.

    rounding: how far bfloat16 may move the outputs; loss_scale: of the loss in float16, which has
    no room for the gradients of a sum over all pixels.
    """
    model = build()
    with torch.no_grad():
        wanted = model(images)
    for form in (build().train(), model, model.fuse()):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = logits_of(form(images))
        outputs.float().square().sum().backward()
        assert outputs.isfinite().all() and without_gradient(form) == []
        if not form.training:
            assert error(outputs.detach().float(), wanted) < rounding
    model.zero_grad()
    with torch.autocast("cpu", torch.float16):
        outputs = model(images)
    (loss_scale * outputs.float().square().sum()).backward()
    assert error(outputs.detach().float(), wanted) < 0.05 and without_gradient(model) == []


def without_gradient(model: nn.Module) -> list[str]:
    """Names of parameters that want a gradient and got none, or one that is not finite."""
    wanting = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, grad in wanting if grad is None or not grad.isfinite().all()]


def traced_and_exported_take_any_batch(build: Build, images: Tensor) -> None:
    """Recorded at batch 2, run at batch 1 and 3, with gradients wanted or not."""
    model = build()
    two = repeated(images, 2)
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's about Python numbers in checks of shapes
        traced = torch.jit.trace(model, two, check_trace=False)  # other batches check it below
    exported = torch.export.export(model, (two,), dynamic_shapes=({0: batch},)).module()
    for size in (1, 3):
        x = drawn_like(images, size)
        for form in (traced, exported):
            torch.testing.assert_close(form(x), model(x), rtol=1e-4, atol=1e-5)


def model_and_fused_model_survive_copies(build: Build, images: Tensor) -> None:
    """`deepcopy`, `pickle`, `torch.save` of the whole, and state dicts in every kind of file."""
    safetensors = pytest.importorskip("safetensors.torch")
    for form in (build(), build().fuse()):
        with torch.inference_mode():
            wanted = form(images)
        saved = io.BytesIO()
        torch.save(form, saved)
        saved.seek(0)
        for other in (
            copy.deepcopy(form),
            pickle.loads(pickle.dumps(form)),
            torch.load(saved, weights_only=False),
        ):
            with torch.inference_mode():
                assert torch.equal(other(images), wanted)
            assert_same_tensors(other, form)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.safetensors"
            safetensors.save_model(form, path)
            assert_loads(form, path, images, wanted)
            safetensors.save_file(form.state_dict(), path)
            assert_loads(form, path, images, wanted)
            for ending in (".safetensors", ".pth"):
                weights.save(form, f"{folder}/ours{ending}")
                assert_loads(form, f"{folder}/ours{ending}", images, wanted)


def assert_loads(form: nn.Module, path: str, images: Tensor, wanted: Tensor) -> None:
    """A copy of the model, its tensors spoiled, computes what is wanted after loading the file."""
    other = copy.deepcopy(form)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
        weights.load(other, path)
        assert torch.equal(other(images), wanted)


def fused_model_is_for_inference(build: Build, images: Tensor) -> None:
    """What was frozen stays frozen, what was not is not, and training mode is refused."""
    model = build()
    assert all(p.requires_grad for p in model.fuse().parameters())
    fused = model.requires_grad_(False).fuse()
    assert not any(p.requires_grad for p in fused.parameters())
    assert_refused(lambda: fused.train()(images), "is fused, for inference only")
    if fused.state_dict().keys() != model.state_dict().keys():
        assert_refused(lambda: weights.load_official(fused, model.state_dict()), "is fused")


def training_step_reaches_every_parameter(build: Build, images: Tensor) -> None:
    """In training mode; alone, under checkpointing, and wrapped for several processes."""
    model = build().train()
    logits_of(model(images)).square().sum().backward()
    assert without_gradient(model) == []
    again = build().train()
    outputs = recompute(again, leaf(images), use_reentrant=False)
    logits_of(outputs).square().sum().backward()
    assert without_gradient(again) == []
    with one_process():
        wrapped = DistributedDataParallel(build().train())
        for _ in range(2):  # the second complains of what got no gradient in the first
            logits_of(wrapped(images)).square().sum().backward()


@contextmanager
def one_process() -> Iterator[None]:
    """PyTorch's distributed package with a single process, without a network."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def forward_is_head_of_features(build: Build, images: Tensor) -> None:
    """As built and fused."""
    for form in (build(), build().fuse()):
        with torch.inference_mode():
            assert torch.equal(form.forward_head(form.forward_features(images)), form(images))


def any_batch_and_any_memory(build: Build, images: Tensor) -> None:
    """None, one or several inputs, in one memory format or the other, as built and fused."""
    for form in (build(), build().fuse()):
        with torch.inference_mode():
            wanted = form(images)
            assert form(images[:0]).shape == (0, *wanted.shape[1:])
            assert error(form(images[1:2]), wanted[1:2]) < 1e-4
            if images.dim() == 4:
                assert error(form(images.to(memory_format=torch.channels_last)), wanted) < 1e-4
            mixed = copy.deepcopy(form).to(memory_format=torch.channels_last)
            assert error(mixed(images), wanted) < 1e-4


def half_precision_runs(build: Build, images: Tensor, rounding: float = 0.2) -> None:
    """All of it in 16 bits, as built and fused; backward too.

    rounding: how far bfloat16 may move the outputs.
    """
    for form in (build(), build().fuse()):
        with torch.no_grad():
            wanted = form(images)
            halved = copy.deepcopy(form).half()(images.half() if is_real(images) else images)
        assert halved.dtype == torch.float16 and error(halved.float(), wanted) < 0.05
        form = form.bfloat16()
        outputs = form(images.bfloat16() if is_real(images) else images)
        assert outputs.dtype == torch.bfloat16
        assert error(outputs.detach().float(), wanted) < rounding
        outputs.float().square().mean().backward()
        assert without_gradient(form) == []


def functions_of_parameters_differentiate(build: Build, images: Tensor) -> None:
    """`torch.func`: gradients for each sample, and a gradient of a gradient."""
    model = build()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    images = images[:2]

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images)
    model(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            apart = torch.dist(each[name].sum(0), parameter.grad)
            assert apart <= 1e-3 * parameter.grad.norm() + 1e-3, name
    first = next(iter(parameters))

    def outputs(x: Tensor) -> Tensor:
        if is_real(images):
            return model(x)
        return torch.func.functional_call(model, parameters | {first: x}, (images,))

    x = (images if is_real(images) else parameters[first]).clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no second derivative
        (slope,) = torch.autograd.grad(outputs(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
    assert x.grad.isfinite().all()


def integers_are_refused_in_words(build: Build, images: Tensor) -> None:
    """Raw pixels: a forgotten conversion, of which PyTorch would speak in its own terms.

    Where integers are wanted, token ids, floating-point numbers are refused instead.
    """
    for form in (build(), build().fuse()):
        if not is_real(images):
            assert_refused(lambda form=form: form(images.float()), "must be integers")
            continue
        for dtype in (torch.uint8, torch.int64):
            assert_refused(lambda form=form, d=dtype: form(images.to(d)), "floating")


def quantised_dynamically_runs(build: Build, images: Tensor) -> None:
    """Linear layers with 8-bit weights, as built and fused."""
    for form in (build(), build().fuse()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.ao moves elsewhere some day
            quantised = torch.ao.quantization.quantize_dynamic(form, {nn.Linear})
        with torch.inference_mode():
            assert error(quantised(images), form(images)) < 0.5


def captured_is_equal(build: Build, images: Tensor) -> None:
    """`torch.compile` takes the model; here nothing becomes machine code."""
    model = build()
    torch.compiler.reset()
    with torch.inference_mode():
        assert error(torch.compile(model, backend="eager")(images), model(images)) < 1e-4


def compiled_is_equal(build: Build, images: Tensor) -> None:
    """Machine code where there is a compiler, as built and fused, forward and backward: minutes."""
    backend = "inductor" if shutil.which("gcc") or shutil.which("clang") else "aot_eager"
    for form in (build(), build().fuse()):
        torch.compiler.reset()
        outputs = torch.compile(form, backend=backend)(images)
        assert error(outputs.detach(), form(images).detach()) < 1e-4
        outputs.square().sum().backward()
        assert without_gradient(form) == []


def copies_made_while_recording_do_not_record(build: Build, images: Tensor) -> None:
    """Attention maps are taken from the model that was named, and only inside the `with`."""
    model = build()
    if not any(isinstance(layer, Probe) for layer in model.modules()):
        pytest.skip("no attention in this model")
    with attention.record(model) as maps:
        copied, fused = copy.deepcopy(model), model.fuse()
    for form in (copied, fused, model):
        with torch.inference_mode():
            form(images)
    assert len(maps) == 0


def onnx_is_equal(build: Build, images: Tensor) -> None:
    """Exported with a free batch, run by onnxruntime at other batches, as built and fused."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra 'peers')")
    import onnxruntime

    batch = torch.export.Dim("batch", min=1, max=64)
    for form in (build(), build().fuse()):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own future
            path = f"{folder}/model.onnx"
            torch.onnx.export(
                form,
                (images[:2],),
                path,
                dynamo=True,
                verbose=False,
                dynamic_shapes=({0: batch},),
            )
            session = onnxruntime.InferenceSession(path)
        (name,) = [given.name for given in session.get_inputs()]
        for size in (1, 3):
            x = repeated(images, size).contiguous()
            (got,) = session.run(None, {name: x.numpy()})
            with torch.inference_mode():
                assert error(torch.from_numpy(got), form(x)) < 1e-3


NEXT_STEPS = [
    hooks_keep_what_layers_gave,
    gradient_of_one_image_is_right,
    meta_device_then_load_is_right,
    autocast_runs_everywhere,
    traced_and_exported_take_any_batch,
    model_and_fused_model_survive_copies,
    fused_model_is_for_inference,
]
MORE_STEPS = [
    training_step_reaches_every_parameter,
    forward_is_head_of_features,
    any_batch_and_any_memory,
    half_precision_runs,
    functions_of_parameters_differentiate,
    integers_are_refused_in_words,
    quantised_dynamically_runs,
    captured_is_equal,
    copies_made_while_recording_do_not_record,
    onnx_is_equal,
]
SLOW_STEPS = [compiled_is_equal]  # with --all-variants only
