"""EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba.

Pei, Huang, Xu, arXiv 2403.09977 (2024). Official code: TerryPei/EfficientVMamba, folder classification, commit
0bc5ee288b402d648641f5494b73e9d152e0c62b (Apache-2.0 by its README).

The idea
    1. A selective scan gives every token a view of all earlier ones at a cost linear in their number; images need several orders.
    2. Visual Mamba scans the whole map in four directions: 4·N tokens for N pixels.
    3. Cut the map into its four parity classes, as an atrous convolution with step 2 would, and scan each class once: N tokens in all (`ES2D`).
    4. What is near, a depthwise 3×3 convolution sees better: put it beside the scan, and weight both branches by squeeze-excite (`EVSSBlock`).
    5. Scans where there are many tokens, inverted residuals where there are few: stages 1–2 and stages 3–4.

The scan of parity class k over its tokens s_1 … s_L (L = ⌈H/2⌉⌈W/2⌉), for each of E channels and N states:

    [δ_t, B_t, C_t] = X_k s_t,   Δ_t = softplus(W_k δ_t + bias_k)            δ has R = ⌈d/16⌉ numbers
    h_t = exp(Δ_t A) ⊙ h_{t−1} + (Δ_t s_t) B_t,   y_t = h_t C_t + D s_t      A = −exp(A_log) < 0

Multiply-adds of a layer for N pixels: 3·d·E projections, E·(R + 2n) + R·E for Δ, B, C and about 9·n·E operations of the scan, all a pixel.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.kernels.selective_scan import selective_scan
from refimpl.layers import ConvNorm, DropPath, SqueezeExcite
from refimpl.weights import Rules

# Parity classes (row, column) of the four scans; the second and the last run down the columns, the others along the rows.
CLASSES = ((0, 0), (1, 0), (0, 1), (1, 1))
DOWN = (False, True, False, True)


def atrous_scan(x: Tensor, step: int = 2) -> Tensor:
    """The four sequences of a map: (b, c, h, w) -> (b, 4, c, ⌈h/2⌉·⌈w/2⌉). Odd sides are padded with zeros at the bottom and right."""
    check_step(step)
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    parts = (x[:, :, row::2, column::2] for row, column in CLASSES)
    return torch.stack(
        [
            (part.transpose(2, 3) if down else part).flatten(2)
            for part, down in zip(parts, DOWN, strict=True)
        ],
        1,
    )


def atrous_merge(y: Tensor, size: tuple[int, int], step: int = 2) -> Tensor:
    """Every token back at its pixel, padding cut off: (b, 4, c, l) -> (b, c, h, w). The inverse of `atrous_scan`."""
    check_step(step)
    height, width = (-(-side // 2) for side in size)
    if y.dim() != 4 or y.shape[1] != 4 or y.shape[3] != height * width:
        raise ValueError(
            f"y must be (batch, 4, channels, {height * width}) for a map of size={tuple(size)}, got {tuple(y.shape)}"
        )
    x = y.new_empty(len(y), y.shape[2], 2 * height, 2 * width)
    for (row, column), down, part in zip(CLASSES, DOWN, y.unbind(1), strict=True):
        x[:, :, row::2, column::2] = (
            part.unflatten(2, (width, height)).transpose(2, 3)
            if down
            else part.unflatten(2, (height, width))
        )
    return x[:, :, : size[0], : size[1]]


def check_step(step: int) -> None:
    if step != 2:
        raise ValueError(
            f"step={step} is not supported: the official scan visits offsets 0 and 1 only, so with any step but 2 pixels are lost"
        )


class ES2D(nn.Module):
    """Efficient 2-D scan: (b, h, w, dim) -> (b, h, w, dim). Gate and values from one projection, a depthwise convolution, four scans, a norm, the gate."""

    def __init__(
        self, dim: int, state_dim: int = 16, expand: float = 2.0, dt_rank: int | None = None
    ):
        super().__init__()
        inner = int(expand * dim)
        rank = dt_rank or math.ceil(dim / 16)
        if state_dim < 1 or inner < 1:
            raise ValueError(f"state_dim={state_dim} and expand·dim={inner} must be at least 1")
        self.inner, self.rank, self.state_dim = inner, rank, state_dim
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj = nn.Parameter(torch.empty(4, rank + 2 * state_dim, inner))
        self.dt_proj = nn.Parameter(torch.empty(4, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(4, inner))
        self.A_log = nn.Parameter(torch.arange(1, state_dim + 1.0).log().repeat(4 * inner, 1))
        self.D = nn.Parameter(torch.ones(4 * inner))
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Δ starts log-uniform between 0.001 and 0.1: channels that remember for ten to a thousand tokens."""
        nn.init.kaiming_uniform_(self.x_proj.flatten(0, 1), a=math.sqrt(5))
        nn.init.uniform_(self.dt_proj, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            dt = (
                torch.empty_like(self.dt_bias)
                .uniform_(math.log(1e-3), math.log(1e-1))
                .exp_()
                .clamp_(min=1e-4)
            )
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus⁻¹

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1:3]
        x, z = self.in_proj(x).chunk(2, -1)
        x = F.silu(self.conv(x.permute(0, 3, 1, 2)))
        y = atrous_merge(self.scan(atrous_scan(x)), size)
        return self.out_proj(self.norm(y.permute(0, 2, 3, 1)) * F.silu(z))

    def scan(self, s: Tensor) -> Tensor:
        """The four selective scans side by side, one group of channels each: (b, 4, inner, l) -> the same shape."""
        dt, B, C = (self.x_proj @ s).split((self.rank, self.state_dim, self.state_dim), 2)
        dt = (self.dt_proj @ dt).flatten(1, 2)
        y = selective_scan(
            s.flatten(1, 2),
            dt,
            -self.A_log.exp(),
            B,
            C,
            self.D,
            delta_bias=self.dt_bias.flatten(),
            delta_softplus=True,
        )
        return y.view_as(s)


