"""FMViT: A multiple-frequency mixing Vision Transformer — and FMViT-R, *our reconstruction* of it.

Tan, Geng, Xie, 2023, arXiv 2311.05707. Official repository: tany0699/FMViT, commit
40b6bbf33f8fe44944d41338aed4cf0ab3c47d64: a README and a licence. **No code and no weights were
released**: nothing here can be compared with the authors' network. What this file builds is called
FMViT-R everywhere, and each part says where it is from:

    [P]  stated in the paper's abstract
    [L]  a fact of the lineage (Next-ViT, MobileOne), checked against running code
    [A]  our assumption, plausible and unverified

The idea
    1. Features have bands of spatial frequency; mix several, in proportions, in one block. [P]
    2. Attention makes the low band, a convolution of attended features the middle one, a
       convolution of raw features the high one. [A for the wiring; the first two are L]
    3. Train with parallel branches, deploy the one convolution that equals their sum. [P, L]

Folding, for branches of kernel w_i (o, i/g_i, k_i, k_i) and batch norm (γ_i, β_i, μ_i, σ_i²):

    s_i = γ_i / √(σ_i² + ε),    K = Σ_i s_i · spread(pad(w_i)),    b = Σ_i β_i − s_i μ_i

pad puts a smaller kernel into the centre; spread writes a kernel of more groups as one of fewer,
with zeros where a group does not read. Doing nothing is a kernel of ones, 1×1, a group per channel.
In training norms use the batch's statistics, and the equation does not hold.

Multiply-adds, for N positions of C channels: a branch N·k²·C²/g, folded all of them one such.
Attention on keys pooled over squares of side s: 2NC² + 2(N/s²)C² + 2N(N/s²)C.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from math import ceil

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases import nextvit
from refimpl.deploy import deploy
from refimpl.deploy.norms import fold_norms_before
from refimpl.layers import ConvNorm, Layout, Probe, attention, attention_map


def fold_branches(
    branches: Iterable[tuple[Tensor, int, nn.BatchNorm2d]], kernel_size: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Kernel (o, i/groups, k, k) and bias (o,) of the one convolution equal to Σ BN(conv(x)).

    branches: kernel (o, i/g, k', k'), its groups g, and the norm behind it, for each.
    """
    kernel = 0
    bias = 0
    for weight, g, norm in branches:
        margin = (kernel_size - weight.shape[-1]) // 2
        weight = F.pad(weight, [margin] * 4)  # a smaller kernel in the centre: (o, i/g, k, k)
        weight = spread(weight, g, groups)  # zeros where a group does not read: (o, i/groups, k, k)
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)  # s = γ / √(σ² + ε): (o,)
        kernel = kernel + scale.view(-1, 1, 1, 1) * weight  # K = Σ s w
        bias = bias + norm.bias - scale * norm.running_mean  # b = Σ β − s μ
    return kernel, bias


