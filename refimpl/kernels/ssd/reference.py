"""State space duality as loops over single numbers, and in NumPy. Shapes: see the package."""

from __future__ import annotations

import numpy as np

GONE = -1e4  # exp(GONE) is 0 in every type, as exp(−∞) is, and 0 · GONE is no NaN


def naive(x, a, B, C, state=None, *, chunk=32):
    """The recurrence, one multiplication at a time (`chunk` is of no use to it)."""
    batch, length, heads, width = x.shape
    groups, states = B.shape[2:]
    h = np.zeros((batch, heads, width, states), np.result_type(x, a))
    if state is not None:
        h += state
    y = np.zeros(x.shape, h.dtype)
    for b in range(batch):
        for i in range(heads):
            g = i // (heads // groups)
            for t in range(length):
                decay = np.exp(a[b, t, i])
                for p in range(width):
                    for n in range(states):
                        h[b, i, p, n] = decay * h[b, i, p, n] + x[b, t, i, p] * B[b, t, g, n]
                        y[b, t, i, p] += h[b, i, p, n] * C[b, t, g, n]
    return y, h


def with_numpy(x, a, B, C, state=None, *, chunk=32):
    """Chunk after chunk, all heads at once: the matrix inside, the state between."""
    batch, length, heads, width = x.shape
    groups, states = B.shape[2:]
    x = heads_first(x, groups)
    a = heads_first(np.maximum(a, GONE), groups)
    B = heads_first(B, groups)
    C = heads_first(C, groups)
    h = np.zeros((batch, heads, width, states), np.result_type(x, a))
    if state is not None:
        h += state
    h = h.reshape(batch, groups, heads // groups, width, states)
    y = np.empty(x.shape, h.dtype)
    for start in range(0, length, chunk):
        part = slice(start, min(start + chunk, length))
        x_c = x[..., part, :]
        a_c = a[..., part]
        B_c = B[..., part, :]
        C_c = C[..., part, :]
        below = np.tril(np.ones((a_c.shape[-1], a_c.shape[-1]), a.dtype))
        sums = below @ (a_c[..., None] * np.tril(below, -1))
        decay = np.tril(np.exp(sums))  # exp(segsum a): (b, g, h/g, l, s)
        since_start = (decay[..., :, 0] * np.exp(a_c[..., :1]))[..., None]
        inside = (decay * (C_c @ np.swapaxes(B_c, -1, -2))) @ x_c
        y[..., part, :] = inside + since_start * (C_c @ np.swapaxes(h, -1, -2))
        to_end = x_c * decay[..., -1, :, None]
        h = since_start[..., -1:, :] * h + np.swapaxes(to_end, -1, -2) @ B_c
    y = np.moveaxis(y, 3, 1).reshape(batch, length, heads, width)
    return y, h.reshape(batch, heads, width, states)


def heads_first(m: np.ndarray, groups: int) -> np.ndarray:
    """(b, l, h, …) -> (b, g, h/g, l, …); what has a value per group gets h/g = 1."""
    batch, length, heads = m.shape[:3]
    return np.moveaxis(m.reshape(batch, length, groups, heads // groups, *m.shape[3:]), 1, 3)
