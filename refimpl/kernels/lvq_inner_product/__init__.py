"""Inner products of queries with quantised vectors (LVQ), without decoding them (Aguerrebere et al. 2023; LeanVec, arXiv 2312.16335).

    x̂_j = scale_j · code_j + bias_j + μ                                   code_j ∈ {0 … 2ᵇ−1}ᵈ
    ⟨q_i, x̂_j⟩ = scale_j ⟨q_i, code_j⟩ + bias_j Σ q_i + ⟨q_i, μ⟩           the sum and ⟨q, μ⟩ are taken once a query

    queries: (…, m, d)   codes: (…, n, w) uint8   scale, bias: (…, n)   mean μ: (d) or none   ->   (…, m, n)
    More than 4 bits: a code a byte, w = d. Up to 4 bits: two a byte, the even dimension in the low half, w = ⌈d/2⌉.
    Leading dimensions are equal on both sides: with them every query has vectors of its own (the step of a graph search).

Work: 2·m·n·d FLOPs and 3·m·n for the constants. Traffic: n·(w + 8) bytes of codes and constants, 4·m·d of queries, 4·m·n of results; float32 vectors
would be 4·n·d. One query does about 2 (8 bits) or 4 (4 bits) FLOPs a byte, so it is bound by the memory that holds the codes, and a quarter or an eighth
of the bytes is up to four or eight times the speed; a batch of queries makes it a matrix product, bound by arithmetic.
Two-level codes are two calls: (scale, bias − scale/2) on the first codes, (step, 0) on the second.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from refimpl.kernels import Cost, dispatch


def lvq_inner_product(
    queries: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor | None = None,
    bits: int = 8,
    backend: str = "auto",
) -> Tensor:
    """⟨q, x̂⟩ for every query and vector: (…, m, n) in the queries' type. Arithmetic beyond the product is float32 (float64 for float64 queries)."""
    check(queries, codes, scale, bias, mean, bits)
    forms = {"naive": naive, "numpy": with_numpy, "torch": with_torch, "triton": with_triton}
    return dispatch(
        "lvq_inner_product", forms, backend, queries, codes, scale, bias, mean, bits=bits
    ).to(queries.dtype)


def check(queries, codes, scale, bias, mean, bits):
    if bits not in range(1, 9):
        raise ValueError(f"lvq_inner_product: bits={bits!r} must be 1 to 8")
    if not queries.is_floating_point() or queries.dim() < 2:
        raise ValueError(
            f"lvq_inner_product: queries must be floating point of shape (…, m, d), got {queries.dtype} {tuple(queries.shape)}"
        )
    if codes.dtype != torch.uint8:
        raise ValueError(f"lvq_inner_product: codes must be uint8, got {codes.dtype}")
    *lead, _, d = queries.shape
    if (
        codes.dim() != queries.dim()
        or list(codes.shape[:-2]) != lead
        or codes.shape[-1] != width(d, bits)
    ):
        wanted = f"({''.join(f'{n}, ' for n in lead)}n, {width(d, bits)})"
        raise ValueError(
            f"lvq_inner_product: codes of {bits} bits for queries {tuple(queries.shape)} have shape {wanted}, got {tuple(codes.shape)}"
        )
    for name, constants in (("scale", scale), ("bias", bias)):
        if constants.shape != codes.shape[:-1]:
            raise ValueError(
                f"lvq_inner_product: {name} has shape {tuple(constants.shape)}, wanted one constant a vector, {tuple(codes.shape[:-1])}"
            )
    if mean is not None and mean.shape != (d,):
        raise ValueError(f"lvq_inner_product: mean has shape {tuple(mean.shape)}, wanted ({d},)")


