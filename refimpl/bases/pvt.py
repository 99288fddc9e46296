"""PVTv2, a pyramid of transformer blocks with depthwise convolutions in their MLPs.

Wang et al., *PVT v2: Improved Baselines with Pyramid Vision Transformer*, arXiv 2106.13797. Four
stages: overlapping patches, blocks, a norm. Keys and values are read from a smaller map.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import Attention
from refimpl.deploy import deploy
from refimpl.layers import DropPath, Layout, attention, drop_path_rates

MakeAttention = Callable[[int, int, int, int], nn.Module]  # dim, num_heads, reduction, stage
MakeLinear = Callable[[int, int], nn.Module]


class OverlapPatchEmbed(nn.Module):
    """A strided convolution and a norm: (b, c, H, W) -> tokens (b, h w, dim), rows h, columns w."""

    def __init__(self, in_chans: int, dim: int, kernel_size: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, kernel_size // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(x)
        return self.norm(rearrange(x, "b c h w -> b (h w) c")), (x.shape[2], x.shape[3])


class SoftmaxAttention(Attention):
    """Ordinary multi-head attention, which needs no grid: (b, n, dim) -> (b, n, dim)."""

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return super().forward(x)


class ReducedAttention(nn.Module):
    """PVT's attention, keys and values from a smaller map: (b, n, dim) -> (b, n, dim).

    reduction: stride of the convolution that makes it smaller; linear: a mean over 7×7 instead.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int, linear: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.linear = linear
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduced = linear or reduction > 1
        if self.reduced:
            self.sr = nn.Conv2d(dim, dim, 1 if linear else reduction, 1 if linear else reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        q = rearrange(self.q(x), "b n (heads d) -> b heads n d", heads=self.num_heads)
        if self.reduced:
            x = rearrange(x, "b (h w) c -> b c h w", h=grid[0])
            x = self.sr(F.adaptive_avg_pool2d(x, 7) if self.linear else x)
            x = self.norm(rearrange(x, "b c h w -> b (h w) c"))
        x = F.gelu(x) if self.linear else x
        k, v = rearrange(
            self.kv(x), "b m (two heads d) -> two b heads m d", two=2, heads=self.num_heads
        )
        return self.proj(rearrange(attention(q, k, v), "b heads n d -> b n (heads d)"))


class ConvMlp(nn.Module):
    """fc1, a depthwise 3×3 convolution, GELU, fc2: (b, n, dim) -> (b, n, dim).

    relu: one more bend behind fc1 (PVTv2-li).
    """

    def __init__(self, dim: int, hidden_dim: int, linear: MakeLinear, relu: bool = False):
        super().__init__()
        self.relu = relu
        self.fc1 = linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.fc2 = linear(hidden_dim, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.fc1(x).relu() if self.relu else self.fc1(x)
        x = self.dwconv(rearrange(x, "b (h w) c -> b c h w", h=grid[0]))
        return self.fc2(F.gelu(rearrange(x, "b c h w -> b (h w) c")))


class Block(nn.Module):
    """(b, n, dim) -> (b, n, dim); attention and MLP also take the grid (h, w)."""

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x), grid))


class Stage(nn.Module):
    """(b, c, H, W) -> (b, dim, h, w)."""

    def __init__(self, patch_embed: nn.Module, blocks: list[nn.Module], dim: int):
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x, grid = self.patch_embed(x)
        for block in self.blocks:
            x = block(x, grid)
        return rearrange(self.norm(x), "b (h w) c -> b c h w", h=grid[0])


class PVTv2(nn.Module):
    """Images (b, in_chans, *img_size) -> logits (b, num_classes); 0 gives features.

    attention: makes a stage's attention from (dim, num_heads, reduction, stage); linear: the linear
    layers of MLPs; relu: in the MLPs. Raises `ValueError` for what does not fit.
    """

    def __init__(
        self,
        attention: MakeAttention,
        linear: MakeLinear = nn.Linear,
        relu: bool = False,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (32, 64, 160, 256),
        depths: tuple[int, ...] = (2, 2, 2, 2),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        reductions: tuple[int, ...] = (8, 4, 2, 1),
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.same_length(
            embed_dims=embed_dims,
            depths=depths,
            num_heads=num_heads,
            mlp_ratios=mlp_ratios,
            reductions=reductions,
        )
        checks.at_least(1, in_chans=in_chans, depths=depths, mlp_ratios=mlp_ratios)
        checks.integer(0, num_classes=num_classes)
        checks.fraction(drop_path_rate=drop_path_rate)
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.sides = checks.image_size(img_size, 4 * 2 ** (len(depths) - 1), "the last stage's map")
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList()
        chans = in_chans
        for i, dim in enumerate(embed_dims):
            checks.heads(dim, num_heads[i])
            embed = OverlapPatchEmbed(chans, dim, 3 if i else 7, 2 if i else 4)
            blocks = []
            stride = 4 * 2**i  # of this stage's tokens
            for _ in range(depths[i]):
                attn = attention(dim, num_heads[i], reductions[i], i)
                if isinstance(attn, SoftmaxAttention):
                    attn.probe.layout = Layout((self.sides[0] // stride, self.sides[1] // stride))
                mlp = ConvMlp(dim, mlp_ratios[i] * dim, linear, relu)
                blocks.append(Block(dim, attn, mlp, next(rates)))
            self.stages.append(Stage(embed, blocks, dim))
            chans = dim
        self.head = nn.Linear(chans, num_classes) if num_classes else nn.Identity()
        self.apply(initialise)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's map: (b, in_chans, *img_size) -> (b, dim, h, w)."""
        checks.image(images, self.in_chans, self.sides)
        x = images
        for stage in self.stages:
            x = stage(x)
        return x

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits from the mean over the map: (b, dim, h, w) -> (b, num_classes)."""
        return self.head(features.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> PVTv2:
        """A copy for inference, equal but for rounding: see `refimpl.deploy`."""
        return deploy(self)


def initialise(module: nn.Module) -> None:
    """In place: linear weights from N(0, 0.02²), cut at ±2, convolutions by fan-out; biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, std=math.sqrt(2 * module.groups / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
