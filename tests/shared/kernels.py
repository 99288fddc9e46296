"""What the tests of all kernels share: inputs in float64, the distance of two results, and leaving out a form that is not installed."""

from __future__ import annotations

import pytest
from torch import Tensor


def as_double(arguments: dict) -> dict:
    """The same arguments with every floating-point tensor in float64."""
    return {
        name: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for name, v in arguments.items()
    }


def apart(a: Tensor, b: Tensor) -> float:
    """Norm of the difference, taken in float64."""
    return float((a.double() - b.double()).norm())


def needs_triton(backend: str = "triton") -> None:
    """Skip the test when its form is Triton's and Triton is missing."""
    if backend == "triton":
        pytest.importorskip("triton")
