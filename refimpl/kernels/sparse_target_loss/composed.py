"""The loss on a sparse target in PyTorch, differentiable. Equation and shapes: see the package."""

from __future__ import annotations

from torch import Tensor

from refimpl.kernels import wide


def with_torch(logits: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
    """(b,): logits are read for a maximum and two sums; K of each row are gathered."""
    real = wide(logits.dtype)
    p = probabilities.to(real)
    z = logits.to(real)
    z = z - z.detach().amax(1, keepdim=True)  # changes nothing but the rounding
    others = z.shape[1] - p.shape[1]
    share = (1 - p.sum(1)) / max(others, 1)  # m
    total = p.sum(1) + others * share  # T
    stored = ((p - share[:, None]) * z.gather(1, indices)).sum(1)
    return (total * z.logsumexp(1) - stored - share * z.sum(1)).to(logits.dtype)
