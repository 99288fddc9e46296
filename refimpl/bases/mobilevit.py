"""MobileViT: a small convolutional network that looks at the whole image in three of its blocks.

Papers: Mehta and Rastegari, *MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision
        Transformer*, ICLR 2022, arXiv 2110.02178; and *Separable Self-attention for Mobile Vision
        Transformers* (version 2), TMLR 2023, arXiv 2206.02680.
Code:   apple/ml-cvnets; the reference outputs are from timm 1.0.31 (same computation and weights).

The map is cut into patches of 2×2 pixels. A convolution has told each pixel of its neighbours, so a
pixel need only meet the N pixels that lie at its own place in the other patches: four attentions of
N = h w / 4 tokens, 4 N² products a channel instead of (4 N)², and yet everyone hears of everyone.

    y ← W_1×1 act(BN(w_3×3 * x))                    local, then C → d channels
    y ← LN(Transformer(unfold y))                   (b, 2, 2, rows, cols, d): one place, all patches
    x ← act(BN(w_3×3 * [x, act(BN(W_1×1 fold y))])) version 1 fuses with what came in

Version 2 drops the fusion and makes attention linear in N: a query is one number per pixel.

    c = softmax(query) over the patches,   context = Σ_j c_j key_j
    y_i = W (relu(value_i) · context)
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import Attention, Block, init_weights
from refimpl.bases.efficientnet import ConvNorm, MBConv
from refimpl.deploy import deploy
from refimpl.layers import DropPath, Probe, attention, attention_map, drop_path_rates
from refimpl.weights import Rules

PATCH = 2  # pixels: side of a patch


def unfold(x: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, 2, 2, rows, cols, c): for each place in a patch, all patches."""
    return rearrange(x, "b c (rows y) (cols x) -> b y x rows cols c", y=PATCH, x=PATCH)


def fold(tokens: Tensor) -> Tensor:
    """The inverse of `unfold`; the map that comes out lies channels-last in memory."""
    x = rearrange(tokens, "b y x rows cols c -> b (rows y) (cols x) c")
    return x.permute(0, 3, 1, 2)


