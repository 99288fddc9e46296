"""Fixed-point arithmetic as a chip does it, in NumPy: numbers are whole multiples of a small step.

A format <W, I> has W bits, I of them before the point, the sign's among them; the step is
2^−(W − I). The formats and the order of roundings are those of sharc-lab/Edge-MoE @ 984b23b, whose
`ap_fixed` type cuts towards −∞ and wraps on overflow. Products are exact and are cut when they are
assigned; where that happens decides every last bit.

Numbers travel as float64, which holds every <32, 10> exactly; inside, all is int64. exp, 1/x and
1/√x are the double-precision value, cut (the vendor's own functions are not published).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refimpl import checks

SHIFT = 22  # bits behind the point of a feature
ONE = 1 << SHIFT


@dataclass(frozen=True)
class Format:
    """bits W in all, integer I of them before the point (with the sign's, where there is one)."""

    bits: int
    integer: int
    signed: bool = True

    def __post_init__(self):
        checks.integer(1, bits=self.bits)
        if self.bits > 62 or not 0 <= self.integer <= self.bits:
            raise ValueError(
                f"integer={self.integer} of bits={self.bits}: at most 62 bits in all, and 0 to all"
                " of them before the point"
            )

    @property
    def step(self) -> float:
        return 2.0 ** (self.integer - self.bits)

    def codes(self, x: np.ndarray) -> np.ndarray:
        """Real numbers -> whole multiples of the step, int64: cut towards −∞, wrapped."""
        return self.wrap(np.floor(np.asarray(x, np.float64) / self.step).astype(np.int64))

    def wrap(self, codes: np.ndarray) -> np.ndarray:
        """Whole numbers into the range of the format, modulo 2^W."""
        low = 1 << (self.bits - 1) if self.signed else 0
        return ((codes + low) & ((1 << self.bits) - 1)) - low

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Whole multiples of the step -> float64."""
        return codes * self.step

    def quantise(self, x: np.ndarray) -> np.ndarray:
        """The numbers of this format that real numbers become."""
        return self.values(self.codes(x))


FEATURE = Format(32, 10)  # every feature, score and sum
WEIGHT = Format(16, 2)  # of linear layers, experts and gates
ATTENTION_BIAS = Format(16, 7)  # of queries, keys, values and projection
BIAS = Format(16, 5)  # the others, and both vectors of a layer norm
PATCH_WEIGHT = Format(16, 0)
PIXEL = Format(8, 0, signed=False)

LOWEST = -(1 << 31)  # −512: where a running maximum starts
EPSILON = 4  # 1e-6 as a feature


def times(a: np.ndarray, b: np.ndarray, shift: int = SHIFT) -> np.ndarray:
    """Products of codes, cut: `shift` bits fall off behind."""
    return a * b >> shift


def exp(codes: np.ndarray) -> np.ndarray:
    """e^x of non-positive features, cut to a feature."""
    return np.floor(np.exp(codes / ONE) * ONE).astype(np.int64)


def linear(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, rounded: bool = False
) -> np.ndarray:
    """The linear unit: (n, in), (out, in), (out) -> (n, out), features.

    Each product is cut on its own before it is added, so a sum is too small by half a step per
    input on average. rounded: half a step is added before the cut, which the chip does not do.
    """
    given, matrix = FEATURE.codes(x), WEIGHT.codes(weight)
    shift = WEIGHT.bits - WEIGHT.integer
    total = np.zeros((len(given), len(matrix)), np.int64)
    if bias is not None:
        total += FEATURE.codes(bias)
    for column, row in zip(given.T, matrix.T, strict=True):
        product = column[:, None] * row
        total += product + rounded * (1 << (shift - 1)) >> shift
    return FEATURE.values(FEATURE.wrap(total))


def difference_table(steps_per_unit: int = 32, end: float = 5.5) -> np.ndarray:
    """δ(x) = x − x Φ(x) at 0, 1/steps_per_unit, … end; the last entry is 0. (177,) by default.

    GELU is ReLU minus δ(|x|): δ is small, even, and soon gone, so half a short table is enough.
    """
    x = np.arange(int(end * steps_per_unit) + 1) / steps_per_unit
    above = np.array([math.erfc(value / math.sqrt(2)) / 2 for value in x])  # 1 − Φ(x)
    table = np.round(x * above * ONE) / ONE
    table[-1] = 0
    return table


TABLE = np.round(difference_table() * ONE).astype(np.int64)


def gelu(x: np.ndarray) -> np.ndarray:
    """relu(x) − δ(|x|), δ from the table, straight between its entries: features, any shape."""
    codes = FEATURE.codes(x)
    size = np.abs(codes)
    index = np.minimum(size >> SHIFT - 5, len(TABLE) - 2)
    between = (size & (1 << SHIFT - 5) - 1) << 5
    low, high = TABLE[index], TABLE[index + 1]
    delta = low + times(between, high - low)
    relu = np.maximum(codes, 0)
    return FEATURE.values(np.where(size >= 5.5 * ONE, relu, relu - delta))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(n, d), (d), (d) -> (n, d); the variance is E[x²] − E[x]², each product cut.

    Raises `ValueError` where that is not above zero, which happens for nearly constant tokens.
    """
    codes = FEATURE.codes(x)
    share = ONE // codes.shape[1]
    shares = times(codes, share)
    mean = shares.sum(1, keepdims=True)
    variance = times(codes, shares).sum(1, keepdims=True) - times(mean, mean) + EPSILON
    if (variance <= 0).any():
        raise ValueError("x has a token whose variance, cut to 22 bits, is not above zero")
    inverse = np.floor(ONE / np.sqrt(variance / ONE)).astype(np.int64)
    normed = times(codes - mean, inverse)
    scaled = times(normed, BIAS.codes(weight), BIAS.bits - BIAS.integer)
    return FEATURE.values(FEATURE.wrap(scaled + FEATURE.codes(BIAS.quantise(bias))))


def running_softmax(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of exponentials and maximum in one pass over the last axis: codes (…, n) -> (…) each.

    One exponential a step, of a number that is not positive.
    """
    total = np.zeros(scores.shape[:-1], np.int64)  # S
    highest = np.full(scores.shape[:-1], LOWEST, np.int64)  # b
    for score in np.moveaxis(scores, -1, 0):
        apart = highest - score
        factor = exp(-np.abs(apart))
        raised = times(total, factor) + ONE
        total = FEATURE.wrap(np.where(apart < 0, raised, total + factor))
        highest = np.maximum(highest, score)
    return total, highest


def two_pass_softmax(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same two numbers with the maximum found first."""
    highest = scores.max(-1)
    return FEATURE.wrap(exp(scores - highest[..., None]).sum(-1)), highest


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, num_heads: int, parallel: int = 4
) -> dict[str, np.ndarray]:
    """Rotated attention: three of (n, dim) -> scores (heads, n, n), inv_sum and bias (n, heads),
    out (n, dim).

    parallel: queries in flight; query i sees the keys from i mod `parallel` on. The scale is 1/8
    whatever the width of a head, which must be a multiple of 8.
    """
    n, dim = q.shape
    checks.heads(dim, num_heads)
    checks.multiple(8, "the width of a block", head_dim=dim // num_heads)
    checks.at_least(1, parallel=parallel)
    queries, keys, values = (
        FEATURE.codes(x).reshape(n, num_heads, -1).swapaxes(0, 1) for x in (q, k, v)
    )
    scores = np.zeros((num_heads, n, n), np.int64)
    for start in range(0, dim // num_heads, 8):
        block = slice(start, start + 8)
        products = times(queries[:, :, None, block], keys[:, None, :, block])
        scores += FEATURE.wrap(products.sum(-1)) >> 3  # each block is scaled, and cut, by itself
    scores = FEATURE.wrap(scores)
    seen = (np.arange(n) % parallel)[:, None] + np.arange(n)
    total, highest = running_softmax(np.take_along_axis(scores, (seen % n)[None], 2))
    inverse = np.floor(ONE / (total / ONE)).astype(np.int64)
    weights = times(exp(scores - highest[..., None]), inverse[..., None])
    out = sum(times(weights[:, :, j, None], values[:, None, j]) for j in range(n))
    found = {"scores": scores, "inv_sum": inverse.T, "bias": highest.T}
    found["out"] = FEATURE.wrap(out).swapaxes(0, 1).reshape(n, dim)
    return {name: FEATURE.values(codes) for name, codes in found.items()}


def gate(x: np.ndarray, weight: np.ndarray, top_k: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(n, d), (experts, d) -> the best experts (n, k) int64, and their probabilities (n, k).

    Probabilities are of all experts, not renormalised over the chosen; of equals the lower wins.
    """
    logits = FEATURE.codes(linear(x, weight))
    total, highest = running_softmax(logits)
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    picked = np.take_along_axis(logits, chosen, 1)
    score = (exp(picked - highest[:, None]) << SHIFT) // total[:, None]
    return chosen, FEATURE.values(score)


def experts(
    x: np.ndarray,
    chosen: np.ndarray,
    score: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
) -> np.ndarray:
    """Expert by expert, as `refimpl.kernels.grouped_experts` in features: (n, d) -> (n, d)."""
    out = np.zeros(np.shape(x), np.int64)
    for expert in np.unique(chosen):
        token, place = (chosen == expert).nonzero()
        hidden = gelu(linear(x[token], w1[expert], b1[expert]))
        made = FEATURE.codes(linear(hidden, w2[expert], b2[expert]))
        np.add.at(out, token, times(made, FEATURE.codes(score[token, place])[:, None]))
    return FEATURE.values(FEATURE.wrap(out))


def patch_embed(
    image: np.ndarray, weight: np.ndarray, bias: np.ndarray, pos_embed: np.ndarray
) -> np.ndarray:
    """Pixels (c, h, w) in 0 … 1, (dim, c, p, p), (dim), (1 + n, dim) -> tokens (1 + n, dim).

    The class token is the first row of `pos_embed`. Pixels times weights have 24 bits behind the
    point; two are cut from every product.
    """
    c, height, width = image.shape
    p = weight.shape[-1]
    pixels = PIXEL.codes(image).reshape(c, height // p, p, width // p, p)
    pixels = pixels.transpose(1, 3, 0, 2, 4).reshape(-1, c * p * p)
    matrix = PATCH_WEIGHT.codes(weight).reshape(len(weight), -1)
    tokens = np.zeros((len(pixels), len(matrix)), np.int64) + FEATURE.codes(bias)
    for column, row in zip(pixels.T, matrix.T, strict=True):
        tokens += column[:, None] * row >> 2
    codes = FEATURE.codes(pos_embed)
    codes[1:] += tokens
    return FEATURE.values(FEATURE.wrap(codes))


def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The sum of two features, wrapped."""
    return FEATURE.values(FEATURE.wrap(FEATURE.codes(x) + FEATURE.codes(y)))
