"""Product of 8-bit integers with their scales taken out of the sum: what quantised layers run.

With codes q_x of the inputs, one scale s_x and zero point z for all of them, and weights that are
symmetric with one scale for each output (Lee et al., arXiv 2303.12557, and its predecessors):

    y[i, o] = s_x s_w[o] (Σ_k q_x[i, k] q_w[o, k] − z Σ_k q_w[o, k]) + bias[o]

    codes         (b, k)  int8       q_x; unsigned codes minus 128, their zero point minus 128
    weight        (n, k)  int8       q_w
    scale         ()                 s_x
    weight_scale  (n,)               s_w
    bias          (n,) or None
    zero_point    integer            z, −128 to 127; the sum beside it depends on weights alone
    result        (b, n)             in the type of weight_scale

The sums are exact integers: 32 bits hold them up to k = 2^31 / 2^15 = 65,536. A scale for each
input channel would stand inside the sum, which then is none of integers; only a depthwise
convolution, one input channel an output, bears it.

Work: 2·b·k·n operations, four times as many a second as in float32 where a processor has them.
Traffic: b·k + n·k bytes of codes, half those of float16, and y: where memory is the limit, up to
twice the speed of float16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.int8_product.composed import with_torch
from refimpl.kernels.int8_product.reference import naive, with_numpy

__all__ = ["cost", "example", "int8_product", "naive", "with_numpy", "with_torch"]

MOST_INPUTS = 2**16  # beyond them a sum may leave 32 bits


def int8_product(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    zero_point: int = 0,
    backend: str = "auto",
) -> Tensor:
    """y: (b, n) from integers. Equation and shapes: see the module.

    Differentiable in the scales and the bias. Raises `ValueError` for what does not fit.
    """
    check(codes, weight, scale, weight_scale, bias, zero_point)
    tensors = codes, weight, scale, weight_scale, bias
    y = dispatch("int8_product", with_torch, backend, *tensors, zero_point=zero_point)
    return y.to(weight_scale.dtype)


def check(codes, weight, scale, weight_scale, bias, zero_point) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    axes = {
        "codes": "batch inputs",
        "weight": "outputs inputs",
        "scale": "",
        "weight_scale": "outputs",
        "bias": "outputs",
    }
    tensors = dict(codes=codes, weight=weight, scale=scale, weight_scale=weight_scale, bias=bias)
    sizes = checks.shapes(axes, **tensors)
    for name, integers in (("codes", codes), ("weight", weight)):
        if integers.dtype != torch.int8:
            raise ValueError(f"{name} must be int8, got {integers.dtype}")
    checks.floating(scale=scale, weight_scale=weight_scale, bias=bias)
    if sizes["inputs"] > MOST_INPUTS:
        raise ValueError(
            f"codes have {sizes['inputs']:,} inputs, must be at most {MOST_INPUTS:,}: a sum must"
            " fit into 32 bits"
        )
    if not isinstance(zero_point, int) or not -128 <= zero_point <= 127:
        raise ValueError(f"zero_point={zero_point!r} must be an integer from -128 to 127")
    checks.same_device(**tensors)


def cost(codes: Tensor, weight: Tensor, weight_scale: Tensor, **others) -> Cost:
    """Integer products and sums; every argument and the result once through memory."""
    rows, inputs = codes.shape
    outputs = len(weight)
    moved = codes.nbytes + weight.nbytes + weight_scale.nbytes
    moved += sum(t.nbytes for t in others.values() if isinstance(t, Tensor))
    written = rows * outputs * weight_scale.element_size()
    return Cost(flops=2 * rows * inputs * outputs, bytes=moved + written)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 3 rows, 20 inputs, 10 outputs; or ("large") 64, 1024, 1024."""
    rows, inputs, outputs = (3, 20, 10) if size == "small" else (64, 1024, 1024)
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (rows, inputs), generator=g).to(torch.int8)
    weight = torch.randint(-128, 128, (outputs, inputs), generator=g).to(torch.int8)
    scale = torch.tensor(1 / 64, dtype=torch.float64)
    weight_scale = (1 + torch.rand(outputs, generator=g, dtype=torch.float64)) / 64 / inputs**0.5
    bias = torch.randn(outputs, generator=g, dtype=torch.float64)
    return {
        "codes": codes.to(device),
        "weight": weight.to(device),
        "scale": scale.to(device, dtype),
        "weight_scale": weight_scale.to(device, dtype),
        "bias": bias.to(device, dtype),
        "zero_point": 5,
    }
