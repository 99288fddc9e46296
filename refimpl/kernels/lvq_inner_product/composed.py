"""LVQ inner products in PyTorch, differentiable. Equation and shapes: see the package."""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl.kernels import wide
from refimpl.kernels.lvq_inner_product.reference import unpack


def with_torch(
    queries: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor | None = None,
    *,
    bits: int = 8,
    block: int = 2048,
) -> Tensor:
    """(…, m, n), `block` vectors at a time: the product in the queries' type, the rest in float32.

    Differentiable in queries, scale, bias and mean.
    """
    real = wide(queries.dtype)
    scale = scale.to(real)[..., None, :]
    bias = bias.to(real)[..., None, :]
    total = queries.to(real).sum(-1, keepdim=True)
    products = []
    blocks = (codes.split(block, -2), scale.split(block, -1), bias.split(block, -1))
    for codes_part, scale_part, bias_part in zip(*blocks, strict=True):
        digits = unpack(codes_part, queries.shape[-1], bits).to(queries.dtype)
        dots = (queries @ digits.mT).to(real)
        products.append(torch.addcmul(total * bias_part, dots, scale_part))
    result = torch.cat(products, -1) if len(products) > 1 else products[0]
    if mean is None:
        return result
    return result + (queries.to(real) @ mean.to(real))[..., None]
