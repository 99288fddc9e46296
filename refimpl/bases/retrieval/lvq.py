"""Vectors in few bytes: LVQ, locally-adaptive vector quantisation, and plain floats beside it.

Aguerrebere, Bhati, Hildebrand, Tepper, Willke, VLDB 2023, arXiv 2304.04759.

    y = x − μ,  M = 2ᵇ − 1       bias = min y,  scale = (max y − min y)/M
                                 code = clamp(round((y − bias)/scale), 0, M)
    second level, R = 2ʳ − 1     step = scale/R
                                 code₂ = clamp(round((y − ŷ + scale/2)/step), 0, R)
    x̂ = ŷ + μ                    ŷ = scale · code + bias  [+ step · code₂ − scale/2]

μ is the mean of the data, float64. Rounding is half away from zero, in float32, by the reciprocals
of scale and step: of ten ways tried, the one that the package scalable-vs 0.5.0 reproduces exactly.
The header of IntelLabs/ScalableVectorSearch @ 4c6ba38 rounds scale and bias to float16; that is the
option `constants`.

`Lvq` and `Floats` are two stores with the same methods:

    len(store) -> n                                       mean: μ (d,) float64
    vectors(ids (…)) -> x̂ (…, d)                          centred(ids (…)) -> ŷ = x̂ − μ (…, d)
    inner(queries (b, d), ids (b, c)) -> ⟨q, x̂⟩ (b, c)    extended(vectors (n, d)) -> a store
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels.lvq_inner_product import lvq_inner_product, pack, unpack

FLAT = 7e-5  # the official code stores a vector of range ≤ FLAT·M as a constant: scale = 1


def round_half_away(x: Tensor) -> Tensor:
    """C's `roundf`; torch rounds halves to even."""
    whole = x.trunc()
    return whole + torch.where((x - whole).abs() >= 0.5, x.sign(), 0)


