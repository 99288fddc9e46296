"""The shift product as loops over single numbers, and in NumPy; weights packed into words."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from refimpl.kernels.packed_product.reference import fields, pack, per_word, unpack

BITS = 5  # of a weight: four for e, one for the sign
PER_WORD = per_word(BITS)
NOTHING = 15  # the e of a weight that is zero
LEVELS = [*(2.0**-e for e in range(NOTHING)), 0.0]
LEVELS += [-level for level in LEVELS]  # code -> weight


def encode(shift: Tensor, sign: Tensor) -> Tensor:
    """Exponents and signs of a shift layer, (n, k) each -> codes (⌈k / 6⌉, n), int32.

    W = 2^round(shift) · sign(round(sign)), shift clamped to [−14, 0]. Raises `ValueError` for NaN.
    """
    if shift.isnan().any() or sign.isnan().any():
        raise ValueError("shift and sign must not hold NaN")
    exponents = -shift.clamp(1 - NOTHING, 0).round()
    signs = sign.round()
    exponents = torch.where(signs == 0, NOTHING, exponents).to(torch.int64)
    return pack((exponents + 16 * (signs < 0)).T, BITS)


def weights(codes: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """W (k, n), exact in every type: (⌈k / 6⌉, n) -> (k, n)."""
    levels = torch.tensor(LEVELS, dtype=dtype, device=codes.device)
    return levels[unpack(codes, k, BITS)]


def naive(x, codes):
    """Find the code, shift the number, add it or take it off: one at a time."""
    rows, inputs = x.shape
    outputs = codes.shape[1]
    y = np.zeros((rows, outputs), x.dtype)
    for row in range(rows):
        for o in range(outputs):
            for i in range(inputs):
                word = int(codes[i // PER_WORD, o])
                code = word >> BITS * (i % PER_WORD) & 31
                if code % 16 != NOTHING:
                    shifted = math.ldexp(x[row, i], -(code % 16))
                    y[row, o] += -shifted if code >= 16 else shifted
    return y


def with_numpy(x, codes):
    """Input by input: its column shifted once for every output, then added or taken off."""
    code = fields(codes, x.shape[1], BITS).astype(np.int32)  # (k, n)
    y = np.zeros((x.shape[0], codes.shape[1]), x.dtype)
    for i in range(x.shape[1]):
        kept = code[i] % 16 != NOTHING
        shifted = np.ldexp(x[:, i, None], -(code[i] % 16))  # (b, n)
        signed = np.where(code[i] >= 16, -shifted, shifted)
        np.add(y, signed, out=y, where=kept)
    return y
