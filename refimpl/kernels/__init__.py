"""One file per operation; in it the same function as loops (`naive`), NumPy, PyTorch and Triton.

Every file `<op>.py` defines `naive`, `with_numpy`, `with_torch`, `with_triton`, the dispatching function `<op>(…, backend="auto")`,
`cost(…) -> Cost` and `example(…)`, so that tests, the benchmark and the book's kernels page treat them alike.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

BACKENDS = ("naive", "numpy", "torch", "triton")


@dataclass(frozen=True)
class Cost:
    """Work of one call: floating-point operations, and the bytes that must cross main memory at least once."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes


def triton_missing(device: torch.device) -> str | None:
    """Why Triton can't run on this device, or `None` when it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'refimpl[gpu]'"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {device}: move them to a GPU, or set TRITON_INTERPRET=1 before Python starts"
    return None


def dispatch(
    op: str, forms: dict[str, Callable], backend: str, *tensors: torch.Tensor | None, **options
):
    """Run the form of `op` that `backend` names on `tensors`. `"auto"`: Triton on a GPU where it is installed, else PyTorch.

    The naive and NumPy forms get arrays (float64 stays float64, half precision becomes float32) and carry no gradient; results come back as tensors
    on the device of the first tensor. An unknown backend is a `ValueError`, one that can't run here a `RuntimeError`.
    """
    accepted = ("auto", *(b for b in BACKENDS if b in forms))
    if backend not in accepted:
        raise ValueError(
            f"{op}: backend={backend!r} is not one of {', '.join(map(repr, accepted))}"
        )
    device = tensors[0].device
    if backend == "auto":
        backend = (
            "triton"
            if device.type == "cuda" and "triton" in forms and triton_missing(device) is None
            else "torch"
        )
    if backend == "triton" and (reason := triton_missing(device)):
        raise RuntimeError(f"{op}: backend='triton' can't run here; {reason}")
    if backend in ("torch", "triton"):
        return forms[backend](*tensors, **options)
    narrow = (torch.bfloat16, torch.float16)  # NumPy has no bfloat16
    arrays = [
        None if t is None else (t.float() if t.dtype in narrow else t).detach().cpu().numpy()
        for t in tensors
    ]
    result = forms[backend](*arrays, **options)
    back = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)  # noqa: E731
    return tuple(map(back, result)) if isinstance(result, tuple) else back(result)
