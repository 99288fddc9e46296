"""ReLU-softmax attention as loops over single numbers, and in NumPy, tile after tile of keys."""

from __future__ import annotations

import math

import numpy as np

EPSILON = 1e-5


def naive(queries, keys, values):
    """The definition: the positive scores of a query, and the mean of values that they weigh."""
    b, heads, n, d = queries.shape
    m, e = values.shape[2:]
    result = np.zeros((b, heads, n, e), queries.dtype)
    for at in np.ndindex(b, heads, n):
        *place, i = at
        q = queries[at]
        k = keys[tuple(place)]
        v = values[tuple(place)]
        weights = []
        for j in range(m):
            product = sum(float(q[c]) * float(k[j, c]) for c in range(d))
            weights.append(max(product / math.sqrt(d), 0.0))
        for c in range(e):
            weighted = sum(weight * float(v[j, c]) for j, weight in enumerate(weights))
            result[at][c] = weighted / (sum(weights) + EPSILON)
    return result


def with_numpy(queries, keys, values, tile=64):
    """Two running sums, `tile` keys at a time, all queries and heads at once."""
    queries = queries * queries.dtype.type(1 / math.sqrt(queries.shape[-1]))
    total = np.full((*queries.shape[:-1], 1), EPSILON, queries.dtype)
    weighted = np.zeros((*queries.shape[:-1], values.shape[-1]), queries.dtype)
    for start in range(0, keys.shape[-2], tile):
        part = slice(start, start + tile)
        weights = np.maximum(queries @ keys[..., part, :].swapaxes(-1, -2), 0)
        total += weights.sum(-1, keepdims=True)
        weighted += weights @ values[..., part, :]
    return weighted / total
