"""Gram matrix of gradients, added to what other layers gave: one layer's part of a tangent kernel.

Chen and others, *Auto-scaling Vision Transformers without Training*, arXiv 2202.11921 (2022); the
readable form stands in `refimpl.papers.asvit`.

    K_ij = T_ij + Σ_p g_ip · g_jp

    gradients   (b, n, p)   n samples' gradients by the p weights of a layer, b times
    total       (b, n, n)   what the layers before gave, or `None` for zero
    result      (b, n, n)   in the type of the gradients

A kernel of all P weights is the sum over layers of such products, so a network's gradients (n, P)
need never lie side by side. `total` is left alone.

Work: n² p multiply-adds (half of them, where only one triangle is computed). Traffic: the gradients
once. That is n/2 FLOP per byte in float32, 8 for 16 samples, so memory binds on every machine:
2.3 million weights, 148 MB, are 31 µs of an H200 and 10 ms of a CPU's core.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.gradient_gram.composed import with_torch
from refimpl.kernels.gradient_gram.reference import naive, with_numpy

__all__ = ["cost", "example", "gradient_gram", "naive", "with_numpy", "with_torch"]

AXES = {"gradients": "batch samples weights", "total": "batch samples samples"}


def gradient_gram(gradients: Tensor, total: Tensor | None = None, backend: str = "auto") -> Tensor:
    """K (b, n, n). Equation and shapes: see the module.

    Raises `ValueError` for shapes or types that don't fit.
    """
    checks.shapes(AXES, gradients=gradients, total=total)
    checks.floating(gradients=gradients, total=total)
    checks.same_device(gradients=gradients, total=total)
    if gradients.is_meta:
        raise ValueError("gradients is on the meta device, which holds no numbers to sum")
    found = dispatch("gradient_gram", with_torch, backend, gradients, total)
    return found.to(gradients.dtype)


def cost(gradients: Tensor, total: Tensor | None = None) -> Cost:
    """Two FLOPs for each pair of samples and weight; the gradients once, and the matrices."""
    batch, samples, weights = gradients.shape
    moved = gradients.nbytes + batch * samples**2 * gradients.element_size()
    if total is not None:
        moved += total.nbytes
    return Cost(flops=2 * batch * samples**2 * weights, bytes=moved)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 3 samples, 5 weights; or ("large") 16 samples and the million weights of a layer.

    The total is a Gram matrix, too, of as many other weights.
    """
    samples, weights = (3, 5) if size == "small" else (16, 1 << 20)
    g = torch.Generator().manual_seed(seed)
    gradients = torch.randn(1, samples, weights, generator=g) / weights**0.5
    root = torch.randn(1, samples, samples, generator=g)
    total = root @ root.mT / samples
    return {"gradients": gradients.to(device, dtype), "total": total.to(device, dtype)}
