"""EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention.

Liu, Peng, Zheng, Yang, Hu, Yuan, CVPR 2023, arXiv 2305.07027. Official code: microsoft/Cream,
folder EfficientViT, commit 4a13c4091e78f9abd2160e7e01c02e48c1cf8fb9 (MIT).
Not to be confused with mit-han-lab/efficientvit (ReLU linear attention, names B0–L3).

The idea
    1. What makes a small transformer slow is moving bytes, not multiplying: reshapes, softmax and
       normalisation dominate attention.
    2. So attend once per block, between two pairs of (depthwise convolution, feed-forward): the
       *sandwich layout*.
    3. Heads see much the same thing, so give each head its own slice of the channels (1/h of the
       projection work) …
    4. … and add its output to the next head's slice (the *cascade*), so that later heads refine
       what earlier ones found.
    5. Batch norm everywhere: it folds into the neighbouring convolution, nothing of it remains at
       inference.

Cascaded group attention, for x split into h slices x₁ … x_h of c = C/h channels, on an r×r window
of N = r² tokens:

    u₁ = x₁,  u_j = x_j + y_{j−1}                               the cascade
    [q_j | k_j | v_j] = BN(W_j u_j)                             widths d_k, d_k, c
    q_j ← BN(depthwise_{K_j}(q_j))                              on queries only, zero padding
    A_j = softmax(q_jᵀ k_j / √d_k + b_j[|Δrow|·r + |Δcol|])     N × N, over keys
    y_j = A_j v_j
    out = BN(W ReLU([y₁ | … | y_h]))

Multiply-adds per window: N·C·(2·d_k + c) for the projections (h times less than with full input),
N·d_k·ΣK_j², N²·h·(d_k + c), N·C².
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.levit import offset_index
from refimpl.deploy import deploy
from refimpl.layers import (
    ConvFeedForward,
    ConvNorm,
    DropPath,
    Layout,
    Probe,
    SqueezeExcite,
    conv_stem,
)
from refimpl.weights import Rules

Layer = Callable[[Tensor], Tensor]


def cascaded_heads(
    x: Tensor, qkv_projs: Sequence[Layer], query_convs: Sequence[Layer], bias: Tensor, key_dim: int
) -> tuple[Tensor, list[Tensor]]:
    """All heads of a window: their outputs side by side, and the attention map of each.

    x: (b, C, r, r); one layer per head in qkv_projs and query_convs; bias: (h, N, N), N = r².
    """
    y = 0
    outputs = []
    maps = []
    for j, x_j in enumerate(x.chunk(len(qkv_projs), dim=1)):
        u = x_j + y  # the cascade: u_j = x_j + y_{j−1}, (b, c, r, r)
        q, k, v = qkv_projs[j](u).split([key_dim, key_dim, x_j.shape[1]], dim=1)
        q = query_convs[j](q)  # queries, and they alone, see their neighbours
        q = q.flatten(2) / key_dim**0.5  # (b, d_k, N)
        k = k.flatten(2)  # (b, d_k, N)
        v = v.flatten(2)  # (b, c, N)
        logits = (k.transpose(1, 2) @ q).transpose(1, 2) + bias[j]  # q_jᵀ k_j + b_j, see below
        attention = logits.softmax(dim=-1)  # A_j: (b, N, N), a row per query
        y = (v @ attention.transpose(1, 2)).view_as(x_j)  # y_j = A_j v_j, tokens last
        outputs.append(y)
        maps.append(attention)
    return torch.cat(outputs, dim=1), maps


# q_jᵀ k_j is (k_jᵀ q_j)ᵀ: as q.transpose(1, 2) @ k, the product would hand the query convolution a
# gradient in an order of memory that PyTorch's batch norm misreads on a CPU for a batch of one.


class CascadedGroupAttention(nn.Module):
    """Attention inside one window, one slice of the channels per head, in cascade.

    (b, dim, r, r) -> (b, dim, r, r), r = resolution. kernel_sizes: of the depthwise convolution on
    each head's queries; entries beyond num_heads are left unused. layout: where windows lie.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        resolution: int,
        kernel_sizes: tuple[int, ...],
        layout: Layout | None = None,
    ):
        super().__init__()
        checks.heads(dim, num_heads)
        checks.at_least(1, key_dim=key_dim, resolution=resolution)
        if len(kernel_sizes) < num_heads or any(k < 1 or k % 2 == 0 for k in kernel_sizes):
            raise ValueError(
                f"kernel_sizes={tuple(kernel_sizes)} must be odd sizes, one for each of"
                f" num_heads={num_heads} heads"
            )
        self.key_dim = key_dim
        self.resolution = resolution
        head_dim = dim // num_heads
        self.qkv_projs = nn.ModuleList()
        self.query_convs = nn.ModuleList()
        for kernel_size in kernel_sizes[:num_heads]:
            self.qkv_projs.append(ConvNorm(head_dim, 2 * key_dim + head_dim))
            self.query_convs.append(ConvNorm(key_dim, key_dim, kernel_size, groups=key_dim))
        self.proj = ConvNorm(dim, dim, norm_weight=0.0)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, resolution**2))
        self.probe = Probe(layout or Layout((resolution, resolution)))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.attention_biases[:, offset_index(self.resolution, x.device)]  # (h, N, N)
        y, maps = cascaded_heads(x, self.qkv_projs, self.query_convs, bias, self.key_dim)
        self.probe(lambda: torch.stack(maps, dim=1))
        return self.proj(F.relu(y))


