"""Confidence and entropy as loops over single numbers, and in NumPy, tile after tile of classes."""

from __future__ import annotations

import math

import numpy as np


def naive(logits):
    """The definition: probabilities, the largest, and −Σ p ln p."""
    b, classes = logits.shape
    confidence = np.zeros(b, logits.dtype)
    entropy = np.zeros(b, logits.dtype)
    for i in range(b):
        highest = max(float(z) for z in logits[i])
        weights = [math.exp(float(z) - highest) for z in logits[i]]
        total = sum(weights)
        for k in range(classes):
            p = weights[k] / total
            confidence[i] = max(confidence[i], p)
            if p > 0:
                entropy[i] -= p * math.log(p)
    return confidence, entropy


def with_numpy(logits, tile=256):
    """The running sums, `tile` classes at a time, all rows at once."""
    b, classes = logits.shape
    highest = np.full(b, -np.inf, logits.dtype)
    total = np.zeros(b, logits.dtype)  # s
    weighted = np.zeros(b, logits.dtype)  # t
    for start in range(0, classes, tile):
        part = logits[:, start : start + tile]
        higher = np.maximum(highest, part.max(-1))
        raised = higher - highest
        shrink = np.exp(-raised)
        weighted = shrink * (weighted - np.where(total > 0, raised, 0) * total)
        total = shrink * total
        apart = part - higher[:, None]
        weights = np.exp(apart)
        total = total + weights.sum(-1)
        weighted = weighted + (weights * apart).sum(-1)
        highest = higher
    return 1 / total, np.log(total) - weighted / total
