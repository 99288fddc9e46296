"""LookupViT: a few compressed tokens think, and look things up among all.

Koner, Jain, Jain, Tresp, Paul, *LookupViT: Compressing visual information to a limited number of
tokens*, ECCV 2024, arXiv 2407.12753. **No official code was released.** The block below is our
reading of the method; it agrees with the abstract's cost and, where they agree with each other,
with two re-implementations: lucidrains/vit-pytorch, commit
69d24fe9e3024c0d4b02761123b8583a24ebed1e, and lokiwizard/LookupViT_Reproduction, commit
0e4327acafc670af15b8e8dc38bfc06588bdec36. Assumptions are marked [A].

The idea
    1. The patches of an image are *lookup tokens* L (n, c): many, and treated lightly.
    2. The same grid, resized to k × k, gives *compressed tokens* P (m, c), m = k²: these think.
    3. Gather: compressed tokens ask all lookup tokens (cross-attention).
    4. Refine: plain attention and MLP among the m compressed tokens alone.
    5. Scatter: what they found goes back, through the same scores read the other way; then a thin
       MLP on the lookup tokens. No weight depends on k, so one model serves several k.

With P₀ = resize(X + E) from patches X and positions E, L₀ = X + E, and per head of width d:

    S  = LN(P) W_q (LN(L) W_k)ᵀ / √d              scores (m, n), computed once
    P ← P + softmax_n(S) LN(L) W_v W_o            gather: each row of S sums to one
    P ← P + MHSA(LN P),  P ← P + MLP(LN P)        refine
    L ← L + softmax_m(Sᵀ) LN(P) U_v U_o           scatter: no new queries, no new keys
    L ← L + mlp(LN L)                             light: inner width c/2

Multiply-adds of a block: (3nm + 2m²) c + (4n + 15m) c²; a ViT block takes 2n² c + 12n c².
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import SIZES, Block, check_transformer, init_weights
from refimpl.deploy import deploy
from refimpl.layers import Layout, Mlp, PatchEmbed, Probe

POOLS = ("compressed", "both")
THIN = 2  # by how much the MLP of the lookup tokens is narrower than they are: q of the cost


def look_up(
    compressed: Tensor,
    lookup: Tensor,
    gather: Gather,
    refine: nn.Module,
    scatter: Scatter | None,
) -> tuple[Tensor, Tensor]:
    """Read, think, write back: P (b, m, c) and L (b, n, c) -> the two, changed."""
    queries, keys, values = gather(compressed, lookup)  # (b, heads, m, d), then n, d twice
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5  # S: (b, heads, m, n)
    reading = scores.softmax(-1)  # a row: where one compressed token looks
    compressed = compressed + gather.collect(reading, values)
    compressed = refine(compressed)  # m tokens among themselves
    if scatter is None:  # the last block: nobody asks its lookup tokens again
        return compressed, lookup
    writing = scores.mT.softmax(-1) if scatter.renormalise else reading.mT  # (b, heads, n, m)
    lookup = lookup + scatter.collect(writing, scatter(compressed))
    return compressed, lookup


class Exchange(nn.Module):
    """What gather and scatter share: heads, a norm of the compressed tokens, the weighted sum."""

    def __init__(self, dim: int, num_heads: int, layout: Layout | None = None):
        super().__init__()
        checks.heads(dim, num_heads)
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, dim)
        self.probe = Probe(layout)

    def split(self, x: Tensor) -> Tensor:
        """(b, n, heads · d) -> (b, heads, n, d)"""
        return rearrange(x, "b n (heads d) -> b heads n d", heads=self.num_heads)

    def collect(self, weights: Tensor, values: Tensor) -> Tensor:
        """Weighted sums, heads joined: (b, heads, n, m), (b, heads, m, d) -> (b, n, dim)."""
        self.probe(lambda: weights)
        return self.proj(rearrange(weights @ values, "b heads n d -> b n (heads d)"))


class Gather(Exchange):
    """Compressed tokens ask lookup tokens: (b, m, dim), (b, n, dim) -> queries, keys, values."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__(dim, num_heads)
        self.norm_lookup = nn.LayerNorm(dim, eps=1e-6)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(self, compressed: Tensor, lookup: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries = self.split(self.q(self.norm(compressed)))
        keys, values = self.kv(self.norm_lookup(lookup)).chunk(2, dim=-1)
        return queries, self.split(keys), self.split(values)


class Scatter(Exchange):
    """What compressed tokens give back: (b, m, dim) -> values (b, heads, m, d).

    renormalise: whether lookup tokens weigh them by a softmax of their own [A], so that each takes
    a mean; otherwise by the transposed weights of the gather, whose rows do not sum to one.
    """

    def __init__(
        self, dim: int, num_heads: int, renormalise: bool = True, layout: Layout | None = None
    ):
        super().__init__(dim, num_heads, layout)
        self.renormalise = renormalise
        self.v = nn.Linear(dim, dim)

    def forward(self, compressed: Tensor) -> Tensor:
        return self.split(self.v(self.norm(compressed)))


class Light(nn.Module):
    """The thin residual MLP of the lookup tokens: (b, n, dim) -> (b, n, dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, dim // THIN)

    def forward(self, lookup: Tensor) -> Tensor:
        return lookup + self.mlp(self.norm(lookup))


class LookupBlock(nn.Module):
    """One block: (b, m, dim), (b, n, dim) -> the same two.

    writes: whether it has scatter and light; layout: where compressed tokens lie for lookup tokens.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        writes: bool = True,
        renormalise: bool = True,
        layout: Layout | None = None,
    ):
        super().__init__()
        self.gather = Gather(dim, num_heads)
        inner = Layout(layout.key_grid) if layout else None
        self.refine = Block(dim, num_heads, mlp_ratio, layout=inner)
        self.scatter = Scatter(dim, num_heads, renormalise, layout) if writes else None
        self.light = Light(dim) if writes else nn.Identity()

    def forward(self, compressed: Tensor, lookup: Tensor) -> tuple[Tensor, Tensor]:
        compressed, lookup = look_up(compressed, lookup, self.gather, self.refine, self.scatter)
        return compressed, self.light(lookup)


