"""Norms in front of a product, for inference: what they multiply and add, the product takes in.

A norm over features depends on the image and stays, but its scale γ and shift β are a diagonal
matrix and a vector. A batch norm is constant after training, and goes into the product whole.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from refimpl.deploy import linear_like


@torch.no_grad()
def behind_norm(norm: nn.Module, layer: nn.Linear | nn.Conv2d) -> nn.Linear:
    """The product that makes of the bare normalisation what `layer(norm(x))` is.

    W′ = W diag(γ), b′ = W β + b. layer: linear, or a 1×1 convolution.
    """
    weight = layer.weight.flatten(1)
    bias = weight @ norm.bias
    if layer.bias is not None:
        bias = bias + layer.bias
    folded = linear_like(weight * norm.weight, bias)
    return folded.requires_grad_(layer.weight.requires_grad)


def bare(norm: nn.LayerNorm) -> nn.LayerNorm:
    """The normalisation without scale and shift."""
    return nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)


def affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation mode, (c,) each."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - scale * norm.running_mean


@torch.no_grad()
def fold_norms_before(norms: Sequence[nn.Module], layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """The map that computes layer(norm_n(… norm_1(x))) in evaluation mode: W' = W diag(s),
    b' = b + W t, where the norms together are x ↦ s x + t.

    norms: batch norms; an identity among them is passed over.
    layer: linear, or a 1×1 convolution. A larger kernel sees the zeros of the padding, which the
    norms do not shift: it has no such form, and a `ValueError` says so.
    """
    if isinstance(layer, nn.Conv2d) and (layer.kernel_size != (1, 1) or layer.padding != (0, 0)):
        raise ValueError(
            f"kernel_size={layer.kernel_size}, padding={layer.padding} must be (1, 1) and (0, 0):"
            " the zeros of a padding do not go through the norm"
        )
    first, *others = [norm for norm in norms if not isinstance(norm, nn.Identity)]
    scale, shift = affine(first)
    for norm in others:
        s, t = affine(norm)
        scale, shift = s * scale, s * shift + t
    folded = copy.deepcopy(layer)
    weight = layer.weight.flatten(1)  # (out, in)
    bias = weight @ shift if layer.bias is None else layer.bias + weight @ shift
    folded.weight.copy_((weight * scale).view_as(layer.weight))
    folded.bias = nn.Parameter(bias, layer.weight.requires_grad)
    return folded