def width(d: int, bits: int) -> int:
    """Bytes that the codes of one vector take."""
    return d if bits > 4 else -(-d // 2)


def pack(digits: np.ndarray | Tensor, bits: int) -> np.ndarray | Tensor:
    """Codes (…, d) as uint8 -> packed (…, w); an odd last half stays 0."""
    if bits > 4:
        return digits
    packed = digits[..., ::2] * 1  # a copy
    packed[..., : digits.shape[-1] // 2] |= digits[..., 1::2] << 4
    return packed


def unpack(codes: np.ndarray | Tensor, d: int, bits: int) -> np.ndarray | Tensor:
    """The inverse of `pack`: (…, w) -> (…, d) uint8."""
    if bits > 4:
        return codes
    lib = torch if isinstance(codes, Tensor) else np
    return lib.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], 2 * codes.shape[-1])[
        ..., :d
    ]


def naive(queries, codes, scale, bias, mean=None, *, bits=8):
    """Decode, multiply, add: one number at a time."""
    *lead, m, d = queries.shape
    out = np.zeros((*lead, m, codes.shape[-2]), queries.dtype)
    for *batch, i, j in np.ndindex(out.shape):
        batch, total = tuple(batch), 0.0
        for k in range(d):
            byte = codes[batch][j, k] if bits > 4 else codes[batch][j, k // 2]
            code = int(byte) if bits > 4 else int(byte) >> 4 * (k % 2) & 15
            decoded = scale[batch][j] * code + bias[batch][j] + (mean[k] if mean is not None else 0)
            total += queries[batch][i, k] * decoded
        out[batch][i, j] = total
    return out


def with_numpy(queries, codes, scale, bias, mean=None, *, bits=8, block=2048):
    """A block of codes at a time is widened to the queries' type, multiplied, and corrected by its constants."""
    d = queries.shape[-1]
    out = np.empty((*queries.shape[:-1], codes.shape[-2]), np.result_type(queries, scale, bias))
    total = queries.sum(-1, keepdims=True)
    for start in range(0, codes.shape[-2], block):
        part = slice(start, start + block)
        digits = unpack(codes[..., part, :], d, bits).astype(queries.dtype)
        out[..., part] = (queries @ digits.swapaxes(-1, -2)) * scale[..., None, part]
        out[..., part] += total * bias[..., None, part]
    return out if mean is None else out + (queries @ mean)[..., None]


def with_torch(queries, codes, scale, bias, mean=None, *, bits=8, block=2048):
    """The same, differentiable in queries, constants and mean. The product runs in the queries' type, the correction in float32 or float64."""
    real = torch.float64 if queries.dtype == torch.float64 else torch.float32
    scale, bias = scale.to(real)[..., None, :], bias.to(real)[..., None, :]
    total = queries.to(real).sum(-1, keepdim=True)
    out = []
    for part, s, b in zip(
        codes.split(block, -2), scale.split(block, -1), bias.split(block, -1), strict=True
    ):
        digits = unpack(part, queries.shape[-1], bits).to(queries.dtype)
        out.append(torch.addcmul(total * b, (queries @ digits.mT).to(real), s))
    out = torch.cat(out, -1) if len(out) > 1 else out[0]
    return out if mean is None else out + (queries.to(real) @ mean.to(real))[..., None]


def with_triton(queries, codes, scale, bias, mean=None, *, bits=8):
    """A program per tile of (queries, vectors): bytes are loaded once, widened in registers, multiplied, corrected. float32 arithmetic."""
    if queries.dtype == torch.float64:
        raise ValueError(
            "lvq_inner_product: the Triton form computes in float32 and queries are float64; use backend='torch'"
        )
    out = triton_product().apply(queries, codes, scale, bias, bits)
    return out if mean is None else out + (queries.float() @ mean.float())[..., None]


@functools.cache
def triton_product():
    """The compiled kernel as a differentiable function; Triton is imported here, on first use."""
    global tl  # the kernel looks names up in the module
    import triton
    import triton.language as tl

    @triton.jit
    def product(
        queries,
        codes,
        scale,
        bias,
        out,
        m,
        n,
        d,
        w,
        HALVES: tl.constexpr,
        BM: tl.constexpr,
        BN: tl.constexpr,
        BK: tl.constexpr,
    ):
        lead = tl.program_id(2).to(tl.int64)
        i, j, k = (
            tl.program_id(0) * BM + tl.arange(0, BM),
            tl.program_id(1) * BN + tl.arange(0, BN),
            tl.arange(0, BK),
        )
        rows, columns = (i < m)[:, None], (j < n)[None, :]
        q_at = queries + (lead * m + i)[:, None] * d
        c_at = codes + (lead * n + j)[None, :] * w
        dots, total = tl.zeros((BM, BN), tl.float32), tl.zeros((BM,), tl.float32)
        for start in range(0, w, BK):
            byte = start + k
            packed = tl.load(c_at + byte[:, None], columns & (byte < w)[:, None], 0).to(
                tl.int32
            )  # (BK, BN)
            for half in tl.static_range(HALVES):
                at = byte * HALVES + half
                q = tl.load(q_at + at[None, :], rows & (at < d)[None, :], 0.0).to(tl.float32)
                digits = packed if HALVES == 1 else (packed >> 4 * half) & 15
                dots = tl.dot(q, digits.to(tl.float32), dots, input_precision="ieee")
                total += tl.sum(q, 1)
        s, b = tl.load(scale + lead * n + j, j < n, 0.0), tl.load(bias + lead * n + j, j < n, 0.0)
        tl.store(
            out + (lead * m + i)[:, None] * n + j[None, :],
            dots * s[None, :] + total[:, None] * b[None, :],
            rows & columns,
        )

    class TritonProduct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, queries, codes, scale, bias, bits):
            ctx.save_for_backward(queries, codes, scale, bias)
            ctx.bits = bits
            *lead, m, d = queries.shape
            n, w = codes.shape[-2:]
            out = torch.empty(*lead, m, n, device=queries.device)
            if out.numel():
                grid = (triton.cdiv(m, 16), triton.cdiv(n, 64), out.numel() // (m * n))
                tensors = (
                    queries.contiguous(),
                    codes.contiguous(),
                    scale.float().contiguous(),
                    bias.float().contiguous(),
                )
                product[grid](
                    *tensors, out, m, n, d, w, HALVES=1 if bits > 4 else 2, BM=16, BN=64, BK=32
                )
            return out

        @staticmethod
        def backward(ctx, grad):
            *tensors, scale, bias = ctx.saved_tensors
            queries, codes = tensors
            inputs = [t.detach().requires_grad_() for t in (queries, scale, bias)]
            with torch.enable_grad():
                out = with_torch(inputs[0], codes, *inputs[1:], bits=ctx.bits)
            grad_queries, grad_scale, grad_bias = torch.autograd.grad(out, inputs, grad)
            return grad_queries, None, grad_scale, grad_bias, None

    return TritonProduct


def cost(queries: Tensor, codes: Tensor, **_) -> Cost:
    """Products and corrections; codes, constants, queries and results once through memory."""
    *_, m, d = queries.shape
    vectors = codes[..., 0].numel()
    results = vectors * m
    return Cost(
        results * (2 * d + 3),
        codes.numel() + 8 * vectors + queries.element_size() * (queries.numel() + results),
    )


def example(
    size: str = "small",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> dict:
    """Arguments of a call: small (7 queries, 33 vectors, d = 20, 4 bits) or large (64 queries, 20 000 vectors, d = 96, 8 bits)."""
    m, n, d, bits = (7, 33, 20, 4) if size == "small" else (64, 20_000, 96, 8)
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (n, d), generator=g, dtype=torch.uint8)
    scale = torch.rand(n, generator=g, dtype=dtype) / (2**bits - 1) + 1e-3
    values = {
        "queries": torch.randn(m, d, generator=g, dtype=dtype),
        "codes": pack(codes, bits),
        "scale": scale,
        "bias": -scale * 2 ** (bits - 1),
        "mean": torch.randn(d, generator=g, dtype=dtype) / 10,
    }
    return {name: value.to(device) for name, value in values.items()} | {"bits": bits}
