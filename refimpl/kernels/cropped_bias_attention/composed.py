"""Attention with a cropped bias in PyTorch, differentiable. Shapes: see the package."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from refimpl.kernels import wide


def offsets(side: int, largest: int, device: torch.device) -> Tensor:
    """The table's entry, row by row, that two tokens of the grid share: (n, n) int64."""
    token = torch.arange(side * side, device=device)
    row, column = token // side, token % side
    down = row[:, None] - row + largest - 1
    right = column[:, None] - column + largest - 1
    return down * (2 * largest - 1) + right


def with_torch(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """y (b, heads, n, e); products in the queries' type, the softmax in float32 or wider."""
    real = wide(queries.dtype)
    side, largest = math.isqrt(queries.shape[2]), (table.shape[1] + 1) // 2
    index = offsets(side, largest, table.device)
    bias = table.flatten(1)[:, index].to(real)  # (heads, n, n)
    scores = (queries * queries.shape[3] ** -0.5) @ keys.to(queries.dtype).mT
    weights = (scores.to(real) + bias).softmax(-1)
    return weights.to(queries.dtype) @ values.to(queries.dtype)
