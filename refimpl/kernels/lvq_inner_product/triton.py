"""LVQ inner products in Triton: bytes are read once, widened in registers, multiplied, corrected.

One program computes a tile of (queries, vectors). Equation and shapes: see the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from refimpl.kernels import gradients, launch, wide
from refimpl.kernels.lvq_inner_product.composed import with_torch

BLOCK_VECTORS = 64
BLOCK_BYTES = 32


@triton.jit
def product(
    queries,
    codes,
    scale,
    bias,
    products,
    m,
    n,
    d,
    width,
    query_blocks,
    vector_blocks,
    REAL: tl.constexpr,
    PER_BYTE: tl.constexpr,
    QUERIES: tl.constexpr,
    VECTORS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """queries: (…, m, d); codes: (…, n, width); scale, bias: (…, n); products: (…, m, n)."""
    lowest: tl.constexpr = 255 if PER_BYTE == 1 else 15  # the bits of one code
    program = tl.program_id(0)
    query = program % query_blocks * QUERIES + tl.arange(0, QUERIES)
    vector = program // query_blocks % vector_blocks * VECTORS + tl.arange(0, VECTORS)
    lead = (program // (query_blocks * vector_blocks)).to(tl.int64)
    has_query = (query < m)[:, None]
    has_vector = (vector < n)[None, :]
    dots = tl.zeros((QUERIES, VECTORS), REAL)
    total = tl.zeros((QUERIES,), REAL)
    for start in range(0, width, BYTES):
        byte = start + tl.arange(0, BYTES)
        code_place = (lead * n + vector)[None, :] * width + byte[:, None]
        packed = tl.load(codes + code_place, has_vector & (byte < width)[:, None], 0).to(tl.int32)
        parts = tl.zeros((QUERIES, BYTES), REAL)  # Triton 3.5 takes one reduction a turn, no more
        for half in tl.static_range(PER_BYTE):
            dim = byte * PER_BYTE + half
            query_place = (lead * m + query)[:, None] * d + dim[None, :]
            part = tl.load(queries + query_place, has_query & (dim < d)[None, :], 0.0).to(REAL)
            digits = ((packed >> 4 * half) & lowest).to(REAL)
            dots += tl.dot(part, digits, input_precision="ieee", out_dtype=REAL)
            parts += part
        total += tl.sum(parts, 1)
    constants = lead * n + vector
    factor = tl.load(scale + constants, vector < n, 0.0)[None, :]
    offset = tl.load(bias + constants, vector < n, 0.0)[None, :]
    place = (lead * m + query)[:, None] * n + vector[None, :]
    tl.store(products + place, dots * factor + total[:, None] * offset, has_query & has_vector)


class TritonProduct(torch.autograd.Function):
    """The kernel as a differentiable function; gradients are the composed form's."""

    @staticmethod
    def forward(ctx, queries, codes, scale, bias, bits):
        ctx.save_for_backward(queries, codes, scale, bias)
        ctx.bits = bits
        *lead, m, d = queries.shape
        n, width = codes.shape[-2:]
        products = torch.empty(*lead, m, n, dtype=scale.dtype, device=queries.device)
        if products.numel() == 0:
            return products
        block_queries = 16 if m <= 16 else 64
        query_blocks = triton.cdiv(m, block_queries)
        vector_blocks = triton.cdiv(n, BLOCK_VECTORS)
        programs = query_blocks * vector_blocks * (products.numel() // (m * n))
        inputs = [t.contiguous() for t in (queries, codes, scale, bias)]
        launch(
            product,
            programs,
            *inputs,
            products,
            *(m, n, d, width, query_blocks, vector_blocks),
            REAL=tl.float64 if scale.dtype == torch.float64 else tl.float32,
            PER_BYTE=1 if bits > 4 else 2,
            QUERIES=block_queries,
            VECTORS=BLOCK_VECTORS,
            BYTES=BLOCK_BYTES,
            num_warps=4 if m <= 16 else 8,
            num_stages=1,
        )
        return products

    @staticmethod
    def backward(ctx, grad):
        queries, codes, scale, bias = ctx.saved_tensors

        def function(queries, scale, bias):
            return with_torch(queries, codes, scale, bias, bits=ctx.bits)

        of_queries, of_scale, of_bias = gradients(function, (queries, scale, bias), grad)
        return of_queries, None, of_scale, of_bias, None


def with_triton(
    queries: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor | None = None,
    *,
    bits: int = 8,
) -> Tensor:
    """(…, m, n), differentiable in queries, scale, bias and mean."""
    real = wide(queries.dtype)
    products = TritonProduct.apply(queries, codes, scale.to(real), bias.to(real), bits)
    if mean is None:
        return products
    return products + (queries.to(real) @ mean.to(real))[..., None]
