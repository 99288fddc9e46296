"""The gate of a modulation block: an activated value times its context, the context tiled.

Ma and others, *Efficient Modulation for Vision Networks*, arXiv 2403.19963 (2024). The readable
PyTorch form is `refimpl.papers.efficientmod.modulation`'s.

    out[p, j] = φ(value[p, j]) · context[p, j mod d]        φ = GELU (with erf); r = 1: identity

    value      (p, r·d)      p: pixels of all images
    context    (p, d)        tiled r times, end to end
    out        (p, r·d)

The way back, with φ′(u) = Φ(u) + u·N(u) (distribution and density of the normal):

    ∂value[p, j] = φ′(value[p, j]) · context[p, j mod d] · ∂out[p, j]
    ∂context[p, i] = Σ over the tiles j = i, i + d, … of φ(value[p, j]) · ∂out[p, j]

Work: about 10 FLOP for each of the p·r·d numbers (erf as seven), 1 for r = 1. Traffic: composed of
operators GELU reads and writes r·d numbers per pixel, the tiling reads d and writes r·d, and the
product reads 2 r·d and writes r·d: (6 r + 1) d. In one pass r·d + d are read and r·d written:
(2 r + 1) d, for r = 6 a factor of 2.8 less. The limit is memory: bandwidth / (4 (2 r + 1) d)
pixels per second in float32, at about 1 FLOP per byte.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.modulation_gate.composed import with_torch
from refimpl.kernels.modulation_gate.reference import naive, with_numpy

__all__ = ["cost", "example", "modulation_gate", "naive", "with_numpy", "with_torch"]


def modulation_gate(value: Tensor, context: Tensor, backend: str = "auto") -> Tensor:
    """φ(value) ⊙ tile(context): (p, r·d). Equation and shapes: see the module.

    Raises `ValueError` for shapes, types or devices that don't fit.
    """
    check(value, context)
    return dispatch("modulation_gate", with_torch, backend, value, context).to(value.dtype)


def check(value: Tensor, context: Tensor) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the other."""
    sizes = checks.shapes(
        {"value": "pixels hidden", "context": "pixels channels"}, value=value, context=context
    )
    channels = sizes["channels"]
    if channels == 0:
        raise ValueError(f"context must have at least one channel, got {tuple(context.shape)}")
    checks.multiple(channels, "the channels of context", **{"value.shape[1]": sizes["hidden"]})
    checks.floating(value=value)
    if context.dtype != value.dtype:
        raise ValueError(f"context is {context.dtype}, value is {value.dtype}: want one type")
    checks.same_device(value=value, context=context)


def cost(value: Tensor, context: Tensor) -> Cost:
    """Work of one forward call."""
    each = 10 if value.shape[1] > context.shape[1] else 1
    moved = 2 * value.numel() + context.numel()
    return Cost(flops=each * value.numel(), bytes=moved * value.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: a wide block of EfficientMod-s in its third stage, 14×14 pixels of 16 images, 144
    channels and r = 6 ("large"), or six pixels ("small")."""
    pixels, channels, ratio = {"small": (6, 4, 3), "large": (16 * 14 * 14, 144, 6)}[size]
    g = torch.Generator().manual_seed(seed)
    value = torch.randn(pixels, ratio * channels, generator=g)
    context = torch.randn(pixels, channels, generator=g)
    return {"value": value.to(device, dtype), "context": context.to(device, dtype)}
