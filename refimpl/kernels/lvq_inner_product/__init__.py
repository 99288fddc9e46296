"""Inner products of queries with vectors quantised by LVQ, without decoding the vectors.

Aguerrebere, Bhati, Hildebrand, Tepper, Willke, *Similarity search in the blink of an eye with
compressed indices*, arXiv 2304.04759 (2023); used by LeanVec, arXiv 2312.16335.

    x̂_j = scale_j · code_j + bias_j + μ              code_j ∈ {0 … 2ᵇ−1}ᵈ
    ⟨q_i, x̂_j⟩ = scale_j ⟨q_i, code_j⟩ + bias_j Σ q_i + ⟨q_i, μ⟩
                                                     Σ q and ⟨q, μ⟩ are taken once per query

    queries       (…, m, d)
    codes         (…, n, w)      uint8; w = d bytes above 4 bits, else two codes per byte, the even
                                 dimension in the low half: w = ⌈d/2⌉
    scale, bias   (…, n)
    mean (μ)      (d)            or None
    result        (…, m, n)      in the type of the queries

Leading dimensions are equal on both sides: with them every query has vectors of its own, as in a
step of a graph search. Arithmetic beyond the product is float32 (float64 for float64 queries).

Work: 2·m·n·d FLOP, and 3·m·n for the constants. Traffic: n·(w + 8) bytes of codes and constants,
4·m·d of queries, 4·m·n of results; vectors in float32 would be 4·n·d. One query does about 2
(8 bits) or 4 (4 bits) FLOP per byte, so it is bound by the memory that holds the codes, and a
quarter or an eighth of the bytes is up to four or eight times the speed; a batch of queries makes
it a matrix product, bound by arithmetic. Two-level codes are two calls: (scale, bias − scale/2) on
the first codes, (step, 0) on the second.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.lvq_inner_product.composed import with_torch
from refimpl.kernels.lvq_inner_product.reference import naive, pack, unpack, width, with_numpy

__all__ = [
    "cost",
    "example",
    "lvq_inner_product",
    "naive",
    "pack",
    "unpack",
    "width",
    "with_numpy",
    "with_torch",
]


def lvq_inner_product(
    queries: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor | None = None,
    bits: int = 8,
    backend: str = "auto",
) -> Tensor:
    """⟨q, x̂⟩ for every query and vector: (…, m, n). Equation and shapes: see the module.

    Raises `ValueError` for shapes, types or devices that don't fit.
    """
    check(queries, codes, scale, bias, mean, bits)
    tensors = (queries, codes, scale, bias, mean)
    products = dispatch("lvq_inner_product", with_torch, backend, *tensors, bits=bits)
    return products.to(queries.dtype)


def check(queries, codes, scale, bias, mean, bits) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    if bits not in range(1, 9):
        raise ValueError(f"bits={bits!r} must be a whole number from 1 to 8")
    checks.torch_tensor(queries=queries)
    if queries.dim() < 2:
        raise ValueError(f"queries must be (…, queries, dims), got {tuple(queries.shape)}")
    checks.floating(queries=queries, scale=scale, bias=bias, mean=mean)
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes must be uint8, got {codes.dtype}")
    bytes_each = width(queries.shape[-1], bits)
    lead = "".join(f"lead{i} " for i in range(queries.dim() - 2))
    axes = {
        "queries": f"{lead}queries dims",
        "codes": f"{lead}vectors {bytes_each}",  # codes of so many bits take so many bytes
        "scale": f"{lead}vectors",
        "bias": f"{lead}vectors",
        "mean": "dims",
    }
    checks.shapes(axes, queries=queries, codes=codes, scale=scale, bias=bias, mean=mean)
    checks.same_device(queries=queries, codes=codes, scale=scale, bias=bias, mean=mean)


def cost(queries: Tensor, codes: Tensor, **_) -> Cost:
    """Products and corrections; codes, constants, queries and results once through memory."""
    m, d = queries.shape[-2:]
    vectors = codes[..., 0].numel()
    results = vectors * m
    constants = 8 * vectors
    moved = codes.numel() + constants + queries.element_size() * (queries.numel() + results)
    return Cost(flops=results * (2 * d + 3), bytes=moved)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 7 queries, 33 vectors, d = 20, 4 bits; or ("large") 64, 20 000, 96, 8 bits."""
    m, n, d, bits = (7, 33, 20, 4) if size == "small" else (64, 20_000, 96, 8)
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (n, d), generator=g, dtype=torch.uint8)
    scale = torch.rand(n, generator=g, dtype=torch.float64) / (2**bits - 1) + 1e-3
    tensors = {
        "queries": torch.randn(m, d, generator=g, dtype=torch.float64),
        "scale": scale,
        "bias": -scale * 2 ** (bits - 1),
        "mean": torch.randn(d, generator=g, dtype=torch.float64) / 10,
    }
    tensors = {name: t.to(device, dtype) for name, t in tensors.items()}
    return tensors | {"codes": pack(codes, bits).to(device), "bits": bits}
