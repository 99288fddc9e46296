"""The packed product as loops over single numbers, and in NumPy; codes packed into words."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from refimpl import checks


def per_word(bits: int) -> int:
    """How many codes a word of 32 bits holds; raises `ValueError` for a width outside 1 to 8."""
    checks.integer(1, bits=bits)
    if bits > 8:
        raise ValueError(f"bits={bits} must be at most 8")
    return 32 // bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (k, n), integers from 0 to 2**bits − 1 -> words (⌈k / per⌉, n), int32.

    Raises `ValueError` for a code that has no room: it would spill into its neighbour's bits.
    """
    per = per_word(bits)
    if codes.is_floating_point() or codes.dim() != 2:
        raise ValueError(
            f"codes must be integers (k, n), got {codes.dtype} of {codes.dim()} dimensions"
        )
    if codes.numel() and (codes.min() < 0 or codes.max() >= 2**bits):
        raise ValueError(
            f"codes run from {int(codes.min())} to {int(codes.max())},"
            f" must lie between 0 and {2**bits - 1}: bits={bits}"
        )
    inputs, outputs = codes.shape
    words = -(-inputs // per)
    padded = torch.zeros(words * per, outputs, dtype=torch.int64, device=codes.device)
    padded[:inputs] = codes
    shifts = bits * torch.arange(per, device=codes.device)[:, None]  # (per, 1)
    packed = (padded.view(words, per, outputs) << shifts).sum(1)  # no two share a bit
    signed = torch.where(packed >= 2**31, packed - 2**32, packed)  # the same 32 bits
    return signed.to(torch.int32)


def unpack(words: Tensor, k: int, bits: int) -> Tensor:
    """The inverse of `pack`: (⌈k / per⌉, n) -> (k, n), int32 from 0 to 2**bits − 1."""
    per = per_word(bits)
    shifts = bits * torch.arange(per, dtype=torch.int32, device=words.device)[:, None]
    fields = words[:, None] >> shifts  # (words, per, n); a negative word brings ones from the left
    return (fields & 2**bits - 1).flatten(0, 1)[:k]


def field(words: np.ndarray, at: int, other: int, bits: int) -> int:
    """Code `at` of column `other`, by Python's own integers."""
    per = 32 // bits
    word = int(words[at // per, other]) % 2**32
    return word >> bits * (at % per) & 2**bits - 1


def naive(x, qweight, qzeros, scales, *, bits=4):
    """Find the field, subtract, multiply, add: one number at a time."""
    rows, inputs = x.shape
    groups, outputs = scales.shape
    size = inputs // groups
    y = np.zeros((rows, outputs), x.dtype)
    for row in range(rows):
        for o in range(outputs):
            total = 0.0
            for i in range(inputs):
                code = field(qweight, i, o, bits)
                zero = field(qzeros.T, o, i // size, bits)
                total += x[row, i] * (code - zero) * scales[i // size, o]
            y[row, o] = total
    return y


def with_numpy(x, qweight, qzeros, scales, *, bits=4):
    """One product of x with the bare codes per group; zero point and scale once per group.

    Σ_g (Σ_i x_i code_i − zero_g Σ_i x_i) · scale_g
    """
    rows, inputs = x.shape
    groups, outputs = scales.shape
    size = inputs // groups
    codes = fields(qweight, inputs, bits).astype(x.dtype)
    zeros = fields(qzeros.T, outputs, bits).T.astype(x.dtype)
    parts = x.reshape(rows, groups, size).transpose(1, 0, 2)  # (groups, b, g)
    sums = parts.sum(-1, keepdims=True)  # (groups, b, 1)
    products = parts @ codes.reshape(groups, size, outputs)  # (groups, b, n)
    return ((products - sums * zeros[:, None]) * scales[:, None]).sum(0)


def fields(words: np.ndarray, k: int, bits: int) -> np.ndarray:
    """`unpack` in NumPy."""
    shifts = (bits * np.arange(32 // bits, dtype=np.uint32))[:, None]
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    spread = unsigned[:, None] >> shifts & np.uint32(2**bits - 1)  # (words, per, n)
    codes = spread.reshape(len(words) * (32 // bits), words.shape[1])
    return codes[:k]
