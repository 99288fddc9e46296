"""Confidence and entropy in PyTorch, differentiable. Equation and shapes: see the package."""

from __future__ import annotations

from torch import Tensor

from refimpl.kernels import wide


def with_torch(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(b,) each, in float32 or wider."""
    log_p = logits.to(wide(logits.dtype)).log_softmax(-1)
    p = log_p.exp()
    return p.amax(-1), -(p * log_p.clamp(min=-1e4)).sum(-1)  # 0 · log 0 = 0
