"""Sums of chosen rows: a product with a matrix of zeros and ones, which has nothing to multiply.

ShiftAddViT (You et al., arXiv 2306.06446), where it is called MatAdd; official code:
GATECH-EIC/ShiftAddViT, Ops_Speedups.

    sums[o, c] = Σ_i  values[i, c]  where mask[i, o] is 1        sums = maskᵀ values

    values    (b, n, c)                     floating point
    mask      (b, n, ⌈outputs / 32⌉) int32  32 outputs in a word, the first in the lowest bit
    result    (b, outputs, c)               in the type of values

In attention over codes it runs twice: the values' rows by the bits of the keys (outputs = bits),
and of these sums the rows by the bits of the queries (n = bits, outputs = tokens).

Work: b·n·outputs·c/2 additions where half of the bits are 1, and no product. Traffic: values once,
n·outputs/8 bytes of mask, and the result; for 3136 tokens, 16 bits and 32 channels two additions
per byte, so that memory is the limit. The same as a product costs 2·b·n·outputs·c FLOP, which an
arithmetic unit that is made for products has for nothing: on a CPU with BLAS, and on tensor cores,
the product is the fastest form. What speaks for sums is the energy of a chip made for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.masked_sum.composed import with_torch
from refimpl.kernels.masked_sum.reference import WORD, naive, pack, unpack, with_numpy

__all__ = ["cost", "example", "masked_sum", "naive", "pack", "unpack", "with_numpy", "with_torch"]


def masked_sum(values: Tensor, mask: Tensor, outputs: int, backend: str = "auto") -> Tensor:
    """maskᵀ values: (b, n, c) -> (b, outputs, c). Equation and shapes: see the module.

    Differentiable in values. Raises `ValueError` for what does not fit.
    """
    check(values, mask, outputs)
    sums = dispatch("masked_sum", with_torch, backend, values, mask, outputs=outputs)
    return sums.to(values.dtype)


def check(values, mask, outputs) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    checks.integer(1, outputs=outputs)
    checks.floating(values=values)
    if mask.dtype != torch.int32:
        raise ValueError(f"mask must be int32, got {mask.dtype}")
    checks.shapes({"values": "batch tokens channels"}, values=values)
    batch, tokens, _ = values.shape
    checks.shapes({"mask": f"{batch} {tokens} {-(-outputs // WORD)}"}, mask=mask)
    checks.same_device(values=values, mask=mask)


def cost(values: Tensor, mask: Tensor, outputs: int, **_) -> Cost:
    """An addition for every second bit; every argument and the result once through memory."""
    batch, tokens, channels = values.shape
    moved = values.nbytes + mask.nbytes + batch * outputs * channels * values.element_size()
    return Cost(flops=batch * tokens * outputs * channels / 2, bytes=moved)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 2 heads, 9 tokens, 8 channels, 16 bits; or ("large") 4, 3136, 32, 16."""
    batch, tokens, channels, outputs = (2, 9, 8, 16) if size == "small" else (4, 3136, 32, 16)
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, tokens, channels, generator=g, dtype=torch.float64)
    chosen = torch.rand(batch, tokens, outputs, generator=g) < 0.5
    return {
        "values": values.to(device, dtype),
        "mask": pack(chosen).to(device),
        "outputs": outputs,
    }
