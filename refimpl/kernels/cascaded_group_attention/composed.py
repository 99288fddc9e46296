"""Cascaded heads in PyTorch, differentiable. Equation and shapes: see the package."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels.cascaded_group_attention.reference import offsets


def with_torch(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    bias_table: Tensor,
) -> Tensor:
    """(b, n, C) -> (b, n, C)."""
    n = x.shape[1]
    heads, key_dim, kernel, _ = dw_weight.shape
    side = math.isqrt(n)
    biases = bias_table[:, torch.from_numpy(offsets(side)).to(x.device)]
    outputs = []
    for j, x_j in enumerate(x.chunk(heads, 2)):
        u = x_j + outputs[-1] if outputs else x_j
        qkv = F.linear(u, qkv_weight[j], qkv_bias[j])
        q, k, v = qkv.split((key_dim, key_dim, x_j.shape[2]), 2)
        q = q.transpose(1, 2).unflatten(2, (side, side))
        q = F.conv2d(
            q, dw_weight[j][:, None], dw_bias[j], padding=(kernel // 2, kernel // 2), groups=key_dim
        )
        logits = q.flatten(2).transpose(1, 2) @ k.transpose(1, 2) * key_dim**-0.5 + biases[j]
        outputs.append(logits.softmax(-1) @ v)
    return torch.cat(outputs, 2)
