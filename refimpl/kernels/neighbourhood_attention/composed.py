"""Neighbourhood attention in PyTorch, in row bands, differentiable. Shapes: see the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels import transformed, wide


def with_torch(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    window_size: tuple[int, int] = (7, 7),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """y (b, heads, h, w, d). Tokens of equal remainders by the dilation are a map of their own."""
    given = queries, keys.to(queries.dtype), values.to(queries.dtype)
    columns = []
    for right in range(dilation[1]):
        rows = []
        for down in range(dilation[0]):
            part = [x[:, :, down :: dilation[0], right :: dilation[1]] for x in given]
            rows.append(bands(*part, bias, window_size))
        columns.append(interleaved(rows, 2))
    return interleaved(columns, 3)


def interleaved(parts: list[Tensor], axis: int) -> Tensor:
    """Every so many-th row (or column) from another part: what slicing with a step took apart."""
    if len(parts) == 1:
        return parts[0]
    sizes = [part.shape[axis] for part in parts]
    order = torch.cat([torch.arange(size) * len(parts) + i for i, size in enumerate(sizes)])
    return torch.cat(parts, axis).index_select(axis, order.argsort().to(parts[0].device))


def bands(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, window_size: tuple[int, int]
) -> Tensor:
    """Without dilation. A row of queries meets the k whole rows of its windows, a band, in one
    product; what lies beside a query's window gets the score −∞.

    Rows of the middle have theirs around them and one mask in common, in which a row of the bias
    table stands for a distance; near the borders each row has another piece of the same table.
    """
    b, heads, height, width, d = queries.shape
    k = window_size[0]
    table = column_table(bias, width, window_size, queries).repeat(b, 1, 1, 1)
    rows = queries.flatten(0, 1)  # (b·heads, h, w, d)
    all_keys, all_values = [
        x.flatten(0, 1).flatten(1, 2).unfold(1, k * width, width).mT for x in (keys, values)
    ]  # (b·heads, h − k + 1, k·w, d): bands overlap, nothing is copied
    middle = k // 2
    fused = not asks_for_gradients(queries, keys, values, bias)
    parts = []
    for shift in range(k):  # how far down in its band a row stands
        first = shift if shift <= middle else height - k + shift
        count = height - k + 1 if shift == middle else 1
        top = min(first - shift, height - k)
        mask = table[:, :, k - 1 - shift : 2 * k - 1 - shift].flatten(2)[:, None]
        band = slice(top, top + count)
        three = rows[:, first : first + count], all_keys[:, band], all_values[:, band]
        parts.append(attend(*three, mask, fused))
    return torch.cat(parts, 1).view(b, heads, height, width, d)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, fused: bool) -> Tensor:
    """Attention with a mask that is added; PyTorch's fused kernel has no second derivative."""
    if fused:
        return F.scaled_dot_product_attention(queries, keys, values, mask)
    scores = queries * queries.shape[-1] ** -0.5 @ keys.mT + mask
    return scores.to(wide(queries.dtype)).softmax(-1).to(queries.dtype) @ values


def asks_for_gradients(*tensors: Tensor | None) -> bool:
    """Whether a gradient is wanted, or something done to operators that a fused one can't bear."""
    asked = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return (torch.is_grad_enabled() and asked) or transformed() is not None


def column_table(
    bias: Tensor | None, width: int, window_size: tuple[int, int], queries: Tensor
) -> Tensor:
    """Bias or −∞ for each query and key of a row, at each distance of rows: (heads or …, w, 2k − 1,
    w). Without a bias, zeros and −∞."""
    down, right = window_size
    column = torch.arange(width, device=queries.device)
    first = (column - right // 2).clamp(0, width - right)[:, None]
    outside = (column < first) | (column >= first + right)  # (w of queries, w of keys)
    if bias is None:
        table = queries.new_zeros(queries.shape[1], 2 * down - 1, width, width)
    else:
        distance = (column - column[:, None] + right - 1).clamp(0, 2 * right - 2)
        table = bias.to(queries.dtype)[:, :, distance]
    table = table.masked_fill(outside, -torch.inf)
    return table.transpose(1, 2).contiguous()
