"""EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention.

Liu, Peng, Zheng, Yang, Hu, Yuan, CVPR 2023, arXiv 2305.07027. Official code: microsoft/Cream, folder EfficientViT, commit
4a13c4091e78f9abd2160e7e01c02e48c1cf8fb9 (MIT). Not to be confused with mit-han-lab/efficientvit (ReLU linear attention, names B0–L3).

The idea
    1. What makes a small transformer slow is moving bytes, not multiplying: reshapes, softmax and normalisation dominate attention.
    2. So attend once per block, between two pairs of (depthwise convolution, feed-forward): the *sandwich layout*.
    3. Heads see much the same thing, so give each head its own slice of the channels (a h-th of the projection work) …
    4. … and add its output to the next head's slice (the *cascade*), so that later heads refine what earlier ones found.
    5. Batch norm everywhere: it folds into the neighbouring convolution, nothing of it remains at inference.

Cascaded group attention, for x split into h channel groups x₁ … x_h of width c = C/h on an r×r window of N = r² tokens:

    u₁ = x₁,  u_j = x_j + y_{j−1}                               the cascade
    [q_j | k_j | v_j] = BN(W_j u_j)                             widths d_k, d_k, c
    q_j ← BN(depthwise_{K_j}(q_j))                              on queries only, zero padding at the window's border
    A_j = softmax(q_jᵀ k_j / √d_k + b_j[|Δrow|·r + |Δcol|])     N × N, over keys
    y_j = A_j v_j
    out = BN(W ReLU([y₁ | … | y_h]))

Multiply-adds a window: N·C·(2·d_k + c) for the projections (h times less than with full input), N·d_k·ΣK_j², N²·h·(d_k + c), N·C².
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.layers import (
    ConvNorm,
    DropPath,
    Layout,
    Probe,
    SqueezeExcite,
)
from refimpl.weights import Rules


def offset_index(side: int) -> Tensor:
    """Which entry of a bias table two tokens of a side×side window share: (n, n) int64, |Δrow|·side + |Δcol|.

    The distance is absolute, so left and right (and above and below) share a bias.
    """
    row, col = (
        torch.arange(side * side).div(side, rounding_mode="floor"),
        torch.arange(side * side) % side,
    )
    return (row[:, None] - row).abs() * side + (col[:, None] - col).abs()


class CascadedGroupAttention(nn.Module):
    """Attention inside one window, one channel group a head, in cascade: (b, dim, side, side) -> the same shape.

    `kernels[j]` is the size of head j's depthwise convolution on its queries; further entries are left unused.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        side: int,
        kernels: tuple[int, ...],
        layout: Layout | None = None,
    ):
        super().__init__()
        checks.heads(dim, num_heads)
        if key_dim < 1 or side < 1:
            raise ValueError(f"key_dim={key_dim} and side={side} must be at least 1")
        if len(kernels) < num_heads or any(k < 1 or k % 2 == 0 for k in kernels):
            raise ValueError(
                f"kernels={tuple(kernels)} must be odd sizes, one for each of num_heads={num_heads} heads"
            )
        head_dim = dim // num_heads
        self.key_dim, self.num_heads = key_dim, num_heads
        self.qkvs = nn.ModuleList(
            ConvNorm(head_dim, 2 * key_dim + head_dim) for _ in range(num_heads)
        )
        self.dws = nn.ModuleList(
            ConvNorm(key_dim, key_dim, k, groups=key_dim) for k in kernels[:num_heads]
        )
        self.proj = ConvNorm(dim, dim, norm_weight=0.0)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, side * side))
        self.register_buffer("offsets", offset_index(side), persistent=False)
        self.probe = Probe(layout or Layout((side, side)))

    def forward(self, x: Tensor) -> Tensor:
        side, n = x.shape[-2:], len(self.offsets)
        biases = self.attention_biases.index_select(1, self.offsets.flatten()).view(
            -1, n, n
        )  # gathered each time: no cache to go stale
        outputs = []
        for x_j, qkv, dw, bias in zip(
            x.chunk(self.num_heads, 1), self.qkvs, self.dws, biases, strict=True
        ):
            u = x_j + outputs[-1] if outputs else x_j
            q, k, v = qkv(u).split((self.key_dim, self.key_dim, x_j.shape[1]), 1)
            q, k, v = (t.flatten(2).transpose(1, 2) for t in (dw(q), k, v))  # (b, n, d)
            attention = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=self.key_dim**-0.5).softmax(
                -1
            )  # A_j
            self.probe(lambda a=attention: a[:, None])
            outputs.append((attention @ v).unflatten(1, side).permute(0, 3, 1, 2))
        return self.proj(F.relu_(torch.cat(outputs, 1)))


