"""LeViT's attention, as later networks take it over: narrow keys, wide values, a bias by distance.

Graham and others, *LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference*, ICCV
2021, arXiv 2104.01136. Followed in the form of EfficientFormer (snap-research/EfficientFormer @
d01da42, models/efficientformer.py `Attention`): linear layers with bias, no norm, no activation.

    softmax(q kᵀ / √d + b[|Δrow|·r + |Δcol|]) v      q, k: d channels per head, v: attn_ratio · d
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refimpl import checks
from refimpl.layers import Layout, Probe, attention, attention_map
from refimpl.weights import Rules


def offset_index(resolution: int, device: torch.device | None = None) -> Tensor:
    """Which entry of a bias table two tokens of an r×r window share: (N, N) int64.

    |Δrow|·r + |Δcol|. The distance is absolute, so left and right (and above and below) share it.
    """
    token = torch.arange(resolution**2, device=device)
    row = token // resolution
    column = token % resolution
    return (row[:, None] - row).abs() * resolution + (column[:, None] - column).abs()


class Attention(nn.Module):
    """Attention with wide values and a bias by distance: (b, r², dim) -> (b, r², dim).

    Keys have key_dim channels per head and values attn_ratio times as many, whatever `dim`.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int = 32,
        num_heads: int = 8,
        attn_ratio: float = 4,
        resolution: int = 7,
    ):
        super().__init__()
        checks.at_least(1, key_dim=key_dim, num_heads=num_heads, resolution=resolution)
        self.resolution = resolution
        self.num_heads = num_heads
        self.widths = [key_dim, key_dim, int(attn_ratio * key_dim)]  # queries, keys, values
        self.qkv = nn.Linear(dim, num_heads * sum(self.widths))
        self.proj = nn.Linear(num_heads * self.widths[2], dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, resolution**2))
        self.probe = Probe(Layout((resolution, resolution)))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (b, heads, n, d)
        q, k, v = qkv.split(self.widths, dim=3)
        bias = self.attention_biases[:, offset_index(self.resolution, x.device)]  # (heads, n, n)
        self.probe(lambda: attention_map(q, k, bias))
        return self.proj(attention(q, k, v, bias).transpose(1, 2).flatten(2))


NAMES: dict[str, Rules] = {"official": [(r"attention_bias_idxs$", None)]}  # a computed buffer
