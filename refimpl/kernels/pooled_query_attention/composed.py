"""Attention with pooled queries in PyTorch, differentiable. Shapes: see the package."""

from __future__ import annotations

from torch import Tensor

from refimpl.kernels import wide


def with_torch(queries: Tensor, keys: Tensor, values: Tensor, pool: int = 4) -> Tensor:
    """y (b, heads, n, e); products in the queries' type, the softmax in float32 or wider."""
    asked = queries.unflatten(2, (pool, queries.shape[2] // pool)).amax(2)
    scores = (asked * queries.shape[-1] ** -0.5) @ keys.to(queries.dtype).mT
    weights = scores.to(wide(queries.dtype)).softmax(-1)
    return weights.to(queries.dtype) @ values.to(queries.dtype)
