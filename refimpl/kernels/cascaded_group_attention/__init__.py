"""The heads of cascaded group attention: each reads its slice of the channels plus the head before.

Liu and others, *EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention*,
arXiv 2305.07027 (2023). The readable PyTorch form is `refimpl.papers.efficientvit`'s.

For every window of n = side² tokens, x split into h slices x₁ … x_h of width c = C/h, with y₀ = 0:

    u_j = x_j + y_{j−1}
    [q | k | v] = W_j u_j + w_j                      projection, norm already folded in
    q ← D_j ∗ q + d_j                                depthwise K×K on the side×side map
    A_j = softmax(q kᵀ / √d_k + b_j[|Δrow|·side + |Δcol|])      over keys
    y_j = A_j v
    out = [y₁ | … | y_h]                             before ReLU and the output projection

    x, out       (b, n, C)                b: images times their windows
    qkv_weight   (h, 2·d_k + c, c)
    qkv_bias     (h, 2·d_k + c)
    dw_weight    (h, d_k, K, K)           K of the largest head; smaller ones centred in zeros
    dw_bias      (h, d_k)
    bias_table   (h, n)

Work per window: 2·n·C·(2·d_k + c) + 2·n·h·d_k·K² + 2·n²·h·(d_k + c) + 5·n²·h FLOP. Traffic: x and
out once, the weights once for all windows. Composed of operators, q, k, v, the n×n logits and the
attention of every head cross memory; kept on chip, only x and out do, which leaves 41 FLOP per byte
in M4's first stage in float32 (`cost(**example("large"))`): arithmetic is then the limit on most
machines. The cascade makes a chain of the heads, so windows and images are all the parallelism.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.cascaded_group_attention.composed import with_torch
from refimpl.kernels.cascaded_group_attention.reference import naive, offsets, with_numpy

__all__ = [
    "cascaded_group_attention",
    "cost",
    "example",
    "naive",
    "offsets",
    "with_numpy",
    "with_torch",
]


def cascaded_group_attention(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    bias_table: Tensor,
    backend: str = "auto",
) -> Tensor:
    """The heads side by side: (b, n, C) -> (b, n, C). Equation and shapes: see the module.

    The PyTorch form carries gradients, so "auto" takes it where a gradient is asked for; Triton's
    is forward only. Raises `ValueError` for shapes, types or devices that don't fit.
    """
    tensors = (x, qkv_weight, qkv_bias, dw_weight, dw_bias, bias_table)
    check(*tensors)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        if backend == "triton":
            raise ValueError(
                "cascaded_group_attention: backend='triton' has no backward pass;"
                " take backend='torch', or torch.no_grad()"
            )
        if backend == "auto":
            backend = "torch"
    return dispatch("cascaded_group_attention", with_torch, backend, *tensors).to(x.dtype)


def check(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    bias_table: Tensor,
) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    axes = {"x": "windows tokens channels", "dw_weight": "heads key_dim K K"}
    sizes = checks.shapes(axes, x=x, dw_weight=dw_weight)
    tokens = sizes["tokens"]
    channels = sizes["channels"]
    heads = sizes["heads"]
    if tokens == 0 or math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"x has {tokens} tokens a window, wanted side²: {tuple(x.shape)}")
    if sizes["K"] % 2 == 0:
        raise ValueError(f"dw_weight must have K odd, got {tuple(dw_weight.shape)}")
    if heads == 0 or channels % heads:
        raise ValueError(
            f"{heads} heads (the first axis of dw_weight) don't divide the {channels} channels of x"
        )
    width = channels // heads
    projected = 2 * sizes["key_dim"] + width
    axes |= {
        "qkv_weight": f"heads {projected} {width}",
        "qkv_bias": f"heads {projected}",
        "dw_bias": "heads key_dim",
        "bias_table": "heads tokens",
    }
    weights = {"dw_weight": dw_weight, "dw_bias": dw_bias, "bias_table": bias_table}
    weights |= {"qkv_weight": qkv_weight, "qkv_bias": qkv_bias}
    checks.shapes(axes, x=x, **weights)
    checks.floating(x=x)
    for name, tensor in weights.items():
        if tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, x is {x.dtype}: all must be of one type")
    checks.same_device(x=x, **weights)


def cost(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    bias_table: Tensor,
) -> Cost:
    """FLOP, softmax as five a cell; bytes of x and out, and of the weights once for all windows."""
    windows, n, channels = x.shape
    heads, key_dim, kernel, _ = dw_weight.shape
    c = channels // heads
    projection = 2 * n * channels * (2 * key_dim + c)
    depthwise = 2 * n * heads * key_dim * kernel**2
    attention = 2 * n * n * heads * (key_dim + c) + 5 * n * n * heads
    weights = sum(t.numel() for t in (qkv_weight, qkv_bias, dw_weight, dw_bias, bias_table))
    return Cost(
        flops=windows * (projection + depthwise + attention),
        bytes=(2 * x.numel() + weights) * x.element_size(),
    )


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: stage 1 of M4, 4 windows of 7×7 for each of 64 images ("large"), or two windows of
    3×3 ("small")."""
    windows, side, heads, key_dim, c, kernel = {
        "small": (2, 3, 2, 4, 6, 3),
        "large": (256, 7, 4, 16, 32, 7),
    }[size]
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    arguments = {
        "x": normal(windows, side * side, heads * c),
        "qkv_weight": normal(heads, 2 * key_dim + c, c) / math.sqrt(c),
        "qkv_bias": 0.1 * normal(heads, 2 * key_dim + c),
        "dw_weight": normal(heads, key_dim, kernel, kernel) / kernel,
        "dw_bias": 0.1 * normal(heads, key_dim),
        "bias_table": normal(heads, side * side),
    }
    return {name: tensor.to(device, dtype) for name, tensor in arguments.items()}
