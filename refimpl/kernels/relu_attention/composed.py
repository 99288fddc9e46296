"""ReLU-softmax attention in PyTorch, differentiable. Equation and shapes: see the package."""

from __future__ import annotations

from torch import Tensor

from refimpl.kernels import wide
from refimpl.kernels.relu_attention.reference import EPSILON


def with_torch(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """y (b, heads, n, e); products in the queries' type, sums and quotient in float32 or wider.

    The division comes after the product with the values: of n·e numbers, not of n·m.
    """
    scale = queries.shape[-1] ** -0.5
    weights = ((queries * scale) @ keys.to(queries.dtype).mT).relu()
    total = weights.sum(-1, keepdim=True, dtype=wide(queries.dtype)) + EPSILON
    return (weights @ values.to(queries.dtype)) / total
