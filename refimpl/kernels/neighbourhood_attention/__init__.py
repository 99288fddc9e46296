"""Attention of each token of a map to the window of tokens around it, every δ-th of them.

Neighbourhood attention, Hassani and others, CVPR 2023, arXiv 2204.07143, and its dilated form,
Hassani and Shi, arXiv 2209.15001 (2022); the readable form is
`refimpl.papers.medvitv2.neighbourhood_attention`.

    on an axis of length L, for the query at i:  r = i mod δ,  p = ⌊i/δ⌋,  n = ⌈(L − r)/δ⌉
    start  s    = clamp(p − ⌊k/2⌋, 0, n − k)            at a border the window is shifted inwards
    keys   j_a  = (s + a)·δ + r,  a = 0 … k − 1         in 2-D: rows × columns
    scores s_ij = ⟨q_i, k_j⟩ / √d + bias[head, rows on + k − 1, columns on + k − 1]
    y_i         = Σ_j softmax_j(s_ij) v_j

    queries, keys, values  (b, heads, h, w, d)
    bias                   (heads, 2·k_h − 1, 2·k_w − 1), by the distance in steps of δ; or none
    window_size, dilation  (rows, columns): an odd number each, and k·δ must fit into the side
    y                      (b, heads, h, w, d), in the type of the queries

Work: 4·k²·d FLOP a query and about five for each of its k² scores. Traffic: queries, keys, values
and results once: 16·d bytes a query in float32, so 12 FLOP per byte at k = 7 and d = 32
(`cost(**example("large"))`). Gathered windows, as NumPy and the readable form have them, are k²
times the keys and as many values; a band of k whole rows for each row of queries is k times these,
one dense product, and a mask leaves the window: more multiplications, done several times as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.neighbourhood_attention.composed import with_torch
from refimpl.kernels.neighbourhood_attention.reference import naive, with_numpy

__all__ = [
    "check_window",
    "cost",
    "example",
    "naive",
    "neighbourhood_attention",
    "with_numpy",
    "with_torch",
]

AXES = {
    "queries": "batch heads rows columns width",
    "keys": "batch heads rows columns width",
    "values": "batch heads rows columns width",
    "bias": "heads down right",
}
Pair = tuple[int, int]


def check_window(
    grid: tuple[int, ...], window_size: tuple[int, ...], dilation: tuple[int, ...]
) -> None:
    """Raise a `ValueError` unless windows are odd, and fit into the grid as they are spread."""
    checks.integer(1, **{f"window_size[{i}]": size for i, size in enumerate(window_size)})
    checks.integer(1, **{f"dilation[{i}]": step for i, step in enumerate(dilation)})
    if any(size % 2 == 0 for size in window_size):
        raise ValueError(f"window_size={tuple(window_size)} must be odd: a token is in its middle")
    for side, size, step in zip(grid, window_size, dilation, strict=True):
        if size * step > side:
            raise ValueError(
                f"the grid of {'×'.join(map(str, grid))} tokens is too small for"
                f" window_size={size} with dilation={step}, which need {size * step} on that axis"
            )


def neighbourhood_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    window_size: Pair = (7, 7),
    dilation: Pair = (1, 1),
    backend: str = "auto",
) -> Tensor:
    """y (b, heads, h, w, d). Equation and shapes: see the module.

    Raises `ValueError` for shapes, windows, types or devices that don't fit.
    """
    tensors = {"queries": queries, "keys": keys, "values": values, "bias": bias}
    sizes = checks.shapes(AXES, **tensors)
    checks.floating(**tensors)
    checks.same_device(**tensors)
    checks.at_least(1, width=sizes["width"])
    check_window((sizes["rows"], sizes["columns"]), window_size, dilation)
    table = 2 * window_size[0] - 1, 2 * window_size[1] - 1
    if bias is not None and bias.shape[1:] != table:
        raise ValueError(
            f"bias must be (heads, {table[0]}, {table[1]}) for window_size={tuple(window_size)},"
            f" got {tuple(bias.shape)}"
        )
    result = dispatch(
        "neighbourhood_attention",
        with_torch,
        backend,
        queries,
        keys,
        values,
        bias,
        window_size=tuple(window_size),
        dilation=tuple(dilation),
    )
    return result.to(queries.dtype)


def cost(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    window_size: Pair = (7, 7),
    dilation: Pair = (1, 1),
) -> Cost:
    """Both products and five FLOP a score; queries, keys, values and results once."""
    scores = queries[..., 0].numel() * window_size[0] * window_size[1]
    numbers = 4 * queries.numel() + (0 if bias is None else bias.numel())
    return Cost(flops=scores * (4 * queries.shape[-1] + 5), bytes=numbers * queries.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: a window of 3 × 3 on 5 × 6 tokens; or ("large") the first block of MedViTV2-tiny
    with 8 images of 224 pixels: 7 × 7 on 56 × 56 tokens, 2 heads of width 32."""
    b, heads, h, w, d, k = (2, 2, 5, 6, 8, 3) if size == "small" else (8, 2, 56, 56, 32, 7)
    g = torch.Generator().manual_seed(seed)
    shapes = dict.fromkeys(("queries", "keys", "values"), (b, heads, h, w, d))
    shapes["bias"] = (heads, 2 * k - 1, 2 * k - 1)
    made = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    made = {name: tensor.to(device, dtype) for name, tensor in made.items()}
    return made | {"window_size": (k, k), "dilation": (1, 1)}
