"""What a routed block moves: salient tokens and a bridge are packed, a change goes back to all.

The traffic around a block of ToC3D: Zhang and others, arXiv 2409.00633 (2024); the readable form is
`refimpl.papers.toc3d.route`, which calls the block in between.

    r_j  = how many tokens of the window score higher (of equals, the first is higher)
    p_i  = x_j with r_j = i, for i < k;    p_k = Σ_{r_j ≥ k} s_j x_j / Σ_{r_j ≥ k} s_j
    y_j  = x_j + u_min(r_j, k)

    tokens   (b, n, c)        b windows of n = 256 or 400 tokens
    scores   (b, n)           log-probabilities, so of one sign
    update   (b, k + 1, c)    what the block adds to the packed tokens; 1 ≤ k < n
    packed   (b, k + 1, c)    p, the salient ones by falling score, then the bridge
    routed   (b, n, c)        y: the free path is that redundant tokens read the bridge's row of u

Both halves are here together, with u given. In use the block runs between them, so they are two
launches, and a third, tiny, ranks the scores: n² comparisons, done on the chip; a sort is not
needed, as a rank is a count.

Work: 2·c·(n − k) FLOP for the bridge and n·c additions. Traffic: tokens twice, packed once, update
once, routed once, 3·n + 2·(k + 1) rows of c numbers: about 0.2 FLOP per byte in float32, so memory
binds everywhere. Sorting, two gathers, a concatenation, zeros and two indexed writes, as the
official code has it, move the rows about twice as often.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.select_bridge_scatter.composed import with_torch
from refimpl.kernels.select_bridge_scatter.reference import naive, with_numpy

__all__ = ["cost", "example", "naive", "select_bridge_scatter", "with_numpy", "with_torch"]

AXES = {
    "tokens": "windows tokens channels",
    "scores": "windows tokens",
    "update": "windows kept+1 channels",
}


def select_bridge_scatter(
    tokens: Tensor, scores: Tensor, update: Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """packed (b, k + 1, c) and routed (b, n, c). Equation and shapes: see the module.

    Raises `ValueError` for shapes, types or devices that don't fit, and where no token is salient
    or none redundant.
    """
    tensors = {"tokens": tokens, "scores": scores, "update": update}
    sizes = checks.shapes(AXES, **tensors)
    checks.floating(**tensors)
    checks.same_device(**tensors)
    if not 1 < sizes["kept+1"] <= sizes["tokens"]:
        raise ValueError(
            f"update has {sizes['kept+1']} rows, one more than tokens are kept: it must be at least"
            f" 2 and at most {sizes['tokens']}, the tokens of a window"
        )
    results = dispatch("select_bridge_scatter", with_torch, backend, tokens, scores, update)
    packed, routed = (result.to(tokens.dtype) for result in results)
    return packed, routed


def cost(tokens: Tensor, scores: Tensor, update: Tensor) -> Cost:
    """The bridge's products and a sum a number; tokens twice, three packed or whole maps once."""
    b, n, c = tokens.shape
    rows = update.shape[1]
    redundant = n - rows + 1
    moved = b * (3 * n + 2 * rows) * c * tokens.element_size()
    moved += scores.numel() * scores.element_size()
    return Cost(flops=b * c * (2 * redundant + n), bytes=moved)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 2 windows of 9 tokens, 4 kept; or ("large") ToC3D-Fast's seventh block on one
    320×800 view: 8 windows of 16×16 tokens of 1024 channels, 179 kept."""
    b, n, keep, c = (2, 9, 4, 8) if size == "small" else (8, 256, 179, 1024)
    g = torch.Generator().manual_seed(seed)
    made = {
        "tokens": torch.randn(b, n, c, generator=g),
        "scores": torch.randn(b, n, generator=g).sigmoid().log(),
        "update": torch.randn(b, keep + 1, c, generator=g),
    }
    return {name: tensor.to(device, dtype) for name, tensor in made.items()}
