"""Grid lookup in PyTorch, differentiable in table and points. Equation: see the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels import wide
from refimpl.kernels.grid_encode.reference import PRIME, levels


def with_torch(points: Tensor, table: Tensor, scales: Sequence[float], max_entries: int) -> Tensor:
    """(n, L · f), all points and levels at once: a weighted `embedding_bag` of four rows each."""
    real = torch.promote_types(wide(points.dtype), wide(table.dtype))
    scale, lines, rows, first, hashed = (
        torch.tensor(column, device=points.device)
        for column in zip(*levels(tuple(scales), max_entries), strict=True)
    )
    place = points[:, None].to(real) * scale.to(real)[:, None] + 0.5  # (n, L, 2)
    cell = place.detach().floor()
    tx, ty = (place - cell).unbind(-1)
    x, y = cell.long().unbind(-1)
    # The four corners, in the order of CORNERS: (n, L, 4)
    x = torch.stack([x, x + 1, x, x + 1], -1)
    y = torch.stack([y, y, y + 1, y + 1], -1)
    index = x + y * lines[:, None]
    if any(level.hashed for level in levels(tuple(scales), max_entries)):
        index = torch.where(hashed[:, None], x ^ (y * PRIME & 0xFFFFFFFF), index)
    index = first[:, None] + index % rows[:, None]
    weight = torch.stack([(1 - tx) * (1 - ty), tx * (1 - ty), (1 - tx) * ty, tx * ty], -1)
    bags = F.embedding_bag(
        index.view(-1, 4),
        table.to(real),
        mode="sum",
        per_sample_weights=weight.reshape(-1, 4),
    )
    return bags.view(points.shape[0], len(scales) * table.shape[1])
