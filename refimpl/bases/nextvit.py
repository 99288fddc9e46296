"""Next-ViT: convolution blocks, and at the end of each run one block that mixes in attention.

Li and others, *Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic
Industrial Scenarios*, 2022, arXiv 2207.05501. Code: bytedance/Next-ViT; the reference outputs of
its blocks are from timm 1.0.31 (same tensor names, same computation).

    conv block          e = embed(x);  y = e + P(ReLU(BN(G(e))));  out = y + MLP(BN(y))
    transformer block   e = embed(x);  l = e + MHSA(BN(e));
                        p = embed(l);  h = p + P(ReLU(BN(G(p))));  y = [l | h];  as above

G is a grouped 3×3 convolution: each output channel reads the `head_dim` channels of its own group,
so its cost falls by c / head_dim, and the 1×1 convolution P behind it mixes the groups. Keys and
values are made from pooled tokens, as maps of early stages are large. Every norm is a batch norm:
constant after training, it folds into the linear map beside it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.deploy.norms import fold_norms_before
from refimpl.layers import ConvNorm, Probe, attention, attention_map
from refimpl.weights import Rules


class Embed(nn.Module):
    """What a block begins with: (b, in_chans, h, w) -> (b, out_chans, ⌈h/stride⌉, ⌈w/stride⌉).

    Stride 2: mean of 2×2, then 1×1 convolution and norm. Stride 1: these two alone, and where the
    width stays nothing at all.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1):
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride={stride} must be 1 or 2")
        self.pool = nn.Identity()
        self.conv = nn.Identity()
        self.norm = nn.Identity()
        if stride == 2:
            self.pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        if stride == 2 or in_chans != out_chans:
            self.conv = nn.Conv2d(in_chans, out_chans, 1, bias=False)
            self.norm = nn.BatchNorm2d(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.pool(x)))

    def fuse(self) -> nn.Module:
        if isinstance(self.conv, nn.Identity):
            return nn.Identity()
        return nn.Sequential(self.pool, self.conv, self.norm)