def spread(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """A kernel of `groups` groups as one of `fewer`: (o, i, k, k) -> (o, i·groups/fewer, k, k).

    Block-diagonal: output o reads the block of inputs of its own group, and zeros elsewhere.
    """
    blocks = groups // fewer  # of inputs, inside a group of the result
    group = torch.arange(groups, device=weight.device).repeat_interleave(len(weight) // groups)
    reads = F.one_hot(group % blocks, blocks).to(weight.dtype)  # (o, blocks)
    wide = einsum(reads, weight, "o block, o i h w -> o block i h w")
    return wide.flatten(1, 2)


class Branches(nn.Module):
    """The sum of parallel branches: (b, in_chans, h, w) -> (b, out_chans, h', w').

    branches: `ConvNorm`s of odd kernels up to `kernel_size`, and batch norms of the input itself.
    `fuse` gives the one convolution, of this kernel and so many groups.
    """

    def __init__(
        self,
        branches: Sequence[ConvNorm | nn.BatchNorm2d],
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.sizes = kernel_size, stride, kernel_size // 2
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        out = self.branches[0](x)
        for branch in self.branches[1:]:
            out = out + branch(x)
        return out

    def kernels(self) -> list[tuple[Tensor, int, nn.BatchNorm2d]]:
        """Kernel, groups and norm of each branch, as `fold_branches` takes them."""
        found = []
        for branch in self.branches:
            if isinstance(branch, nn.BatchNorm2d):  # the input itself: a 1×1 kernel of ones
                ones = torch.ones_like(branch.weight).view(-1, 1, 1, 1)
                found.append((ones, branch.num_features, branch))
            else:
                found.append((branch.conv.weight, branch.conv.groups, branch.norm))
        return found

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The one convolution that computes the same in evaluation mode."""
        kernel, bias = fold_branches(self.kernels(), self.sizes[0], self.groups)
        in_chans = kernel.shape[1] * self.groups
        conv = nn.Conv2d(in_chans, len(kernel), *self.sizes, groups=self.groups, device="meta")
        trainable = next(self.parameters()).requires_grad
        conv.weight = nn.Parameter(kernel, trainable)
        conv.bias = nn.Parameter(bias, trainable)
        return conv


def rep_conv(
    in_chans: int,
    out_chans: int,
    kernel_size: int = 3,
    stride: int = 1,
    groups: int = 1,
    num_conv_branches: int = 2,
) -> Branches:
    """MobileOne's unit without its activation [L]: k×k branches, a 1×1 branch beside kernels that
    are larger, and the input itself where its shape is kept.
    """
    checks.integer(1, num_conv_branches=num_conv_branches, stride=stride, groups=groups)
    checks.multiple(groups, "the groups", in_chans=in_chans, out_chans=out_chans)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size} must be odd: a 1×1 kernel goes to its centre")
    sizes = [kernel_size] * num_conv_branches + [1] * (kernel_size > 1)
    branches = [ConvNorm(in_chans, out_chans, k, stride, groups=groups) for k in sizes]
    if in_chans == out_chans and stride == 1:
        branches.append(nn.BatchNorm2d(in_chans))
    return Branches(branches, kernel_size, stride, groups)


def multi_group(in_chans: int, out_chans: int, groups: Sequence[int] = (1, 2, 4)) -> Branches:
    """A pointwise map of one branch per entry of `groups` [A, the form of the paper's "gMLP"].

    Folded, grouped maps are block-diagonal matrices, and their sum is one dense matrix.
    """
    checks.at_least(1, groups=groups)
    for g in groups:
        checks.multiple(g, "the groups of a branch", in_chans=in_chans, out_chans=out_chans)
    branches = [ConvNorm(in_chans, out_chans, groups=g) for g in groups]
    return Branches(branches, kernel_size=1)


class GroupMlp(nn.Module):
    """Norm, multi-group map to `ratio` times the width, ReLU, and back: (b, dim, h, w) -> the same.
    [A] The paper's "gMLP" (convolutional multi-group reparameterisation) is not Liu's gated MLP.
    """

    def __init__(self, dim: int, ratio: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.fc1 = multi_group(dim, ratio * dim)
        self.fc2 = multi_group(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.norm(x))))

    def fuse(self) -> nn.Module:
        """Two pointwise maps: the norm goes into the first."""
        return nn.Sequential(fold_norms_before([self.norm], self.fc1.fuse()), nn.ReLU(), self.fc2)


class ConvMixer(nn.Module):
    """A grouped 3×3 `rep_conv`, ReLU, a multi-group map [A]: (b, dim, h, w) -> (b, dim, h, w).

    group_width: channels that an output channel of the 3×3 reads.
    """

    def __init__(self, dim: int, group_width: int):
        super().__init__()
        checks.multiple(group_width, "the width of a group", dim=dim)
        self.spatial = rep_conv(dim, dim, 3, groups=dim // group_width)
        self.pointwise = multi_group(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(F.relu(self.spatial(x)))


class LightAttention(nn.Module):
    """Attention whose four maps fold [A, for the paper's "RLMHSA"]: (b, dim, h, w) -> the same.

    Norm; keys and values from means of `pool` × `pool` positions and a second norm; heads of
    `head_dim` channels. grid: rows and columns of the map, so that attention can be drawn.
    """

    def __init__(self, dim: int, head_dim: int, pool: int = 1, grid: tuple[int, int] | None = None):
        super().__init__()
        checks.multiple(head_dim, "the width per head", dim=dim)
        checks.integer(1, pool=pool)
        self.head_dim = head_dim
        self.norm = nn.BatchNorm2d(dim)
        mean = nn.AvgPool2d(pool, ceil_mode=True, count_include_pad=False)
        self.pool = mean if pool > 1 else nn.Identity()
        self.pool_norm = nn.BatchNorm2d(dim) if pool > 1 else nn.Identity()
        self.q = multi_group(dim, dim)
        self.k = multi_group(dim, dim)
        self.v = multi_group(dim, dim)
        self.proj = multi_group(dim, dim)
        keys = grid and (ceil(grid[0] / pool), ceil(grid[1] / pool))
        self.probe = Probe(grid and Layout(grid, key_grid=keys))

    def forward(self, x: Tensor) -> Tensor:
        grid = tuple(x.shape[2:])
        x = self.norm(x)
        pooled = self.pool_norm(self.pool(x))
        per_head = "b (heads d) h w -> b heads (h w) d"
        q = rearrange(self.q(x), per_head, d=self.head_dim)  # (b, heads, n, d)
        k = rearrange(self.k(pooled), per_head, d=self.head_dim)  # (b, heads, m, d), m = n / pool²
        v = rearrange(self.v(pooled), per_head, d=self.head_dim)
        self.probe(lambda: attention_map(q, k), grid)
        y = rearrange(attention(q, k, v), "b heads (h w) d -> b (heads d) h w", h=grid[0])
        return self.proj(y)

    def fuse(self) -> LightAttention:  # pooling commutes with norms: keys and values take both
        fused = copy.deepcopy(self)
        norms = [self.norm, self.pool_norm]
        fused.q = fold_norms_before(norms[:1], self.q.fuse())
        fused.k = fold_norms_before(norms, self.k.fuse())
        fused.v = fold_norms_before(norms, self.v.fuse())
        fused.norm = nn.Identity()
        fused.pool_norm = nn.Identity()
        return fused


def check_bands(name: str, bands: tuple[int, int, int]) -> None:
    """Raise a `ValueError` that names the argument unless these bands can be built."""
    low, middle, high = bands
    if min(bands) < 0 or not low + high or (middle and not low):
        raise ValueError(
            f"{name}={tuple(bands)} must be at least 0, low or high above it; a middle band reads"
            " what a low band attended to"
        )


def band_widths(dim: int, bands: tuple[int, int, int], of: int) -> tuple[int, int, int]:
    """Channels of the low, middle and high band, multiples of `of`, in about these shares.

    Middle and high are rounded down, though not to 0; low has what is left, or high without low.
    """
    checks.multiple(of, "the width of a group and per head", dim=dim)
    low, middle, high = bands
    if not low:
        return 0, 0, dim
    parts = [of * max(dim * share // (sum(bands) * of), share > 0) for share in (middle, high)]
    return dim - sum(parts), *parts


class MixingBlock(nn.Module):
    """Bands of features, each with a path of its own, side by side, then mixed [P; wiring A].

    (b, in_chans, h, w) -> (b, Σ widths, ⌈h/stride⌉, ⌈w/stride⌉). widths: channels of
        low      e = embed(x);  l = e + attention(e)
        middle   e = embed(l);  m = e + convolution(e), of attended features
        high     e = embed(x);  h = e + convolution(e), of raw features
    0 leaves a band out. Without high this is Next-ViT's serial wiring, without middle a parallel
    one; high alone is a block of convolutions, for the paper's "CFB" [A].
    """

    def __init__(
        self,
        in_chans: int,
        widths: tuple[int, int, int],
        stride: int = 1,
        pool: int = 1,
        mlp_ratio: int = 2,
        group_width: int = 32,
        grid: tuple[int, int] | None = None,
    ):
        super().__init__()
        check_bands("widths", widths)
        low, middle, high = self.widths = tuple(widths)
        if low:
            self.low_embed = nextvit.Embed(in_chans, low, stride)
            self.low = LightAttention(low, group_width, pool, grid)
        if middle:
            self.middle_embed = nextvit.Embed(low, middle)
            self.middle = ConvMixer(middle, group_width)
        if high:
            self.high_embed = nextvit.Embed(in_chans, high, stride)
            self.high = ConvMixer(high, group_width)
        self.mlp = GroupMlp(low + middle + high, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        low, middle, high = self.widths
        bands = []
        if low:
            e = self.low_embed(x)
            bands.append(e + self.low(e))
        if middle:
            e = self.middle_embed(bands[0])
            bands.append(e + self.middle(e))
        if high:
            e = self.high_embed(x)
            bands.append(e + self.high(e))
        z = torch.cat(bands, dim=1)
        return z + self.mlp(z)


class FMViTR(nn.Module):
    """FMViT-R, a reconstruction, not the authors' network. Images (b, in_chans, h, w) -> logits.

    img_size: pixels, one number or (height, width), multiples of the stride, 32 for four stages.
        Other such sizes are computed as well; attention maps lie on images of this one.
    num_classes: 0 leaves the classifier out and gives pooled features (b, mixed_dims[-1]).
    stem_dims: widths of the stem's four convolutions [L].
    depths: blocks per stage; embed_dims: their widths where they convolve, mixed_dims where they
        mix bands, which the last of each stage but the first does, and every fifth [L].
    pools: side of the squares that keys are averaged over, per stage [L, there a run of tokens].
    bands: shares of the low, middle and high band [A].
    group_width: of grouped convolutions, and per head [L].
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        stem_dims: tuple[int, int, int, int] = (64, 32, 64, 64),
        depths: tuple[int, ...] = (3, 4, 10, 3),
        embed_dims: tuple[int, ...] = (96, 192, 384, 768),
        mixed_dims: tuple[int, ...] = (96, 256, 512, 1024),
        pools: tuple[int, ...] = (8, 4, 2, 1),
        bands: tuple[int, int, int] = (2, 1, 1),
        group_width: int = 32,
    ):
        super().__init__()
        checks.same_length(depths=depths, embed_dims=embed_dims, mixed_dims=mixed_dims, pools=pools)
        checks.at_least(1, in_chans=in_chans, depths=depths, pools=pools, group_width=group_width)
        checks.integer(0, num_classes=num_classes)
        check_bands("bands", bands)
        self.stride = 2 ** (len(depths) + 1)
        size = checks.image_size(img_size, self.stride, "the stride of the network")
        self.img_size = img_size
        self.in_chans = in_chans
        self.num_classes = num_classes

        self.stem = nextvit.stem(in_chans, stem_dims)
        self.stages = nn.Sequential()
        dim = stem_dims[-1]
        for i, depth in enumerate(depths):
            grid = (size[0] // 2 ** (i + 2), size[1] // 2 ** (i + 2))
            blocks = nn.Sequential()
            for j, mixes in enumerate(nextvit.stage_plan(depth, first=i == 0)):
                stride = 2 if i > 0 and j == 0 else 1
                mixed = band_widths(mixed_dims[i], bands, group_width) if mixes else None
                widths = mixed or (0, 0, embed_dims[i])
                sizes = stride, pools[i], 2 if mixes else 3, group_width, grid
                blocks.append(MixingBlock(dim, widths, *sizes))
                dim = sum(widths)
            self.stages.append(blocks)
        self.head = nextvit.NormPoolLinear(dim, num_classes) if num_classes else None
        nextvit.start_small(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map: (b, mixed_dims[-1], h/stride, w/stride)."""
        checks.image(images, self.in_chans, multiple=self.stride)
        return self.stages(self.stem(images))

    def forward_head(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if self.head is None else self.head(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> FMViTR:
        """A copy for inference, equal but for rounding (see `refimpl.deploy`)."""
        return deploy(self)


# R-S has Next-ViT-S's depths and widths [L], R-nano is for chapters and tests [A]. Neither is one
# of the authors' models, whose table was not at hand.
VARIANTS: dict[str, dict] = {
    "r_nano": {
        "img_size": 64,
        "stem_dims": (16, 8, 16, 16),
        "depths": (1, 2, 2, 1),
        "embed_dims": (16, 32, 48, 64),
        "mixed_dims": (16, 32, 48, 64),
        "group_width": 8,
    },
    "r_s": {},
}
MODEL = FMViTR