class WindowAttention(nn.Module):
    """Cascaded group attention in windows: (b, dim, s, s) -> (b, dim, s, s), s = resolution.

    A map larger than `window_size` is padded with zeros right and bottom (they are attended to like
    any token), cut, attended, stitched and cropped.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        resolution: int,
        window_size: int,
        kernel_sizes: tuple[int, ...],
    ):
        super().__init__()
        checks.at_least(1, window_size=window_size, resolution=resolution)
        self.resolution = resolution
        self.window_size = min(window_size, resolution)
        whole = self.window_size == resolution
        layout = Layout((resolution, resolution), window=None if whole else self.window_size)
        self.attn = CascadedGroupAttention(
            dim, key_dim, num_heads, self.window_size, kernel_sizes, layout
        )

    def forward(self, x: Tensor) -> Tensor:
        side = self.resolution
        r = self.window_size
        if x.shape[2:] != (side, side):
            raise ValueError(
                f"the map is {x.shape[2]}×{x.shape[3]}, this attention was built for"
                f" resolution={side}: its bias tables are of fixed size"
            )
        if r == side:
            return self.attn(x)
        padding = -side % r
        x = F.pad(x, (0, padding, 0, padding))
        windows = rearrange(x, "b c (i h) (j w) -> (b i j) c h w", h=r, w=r)
        windows = self.attn(windows)
        count = (side + padding) // r
        x = rearrange(windows, "(b i j) c h w -> b c (i h) (j w)", i=count, j=count)
        return x[:, :, :side, :side]


class Block(nn.Module):
    """The sandwich: one attention between two pairs of (depthwise convolution, feed-forward).

    (b, dim, s, s) -> (b, dim, s, s); each of the five is a residual branch.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        resolution: int,
        window_size: int,
        kernel_sizes: tuple[int, ...],
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.dw0 = ConvNorm(dim, dim, 3, groups=dim, norm_weight=0.0)
        self.ffn0 = ConvFeedForward(dim, 2 * dim, norm_weight=0.0)
        self.mixer = WindowAttention(dim, key_dim, num_heads, resolution, window_size, kernel_sizes)
        self.dw1 = ConvNorm(dim, dim, 3, groups=dim, norm_weight=0.0)
        self.ffn1 = ConvFeedForward(dim, 2 * dim, norm_weight=0.0)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        for branch in (self.dw0, self.ffn0, self.mixer, self.dw1, self.ffn1):
            x = x + self.drop_path(branch(x))
        return x


