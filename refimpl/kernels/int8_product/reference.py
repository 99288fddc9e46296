"""The integer product as loops over single numbers, and in NumPy."""

from __future__ import annotations

import numpy as np


def naive(codes, weight, scale, weight_scale, bias=None, *, zero_point=0):
    """Multiply and add integers one at a time; two scales and the bias at the end."""
    rows, inputs = codes.shape
    outputs = len(weight)
    y = np.zeros((rows, outputs), weight_scale.dtype)
    for i in range(rows):
        for o in range(outputs):
            total = 0
            for k in range(inputs):
                total += (int(codes[i, k]) - zero_point) * int(weight[o, k])
            y[i, o] = total * (scale * weight_scale[o]) + (0 if bias is None else bias[o])
    return y


def with_numpy(codes, weight, scale, weight_scale, bias=None, *, zero_point=0):
    """One product of integers; the zero point's share depends on the weights alone."""
    sums = codes.astype(np.int32) @ weight.T.astype(np.int32)  # (b, n)
    sums -= np.int32(zero_point) * weight.sum(1, dtype=np.int32)
    y = sums.astype(weight_scale.dtype) * (scale * weight_scale)
    return y if bias is None else y + bias
