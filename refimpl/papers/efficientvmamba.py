"""EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba.

Pei, Huang, Xu, arXiv 2403.09977 (2024). Official code: TerryPei/EfficientVMamba, folder
classification, commit 0bc5ee288b402d648641f5494b73e9d152e0c62b (Apache-2.0 by its README).

The idea
    1. A selective scan gives every token a view of all earlier ones at a cost linear in their
       number; images need several orders.
    2. Visual Mamba scans the whole map in four directions: it visits 4·L tokens for a map of L.
    3. Cut the map into its four parity classes, as an atrous convolution with step 2 would, and
       scan each class once: L visits in all (`ES2D`).
    4. What is near, a depthwise 3×3 convolution sees better: put it beside the scan, and weight
       both branches by squeeze-excite (`EVSSBlock`).
    5. Scans where there are many tokens, inverted residuals where there are few: stages 1–2 and
       stages 3–4.

The scan of parity class k over its tokens s_1 … s_{L/4}, for each of E channels and N states:

    [δ_t, B_t, C_t] = X_k s_t,   Δ_t = softplus(W_k δ_t + bias_k)       δ has R = ⌈d/16⌉ numbers
    h_t = exp(Δ_t A) ⊙ h_{t−1} + (Δ_t s_t) B_t,   y_t = h_t C_t + D s_t      A = −exp(A_log) < 0

That recurrence is Mamba's own. `kernels.selective_scan` computes it; `naive` in its file
`reference.py` is the plain loop to read.

Multiply-adds of a layer, per token: 3·d·E for the projections, E·(R + 2·N) + R·E for Δ, B and C;
about 9·N·E operations for the scan.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.kernels.selective_scan import selective_scan
from refimpl.layers import ConvNorm, DropPath, SqueezeExcite, drop_path_rates
from refimpl.weights import Rules


def atrous_scan(x: Tensor) -> Tensor:
    """The four sequences of a map: (b, c, h, w) -> (b, 4, c, ⌈h/2⌉·⌈w/2⌉).

    The official `step_size` visits offsets 0 and 1 only, so any step but 2 would lose pixels.
    """
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))  # odd sides: zeros right and bottom
    walks = [
        x[:, :, 0::2, 0::2],  # along the rows
        x[:, :, 1::2, 0::2].transpose(2, 3),  # down the columns
        x[:, :, 0::2, 1::2],  # along the rows
        x[:, :, 1::2, 1::2].transpose(2, 3),  # down the columns
    ]
    return torch.stack([walk.flatten(2) for walk in walks], dim=1)


def atrous_merge(y: Tensor, size: tuple[int, int]) -> Tensor:
    """Every token back at its pixel, padding cut off: (b, 4, c, l) -> (b, c, h, w), size = (h, w).

    The inverse of `atrous_scan`.
    """
    height = (size[0] + 1) // 2
    width = (size[1] + 1) // 2
    if y.dim() != 4 or y.shape[1] != 4 or y.shape[3] != height * width:
        raise ValueError(
            f"y must be (batch, 4, channels, {height * width}) for a map of size={tuple(size)},"
            f" got {tuple(y.shape)}"
        )
    parts = [
        y[:, 0].unflatten(2, (height, width)),
        y[:, 1].unflatten(2, (width, height)).transpose(2, 3),
        y[:, 2].unflatten(2, (height, width)),
        y[:, 3].unflatten(2, (width, height)).transpose(2, 3),
    ]
    x = rearrange(parts, "(column row) b c h w -> b c (h row) (w column)", row=2, column=2)
    return x[:, :, : size[0], : size[1]]


def four_scans(
    s: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """Four selective scans side by side, each with projections of its own: (b, 4, E, l), same back.

    x_proj: (4, R + 2·N, E); dt_proj: (4, E, R); dt_bias: (4, E); A: (4·E, N), < 0; D: (4·E,).
    """
    rank = dt_proj.shape[2]
    states = A.shape[1]
    dt, B, C = (x_proj @ s).split([rank, states, states], dim=2)  # B, C: (b, 4, N, l)
    dt = dt_proj @ dt + dt_bias[:, :, None]  # (b, 4, E, l)
    y = selective_scan(s.flatten(1, 2), dt.flatten(1, 2), A, B, C, D, delta_softplus=True)
    return y.unflatten(1, (4, -1))


class ES2D(nn.Module):
    """Efficient 2-D scan: (b, h, w, dim) -> (b, h, w, dim).

    Gate and values from one projection, a depthwise convolution, four scans, a norm, the gate.
    expand: E as a multiple of dim; dt_rank: R, ⌈dim/16⌉ unless given.
    """

    def __init__(
        self, dim: int, state_dim: int = 16, expand: float = 2.0, dt_rank: int | None = None
    ):
        super().__init__()
        inner_dim = int(expand * dim)
        checks.at_least(1, **{"state_dim": state_dim, "expand·dim": inner_dim})
        rank = dt_rank or math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * inner_dim, bias=False)
        self.conv2d = nn.Conv2d(inner_dim, inner_dim, 3, padding=1, groups=inner_dim)
        self.x_proj_weight = nn.Parameter(torch.empty(4, rank + 2 * state_dim, inner_dim))
        self.dt_projs_weight = nn.Parameter(torch.empty(4, inner_dim, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(4, inner_dim))
        A = torch.arange(1, state_dim + 1.0).repeat(4 * inner_dim, 1)
        self.A_logs = nn.Parameter(A.log())
        self.Ds = nn.Parameter(torch.ones(4 * inner_dim))
        self.out_norm = nn.LayerNorm(inner_dim)
        self.out_proj = nn.Linear(inner_dim, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Δ starts log-uniform in 0.001 … 0.1: channels that remember for 10 … 1000 tokens."""
        rank = self.dt_projs_weight.shape[2]
        nn.init.kaiming_uniform_(self.x_proj_weight.flatten(0, 1), a=math.sqrt(5))
        nn.init.uniform_(self.dt_projs_weight, -(rank**-0.5), rank**-0.5)
        log_dt = torch.empty_like(self.dt_projs_bias).uniform_(math.log(1e-3), math.log(1e-1))
        dt = log_dt.exp().clamp(min=1e-4)
        self.dt_projs_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus⁻¹

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1:3]
        values, gate = self.in_proj(x).chunk(2, dim=-1)  # (b, h, w, E) each
        values = F.silu(self.conv2d(values.permute(0, 3, 1, 2)))
        y = atrous_merge(self.scan(atrous_scan(values)), size)
        y = self.out_norm(y.permute(0, 2, 3, 1))
        return self.out_proj(y * F.silu(gate))

    def scan(self, s: Tensor) -> Tensor:
        """`four_scans` with this layer's weights: (b, 4, E, l) -> (b, 4, E, l)."""
        A = -self.A_logs.exp()
        return four_scans(
            s, self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, A, self.Ds
        )


