"""Depthwise convolution and GELU as loops, and in NumPy. Equation and shapes: see the package."""

from __future__ import annotations

import math

import numpy as np

from refimpl.kernels.modulation_gate.reference import gelu


def naive(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """One multiplication at a time: the definition."""
    batch, height, width, channels = x.shape
    k = weight.shape[1]
    out = np.zeros_like(x)
    for b in range(batch):
        for row in range(height):
            for column in range(width):
                for c in range(channels):
                    z = bias[c]
                    for i in range(k):
                        for j in range(k):
                            y = row + i - k // 2
                            at = column + j - k // 2
                            if 0 <= y < height and 0 <= at < width:
                                z += weight[c, i, j] * x[b, y, at, c]
                    out[b, row, column, c] = 0.5 * z * (1 + math.erf(z / math.sqrt(2)))
    return out


def with_numpy(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """k² shifted maps, each times the weights of its tap."""
    height, width = x.shape[1:3]
    k = weight.shape[1]
    padding = ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0))
    padded = np.pad(x, padding)
    z = np.zeros_like(x) + bias
    for i in range(k):
        for j in range(k):
            z += padded[:, i : i + height, j : j + width] * weight[:, i, j]
    return gelu(z)
