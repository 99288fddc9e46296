"""The packed product in PyTorch, differentiable. Equation and shapes: see the package."""

from __future__ import annotations

from torch import Tensor

from refimpl.kernels import wide
from refimpl.kernels.packed_product.reference import unpack


def dequantised(qweight: Tensor, qzeros: Tensor, scales: Tensor, k: int, bits: int) -> Tensor:
    """W (k, n) in the type of the scales."""
    groups, outputs = scales.shape
    codes = unpack(qweight, k, bits).view(groups, k // groups, outputs)  # (groups, g, n)
    zeros = unpack(qzeros.T, outputs, bits).T  # (groups, n)
    return ((codes - zeros[:, None]) * scales[:, None]).view(k, outputs)


def with_torch(
    x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor, *, bits: int = 4
) -> Tensor:
    """(b, n): dequantise in float32 at least, then one product in the type of x."""
    weight = dequantised(qweight, qzeros, scales.to(wide(x.dtype)), x.shape[1], bits)
    return x @ weight.to(x.dtype)
