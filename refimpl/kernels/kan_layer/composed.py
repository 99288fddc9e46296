"""A KAN layer in PyTorch, in tiles of tokens, differentiable. Shapes: see the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels import wide
from refimpl.kernels.kan_layer.reference import BUMP_WIDTH, EPS

TILE = 128  # tokens whose heights exist at once


def with_torch(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, grid: Tensor, weight: Tensor
) -> Tensor:
    """y (n, out); norm and heights in float32 or wider, the product in the type of x."""
    real = wide(x.dtype)
    z = F.layer_norm(x.to(real), x.shape[1:], norm_weight.to(real), norm_bias.to(real), EPS)
    matrix = weight.to(x.dtype)
    parts = [product(rows, grid.to(real), matrix) for rows in z.split(TILE)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def product(z: Tensor, grid: Tensor, weight: Tensor) -> Tensor:
    """Σ over coordinates and bumps for some tokens: (n, c) -> (n, out)."""
    heights = 1 - torch.tanh((z[..., None] - grid) / BUMP_WIDTH) ** 2
    return F.linear(heights.flatten(1).to(weight.dtype), weight)