def in_image(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attention among patches as attention among pixels: (b · 4, heads, n, n) -> (b, heads, N, N).

    grid: rows and columns of pixels, N = rows · columns = 4 n. Pixels of other places get nothing.
    """
    maps = rearrange(maps, "(b place) heads n m -> b heads place n m", place=PATCH**2)
    pixel = torch.arange(grid[0] * grid[1], device=maps.device).view(1, 1, *grid)
    pixel = rearrange(unfold(pixel), "1 y x rows cols 1 -> (y x) (rows cols)")  # (place, n)
    whole = maps.new_zeros(*maps.shape[:2], pixel.numel(), pixel.numel())
    whole[:, :, pixel[:, :, None], pixel[:, None, :]] = maps
    return whole


def even(size: torch.Size) -> tuple[int, int]:
    """Height and width of the next map that patches divide."""
    return math.ceil(size[0] / PATCH) * PATCH, math.ceil(size[1] / PATCH) * PATCH


class PatchAttention(Attention):
    """Each pixel attends to the pixels at its place in all patches.

    (b, 2, 2, rows, cols, dim) -> (b, 2, 2, rows, cols, dim).
    """

    def forward(self, tokens: Tensor) -> Tensor:
        _, height, width, rows, cols, _ = tokens.shape
        q, k, v = rearrange(
            self.qkv(tokens),
            "b y x rows cols (three heads d) -> three (b y x) heads (rows cols) d",
            three=3,
            heads=self.num_heads,
        )
        grid = rows * height, cols * width
        self.probe(lambda: in_image(attention_map(q, k), grid), grid)
        y = attention(q, k, v)
        y = rearrange(
            y,
            "(b y x) heads (rows cols) d -> b y x rows cols (heads d)",
            y=height,
            x=width,
            rows=rows,
        )
        return self.proj(y)


def patch_layer(dim: int, num_heads: int, drop_path_rate: float) -> Block:
    """Pre-norm Transformer block on unfolded tokens: MLP ratio 2, SiLU where DeiT has GELU."""
    attn = PatchAttention(dim, num_heads)
    block = Block(dim, num_heads, 2.0, True, drop_path_rate, norm_eps=1e-5, attn=attn)
    block.mlp.act = nn.SiLU()
    return block


class MobileViTBlock(nn.Module):
    """Version 1: local convolution, Transformer among patches, fusion with the input.

    (b, dim, h, w) -> (b, dim, h, w). attn_dim: width of the Transformer, depth: its blocks. Odd
    maps are resized to even ones for the Transformer alone.
    """

    def __init__(
        self, dim: int, attn_dim: int, depth: int, num_heads: int, drop_path_rate: float = 0.0
    ):
        super().__init__()
        self.conv_kxk = ConvNorm(dim, dim, 3, act=nn.SiLU)
        self.conv_1x1 = nn.Conv2d(dim, attn_dim, 1, bias=False)
        layers = [patch_layer(attn_dim, num_heads, drop_path_rate) for _ in range(depth)]
        self.transformer = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(attn_dim)
        self.conv_proj = ConvNorm(attn_dim, dim, act=nn.SiLU)
        self.conv_fusion = ConvNorm(2 * dim, dim, 3, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        y = self.conv_1x1(self.conv_kxk(x))  # (b, attn_dim, h, w)
        y = resized(y, even(size))
        tokens = self.transformer(unfold(y))  # (b, 2, 2, rows, cols, attn_dim)
        y = resized(fold(self.norm(tokens)), size)
        y = self.conv_proj(y)  # (b, dim, h, w)
        return self.conv_fusion(torch.cat([x, y], dim=1))


def resized(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinear, and only where the size is another: (b, c, h, w) -> (b, c, *size)."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def separable_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention whose map is one row: query (b, 1, place, n), key and value (b, d, place, n).

    Returns (b, d, place, n). n d products in place of n² d.
    """
    scores = query.softmax(dim=-1)  # (b, 1, place, n): c, the same for every pixel that asks
    context = (key * scores).sum(dim=-1, keepdim=True)  # (b, d, place, 1): Σ_j c_j key_j
    return value.relu() * context


class SeparableAttention(nn.Module):
    """Attention with one query per pixel: (b, dim, place, n) -> (b, dim, place, n)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.qkv_proj = nn.Conv2d(dim, 1 + 2 * dim, 1)
        self.probe = Probe()
        self.out_proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """grid: rows and columns of pixels, for the probe."""
        query, key, value = self.qkv_proj(x).split([1, self.dim, self.dim], dim=1)
        self.probe(lambda: in_image(separable_map(query), grid), grid)
        return self.out_proj(separable_attention(query, key, value))


def separable_map(query: Tensor) -> Tensor:
    """What each pixel hears of the others, equal rows: (b, 1, place, n) -> (b · place, 1, n, n)."""
    scores = rearrange(query.softmax(dim=-1), "b 1 place n -> (b place) 1 1 n")
    return scores.expand(-1, -1, scores.shape[-1], -1)


class SeparableLayer(nn.Module):
    """Pre-norm Transformer block of version 2: (b, dim, place, n) -> (b, dim, place, n).

    The norms take all channels and pixels of an image together.
    """

    def __init__(self, dim: int, drop_path_rate: float = 0.0):
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.attn = SeparableAttention(dim)
        self.norm2 = nn.GroupNorm(1, dim)
        mlp = OrderedDict(fc1=nn.Conv2d(dim, 2 * dim, 1), act=nn.SiLU())
        mlp["fc2"] = nn.Conv2d(2 * dim, dim, 1)
        self.mlp = nn.Sequential(mlp)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MobileViTv2Block(nn.Module):
    """Version 2: depthwise convolution, separable attention among patches, no fusion.

    (b, dim, h, w) -> (b, dim, h, w), both sides rounded up to even: odd maps are resized, and stay
    so. attn_dim: width of the Transformer, depth: its blocks.
    """

    def __init__(self, dim: int, attn_dim: int, depth: int, drop_path_rate: float = 0.0):
        super().__init__()
        self.conv_kxk = ConvNorm(dim, dim, 3, groups=dim, act=nn.SiLU)
        self.conv_1x1 = nn.Conv2d(dim, attn_dim, 1, bias=False)
        layers = [SeparableLayer(attn_dim, drop_path_rate) for _ in range(depth)]
        self.transformer = nn.ModuleList(layers)
        self.norm = nn.GroupNorm(1, attn_dim)
        self.conv_proj = ConvNorm(attn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = resized(x, even(x.shape[2:]), align_corners=True)
        grid = rows, cols = tuple(x.shape[2:])
        x = self.conv_1x1(self.conv_kxk(x))  # (b, attn_dim, h, w)
        x = rearrange(x, "b c (rows y) (cols x) -> b c (y x) (rows cols)", y=PATCH, x=PATCH)
        for layer in self.transformer:
            x = layer(x, grid)
        x = rearrange(
            self.norm(x),
            "b c (y x) (rows cols) -> b c (rows y) (cols x)",
            y=PATCH,
            rows=rows // PATCH,
            cols=cols // PATCH,
        )
        return self.conv_proj(x)


class MobileViT(nn.Module):
    """Images (b, in_chans, height, width), of any size -> logits (b, num_classes).

    img_size: a number or a pair, records what the variant was trained with.
    stem_chans, embed_dims: channels behind the stem and of the stages; every stage but the first
        halves the map.
    attn_dims: widths of the Transformers, one for each of the last stages; the others have none.
    depths: one entry per stage: its inverted residuals, or where it has a Transformer, that one's
        blocks (behind one inverted residual).
    expand_ratio: of the inverted residuals. num_heads: of each Transformer, version 1.
    num_features: channels of a last 1×1 convolution; `None` leaves it out (version 2).
    separable: version 2's blocks. num_classes: 0 leaves the classifier out and gives the mean
        (b, num_features). drop_path_rate: of the last block; it rises linearly from 0 in the first.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        in_chans: int = 3,
        num_classes: int = 1000,
        stem_chans: int = 16,
        embed_dims: tuple[int, ...] = (16, 24, 48, 64, 80),
        attn_dims: tuple[int, ...] = (64, 80, 96),
        depths: tuple[int, ...] = (1, 3, 2, 4, 3),
        num_heads: int = 4,
        expand_ratio: int = 2,
        num_features: int | None = 320,
        separable: bool = False,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.image_size(img_size)
        checks.same_length(embed_dims=tuple(embed_dims), depths=tuple(depths))
        checks.at_least(1, embed_dims=tuple(embed_dims), depths=tuple(depths))
        checks.at_least(1, attn_dims=tuple(attn_dims))
        checks.integer(1, in_chans=in_chans, stem_chans=stem_chans, expand_ratio=expand_ratio)
        checks.integer(0, num_classes=num_classes)
        if num_features is not None:
            checks.integer(1, num_features=num_features)
        checks.fraction(drop_path_rate=drop_path_rate)
        plain = len(embed_dims) - len(attn_dims)  # stages without a Transformer
        if plain < 0:
            raise ValueError(
                f"attn_dims={tuple(attn_dims)} has more entries than there are stages:"
                f" embed_dims={tuple(embed_dims)}"
            )
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.stem = ConvNorm(in_chans, stem_chans, 3, stride=2, act=nn.SiLU)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths[:plain]) + 2 * len(attn_dims)))
        self.stages = nn.Sequential()
        channels = stem_chans
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            stage = nn.Sequential()
            for j in range(depth if i < plain else 1):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(inverted_residual(channels, dim, stride, expand_ratio, next(rates)))
                channels = dim
            if i >= plain:
                attn_dim = attn_dims[i - plain]
                if separable:
                    stage.append(MobileViTv2Block(dim, attn_dim, depth, next(rates)))
                else:
                    stage.append(MobileViTBlock(dim, attn_dim, depth, num_heads, next(rates)))
            self.stages.append(stage)
        self.final_conv = nn.Identity()
        if num_features is not None:
            self.final_conv = ConvNorm(channels, num_features, act=nn.SiLU)
        self.num_features = num_features or channels
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.apply(initialise)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map (b, num_features, height/32, width/32)."""
        checks.image(images, self.in_chans)
        return self.final_conv(self.stages(self.stem(images)))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> nn.Module:
        """An inference-only copy: norms folded, maps and tokens channels-last throughout."""
        return deploy(self)


def inverted_residual(
    in_chans: int, out_chans: int, stride: int, expand_ratio: int, drop_path_rate: float
) -> MBConv:
    """MobileNetV2's block with SiLU: EfficientNet's without its gate, kernel 3×3."""
    return MBConv(
        in_chans,
        out_chans,
        stride=stride,
        expand_ratio=expand_ratio,
        gated=False,
        drop_path_rate=drop_path_rate,
    )


def initialise(module: nn.Module) -> None:
    """Convolutions N(0, 2 / fan-out), biases 0; linear layers as in DeiT."""
    init_weights(module)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def version2(width: float) -> dict:
    """The constructor's arguments for a multiple of the widths."""
    embed_dims = tuple(int(dim * width) for dim in (64, 128, 256, 384, 512))
    return dict(
        stem_chans=int(32 * width),
        embed_dims=embed_dims,
        attn_dims=tuple(dim // 2 for dim in embed_dims[2:]),
        depths=(1, 2, 2, 4, 3),
        num_features=None,
        separable=True,
    )


COLUMNS = ("embed_dims", "attn_dims", "expand_ratio", "num_features")
TABLE = {
    "xxs": ((16, 24, 48, 64, 80), (64, 80, 96), 2, 320),
    "xs": ((32, 48, 64, 80, 96), (96, 120, 144), 4, 384),
    "s": ((32, 64, 96, 128, 160), (144, 192, 240), 4, 640),
}
VARIANTS: dict[str, dict] = {
    name: dict(zip(COLUMNS, row, strict=True)) for name, row in TABLE.items()
}
for percent in (50, 75, 100, 125, 150, 175, 200):
    VARIANTS[f"v2_{percent:03}"] = version2(percent / 100)
MODEL = MobileViT

# "official" are timm's names, which the reference outputs carry.
NAMES: dict[str, Rules] = {
    "official": [
        (r"\.conv1_1x1\.", ".expand."),
        (r"\.conv2_kxk\.", ".depthwise."),
        (r"\.conv3_1x1\.", ".project."),
        (r"\.bn\.", ".norm."),
        (r"^head\.fc\.", "head."),
    ]
}
