"""Neighbourhood attention as loops over single numbers, and in NumPy with gathered windows."""

from __future__ import annotations

import math

import numpy as np


def window_start(length, window_size, dilation, i):
    """Place of the first key among tokens of the same remainder as i."""
    count = math.ceil((length - i % dilation) / dilation)
    return min(max(i // dilation - window_size // 2, 0), count - window_size)


def naive(queries, keys, values, bias=None, window_size=(7, 7), dilation=(1, 1)):
    """The definition: a query's window, its scores, their softmax, the weighted sum."""
    b, heads, height, width, d = queries.shape
    result = np.zeros(queries.shape, queries.dtype)
    for image, head, y, x in np.ndindex(b, heads, height, width):
        top = window_start(height, window_size[0], dilation[0], y)
        left = window_start(width, window_size[1], dilation[1], x)
        scores = []
        seen = []
        for row, column in np.ndindex(*window_size):
            at = (
                (top + row) * dilation[0] + y % dilation[0],
                (left + column) * dilation[1] + x % dilation[1],
            )
            key = keys[image, head][at]
            query = queries[image, head, y, x]
            score = sum(float(query[c]) * float(key[c]) for c in range(d)) / math.sqrt(d)
            if bias is not None:
                down = top + row - y // dilation[0] + window_size[0] - 1
                right = left + column - x // dilation[1] + window_size[1] - 1
                score += float(bias[head, down, right])
            scores.append(score)
            seen.append(values[image, head][at])
        highest = max(scores)
        weights = [math.exp(score - highest) for score in scores]
        for c in range(d):
            weighted = sum(weight * float(v[c]) for weight, v in zip(weights, seen, strict=True))
            result[image, head, y, x, c] = weighted / sum(weights)
    return result


def on_axis(length, window_size, dilation):
    """Keys of each query, (length, window_size), and their index in a bias table."""
    i = np.arange(length)
    count = -(-(length - i % dilation) // dilation)
    start = np.minimum(np.maximum(i // dilation - window_size // 2, 0), count - window_size)
    places = start[:, None] + np.arange(window_size)
    keys = places * dilation + (i % dilation)[:, None]
    return keys, places - (i // dilation)[:, None] + window_size - 1


def with_numpy(queries, keys, values, bias=None, window_size=(7, 7), dilation=(1, 1)):
    """All windows at once, gathered: k² times the keys and values, in one array each."""
    height, width, d = queries.shape[2:]
    rows, down = on_axis(height, window_size[0], dilation[0])
    columns, right = on_axis(width, window_size[1], dilation[1])
    window = rows[:, None, :, None], columns[None, :, None, :]
    near_keys = keys[:, :, window[0], window[1]]  # (b, heads, h, w, k, k, d)
    near_values = values[:, :, window[0], window[1]]
    scores = np.einsum("bnhwd,bnhwijd->bnhwij", queries / math.sqrt(d), near_keys)
    if bias is not None:
        scores += bias[:, down[:, None, :, None], right[None, :, None, :]]
    scores -= scores.max((-1, -2), keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum((-1, -2), keepdims=True)
    return np.einsum("bnhwij,bnhwijd->bnhwd", scores, near_values)
