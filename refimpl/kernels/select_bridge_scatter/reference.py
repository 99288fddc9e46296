"""Packing and handing back as loops over single numbers, and in NumPy with one sort."""

from __future__ import annotations

import numpy as np


def naive(tokens, scores, update):
    """The definition: count who is higher, then move."""
    windows, n, channels = tokens.shape
    keep = update.shape[1] - 1
    packed = np.zeros(update.shape, tokens.dtype)
    routed = np.zeros(tokens.shape, tokens.dtype)
    for b in range(windows):
        rank = []
        for j in range(n):
            higher = 0
            for i in range(n):
                first = i < j and scores[b, i] == scores[b, j]
                higher += bool(scores[b, i] > scores[b, j] or first)
            rank.append(higher)
        total = sum(float(scores[b, j]) for j in range(n) if rank[j] >= keep)
        for c in range(channels):
            bridge = 0.0
            for j in range(n):
                x = float(tokens[b, j, c])
                if rank[j] < keep:
                    packed[b, rank[j], c] = x
                else:
                    bridge += float(scores[b, j]) / total * x
                routed[b, j, c] = x + float(update[b, min(rank[j], keep), c])
            packed[b, keep, c] = bridge
    return packed, routed


def with_numpy(tokens, scores, update):
    """One sort gives the order; the inverse of the order is the rank."""
    keep = update.shape[1] - 1
    order = np.argsort(-scores, axis=1, kind="stable")
    rank = np.argsort(order, axis=1)
    redundant = rank >= keep
    weights = np.where(redundant, scores, 0)
    weights = weights / weights.sum(1, keepdims=True)
    bridge = weights[:, None] @ tokens
    salient = np.take_along_axis(tokens, order[:, :keep, None], 1)
    change = np.take_along_axis(update, np.minimum(rank, keep)[..., None], 1)
    return np.concatenate([salient, bridge], 1), tokens + change
