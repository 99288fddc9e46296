"""Scores of groups of weights in PyTorch, differentiable. Equation and shapes: see the package."""

from __future__ import annotations

from torch import Tensor

from refimpl.kernels import wide


def with_torch(weight: Tensor, gradient: Tensor) -> Tensor:
    """(b, groups), in float32 or wider."""
    product = weight.to(wide(weight.dtype)) * gradient.to(wide(weight.dtype))
    return product.sum((1, 3)).square()
