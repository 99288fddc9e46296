"""Scores of groups of weights as loops over single numbers, and in NumPy without the product."""

from __future__ import annotations

import numpy as np


def naive(weight, gradient):
    """The definition: the products of a group, summed, squared."""
    batch, outer, groups, inner = weight.shape
    scores = np.zeros((batch, groups), weight.dtype)
    for b in range(batch):
        for g in range(groups):
            total = 0.0
            for o in range(outer):
                for i in range(inner):
                    total += float(weight[b, o, g, i]) * float(gradient[b, o, g, i])
            scores[b, g] = total**2
    return scores


def with_numpy(weight, gradient):
    """`einsum` sums as it multiplies: no product is stored."""
    rows = np.einsum("bogi,bogi->bog", weight, gradient)
    return rows.sum(1) ** 2
