"""EfficientFormer for inference: maps are channels last, λ₂ lives in the last 1×1 convolution.

Equal to `refimpl.papers.efficientformer` but for rounding. What is fast here and not there: the
pool mixer as one `lerp` of two maps, norms and λ folded into weights, sums in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.bases.levit import Attention, offset_index
from refimpl.deploy import linear_like, scaled
from refimpl.layers import fold_norm
from refimpl.papers.efficientformer import Meta3D, Meta4D


class FusedMeta4D(nn.Module):
    """`Meta4D` on channels-last maps: (b, dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, block: Meta4D):
        super().__init__()
        mlp = block.mlp
        self.layer_scale_1 = nn.Parameter(
            block.layer_scale_1.detach()[:, None, None].clone(), block.layer_scale_1.requires_grad
        )
        self.fc1 = fold_norm(mlp.fc1, mlp.norm1)
        self.fc2 = scaled(fold_norm(mlp.fc2, mlp.norm2), block.layer_scale_2)

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        x = torch.lerp(x, mean, self.layer_scale_1.to(x.dtype))  # autocast keeps it in float32
        return self.fc2(F.gelu(self.fc1(x))).add_(x)


class FusedAttention(nn.Module):
    """λ₁ times `Attention` on tokens: (b, r², dim) -> (b, r², dim)."""

    def __init__(self, layer: Attention, scale: Tensor):
        super().__init__()
        self.resolution = layer.resolution
        self.num_heads = layer.num_heads
        self.widths = layer.widths
        self.attention_biases = layer.attention_biases
        self.probe = layer.probe
        self.qkv = linear_like(layer.qkv.weight, layer.qkv.bias)
        self.proj = scaled(linear_like(layer.proj.weight, layer.proj.bias), scale)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        q, k, v = qkv.split(self.widths, dim=3)
        bias = self.attention_biases[:, offset_index(self.resolution, x.device)]
        attention = torch.add(bias, q @ k.mT, alpha=self.widths[0] ** -0.5).softmax(-1)
        self.probe(lambda: attention)
        return self.proj((attention @ v).transpose(1, 2).flatten(2))


class FusedMeta3D(nn.Module):
    """`Meta3D` with λ₁ and λ₂ in the weights: (b, r², dim) -> (b, r², dim)."""

    def __init__(self, block: Meta3D):
        super().__init__()
        self.norm1 = block.norm1
        self.token_mixer = FusedAttention(block.token_mixer, block.layer_scale_1)
        self.norm2 = block.norm2
        self.fc1 = linear_like(block.mlp.fc1.weight, block.mlp.fc1.bias)
        self.fc2 = scaled(
            linear_like(block.mlp.fc2.weight, block.mlp.fc2.bias), block.layer_scale_2
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(self.norm1(x)).add_(x)
        return self.fc2(F.gelu(self.fc1(self.norm2(x)))).add_(x)


FUSED = {Meta4D: FusedMeta4D, Meta3D: FusedMeta3D}
