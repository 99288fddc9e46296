"""STViT: semantic tokens in the place of image tokens.

Chang, Wang, Lin, Wang, Zhang, Jin, Shou, *Making Vision Transformers Efficient from A Token
Sparsification View*, CVPR 2023, arXiv 2303.08685. Official code: changsn/STViT-R, commit
b4a27a07fc282198466b3b688ebecc6f146cc9fd (MIT), and changsn/STViT-R-Object-Detection, commit
45bc2b655a608a8b8f693fa7c3bfedc484af8a03. Both hold STViT-R on Swin; STViT on DeiT was never
released, and `STViT` below is our reading of the text.

The idea
    1. After a few layers most image tokens repeat their neighbours.
    2. So let a few *semantic tokens* stand for all, like cluster centres: they start as the pooled
       maximum of a cell, and ask the image twice by attention (a soft step of k-means).
    3. Later layers work on these few tokens alone: that is STViT.
    4. Where places matter (detection), the image tokens ask the semantic tokens back: *recovery*.
       Generate, think, recover, and again: that is STViT-R.

With image tokens X (n, c), seeds P = maxpool(X) (k, c), learned centres G (k, c), MHA(a, b) with
queries from a, keys and values from b, and one norm for both:

    S  = [P +] γ₁ MHA(P, [P; near X]) + γ₂ MLP(…)     first generation layer, window by window
    S' = CrossBlock(S [+ G], [S; X])                   second, over the whole image
    S' ← CrossBlock(S', S')                            self-attention among k tokens
    X' = CrossBlock(X, S')                             recovery
    CrossBlock(a, b):  z = a + γ₁ MHA(a, b),  out = z + γ₂ MLP(z)

Multiply-adds of a cross layer of k queries and m keys: 2 k c² + 2 m c² + 2 k m c + 8 k c².
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases import swin
from refimpl.bases.deit import Block, VisionTransformer, init_weights
from refimpl.bases.swin import OffsetAttention, cut_windows, stitch_windows
from refimpl.layers import ConvNorm, CrossAttention, Layout, Probe
from refimpl.weights import Rules

GROUP = 6  # blocks of a group of STViT-R
FAR = -1000.0  # added to the logits of padding in the detection form


def semantic_tokens(
    image: Tensor,
    first: CrossBlock,
    second: CrossBlock,
    window: tuple[int, int],
    sample_size: int,
    learned: Tensor | None = None,
) -> Tensor:
    """Centres that have asked the image twice: (b, h, w, c) -> (b, k, c).

    k = sample_size² for every window of the image, in the order of the grid of centres.
    """
    rows = image.shape[1] // window[0]
    cols = image.shape[2] // window[1]
    windows = rearrange(image, "b (i y) (j x) c -> (b i j) c y x", y=window[0], x=window[1])
    seeds = spatial_pool(windows, sample_size)  # P: (b·windows, s², c)
    keys = torch.cat([seeds, key_windows(image, window)], dim=1)  # [P; near X]
    tokens = first.ask(seeds, keys)  # S, window by window: a soft step of k-means
    tokens = rearrange(tokens, "(b i j) (y x) c -> b (i y j x) c", i=rows, j=cols, y=sample_size)
    tokens = first.think(tokens)
    queries = tokens if learned is None else tokens + learned  # S + G
    everything = torch.cat([tokens, image.flatten(1, 2)], dim=1)  # [S; X]: (b, k + n, c)
    return second(queries, everything)  # S': a centre may move anywhere in the image


def spatial_pool(windows: Tensor, sample_size: int) -> Tensor:
    """The maximum of every cell: (windows, c, y, x) -> (windows, sample_size², c).

    Cells overlap where they do not divide the window: 7 tokens make cells 0–2, 2–4 and 4–6.
    """
    return F.adaptive_max_pool2d(windows, sample_size).flatten(2).transpose(1, 2)


def key_windows(image: Tensor, window: tuple[int, int]) -> Tensor:
    """What the seeds of each window may look at: (b, h, w, c) -> (b · windows, m, c).

    Windows grow by half their size, spread evenly over the image so that none leaves it: 7 becomes
    10, and on 14 tokens they start at 0 and 4.
    """
    places = []
    for size, side in zip(image.shape[1:3], window, strict=True):
        count = size // side
        larger = min(side + side // 2, size)
        starts = torch.arange(count, device=image.device) * (size - larger) // max(count - 1, 1)
        places.append(starts[:, None] + torch.arange(larger, device=image.device))
    rows, cols = places  # (i, y) and (j, x)
    windows = image[:, rows][:, :, :, cols]  # (b, i, y, j, x, c)
    return rearrange(windows, "b i y j x c -> (b i j) (y x) c")


class CrossBlock(Block):
    """Tokens ask others, then think: (b, k, dim), (b, m, dim) -> (b, k, dim).

    z = a + γ₁ MHA(LN₁ a, LN₁ b), out = z + γ₂ MLP(LN₂ z). shortcut: False leaves out "a +".
    """

    def __init__(
        self,
        dim: int,
        attn: CrossAttention,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        shortcut: bool = True,
    ):
        super().__init__(dim, attn.num_heads, mlp_ratio, True, drop_path_rate, 1e-5, attn)
        self.shortcut = shortcut
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), 1e-5))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), 1e-5))

    def ask(self, queries: Tensor, others: Tensor, mask: Tensor | None = None) -> Tensor:
        answers = self.layer_scale_1 * self.attn(self.norm1(queries), self.norm1(others), mask)
        return queries + self.drop_path(answers) if self.shortcut else answers

    def think(self, tokens: Tensor) -> Tensor:
        return tokens + self.drop_path(self.layer_scale_2 * self.mlp(self.norm2(tokens)))

    def forward(self, queries: Tensor, others: Tensor) -> Tensor:
        return self.think(self.ask(queries, others))


class SemanticStage(nn.Module):
    """A stage of STViT-R: in groups of six blocks, few tokens do the work.

    (b, h, w, dim) -> the same shape, or (b, ⌈h/2⌉, ⌈w/2⌉, 2 dim) where `stage` merges. Of a group,
    block 0 is Swin's, without shift; 1 and 2 generate semantic tokens; 3 and 4 are their
    self-attention, within one window's tokens and then among all; in 5 the image tokens ask the
    semantic tokens. Only 0 and 5 write to the image.

    stage: of Swin, whose other blocks are replaced; learned_tokens: centres that are added to the
    queries of the first group's second layer; shortcut: the seeds stay in the residual path;
    relative_pos: bias tables in 3 and 4.
    """

    takes_padding = False

    def __init__(
        self,
        stage: swin.Stage,
        sample_size: int = 3,
        learned_tokens: bool = False,
        shortcut: bool = False,
        relative_pos: bool = False,
    ):
        super().__init__()
        checks.multiple(GROUP, "the blocks of a group", depth=len(stage.blocks))
        plain = stage.blocks[0].attn
        self.grid, self.window, self.padding = plain.grid, plain.window, plain.padding
        checks.pooling(sample_size, self.window)
        if any(self.padding) and not self.takes_padding:
            raise ValueError(
                f"windows of {self.window[0]}×{self.window[1]} must divide the grid of"
                f" {self.grid[0]}×{self.grid[1]} tokens that img_size and window_size give"
            )
        dim = plain.proj.in_features
        rows, cols = (-(-size // side) for size, side in zip(self.grid, self.window, strict=True))
        self.counts = rows, cols  # of windows
        self.sample_size = sample_size
        self.centres = rows * sample_size, cols * sample_size
        self.learned_tokens = None
        if learned_tokens:
            self.learned_tokens = nn.Parameter(torch.zeros(1, rows * cols * sample_size**2, dim))
            nn.init.trunc_normal_(self.learned_tokens, std=0.02)
        layouts = {3: Layout(self.centres, window=sample_size), 4: Layout(self.centres)}
        layouts[5] = Layout(self.grid, key_grid=self.centres)
        tables = {3: (sample_size, sample_size), 4: self.centres} if relative_pos else {}
        self.blocks = nn.ModuleList()
        for i, block in enumerate(stage.blocks):
            place = i % GROUP
            layout = layouts.get(place)
            if place in tables:
                attn = OffsetAttention(dim, plain.num_heads, tables[place], layout)
            else:
                attn = CrossAttention(dim, plain.num_heads, layout)
            if place:
                keep = shortcut or place > 1
                ratio = block.mlp.fc1.out_features / dim
                block = CrossBlock(dim, attn, ratio, block.drop_path.p, keep)
            self.blocks.append(block)
        self.downsample = stage.downsample

    def forward(self, x: Tensor) -> Tensor:
        learned = self.learned_tokens
        for g in range(0, len(self.blocks), GROUP):
            plain, first, second, local, whole, recover = self.blocks[g : g + GROUP]
            x = plain(x)
            tokens = self.generate(x, first, second, learned)
            tokens = self.within_windows(tokens, local)
            tokens = whole(tokens, tokens)
            x = self.recover(x, tokens, recover)
            learned = None
        return self.downsample(x)

    def generate(
        self, image: Tensor, first: CrossBlock, second: CrossBlock, learned: Tensor | None
    ) -> Tensor:
        """Semantic tokens: (b, h, w, c) -> (b, k, c)."""
        return semantic_tokens(image, first, second, self.window, self.sample_size, learned)

    def within_windows(self, tokens: Tensor, local: CrossBlock) -> Tensor:
        """Self-attention among the tokens of one window each: (b, k, c) -> (b, k, c)."""
        windows = cut_windows(tokens.unflatten(1, self.centres), (self.sample_size,) * 2)
        windows = local(windows, windows)
        return stitch_windows(windows, self.counts, self.sample_size).flatten(1, 2)

    def recover(self, image: Tensor, tokens: Tensor, block: CrossBlock) -> Tensor:
        """The image, which has asked the tokens: (b, h, w, c), (b, k, c) -> (b, h, w, c)."""
        return block(image.flatten(1, 2), tokens).unflatten(1, self.grid)


class DetectionStage(SemanticStage):
    """The stage as the detection backbone has it, for maps of any size; all look around themselves:

    seeds at 14×14 image tokens, the second layer at 21×21, image tokens at 27×27 semantic tokens.
    Seeds are not among the keys and stay in the residual path.
    """

    takes_padding = True

    def __init__(self, stage: swin.Stage, sample_size: int = 3):
        super().__init__(stage, sample_size, shortcut=True)

    def generate(self, image, first, second, learned):
        side = self.window[0]
        image = F.pad(image, (0, 0, 0, self.padding[1], 0, self.padding[0]))
        windows = cut_windows(image, self.window).unflatten(1, self.window)
        seeds = spatial_pool(windows.permute(0, 3, 1, 2), self.sample_size)
        tokens = first.think(self.ask_around(first, seeds, image, side, 2 * side))
        seeds = cut_windows(tokens, (self.sample_size, self.sample_size))
        return second.think(self.ask_around(second, seeds, image, side, 3 * side)).flatten(1, 2)

    def recover(self, image, tokens, block):
        side = self.sample_size
        image = F.pad(image, (0, 0, 0, self.padding[1], 0, self.padding[0]))
        tokens = tokens.unflatten(1, self.centres)
        image = self.ask_around(block, cut_windows(image, self.window), tokens, side, 9 * side)
        return block.think(image[:, : self.grid[0], : self.grid[1]])

    def ask_around(
        self, block: CrossBlock, windows: Tensor, others: Tensor, side: int, reach: int
    ) -> Tensor:
        """Windows (b · windows, n, c) that ask reach² of the others around them, as a map.

        others: (b, rows, cols, c), `side`² to a window. The mask is the official one. It means the
        padding, but of padded rows and columns it covers the corner alone, and everything where
        there are none: all logits then are as low, and zeros beyond the border are looked at.
        """
        before = (reach - side) // 2
        around = (before, reach - side - before) * 2
        mask = others.new_zeros(others.shape[:3])
        mask[:, -self.padding[0] :, -self.padding[1] :] = FAR
        mask = F.pad(mask, around, value=FAR).unfold(1, reach, side).unfold(2, reach, side)
        keys = F.pad(others, (0, 0, *around)).unfold(1, reach, side).unfold(2, reach, side)
        keys = rearrange(keys, "b i j c y x -> (b i j) (y x) c")
        mask = rearrange(mask, "b i j y x -> (b i j) 1 1 (y x)")
        n = windows.shape[1]
        answers = block.ask(windows, keys, mask.expand(-1, -1, n, -1))
        return stitch_windows(answers, self.counts, round(n**0.5))


class STViTR(swin.SwinTransformer):
    """STViT-R on Swin: images (b, in_chans, *img_size) -> logits (b, num_classes).

    Swin with a stem of two convolutions, whose third stage is a `SemanticStage`; arguments as
    there and in `SwinTransformer`. sample_size: semantic tokens along one side of a window.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        sample_size: int = 3,
        learned_tokens: bool = False,
        shortcut: bool = False,
        relative_pos: bool = False,
    ):
        checks.multiple(2, "the stem starts at half of it", embed_dim=embed_dim)
        sizes = (embed_dim, depths, num_heads, window_size, mlp_ratio, drop_path_rate)
        super().__init__(img_size, 4, in_chans, num_classes, *sizes)
        checks.at_least(3, stages=len(depths))
        self.size = self.patch_embed.img_size
        half = ConvNorm(in_chans, embed_dim // 2, 3, stride=2)
        full = ConvNorm(embed_dim // 2, embed_dim, 3, stride=2)
        self.patch_embed = nn.Sequential(half, nn.Hardswish(), full, nn.Hardswish())
        options = (sample_size, learned_tokens, shortcut, relative_pos)
        self.layers[2] = SemanticStage(self.layers[2], *options)
        self.layers[2].apply(init_weights)

    def forward_features(self, images: Tensor) -> Tensor:
        checks.image(images, self.in_chans, self.size)
        x = self.patch_embed(images).permute(0, 2, 3, 1)  # (b, h, w, embed_dim)
        return self.norm(self.layers(x))


class STViT(VisionTransformer):
    """STViT on DeiT, our reading: images (b, in_chans, *img_size) -> logits (b, num_classes).

    `dense_depth` plain blocks on all patches, two layers that generate sample_size² semantic tokens
    for the whole image, and blocks on these alone; their mean is classified, there is no class
    token. Two layers at place 4 of 12 give the multiply-adds that the abstract claims.
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
        dense_depth: int = 4,
        sample_size: int = 4,
        drop_path_rate: float = 0.0,
    ):
        sizes = (embed_dim, depth, num_heads, mlp_ratio)
        super().__init__(
            img_size, patch_size, in_chans, num_classes, *sizes, drop_path_rate=drop_path_rate
        )
        checks.at_least(0, dense_depth=dense_depth)
        checks.at_least(dense_depth + 2, depth=depth)
        self.grid = rows, cols = self.patch_embed.grid
        checks.pooling(sample_size, self.grid)
        self.dense_depth, self.sample_size = dense_depth, sample_size
        self.cls_token = None
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * cols, embed_dim))
        self.learned_tokens = nn.Parameter(torch.zeros(1, sample_size**2, embed_dim))
        for i, block in enumerate(self.blocks):
            if dense_depth <= i < dense_depth + 2:
                attn = CrossAttention(embed_dim, num_heads)
                self.blocks[i] = CrossBlock(embed_dim, attn, mlp_ratio, block.drop_path.p)
            else:
                grid = self.grid if i < dense_depth else (sample_size, sample_size)
                block.attn.probe = Probe(Layout(grid))
        self.blocks.apply(init_weights)
        for table in (self.pos_embed, self.learned_tokens):
            nn.init.trunc_normal_(table, std=0.02)

    def forward_features(self, images: Tensor) -> Tensor:
        """Semantic tokens after the final norm: (b, sample_size², embed_dim)."""
        begin = self.dense_depth
        x = self.patch_embed(images) + self.pos_embed
        for block in self.blocks[:begin]:
            x = block(x)
        first, second = self.blocks[begin : begin + 2]
        image, learned = x.unflatten(1, self.grid), self.learned_tokens
        tokens = semantic_tokens(image, first, second, self.grid, self.sample_size, learned)
        for block in self.blocks[begin + 2 :]:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Logits from semantic tokens: (b, k, embed_dim) -> (b, num_classes)."""
        return self.head(tokens.mean(1))


def cross_macs(queries: int, others: int, dim: int, mlp_ratio: float = 4.0) -> int:
    """Multiply-adds of a `CrossBlock` for one image: projections, the two products, MLP."""
    projections = 2 * queries * dim**2 + 2 * others * dim**2
    return projections + 2 * queries * others * dim + int(2 * mlp_ratio * queries * dim**2)


def create(backbone: str, **kwargs) -> STViT | STViTR:
    """`STViT` on "deit", `STViTR` on "swin", with these arguments."""
    kinds = {"deit": STViT, "swin": STViTR}
    checks.choice("backbone", backbone, kinds)
    return kinds[backbone](**kwargs)


NAMES: dict[str, Rules] = {
    "official": [
        *swin.NAMES["official"],
        (r"(^|\.)semantic_token2$", r"\1learned_tokens"),
        (r"(^|\.)c\.", r"\1conv."),
        (r"(^|\.)bn\.", r"\1norm."),
        (r"^patch_embed\.proj\.", "patch_embed."),
    ],
}
VARIANTS: dict[str, dict] = {
    f"deit_{name}": dict(backbone="deit", embed_dim=64 * heads, num_heads=heads)
    for name, heads in (("tiny", 3), ("small", 6), ("base", 12))
}
VARIANTS |= {
    f"r_swin_{name}": dict(backbone="swin") | swin.VARIANTS[name]
    for name in ("tiny", "small", "base")
}
MODEL = create