class WindowAttention(nn.Module):
    """Cascaded group attention in windows of at most `window_size`: (b, dim, side, side) -> the same shape.

    A larger map is padded with zeros (which are attended to like any token) right and bottom, cut, attended, stitched and cropped.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        side: int,
        window_size: int,
        kernels: tuple[int, ...],
    ):
        super().__init__()
        if window_size < 1:
            raise ValueError(f"window_size={window_size} must be at least 1")
        self.side, self.window = side, min(window_size, side)
        layout = Layout((side, side), window=self.window if self.window < side else None)
        self.attn = CascadedGroupAttention(dim, key_dim, num_heads, self.window, kernels, layout)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.side, self.side):
            raise ValueError(
                f"the map is {x.shape[2]}×{x.shape[3]}, this attention was built for side={self.side}: its bias tables are of fixed size"
            )
        r, side = self.window, self.side
        if r == side:
            return self.attn(x)
        pad = -side % r
        rows = F.pad(rearrange(x, "b c h w -> b h w c"), (0, 0, 0, pad, 0, pad))
        windows = rearrange(rows, "b (i h) (j w) c -> (b i j) h w c", h=r, w=r)
        windows = self.attn(windows.permute(0, 3, 1, 2))
        i = (side + pad) // r
        return rearrange(windows, "(b i j) c h w -> b c (i h) (j w)", i=i, j=i)[:, :, :side, :side]


class FeedForward(nn.Module):
    """1×1 convolutions C → 2C → C with ReLU between: (b, dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.pw1 = ConvNorm(dim, hidden_dim)
        self.pw2 = ConvNorm(hidden_dim, dim, norm_weight=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(F.relu_(self.pw1(x)))


class Block(nn.Module):
    """The sandwich: one attention between two pairs of (depthwise convolution, feed-forward), each a residual branch."""

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        side: int,
        window_size: int,
        kernels: tuple[int, ...],
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.dw0 = ConvNorm(dim, dim, 3, groups=dim, norm_weight=0.0)
        self.ffn0 = FeedForward(dim, 2 * dim)
        self.mixer = WindowAttention(dim, key_dim, num_heads, side, window_size, kernels)
        self.dw1 = ConvNorm(dim, dim, 3, groups=dim, norm_weight=0.0)
        self.ffn1 = FeedForward(dim, 2 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        for branch in (self.dw0, self.ffn0, self.mixer, self.dw1, self.ffn1):
            x = self.drop_path(branch(x)).add_(x)  # in place: no fresh map for the sum
        return x


class PatchMerging(nn.Module):
    """Halve the map through a four times wider inverted bottleneck: (b, dim, s, s) -> (b, out_dim, ⌈s/2⌉, ⌈s/2⌉)."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        hidden_dim = 4 * dim
        self.conv1 = ConvNorm(dim, hidden_dim)
        self.conv2 = ConvNorm(hidden_dim, hidden_dim, 3, stride=2, groups=hidden_dim)
        self.se = SqueezeExcite(hidden_dim, hidden_dim // 4)
        self.conv3 = ConvNorm(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(x))
        x = F.relu_(self.conv2(x))
        return self.conv3(self.se(x))


class Downsample(nn.Module):
    """Patch merging between two (depthwise convolution, feed-forward) pairs, one at the old width, one at the new."""

    def __init__(self, dim: int, out_dim: int, drop_path: float = 0.0):
        super().__init__()
        self.dw0 = ConvNorm(dim, dim, 3, groups=dim)  # unlike in a block, this γ starts at 1
        self.ffn0 = FeedForward(dim, 2 * dim)
        self.merge = PatchMerging(dim, out_dim)
        self.dw1 = ConvNorm(out_dim, out_dim, 3, groups=out_dim)
        self.ffn1 = FeedForward(out_dim, 2 * out_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        for branch in (self.dw0, self.ffn0):
            x = self.drop_path(branch(x)).add_(x)
        x = self.merge(x)
        for branch in (self.dw1, self.ffn1):
            x = self.drop_path(branch(x)).add_(x)
        return x


class Stage(nn.Module):
    """A downsampling (not in the first stage), then `depth` sandwich blocks."""

    def __init__(self, downsample: nn.Module, blocks: list[Block]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class NormLinear(nn.Module):
    """Batch normalisation, then a linear layer: (b, dim) -> (b, num_classes)."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class EfficientViT(nn.Module):
    """Images (b, in_chans, img_size, img_size) -> logits (b, num_classes).

    One entry a stage in `embed_dim`, `depth`, `num_heads` and `window_size`; one a head in `kernels`. `img_size` is fixed once built
    (bias tables) and a multiple of 16, the stride of the stem. `distillation` adds a second classifier: in training the pair
    (logits, distilled logits) is returned, in evaluation their mean.
    """

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: tuple[int, ...] = (64, 128, 192),
        depth: tuple[int, ...] = (1, 2, 3),
        num_heads: tuple[int, ...] = (4, 4, 4),
        window_size: tuple[int, ...] = (7, 7, 7),
        kernels: tuple[int, ...] = (5, 5, 5, 5),
        key_dim: int = 16,
        distillation: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if not len(embed_dim) == len(depth) == len(num_heads) == len(window_size) >= 1:
            raise ValueError(
                f"{embed_dim=}, {depth=}, {num_heads=} and {window_size=} must be equally long: one entry for each stage"
            )
        if img_size < 16 or img_size % 16:
            raise ValueError(
                f"img_size={img_size} must be a positive multiple of 16, the stride of the stem"
            )
        if embed_dim[0] % 8:
            raise ValueError(
                f"embed_dim[0]={embed_dim[0]} must be a multiple of 8: the stem starts at an eighth of it"
            )
        if min(in_chans, num_classes, *depth) < 1:
            raise ValueError(
                f"in_chans={in_chans}, num_classes={num_classes} and every entry of {depth=} must be at least 1"
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path} must be in [0, 1)")
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes

        widths = [in_chans, *(embed_dim[0] // n for n in (8, 4, 2, 1))]
        stem = [
            layer
            for i in range(4)
            for layer in (ConvNorm(widths[i], widths[i + 1], 3, stride=2), nn.ReLU(inplace=True))
        ]
        self.patch_embed = nn.Sequential(*stem[:-1])
        side, stages = img_size // 16, []
        for i, dim in enumerate(embed_dim):
            downsample = Downsample(embed_dim[i - 1], dim, drop_path) if i else nn.Identity()
            side = (side + 1) // 2 if i else side
            blocks = [
                Block(dim, key_dim, num_heads[i], side, window_size[i], kernels, drop_path)
                for _ in range(depth[i])
            ]
            stages.append(Stage(downsample, blocks))
        self.stages = nn.Sequential(*stages)
        self.head = NormLinear(dim, num_classes)
        self.head_dist = NormLinear(dim, num_classes) if distillation else None

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map: (b, embed_dim[-1], side, side)."""
        checks.image(images, self.in_chans, (self.img_size, self.img_size))
        return self.stages(self.patch_embed(images))

    def forward_head(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = x.mean((2, 3))
        if self.head_dist is None:
            return self.head(x)
        pair = self.head(x), self.head_dist(x)
        return pair if self.training else (pair[0] + pair[1]) / 2

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> EfficientViT:
        return deploy(self)

    name_maps: dict[str, Rules] = {}


SHARED: Rules = [
    (r"(attention_bias_idxs|(^|\.)ab)$", None),  # computed buffers
    (r"\.m\.", "."),  # residual wrappers
    (r"(^|\.)c\.", r"\1conv."),
    (r"(^|\.)bn\.", r"\1norm."),
    (r"(^|\.)l\.", r"\1linear."),
    (r"(^|\.)proj\.1\.", r"\1proj."),
]
EfficientViT.name_maps = {
    "official": [
        *SHARED,
        (r"^blocks1\.(\d+)", r"stages.0.blocks.\1"),
        (r"^blocks([2-9])\.0\.0", lambda m: f"stages.{int(m[1]) - 1}.downsample.dw0"),
        (r"^blocks([2-9])\.0\.1", lambda m: f"stages.{int(m[1]) - 1}.downsample.ffn0"),
        (r"^blocks([2-9])\.1", lambda m: f"stages.{int(m[1]) - 1}.downsample.merge"),
        (r"^blocks([2-9])\.2\.0", lambda m: f"stages.{int(m[1]) - 1}.downsample.dw1"),
        (r"^blocks([2-9])\.2\.1", lambda m: f"stages.{int(m[1]) - 1}.downsample.ffn1"),
        (r"^blocks([2-9])\.(\d+)", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 3}"),
    ],
    "timm": [
        *SHARED,
        (r"^patch_embed\.conv(\d)", lambda m: f"patch_embed.{2 * int(m[1]) - 2}"),
        (r"downsample\.res1\.0", "downsample.dw0"),
        (r"downsample\.res1\.1", "downsample.ffn0"),
        (r"downsample\.patchmerge", "downsample.merge"),
        (r"downsample\.res2\.0", "downsample.dw1"),
        (r"downsample\.res2\.1", "downsample.ffn1"),
    ],
}

# Width of each stage, depth, heads, kernel of each head's query convolution: table 1 of the paper.
VARIANTS: dict[str, dict] = {
    "m0": dict(
        embed_dim=(64, 128, 192), depth=(1, 2, 3), num_heads=(4, 4, 4), kernels=(5, 5, 5, 5)
    ),
    "m1": dict(
        embed_dim=(128, 144, 192), depth=(1, 2, 3), num_heads=(2, 3, 3), kernels=(7, 5, 3, 3)
    ),
    "m2": dict(
        embed_dim=(128, 192, 224), depth=(1, 2, 3), num_heads=(4, 3, 2), kernels=(7, 5, 3, 3)
    ),
    "m3": dict(
        embed_dim=(128, 240, 320), depth=(1, 2, 3), num_heads=(4, 3, 4), kernels=(5, 5, 5, 5)
    ),
    "m4": dict(
        embed_dim=(128, 256, 384), depth=(1, 2, 3), num_heads=(4, 4, 4), kernels=(7, 5, 3, 3)
    ),
    "m5": dict(
        embed_dim=(192, 288, 384), depth=(1, 3, 4), num_heads=(3, 3, 4), kernels=(7, 5, 3, 3)
    ),
}
MODEL = EfficientViT
