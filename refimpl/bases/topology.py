"""Transformers in stages whose every size is free: the space that As-ViT searches and grows in.

Chen, Huang, Du, Song, Wang, Zhou, ICLR 2022, arXiv 2202.11921. Official code: VITA-Group/AsViT,
commit e326ccaf63e05f241f8f48a0e045b63d221be62a (MIT).

    patch embedding   K₁×K₁ pixels at stride 4, projected to C channels, normalised
    stage i           Lᵢ blocks of width C·2ⁱ⁻¹, 1024 at most, on a grid of n/2ⁱ⁻¹ × n/2ⁱ⁻¹ tokens
    attention         in Sᵢ × Sᵢ windows, not shifted, without a position bias; Sᵢ = 1 is global
    MLP               of Eᵢ times the width
    patch merging     Kᵢ×Kᵢ tokens at stride 2, normalised, projected: twice the width

Tokens can be made coarser without other weights (`coarsen`): f times the stride, and the K₁×K₁ taps
f pixels apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.layers import Layout, Mlp, Probe, attention, attention_map
from refimpl.weights import Rules

STRIDE = 4  # pixels from one token to the next in the first stage
WIDEST = 1024  # no stage is wider


@dataclass(frozen=True)
class Topology:
    """Sizes of a network, one entry a stage; embed_dim: width of the first stage.

    splits: windows along each side; num_heads: those of the last stage, of which each stage before
    has half as many. As keyword arguments of `StagedTransformer`: `topology.arguments()`.
    """

    kernel_sizes: tuple[int, ...]
    splits: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: int
    embed_dim: int = 32

    def __post_init__(self):
        fields = asdict(self)
        tuples = {name: value for name, value in fields.items() if isinstance(value, tuple)}
        checks.same_length(**tuples)
        checks.at_least(1, **fields)
        halvings = 2 ** (len(self.depths) - 1)
        checks.multiple(halvings, "halved from stage to stage", num_heads=self.num_heads)

    @classmethod
    def parse(cls, text: str) -> Topology:
        """From the authors' notation `K,S,E[,L]|…|H[,C]`, as in `8,2,3|4,1,2|4,1,4|4,1,6|32`.

        Raises `ValueError` for text that is none.
        """
        try:
            *stages, last = [[int(n) for n in part.split(",")] for part in text.split("|")]
            rows = [stage if len(stage) == 4 else [*stage, 1] for stage in stages]
            kernel_sizes, splits, mlp_ratios, depths = zip(*rows, strict=True)
            return cls(kernel_sizes, splits, mlp_ratios, depths, *last)
        except (TypeError, ValueError) as error:
            form = "K,S,E[,L] for each stage, then H[,C], all parted by |"
            raise ValueError(f"text={text!r} must be {form}: {error}") from error

    def __str__(self) -> str:
        rows = zip(self.kernel_sizes, self.splits, self.mlp_ratios, self.depths, strict=True)
        stages = [",".join(map(str, row)) for row in rows]
        return "|".join([*stages, f"{self.num_heads},{self.embed_dim}"])

    def arguments(self) -> dict:
        """With the number of heads of every stage."""
        last = len(self.depths) - 1
        heads = tuple(self.num_heads // 2 ** (last - i) for i in range(last + 1))
        return asdict(self) | {"num_heads": heads}

    @property
    def widths(self) -> tuple[int, ...]:
        return stage_widths(self.embed_dim, len(self.depths))

    def parameters(
        self, num_classes: int = 1000, in_chans: int = 3, position_tokens: int = 0
    ) -> int:
        """Their number, in closed form; position_tokens: entries of the position embedding."""
        first, last = self.widths[0], self.widths[-1]
        total = in_chans * self.kernel_sizes[0] ** 2 * first + 3 * first + position_tokens * first
        sizes = self.arguments()
        for i, dim in enumerate(self.widths):
            inner = sizes["num_heads"][i] * (dim // sizes["num_heads"][i])
            attn = 3 * inner * (dim + 1) + dim * (inner + 1)
            mlp = dim * self.mlp_ratios[i] * (2 * dim + 1) + dim
            total += self.depths[i] * (4 * dim + attn + mlp)
        for dim, dim_out, k in zip(
            self.widths, self.widths[1:], self.kernel_sizes[1:], strict=False
        ):
            total += k**2 * dim * (2 + dim_out)
        head = last * (last + 1) + num_classes * (last + 1)
        return total + 2 * last + (head if num_classes else 0)


def stage_widths(embed_dim: int, stages: int) -> tuple[int, ...]:
    """Doubled from stage to stage, and 1024 at most."""
    return tuple(min(WIDEST, embed_dim * 2**i) for i in range(stages))


class OverlappingPatchEmbed(nn.Module):
    """Project patches that may overlap: (b, c, H, W) -> (b, h, w, embed_dim), h = H / (4 f).

    coarseness: the factor f of the stride and of the spacing of taps.
    """

    def __init__(self, kernel_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size, STRIDE)
        self.norm = nn.LayerNorm(embed_dim)
        self.coarseness = 1

    def forward(self, x: Tensor) -> Tensor:
        f = self.coarseness
        extent = (self.proj.kernel_size[0] - 1) * f + 1  # pixels that a token sees along a side
        extra = max(extent - STRIDE * f, 0)
        x = F.pad(x, (extra // 2, extra - extra // 2) * 2)
        x = F.conv2d(x, self.proj.weight, self.proj.bias, stride=STRIDE * f, dilation=f)
        return self.norm(x.permute(0, 2, 3, 1))


class SplitAttention(nn.Module):
    """Attention within splits × splits windows: (b, h, w, dim) -> (b, h, w, dim).

    Heads are ⌊dim / num_heads⌋ wide, so that the inner width may be a little less than dim.
    """

    def __init__(self, dim: int, num_heads: int, splits: int, grid: tuple[int, int]):
        super().__init__()
        if not 1 <= num_heads <= dim:
            raise ValueError(f"num_heads={num_heads} must be at least 1 and at most dim={dim}")
        self.num_heads, self.splits = num_heads, splits
        inner = num_heads * (dim // num_heads)
        self.qkv = nn.Linear(dim, 3 * inner)
        self.proj = nn.Linear(inner, dim)
        window = (grid[0] // splits, grid[1] // splits)
        self.probe = Probe(Layout(grid, None if splits == 1 else window))

    def forward(self, x: Tensor) -> Tensor:
        s = self.splits
        q, k, v = rearrange(
            self.qkv(x),
            "b (i h) (j w) (three heads d) -> three (b i j) heads (h w) d",
            **{"i": s, "j": s, "three": 3, "heads": self.num_heads},
        )
        if x.shape[1:3] == self.probe.layout.grid:  # coarser tokens lie on another grid
            self.probe(lambda: attention_map(q, k))
        y = attention(q, k, v)
        h, w = x.shape[1] // s, x.shape[2] // s
        y = rearrange(y, "(b i j) heads (h w) d -> b (i h) (j w) (heads d)", i=s, j=s, h=h, w=w)
        return self.proj(y)


class Block(nn.Module):
    """Attention, then an MLP, each behind a norm and beside a shortcut: (b, h, w, dim) -> same."""

    def __init__(
        self, dim: int, num_heads: int, splits: int, mlp_ratio: int, grid: tuple[int, int]
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SplitAttention(dim, num_heads, splits, grid)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """kernel_size² neighbours become a token: (b, h, w, dim) -> (b, ⌊h/2⌋, ⌊w/2⌋, dim_out)."""

    def __init__(self, dim: int, dim_out: int, kernel_size: int):
        super().__init__()
        checks.at_least(2, kernel_sizes=kernel_size)
        self.kernel_size = kernel_size
        self.norm = nn.LayerNorm(kernel_size**2 * dim)
        self.reduction = nn.Linear(kernel_size**2 * dim, dim_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        k = self.kernel_size
        x = F.pad(x.permute(0, 3, 1, 2), ((k - 2) // 2, (k - 1) // 2) * 2)
        height, width = ((side - k) // 2 + 1 for side in x.shape[2:])
        x = F.unfold(x, k, stride=2)  # (b, dim · k · k, h · w), a channel's taps side by side
        x = self.reduction(self.norm(x.transpose(1, 2)))
        return x.unflatten(1, (height, width))


class Stage(nn.Module):
    """Blocks of one width, then the merging where a stage follows."""

    def __init__(self, blocks: list[Block], downsample: nn.Module):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class StagedTransformer(nn.Module):
    """Images (b, in_chans, height, width) -> logits (b, num_classes).

    kernel_sizes, splits, mlp_ratios, depths, num_heads: one entry a stage; embed_dim: width of the
    first stage. img_size: a number or a pair, fixed once built. pos_embed: a learned vector for
    each token; the published models have it, the search does without. num_classes=0 leaves the head
    out and gives pooled features. Raises `ValueError` for sizes and images that do not fit.
    """

    def __init__(
        self,
        kernel_sizes: tuple[int, ...] = (8, 4, 4, 4),
        splits: tuple[int, ...] = (2, 1, 1, 1),
        mlp_ratios: tuple[int, ...] = (3, 2, 4, 6),
        depths: tuple[int, ...] = (1, 1, 1, 1),
        num_heads: tuple[int, ...] = (4, 8, 16, 32),
        embed_dim: int = 32,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        pos_embed: bool = False,
    ):
        super().__init__()
        sizes = dict(kernel_sizes=kernel_sizes, splits=splits, mlp_ratios=mlp_ratios, depths=depths)
        checks.same_length(**sizes, num_heads=num_heads)
        checks.at_least(1, **sizes)
        checks.integer(1, embed_dim=embed_dim, in_chans=in_chans)
        checks.integer(0, num_classes=num_classes)
        if kernel_sizes[0] < STRIDE:
            raise ValueError(f"kernel_sizes[0]={kernel_sizes[0]} must be at least {STRIDE}")
        size = checks.image_size(img_size, STRIDE, "the stride of the patch embedding")
        self.img_size = size[0] if size[0] == size[1] else size
        self.size, self.in_chans, self.num_classes = size, in_chans, num_classes
        self.splits = tuple(splits)
        self.patch_embed = OverlappingPatchEmbed(kernel_sizes[0], in_chans, embed_dim)
        grids = self.grids(1)
        self.absolute_pos_embed = None
        if pos_embed:
            tokens = grids[0][0] * grids[0][1]
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        widths = stage_widths(embed_dim, len(depths))
        self.layers = nn.Sequential()
        for i, dim in enumerate(widths):
            shape = (dim, num_heads[i], splits[i], mlp_ratios[i], grids[i])
            merging = nn.Identity()
            if i + 1 < len(widths):
                merging = PatchMerging(dim, widths[i + 1], kernel_sizes[i + 1])
            self.layers.append(Stage([Block(*shape) for _ in range(depths[i])], merging))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, num_classes))
        self.apply(init_weights)

    def grids(self, coarseness: int) -> list[tuple[int, int]]:
        """Rows and columns of tokens in each stage; `ValueError` where they can't be split so."""
        step = STRIDE * coarseness
        rows, cols = self.size[0] // step, self.size[1] // step
        if (rows * step, cols * step) != self.size:
            raise ValueError(
                f"coarseness={coarseness}: tokens of {step}×{step} pixels do not tile"
                f" img_size={self.img_size}"
            )
        found = []
        for i, splits in enumerate(self.splits):
            if rows < 1 or cols < 1 or rows % splits or cols % splits:
                raise ValueError(
                    f"splits={self.splits}: stage {i + 1} has {rows}×{cols} tokens, not to be cut"
                    f" into {splits}×{splits} windows (img_size={self.img_size},"
                    f" coarseness={coarseness})"
                )
            found.append((rows, cols))
            rows, cols = rows // 2, cols // 2
        return found

    def forward_features(self, images: Tensor) -> Tensor:
        """The last tokens, before the last norm: (b, h, w, dim)."""
        checks.image(images, self.in_chans, self.size)
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            x = x + self.positions(x.shape[1:3])
        return self.layers(x)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding (1, *grid, c); a coarse token has the mean of the fine ones."""
        rows = self.size[0] // STRIDE
        table = self.absolute_pos_embed.unflatten(1, (rows, -1))
        if table.shape[1:3] == grid:
            return table
        return F.adaptive_avg_pool2d(table.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean((1, 2)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> StagedTransformer:
        """A copy for inference, equal but for rounding (see `refimpl.deploy`)."""
        return deploy(self)


def init_weights(module: nn.Module) -> None:
    """Linear layers: normal with σ = 0.02, cut off at 2, and no bias. Convolutions keep PyTorch's;
    norms are at one and zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def coarsen(model: StagedTransformer, coarseness: int) -> None:
    """In place: from now on, tokens of 4·coarseness pixels; 1 is the network as it was built.

    Raises `ValueError` for tokens that do not tile the image, or not fill the windows.
    """
    checks.integer(1, coarseness=coarseness)
    model.grids(coarseness)
    model.patch_embed.coarseness = coarseness


# Official names: the foreign tensor name's pieces, and what stands for them here.
NAMES: dict[str, Rules] = {
    "official": [(r"\.mlps\.0\.0\.", ".norm2."), (r"\.mlps\.0\.1\.", ".mlp.")],
}