class BiAttn(nn.Module):
    """Squeeze-excite on normalised tokens: (b, h, w, dim) -> the same shape. The gate sees LayerNorm(x), and scales x itself."""

    def __init__(self, dim: int, ratio: float = 0.125):
        super().__init__()
        hidden_dim = int(ratio * dim)
        if hidden_dim < 1:
            raise ValueError(f"ratio·dim = {ratio}·{dim} leaves no channel to squeeze to")
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        g = self.norm(x).mean((1, 2), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.gelu(self.fc1(g))))


class EVSSBlock(nn.Module):
    """Scan and convolution side by side on the normalised map, one gate for both, a residual: (b, h, w, dim) -> the same shape."""

    def __init__(self, dim: int, state_dim: int = 16, expand: float = 2.0, drop_path: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.scan = ES2D(dim, state_dim, expand)
        self.conv = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )
        self.gate = BiAttn(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        near = self.conv(n.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.gate(self.scan(n)) + self.gate(near))


class InvertedResidual(nn.Module):
    """1×1 to four times the width, depthwise 3×3, squeeze-excite, 1×1 back, a residual: (b, h, w, dim) -> the same shape."""

    def __init__(
        self, dim: int, expand_ratio: int = 4, se_ratio: float = 0.125, drop_path: float = 0.0
    ):
        super().__init__()
        hidden_dim = expand_ratio * dim
        self.pw1 = ConvNorm(dim, hidden_dim)
        self.dw = ConvNorm(hidden_dim, hidden_dim, 3, groups=hidden_dim)
        self.se = SqueezeExcite(hidden_dim, int(se_ratio * hidden_dim))
        self.pw2 = ConvNorm(hidden_dim, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 3, 1, 2)
        y = self.pw2(self.se(F.relu_(self.dw(F.relu_(self.pw1(y))))))
        return x + self.drop_path(y.permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """The four pixels of each 2×2 square side by side, normalised and projected: (b, h, w, dim) -> (b, ⌈h/2⌉, ⌈w/2⌉, out_dim)."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return self.reduction(
            self.norm(torch.cat([x[:, row::2, column::2] for row, column in CLASSES], -1))
        )


class Stage(nn.Module):
    """Blocks, then patch merging (not in the last stage): (b, h, w, dim) -> (b, ⌈h/2⌉, ⌈w/2⌉, 2·dim)."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class EfficientVMamba(nn.Module):
    """Images (b, in_chans, height, width) -> logits (b, num_classes).

    Any height and width that are multiples of 4, the stride of the patches; `img_size` records what the variants were trained with. The first two stages hold
    EVSS blocks, the others inverted residuals. `drop_path` grows linearly to its value over all blocks.
    """

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 48,
        depths: tuple[int, ...] = (2, 2, 4, 2),
        state_dim: int = 16,
        expand: float = 2.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if img_size < 4 or img_size % 4:
            raise ValueError(
                f"img_size={img_size} must be a positive multiple of 4, the stride of the patches"
            )
        if embed_dim < 8:
            raise ValueError(
                f"embed_dim={embed_dim} must be at least 8: the gates squeeze to an eighth of it"
            )
        if not depths or min(in_chans, num_classes, *depths) < 1:
            raise ValueError(
                f"in_chans={in_chans}, num_classes={num_classes} and every entry of {depths=} must be at least 1"
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path} must be in [0, 1)")
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, 4, 4)
        self.patch_norm = nn.LayerNorm(embed_dim)
        rates = iter([drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths))])
        stages = []
        for i, depth in enumerate(depths):
            dim = embed_dim * 2**i
            if i < 2:
                blocks = [
                    EVSSBlock(dim, state_dim, expand, drop_path=next(rates)) for _ in range(depth)
                ]
            else:
                blocks = [InvertedResidual(dim, drop_path=next(rates)) for _ in range(depth)]
            stages.append(
                Stage(blocks, PatchMerging(dim, 2 * dim) if i + 1 < len(depths) else nn.Identity())
            )
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        for linear in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, channels first, before its norm: (b, dim, h, w)."""
        checks.image(images, self.in_chans, multiple=4)
        x = self.patch_norm(self.patch_embed(images).permute(0, 2, 3, 1))
        return self.stages(x).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.forward_features(images).permute(0, 2, 3, 1)
        return self.head(self.norm(x).mean((1, 2)))

    def fuse(self) -> EfficientVMamba:
        return deploy(self)

    name_maps: dict[str, Rules] = {}


# Official names, and those of older checkpoints, which the official loader renames.
EfficientVMamba.name_maps = {
    "official": [
        (r"^patch_embed\.(0|proj)\.", "patch_embed."),
        (r"^patch_embed\.(2|norm)\.", "patch_norm."),
        (r"^classifier\.", ""),
        (r"^layers\.(\d)\.\d+\.(norm|reduction)\.", r"stages.\1.downsample.\2."),
        (r"^layers\.(\d)\.(\d+)\.", lambda m: f"stages.{m[1]}.blocks.{int(m[2]) - 1}."),
        (r"^layers\.", "stages."),
        (r"(^|\.)ln_1\.", r"\1norm."),
        (r"(^|\.)(op|self_attention)\.", r"\1scan."),
        (r"(^|\.)out_norm\.", r"\1norm."),
        (r"(^|\.)conv2d\.", r"\1conv."),
        (r"(^|\.)x_proj_weight$", r"\1x_proj"),
        (r"(^|\.)dt_projs_weight$", r"\1dt_proj"),
        (r"(^|\.)dt_projs_bias$", r"\1dt_bias"),
        (r"(^|\.)A_logs$", r"\1A_log"),
        (r"(^|\.)Ds$", r"\1D"),
        (r"(^|\.)conv_branch\.", r"\1conv."),
        (r"(^|\.)se\.(norm|global_reduce|channel_select)\.", r"\1gate.\2."),
        (r"(^|\.)(global|conv)_reduce\.", r"\1fc1."),
        (r"(^|\.)(channel_select|conv_expand)\.", r"\1fc2."),
        (r"(^|\.)conv_pw\.", r"\1conv_pw1."),
        (r"(^|\.)conv_(pw[12]|dw)\.0\.", r"\1\2.conv."),
        (r"(^|\.)conv_(pw[12]|dw)\.1\.", r"\1\2.norm."),
    ]
}

# Width of the first stage and depths: the released models (the authors' configuration file for S says 96, its log and weights 64).
VARIANTS: dict[str, dict] = {
    "tiny": dict(embed_dim=48, depths=(2, 2, 4, 2)),
    "small": dict(embed_dim=64, depths=(2, 2, 4, 2)),
    "base": dict(embed_dim=96, depths=(2, 2, 9, 2)),
}
MODEL = EfficientVMamba
