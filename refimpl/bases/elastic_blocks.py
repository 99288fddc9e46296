"""The blocks of ElasticViT: inverted bottlenecks, attention with wide values, and their head.

Tang and others, ICCV 2023, arXiv 2303.09730; microsoft/Moonlit, ElasticViT @ 348a402, models/cnn.py
and models/transformer.py, in the form that one network of the supernet has.

Hardswish everywhere; LeViT's attention (`bases.levit`) without norms between, with a 3×3 depthwise
convolution over the values and a bias by signed offset.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.bases.elastic_space import (
    CONV_STAGES,
    EXPAND,
    FEATURES,
    GATED,
    HEAD_DIM,
    STRIDES,
    Genotype,
)
from refimpl.bases.supernet import LatencyTable
from refimpl.bases.swin import offset_index
from refimpl.deploy import deploy
from refimpl.layers import ConvNorm, Layout, Probe, attention, attention_map


class Gate(nn.Module):
    """Squeeze-and-excite: channels times a hard sigmoid of what their means say, (b, c, h, w)."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, dim // 4, 1)
        self.fc2 = nn.Conv2d(dim // 4, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)  # (b, c, 1, 1)
        said = self.fc2(F.relu(self.fc1(squeezed)))
        return x * F.relu6(said + 3) / 6  # `F.hardsigmoid` has no second derivative


class MobileBlock(nn.Module):
    """Inverted bottleneck: (b, in_chans, h, w) -> (b, out_chans, ⌈h/stride⌉, ⌈w/stride⌉).

    Without an expansion at ratio 1. The shortcut pools at stride 2, and has a product where the
    width changes; spare: it always has one, as in the supernet.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int,
        expand_ratio: int,
        stride: int = 1,
        gated: bool = False,
        spare: bool = False,
    ):
        super().__init__()
        inner = in_chans * expand_ratio
        self.stride = stride
        self.expand = ConvNorm(in_chans, inner) if expand_ratio > 1 else None
        self.depthwise = ConvNorm(inner, inner, kernel_size, stride, groups=inner)
        self.gate = Gate(inner) if gated else nn.Identity()
        self.project = ConvNorm(inner, out_chans, norm_weight=0.0 if stride == 1 else 1.0)
        changed = in_chans != out_chans or spare
        self.shortcut = nn.Conv2d(in_chans, out_chans, 1, bias=False) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.hardswish(self.expand(x))
        y = self.gate(F.hardswish(self.depthwise(y)))
        if self.stride == 2:
            x = F.avg_pool2d(x, 2, padding=int(x.shape[2] % 2))  # a size is a tensor when traced
        return self.shortcut(x) + self.project(y)


class TokenNorm(nn.Module):
    """Mean 0 and variance 1 over tokens *and* channels, then γ and β per channel: (b, n, dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:]) * self.weight + self.bias


class Attention(nn.Module):
    """x + attention with wide values: tokens (b, side², dim) -> the same.

    value_ratio: r, channels of values per channel of keys. A bias per head and relative position.
    """

    def __init__(self, dim: int, side: int, value_ratio: int):
        super().__init__()
        self.side = side
        self.num_heads = heads = dim // HEAD_DIM
        self.widths = [HEAD_DIM, HEAD_DIM, HEAD_DIM * value_ratio]  # queries, keys, values
        inner = heads * self.widths[2]
        self.norm = TokenNorm(dim)
        self.qkv = nn.Linear(dim, heads * sum(self.widths), bias=False)
        self.value_conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)  # D
        self.bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        self.proj = nn.Linear(inner, dim)
        self.probe = Probe(Layout((side, side)))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).unflatten(2, (self.num_heads, -1))  # (b, n, heads, 2d + e)
        q, k, v = qkv.split(self.widths, dim=3)
        v = v.flatten(2).mT.unflatten(2, (self.side, self.side))  # (b, heads·e, side, side)
        v = self.value_conv(v).flatten(2).unflatten(1, (self.num_heads, -1)).mT
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # (b, heads, n, d)
        index = offset_index((self.side, self.side), x.device)
        bias = self.bias_table[index].permute(2, 0, 1)  # (heads, n, n)
        self.probe(lambda: attention_map(q, k, bias))
        y = attention(q, k, v, bias).transpose(1, 2).flatten(2)
        return x + self.proj(F.hardswish(y))


