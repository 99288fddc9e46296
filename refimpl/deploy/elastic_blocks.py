"""ElasticViT's blocks for inference: norms in the products behind them, one bias table per layer.

What the norm over tokens and channels multiplies and adds per channel goes into the product that
follows. Queries are scaled in their weights; values are a product of their own, so that their map
lies channels last without a copy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from refimpl.bases.elastic_blocks import (
    Attention,
    FeedForward,
    Gate,
    Head,
    MobileBlock,
)
from refimpl.bases.swin import offset_index
from refimpl.deploy import linear_like
from refimpl.deploy.norms import behind_norm


def normalised(x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over tokens and channels: (b, n, c) -> the same."""
    return F.layer_norm(x, x.shape[1:])


class FusedAttention(nn.Module):
    """`Attention` on channels-last maps of values: (b, side², dim) -> the same."""

    def __init__(self, layer: Attention):
        super().__init__()
        self.side = layer.side
        self.num_heads = layer.num_heads
        self.probe = layer.probe
        rows = layer.qkv.weight.detach().unflatten(0, (self.num_heads, -1))  # (heads, 2d + e, c)
        queries, keys, values = rows.split(layer.widths, dim=1)
        both = torch.cat([layer.widths[0] ** -0.5 * queries, keys], dim=1).flatten(0, 1)
        wanted = layer.qkv.weight.requires_grad
        self.qk = behind_norm(layer.norm, linear_like(both, None)).requires_grad_(wanted)
        values = linear_like(values.flatten(0, 1), None)
        self.v = behind_norm(layer.norm, values).requires_grad_(wanted)
        self.value_conv = layer.value_conv
        index = offset_index((self.side, self.side), layer.bias_table.device)
        table = layer.bias_table
        self.bias = nn.Parameter(table.detach()[index].permute(2, 0, 1).contiguous())
        self.bias.requires_grad_(table.requires_grad)
        self.proj = layer.proj

    def forward(self, x: Tensor) -> Tensor:
        y = normalised(x)
        q, k = self.qk(y).unflatten(2, (self.num_heads, -1)).transpose(1, 2).chunk(2, dim=3)
        v = self.v(y).unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        v = self.value_conv(v).permute(0, 2, 3, 1).flatten(1, 2)  # (b, n, heads·e)
        v = v.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        attention = (q @ k.mT).add_(self.bias).softmax(dim=-1)
        self.probe(lambda: attention)
        y = (attention @ v).transpose(1, 2).flatten(2)
        return self.proj(F.hardswish(y)).add_(x)


class FusedFeedForward(nn.Module):
    """`FeedForward` with its norm in the first product: (b, n, dim) -> the same."""

    def __init__(self, layer: FeedForward):
        super().__init__()
        self.fc1 = behind_norm(layer.norm, layer.fc1)
        self.fc2 = layer.fc2

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.hardswish(self.fc1(normalised(x)), inplace=True)).add_(x)


class FusedMobileBlock(nn.Module):
    """`MobileBlock` with norms folded, activations and sum in place."""

    def __init__(self, block: MobileBlock):
        super().__init__()
        self.stride = block.stride
        self.expand = block.expand.fuse() if block.expand is not None else None
        self.depthwise = block.depthwise.fuse()
        self.gate = block.gate
        self.project = block.project.fuse()
        self.shortcut = block.shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.hardswish(self.expand(x), inplace=True)
        y = self.gate(F.hardswish(self.depthwise(y), inplace=True))
        if self.stride == 2:
            x = F.avg_pool2d(x, 2, padding=x.shape[2] % 2)
        return self.project(y).add_(self.shortcut(x))


class FusedGate(nn.Module):
    """`Gate` on the means alone: two products of few numbers, then one product with the map."""

    def __init__(self, gate: Gate):
        super().__init__()
        self.fc1 = linear_like(gate.fc1.weight.flatten(1), gate.fc1.bias)
        self.fc2 = linear_like(gate.fc2.weight.flatten(1), gate.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        said = F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))  # (b, c)
        return x * said[:, :, None, None]


class FusedHead(nn.Module):
    """`Head` with its norm in the product before it: (b, n, dim) -> (b, 1984)."""

    def __init__(self, head: Head):
        super().__init__()
        wanted = head.fc1.weight.requires_grad
        self.fc1 = fuse_linear_bn_eval(head.fc1, head.norm).requires_grad_(wanted)
        self.fc2 = head.fc2

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.fc1(x), inplace=True).mean(1)
        return F.hardswish(self.fc2(y), inplace=True)


FUSED = {
    Attention: FusedAttention,
    FeedForward: FusedFeedForward,
    Gate: FusedGate,
    Head: FusedHead,
    MobileBlock: FusedMobileBlock,
}
