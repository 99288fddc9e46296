"""The masked sum as loops over single numbers, and in NumPy; masks packed into words."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD = 32  # bits


def pack(chosen: Tensor) -> Tensor:
    """Zeros and ones (…, outputs), of any type -> words (…, ⌈outputs / 32⌉), int32.

    Raises `ValueError` for another number.
    """
    bits = chosen.to(torch.int64)
    if not ((chosen == 0) | (chosen == 1)).all():
        raise ValueError("chosen must hold zeros and ones only")
    words = -(-chosen.shape[-1] // WORD)
    padded = torch.nn.functional.pad(bits, (0, words * WORD - chosen.shape[-1]))
    places = torch.arange(WORD, device=chosen.device)
    packed = (padded.unflatten(-1, (words, WORD)) << places).sum(-1)  # no two share a bit
    signed = torch.where(packed >= 2**31, packed - 2**32, packed)  # the same 32 bits
    return signed.to(torch.int32)


def unpack(mask: Tensor, outputs: int) -> Tensor:
    """The inverse of `pack`: (…, ⌈outputs / 32⌉) -> (…, outputs), int32 zeros and ones."""
    places = torch.arange(WORD, dtype=torch.int32, device=mask.device)
    return ((mask[..., None] >> places) & 1).flatten(-2)[..., :outputs]


def naive(values, mask, *, outputs):
    """Where the bit is one, add the number."""
    batch, tokens, channels = values.shape
    sums = np.zeros((batch, outputs, channels), values.dtype)
    for b in range(batch):
        for i in range(tokens):
            for o in range(outputs):
                if int(mask[b, i, o // WORD]) >> o % WORD & 1:
                    for c in range(channels):
                        sums[b, o, c] += values[b, i, c]
    return sums


def with_numpy(values, mask, *, outputs):
    """Per output, gather its rows and add them up: no multiplication anywhere."""
    batch, tokens, channels = values.shape
    sums = np.zeros((batch, outputs, channels), values.dtype)
    for o in range(outputs):
        chosen = mask[:, :, o // WORD] >> o % WORD & 1 == 1  # (b, n)
        for b in range(batch):
            sums[b, o] = values[b, chosen[b]].sum(0)
    return sums
