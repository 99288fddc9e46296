"""Product with weights that are signed powers of two: shifts of the exponent, and sums.

DeepShift's weights (Elhoushi et al., arXiv 1905.13298) as ShiftAddViT uses them (You et al., arXiv
2306.06446), where the operation is called MatShift; official code: GATECH-EIC/ShiftAddViT,
Ops_Speedups.

    W[i, o] = ± 2^−e[i, o], e from 0 to 14, or 0            y = x W

    x         (b, k)                 floating point
    codes     (⌈k / 6⌉, n)   int32   five bits a weight, e in the lower four (15: the weight is 0),
                                     the sign above; six in a word along the input, the first in
                                     the lowest bits, two bits of a word stay empty
    result    (b, n)                 in the type of x

x · 2^−e takes e off the exponent of x, and a weight is made by writing 127 − e into the exponent of
a float32: nothing is multiplied until the sums are done as a product.

Work: b·k·n shifts and as many additions; as a product 2·b·k·n FLOP. Traffic: 2/3 byte a weight,
where float16 has 2, and x and y. One row is bound by the memory that holds the weights: the limit
is three times the speed of float16 weights. Many rows are bound by arithmetic, where a CPU with
BLAS and tensor cores have the product for nothing, and shifts only add the expanding of the codes;
what speaks for shifts is the energy of a chip made for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.shift_product.composed import with_torch
from refimpl.kernels.shift_product.reference import PER_WORD, encode, naive, weights, with_numpy

__all__ = [
    "cost",
    "encode",
    "example",
    "naive",
    "shift_product",
    "weights",
    "with_numpy",
    "with_torch",
]


def shift_product(x: Tensor, codes: Tensor, backend: str = "auto") -> Tensor:
    """y = x W: (b, k) -> (b, n). Equation and shapes: see the module.

    Differentiable in x. Raises `ValueError` for what does not fit.
    """
    check(x, codes)
    return dispatch("shift_product", with_torch, backend, x, codes).to(x.dtype)


def check(x, codes) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    checks.floating(x=x)
    if codes.dtype != torch.int32:
        raise ValueError(f"codes must be int32, got {codes.dtype}")
    checks.shapes({"x": "batch inputs"}, x=x)
    checks.shapes({"codes": f"{-(-x.shape[1] // PER_WORD)} outputs"}, codes=codes)
    checks.same_device(x=x, codes=codes)


def cost(x: Tensor, codes: Tensor, **_) -> Cost:
    """A shift and an addition a weight and row; arguments and result once through memory."""
    rows, inputs = x.shape
    outputs = codes.shape[1]
    moved = x.nbytes + codes.nbytes + rows * outputs * x.element_size()
    return Cost(flops=2 * rows * inputs * outputs, bytes=moved)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 3 rows, 20 inputs, 10 outputs; or ("large") 784, 128, 1024."""
    rows, inputs, outputs = (3, 20, 10) if size == "small" else (784, 128, 1024)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=g, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, generator=g, dtype=torch.float64) / inputs**0.5
    codes = encode(weight.abs().log2(), weight.sign())
    return {"x": x.to(device, dtype), "codes": codes.to(device)}
