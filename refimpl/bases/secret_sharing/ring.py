"""Fixed point in whole numbers modulo 2⁶⁴, and their shares. Arrays of uint64 of any shape."""

from __future__ import annotations

import numpy as np

BITS = 16  # behind the binary point
LARGEST = 2.0**20  # of a number that is encoded; products may reach 2³¹


def encode(values) -> np.ndarray:
    """round(v · 2¹⁶) mod 2⁶⁴ of real numbers: (…) float -> (…) uint64.

    Raises `ValueError` for numbers that are not finite or too large.
    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("values must be finite: NaN and infinity have no fixed-point form")
    if values.size and np.abs(values).max() >= LARGEST:
        raise ValueError(
            f"values reach {np.abs(values).max():.3g}, fixed point takes numbers below {LARGEST:g}"
        )
    return np.rint(values * 2.0**BITS).astype(np.int64).view(np.uint64)


def decode(whole: np.ndarray) -> np.ndarray:
    """The real numbers: (…) uint64 -> (…) float64."""
    return whole.view(np.int64) / 2.0**BITS


def random(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform over the ring."""
    return generator.integers(0, 2**64, shape, np.uint64)


def share(whole: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two shares, each of them uniform, whose sum is `whole` modulo 2⁶⁴."""
    mask = random(generator, whole.shape)
    return mask, whole - mask


def reconstruct(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The sum of two shares, or a `ValueError` where they are no two shares of one array."""
    if first.shape != second.shape or first.dtype != np.uint64 or second.dtype != np.uint64:
        raise ValueError(
            f"shares must be two uint64 arrays of one shape, got {first.dtype} {first.shape} and"
            f" {second.dtype} {second.shape}"
        )
    return first + second


def truncated(part: np.ndarray, index: int, bits: int = BITS) -> np.ndarray:
    """A party's share of x / 2^bits from its share of x, without a word to the other.

    Right to one unit, but for a chance of about |x| / 2⁶⁴ for the whole number x.
    """
    if index == 0:
        return (part.view(np.int64) >> bits).view(np.uint64)
    negated = (np.uint64(0) - part).view(np.int64)
    return np.uint64(0) - (negated >> bits).view(np.uint64)
