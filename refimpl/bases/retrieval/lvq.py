"""Stores of vectors: LVQ, locally-adaptive vector quantisation (Aguerrebere et al., VLDB 2023), and plain floats with the same functions.

    y = x − μ,  M = 2ᵇ − 1        bias = min y,  scale = (max y − min y)/M        code = clamp(round((y − bias)/scale), 0, M)
    second level, R = 2ʳ − 1      step = scale/R                                  code₂ = clamp(round((y − ŷ + scale/2)/step), 0, R)
    x̂ = scale · code + bias + μ  [+ step · code₂ − scale/2]

μ is float64. Rounding is half away from zero, in float32, by the reciprocals of scale and step: of ten forms tried, the one that the package scalable-vs 0.5.0
reproduces exactly. The header of IntelLabs/ScalableVectorSearch @ 4c6ba38 rounds scale and bias to float16; that is the option `constants`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refimpl.kernels.lvq_inner_product import lvq_inner_product, pack, unpack


def round_half_away(x: Tensor) -> Tensor:
    """C's `roundf`; torch rounds halves to even."""
    whole = x.trunc()
    return whole + torch.where((x - whole).abs() >= 0.5, x.sign(), 0)


@dataclass(frozen=True)
class Lvq:
    """Vectors (n, d) as one byte or half a byte a number, and two constants each: x̂ = scale · code + bias + μ [+ step · residual − scale/2].

    mean: (d,) float64; scale, bias: (n,); codes, residual: packed uint8 (n, w), see `lvq_inner_product.pack`. Arithmetic is float32 once the mean is off.
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
        """Quantise (n, d) float32. `mean`: an earlier set's, when vectors are added to it. `constants`: torch.float16 halves their storage."""
        if bits not in range(1, 9) or residual_bits not in range(9):
            raise ValueError(
                f"bits={bits!r} must be 1 to 8 and residual_bits={residual_bits!r} 0 (one level) to 8"
            )
        mean = vectors.mean(0, dtype=torch.float64) if mean is None else mean
        parts = [
            cls.encode_block((block - mean).float(), bits, residual_bits, constants)
            for block in vectors.split(8192)
        ]
        return cls(mean, *map(torch.cat, zip(*parts, strict=True)), bits, residual_bits)

    @staticmethod
    def encode_block(
        y: Tensor, bits: int, residual_bits: int, constants: torch.dtype
    ) -> tuple[Tensor, ...]:
        levels = 2**bits - 1  # M
        low, high = y.aminmax(dim=1, keepdim=True)
        scale = ((high - low) / levels).to(constants)
        scale[high - low <= 7e-5 * levels] = 1  # a vector that is nearly constant
        bias = low.to(constants)
        s, b = scale.float(), bias.float()
        digits = round_half_away((y - b) * (1 / s)).clamp(0, levels)
        residual = y.new_zeros(len(y), 0)
        if residual_bits:
            finer = 2**residual_bits - 1  # R
            left = y - (s * digits + b)
            residual = round_half_away((left + s / 2) * (1 / (s / finer))).clamp(0, finer)
        return (
            scale[:, 0],
            bias[:, 0],
            pack(digits.byte(), bits),
            pack(residual.byte(), residual_bits or 8),
        )

    def __len__(self) -> int:
        return len(self.codes)

    def vectors(self, ids: Tensor | slice = slice(None)) -> Tensor:
        """The decoded x̂: (…, d) float32."""
        d, scale, bias = (
            len(self.mean),
            self.scale[ids].float()[..., None],
            self.bias[ids].float()[..., None],
        )
        decoded = unpack(self.codes[ids], d, self.bits) * scale + bias
        if self.residual_bits:
            decoded += (
                unpack(self.residual[ids], d, self.residual_bits)
                * (scale / (2**self.residual_bits - 1))
                - scale / 2
            )
        return decoded + self.mean.float()

    def inner(self, queries: Tensor, ids: Tensor) -> Tensor:
        """⟨q, x̂⟩ of queries (b, d) with vectors of their own, ids (b, c), without decoding them: (b, c)."""
        scale, bias, queries = self.scale[ids].float(), self.bias[ids].float(), queries[:, None]
        if not self.residual_bits:
            return lvq_inner_product(queries, self.codes[ids], scale, bias, self.mean, self.bits)[
                :, 0
            ]
        step = scale / (2**self.residual_bits - 1)
        first = lvq_inner_product(
            queries, self.codes[ids], scale, bias - scale / 2, self.mean, self.bits
        )
        return (
            first
            + lvq_inner_product(
                queries, self.residual[ids], step, torch.zeros_like(step), None, self.residual_bits
            )
        )[:, 0]

    def extended(self, vectors: Tensor) -> Lvq:
        """With further vectors, quantised about the same mean."""
        new = self.encode(vectors, self.bits, self.residual_bits, self.mean, self.scale.dtype)
        return replace(
            self,
            **{
                f: torch.cat([getattr(self, f), getattr(new, f)])
                for f in ("scale", "bias", "codes", "residual")
            },
        )


@dataclass(frozen=True)
class Floats:
    """Vectors (n, d) as they are, in float32 or float16: the baseline, with the same functions as `Lvq`."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def vectors(self, ids: Tensor | slice = slice(None)) -> Tensor:
        return self.values[ids].float()

    def inner(self, queries: Tensor, ids: Tensor) -> Tensor:
        return (self.vectors(ids) @ queries[:, :, None])[..., 0]

    def extended(self, vectors: Tensor) -> Floats:
        return Floats(torch.cat([self.values, vectors.to(self.values.dtype)]))


KINDS = ("float32", "float16", "lvq8", "lvq4", "lvq4x4", "lvq4x8", "lvq8x8")


def store(vectors: Tensor, kind: str) -> Lvq | Floats:
    """`kind`: float32, float16, lvq8, lvq4, or two-level lvq4x4, lvq4x8, lvq8x8."""
    if kind not in KINDS:
        raise ValueError(f"kind of storage {kind!r} is not one of {', '.join(KINDS)}")
    return (
        Floats(vectors.to(getattr(torch, kind)))
        if kind.startswith("float")
        else Lvq.encode(vectors, *map(int, kind[3:].split("x")))
    )


class Points:
    """A store under a metric, as graph and ranking see it; smaller is nearer: −⟨q, x̂⟩ for "ip", ‖q − x̂‖² for "l2"."""

    def __init__(self, stored: Lvq | Floats, metric: str):
        self.stored, self.vectors = stored, stored.vectors
        norms = [
            self.vectors(slice(i, i + 8192)).square().sum(1) for i in range(0, len(stored), 8192)
        ]
        self.norms = torch.cat(norms) if metric == "l2" else None  # ‖x̂‖²

    def distance(self, queries: Tensor, ids: Tensor) -> Tensor:
        """Queries (b, d), each with vectors of its own, ids (b, c) -> (b, c)."""
        product = self.stored.inner(queries, ids)
        return (
            -product
            if self.norms is None
            else self.norms[ids] - 2 * product + queries.square().sum(1, keepdim=True)
        )

    def block(self, queries: Tensor, part: slice) -> Tensor:
        """Queries (b, d) with the same vectors, a slice of c: (c, b). Decoded once for all the queries, so that it is a plain matrix product."""
        vectors = self.vectors(part)
        if self.norms is None:
            return vectors @ -queries.T
        return torch.addmm(self.norms[part, None], vectors, queries.T, alpha=-2).add_(
            queries.square().sum(1)
        )

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """Vectors (b, m, d) with vectors (b, n, d): (b, m, n)."""
        return -x @ y.mT if self.norms is None else torch.cdist(x, y).square()
