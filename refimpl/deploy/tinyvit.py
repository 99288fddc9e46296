"""TinyViT for inference: the bias of each attention is stored as it is added.

Equal to `refimpl.papers.tinyvit` but for rounding. The norm before queries, keys and values keeps
only its statistics: its weights go into their projection, where they cost nothing. The walk of
`deploy` folds batch norms.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.bases.levit import offset_index
from refimpl.deploy.norms import bare, behind_norm
from refimpl.layers import attention, attention_map
from refimpl.papers.tinyvit import Attention, MBConv, NormMlp


class FusedAttention(nn.Module):
    """`Attention` whose bias is not gathered: (b, n, dim) -> (b, n, dim)."""

    def __init__(self, layer: Attention):
        super().__init__()
        self.num_heads = layer.num_heads
        index = offset_index(layer.resolution, layer.attention_biases.device)
        self.register_buffer("stored_bias", layer.attention_biases.detach()[:, index])
        self.norm = bare(layer.norm)
        self.qkv = behind_norm(layer.norm, layer.qkv)
        self.proj = layer.proj
        self.probe = layer.probe

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=3)  # (b, heads, n, d)
        self.probe(lambda: attention_map(q, k, self.stored_bias))
        return self.proj(attention(q, k, v, self.stored_bias).transpose(1, 2).flatten(2))


def norm_mlp(layer: NormMlp) -> nn.Sequential:
    """Normalisation, then the MLP: (…, dim) -> (…, dim)."""
    fc1 = behind_norm(layer.norm, layer.fc1)
    return nn.Sequential(bare(layer.norm), fc1, nn.GELU(), layer.fc2)


class FusedMBConv(nn.Module):
    """`MBConv` whose sum is in place: (b, dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, layer: MBConv):
        super().__init__()
        self.conv1 = layer.conv1
        self.conv2 = layer.conv2
        self.conv3 = layer.conv3

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.conv1(x))
        y = F.gelu(self.conv2(y))
        return F.gelu(self.conv3(y).add_(x))


FUSED = {Attention: FusedAttention, NormMlp: norm_mlp, MBConv: FusedMBConv}
