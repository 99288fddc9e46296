"""Product with weights that are packed integers: unpack, dequantise, multiply.

The format is GPTQ's second, as EfficientQAT writes it (Chen et al., arXiv 2407.11062); official
code: OpenGVLab/EfficientQAT, quantize/int_linear_real.py.

    W[i, o] = (code[i, o] − zero[i // g, o]) · scale[i // g, o]        y = x W

    x         (b, k)                    floating point
    qweight   (⌈k / per⌉, n)  int32     per = 32 // bits codes in a word along the input, the first
                                        in the lowest bits; input i: word i // per, bit bits·(i mod
                                        per). 3 bits: ten codes, two bits of each word stay empty
    qzeros    (groups, ⌈n / per⌉) int32 the same along the output
    scales    (groups, n)               g = k / groups inputs share a scale and a zero point
    result    (b, n)                    in the type of x

Work: 2·b·k·n FLOP for the product and 2·k·n to dequantise. Traffic: k·n·bits/8 bytes of codes,
k·n/g·(16 + bits)/8 of scales (float16) and zero points, and x and y. One row does about two FLOP
per weight, so it is bound by the memory that holds the weights: at 2 bits and g = 64 the limit is
16/2.28 = 7 times the speed of float16 weights, at 4 bits and g = 128 3.8 times; many rows are bound
by arithmetic, and unpacking is then work that a float16 product does not have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.packed_product.composed import with_torch
from refimpl.kernels.packed_product.reference import naive, pack, per_word, unpack, with_numpy

__all__ = [
    "cost",
    "example",
    "naive",
    "pack",
    "packed_product",
    "per_word",
    "unpack",
    "with_numpy",
    "with_torch",
]


def packed_product(
    x: Tensor,
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    bits: int = 4,
    backend: str = "auto",
) -> Tensor:
    """y = x W: (b, k) -> (b, n). Equation and shapes: see the module.

    Differentiable in x and scales. Raises `ValueError` for what does not fit.
    """
    check(x, qweight, qzeros, scales, bits)
    y = dispatch("packed_product", with_torch, backend, x, qweight, qzeros, scales, bits=bits)
    return y.to(x.dtype)


def check(x, qweight, qzeros, scales, bits) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    per = per_word(bits)
    checks.floating(x=x, scales=scales)
    for name, words in (("qweight", qweight), ("qzeros", qzeros)):
        if words.dtype != torch.int32:
            raise ValueError(f"{name} must be int32, got {words.dtype}")
    checks.shapes({"x": "batch inputs"}, x=x)
    checks.shapes({"scales": "groups outputs"}, scales=scales)
    inputs = x.shape[1]
    groups, outputs = scales.shape
    axes = {
        "qweight": f"{-(-inputs // per)} {outputs}",  # so many words hold the inputs
        "qzeros": f"{groups} {-(-outputs // per)}",
    }
    checks.shapes(axes, qweight=qweight, qzeros=qzeros)
    if groups == 0 or inputs % groups:
        raise ValueError(f"scales has {groups} groups, which must divide the {inputs} inputs of x")
    checks.same_device(x=x, qweight=qweight, qzeros=qzeros, scales=scales)


def cost(x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor, **_) -> Cost:
    """Product and dequantising; every argument and the result once through memory."""
    rows, inputs = x.shape
    outputs = scales.shape[1]
    moved = sum(t.nbytes for t in (x, qweight, qzeros, scales))
    return Cost(
        flops=2 * (rows + 1) * inputs * outputs, bytes=moved + rows * outputs * x.element_size()
    )


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 3 rows, 24 inputs, 10 outputs, 3 bits; or ("large") 4, 1024, 1024, 2 bits."""
    rows, inputs, outputs, groups, bits = (3, 24, 10, 2, 3)
    if size == "large":
        rows, inputs, outputs, groups, bits = (4, 1024, 1024, 16, 2)
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (inputs, outputs), generator=g)
    zeros = torch.randint(0, 2**bits, (groups, outputs), generator=g)
    x = torch.randn(rows, inputs, generator=g, dtype=torch.float64)
    scales = (1 + torch.rand(groups, outputs, generator=g, dtype=torch.float64)) / inputs**0.5
    return {
        "x": x.to(device, dtype),
        "qweight": pack(codes, bits).to(device),
        "qzeros": pack(zeros.T, bits).T.contiguous().to(device),
        "scales": scales.to(device, dtype),
        "bits": bits,
    }
