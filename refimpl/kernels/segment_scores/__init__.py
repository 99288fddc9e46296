"""Saliency of groups of weights: squares of segmented sums of weight times gradient.

The score of Yang and others, *Global Vision Transformer Pruning with Hessian-Aware Saliency*, arXiv
2110.04869 (2023), and of Molchanov and others, *Importance Estimation for Neural Network Pruning*,
arXiv 1906.10771 (2019); the readable form stands in `refimpl.papers.nvit`.

    s_g = (Σ_o Σ_i w_ogi · d_ogi)²        d = dL/dw

    weight, gradient    (b, outer, g, inner)    b matrices of one shape
    scores              (b, g)                  in the type of the weights

Every way to cut a matrix is this one, by `view`: rows (out, in) -> (1, out, in); columns -> (out,
in, 1); slabs of heads (heads · d, in) -> (1, heads, d · in); one unit of every head -> (heads, d,
in). The sum is squared, not each product, as one gate moves all weights of a group together.

Work: two FLOPs a weight. Traffic: both tensors once, and a number a group: a quarter of a FLOP per
byte, so memory binds everywhere. A product that is written and then summed moves twice as much.
It runs once a mini-batch, a thousandth of the backward pass that it follows; it is here as the
plainest reduction in which the layout decides, as rows and columns want other tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.segment_scores.composed import with_torch
from refimpl.kernels.segment_scores.reference import naive, with_numpy

__all__ = ["cost", "example", "naive", "segment_scores", "with_numpy", "with_torch"]

AXES = {"weight": "batch outer groups inner", "gradient": "batch outer groups inner"}


def segment_scores(weight: Tensor, gradient: Tensor, backend: str = "auto") -> Tensor:
    """Scores (b, groups). Equation and shapes: see the module.

    Raises `ValueError` for shapes or types that don't fit.
    """
    checks.shapes(AXES, weight=weight, gradient=gradient)
    checks.floating(weight=weight, gradient=gradient)
    checks.same_device(weight=weight, gradient=gradient)
    if weight.is_meta:
        raise ValueError("weight is on the meta device, which holds no numbers to sum")
    return dispatch("segment_scores", with_torch, backend, weight, gradient).to(weight.dtype)


def cost(weight: Tensor, gradient: Tensor) -> Cost:
    """Two FLOPs a weight; both tensors once, and a number a group."""
    batch, _, groups, _ = weight.shape
    read = weight.numel() * (weight.element_size() + gradient.element_size())
    written = batch * groups * weight.element_size()
    return Cost(flops=2 * weight.numel(), bytes=read + written)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: the 4 columns of two 3×4 matrices; or ("large") the rows of DeiT-B's first linear
    layers, 12 matrices of 3072×768."""
    shape = (2, 3, 4, 1) if size == "small" else (12, 1, 3072, 768)
    g = torch.Generator().manual_seed(seed)
    names = ("weight", "gradient")
    return {name: torch.randn(shape, generator=g).to(device, dtype) for name in names}