class FeedForward(nn.Module):
    """x + MLP(norm(x)): tokens (b, n, dim) -> the same."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.norm = TokenNorm(dim)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.hardswish(self.fc1(self.norm(x))))


class TransformerStage(nn.Module):
    """A reduction, then attention and MLP in turns: (b, in_chans, h, w) -> (b, dim, side, side)."""

    def __init__(
        self,
        reduction: MobileBlock,
        dim: int,
        side: int,
        depth: int,
        mlp_ratio: int,
        value_ratio: int,
    ):
        super().__init__()
        self.side = side
        self.reduction = reduction
        self.blocks = nn.Sequential()
        for _ in range(depth):
            self.blocks.append(Attention(dim, side, value_ratio))
            self.blocks.append(FeedForward(dim, mlp_ratio * dim))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.blocks(self.reduction(x).flatten(2).mT)
        return tokens.mT.unflatten(2, (self.side, self.side))


class Head(nn.Module):
    """Tokens (b, n, dim) -> features (b, 1984): widened per token, then the mean."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, EXPAND * dim)
        self.norm = nn.BatchNorm1d(EXPAND * dim)
        self.fc2 = nn.Linear(EXPAND * dim, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.fc1(x).flatten(0, 1)).view(*x.shape[:2], self.norm.num_features)
        return F.hardswish(self.fc2(F.hardswish(y).mean(1)))


class NetworkLatency(LatencyTable):
    """Genotype -> what one image takes here: the sum over its blocks, each timed once, fused.

    clock, entries: see `LatencyTable`; in_chans, num_classes: of the networks.
    """

    def __init__(self, in_chans: int = 3, num_classes: int = 1000, **how):
        super().__init__(**how)
        self.in_chans = in_chans
        self.num_classes = num_classes

    def __call__(self, genotype: Genotype) -> float:
        return self.total(self.parts(genotype))

    def parts(self, genotype: Genotype) -> list[tuple]:
        """Kind, side of the input, and the arguments of each block, in their order."""
        g = genotype
        dim = g.embed_dims[0]
        side = -(-g.img_size // 2)
        found = [("stem", g.img_size, self.in_chans, dim)]
        found += [("mobile", side, dim, dim, g.kernel_sizes[0], 1)] * g.depths[0]
        for i, (width, depth) in enumerate(zip(g.embed_dims[1:], g.depths[1:], strict=True)):
            after = -(-side // STRIDES[i])
            if i < CONV_STAGES:
                form = (g.kernel_sizes[i + 1], g.expand_ratios[i])
                found.append(("mobile", side, dim, width, *form, STRIDES[i], GATED[i]))
                block = ("mobile", after, width, width, *form, 1, GATED[i])
                found += [block] * (depth - 1)
            else:
                found.append(("mobile", side, dim, width, 3, EXPAND, STRIDES[i], True))
                hidden = width * g.mlp_ratios[i - CONV_STAGES]
                pair = [("attention", after, width, after, g.value_ratios[i - CONV_STAGES])]
                found += [*pair, ("mlp", after, width, hidden)] * depth
            side, dim = after, width
        return [*found, ("head", side, dim)]

    def build(self, key: tuple) -> tuple[nn.Module, Tensor]:
        kind, side, dim, *rest = key
        if kind in ("stem", "mobile"):
            made = ConvNorm(dim, *rest, 3, stride=2) if kind == "stem" else MobileBlock(dim, *rest)
            x = torch.randn(1, dim, side, side).contiguous(memory_format=torch.channels_last)
            return deploy(nn.Sequential(made)), x
        kinds = {"attention": Attention, "mlp": FeedForward, "head": Head}
        made = nn.Sequential(kinds[kind](dim, *rest))
        if kind == "head":
            made.append(nn.Linear(FEATURES, self.num_classes))
        return deploy(made), torch.randn(1, side**2, dim)
