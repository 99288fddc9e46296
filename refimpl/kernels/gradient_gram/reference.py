"""Gram matrix of gradients as loops over single numbers, and in NumPy."""

from __future__ import annotations

import numpy as np


def naive(gradients, total=None):
    """The definition: one inner product for each pair of samples."""
    batch, samples, weights = gradients.shape
    found = np.zeros((batch, samples, samples), gradients.dtype)
    for b in range(batch):
        for i in range(samples):
            for j in range(samples):
                inner = 0.0 if total is None else float(total[b, i, j])
                for p in range(weights):
                    inner += float(gradients[b, i, p]) * float(gradients[b, j, p])
                found[b, i, j] = inner
    return found


def with_numpy(gradients, total=None):
    """A matrix product, which NumPy's BLAS computes as one triangle."""
    found = gradients @ gradients.swapaxes(1, 2)
    return found if total is None else total + found