def resize_weights(size: int, count: int, antialias: bool = True) -> Tensor:
    """How `count` samples mix `size` values, bilinear with half-pixel centres: (count, size) float.

    Each sample weighs values by a triangle around its place, one value wide to either side, or
    `size/count` wide where that is more (antialias): then none is passed over. Rows sum to one.
    """
    step = size / count
    reach = max(step, 1.0) if antialias else 1.0
    places = ((torch.arange(count) + 0.5) * step - 0.5).clamp(0, size - 1)
    distance = (torch.arange(size) - places[:, None]).abs()
    triangle = (1 - distance / reach).clamp(min=0)
    return triangle / triangle.sum(1, keepdim=True)


def resize_tokens(
    tokens: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], antialias: bool = True
) -> Tensor:
    """Tokens of a grid, row by row, on another grid: (b, h · w, c) -> (b, h' · w', c)."""
    rows, columns = (
        resize_weights(size, count, antialias).to(tokens)
        for size, count in zip(grid, new_grid, strict=True)
    )
    return torch.kron(rows, columns) @ tokens


class LookupViT(nn.Module):
    """Images (b, in_chans, *img_size) -> logits (b, num_classes).

    side: compressed tokens along one side, so side² in all; every call may choose another
        (`forward(images, side=3)`), as no weight depends on it.
    pool: what is classified: the mean of the "compressed" tokens [A] (then nobody reads what the
        last block would write back, and it has no scatter and no light), or, added to it, that of
        the lookup tokens ("both", as vit-pytorch has it).
    renormalise: see `Scatter`. There is no class token [A].
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        side: int = 5,
        pool: str = "compressed",
        renormalise: bool = True,
    ):
        super().__init__()
        check_transformer(depth, num_classes, in_chans, mlp_ratio, drop_path_rate=0.0)
        checks.at_least(THIN, embed_dim=embed_dim)
        checks.choice("pool", pool, POOLS)
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.grid = rows, columns = self.patch_embed.grid
        self.check_side(side)
        self.side, self.pool = side, pool
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns, embed_dim))
        layout = Layout(self.grid, key_grid=(side, side))
        self.blocks = nn.ModuleList()
        for i in range(depth):
            writes = pool == "both" or i < depth - 1
            block = LookupBlock(embed_dim, num_heads, mlp_ratio, writes, renormalise, layout)
            self.blocks.append(block)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def check_side(self, side: int) -> None:
        checks.integer(1, side=side)
        rows, columns = self.grid
        if side > min(self.grid):
            raise ValueError(
                f"side={side} must be at most {min(self.grid)}: there are {rows}×{columns} lookup"
                " tokens to compress"
            )

    def streams(self, images: Tensor, side: int | None = None) -> tuple[Tensor, Tensor]:
        """Compressed and lookup tokens after the last block: (b, side², c), (b, n, c).

        side: the model's own unless given. Raises `ValueError` where it is larger than the grid.
        """
        side = self.side if side is None else side
        self.check_side(side)
        lookup = self.patch_embed(images) + self.pos_embed  # L₀
        compressed = resize_tokens(lookup, self.grid, (side, side))  # P₀
        for block in self.blocks:
            compressed, lookup = block(compressed, lookup)
        return compressed, lookup

    def forward_features(self, images: Tensor, side: int | None = None) -> Tensor:
        """Tokens after the final norm: (b, side², c); with pool="both", lookup tokens follow."""
        compressed, lookup = self.streams(images, side)
        tokens = compressed if self.pool == "compressed" else torch.cat([compressed, lookup], 1)
        return self.norm(tokens)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Logits from what `forward_features` gives: (b, tokens, c) -> (b, num_classes)."""
        if self.pool == "compressed":
            return self.head(tokens.mean(1))
        n = self.grid[0] * self.grid[1]
        return self.head(tokens[:, :-n].mean(1) + tokens[:, -n:].mean(1))

    def forward(self, images: Tensor, side: int | None = None) -> Tensor:
        return self.forward_head(self.forward_features(images, side))

    def fuse(self) -> LookupViT:
        """A copy for inference; it takes any `side`, too."""
        return deploy(self)


