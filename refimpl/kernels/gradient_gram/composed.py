"""Gram matrix of gradients in PyTorch, differentiable. Equation and shapes: see the package."""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl.kernels import wide


def with_torch(gradients: Tensor, total: Tensor | None = None) -> Tensor:
    """(b, n, n), in float32 or wider; the total is the product's starting value."""
    g = gradients.to(wide(gradients.dtype))
    if total is None:
        return g @ g.mT
    return torch.baddbmm(total.to(g.dtype), g, g.mT)
