"""Operations, each in four forms. A folder per operation:

    kernels/<op>/__init__.py    equation, shapes, checks, cost, example, and the function `<op>`
    kernels/<op>/reference.py   `naive`, loops over single numbers: the definition; `with_numpy`
    kernels/<op>/composed.py    `with_torch`: PyTorch, differentiable as often as one likes
    kernels/<op>/triton.py      `with_triton`: a GPU, or a CPU with TRITON_INTERPRET=1

`operations()` lists them, alike for tests, benchmarks and the book. Triton is imported when its
form is first called, and not before.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from refimpl import checks

# backend -> (module of the operation's folder, function in it)
FORMS = {
    "naive": ("reference", "naive"),
    "numpy": ("reference", "with_numpy"),
    "torch": ("composed", "with_torch"),
    "triton": ("triton", "with_triton"),
}
BACKENDS = tuple(FORMS)


@dataclass(frozen=True)
class Cost:
    """Work of one call: floating-point operations, and the bytes that must cross main memory."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Operation:
    """One operation as tests, benchmarks and the book see it."""

    name: str
    module: ModuleType

    @property
    def function(self) -> Callable:
        """The dispatching function: `function(**arguments, backend="auto")`."""
        return getattr(self.module, self.name)

    def example(self, size: str = "small", **how) -> dict:
        """Arguments of `function`: "small" for loops, or "large". how: seed, dtype, device."""
        checks.choice("size", size, ("small", "large"))
        return self.module.example(size, **how)

    def cost(self, **arguments) -> Cost:
        """Work of one call with these arguments."""
        return self.module.cost(**arguments)


def operations() -> dict[str, Operation]:
    """Every operation by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return {name: Operation(name, importlib.import_module(f"{__name__}.{name}")) for name in names}


@functools.cache
def form(op: str, backend: str) -> Callable:
    """The function that computes `op` on `backend`; its module is imported here."""
    module, function = FORMS[backend]
    return getattr(importlib.import_module(f"{__name__}.{op}.{module}"), function)


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU, instead of being compiled."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_missing(device: torch.device) -> str | None:
    """Why Triton can't run on this device, or `None` when it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton (extra 'gpu')"
    if device.type != "cuda" and not interpreted():
        return (
            f"the tensors are on {device}: move them to a GPU,"
            " or set TRITON_INTERPRET=1 before Python starts"
        )
    return None


def transformed() -> str | None:
    """What is being done to PyTorch's operators that only PyTorch's own can bear, or `None`."""
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms (grad, vmap …)"
    if torch.jit.is_tracing():
        return "torch.jit.trace"
    return "torch.compile and torch.export" if torch.compiler.is_compiling() else None


def choose(op: str, backend: str, device: torch.device) -> str:
    """The backend to take: "auto" is Triton on a GPU where it can run, else PyTorch.

    Raises `ValueError`, with the reason, for a backend that does not exist or can't run here.
    """
    if backend == "auto":
        able = device.type == "cuda" and not triton_missing(device) and not transformed()
        return "triton" if able else "torch"
    checks.choice("backend", backend, ("auto", *BACKENDS))
    reason = triton_missing(device) if backend == "triton" else None
    if reason is None and backend != "torch" and transformed():
        reason = f"{transformed()} want PyTorch's operators: take backend='torch'"
    if reason is not None:
        raise ValueError(f"{op}: backend={backend!r} can't run here; {reason}")
    return backend


def dispatch(
    op: str, composed: Callable, backend: str, *tensors: torch.Tensor | None, **options
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Run the form of `op` that `backend` names; composed: its PyTorch form.

    The loops and NumPy get arrays (half precision as float32) and carry no gradient; their results
    come back as tensors on the device of the first tensor.
    """
    device = tensors[0].device
    backend = choose(op, backend, device)
    if backend == "torch":
        return composed(*tensors, **options)
    compute = form(op, backend)
    if backend == "triton":
        return compute(*tensors, **options)
    results = compute(*map(as_array, tensors), **options)
    if isinstance(results, tuple):
        return tuple(from_array(result, device) for result in results)
    return from_array(results, device)


def as_array(tensor: torch.Tensor | None) -> np.ndarray | None:
    """A NumPy array of the same numbers; NumPy has no bfloat16, and float16 only slowly."""
    if tensor is None:
        return None
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return (tensor.float() if half else tensor).detach().cpu().numpy()


def from_array(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def block_size(size: int, most: int, least: int = 1) -> int:
    """The power of two that holds `size`, between `least` and `most`: what Triton's blocks want."""
    return min(max(1 << max(size - 1, 0).bit_length(), least), most)


def launch(kernel, programs: int, *arguments, **constants) -> None:
    """Start a Triton kernel on the device of its first tensor.

    Always along one axis: CUDA allows 2³¹ − 1 programs there, and 65 535 along the other two.
    A compiled kernel takes a number of Python as float32, whatever its tensors are: such numbers
    must be constants of the kernel (`tl.constexpr`), which take the type of what they meet.
    """
    rounded = [argument for argument in arguments if isinstance(argument, float)]
    if rounded:
        raise TypeError(f"launch: {rounded} would be rounded to float32; pass them as constants")
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **constants)


def gradients(function: Callable, inputs: tuple, cotangents) -> tuple:
    """Gradients of a composed form, computed anew; they can be differentiated again.

    inputs: tensors that `function` takes; cotangents: a tensor, or a tuple, as its results are.
    """
    _, pullback = torch.func.vjp(function, *inputs)
    return pullback(cotangents)


def derivative(function: Callable, inputs: tuple, tangents: tuple) -> tuple:
    """Directional derivative of a composed form: the gradient of its gradient, which is linear."""
    outputs, pullback = torch.func.vjp(function, *inputs)
    _, pushforward = torch.func.vjp(pullback, tuple(torch.zeros_like(out) for out in outputs))
    return pushforward(tangents)[0]
