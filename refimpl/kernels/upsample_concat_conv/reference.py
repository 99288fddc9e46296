"""The way into a node as loops over single numbers, and in NumPy. Shapes: see the package."""

from __future__ import annotations

import numpy as np


def naive(below, beside, weight, bias):
    """One product at a time, as the definition says: all nine of the enlarged map."""
    batch, channels, height, width = below.shape
    outputs, inputs = weight.shape[:2]
    y = np.zeros((batch, outputs, 2 * height, 2 * width), below.dtype)
    for b, o, i, j in np.ndindex(*y.shape):
        total = bias[o]
        for c in range(inputs):
            for row in range(max(i - 1, 0), min(i + 2, 2 * height)):
                for column in range(max(j - 1, 0), min(j + 2, 2 * width)):
                    if c < channels:
                        x = below[b, c, row // 2, column // 2]
                    else:
                        x = beside[b, c - channels, row, column]
                    total += weight[o, c, row - i + 1, column - j + 1] * x
        y[b, o, i, j] = total
    return y


def convolve(x, weight, top: int, left: int, height: int, width: int):
    """Products of weights (o, c, k, k) with x (b, c, ·, ·), zero outside: (b, o, height, width).

    top, left: rows and columns of zeros before x.
    """
    size = weight.shape[2]
    after = (height + size - 1 - top - x.shape[2], width + size - 1 - left - x.shape[3])
    padded = np.pad(x, ((0, 0), (0, 0), (top, after[0]), (left, after[1])))
    y = np.zeros((len(x), len(weight), height, width), x.dtype)
    for a in range(size):
        for b in range(size):
            part = padded[:, :, a : a + height, b : b + width]
            y += np.moveaxis(np.tensordot(weight[:, :, a, b], part, (1, 1)), 0, 1)
    return y


def with_numpy(below, beside, weight, bias):
    """Four 2×2 convolutions of the small map, one per parity, and the 3×3 of the large one."""
    channels, height, width = below.shape[1:]
    y = convolve(beside, weight[:, channels:], 1, 1, 2 * height, 2 * width)
    first, middle, last = np.moveaxis(weight[:, :channels], 2, 0)  # rows of the kernel
    rows = (first, middle + last), (first + middle, last)
    for i, (above, under) in enumerate(rows):
        pair = np.stack([above, under], 2)  # (o, c, 2, 3)
        left, centre, right = np.moveaxis(pair, 3, 0)
        columns = (left, centre + right), (left + centre, right)
        for j, both in enumerate(columns):
            kernel = np.stack(both, 3)  # (o, c, 2, 2)
            # padded by one, an odd row begins at its own pixel: the second row of the padded map
            padded = np.pad(below, ((0, 0), (0, 0), (1, 1), (1, 1)))[:, :, i:, j:]
            y[:, :, i::2, j::2] += convolve(
                padded[:, :, : height + 1, : width + 1], kernel, 0, 0, height, width
            )
    return y + bias[:, None, None]
