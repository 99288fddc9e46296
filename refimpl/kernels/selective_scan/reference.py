"""Selective scan as loops over single numbers, and in NumPy. Equation, shapes: see the package."""

from __future__ import annotations

import math

import numpy as np


def naive(u, delta, A, B, C, D=None, z=None, delta_bias=None, state=None, *, delta_softplus=False):
    """One multiplication at a time: y (b, d, l) and the last state (b, d, n)."""
    batch, channels, length = u.shape
    states = A.shape[1]
    factor = 2 if np.iscomplexobj(A) else 1
    B = per_channel(B, A, u.shape)
    C = per_channel(C, A, u.shape)
    y = np.zeros(u.shape, u.dtype)
    h = np.zeros((batch, channels, states), np.result_type(A, u))
    if state is not None:
        h += state
    for b in range(batch):
        for d in range(channels):
            for t in range(length):
                step = delta[b, d, t] + (delta_bias[d] if delta_bias is not None else 0)
                if delta_softplus and step <= 20:
                    step = np.log1p(np.exp(step))
                for n in range(states):
                    added = step * u[b, d, t] * B[b, d, n, t]
                    h[b, d, n] = np.exp(step * A[d, n]) * h[b, d, n] + added
                    y[b, d, t] += factor * (C[b, d, n, t] * h[b, d, n]).real
                if D is not None:
                    y[b, d, t] += D[d] * u[b, d, t]
                if z is not None:
                    y[b, d, t] *= z[b, d, t] / (1 + np.exp(-z[b, d, t]))
    return y, h


def with_numpy(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, state=None, *, delta_softplus=False
):
    """√l blocks of √l steps: all blocks at once from zero, then block by block what enters it."""
    batch, channels, length = u.shape
    states = A.shape[1]
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = np.where(delta > 20, delta, np.log1p(np.exp(np.minimum(delta, 20))))
    B = per_channel(B, A, u.shape)
    C = per_channel(C, A, u.shape)
    steps = math.isqrt(length - 1) + 1
    blocks = -(-length // steps)
    # Time comes first: (l, b, n, d). Padding keeps the state: a = 1, x = 0.
    a = np.ones((blocks * steps, batch, states, channels), np.result_type(A, u))
    x = np.zeros_like(a)
    np.exp(time_first(delta[:, :, None] * A[:, :, None]), out=a[:length])
    np.multiply(time_first((delta * u)[:, :, None]), time_first(B), out=x[:length])
    a = a.reshape(blocks, steps, batch, states, channels)
    x = x.reshape(a.shape)
    for s in range(1, steps):
        x[:, s] += a[:, s] * x[:, s - 1]
        a[:, s] *= a[:, s - 1]
    h = np.zeros(x.shape[2:], x.dtype)
    if state is not None:
        h += state.transpose(0, 2, 1)
    for block, decay in zip(x, a, strict=True):
        block += decay * h
        h = block[-1]
    all_states = x.reshape(blocks * steps, batch, states, channels)[:length]
    y = np.einsum("lbnd,bdnl->bdl", all_states, C, optimize=batch > 0)
    if np.iscomplexobj(A):
        y = 2 * y.real
    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * z / (1 + np.exp(-z))
    return y.astype(u.dtype, copy=False), h.transpose(0, 2, 1).copy()


def time_first(m: np.ndarray) -> np.ndarray:
    """(b, d, n, l) -> (l, b, n, d)."""
    return m.transpose(3, 0, 2, 1)


def per_channel(m: np.ndarray, A: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """B or C in any of its accepted forms as (b, d, n, l): a view where it can be."""
    batch, channels, length = shape
    if m.ndim == 2:
        return np.broadcast_to(m[None, :, :, None], (batch, *m.shape, length))
    if np.iscomplexobj(A):
        m = np.ascontiguousarray(m, A.real.dtype).view(A.dtype)  # pairs along time
    if m.ndim == 3:
        m = m[:, None]
    groups = m.shape[1]
    states = m.shape[2]
    repeated = (batch, groups, channels // groups, states, length)
    return np.broadcast_to(m[:, :, None], repeated).reshape(batch, channels, states, length)
