"""Attention read the other way in PyTorch, differentiable. Equation and shapes: see the package."""

from __future__ import annotations

from torch import Tensor

from refimpl.kernels import wide


def with_torch(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """y (b, heads, n, e); products in the queries' type, the softmax in float32 or wider."""
    scale = queries.shape[-1] ** -0.5
    scores = keys.to(queries.dtype) @ (queries * scale).mT  # (b, heads, n, m): a row is a softmax
    weights = scores.to(wide(queries.dtype)).softmax(-1)
    return weights.to(queries.dtype) @ values.to(queries.dtype)
