"""Norms over features for inference: what they multiply and add goes into the product behind them.

Such a norm depends on the image and stays, but its scale γ and shift β are a diagonal matrix and a
vector, which the linear layer behind it takes in.
"""

from __future__ import annotations

import torch
from torch import nn

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
