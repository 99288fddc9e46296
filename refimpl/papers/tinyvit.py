"""TinyViT: Fast Pretraining Distillation for Small Vision Transformers.

Wu, Zhang, Peng, Liu, Xiao, Fu, Yuan, ECCV 2022, arXiv 2207.10666. Official code: microsoft/Cream,
folder TinyViT, commit 4a13c4091e78f9abd2160e7e01c02e48c1cf8fb9 (MIT).

The idea
    1. Small transformers gain little from large data on their own; a large teacher makes the data
       worth more, but running it beside every student costs more than the student.
    2. So run it once. Per image and epoch, store the seed of the augmentation and the teacher's K
       largest probabilities: 4 + 4 K bytes (`refimpl.bases.teacher_records`).
    3. Any student trains on the stored labels later; the seed replays the very view that the
       teacher saw, and the classes that were not stored share the rest of the probability.
    4. The student: convolutions first, attention in windows later, a depthwise convolution between
       attention and MLP, so that windows meet.
    5. Sizes come from contracting a large model step by step, under limits on parameters and speed.

The student's target, with I(1) … I(K) the classes kept and p their stored probabilities:

    m = (1 − Σ_k p_I(k)) / (C − K)                          the rest, shared alike
    ŷ_c = p_c for c among I(1) … I(K), else m               sums to 1
    loss = − Σ_c ŷ_c log softmax(z)_c                       no label, no temperature

A block on tokens of a map in windows of w×w (rows and columns padded with zeros to whole windows,
before the norm; padding takes part in attention):

    x ← x + A v,   A = softmax(q kᵀ/√32 + b[|Δrow|·w + |Δcol|]),   q, k, v linear in LN(x)
    x ← BN(depthwise₃ₓ₃(x));   x ← x + MLP(LN(x))

Cost of a student's step: three of its own forward passes, and none of the teacher's.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases import levit
from refimpl.bases.deit import init_weights
from refimpl.bases.swin import cut_windows, stitch_windows
from refimpl.deploy import deploy
from refimpl.layers import ConvNorm, DropPath, Layout, Mlp, drop_path_rates
from refimpl.weights import Rules


def distillation_loss(logits: Tensor, indices: Tensor, probabilities: Tensor) -> Tensor:
    """Mean cross-entropy with what a record keeps of the teacher: one number.

    logits: (b, C) of the student; indices: (b, K) distinct classes, int64; probabilities: (b, K).
    """
    kept = indices.shape[1]  # K
    classes = logits.shape[1]  # C
    rest = 1 - probabilities.sum(1, keepdim=True)  # what was not stored, (b, 1)
    share = rest / max(classes - kept, 1)  # m, alike for each other class
    label = share.expand(-1, classes).scatter(1, indices, probabilities)  # ŷ, (b, C)
    return -(label * logits.log_softmax(1)).sum(1).mean()


def conv_stem(in_chans: int, dim: int) -> nn.Sequential:
    """Two 3×3 convolutions of stride 2: (b, in_chans, h, w) -> (b, dim, h/4, w/4)."""
    checks.multiple(2, "the stem starts at half of it", **{"embed_dims[0]": dim})
    return nn.Sequential(
        ConvNorm(in_chans, dim // 2, 3, stride=2), nn.GELU(), ConvNorm(dim // 2, dim, 3, stride=2)
    )


class MBConv(nn.Module):
    """Wide 1×1, depthwise 3×3, narrow 1×1, shortcut: (b, dim, h, w) -> (b, dim, h, w).

    The last GELU comes after the sum, so the shortcut passes it too.
    """

    def __init__(self, dim: int, expand_ratio: float = 4.0, drop_path_rate: float = 0.0):
        super().__init__()
        hidden_dim = int(dim * expand_ratio)
        self.conv1 = ConvNorm(dim, hidden_dim)
        self.conv2 = ConvNorm(hidden_dim, hidden_dim, 3, groups=hidden_dim)
        self.conv3 = ConvNorm(hidden_dim, dim, norm_weight=0.0)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.conv1(x))
        y = F.gelu(self.conv2(y))
        return F.gelu(x + self.drop_path(self.conv3(y)))


class PatchMerging(nn.Module):
    """Half the rows and columns, another width: (b, dim, h, w) -> (b, out_dim, ⌈h/2⌉, ⌈w/2⌉)."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.conv1 = ConvNorm(dim, out_dim)
        self.conv2 = ConvNorm(out_dim, out_dim, 3, stride=2, groups=out_dim)
        self.conv3 = ConvNorm(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv1(x))
        x = F.gelu(self.conv2(x))
        return self.conv3(x)


