"""The loss on a sparse target as loops over single numbers, and in NumPy, without the label."""

from __future__ import annotations

import math

import numpy as np


def naive(logits, indices, probabilities):
    """The definition: build the label, and sum −ŷ log softmax over all classes."""
    b, classes = logits.shape
    kept = indices.shape[1]
    loss = np.zeros(b, logits.dtype)
    for i in range(b):
        rest = 1 - sum(float(p) for p in probabilities[i])
        label = [rest / max(classes - kept, 1)] * classes
        for k in range(kept):
            label[indices[i, k]] = float(probabilities[i, k])
        highest = max(float(z) for z in logits[i])
        total = sum(math.exp(float(z) - highest) for z in logits[i])
        for c in range(classes):
            loss[i] -= label[c] * (float(logits[i, c]) - highest - math.log(total))
    return loss


def with_numpy(logits, indices, probabilities):
    """One row at a time: its maximum, two sums, and K of its numbers."""
    b, classes = logits.shape
    kept = indices.shape[1]
    loss = np.zeros(b, logits.dtype)
    for i in range(b):
        z = logits[i] - logits[i].max()
        p = probabilities[i]
        share = (1 - p.sum()) / max(classes - kept, 1)
        total = p.sum() + (classes - kept) * share
        stored = ((p - share) * z[indices[i]]).sum()
        loss[i] = total * np.log(np.exp(z).sum()) - stored - share * z.sum()
    return loss
