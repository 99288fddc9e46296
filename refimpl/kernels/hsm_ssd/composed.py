"""Hidden state mixer in PyTorch, differentiable. Equation and shapes: see the package."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def with_torch(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor | None,
    D: Tensor,
    hz_weight: Tensor,
    out_weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """y (b, d, l) and the mixed states (b, d, n)."""
    h = mix(to_states(x, dt if A is None else dt + A[:, None], B), D, hz_weight, out_weight)
    return h @ C, h


def to_states(x: Tensor, logits: Tensor, B: Tensor) -> Tensor:
    """Tokens to states, x (w ⊙ B)ᵀ with w = softmax(logits): (b, d, l), (b, n, l) -> (b, d, n)."""
    w = logits.softmax(-1)
    return x @ (w * B).transpose(-1, -2)


def mix(h: Tensor, D: Tensor, hz_weight: Tensor, out_weight: Tensor) -> Tensor:
    """The mixing, W_out (p ⊙ silu(z) + D p) with [p; z] = W_hz h: (b, d, n) -> (b, d, n)."""
    p, z = (hz_weight @ h).chunk(2, 1)
    return out_weight @ (p * F.silu(z) + D * p)
