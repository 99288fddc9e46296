"""Hidden state mixer as loops over single numbers, and in NumPy. Shapes: see the package."""

from __future__ import annotations

import numpy as np


def naive(x, dt, B, C, A, D, hz_weight, out_weight):
    """One multiplication at a time."""
    batch, channels, length = x.shape
    states = dt.shape[1]
    inner = out_weight.shape[1]
    if A is None:
        A = np.zeros(states, x.dtype)
    y = np.zeros_like(x)
    mixed = np.zeros((batch, channels, states), x.dtype)
    for b in range(batch):
        for n in range(states):
            top = max(dt[b, n, t] + A[n] for t in range(length))
            total = sum(np.exp(dt[b, n, t] + A[n] - top) for t in range(length))
            h = [0.0] * channels
            for t in range(length):
                weight = np.exp(dt[b, n, t] + A[n] - top) / total * B[b, n, t]
                for d in range(channels):
                    h[d] += weight * x[b, d, t]
            gated = []
            for e in range(inner):
                p = sum(hz_weight[e, d] * h[d] for d in range(channels))
                z = sum(hz_weight[inner + e, d] * h[d] for d in range(channels))
                gated.append(p * z / (1 + np.exp(-z)) + D[0] * p)
            for d in range(channels):
                mixed[b, d, n] = sum(out_weight[d, e] * gated[e] for e in range(inner))
                for t in range(length):
                    y[b, d, t] += mixed[b, d, n] * C[b, n, t]
    return y, mixed


def with_numpy(x, dt, B, C, A, D, hz_weight, out_weight):
    """A stable softmax and four matrix products."""
    logits = dt if A is None else dt + A[:, None]
    w = np.exp(logits - logits.max(-1, keepdims=True))
    w *= B / w.sum(-1, keepdims=True)
    h = x @ np.swapaxes(w, -1, -2)
    p, z = np.split(hz_weight @ h, 2, axis=1)
    h = out_weight @ (p * z / (1 + np.exp(-z)) + D * p)
    return h @ C, h
