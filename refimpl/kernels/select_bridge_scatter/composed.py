"""Packing and handing back in PyTorch, differentiable. Equation and shapes: see the package."""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl.kernels import wide


def with_torch(tokens: Tensor, scores: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
    """(b, k + 1, c) and (b, n, c), in float32 or wider."""
    tokens, scores, update = (t.to(wide(tokens.dtype)) for t in (tokens, scores, update))
    keep = update.shape[1] - 1
    order = scores.argsort(stable=True, dim=1, descending=True)
    salient, redundant = order[:, :keep], order[:, keep:]
    weights = scores.gather(1, redundant)
    weights = weights / weights.sum(1, keepdim=True)
    bridge = weights[:, None] @ rows(tokens, redundant)
    representative = order.argsort(1).clamp(max=keep)
    packed = torch.cat([rows(tokens, salient), bridge], 1)
    return packed, tokens + rows(update, representative)


def rows(tokens: Tensor, index: Tensor) -> Tensor:
    """(b, n, c), (b, m) -> (b, m, c)"""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
