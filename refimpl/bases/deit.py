"""The plain Vision Transformer, as DeiT trains it.

ViT:   Dosovitskiy and others, *An Image is Worth 16x16 Words*, ICLR 2021, arXiv 2010.11929.
DeiT:  Touvron and others, *Training Data-Efficient Image Transformers & Distillation through Attention*, ICML 2021, arXiv 2012.12877.
Code:  facebookresearch/deit; recorded here from timm 1.0.31 (same tensor names, same computation).

An image is cut into patches, each patch becomes a token, a class token is put in front, a position embedding is added:

    x ← [class; (distillation;) patches] + position
    x ← x + MHSA(LN(x)),   x ← x + MLP(LN(x))       `depth` times
    logits = head(LN(x)[class])                      distilled: the mean of two heads on two tokens

Without the position embedding nothing in this network knows where a patch lies: attention treats tokens as a set.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import PatchProduct, column_major, linear_like
from refimpl.layers import (
    DropPath,
    Layout,
    Mlp,
    PatchEmbed,
    Probe,
    attention,
    attention_map,
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
    """Pre-norm Transformer block: (b, n, dim) -> (b, n, dim). `attn` replaces plain attention and is called as `attn(x)`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        attn: nn.Module | None = None,
        layout: Layout | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn or Attention(dim, num_heads, qkv_bias, layout)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ClassAttention(nn.Module):
    """`Attention` whose only queries are the first `tokens`: (b, n, dim) -> (b, tokens, dim). A recorder sees the map of all tokens nevertheless."""

    def __init__(self, attn: Attention, tokens: int):
        super().__init__()
        self.tokens, self.num_heads = tokens, attn.num_heads
        parts = [attn.proj.in_features, 2 * attn.proj.in_features]
        biases = (None, None) if attn.qkv.bias is None else attn.qkv.bias.split(parts)
        self.q, self.kv = map(linear_like, attn.qkv.weight.split(parts), biases)
        self.probe, self.proj = attn.probe, attn.proj

    def heads(self, q: Tensor) -> Tensor:
        return rearrange(q, "b n (heads d) -> b heads n d", heads=self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        q = self.heads(self.q(x[:, : self.tokens]))
        k, v = map(self.heads, self.kv(x).chunk(2, -1))
        self.probe(lambda: attention_map(self.heads(self.q(x)), k))
        return self.proj(
            rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")
        )


class ClassBlock(nn.Module):
    """The first `tokens` rows of a plain `Block`, at the cost of those rows: (b, n, dim) -> (b, tokens, dim).

    A classifier reads the class token alone, so in its last block the patches need only be keys and values: of the block's 12 n dim² multiply-adds in
    linear layers, 2 n dim² remain.
    """

    def __init__(self, block: Block, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.norm1, self.attn, self.norm2, self.mlp = (
            block.norm1,
            ClassAttention(block.attn, tokens),
            block.norm2,
            block.mlp,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : self.tokens] + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Images (b, in_chans, img_size, img_size) -> logits (b, num_classes).

    distilled: a second token and a second head, for a teacher's labels (`forward_heads` gives both heads, `forward` their mean).
    pos_embed: "learned" (ViT, DeiT; a row for every token), "sincos" (fixed 2-D sines and cosines, as MAE and MoCo v3), "none".
    num_classes=0 leaves the head out. drop_path rises linearly over the blocks from 0 to the value given.
    """

    def __init__(
        self,
        img_size: int = 224,
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
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        check_transformer(depth, num_classes, in_chans, mlp_ratio, drop_path)
        if pos_embed not in POSITIONS:
            raise ValueError(
                f"pos_embed={pos_embed!r} is not one of {', '.join(map(repr, POSITIONS))}"
            )
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        side = self.patch_embed.grid_size
        self.layout = Layout((side, side), prefix=2 if distilled else 1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if distilled else None
        if pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, self.layout.prefix + side**2, embed_dim))
        else:
            table = (
                F.pad(sincos_positions(embed_dim, (side, side)), (0, 0, self.layout.prefix, 0))
                if pos_embed == "sincos"
                else None
            )
            self.register_buffer("pos_embed", table)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias,
                drop_path * i / max(depth - 1, 1),
                norm_eps,
                layout=self.layout,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.head_dist = (
            None
            if not distilled
            else nn.Linear(embed_dim, num_classes)
            if num_classes
            else nn.Identity()
        )
        self.apply(init_weights)
        for table in (
            self.cls_token,
            self.dist_token,
            self.pos_embed if pos_embed == "learned" else None,
        ):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the final norm: (b, prefix + n, c), class token first, then the distillation token, then patches row by row."""
        x = self.patch_embed(images)
        prefix = [
            t.expand(len(x), -1, -1) for t in (self.cls_token, self.dist_token) if t is not None
        ]
        x = torch.cat([*prefix, x], 1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, tokens: Tensor) -> Tensor:
        if self.head_dist is None:
            return self.head(tokens[:, 0])
        return (self.head(tokens[:, 0]) + self.head_dist(tokens[:, 1])) / 2

    def forward_heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the class head and of the distillation head: what DeiT's loss compares with label and teacher."""
        if self.head_dist is None:
            raise ValueError(
                "forward_heads wants a model built with distilled=True; this one has a single head"
            )
        tokens = self.forward_features(images)
        return self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> VisionTransformer:
        """The deployment form: a copy whose last block works for the class token (and the distillation token) alone, since nothing else is read.

        Patches are embedded by a matrix product, weights stored input by input. Its `forward_features` gives only the tokens that are read: (b, prefix, c).
        """
        return read_alone(copy.deepcopy(self).eval(), self.layout.prefix)


def read_alone(model: nn.Module, tokens: int) -> nn.Module:
    """Change a transformer in place: patches by a matrix product, a last block for the first `tokens` alone, weights stored input by input."""
    if isinstance(model.patch_embed, PatchEmbed):
        model.patch_embed = PatchProduct(model.patch_embed)
    if isinstance(model.blocks[-1], Block):
        model.blocks[-1] = ClassBlock(model.blocks[-1], tokens)
    column_major(model)
    return model


def check_transformer(
    depth: int, num_classes: int, in_chans: int, mlp_ratio: float, drop_path: float
) -> None:
    """Raise a `ValueError` for an argument out of its range."""
    for name, value, least in (
        ("depth", depth, 1),
        ("num_classes", num_classes, 0),
        ("in_chans", in_chans, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if not mlp_ratio > 0:
        raise ValueError(f"mlp_ratio={mlp_ratio} must be above 0")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path={drop_path} must be at least 0 and below 1")


def init_weights(module: nn.Module) -> None:
    """Linear layers as DeiT starts them; the patch projection keeps PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2-D position embedding (1, rows · cols, dim): half of the channels for the column, half for the row.

    Each half is [sin(p ω), cos(p ω)] with ω_i = 10000^(−i / (dim/4)).
    """
    if dim % 4:
        raise ValueError(f"embed_dim={dim} must be a multiple of 4 for pos_embed='sincos'")
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, cols = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij"
    )
    angles = [position.reshape(-1, 1) * omega for position in (cols, rows)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1).float()[None]


def resample_positions(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Patch positions (1, rows · cols, c) brought to another grid, bicubic with antialiasing."""
    if grid == new_grid:
        return table
    table = rearrange(table, "1 (h w) c -> 1 c h w", h=grid[0])
    return rearrange(
        F.interpolate(table, new_grid, mode="bicubic", antialias=True), "1 c h w -> 1 (h w) c"
    )


SIZES = {
    "tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "small": dict(embed_dim=384, depth=12, num_heads=6),
    "base": dict(embed_dim=768, depth=12, num_heads=12),
}
VARIANTS: dict[str, dict] = SIZES | {
    f"{name}_distilled": size | dict(distilled=True) for name, size in SIZES.items()
}
MODEL = VisionTransformer
