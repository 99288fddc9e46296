"""A KAN layer in one pass: norm, eight bumps of each coordinate, and the product that reads them.

FasterKAN's form, Delis, github.com/AthanasiosDelis/faster-kan, of the Kolmogorov–Arnold networks of
Liu and others, arXiv 2404.19756 (2024), as MedViTV2 uses it; the readable form is
`refimpl.papers.medvitv2.KANLayer`.

    z   = (x − mean x) / √(var x + 10⁻⁵) · norm_weight + norm_bias          over the coordinates
    φ_j = sech²((z − g_j) / 0.33) = 4e / (1 + e)²,  e = exp(−2 |z − g_j| / 0.33)
    y_o = Σ_i Σ_j weight[o, G·i + j] φ_j(z_i)

    x            (n, c)       a row for each token
    norm_weight  (c)          norm_bias (c)
    grid         (G)          where the bumps stand; MedViTV2: 8 from −2 to 2
    weight       (out, c·G)   all bumps of a coordinate side by side
    y            (n, out)     in the type of x

sech² by one exponential neither overflows nor cancels, as 1 − tanh² does where it is small.

Work: 2·c·G·out FLOP a token for the product, about ten for each of its c·G heights. Traffic: x,
weights and y once. Composed of operators, the heights are an array G times as wide as x, written
and read several times; in tiles they never leave the chip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.kan_layer.composed import with_torch
from refimpl.kernels.kan_layer.reference import naive, with_numpy

__all__ = ["cost", "example", "kan_layer", "naive", "with_numpy", "with_torch"]

AXES = {
    "x": "tokens width",
    "norm_weight": "width",
    "norm_bias": "width",
    "grid": "bumps",
    "weight": "outputs reads",
}


def kan_layer(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    grid: Tensor,
    weight: Tensor,
    backend: str = "auto",
) -> Tensor:
    """y (n, out). Equation and shapes: see the module.

    Raises `ValueError` for shapes, types or devices that don't fit.
    """
    tensors = {
        "x": x,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "grid": grid,
        "weight": weight,
    }
    sizes = checks.shapes(AXES, **tensors)
    checks.at_least(1, **{"width of x": sizes["width"], "bumps of grid": sizes["bumps"]})
    if sizes["reads"] != sizes["width"] * sizes["bumps"]:
        raise ValueError(
            f"weight must be (outputs, {sizes['width'] * sizes['bumps']}), {sizes['bumps']} bumps"
            f" for each of {sizes['width']} coordinates, got {tuple(weight.shape)}"
        )
    checks.floating(**tensors)
    checks.same_device(**tensors)
    result = dispatch("kan_layer", with_torch, backend, x, norm_weight, norm_bias, grid, weight)
    return result.to(x.dtype)


def cost(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, grid: Tensor, weight: Tensor) -> Cost:
    """The product and ten FLOP a height; input, weights and output once."""
    n = x.shape[0]
    out, reads = weight.shape
    numbers = x.numel() + 2 * norm_weight.numel() + weight.numel() + n * out
    return Cost(flops=n * reads * (2 * out + 10), bytes=numbers * x.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 5 tokens, 6 → 4; or ("large") the first KAN layer of MedViTV2-tiny's third stage,
    one image of 224 pixels: 14 × 14 tokens, 192 → 384."""
    n, c, out = (5, 6, 4) if size == "small" else (14 * 14, 192, 384)
    g = torch.Generator().manual_seed(seed)
    made = {
        "x": torch.randn(n, c, generator=g),
        "norm_weight": torch.rand(c, generator=g) + 0.5,
        "norm_bias": 0.1 * torch.randn(c, generator=g),
        "grid": torch.linspace(-2, 2, 8),
        "weight": torch.randn(out, 8 * c, generator=g) / (8 * c) ** 0.5,
    }
    return {name: tensor.to(device, dtype) for name, tensor in made.items()}
