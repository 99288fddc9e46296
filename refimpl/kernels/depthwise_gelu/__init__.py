"""Depthwise k×k convolution with bias and GELU on channels-last maps, in one pass.

Ma and others, *Efficient Modulation for Vision Networks*, arXiv 2403.19963 (2024): the context of a
modulation block. The readable PyTorch form is `refimpl.papers.efficientmod.context`'s.

    z[b, y, x, c] = bias[c] + Σ over i, j of weight[c, i, j] · map[b, y + i − k//2, x + j − k//2, c]
    out = GELU(z) = z · Φ(z)                              zeros outside the map

    x, out     (b, h, w, c)      channels last, as the linear layers around want it
    weight     (c, k, k)         k odd
    bias       (c,)

Work: 2 k² + 8 FLOP for each of the b·h·w·c numbers (erf as seven), 106 for k = 7. Traffic: every
number is read once and written once, if its neighbours' reads hit the cache: 8 bytes in float32.
That is 13 FLOP per byte for k = 7: near the ridge of a CPU core, below a GPU's, where the limit is
memory. As two operators the map crosses memory twice more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.depthwise_gelu.composed import with_torch
from refimpl.kernels.depthwise_gelu.reference import naive, with_numpy

__all__ = ["cost", "depthwise_gelu", "example", "naive", "with_numpy", "with_torch"]


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor, backend: str = "auto") -> Tensor:
    """GELU(depthwise convolution): (b, h, w, c). Equation and shapes: see the module.

    The PyTorch form carries gradients, so "auto" takes it where a gradient is asked for; Triton's
    is forward only. Raises `ValueError` for shapes, types or devices that don't fit.
    """
    check(x, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias)):
        if backend == "triton":
            raise ValueError(
                "depthwise_gelu: backend='triton' has no backward pass; take backend='torch', or"
                " torch.no_grad()"
            )
        if backend == "auto":
            backend = "torch"
    return dispatch("depthwise_gelu", with_torch, backend, x, weight, bias).to(x.dtype)


def check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    axes = {"x": "batch height width channels", "weight": "channels k k", "bias": "channels"}
    sizes = checks.shapes(axes, x=x, weight=weight, bias=bias)
    if 0 in (sizes["height"], sizes["width"], sizes["channels"]):
        raise ValueError(f"x must have pixels and channels, got {tuple(x.shape)}")
    if sizes["k"] % 2 == 0:
        raise ValueError(f"weight must have k odd, got {tuple(weight.shape)}")
    checks.floating(x=x)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, x is {x.dtype}: all must be of one type")
    checks.same_device(x=x, weight=weight, bias=bias)


def cost(x: Tensor, weight: Tensor, bias: Tensor) -> Cost:
    """Work of one forward call."""
    flops = x.numel() * (2 * weight.shape[1] ** 2 + 8)
    moved = 2 * x.numel() + weight.numel() + bias.numel()
    return Cost(flops=flops, bytes=moved * x.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: EfficientMod-s in its third stage, 14×14 pixels and 144 channels of 16 images
    ("large"), or two maps of 4×5 ("small")."""
    batch, height, width, channels, k = {
        "small": (2, 4, 5, 3, 3),
        "large": (16, 14, 14, 144, 7),
    }[size]
    g = torch.Generator().manual_seed(seed)
    arguments = {
        "x": torch.randn(batch, height, width, channels, generator=g),
        "weight": torch.randn(channels, k, k, generator=g) / k,
        "bias": 0.1 * torch.randn(channels, generator=g),
    }
    return {name: tensor.to(device, dtype) for name, tensor in arguments.items()}