class ConvAttention(nn.Module):
    """Next-ViT's "multi-head convolutional attention", which holds no softmax.

    P(ReLU(BN(G(x)))), as above: (b, dim, h, w) -> (b, dim, h, w); head_dim: the width of a group.
    """

    def __init__(self, dim: int, head_dim: int):
        super().__init__()
        checks.multiple(head_dim, "the width of a group", dim=dim)
        groups = dim // head_dim
        self.group_conv3x3 = nn.Conv2d(dim, dim, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.projection = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(F.relu(self.norm(self.group_conv3x3(x))))

    def fuse(self) -> nn.Module:
        return nn.Sequential(self.group_conv3x3, self.norm, nn.ReLU(), self.projection)


class ConvMlp(nn.Module):
    """1×1 convolutions with bias and a ReLU between: (b, dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class PooledAttention(nn.Module):
    """Attention to averages of `reduction`² tokens that follow each other: (b, n, dim) -> the same.

    The tokens of a map follow each other along its rows, so what is averaged is a piece of a row
    (or of several), and no square of reduction × reduction. Tokens beyond the last full run are
    queries only.
    """

    def __init__(self, dim: int, head_dim: int, reduction: int = 1):
        super().__init__()
        checks.multiple(head_dim, "the width per head", dim=dim)
        checks.integer(1, reduction=reduction)
        self.num_heads = dim // head_dim
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.run = reduction**2
        self.norm = nn.BatchNorm1d(dim) if reduction > 1 else nn.Identity()
        self.probe = Probe()

    def forward(self, tokens: Tensor) -> Tensor:
        pooled = tokens
        if self.run > 1:
            pooled = self.norm(F.avg_pool1d(tokens.transpose(1, 2), self.run)).transpose(1, 2)
        q = rearrange(self.q(tokens), "b n (heads d) -> b heads n d", heads=self.num_heads)
        k = rearrange(self.k(pooled), "b m (heads d) -> b heads m d", heads=self.num_heads)
        v = rearrange(self.v(pooled), "b m (heads d) -> b heads m d", heads=self.num_heads)
        self.probe(lambda: attention_map(q, k))
        return self.proj(rearrange(attention(q, k, v), "b heads n d -> b n (heads d)"))

    def take_norm_before(self, norm: nn.BatchNorm2d) -> None:
        """In place: a norm of the tokens goes into the products, and so does the one of the means.

        Averaging commutes with norms, so keys and values take both.
        """
        self.q = fold_norms_before([norm], self.q)
        self.k = fold_norms_before([norm, self.norm], self.k)
        self.v = fold_norms_before([norm, self.norm], self.v)
        self.norm = nn.Identity()


class ConvBlock(nn.Module):
    """(b, in_chans, h, w) -> (b, dim, ⌈h/stride⌉, ⌈w/stride⌉), convolutions alone."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int = 1,
        head_dim: int = 32,
        mlp_ratio: float = 3.0,
    ):
        super().__init__()
        self.patch_embed = Embed(in_chans, dim, stride)
        self.mhca = ConvAttention(dim, head_dim)
        self.norm = nn.BatchNorm2d(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = x + self.mhca(x)
        return x + self.mlp(self.norm(x))

    def fuse(self) -> ConvBlock:
        fused = copy.deepcopy(self)
        fused.mlp.fc1 = fold_norms_before([self.norm], self.mlp.fc1)
        fused.norm = nn.Identity()
        return fused


class TransformerBlock(nn.Module):
    """(b, in_chans, h, w) -> (b, dim, ⌈h/stride⌉, ⌈w/stride⌉), attention, then convolution.

    mix_ratio: the share of the channels that attention makes, rounded to a multiple of 32. The
    convolution reads what attention gave, and makes the others: the bands are *serial*.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int = 1,
        reduction: int = 1,
        head_dim: int = 32,
        mix_ratio: float = 0.75,
        mlp_ratio: float = 2.0,
    ):
        super().__init__()
        low = max(32, (int(dim * mix_ratio) + 16) // 32 * 32)
        if low >= dim:
            raise ValueError(
                f"dim={dim} must be more than {low}, the channels that attention makes"
            )
        self.patch_embed = Embed(in_chans, low, stride)
        self.norm1 = nn.BatchNorm2d(low)
        self.e_mhsa = PooledAttention(low, head_dim, reduction)
        self.projection = Embed(low, dim - low)
        self.mhca = ConvAttention(dim - low, head_dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        tokens = rearrange(self.norm1(x), "b c h w -> b (h w) c")
        attended = rearrange(self.e_mhsa(tokens), "b (h w) c -> b c h w", h=x.shape[2])
        low = x + attended
        high = self.projection(low)
        high = high + self.mhca(high)
        x = torch.cat([low, high], dim=1)
        return x + self.mlp(self.norm2(x))

    def fuse(self) -> TransformerBlock:
        fused = copy.deepcopy(self)
        fused.e_mhsa.take_norm_before(self.norm1)
        fused.norm1 = nn.Identity()
        fused.mlp.fc1 = fold_norms_before([self.norm2], self.mlp.fc1)
        fused.norm2 = nn.Identity()
        return fused


def stem(in_chans: int, widths: Sequence[int]) -> nn.Sequential:
    """3×3 convolutions of strides 2, 1, 1, 2, each with norm and ReLU.

    (b, in_chans, h, w) -> (b, widths[3], ⌈h/4⌉, ⌈w/4⌉)
    """
    if len(widths) != 4:
        raise ValueError(f"stem_dims={tuple(widths)} must be four widths")
    if len(widths) != 4:
        raise ValueError(f"stem_dims={tuple(widths)} must be four widths")
    layers = []
    for out_chans, stride in zip(widths, (2, 1, 1, 2), strict=True):
        layers += [ConvNorm(in_chans, out_chans, 3, stride), nn.ReLU()]
        in_chans = out_chans
    return nn.Sequential(*layers)


def stage_plan(depth: int, first: bool) -> list[bool]:
    """Which blocks of a stage attend: the last, and every fifth. In the first stage none."""
    return [not first and (i % 5 == 0 or i == depth) for i in range(1, depth + 1)]


class NormPoolLinear(nn.Module):
    """Batch norm, mean over positions, linear layer: (b, dim, h, w) -> (b, num_classes)."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x).mean((2, 3)))

    def fuse(self) -> NormPoolLinear:
        fused = copy.deepcopy(self)
        fused.fc = fold_norms_before([self.norm], self.fc)
        fused.norm = nn.Identity()
        return fused


def start_small(model: nn.Module) -> None:
    """In place: truncated normal weights of deviation 0.02 and no bias, as Next-ViT starts."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class NextViT(nn.Module):
    """Images (b, in_chans, h, w) -> logits (b, num_classes), of any size.

    depths: blocks per stage; embed_dims: their widths, and mixed_dims those of blocks that attend.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: tuple[int, ...] = (3, 4, 10, 3),
        embed_dims: tuple[int, ...] = (96, 192, 384, 768),
        mixed_dims: tuple[int, ...] = (96, 256, 512, 1024),
    ):
        super().__init__()
        checks.same_length(depths=depths, embed_dims=embed_dims, mixed_dims=mixed_dims)
        checks.at_least(1, in_chans=in_chans, num_classes=num_classes, depths=depths)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.stem = stem(in_chans, (64, 32, 64, 64))
        self.stages = nn.Sequential()
        dim = 64
        for i, depth in enumerate(depths):
            blocks = nn.Sequential()
            for j, attends in enumerate(stage_plan(depth, first=i == 0)):
                stride = 2 if i > 0 and j == 0 else 1
                if attends:
                    block = TransformerBlock(dim, mixed_dims[i], stride, 8 // 2**i)
                    dim = mixed_dims[i]
                else:
                    block = ConvBlock(dim, embed_dims[i], stride)
                    dim = embed_dims[i]
                blocks.append(block)
            self.stages.append(nn.Sequential(OrderedDict(blocks=blocks)))
        self.head = NormPoolLinear(dim, num_classes)
        start_small(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map: (b, mixed_dims[-1], ⌈h/32⌉, ⌈w/32⌉)."""
        checks.image(images, self.in_chans)
        return self.stages(self.stem(images))

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> NextViT:
        """A copy for inference, equal but for rounding (see `refimpl.deploy`)."""
        return deploy(self)


NAMES: dict[str, Rules] = {
    "timm": [
        (r"^stem\.(\d)\.", lambda m: f"stem.{2 * int(m[1])}."),
        (r"^norm\.", "head.norm."),
    ],
}

# Depths of the paper's table; the widths are the same.
VARIANTS: dict[str, dict] = {
    "small": {"depths": (3, 4, 10, 3)},
    "base": {"depths": (3, 4, 20, 3)},
    "large": {"depths": (3, 4, 30, 3)},
}
MODEL = NextViT
