"""Attention with pooled queries as loops over single numbers, and in NumPy."""

from __future__ import annotations

import math

import numpy as np


def naive(queries, keys, values, pool=4):
    """The definition: the maxima, all scores of a query, their softmax, the weighted sum."""
    b, heads, tokens, d = queries.shape
    m, e = values.shape[2:]
    n = tokens // pool
    result = np.zeros((b, heads, n, e), queries.dtype)
    for unit, head, i in np.ndindex(b, heads, n):
        q, k, v = queries[unit, head], keys[unit, head], values[unit, head]
        asked = [max(float(q[r * n + i, c]) for r in range(pool)) for c in range(d)]
        scores = []
        for j in range(m):
            product = sum(asked[c] * float(k[j, c]) for c in range(d))
            scores.append(product / math.sqrt(d))
        highest = max(scores)
        weights = [math.exp(score - highest) for score in scores]
        for c in range(e):
            weighted = sum(weight * float(v[j, c]) for j, weight in enumerate(weights))
            result[unit, head, i, c] = weighted / sum(weights)
    return result


def with_numpy(queries, keys, values, pool=4):
    """All units and heads at once; the scores are overwritten by their exponentials."""
    b, heads, tokens, d = queries.shape
    asked = queries.reshape(b, heads, pool, tokens // pool, d).max(2)
    scores = (asked / math.sqrt(d)) @ keys.swapaxes(-1, -2)
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    return scores @ values / scores.sum(-1, keepdims=True)
