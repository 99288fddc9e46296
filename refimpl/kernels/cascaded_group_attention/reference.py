"""Cascaded heads as loops over single numbers, and in NumPy. Shapes: see the package."""

from __future__ import annotations

import math

import numpy as np


def naive(x, qkv_weight, qkv_bias, dw_weight, dw_bias, bias_table):
    """The definition, one number after the other."""
    windows, n, channels = x.shape
    heads, key_dim = dw_weight.shape[:2]
    c = channels // heads
    out = np.zeros_like(x)
    for b in range(windows):
        y = np.zeros((n, c), x.dtype)
        for j in range(heads):
            u = x[b, :, j * c : (j + 1) * c] + y
            qkv = np.zeros((n, 2 * key_dim + c), x.dtype)
            for t in range(n):
                for o in range(2 * key_dim + c):
                    qkv[t, o] = sum(qkv_weight[j, o, i] * u[t, i] for i in range(c))
                    qkv[t, o] += qkv_bias[j, o]
            q = depthwise(qkv[:, :key_dim], dw_weight[j], dw_bias[j])
            k = qkv[:, key_dim : 2 * key_dim]
            v = qkv[:, 2 * key_dim :]
            y = attend(q, k, v, bias_table[j])
            out[b, :, j * c : (j + 1) * c] = y
    return out


def depthwise(q, weight, bias):
    """D ∗ q + d on the side×side map, zero padding. q: (n, d_k); weight: (d_k, K, K)."""
    n, key_dim = q.shape
    side = math.isqrt(n)
    half = weight.shape[-1] // 2
    result = np.zeros_like(q)
    for t in range(n):
        for d in range(key_dim):
            result[t, d] = bias[d]
            for dy in range(-half, half + 1):
                for dx in range(-half, half + 1):
                    row = t // side + dy
                    column = t % side + dx
                    if 0 <= row < side and 0 <= column < side:
                        tap = weight[d, dy + half, dx + half]
                        result[t, d] += tap * q[row * side + column, d]
    return result


def attend(q, k, v, table):
    """softmax(q kᵀ / √d_k + b) v for one head. q, k: (n, d_k); v: (n, c); table: (n)."""
    n, key_dim = q.shape
    side = math.isqrt(n)
    y = np.zeros_like(v)
    for t in range(n):
        logits = np.zeros(n, q.dtype)
        for s in range(n):
            dot = sum(q[t, d] * k[s, d] for d in range(key_dim))
            offset = abs(t // side - s // side) * side + abs(t % side - s % side)
            logits[s] = dot / math.sqrt(key_dim) + table[offset]
        weights = [math.exp(z - max(logits)) for z in logits]
        for e in range(v.shape[1]):
            y[t, e] = sum(weights[s] * v[s, e] for s in range(n)) / sum(weights)
    return y


def offsets(side: int) -> np.ndarray:
    """Entry of the bias table for two tokens: (n, n), |Δrow|·side + |Δcol|."""
    row, column = np.divmod(np.arange(side * side), side)
    down = np.abs(row[:, None] - row)
    across = np.abs(column[:, None] - column)
    return down * side + across


def with_numpy(x, qkv_weight, qkv_bias, dw_weight, dw_bias, bias_table):
    """All windows at once; the depthwise convolution is a sum of K² shifted maps."""
    windows, n, _ = x.shape
    heads, key_dim, kernel, _ = dw_weight.shape
    side = math.isqrt(n)
    pad = ((0, 0), (kernel // 2, kernel // 2), (kernel // 2, kernel // 2), (0, 0))
    scale = x.dtype.type(key_dim**-0.5)
    biases = bias_table[:, offsets(side)]
    y = 0
    outputs = []
    for j, x_j in enumerate(np.split(x, heads, 2)):
        qkv = (x_j + y) @ qkv_weight[j].T + qkv_bias[j]
        q, k, v = np.split(qkv, (key_dim, 2 * key_dim), 2)
        padded = np.pad(q.reshape(windows, side, side, key_dim), pad)
        q = np.zeros((windows, side, side, key_dim), x.dtype) + dw_bias[j]
        for dy in range(kernel):
            for dx in range(kernel):
                q += padded[:, dy : dy + side, dx : dx + side] * dw_weight[j, :, dy, dx]
        logits = q.reshape(windows, n, key_dim) @ k.swapaxes(1, 2) * scale + biases[j]
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        y = weights @ v / weights.sum(-1, keepdims=True)
        outputs.append(y)
    return np.concatenate(outputs, 2)