@dataclass(frozen=True)
class Lvq:
    """Vectors (n, d) as one byte or half a byte per number, and two constants each.

    mean: (d,) float64; scale, bias: (n,); codes, residual: packed uint8 (n, w), see
    `lvq_inner_product.pack`. Arithmetic is float32 once the mean is off.
    """

    mean: Tensor
    scale: Tensor
    bias: Tensor
    codes: Tensor
    residual: Tensor
    bits: int
    residual_bits: int

    @classmethod
    def encode(
        cls,
        vectors: Tensor,
        bits: int = 8,
        residual_bits: int = 0,
        mean: Tensor | None = None,
        constants: torch.dtype = torch.float32,
    ) -> Lvq:
        """Quantise vectors (n, d) float32.

        mean: that of an earlier set, when vectors are added to it; constants: torch.float16 halves
        their storage. Warns where vectors differ by less than LVQ can tell apart.
        """
        if bits not in range(1, 9) or residual_bits not in range(9):
            raise ValueError(
                f"bits={bits!r} must be 1 to 8 and residual_bits={residual_bits!r}"
                " 0 (one level) to 8"
            )
        mean = vectors.mean(0, dtype=torch.float64) if mean is None else mean
        blocks = []
        flat = 0
        for block in vectors.split(8192):
            y = (block - mean).float()
            flat += count_flat(y, bits, block.abs().max())
            blocks.append(cls.encode_block(y, bits, residual_bits, constants))
        if flat > len(vectors) / 100:
            warnings.warn(
                f"{flat} of {len(vectors)} vectors lie so close to the mean (within"
                f" {FLAT * (2**bits - 1):.2g}) that LVQ stores them as constants: multiply all"
                " vectors by one large number, or store float32",
                stacklevel=2,
            )
        scale, bias, codes, residual = map(torch.cat, zip(*blocks, strict=True))
        if not (scale.isfinite().all() and bias.isfinite().all()):
            raise ValueError(f"vectors: a range is beyond what constants={constants} can hold")
        return cls(mean, scale, bias, codes, residual, bits, residual_bits)

    @staticmethod
    def encode_block(
        y: Tensor, bits: int, residual_bits: int, constants: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors (n, d) about the mean -> scale (n,), bias (n,), codes and residual (n, w)."""
        levels = 2**bits - 1  # M
        low, high = y.aminmax(dim=1, keepdim=True)
        scale = ((high - low) / levels).to(constants)
        scale[high - low <= FLAT * levels] = 1
        bias = low.to(constants)
        s = scale.float()
        b = bias.float()
        digits = round_half_away((y - b) * (1 / s)).clamp(0, levels)
        second = y.new_zeros(len(y), 0)
        if residual_bits:
            finer = 2**residual_bits - 1  # R
            rest = y - (s * digits + b)
            second = round_half_away((rest + s / 2) * (1 / (s / finer))).clamp(0, finer)
        codes = pack(digits.byte(), bits)
        residual = pack(second.byte(), residual_bits or 8)
        return scale[:, 0], bias[:, 0], codes, residual

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and constants, without the mean that all vectors share."""
        return sum(t.nbytes for t in (self.scale, self.bias, self.codes, self.residual))

    def centred(self, ids: Tensor | slice = slice(None)) -> Tensor:
        """The decoded ŷ: (…, d) float32."""
        d = len(self.mean)
        scale = self.scale[ids].float()[..., None]
        bias = self.bias[ids].float()[..., None]
        decoded = unpack(self.codes[ids], d, self.bits) * scale + bias
        if self.residual_bits:
            step = scale / (2**self.residual_bits - 1)
            decoded += unpack(self.residual[ids], d, self.residual_bits) * step - scale / 2
        return decoded

    def vectors(self, ids: Tensor | slice = slice(None)) -> Tensor:
        """The decoded x̂: (…, d) float32."""
        return self.centred(ids) + self.mean.float()

    def inner(self, queries: Tensor, ids: Tensor) -> Tensor:
        """⟨q, x̂⟩ of queries (b, d) with vectors of their own, ids (b, c), not decoded: (b, c)."""
        codes = self.codes[ids]
        scale = self.scale[ids].float()
        bias = self.bias[ids].float()
        queries = queries[:, None]
        if not self.residual_bits:
            return lvq_inner_product(queries, codes, scale, bias, self.mean, self.bits)[:, 0]
        first = lvq_inner_product(queries, codes, scale, bias - scale / 2, self.mean, self.bits)
        step = scale / (2**self.residual_bits - 1)
        zero = torch.zeros_like(step)
        residual = self.residual[ids]
        second = lvq_inner_product(queries, residual, step, zero, None, self.residual_bits)
        return (first + second)[:, 0]

    def extended(self, vectors: Tensor) -> Lvq:
        """With further vectors (n, d), quantised about the same mean."""
        new = self.encode(vectors, self.bits, self.residual_bits, self.mean, self.scale.dtype)
        names = ("scale", "bias", "codes", "residual")
        both = {name: torch.cat([getattr(self, name), getattr(new, name)]) for name in names}
        return replace(self, **both)


def count_flat(y: Tensor, bits: int, largest: Tensor) -> int:
    """How many of the vectors (n, d) about the mean are stored as constants and are none.

    A range of rounding errors alone, 1e-5 of the largest number before the mean was taken off, does
    not count.
    """
    low, high = y.aminmax(dim=1)
    spread = high - low
    return int(((spread <= FLAT * (2**bits - 1)) & (spread > 1e-5 * largest)).sum())


@dataclass(frozen=True)
class Floats:
    """Vectors (n, d) about their mean in float32 or float16: the baseline.

    mean: (d,) float64, taken off so that rounding is relative to how far the vectors lie apart and
    not to how far from the origin.
    """

    mean: Tensor
    values: Tensor

    @classmethod
    def encode(
        cls, vectors: Tensor, dtype: torch.dtype = torch.float32, mean: Tensor | None = None
    ) -> Floats:
        """Store vectors (n, d) float32; a copy, whatever the type."""
        mean = vectors.mean(0, dtype=torch.float64) if mean is None else mean
        values = torch.cat([(block - mean).to(dtype) for block in vectors.split(8192)])
        if not values.isfinite().all():
            furthest = max(float((block - mean).abs().max()) for block in vectors.split(8192))
            raise ValueError(
                f"vectors: numbers differ from their mean by up to {furthest:.3g}, {dtype} holds"
                f" up to {torch.finfo(dtype).max:.3g}: store float32 or lvq8, or scale them down"
            )
        return cls(mean, values)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers, without the mean that all vectors share."""
        return self.values.nbytes

    def centred(self, ids: Tensor | slice = slice(None)) -> Tensor:
        """y: (…, d) float32."""
        return self.values[ids].float()

    def vectors(self, ids: Tensor | slice = slice(None)) -> Tensor:
        """x: (…, d) float32."""
        return self.centred(ids) + self.mean.float()

    def inner(self, queries: Tensor, ids: Tensor) -> Tensor:
        """⟨q, x⟩ of queries (b, d) with vectors of their own, ids (b, c): (b, c)."""
        return (self.vectors(ids) @ queries[:, :, None])[..., 0]

    def extended(self, vectors: Tensor) -> Floats:
        """With further vectors (n, d), about the same mean."""
        new = self.encode(vectors, self.values.dtype, self.mean)
        return replace(self, values=torch.cat([self.values, new.values]))


KINDS = ("float32", "float16", "lvq8", "lvq4", "lvq4x4", "lvq4x8", "lvq8x8")


def store(vectors: Tensor, kind: str) -> Lvq | Floats:
    """Vectors (n, d) as one of KINDS; lvq4x8 is 4 bits in the first level and 8 in the second."""
    checks.choice("kind", kind, KINDS, "kind of storage")
    if kind.startswith("float"):
        return Floats.encode(vectors, getattr(torch, kind))
    bits = map(int, kind.removeprefix("lvq").split("x"))
    return Lvq.encode(vectors, *bits)