class BiAttn(nn.Module):
    """Squeeze-excite on normalised tokens: (b, h, w, dim) -> (b, h, w, dim).

    The gate sees LayerNorm(x), and scales x itself.
    """

    def __init__(self, dim: int, ratio: float = 0.125):
        super().__init__()
        hidden_dim = int(ratio * dim)
        if hidden_dim < 1:
            raise ValueError(f"ratio·dim = {ratio}·{dim} leaves no channel to squeeze to")
        self.norm = nn.LayerNorm(dim)
        self.global_reduce = nn.Linear(dim, hidden_dim)
        self.channel_select = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.norm(x).mean((1, 2), keepdim=True)  # (b, 1, 1, dim)
        return x * torch.sigmoid(self.channel_select(F.gelu(self.global_reduce(squeezed))))


class EVSSBlock(nn.Module):
    """Scan and convolution side by side on the normalised map, one gate for both, a residual.

    (b, h, w, dim) -> (b, h, w, dim)
    """

    def __init__(
        self, dim: int, state_dim: int = 16, expand: float = 2.0, drop_path_rate: float = 0.0
    ):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.scan = ES2D(dim, state_dim, expand)
        self.conv_branch = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )
        self.se = BiAttn(dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        far = self.scan(normed)
        near = self.conv_branch(normed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.se(far) + self.se(near))


class InvertedResidual(nn.Module):
    """1×1 to `expand_ratio` times the width, depthwise 3×3, squeeze-excite, 1×1 back, a residual.

    (b, h, w, dim) -> (b, h, w, dim)
    """

    def __init__(
        self, dim: int, expand_ratio: int = 4, se_ratio: float = 0.125, drop_path_rate: float = 0.0
    ):
        super().__init__()
        hidden_dim = expand_ratio * dim
        self.pw1 = ConvNorm(dim, hidden_dim)
        self.dw = ConvNorm(hidden_dim, hidden_dim, 3, groups=hidden_dim)
        self.se = SqueezeExcite(hidden_dim, int(se_ratio * hidden_dim))
        self.pw2 = ConvNorm(hidden_dim, dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 3, 1, 2)  # (b, dim, h, w)
        y = F.relu(self.pw1(y))
        y = F.relu(self.dw(y))
        y = self.pw2(self.se(y))
        return x + self.drop_path(y.permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """The four pixels of each 2×2 square side by side, normalised and projected.

    (b, h, w, dim) -> (b, ⌈h/2⌉, ⌈w/2⌉, out_dim)
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = rearrange(x, "b (h row) (w column) c -> b h w (column row c)", row=2, column=2)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Blocks, then patch merging (not in the last stage).

    (b, h, w, dim) -> (b, ⌈h/2⌉, ⌈w/2⌉, 2·dim)
    """

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class EfficientVMamba(nn.Module):
    """Images (b, in_chans, height, width) -> logits (b, num_classes).

    Any height and width that are multiples of 4, the stride of the patches; img_size (a number or a
    pair) records what the variants were trained with. The width doubles from stage to stage; the
    first two hold EVSS blocks, the others inverted residuals. drop_path_rate is reached linearly
    over all blocks. num_classes=0 leaves the head out and gives pooled features (b, dim). Raises
    `ValueError` for arguments and images that do not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 48,
        depths: tuple[int, ...] = (2, 2, 4, 2),
        state_dim: int = 16,
        expand: float = 2.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.image_size(img_size, 4, "the stride of the patches")
        checks.same_length(depths=depths)
        checks.at_least(1, in_chans=in_chans, depths=depths)
        checks.integer(0, num_classes=num_classes)
        checks.at_least(8, embed_dim=embed_dim)  # the gates squeeze to an eighth of it
        checks.fraction(drop_path_rate=drop_path_rate)
        self.img_size = img_size
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, 4, 4)
        self.patch_norm = nn.LayerNorm(embed_dim)
        rates = drop_path_rates(drop_path_rate, sum(depths))
        self.stages = nn.Sequential()
        for i, depth in enumerate(depths):
            dim = embed_dim * 2**i
            first = sum(depths[:i])
            blocks = []
            for rate in rates[first : first + depth]:
                if i < 2:
                    blocks.append(EVSSBlock(dim, state_dim, expand, rate))
                else:
                    blocks.append(InvertedResidual(dim, drop_path_rate=rate))
            last = i + 1 == len(depths)
            self.stages.append(Stage(blocks, nn.Identity() if last else PatchMerging(dim, 2 * dim)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, channels first, before its norm: (b, dim, h, w)."""
        checks.image(images, self.in_chans, multiple=4)
        x = self.patch_embed(images).permute(0, 2, 3, 1)
        return self.stages(self.patch_norm(x)).permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor) -> Tensor:
        x = self.norm(x.permute(0, 2, 3, 1))
        return self.head(x.mean((1, 2)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> EfficientVMamba:
        """A copy for inference: batch norms folded, 1×1 convolutions as matrix products (see
        `refimpl.deploy`). The layer norms depend on the image and stay."""
        return deploy(self)


# Official names, and those of older checkpoints, which the official loader renames.
NAMES: dict[str, Rules] = {
    "official": [
        (r"^patch_embed\.(0|proj)\.", "patch_embed."),
        (r"^patch_embed\.(2|norm)\.", "patch_norm."),
        (r"^classifier\.", ""),
        (r"^layers\.(\d)\.\d+\.(norm|reduction)\.", r"stages.\1.downsample.\2."),
        (r"^layers\.(\d)\.(\d+)\.", lambda m: f"stages.{m[1]}.blocks.{int(m[2]) - 1}."),
        (r"^layers\.", "stages."),
        (r"(^|\.)ln_1\.", r"\1norm."),
        (r"(^|\.)(op|self_attention)\.", r"\1scan."),
        (r"(^|\.)conv_reduce\.", r"\1fc1."),
        (r"(^|\.)conv_expand\.", r"\1fc2."),
        (r"(^|\.)conv_pw\.", r"\1pw1."),
        (r"(^|\.)conv_(pw2|dw)\.", r"\1\2."),
        (r"(^|\.)(pw[12]|dw)\.0\.", r"\1\2.conv."),
        (r"(^|\.)(pw[12]|dw)\.1\.", r"\1\2.norm."),
    ]
}

# Width of the first stage and depths: the released models (the authors' configuration file for S
# says 96, its log and weights 64).
VARIANTS: dict[str, dict] = {
    "tiny": dict(embed_dim=48, depths=(2, 2, 4, 2)),
    "small": dict(embed_dim=64, depths=(2, 2, 4, 2)),
    "base": dict(embed_dim=96, depths=(2, 2, 9, 2)),
}
MODEL = EfficientVMamba
