"""Swin: a transformer whose attention stays in windows, and whose windows move.

Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo, *Swin Transformer: Hierarchical Vision Transformer using
Shifted Windows*, ICCV 2021, arXiv 2103.14030.
Code: microsoft/Swin-Transformer; the reference outputs are from timm 1.0.31 (same computation;
timm keeps a stage's patch merging at the head of the next stage).

Patches of 4×4 pixels become tokens on a grid. Attention within windows of r×r tokens costs 2 n r² C
instead of 2 n² C. So that neighbours across a border meet, every second block shifts the windows by
⌊r/2⌋ tokens: the grid is rolled, attended and rolled back, and a mask keeps apart what the roll
brought together from opposite sides. Between stages, 2×2 tokens are merged into one of twice the
width.

    x ← x + WindowMHSA(LN(x)),   x ← x + MLP(LN(x))
    A = softmax(q kᵀ/√d + B[Δrow, Δcol] + mask)        B: a table of (2r−1)² entries per head

Where a grid is no larger than the window, there is one window, and nothing is shifted. Grids that
windows do not divide are padded with zeros right and bottom, after the roll; the padding is
attended to like any token. That is timm's way (the official classifier takes no such grids): a
padded and shifted map therefore does let a few tokens of opposite borders meet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import Block, init_weights
from refimpl.deploy import deploy
from refimpl.layers import (
    CrossAttention,
    Layout,
    PatchEmbed,
    Probe,
    attention,
    attention_map,
    drop_path_rates,
)
from refimpl.weights import Rules

MASKED = -100.0  # added to a logit: e⁻¹⁰⁰ is nothing, in half precision too


def offset_index(window: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Which entry of a bias table two tokens of a window share: (n, n) int64, n = rows · cols.

    (Δrow + rows − 1)·(2 cols − 1) + Δcol + cols − 1, where Δ is query minus key.
    """
    rows, cols = window
    token = torch.arange(rows * cols, device=device)
    row = token // cols
    col = token % cols
    down = row[:, None] - row + rows - 1
    right = col[:, None] - col + cols - 1
    return down * (2 * cols - 1) + right