class PatchMerging(nn.Module):
    """Halve the map through a four times wider inverted bottleneck.

    (b, dim, s, s) -> (b, out_dim, ⌈s/2⌉, ⌈s/2⌉)
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        hidden_dim = 4 * dim
        self.conv1 = ConvNorm(dim, hidden_dim)
        self.conv2 = ConvNorm(hidden_dim, hidden_dim, 3, stride=2, groups=hidden_dim)
        self.se = SqueezeExcite(hidden_dim, hidden_dim // 4)
        self.conv3 = ConvNorm(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        return self.conv3(self.se(x))


class Downsample(nn.Module):
    """Patch merging between two pairs of (depthwise convolution, feed-forward).

    (b, dim, s, s) -> (b, out_dim, ⌈s/2⌉, ⌈s/2⌉); one pair at the old width, one at the new.
    """

    def __init__(self, dim: int, out_dim: int, drop_path_rate: float = 0.0):
        super().__init__()
        self.dw0 = ConvNorm(dim, dim, 3, groups=dim)  # unlike in a block, this γ starts at 1
        self.ffn0 = ConvFeedForward(dim, 2 * dim, norm_weight=0.0)
        self.merge = PatchMerging(dim, out_dim)
        self.dw1 = ConvNorm(out_dim, out_dim, 3, groups=out_dim)
        self.ffn1 = ConvFeedForward(out_dim, 2 * out_dim, norm_weight=0.0)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.dw0(x))
        x = x + self.drop_path(self.ffn0(x))
        x = self.merge(x)
        x = x + self.drop_path(self.dw1(x))
        return x + self.drop_path(self.ffn1(x))


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

    embed_dims, depths, num_heads, window_size: one entry per stage; kernel_sizes: one per head.
    img_size: a multiple of 16 (the stride of the stem), fixed once built (bias tables); a pair must
    be square. num_classes=0 leaves the head out and gives pooled features (b, embed_dims[-1]).
    distilled: a second classifier; in training the pair (logits, distilled logits) is returned, in
    evaluation their mean. Raises `ValueError` for arguments and images that do not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (64, 128, 192),
        depths: tuple[int, ...] = (1, 2, 3),
        num_heads: tuple[int, ...] = (4, 4, 4),
        window_size: tuple[int, ...] = (7, 7, 7),
        kernel_sizes: tuple[int, ...] = (5, 5, 5, 5),
        key_dim: int = 16,
        distilled: bool = False,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.same_length(
            embed_dims=embed_dims, depths=depths, num_heads=num_heads, window_size=window_size
        )
        checks.at_least(1, in_chans=in_chans, depths=depths)
        checks.integer(0, num_classes=num_classes)
        checks.fraction(drop_path_rate=drop_path_rate)
        self.img_size, _ = checks.image_size(img_size, 16, "the stride of the stem", square=True)
        self.in_chans = in_chans
        self.num_classes = num_classes

        self.patch_embed = conv_stem(in_chans, embed_dims[0])
        self.stages = nn.Sequential()
        resolution = self.img_size // 16
        for i, dim in enumerate(embed_dims):
            downsample = nn.Identity()
            if i > 0:
                downsample = Downsample(embed_dims[i - 1], dim, drop_path_rate)
                resolution = (resolution + 1) // 2
            sizes = (dim, key_dim, num_heads[i], resolution, window_size[i], kernel_sizes)
            blocks = nn.Sequential(*(Block(*sizes, drop_path_rate) for _ in range(depths[i])))
            self.stages.append(nn.Sequential(OrderedDict(downsample=downsample, blocks=blocks)))
        self.head = NormLinear(dim, num_classes) if num_classes else nn.Identity()
        self.head_dist = NormLinear(dim, num_classes) if num_classes and distilled else None

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map: (b, embed_dims[-1], s, s)."""
        checks.image(images, self.in_chans, (self.img_size, self.img_size))
        return self.stages(self.patch_embed(images))

    def forward_head(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = x.mean((2, 3))
        if self.head_dist is None:
            return self.head(x)
        logits = self.head(x)
        distilled_logits = self.head_dist(x)
        if self.training:
            return logits, distilled_logits
        return (logits + distilled_logits) / 2

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> EfficientViT:
        """A copy for inference, equal but for rounding (see `refimpl.deploy`)."""
        return deploy(self)


# Official names: the foreign tensor name's pieces, and what stands for them here.
SHARED: Rules = [
    (r"(attention_bias_idxs|(^|\.)ab)$", None),  # computed buffers
    (r"\.m\.", "."),  # residual wrappers
    (r"(^|\.)c\.", r"\1conv."),
    (r"(^|\.)bn\.", r"\1norm."),
    (r"(^|\.)l\.", r"\1linear."),
    (r"(^|\.)proj\.1\.", r"\1proj."),
    (r"(^|\.)qkvs\.", r"\1qkv_projs."),
    (r"(^|\.)dws\.", r"\1query_convs."),
]


def later_stage(match: re.Match) -> str:
    """`blocks2.…` -> `stages.1.…`: three parts of the downsampling, then the blocks."""
    stage = int(match[1]) - 1
    part = match[2]
    parts = {"0.0": "dw0", "0.1": "ffn0", "1": "merge", "2.0": "dw1", "2.1": "ffn1"}
    if part in parts:
        return f"stages.{stage}.downsample.{parts[part]}."
    return f"stages.{stage}.blocks.{int(part) - 3}."


NAMES: dict[str, Rules] = {
    "official": [
        *SHARED,
        (r"^blocks1\.", "stages.0.blocks."),
        (r"^blocks(\d)\.([02]\.\d|1|\d+)\.", later_stage),
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

# Table 1 of the paper.
COLUMNS = ("embed_dims", "depths", "num_heads", "kernel_sizes")
TABLE = {
    "m0": ((64, 128, 192), (1, 2, 3), (4, 4, 4), (5, 5, 5, 5)),
    "m1": ((128, 144, 192), (1, 2, 3), (2, 3, 3), (7, 5, 3, 3)),
    "m2": ((128, 192, 224), (1, 2, 3), (4, 3, 2), (7, 5, 3, 3)),
    "m3": ((128, 240, 320), (1, 2, 3), (4, 3, 4), (5, 5, 5, 5)),
    "m4": ((128, 256, 384), (1, 2, 3), (4, 4, 4), (7, 5, 3, 3)),
    "m5": ((192, 288, 384), (1, 3, 4), (3, 3, 4), (7, 5, 3, 3)),
}
VARIANTS: dict[str, dict] = {
    name: dict(zip(COLUMNS, row, strict=True)) for name, row in TABLE.items()
}
MODEL = EfficientViT
