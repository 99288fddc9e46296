"""Experts as loops over single numbers, and in NumPy, sorted by expert."""

from __future__ import annotations

import math

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x):
    """x Φ(x), the distribution of the normal by erf in float64."""
    return (x * (0.5 * (1 + erf(x * math.sqrt(0.5))))).astype(x.dtype)


def naive(x, chosen, score, w1, b1, w2, b2):
    """The definition: token after token, choice after choice."""
    n, d = x.shape
    f = w1.shape[1]
    y = np.zeros((n, d), x.dtype)
    for i in range(n):
        for expert, weight in zip(chosen[i], score[i], strict=True):
            hidden = np.zeros(f, x.dtype)
            for j in range(f):
                total = b1[expert, j]
                for c in range(d):
                    total = total + w1[expert, j, c] * x[i, c]
                hidden[j] = 0.5 * total * (1 + math.erf(total / math.sqrt(2)))
            for c in range(d):
                total = b2[expert, c]
                for j in range(f):
                    total = total + w2[expert, c, j] * hidden[j]
                y[i, c] += weight * total
    return y


def with_numpy(x, chosen, score, w1, b1, w2, b2):
    """One product for all visits of an expert: sort, cut, multiply, add to where they came from."""
    choices = chosen.shape[1]
    order = np.argsort(chosen, axis=None, kind="stable")  # visits, expert by expert
    lengths = np.bincount(chosen.ravel(), minlength=len(w1))
    y = np.zeros_like(x)
    for expert, queue in enumerate(np.split(order, np.cumsum(lengths)[:-1])):
        if len(queue):
            token = queue // choices
            hidden = gelu(x[token] @ w1[expert].T + b1[expert])
            out = hidden @ w2[expert].T + b2[expert]
            np.add.at(y, token, score.ravel()[queue, None] * out)
    return y