def shift_mask(
    padded: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor:
    """0 where two tokens of a window were neighbours before the roll, else −100: (windows, n, n).

    padded: rows and columns of the grid that is cut into windows, row by row. Only the last row and
    column of windows hold tokens from both sides of the roll's seam.
    """
    wrapped_rows = torch.arange(padded[0], device=device) >= padded[0] - shift[0]
    wrapped_cols = torch.arange(padded[1], device=device) >= padded[1] - shift[1]
    if not shift[0]:
        wrapped_rows = torch.zeros_like(wrapped_rows)
    if not shift[1]:
        wrapped_cols = torch.zeros_like(wrapped_cols)
    side = 2 * wrapped_rows[:, None] + wrapped_cols  # of the seams, (rows, cols) in 0 … 3
    side = rearrange(side, "(i h) (j w) -> (i j) (h w)", h=window[0], w=window[1])
    return MASKED * (side[:, :, None] != side[:, None]).float()


def cut_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(b, h, w, c) -> (b · windows, n, c): windows row by row, and so the tokens of each."""
    return rearrange(x, "b (i y) (j x) c -> (b i j) (y x) c", y=window[0], x=window[1])


def stitch_windows(windows: Tensor, counts: tuple[int, int], height: int) -> Tensor:
    """The inverse of `cut_windows`. counts: rows and columns of windows; height: of one."""
    rows, cols = counts
    return rearrange(windows, "(b i j) (y x) c -> b (i y) (j x) c", i=rows, j=cols, y=height)


class WindowAttention(nn.Module):
    """Multi-head self-attention in windows: (b, h, w, dim) -> (b, h, w, dim).

    grid: h and w, fixed once built; window_size: side of a window, cut to the grid's; shifted:
    windows start half a window later, where there is more than one.
    """

    def __init__(
        self, dim: int, num_heads: int, grid: tuple[int, int], window_size: int, shifted: bool
    ):
        super().__init__()
        checks.heads(dim, num_heads)
        checks.at_least(1, window_size=window_size)
        self.num_heads = num_heads
        self.grid = rows, cols = grid
        self.window = min(window_size, rows), min(window_size, cols)
        half = window_size // 2 if shifted else 0
        self.shift = half * (rows > window_size), half * (cols > window_size)
        self.padding = -rows % self.window[0], -cols % self.window[1]
        height, width = self.window
        entries = (2 * height - 1) * (2 * width - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(entries, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        whole = self.window == grid
        side = height if height == width else self.window
        self.probe = Probe(Layout(grid) if whole else Layout(grid, window=side, shift=self.shift))

    def bias(self) -> Tensor:
        """What is added to the logits: (windows, heads, n, n), windows 1 where they are alike."""
        device = self.relative_position_bias_table.device
        bias = self.relative_position_bias_table[offset_index(self.window, device)]  # (n, n, heads)
        bias = bias.permute(2, 0, 1)[None]
        if not any(self.shift):
            return bias
        padded = self.grid[0] + self.padding[0], self.grid[1] + self.padding[1]
        mask = shift_mask(padded, self.window, self.shift, device)
        return bias + mask[:, None].to(bias.dtype)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.cut(x)
        bias = self.bias()
        # windows of one bias are a batch; windows with a mask each are taken for further heads
        q, k, v = rearrange(
            self.qkv(windows),
            "(b windows) n (three heads d) -> three b (windows heads) n d",
            three=3,
            heads=self.num_heads,
            windows=len(bias),
        )
        bias = bias.flatten(0, 1)
        self.probe(
            lambda: rearrange(
                attention_map(q, k, bias),
                "b (windows heads) n m -> (b windows) heads n m",
                heads=self.num_heads,
            )
        )
        y = attention(q, k, v, bias)
        y = rearrange(y, "b (windows heads) n d -> (b windows) n (heads d)", heads=self.num_heads)
        return self.stitch(self.proj(y))

    def cut(self, x: Tensor) -> Tensor:
        """Roll, pad and cut: (b, h, w, c) -> (b · windows, n, c), windows row by row."""
        if x.shape[1:3] != self.grid:
            raise ValueError(
                f"the map is {x.shape[1]}×{x.shape[2]}, this attention was built for a grid of"
                f" {self.grid[0]}×{self.grid[1]}"
            )
        if any(self.shift):
            x = x.roll((-self.shift[0], -self.shift[1]), (1, 2))
        if any(self.padding):
            x = F.pad(x, (0, 0, 0, self.padding[1], 0, self.padding[0]))
        return cut_windows(x, self.window)

    def stitch(self, windows: Tensor) -> Tensor:
        """The inverse of `cut`: (b · windows, n, c) -> (b, h, w, c)."""
        rows, cols = self.grid
        height, width = self.window
        down, right = (rows + self.padding[0]) // height, (cols + self.padding[1]) // width
        x = stitch_windows(windows, (down, right), height)
        x = x[:, :rows, :cols]
        if any(self.shift):
            x = x.roll(self.shift, (1, 2))
        return x


class OffsetAttention(CrossAttention):
    """`CrossAttention` of tokens on a grid to themselves, with a bias table as in a window.

    (b, n, dim) twice -> (b, n, dim), n = rows · cols of the grid.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], layout: Layout):
        super().__init__(dim, num_heads, layout)
        self.grid = grid
        entries = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(entries, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, queries: Tensor, others: Tensor, bias: None = None) -> Tensor:
        index = offset_index(self.grid, queries.device)  # (n, n)
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)
        return super().forward(queries, others, bias)


