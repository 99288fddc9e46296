"""MedViTV2: windows that never lose a key, and layers of fixed bumps in place of the MLP.

Nejati Manzari, Asgariandehkordi, Koleilat, Xiao, Rivaz, *Medical Image Classification with
KAN-Integrated Transformers and Dilated Neighborhood Attention*, Applied Soft Computing 2025, arXiv
2502.13693. Official code: Omid-Nejati/MedViTV2, commit 8d54f66 (MIT), on top of NATTEN 0.17 and
FasterKAN. Nothing here is medical advice.

The idea
    1. Each token attends to the k × k around it, with dilation δ to every δ-th. At a border the
       window is shifted inwards, so that every softmax runs over equally many keys.
    2. Global blocks attend to pooled tokens, as in Next-ViT.
    3. In place of an MLP, each coordinate goes through 8 bumps, and a linear layer reads these: a
       sum of learned functions of one coordinate each (a "KAN").

On one axis of length L, for the query at i with r = i mod δ, p = ⌊i/δ⌋ and n = ⌈(L − r)/δ⌉:

    start  s = clamp(p − ⌊k/2⌋, 0, n − k)              needs k·δ ≤ L
    keys   {(s + a)·δ + r : a = 0 … k − 1}             in two dimensions the product of both axes
    A      = softmax(q kᵀ / √d + B[key's p − query's p])
    KAN    y_o = Σ_i Σ_j W[o, 8i + j] · sech²((LN(x)_i − g_j) / 0.33),   g = −2 … 2 in 8 steps

The released code, and its weights (`layout="official"`), make tokens of a map by a reshape that
leaves the channel axis where it is: a token is C consecutive numbers of one channel, and no place.
`layout="permuted"` is what the text describes. The released network has no dilation (1).

Multiply-adds for N tokens of width C: attention 4·N·C² + 2·N·C·k², a KAN C → 2C → C 32·N·C².
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases import nextvit
from refimpl.deploy import deploy
from refimpl.kernels.neighbourhood_attention import check_window
from refimpl.layers import ConvNorm, DropPath, Layout, Probe, drop_path_rates
from refimpl.weights import Rules

BUMPS = 8  # of a KAN layer, for each coordinate
BUMP_WIDTH = 0.33


def neighbours(length: int, window_size: int, dilation: int = 1, device=None) -> Tensor:
    """Which keys each query of an axis sees: positions (length, window_size), in rising order."""
    check_window((length,), (window_size,), (dilation,))
    position = torch.arange(length, device=device)
    residue = position % dilation  # r: tokens of another remainder are never seen
    place = position // dilation  # p: place among those of the same remainder
    count = (length - residue + dilation - 1) // dilation  # n: how many those are
    start = (place - window_size // 2).clamp(min=0).minimum(count - window_size)  # s
    places = start[:, None] + torch.arange(window_size, device=device)
    return places * dilation + residue[:, None]


def neighbourhood_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    window_size: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What each token finds in its window, (b, heads, h, w, d), with what weights (…, h, w, k²).

    queries, keys, values: (b, heads, h, w, d); bias: (heads, 2·window − 1, 2·window − 1).
    """
    height, width, d = queries.shape[2:]
    rows = neighbours(height, window_size[0], dilation[0], queries.device)  # (h, k)
    columns = neighbours(width, window_size[1], dilation[1], queries.device)  # (w, k)
    window = rows[:, None, :, None], columns[None, :, None, :]  # together (h, w, k, k)
    near_keys = keys[:, :, window[0], window[1]].flatten(4, 5)  # (b, heads, h, w, k², d)
    near_values = values[:, :, window[0], window[1]].flatten(4, 5)
    logits = near_keys @ queries[..., None] / d**0.5  # q kᵀ / √d: (b, heads, h, w, k², 1)
    if bias is not None:  # B: a number for each distance, counted in steps of the dilation
        logits = logits + window_bias(bias, rows, columns, dilation)[..., None]
    attention = logits.squeeze(5).softmax(dim=4)  # over the k² keys of a window
    return (attention[..., None, :] @ near_values).squeeze(4), attention


