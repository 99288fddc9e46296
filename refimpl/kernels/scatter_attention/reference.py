"""Attention read the other way as loops over single numbers, and in NumPy, tile after tile."""

from __future__ import annotations

import math

import numpy as np


def naive(queries, keys, values):
    """The definition: for one of the many, its score with each of the few, softmax, sum."""
    b, heads, m, d = queries.shape
    n = keys.shape[2]
    e = values.shape[3]
    result = np.zeros((b, heads, n, e), queries.dtype)
    for at in np.ndindex(b, heads, n):
        *place, j = at
        q = queries[tuple(place)]
        k = keys[at]
        v = values[tuple(place)]
        scores = []
        for i in range(m):
            product = sum(float(q[i, c]) * float(k[c]) for c in range(d))
            scores.append(product / math.sqrt(d))
        highest = max(scores)
        weights = [math.exp(score - highest) for score in scores]
        for c in range(e):
            weighted = sum(weight * float(v[i, c]) for i, weight in enumerate(weights))
            result[at][c] = weighted / sum(weights)
    return result


def with_numpy(queries, keys, values, tile=64):
    """`tile` of the many at a time: scores of no more than these exist at once."""
    scaled = queries.swapaxes(-1, -2) / np.sqrt(np.asarray(queries.shape[-1], queries.dtype))
    parts = []
    for start in range(0, keys.shape[-2], tile):
        scores = keys[..., start : start + tile, :].astype(queries.dtype) @ scaled
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        parts.append(weights @ values / weights.sum(-1, keepdims=True))
    if not parts:
        return np.zeros((*keys.shape[:-1], values.shape[-1]), queries.dtype)
    return np.concatenate(parts, -2)
