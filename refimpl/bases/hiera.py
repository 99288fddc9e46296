"""Hiera: a hierarchical Vision Transformer of plain blocks, whose windows are masks' units.

Ryali, Hu, Bolya, Wei, Fan, Huang, Aggarwal, Chowdhury, Poursaeed, Hoffman, Malik, Li,
Feichtenhofer, *Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles*,
ICML 2023, arXiv 2306.00989.
Code: facebookresearch/hiera at b12b842 (Apache-2.0).

What swin and its kin build in by hand (shifts, offsets, convolutions), Hiera learns by pre-training
on masked images; what is left is a plain Transformer that grows coarser:

    mask units      8×8 tokens, masked or kept as a whole; the first blocks attend within them
    pooled queries  at a stage's start each query is the maximum of 2×2, and so a quarter is left:
                    A = softmax(max(q) kᵀ/√d), of n/4 × n weights per head; keys stay fine
    shortcut        at those blocks the maximum of 2×2 of W LN(x): it starts behind the norm

Tokens are reordered once (`unroll`), so that 2×2 neighbours are n/4 places apart. Pooling then is a
maximum over the first axis of (4, n/4), again and again, a mask unit every (n/units)-th token, and
leaving masked units out keeps all that true. Nothing is cut, padded or rolled after that.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.layers import (
    DropPath,
    Layout,
    Mlp,
    Probe,
    attention,
    attention_map,
    drop_path_rates,
)
from refimpl.weights import Rules

PATCH = 4  # pixels from one token to the next; a token sees 7×7
POOL = 4  # tokens, 2×2, that become one


def unroll(x: Tensor, times: int) -> Tensor:
    """The order in which 2×2 tokens can be pooled so often: (b, h, w, c) -> (b, n, c).

    A token's place is (last bits of row and column, the bits before, …, the rest row by row).
    """
    x = x[:, None]
    for _ in range(times):
        x = rearrange(x, "b p (h y) (w x) c -> b (p y x) h w c", y=2, x=2)
    return x.flatten(1, 3)


def reroll(tokens: Tensor, grid: tuple[int, int], times: int) -> Tensor:
    """The inverse of `unroll`: (b, n, c) -> (b, *grid, c)."""
    x = rearrange(tokens, "b (p h w) c -> b p h w c", p=POOL**times, h=grid[0] // 2**times)
    for _ in range(times):
        x = rearrange(x, "b (p y x) h w c -> b p (h y) (w x) c", y=2, x=2)
    return x[:, 0]


def pooled(tokens: Tensor) -> Tensor:
    """The maximum of 2×2 tokens in unrolled order: (…, n, c) -> (…, n/4, c)."""
    return tokens.unflatten(-2, (POOL, -1)).amax(-3)


class MaskUnitAttention(nn.Module):
    """Attention within mask units or everywhere, its queries pooled or not.

    (b, n, dim) -> (b, n or n/4, dim_out), tokens unrolled. grid: rows and columns of the tokens;
    times: how often they can still be pooled; local: attend within mask units, of 2^times × 2^times
    tokens each. Where masked units were left out, n is less than rows · columns.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        grid: tuple[int, int],
        times: int,
        local: bool,
        pool: bool,
    ):
        super().__init__()
        checks.heads(dim_out, num_heads)
        self.num_heads = num_heads
        self.grid = grid
        self.times = times
        self.local = local
        self.pool = pool
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)
        self.probe = Probe(Layout((grid[0] // 2, grid[1] // 2) if pool else grid))

    def forward(self, x: Tensor) -> Tensor:
        units = x.shape[1] // POOL**self.times if self.local else 1
        q, k, v = rearrange(
            self.qkv(x),
            "b (n units) (three heads d) -> three (b units) heads n d",
            units=units,
            three=3,
            heads=self.num_heads,
        )
        if self.pool:
            q = pooled(q)  # (b · units, heads, n/4, d)
        if x.shape[1] == self.grid[0] * self.grid[1]:  # masked tokens are on no grid
            self.probe(lambda: self.in_image(attention_map(q, k), units))
        y = attention(q, k, v)
        return self.proj(rearrange(y, "(b units) heads n d -> b (n units) (heads d)", units=units))

    def in_image(self, maps: Tensor, units: int) -> Tensor:
        """Maps of units, unrolled, as one of the image, row by row: (b, heads, n, n), n of queries.

        What a pooled query gives the 2×2 keys in a query's place is added up.
        """
        maps = rearrange(maps, "(b units) heads n m -> b heads units n m", units=units)
        rows, cols = self.grid
        key = places(self.grid, self.times, units)  # (units, m)
        query = places(self.probe.layout.grid, self.times - self.pool, units)  # (units, n)
        whole = maps.new_zeros(*maps.shape[:2], query.numel(), key.numel())
        whole[:, :, query[:, :, None], key[:, None, :]] = maps
        if not self.pool:
            return whole
        return reduce(
            whole,
            "b heads n (h y w x) -> b heads n (h w)",
            "sum",
            h=rows // 2,
            y=2,
            w=cols // 2,
            x=2,
        )


def places(grid: tuple[int, int], times: int, units: int) -> Tensor:
    """Where the unrolled tokens of each unit lie, row by row: (units, n) int64."""
    index = torch.arange(grid[0] * grid[1]).view(1, *grid, 1)
    return unroll(index, times).view(-1, units).t()


class HieraBlock(nn.Module):
    """Pre-norm Transformer block that may widen and pool: (b, n, dim) -> (b, n or n/4, dim_out).

    attn: from dim to dim_out.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        attn: MaskUnitAttention,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim_out, eps=norm_eps)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.proj is not None:
            x = self.proj(y)
        if self.attn.pool:
            x = pooled(x)
        x = x + self.drop_path(self.attn(y))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OverlappingPatchEmbed(nn.Module):
    """A token for every 4×4 pixels, of the 7×7 around: (b, c, H, W) -> (b, H/4, W/4, embed_dim)."""

    def __init__(self, in_chans: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, 7, PATCH, padding=3)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)


def unrollings(depths: tuple[int, ...], q_pool: int, mask_unit_size: int) -> int:
    """How often tokens are unrolled: log₂ of a unit's side. Raises where poolings don't fit."""
    if q_pool >= len(depths):
        raise ValueError(
            f"q_pool={q_pool} must be less than the number of stages: depths={tuple(depths)}"
        )
    times = mask_unit_size.bit_length() - 1
    if mask_unit_size != 2**times or times < q_pool:
        raise ValueError(
            f"mask_unit_size={mask_unit_size} must be a power of two and at least 2^q_pool:"
            f" q_pool={q_pool}"
        )
    return times


class Hiera(nn.Module):
    """Images (b, in_chans, *img_size) -> logits (b, num_classes).

    img_size: pixels, a multiple of a mask unit's (32), one number for a square or (height, width);
        fixed once built.
    depths: blocks of the stages; a stage's first block widens by dim_mul, multiplies the heads by
        head_mul, and pools if the stage is one of the q_pool behind the first.
    mask_unit_attn: whether a stage's blocks attend within mask units. A stage's first block does as
        the stage before.
    mask_unit_size: side in tokens of the first stage, a power of two, at least 2^q_pool.
    num_classes: 0 leaves the classifier out and gives normed means. drop_path_rate: of the last
        block; it rises linearly from 0 in the first.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 3, 16, 3),
        num_heads: int = 1,
        mlp_ratio: float = 4.0,
        q_pool: int = 3,
        mask_unit_attn: tuple[bool, ...] = (True, True, False, False),
        mask_unit_size: int = 8,
        dim_mul: float = 2.0,
        head_mul: float = 2.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.same_length(depths=tuple(depths), mask_unit_attn=tuple(mask_unit_attn))
        checks.at_least(1, depths=tuple(depths))
        checks.integer(1, in_chans=in_chans, embed_dim=embed_dim, num_heads=num_heads)
        checks.integer(1, mask_unit_size=mask_unit_size)
        checks.integer(0, num_classes=num_classes, q_pool=q_pool)
        checks.positive(mlp_ratio=mlp_ratio, dim_mul=dim_mul, head_mul=head_mul)
        checks.fraction(drop_path_rate=drop_path_rate)
        times = unrollings(depths, q_pool, mask_unit_size)
        height, width = checks.image_size(img_size, PATCH * mask_unit_size, "a mask unit's side")
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.mask_unit_size = mask_unit_size
        self.size = height, width
        self.grid = grid = height // PATCH, width // PATCH
        self.depths = tuple(depths)
        self.q_pool = q_pool
        self.times = times
        self.patch_embed = OverlappingPatchEmbed(in_chans, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], embed_dim))
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.blocks = nn.Sequential()
        dim, heads = embed_dim, num_heads
        for stage, depth in enumerate(depths):
            for i in range(depth):
                first = stage > 0 and i == 0
                dim_out = int(dim * dim_mul) if first else dim
                heads = int(heads * head_mul) if first else heads
                local = mask_unit_attn[stage - first]
                pool = first and stage <= q_pool
                attn = MaskUnitAttention(dim, dim_out, heads, grid, times, local, pool)
                self.blocks.append(HieraBlock(dim, dim_out, attn, mlp_ratio, next(rates)))
                dim = dim_out
                if pool:
                    grid = grid[0] // 2, grid[1] // 2
                    times -= 1
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.apply(initialise)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if num_classes:
            with torch.no_grad():
                self.head.weight *= HEAD_SCALE
                self.head.bias *= HEAD_SCALE

    def embed(self, images: Tensor) -> Tensor:
        """Tokens with their positions, unrolled: (b, n, embed_dim)."""
        checks.image(images, self.in_chans, self.size)
        x = self.patch_embed(images)
        x = x + self.pos_embed.unflatten(1, self.grid)
        return unroll(x, self.times)

    def forward_masked(self, images: Tensor, mask: Tensor) -> Tensor:
        """Tokens of the kept mask units alone, before any norm: (b, n, dim).

        mask: (b, units) bool, units row by row, True where kept; equally many for each image.
        Pixels of the other units are zero for their neighbours too.
        """
        checks.image(images, self.in_chans, self.size)
        rows, cols = (side // self.mask_unit_size for side in self.grid)
        if mask.dtype != torch.bool or tuple(mask.shape) != (len(images), rows * cols):
            raise ValueError(
                f"mask must be (batch, units) = ({len(images)}, {rows * cols}) of torch.bool, got"
                f" {tuple(mask.shape)} of {mask.dtype}"
            )
        kept = mask.sum(1)
        if (kept != kept[0]).any() or not kept[0]:
            raise ValueError(
                f"mask must keep equally many units of each image, at least 1, got {kept.tolist()}"
            )
        unit = self.mask_unit_size * PATCH
        pixels = mask.view(-1, 1, rows, cols).repeat_interleave(unit, 2).repeat_interleave(unit, 3)
        x = self.embed(images * pixels)
        x = rearrange(x, "b (n units) c -> b units n c", units=rows * cols)[mask]
        x = rearrange(x, "(b units) n c -> b (n units) c", b=len(images))
        return self.blocks(x)

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """The map behind each stage, before any norm: (b, h, w, dim) of that stage."""
        x = self.embed(images)
        maps = []
        done = 0
        for stage, depth in enumerate(self.depths):
            x = self.blocks[done : done + depth](x)
            done += depth
            pools = min(stage, self.q_pool)
            grid = self.grid[0] // 2**pools, self.grid[1] // 2**pools
            maps.append(reroll(x, grid, self.times - pools))
        return maps

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map: (b, h, w, dim)."""
        x = self.blocks(self.embed(images))
        grid = self.grid[0] // 2**self.q_pool, self.grid[1] // 2**self.q_pool
        return reroll(x, grid, self.times - self.q_pool)

    def forward_head(self, x: Tensor) -> Tensor:
        """Logits from the last map: its mean, normed, then the classifier.

        The official code adds a softmax in evaluation mode.
        """
        return self.head(self.norm(x.mean((1, 2))))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> nn.Module:
        """A copy for inference, equal but for rounding: weights column-major."""
        return deploy(self)


HEAD_SCALE = 0.001  # of the classifier's first weights


def initialise(module: nn.Module) -> None:
    """Weights truncated normal with deviation 0.02; biases, those of norms too, 0.02."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
        nn.init.constant_(module.bias, 0.02)


def multiply_adds(model: Hiera) -> int:
    """Of one image, in closed form: convolution, linear layers and both products of attention.

    A block of n tokens, of which n' are left, from d to d' wide, with K keys for each query:
    3 n d d' + 2 n' K d' + n' d'² + 2 n' h d', h the MLP's width, and n d d' where it widens.
    """
    tokens = model.grid[0] * model.grid[1]
    total = tokens * model.patch_embed.proj.weight.numel()
    for block in model.blocks:
        attn = block.attn
        left = tokens // POOL if attn.pool else tokens
        keys = POOL**attn.times if attn.local else tokens
        total += tokens * attn.qkv.weight.numel()
        total += 2 * left * keys * attn.proj.in_features
        total += left * attn.proj.weight.numel()
        total += left * (block.mlp.fc1.weight.numel() + block.mlp.fc2.weight.numel())
        if block.proj is not None:
            total += tokens * block.proj.weight.numel()
        tokens = left
    return total + (model.head.weight.numel() if model.num_classes else 0)


COLUMNS = ("embed_dim", "num_heads", "depths")
TABLE = {
    "tiny": (96, 1, (1, 2, 7, 2)),
    "small": (96, 1, (1, 2, 11, 2)),
    "base": (96, 1, (2, 3, 16, 3)),
    "base_plus": (112, 2, (2, 3, 16, 3)),
    "large": (144, 2, (2, 6, 36, 4)),
    "huge": (256, 4, (2, 6, 36, 4)),
}
VARIANTS: dict[str, dict] = {
    name: dict(zip(COLUMNS, row, strict=True)) for name, row in TABLE.items()
}
MODEL = Hiera

NAMES: dict[str, Rules] = {
    "official": [(r"^head\.projection\.", "head.")],
    "timm": [(r"^head\.norm\.", "norm."), (r"^head\.fc\.", "head.")],
}
