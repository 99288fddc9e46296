"""EfficientViT for inference: a map is a table of tokens (channels last), so heads need no copies.

Equal to `refimpl.papers.efficientvit` but for rounding. What is fast here and not there: in-place
sums and ReLUs, residuals inside depthwise kernels, scale and bias inside the product q kᵀ. The walk
of `deploy` folds the norms of what these classes take over.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl.deploy import linear_like, with_identity
from refimpl.deploy.norms import fold_norms_before
from refimpl.layers import ConvFeedForward
from refimpl.papers.efficientvit import (
    Block,
    CascadedGroupAttention,
    Downsample,
    NormLinear,
    PatchMerging,
    WindowAttention,
    offset_index,
)


class FusedHeads(nn.Module):
    """`CascadedGroupAttention` on tokens: (b, N, dim) -> (b, N, dim)."""

    def __init__(self, layer: CascadedGroupAttention):
        super().__init__()
        self.resolution = layer.resolution
        self.key_dim = layer.key_dim
        self.attention_biases = layer.attention_biases
        self.probe = layer.probe
        self.qkv_projs = nn.ModuleList()
        self.query_convs = nn.ModuleList()
        for qkv_proj, query_conv in zip(layer.qkv_projs, layer.query_convs, strict=True):
            conv = qkv_proj.fuse()
            self.qkv_projs.append(linear_like(conv.weight.flatten(1), conv.bias))
            self.query_convs.append(query_conv)
        conv = layer.proj.fuse()
        self.proj = linear_like(conv.weight.flatten(1), conv.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        r = self.resolution
        index = offset_index(r, tokens.device)
        bias = self.attention_biases.index_select(1, index.flatten()).unflatten(1, index.shape)
        outputs = []
        maps = []
        for j, x_j in enumerate(tokens.chunk(len(bias), dim=2)):  # (b, N, c)
            u = x_j + outputs[-1] if outputs else x_j
            sizes = [self.key_dim, self.key_dim, x_j.shape[2]]
            q, k, v = self.qkv_projs[j](u).split(sizes, dim=2)
            q = q.unflatten(1, (r, r)).permute(0, 3, 1, 2)  # (b, d_k, r, r), channels last
            q = self.query_convs[j](q).permute(0, 2, 3, 1).flatten(1, 2)
            logits = torch.baddbmm(bias[j], q, k.transpose(1, 2), alpha=self.key_dim**-0.5)
            attention = logits.softmax(dim=-1)
            outputs.append(attention @ v)
            maps.append(attention)
        self.probe(lambda: torch.stack(maps, dim=1))
        return self.proj(F.relu_(torch.cat(outputs, dim=2)))


class FusedWindowAttention(nn.Module):
    """`WindowAttention` on channels-last maps: (b, dim, s, s) -> (b, dim, s, s)."""

    def __init__(self, layer: WindowAttention):
        super().__init__()
        self.resolution = layer.resolution
        self.window_size = layer.window_size
        self.attn = FusedHeads(layer.attn)

    def forward(self, x: Tensor) -> Tensor:
        side = self.resolution
        r = self.window_size
        padding = -side % r
        count = (side + padding) // r
        x = x.permute(0, 2, 3, 1)
        if r == side:
            return self.attn(x.flatten(1, 2)).unflatten(1, (r, r)).permute(0, 3, 1, 2)
        x = F.pad(x, (0, 0, 0, padding, 0, padding))
        windows = rearrange(x, "b (i h) (j w) c -> (b i j) (h w) c", h=r, w=r)
        windows = self.attn(windows)
        x = rearrange(windows, "(b i j) (h w) c -> b c (i h) (j w)", i=count, j=count, h=r)
        return x[:, :, :side, :side]


class FusedFeedForward(nn.Module):
    """x + `ConvFeedForward`(x) on channels-last maps: (b, dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, layer: ConvFeedForward):
        super().__init__()
        self.pw1 = layer.pw1
        self.pw2 = layer.pw2

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(F.relu_(self.pw1(x))).add_(x)


class FusedBlock(nn.Module):
    """`Block` whose depthwise residuals live in the kernels."""

    def __init__(self, block: Block):
        super().__init__()
        self.dw0 = with_identity(block.dw0.fuse())
        self.ffn0 = FusedFeedForward(block.ffn0)
        self.mixer = FusedWindowAttention(block.mixer)
        self.dw1 = with_identity(block.dw1.fuse())
        self.ffn1 = FusedFeedForward(block.ffn1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ffn0(self.dw0(x))
        x = self.mixer(x).add_(x)
        return self.ffn1(self.dw1(x))


class FusedPatchMerging(nn.Module):
    """`PatchMerging` with norms folded and ReLU in place."""

    def __init__(self, layer: PatchMerging):
        super().__init__()
        self.conv1 = layer.conv1
        self.conv2 = layer.conv2
        self.se = layer.se
        self.conv3 = layer.conv3

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(x))
        x = F.relu_(self.conv2(x))
        return self.conv3(self.se(x))


class FusedDownsample(nn.Module):
    """`Downsample` whose depthwise residuals live in the kernels."""

    def __init__(self, layer: Downsample):
        super().__init__()
        self.dw0 = with_identity(layer.dw0.fuse())
        self.ffn0 = FusedFeedForward(layer.ffn0)
        self.merge = FusedPatchMerging(layer.merge)
        self.dw1 = with_identity(layer.dw1.fuse())
        self.ffn1 = FusedFeedForward(layer.ffn1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge(self.ffn0(self.dw0(x)))
        return self.ffn1(self.dw1(x))


def fold_norm_first(head: NormLinear) -> nn.Linear:
    """The linear layer that computes `linear(norm(x))`."""
    return fold_norms_before([head.norm], head.linear)


FUSED = {Block: FusedBlock, Downsample: FusedDownsample, NormLinear: fold_norm_first}