class Attention(levit.Attention):
    """Normalised, then attention with a bias by distance: (b, n, dim) -> (b, n, dim).

    n = window_size² tokens. layout: where they lie in the image.
    """

    def __init__(
        self, dim: int, key_dim: int, num_heads: int, window_size: int, layout: Layout | None = None
    ):
        super().__init__(dim, key_dim, num_heads, attn_ratio=1, resolution=window_size)
        self.norm = nn.LayerNorm(dim)
        self.probe.layout = layout or self.probe.layout

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class NormMlp(Mlp):
    """Normalised, then two linear layers: (…, dim) -> (…, dim)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__(dim, hidden_dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class Block(nn.Module):
    """Attention in windows, a depthwise convolution across them, MLP: (b, dim, h, w) -> the same.

    grid: h and w, fixed once built.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        window_size: int,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.heads(dim, num_heads)
        checks.at_least(1, window_size=window_size)
        self.grid = grid
        self.window_size = window_size
        whole = grid == (window_size, window_size)
        layout = Layout(grid, window=None if whole else window_size)
        self.attn = Attention(dim, dim // num_heads, num_heads, window_size, layout)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)
        self.mlp = NormMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def attend(self, x: Tensor) -> Tensor:
        """Attention in windows, zeros beyond the map: (b, h, w, dim) -> (b, h, w, dim)."""
        rows, cols = self.grid
        side = self.window_size
        if x.shape[1:3] != self.grid:
            raise ValueError(
                f"the map is {x.shape[1]}×{x.shape[2]}, this block was built for a grid of"
                f" {rows}×{cols}"
            )
        if self.grid == (side, side):
            return self.attn(x.flatten(1, 2)).unflatten(1, self.grid)
        down = -rows % side
        right = -cols % side
        if down or right:
            x = F.pad(x, (0, 0, 0, right, 0, down))
        windows = self.attn(cut_windows(x, (side, side)))
        x = stitch_windows(windows, ((rows + down) // side, (cols + right) // side), side)
        return x[:, :rows, :cols]

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (b, h, w, dim): nothing moves in memory
        x = x + self.drop_path(self.attend(x))
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.mlp(x))
        return x.permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """Images (b, in_chans, *img_size) -> logits (b, num_classes).

    embed_dims, depths: one entry per stage, the first of convolutions, the others of attention;
    num_heads, window_size: one entry per stage of attention. img_size: a multiple of 4 · 2^(stages
    − 1), one number for a square or (height, width); fixed once built. num_classes: 0 leaves the
    classifier out and gives normalised pooled features. drop_path_rate: of the last block; it rises
    linearly from 0 in the first. Raises `ValueError` for arguments and images that do not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (64, 128, 160, 320),
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (4, 5, 10),
        window_size: tuple[int, ...] = (7, 14, 7),
        mlp_ratio: float = 4.0,
        mbconv_expand_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.same_length(embed_dims=embed_dims, depths=depths)
        checks.same_length(
            num_heads=num_heads, window_size=window_size, **{"embed_dims[1:]": embed_dims[1:]}
        )
        checks.at_least(1, depths=depths, embed_dims=embed_dims)
        checks.integer(1, in_chans=in_chans)
        checks.integer(0, num_classes=num_classes)
        checks.positive(mlp_ratio=mlp_ratio, mbconv_expand_ratio=mbconv_expand_ratio)
        checks.fraction(drop_path_rate=drop_path_rate)
        stride = 4 * 2 ** (len(depths) - 1)
        height, width = checks.image_size(img_size, stride, "the stride of the last stage")
        self.img_size = height if height == width else (height, width)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.patch_embed = conv_stem(in_chans, embed_dims[0])
        rates = drop_path_rates(drop_path_rate, sum(depths))
        self.layers = nn.Sequential()
        grid = height // 4, width // 4
        for i, dim in enumerate(embed_dims):
            blocks = nn.Sequential()
            for rate in rates[sum(depths[:i]) : sum(depths[: i + 1])]:
                if i == 0:
                    blocks.append(MBConv(dim, mbconv_expand_ratio, rate))
                else:
                    sizes = (dim, num_heads[i - 1], grid, window_size[i - 1])
                    blocks.append(Block(*sizes, mlp_ratio, rate))
            last = i == len(embed_dims) - 1
            downsample = nn.Identity() if last else PatchMerging(dim, embed_dims[i + 1])
            self.layers.append(nn.Sequential(OrderedDict(blocks=blocks, downsample=downsample)))
            grid = grid[0] // 2, grid[1] // 2
        self.norm_head = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map: (b, embed_dims[-1], h, w)."""
        checks.image(images, self.in_chans, checks.image_size(self.img_size))
        return self.layers(self.patch_embed(images))

    def forward_head(self, x: Tensor) -> Tensor:
        """Logits from the last map: its mean, normalised, then the classifier."""
        return self.head(self.norm_head(x.mean((2, 3))))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> TinyViT:
        """A copy for inference, equal but for rounding (see `refimpl.deploy`)."""
        return deploy(self)


# The factors that contraction makes smaller: argument → step, least value.
FACTORS = {
    "embed_dims": (32, 32),  # one head of 32 channels
    "depths": (1, 1),
    "window_size": (1, 2),
    "mlp_ratio": (1, 1),
    "mbconv_expand_ratio": (1, 1),
}


def contracted(config: Mapping, name: str, stage: int | None = None) -> dict | None:
    """The configuration with one factor a step smaller (`FACTORS`), or `None` at its least.

    config: all arguments of `TinyViT`; stage: which entry, where the factor has several.
    """
    step, least = FACTORS[name]
    value = config[name] if stage is None else config[name][stage]
    if value - step < least:
        return None
    if stage is None:
        return {**config, name: value - step}
    entries = list(config[name])
    entries[stage] -= step
    smaller = {**config, name: tuple(entries)}
    if name == "embed_dims":
        smaller["num_heads"] = tuple(dim // step for dim in entries[1:])
    return smaller


def candidates(config: Mapping, fits: Callable[[dict], bool]) -> list[dict]:
    """What fits and differs from `config` in one factor, made smaller as often as that takes."""
    found = []
    for name in FACTORS:
        entries = len(config[name]) if isinstance(config[name], tuple) else 0
        for stage in range(entries) if entries else (None,):
            smaller = contracted(config, name, stage)
            while smaller is not None and not fits(smaller):
                smaller = contracted(smaller, name, stage)
            if smaller is not None:
                found.append(smaller)
    return found


def contract(
    config: Mapping,
    limits: Sequence[tuple[int, float]],
    score: Callable[[TinyViT], float],
    throughput: Callable[[TinyViT], float] = lambda model: math.inf,
) -> list[dict]:
    """Shrink a network step by step; the chosen configurations, one per pair of limits.

    config: arguments of `TinyViT` to start from; limits: of each step, the most parameters and the
    least throughput; score: of a fresh model, after a short training; the highest wins;
    throughput: of a fresh model, in the unit of the limits. Raises `ValueError` for limits that no
    candidate keeps.
    """
    config = DEFAULTS | dict(config)
    chosen = []
    for parameters, speed in limits:

        def fits(candidate: dict, parameters: int = parameters, speed: float = speed) -> bool:
            with torch.device("meta"):
                count = sum(p.numel() for p in TinyViT(**candidate).parameters())
            return count <= parameters and throughput(TinyViT(**candidate)) >= speed

        options = candidates(config, fits)
        if not options:
            raise ValueError(
                f"limits={(parameters, speed)} are kept by no candidate: one factor alone can't be"
                " made small enough; go there in more steps"
            )
        config = max(options, key=lambda option: score(TinyViT(**option)))
        chosen.append(config)
    return chosen


SHARED: Rules = [
    (r"attention_bias_idxs$", None),  # a computed buffer
    (r"\.c\.", ".conv."),
    (r"\.bn\.", ".norm."),
]

NAMES: dict[str, Rules] = {
    "official": [*SHARED, (r"^patch_embed\.seq\.", "patch_embed.")],
    "timm": [
        *SHARED,
        (r"^patch_embed\.conv(\d)\.", lambda m: f"patch_embed.{2 * int(m[1]) - 2}."),
        (r"^stages\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"),
        (r"^stages\.", "layers."),
        (r"^head\.norm\.", "norm_head."),
        (r"^head\.fc\.", "head."),
    ],
}

DEFAULTS = {name: p.default for name, p in inspect.signature(TinyViT).parameters.items()}
COLUMNS = ("embed_dims", "num_heads")
TABLE = {
    "5m": ((64, 128, 160, 320), (4, 5, 10)),
    "11m": ((64, 128, 256, 448), (4, 8, 14)),
    "21m": ((96, 192, 384, 576), (6, 12, 18)),
}
VARIANTS: dict[str, dict] = {
    name: dict(zip(COLUMNS, row, strict=True)) for name, row in TABLE.items()
}
VARIANTS["21m_384"] = VARIANTS["21m"] | dict(img_size=384, window_size=(12, 24, 12))
VARIANTS["21m_512"] = VARIANTS["21m"] | dict(img_size=512, window_size=(16, 32, 16))
MODEL = TinyViT