def multi_resolution_loss(
    model: LookupViT, images: Tensor, labels: Tensor, sides: tuple[int, ...] = (3, 5, 7, 10)
) -> Tensor:
    """Cross-entropy of one step at a number of compressed tokens drawn for it: a scalar.

    sides: each as likely, drawn from PyTorch's generator; the default is for 14×14 lookup tokens
    [A]. As the `loss` of `lab.train.fit` it makes one model that serves all of them.
    """
    checks.at_least(1, sides=sides, **{"len(sides)": len(sides)})
    side = sides[int(torch.randint(len(sides), ()))]
    return F.cross_entropy(model(images, side), labels)


def lookup_macs(lookup: int, compressed: int, dim: int, depth: int = 1, mlp_ratio: float = 4.0):
    """Multiply-adds of `depth` whole blocks for one image of `lookup` tokens, line by line."""
    n, m, c = lookup, compressed, dim
    gather = (2 * m + 2 * n) * c**2 + 2 * n * m * c  # queries, output; keys, values; two products
    refine = 4 * m * c**2 + 2 * m**2 * c + int(2 * mlp_ratio * m * c**2)
    scatter = (m + n) * c**2 + n * m * c  # values, output; one product, as scores are there
    light = 2 * n * c * (c // THIN)
    return depth * (gather + refine + scatter + light)


def vit_macs(tokens: int, dim: int, depth: int = 1, mlp_ratio: float = 4.0) -> int:
    """Multiply-adds of `depth` blocks of a plain Vision Transformer for one image."""
    n, c = tokens, dim
    return depth * (4 * n * c**2 + 2 * n**2 * c + int(2 * mlp_ratio * n * c**2))


VARIANTS: dict[str, dict] = SIZES | {"large": dict(embed_dim=1024, depth=24, num_heads=16)}
MODEL = LookupViT