def window_bias(bias: Tensor, rows: Tensor, columns: Tensor, dilation: tuple[int, int]) -> Tensor:
    """What a table (heads, 2k − 1, 2k − 1) adds to the logits of each window: (heads, h, w, k²)."""
    steps = []
    for keys, step in zip((rows, columns), dilation, strict=True):
        query = torch.arange(len(keys), device=keys.device)[:, None]
        steps.append(keys // step - query // step + keys.shape[1] - 1)  # 0 … 2k − 2
    return bias[:, steps[0][:, None, :, None], steps[1][None, :, None, :]].flatten(3, 4)


def bumps(x: Tensor, grid: Tensor, width: float = BUMP_WIDTH) -> Tensor:
    """sech²((x − g) / width) = 1 − tanh² for each grid point g: (…) -> (…, bumps)."""
    return 1 - torch.tanh((x[..., None] - grid) * (1 / width)) ** 2


class KANLayer(nn.Module):
    """A learned function of each coordinate, summed: (…, in_dim) -> (…, out_dim).

    The bumps are fixed and shared. They cover −2 … 2, where a layer norm puts most coordinates.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        checks.integer(1, in_dim=in_dim, out_dim=out_dim)
        self.norm = nn.LayerNorm(in_dim)
        self.grid = nn.Parameter(torch.linspace(-2, 2, BUMPS), requires_grad=False)
        self.spline = nn.Linear(BUMPS * in_dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heights = bumps(self.norm(x), self.grid)  # (…, in_dim, 8)
        return self.spline(heights.flatten(-2))


class KAN(nn.Sequential):
    """KAN layers from width to width, nothing between them: (…, dims[0]) -> (…, dims[-1])."""

    def __init__(self, dims: tuple[int, ...]):
        super().__init__(*(KANLayer(*pair) for pair in pairwise(dims)))


def to_tokens(x: Tensor, layout: str) -> Tensor:
    """(b, c, h, w) -> (b, h, w, c): "official" tokens are c numbers in a row of one channel."""
    b, c, h, w = x.shape
    return x.reshape(b, h, w, c) if layout == "official" else x.permute(0, 2, 3, 1)


def to_map(tokens: Tensor, layout: str) -> Tensor:
    """(b, h, w, c) -> (b, c, h, w), the inverse of `to_tokens`."""
    b, h, w, c = tokens.shape
    return tokens.reshape(b, c, h, w) if layout == "official" else tokens.permute(0, 3, 1, 2)


class NeighbourhoodAttention(nn.Module):
    """Attention of each token to the window around it: (b, h, w, dim) -> (b, h, w, dim).

    window_size: odd. placed: tokens are places of the image, so that maps can be drawn on it.
    """

    def __init__(
        self, dim: int, num_heads: int, window_size: int = 7, dilation: int = 1, placed: bool = True
    ):
        super().__init__()
        checks.heads(dim, num_heads)
        check_window((window_size * dilation,), (window_size,), (dilation,))
        self.num_heads = num_heads
        self.window_size = window_size
        self.dilation = dilation
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rpb = nn.Parameter(torch.zeros(num_heads, 2 * window_size - 1, 2 * window_size - 1))
        self.proj = nn.Linear(dim, dim)
        self.probe = Probe(Layout((window_size, window_size)) if placed else None)
        nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        grid = tuple(tokens.shape[1:3])
        per_head = "b h w (three heads d) -> three b heads h w d"
        q, k, v = rearrange(self.qkv(tokens), per_head, three=3, heads=self.num_heads)
        window = (self.window_size,) * 2, (self.dilation,) * 2
        check_window(grid, *window)
        y, weights = neighbourhood_attention(q, k, v, *window, self.rpb)
        self.probe(lambda: on_all_tokens(weights, *window), grid if self.probe.layout else None)
        return self.proj(rearrange(y, "b heads h w d -> b h w (heads d)"))


def on_all_tokens(weights: Tensor, window_size: tuple, dilation: tuple) -> Tensor:
    """Weights (b, heads, h, w, keys) as a map of all tokens, mostly zeros: (b, heads, n, n)."""
    b, heads, height, width, _ = weights.shape
    rows = neighbours(height, window_size[0], dilation[0], weights.device)
    columns = neighbours(width, window_size[1], dilation[1], weights.device)
    index = (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2).flatten(0, 1)
    empty = weights.new_zeros(b, heads, height * width, height * width)
    return empty.scatter(3, index.expand(b, heads, -1, -1), weights.flatten(2, 3))


def hard_sigmoid(x: Tensor) -> Tensor:
    """Piecewise linear; unlike PyTorch's own function it has a second derivative."""
    return F.relu6(x + 3) / 6


class LocalFeedForward(nn.Module):
    """Widen, filter each channel, gate by means, narrow: (b, dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, dim: int, ratio: int, kernel_size: int):
        super().__init__()
        hidden_dim = ratio * dim
        self.expand = ConvNorm(dim, hidden_dim)
        self.depthwise = ConvNorm(hidden_dim, hidden_dim, kernel_size, groups=hidden_dim)
        self.squeeze = nn.Linear(hidden_dim, ratio)  # the official code divides by dim: 3 channels
        self.excite = nn.Linear(ratio, hidden_dim)
        self.project = ConvNorm(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        x = self.depthwise(x * hard_sigmoid(x))
        x = x * hard_sigmoid(x)
        means = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (b, hidden_dim)
        gate = hard_sigmoid(self.excite(F.relu(self.squeeze(means))))
        return self.project(x * gate[..., None, None])


class LocalBlock(nn.Module):
    """The official "LFP": (b, in_chans, h, w) -> (b, dim, ⌈h/stride⌉, ⌈w/stride⌉).

    The second branch has a shortcut of its own around it, inside the block's.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int = 1,
        kernel_size: int = 3,
        head_dim: int = 32,
        window_size: int = 7,
        dilation: int = 1,
        layout: str = "official",
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.choice("layout", layout, ("official", "permuted"))
        checks.multiple(head_dim, "the width per head", dim=dim)
        self.layout = layout
        self.patch_embed = nextvit.Embed(in_chans, dim, stride)
        self.norm1 = nn.BatchNorm2d(dim)
        window = window_size, dilation, layout == "permuted"
        self.attn = NeighbourhoodAttention(dim, dim // head_dim, *window)
        self.norm2 = nn.BatchNorm2d(dim)
        self.ffn = LocalFeedForward(dim, 3, kernel_size)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        attended = self.attn(to_tokens(self.norm1(x), self.layout))
        x = x + self.drop_path(to_map(attended, self.layout))
        u = self.norm2(x)
        return x + (u + self.ffn(u))


class GlobalBlock(nn.Module):
    """The official "GFP": (b, in_chans, h, w) -> (b, dim, ⌈h/stride⌉, ⌈w/stride⌉).

    About `mix_ratio` of the channels, a multiple of 32, attend to means of runs of `reduction`²
    tokens; a convolution of these makes the others; a KAN is the feed-forward layer. `ffn` is never
    run, and frozen: official checkpoints hold it, and their authors count it.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int = 1,
        reduction: int = 1,
        head_dim: int = 32,
        mix_ratio: float = 0.75,
        layout: str = "official",
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.choice("layout", layout, ("official", "permuted"))
        wanted = int(dim * mix_ratio)
        attended = max(32, (wanted + 16) // 32 * 32)
        attended += 32 * (attended < 0.9 * wanted)
        if attended >= dim:
            raise ValueError(f"dim={dim} must be more than {attended}, the channels that attend")
        self.layout = layout
        self.patch_embed = nextvit.Embed(in_chans, attended, stride)
        self.norm1 = nn.BatchNorm2d(attended)
        self.e_mhsa = nextvit.PooledAttention(attended, head_dim, reduction)
        self.projection = nextvit.Embed(attended, dim - attended)
        self.mhca = nextvit.ConvAttention(dim - attended, head_dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.ffn = LocalFeedForward(dim, 2, 3).requires_grad_(False)
        self.kan = KAN((dim, 2 * dim, dim))
        self.drop_attention = DropPath(0.75 * drop_path_rate)
        self.drop_convolution = DropPath(0.25 * drop_path_rate)
        self.drop_kan = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        tokens = rearrange(self.norm1(x), "b c h w -> b (h w) c")
        check_pooling(tokens.shape[1], self.e_mhsa.run)
        attended = rearrange(self.e_mhsa(tokens), "b (h w) c -> b c h w", h=x.shape[2])
        x = x + self.drop_attention(attended)
        z = self.projection(x)
        z = z + self.drop_convolution(self.mhca(z))
        x = torch.cat([x, z], dim=1)
        mixed = self.kan(to_tokens(self.norm2(x), self.layout))
        return x + self.drop_kan(to_map(mixed, self.layout))


def check_pooling(tokens: int, run: int) -> None:
    """Raise a `ValueError` unless there is a full run of tokens to average."""
    if tokens < run:
        raise ValueError(f"a map of {tokens} tokens is too small: keys are means of {run} tokens")


def stage_plan(stage: int, depth: int) -> list[bool]:
    """Which blocks of a stage (0 … 3) are global: none; the last; every third and the last; all."""
    last = [i == depth for i in range(1, depth + 1)]
    thirds = [i % 3 == 0 or i == depth for i in range(1, depth + 1)]
    return [[False] * depth, last, thirds, [True] * depth][stage]


class MedViTV2(nn.Module):
    """Images (b, in_chans, h, w) -> logits (b, num_classes).

    img_size: pixels, or (height, width); other sizes are computed as well, where windows fit.
    num_classes: 0 leaves the classifier out and gives pooled features (b, embed_dims[-1]).
    embed_dims, depths, dilations: one entry for each of four stages.
    layout: what a token is, see `to_tokens`; released weights need "official".
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (64, 128, 192, 384),
        depths: tuple[int, ...] = (2, 2, 6, 1),
        window_size: int = 7,
        dilations: tuple[int, ...] = (1, 1, 1, 1),
        layout: str = "official",
        drop_path_rate: float = 0.1,
    ):
        super().__init__()
        checks.same_length(embed_dims=embed_dims, depths=depths, dilations=dilations)
        if len(depths) != 4:
            raise ValueError(f"depths={tuple(depths)} must have four entries, one for each stage")
        checks.at_least(1, in_chans=in_chans, depths=depths)
        checks.integer(0, num_classes=num_classes)
        checks.fraction(drop_path_rate=drop_path_rate)
        size = checks.image_size(img_size)
        self.img_size = img_size
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.stem = nextvit.stem(in_chans, (64, 32, 64, 64))
        self.features = nn.Sequential()
        rates = drop_path_rates(drop_path_rate, sum(depths))
        dim = 64
        for i, depth in enumerate(depths):
            grid = tuple(-(-side // 2 ** (i + 2)) for side in size)
            for j, is_global in enumerate(stage_plan(i, depth)):
                sizes = dim, embed_dims[i], 2 if i > 0 and j == 0 else 1
                options = dict(layout=layout, drop_path_rate=rates[len(self.features)])
                if is_global:
                    check_pooling(grid[0] * grid[1], (8 // 2**i) ** 2)
                    block = GlobalBlock(*sizes, reduction=8 // 2**i, **options)
                else:
                    check_window(grid, (window_size,) * 2, (dilations[i],) * 2)
                    options |= dict(window_size=window_size, dilation=dilations[i])
                    block = LocalBlock(*sizes, kernel_size=7 if i == 0 else 3, **options)
                self.features.append(block)
                dim = embed_dims[i]
        self.head = nextvit.NormPoolLinear(dim, num_classes) if num_classes else None
        nextvit.start_small(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map: (b, embed_dims[-1], ⌈h/32⌉, ⌈w/32⌉)."""
        checks.image(images, self.in_chans)
        return self.features(self.stem(images))

    def forward_head(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if self.head is None else self.head(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> MedViTV2:
        """A copy for inference, equal but for rounding (see `refimpl.deploy`)."""
        return deploy(self)


NAMES: dict[str, Rules] = {
    "official": [
        *nextvit.NAMES["timm"],  # stem and last norm
        (r"^proj_head\.0\.", "head.fc."),
        (r"conv\.conv\.([013478])\.", lambda m: f"ffn.{FEED_FORWARD[m[1]]}."),
        (r"conv\.conv\.6\.fc\.0\.", "ffn.squeeze."),
        (r"conv\.conv\.6\.fc\.2\.", "ffn.excite."),
        (r"(^|\.)layers\.", r"\1"),
        (r"layernorm\.", "norm."),
        (r"rbf\.grid$", "grid"),
        (r"spline_linear\.", "spline."),
    ],
}
FEED_FORWARD = {"0": "expand.conv", "1": "expand.norm", "3": "depthwise.conv"}
FEED_FORWARD |= {"4": "depthwise.norm", "7": "project.conv", "8": "project.norm"}

VARIANTS: dict[str, dict] = {
    "tiny": {"embed_dims": (64, 128, 192, 384), "depths": (2, 2, 6, 1)},
    "small": {"embed_dims": (64, 128, 256, 512), "depths": (2, 2, 6, 2)},
    "base": {"embed_dims": (96, 192, 384, 768), "depths": (2, 2, 6, 2), "drop_path_rate": 0.2},
    "large": {"embed_dims": (96, 256, 512, 1024), "depths": (2, 2, 6, 2), "drop_path_rate": 0.2},
}
MODEL = MedViTV2
