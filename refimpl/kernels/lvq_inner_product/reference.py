"""LVQ inner products as loops over single numbers, and in NumPy; codes packed into bytes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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
    library = torch if isinstance(codes, Tensor) else np
    halves = library.stack([codes & 15, codes >> 4], -1)
    return halves.reshape(*codes.shape[:-1], 2 * codes.shape[-1])[..., :d]


def naive(queries, codes, scale, bias, mean=None, *, bits=8):
    """Decode, multiply, add: one number at a time."""
    *lead, m, d = queries.shape
    products = np.zeros((*lead, m, codes.shape[-2]), queries.dtype)
    for *batch, i, j in np.ndindex(products.shape):
        batch = tuple(batch)
        total = 0.0
        for k in range(d):
            if bits > 4:
                code = int(codes[batch][j, k])
            else:
                code = int(codes[batch][j, k // 2]) >> 4 * (k % 2) & 15
            decoded = scale[batch][j] * code + bias[batch][j]
            if mean is not None:
                decoded += mean[k]
            total += queries[batch][i, k] * decoded
        products[batch][i, j] = total
    return products


def with_numpy(queries, codes, scale, bias, mean=None, *, bits=8, block=2048):
    """A block of vectors at a time is widened to the queries' type, multiplied, corrected."""
    d = queries.shape[-1]
    shape = (*queries.shape[:-1], codes.shape[-2])
    products = np.empty(shape, np.result_type(queries, scale, bias))
    total = queries.sum(-1, keepdims=True)
    for start in range(0, codes.shape[-2], block):
        part = slice(start, start + block)
        digits = unpack(codes[..., part, :], d, bits).astype(queries.dtype)
        products[..., part] = (queries @ digits.swapaxes(-1, -2)) * scale[..., None, part]
        products[..., part] += total * bias[..., None, part]
    return products if mean is None else products + (queries @ mean)[..., None]
