"""The integer product in PyTorch, differentiable in its scales. Equation: see the package."""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl.kernels import wide


def with_torch(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    zero_point: int = 0,
) -> Tensor:
    """(b, n). The sums are taken in float64, which holds them exactly, on every device."""
    rows = weight.to(torch.float64)
    sums = (codes.to(torch.float64) - zero_point) @ rows.T  # (b, n), whole numbers
    real = wide(weight_scale.dtype)
    y = sums.to(real) * (scale.to(real) * weight_scale.to(real))
    y = y if bias is None else y + bias.to(real)
    return y.to(weight_scale.dtype)
