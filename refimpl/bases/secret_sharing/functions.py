"""Functions of shares, from sums, products and comparisons. `party` is a `Party`, x its share.

Rounds and bytes (both directions, for each number or row of n) stand with each. Accuracy is that of
16 bits behind the point, and of the range that is named.
"""

from __future__ import annotations

import numpy as np

from refimpl.bases.secret_sharing.party import Party
from refimpl.bases.secret_sharing.ring import BITS

# GELU(t) − t/2 on |t| ≤ 2.7, in powers of |t| from 0: a fit, right to 1.6e-3
GELU = (
    0.001620808531841547,
    -0.03798164612714154,
    0.5410550166368381,
    -0.18352506127082727,
    0.020848611754127593,
)
EDGE = 2.7
UNIT = 2.0**-BITS  # the least number above 0


def maximum(party: Party, x: np.ndarray) -> np.ndarray:
    """The largest of each row, a pair at a time: (…, n) -> (…, 1).

    9 ⌈log₂ n⌉ rounds, 416.25 (n − 1) bytes per row.
    """
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        x = np.concatenate([party.relu(first - second) + second, rest], -1)
    return x


def exp(party: Party, x: np.ndarray) -> np.ndarray:
    """(1 + x/256)^256, near eˣ for −200 < x ≤ 1: 8 rounds, 128 bytes each."""
    y = party.add(party.scale(x, 1 / 256), 1.0)
    for _ in range(8):
        y = party.square(y)
    return y


def reciprocal(party: Party, x: np.ndarray) -> np.ndarray:
    """1/x for 0.01 < x < 500, by ten steps of Newton: 28 rounds, 768 bytes each."""
    y = party.add(3 * exp(party, party.constant(0.5, x) - x), 0.003)
    for _ in range(10):
        y = party.multiply(y, party.constant(2.0, x) - party.multiply(x, y))
    return y


def inverse_root(party: Party, x: np.ndarray) -> np.ndarray:
    """1/√x for 0.1 < x < 100, by three steps of Newton: 17 rounds."""
    y = party.add(-party.scale(x, 0.5), -0.2)
    y = party.add(party.scale(exp(party, y), 2.2) - party.scale(x, 1 / 1024), 0.2)
    for _ in range(3):
        inner = party.multiply(x, party.square(y))
        y = party.scale(party.multiply(y, party.constant(3.0, x) - inner), 0.5)
    return y


def normalise(party: Party, x: np.ndarray) -> np.ndarray:
    """Rows of numbers ≥ 0 divided by their sums, each at least a unit: (…, n) -> (…, n).

    29 rounds, 32 n + 768 bytes per row.
    """
    total = party.add(x.sum(-1, keepdims=True), UNIT)
    inverse = reciprocal(party, total)
    return party.multiply(x, np.broadcast_to(inverse, x.shape))


def softmax(party: Party, x: np.ndarray) -> np.ndarray:
    """9 ⌈log₂ n⌉ + 37 rounds, 416.25 (n − 1) + 160 n + 768 bytes per row of n."""
    with party.part("maximum"):
        x = x - maximum(party, x)
    with party.part("exp"):
        x = exp(party, x)
    with party.part("division"):
        return normalise(party, x)


def gelu(party: Party, x: np.ndarray) -> np.ndarray:
    """GELU in three pieces, 0, a polynomial of degree 4, and x: 12 rounds, 1328.75 bytes each.

    Right to 2e-3 between ±2.7, and to 0.01 beyond.
    """
    edges = np.stack([party.add(x, EDGE), x, party.add(x, -EDGE)])
    below, negative, inside = party.negative(edges)  # whole numbers: x < −2.7, x < 0, x < 2.7
    size = x - 2 * party.product(x, negative)  # |x|
    squared = party.square(size)
    higher = party.multiply(np.stack([size, squared]), np.stack([squared, squared]))
    curve = party.scale(x, 0.5)
    for weight, power in zip(GELU[1:], (size, squared, *higher), strict=True):
        curve = curve + party.scale(power, weight)
    middle, above = inside - below, whole_one(party, x) - inside
    pieces = np.stack([party.add(curve, GELU[0]), x])
    return party.product(pieces, np.stack([middle, above])).sum(0)


def whole_one(party: Party, x: np.ndarray) -> np.ndarray:
    """A share of the whole number 1, as comparisons give it."""
    return np.full(x.shape, 1 - party.index, np.uint64)


def layer_norm(
    party: Party, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float = 1e-5
) -> np.ndarray:
    """(x − mean) / √(variance + ε) · weight + bias over rows, all of them shares: (…, n) -> (…, n).

    20 rounds. The least ε that fixed point knows is 1.5e-5.
    """
    count = x.shape[-1]
    centred = x - party.scale(x.sum(-1, keepdims=True), 1 / count)
    variance = party.scale(party.square(centred).sum(-1, keepdims=True), 1 / count)
    inverse = inverse_root(party, party.add(variance, max(epsilon, UNIT)))
    scaled = party.multiply(centred, np.broadcast_to(inverse, x.shape))
    return party.multiply(scaled, np.broadcast_to(weight, x.shape)) + bias