class PatchMerging(nn.Module):
    """2×2 tokens become one of twice the width: (b, h, w, dim) -> (b, ⌈h/2⌉, ⌈w/2⌉, 2 dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = rearrange(x, "b (h y) (w x) c -> b h w (x y c)", y=2, x=2)
        return self.reduction(self.norm(x))


class NormedPatchEmbed(PatchEmbed):
    """Patches, projected and normalised, as a map: (b, c, H, W) -> (b, h, w, embed_dim)."""

    def __init__(
        self, img_size: int | tuple[int, int], patch_size: int, in_chans: int, embed_dim: int
    ):
        super().__init__(img_size, patch_size, in_chans, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x)).unflatten(1, self.grid)


class Stage(nn.Module):
    """Blocks on one grid, then patch merging unless it is the last stage.

    (b, h, w, dim) -> (b, ⌈h/2⌉, ⌈w/2⌉, 2 dim), or the same shape without merging. drop_path_rates:
    one per block.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        window_size: int,
        mlp_ratio: float,
        drop_path_rates: list[float],
        merge: bool,
    ):
        super().__init__()
        self.blocks = nn.Sequential()
        for i, rate in enumerate(drop_path_rates):
            attn = WindowAttention(dim, num_heads, grid, window_size, shifted=i % 2 == 1)
            self.blocks.append(window_block(dim, attn, mlp_ratio, rate))
        self.downsample = PatchMerging(dim) if merge else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


def window_block(
    dim: int, attn: WindowAttention, mlp_ratio: float = 4.0, drop_path_rate: float = 0.0
) -> Block:
    """The plain Transformer block with attention in windows: (b, h, w, dim) -> (b, h, w, dim)."""
    return Block(dim, attn.num_heads, mlp_ratio, True, drop_path_rate, norm_eps=1e-5, attn=attn)


class SwinTransformer(nn.Module):
    """Images (b, in_chans, *img_size) -> logits (b, num_classes).

    img_size: pixels, a multiple of patch_size, one number for a square or (height, width); fixed
    once built. depths, num_heads: one entry per stage; widths are embed_dim · 2^stage.
    num_classes: 0 leaves the classifier out and gives pooled features. drop_path_rate: of the last
    block; it rises linearly from 0 in the first.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.same_length(depths=tuple(depths), num_heads=tuple(num_heads))
        checks.at_least(1, in_chans=in_chans, embed_dim=embed_dim, depths=tuple(depths))
        checks.integer(0, num_classes=num_classes)
        checks.positive(mlp_ratio=mlp_ratio)
        checks.fraction(drop_path_rate=drop_path_rate)
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.patch_embed = NormedPatchEmbed(img_size, patch_size, in_chans, embed_dim)
        rates = drop_path_rates(drop_path_rate, sum(depths))
        self.layers = nn.Sequential()
        dim = embed_dim
        grid = self.patch_embed.grid
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            last = i == len(depths) - 1
            begin = sum(depths[:i])
            stage_rates = rates[begin : begin + depth]
            self.layers.append(
                Stage(dim, heads, grid, window_size, mlp_ratio, stage_rates, merge=not last)
            )
            if not last:
                dim = 2 * dim
                grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map after the final norm: (b, h, w, embed_dim · 2^(stages − 1))."""
        return self.norm(self.layers(self.patch_embed(images)))

    def forward_head(self, x: Tensor) -> Tensor:
        """Logits from the last map: its mean, then the classifier."""
        return self.head(x.mean((1, 2)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> SwinTransformer:
        """A copy for inference, equal but for rounding: biases and masks are stored as one."""
        return deploy(self)


COMPUTED = r"(^|\.)(relative_position_index|attn_mask)$"  # buffers of the official code

NAMES: dict[str, Rules] = {
    "official": [(COMPUTED, None)],
    "timm": [
        (COMPUTED, None),
        (r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"),
        (r"^head\.fc\.", "head."),
    ],
}

COLUMNS = ("embed_dim", "depths", "num_heads")
TABLE = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
LARGER = dict(img_size=384, window_size=12)
VARIANTS: dict[str, dict] = {
    name: dict(zip(COLUMNS, row, strict=True)) for name, row in TABLE.items()
}
VARIANTS["base_384"] = VARIANTS["base"] | LARGER
VARIANTS["large_384"] = VARIANTS["large"] | LARGER
MODEL = SwinTransformer
