"""The way into a node in PyTorch, differentiable as often as one likes. Equation: the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def by_parity(weight: Tensor) -> Tensor:
    """3×3 weights on the enlarged map -> 2×2 on the small one: (o, c, 3, 3) -> (4·o, c, 2, 2).

    The first o outputs are for even rows and even columns, then even and odd, odd and even, odd and
    odd. Sums are taken in float32 at least.
    """
    total = weight.to(torch.promote_types(weight.dtype, torch.float32))
    first, middle, last = total.unbind(2)
    rows = [(first, middle + last), (first + middle, last)]  # even: i−1, i, i; odd: i, i, i+1
    summed = []
    for above, under in rows:
        pair = torch.stack([above, under], dim=2)  # (o, c, 2, 3)
        left, centre, right = pair.unbind(3)
        summed.append(torch.stack([left, centre + right], dim=3))
        summed.append(torch.stack([left + centre, right], dim=3))
    return torch.cat(summed).to(weight.dtype)


def interleave(y: Tensor) -> Tensor:
    """What the four 2×2 convolutions give: (b, 4·o, h + 1, w + 1) -> (b, o, 2h, 2w).

    An output of an even row starts at the row above it, one of an odd row at its own.
    """
    height, width = y.shape[2] - 1, y.shape[3] - 1
    rows = []
    for i, pair in enumerate(y.chunk(2, dim=1)):
        columns = []
        for j, part in enumerate(pair.chunk(2, dim=1)):
            columns.append(part[:, :, i : i + height, j : j + width])
        rows.append(torch.stack(columns, dim=4).flatten(3))  # (b, o, h, 2w)
    return torch.stack(rows, dim=3).flatten(2, 3)


def with_torch(below: Tensor, beside: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(b, o, 2h, 2w): the small map by four 2×2 convolutions, the large one by its own."""
    of_below, of_beside = weight.split([below.shape[1], beside.shape[1]], dim=1)
    y = interleave(F.conv2d(below, by_parity(of_below), padding=1)) + bias[:, None, None]
    return y + F.conv2d(beside, of_beside, padding=1) if beside.shape[1] else y
