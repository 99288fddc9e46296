"""Attention of few queries as loops over single numbers, and in NumPy, tile after tile of keys."""

from __future__ import annotations

import math

import numpy as np


def naive(queries, keys, values):
    """The definition: all scores of a query, their softmax, the weighted sum."""
    b, heads, n, d = queries.shape
    m, e = values.shape[2:]
    result = np.zeros((b, heads, n, e), queries.dtype)
    for at in np.ndindex(b, heads, n):
        *place, i = at
        q = queries[at]
        k = keys[tuple(place)]
        v = values[tuple(place)]
        scores = []
        for j in range(m):
            product = sum(float(q[c]) * float(k[j, c]) for c in range(d))
            scores.append(product / math.sqrt(d))
        highest = max(scores)
        weights = [math.exp(score - highest) for score in scores]
        for c in range(e):
            weighted = sum(weight * float(v[j, c]) for j, weight in enumerate(weights))
            result[at][c] = weighted / sum(weights)
    return result


def with_numpy(queries, keys, values, tile=64):
    """The running softmax, `tile` keys at a time, all queries and heads at once."""
    scale = 1 / math.sqrt(queries.shape[-1])
    highest = np.full((*queries.shape[:-1], 1), -np.inf, queries.dtype)
    total = np.zeros_like(highest)
    weighted = np.zeros((*queries.shape[:-1], values.shape[-1]), queries.dtype)
    for start in range(0, keys.shape[-2], tile):
        part = slice(start, start + tile)
        scores = scale * queries @ keys[..., part, :].swapaxes(-1, -2)
        higher = np.maximum(highest, scores.max(-1, keepdims=True))
        weights = np.exp(scores - higher)
        shrink = np.exp(highest - higher)
        total = shrink * total + weights.sum(-1, keepdims=True)
        weighted = shrink * weighted + weights @ values[..., part, :]
        highest = higher
    return weighted / total
