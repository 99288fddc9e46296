"""The plain Vision Transformer, as DeiT trains it.

ViT:   Dosovitskiy and others, *An Image is Worth 16x16 Words*, ICLR 2021, arXiv 2010.11929.
DeiT:  Touvron and others, *Training Data-Efficient Image Transformers & Distillation through
       Attention*, ICML 2021, arXiv 2012.12877.
Code:  facebookresearch/deit; the reference outputs are from timm 1.0.31 (same tensor names, same
       computation).

An image is cut into patches, each patch becomes a token, a class token is put in front, and a
position embedding is added:

    x ← [class; (distillation;) patches] + position
    x ← x + MHSA(LN(x)),   x ← x + MLP(LN(x))       `depth` times
    logits = head(LN(x)[class])                      distilled: the mean of two heads on two tokens

Without the position embedding nothing in this network knows where a patch lies: attention treats
tokens as a set.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.layers import (
    DropPath,
    Layout,
    Mlp,
    PatchEmbed,
    Probe,
    attention,
    attention_map,
    drop_path_rates,
)

POSITIONS = ("learned", "sincos", "none")


class Attention(nn.Module):
    """Multi-head self-attention: (b, n, dim) -> (b, n, dim)."""

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, layout: Layout | None = None
    ):
        super().__init__()
        checks.heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.probe = Probe(layout)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads
        )
        self.probe(lambda: attention_map(q, k))
        y = attention(q, k, v)
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))


class Block(nn.Module):
    """Pre-norm Transformer block: (b, n, dim) -> (b, n, dim).

    attn: takes the place of plain attention, and is called as `attn(x)`; layout: where the tokens
    of plain attention lie.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        attn: nn.Module | None = None,
        layout: Layout | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn or Attention(dim, num_heads, qkv_bias, layout)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Images (b, in_chans, *img_size) -> logits (b, num_classes).

    img_size: pixels, one number for a square or (height, width).
    num_classes: 0 leaves the classifiers out; the output then is the class token (b, embed_dim).
    distilled: a second token and a second classifier, for a teacher's labels (`forward_classifiers`
        gives both answers, `forward` their mean).
    pos_embed: "learned" (ViT, DeiT; a row for every token), "sincos" (fixed 2-D sines and cosines,
        as MAE and MoCo v3), or "none".
    drop_path_rate: of the last block; it rises linearly from 0 in the first.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        distilled: bool = False,
        pos_embed: str = "learned",
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        check_transformer(depth, num_classes, in_chans, mlp_ratio, drop_path_rate)
        checks.choice("pos_embed", pos_embed, POSITIONS)
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        rows, cols = self.patch_embed.grid
        self.layout = Layout((rows, cols), prefix=2 if distilled else 1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if distilled else None
        if pos_embed == "learned":
            num_tokens = self.layout.prefix + rows * cols
            self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, embed_dim))
        elif pos_embed == "sincos":
            table = sincos_positions(embed_dim, (rows, cols))
            table = F.pad(table, (0, 0, self.layout.prefix, 0))  # zeros for class, distillation
            self.register_buffer("pos_embed", table)
        else:
            self.pos_embed = None
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, rate, norm_eps, layout=self.layout)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)

        def classifier() -> nn.Module:
            return nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

        self.head = classifier()
        self.head_dist = classifier() if distilled else None
        self.apply(init_weights)
        for table in (self.cls_token, self.dist_token, self.pos_embed):
            if isinstance(table, nn.Parameter):
                nn.init.trunc_normal_(table, std=0.02)

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the final norm: (b, prefix + n, embed_dim).

        First the class token, then the distillation token if there is one, then patches row by row.
        """
        x = self.patch_embed(images)
        b = x.shape[0]  # not len(x), which a traced model would remember
        tokens = [self.cls_token.expand(b, -1, -1)]
        if self.dist_token is not None:
            tokens.append(self.dist_token.expand(b, -1, -1))
        x = torch.cat([*tokens, x], dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Logits from tokens: (b, prefix + n, embed_dim) -> (b, num_classes)."""
        if self.head_dist is None:
            return self.head(tokens[:, 0])
        return (self.head(tokens[:, 0]) + self.head_dist(tokens[:, 1])) / 2

    def forward_classifiers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of both classifiers, (b, num_classes) each.

        DeiT's loss compares the first with the label and the second with the teacher. Raises
        `ValueError` for a model that was not built with `distilled=True`.
        """
        if self.head_dist is None:
            raise ValueError(
                "forward_classifiers wants a model built with distilled=True; this one has a single"
                " classifier"
            )
        tokens = self.forward_features(images)
        return self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> VisionTransformer:
        """A copy for inference, whose last block computes only the tokens that a classifier reads.

        Its `forward_features` therefore gives (b, prefix, embed_dim).
        """
        return deploy(self)


def check_transformer(
    depth: int, num_classes: int, in_chans: int, mlp_ratio: float, drop_path_rate: float
) -> None:
    """Raise a `ValueError` for an argument out of its range."""
    checks.at_least(1, depth=depth, in_chans=in_chans)
    checks.integer(0, num_classes=num_classes)
    checks.positive(mlp_ratio=mlp_ratio)
    checks.fraction(drop_path_rate=drop_path_rate)


def init_weights(module: nn.Module) -> None:
    """Linear layers as DeiT starts them; the patch projection keeps PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2-D position embedding: (1, rows · cols, dim).

    Half of the channels say the column, half the row. Each half is [sin(p ω), cos(p ω)] with
    ω_i = 10000^(−i / (dim/4)).
    """
    checks.multiple(4, "for pos_embed='sincos'", embed_dim=dim)
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, cols = (torch.arange(size, dtype=torch.float64) for size in grid)
    row, col = torch.meshgrid(rows, cols, indexing="ij")
    channels = []
    for position in (col, row):
        angles = position.reshape(-1, 1) * omega  # (n, dim/4)
        channels += [angles.sin(), angles.cos()]
    return torch.cat(channels, dim=1).float()[None]


def resample_positions(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Patch positions brought to another grid, bicubic with antialiasing.

    table: (1, rows · cols, c) for `grid`, without class tokens -> the same for `new_grid`.
    """
    if grid == new_grid:
        return table
    table = rearrange(table, "1 (h w) c -> 1 c h w", h=grid[0])
    table = F.interpolate(table, new_grid, mode="bicubic", antialias=True)
    return rearrange(table, "1 c h w -> 1 (h w) c")


SIZES = {
    "tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "small": dict(embed_dim=384, depth=12, num_heads=6),
    "base": dict(embed_dim=768, depth=12, num_heads=12),
}
VARIANTS: dict[str, dict] = SIZES | {
    f"{name}_distilled": size | dict(distilled=True) for name, size in SIZES.items()
}
MODEL = VisionTransformer
