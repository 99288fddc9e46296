"""EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality.

Lee, Choi, Kim, CVPR 2025, arXiv 2411.15241. Official code: mlvlab/EfficientViM, folder classification, commit
304340cb9c339b61669250d058525c9cdadd5e93 (MIT).

The idea
    1. A state-space layer writes l tokens into n states and reads them out again: cheap, 2·l·n·D. Its projections, 3·l·D², are what costs.
    2. An image has no arrow of time: drop the decay, let every token read the same states (non-causal SSD, `nc_ssd`).
    3. Linear maps commute with writing and reading. So mix the channels of the n *states* instead of the l tokens: 3·n·D².
    4. Only the gate is not linear; the layer defines it on the hidden state (the *hidden state mixer*).
    5. Each state weights the tokens by a softmax of its own, so one head does the work of many; the stages' hidden states also feed the classifier.

The layer, for tokens X (D × l) on a grid:

    [B; C; Δ] = depthwise₃ₓ₃(W_BCΔ LN(X))                      3n × l, no bias, no activation
    w = softmax over tokens of (Δ + A)                        n × l; A cancels, see `HSMSSD`
    h = X (w ∘ B)ᵀ                                            D × n
    [p; z] = W_hz h,   h' = W_out (p ∘ silu(z) + δ p)         channel mixing on n columns
    Y = h' C                                                  D × l

Multiply-adds: 3·l·n·D + 27·l·n for B, C, Δ; 2·l·n·D to write and read; 3·n·D² to mix.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.kernels.hsm_ssd import hsm_ssd
from refimpl.layers import ConvNorm, Probe, SqueezeExcite
from refimpl.weights import Rules


def nc_ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    positive: bool = False,
    groups: int = 1,
) -> Tensor:
    """Non-causal SSD (VSSD, YuHengsss/VSSD @ 87b753b): the state sums all tokens, S = Σ_s w_s b_s x_sᵀ, and y_t = Sᵀ c_t + D x_t.

    x: (b, l, h, p); dt: (b, l, h), A, D: (h); B, C: (b, l, groups·n), head i reads group i mod groups. A token's weight is w = dt·A, with `positive` −dt·A.
    """
    x, dt = x.transpose(1, 2), dt.transpose(1, 2)[..., None]  # heads first
    per_head = lambda m: (
        m.unflatten(2, (groups, -1)).transpose(1, 2).repeat(1, x.shape[1] // groups, 1, 1)
    )  # noqa: E731
    weight = dt * A[:, None, None] * (-1 if positive else 1)
    state = per_head(B).transpose(-1, -2) @ (x * weight)
    return (per_head(C) @ state + x * D[:, None, None]).transpose(1, 2)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels at each position: (b, dim, …) -> the same shape, channels staying where they are."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(
            x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps
        ).movedim(-1, 1)


class HSMSSD(nn.Module):
    """The hidden-state-mixer layer: map (b, dim, h, w) -> map (b, dim, h, w) and mixed hidden state (b, dim, state_dim).

    `A` is a dead parameter: added to logits that a softmax over tokens normalises, it cancels. It is kept so that official weights load.
    """

    def __init__(self, dim: int, state_dim: int, expand: float = 1.0):
        super().__init__()
        inner = int(expand * dim)
        if state_dim < 1 or inner < 1:
            raise ValueError(f"state_dim={state_dim} and expand·dim={inner} must be at least 1")
        self.state_dim = state_dim
        self.bcdt = nn.Conv2d(dim, 3 * state_dim, 1, bias=False)
        self.dw = nn.Conv2d(
            3 * state_dim, 3 * state_dim, 3, padding=1, groups=3 * state_dim, bias=False
        )
        self.hz = nn.Parameter(torch.empty(2 * inner, dim))
        self.out = nn.Parameter(torch.empty(dim, inner))
        for weight in (self.hz, self.out):
            nn.init.kaiming_uniform_(
                weight, a=5**0.5
            )  # torch's default for convolutions and linear layers
        self.A = nn.Parameter(torch.empty(state_dim).uniform_(1, 16))
        self.D = nn.Parameter(torch.ones(1))  # δ
        self.probe = Probe()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        B, C, dt = self.dw(self.bcdt(x)).flatten(2).chunk(3, 1)
        self.probe(lambda: importance(dt), tuple(x.shape[2:]))
        y, h = hsm_ssd(x.flatten(2), dt, B, C, self.A, self.D, self.hz, self.out)
        return y.unflatten(2, x.shape[2:]), h


def importance(dt: Tensor) -> Tensor:
    """How much each state takes of each token, a state as a head: (b, n, l, l). All tokens read the same states, so its rows are equal."""
    return dt.softmax(-1)[:, :, None].expand(-1, -1, dt.shape[-1], -1)


class FeedForward(nn.Module):
    """1×1 convolutions dim → hidden_dim → dim with ReLU between: (b, dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.pw1 = ConvNorm(dim, hidden_dim)
        self.pw2 = ConvNorm(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(F.relu_(self.pw1(x)))


class Block(nn.Module):
    """Four sub-layers, each blended in by a learned share a channel, x ← (1 − σ(α)) x + σ(α) f(x): depthwise, mixer, depthwise, feed-forward.

    (b, dim, h, w) -> the same shape, and the mixer's hidden state (b, dim, state_dim). α starts near 0, so that a half of each is taken.
    """

    def __init__(self, dim: int, state_dim: int, mlp_ratio: float = 4.0, expand: float = 1.0):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((4, dim), 1e-4))
        self.dw1 = ConvNorm(dim, dim, 3, groups=dim)
        self.norm = ChannelNorm(dim)
        self.mixer = HSMSSD(dim, state_dim, expand)
        self.dw2 = ConvNorm(dim, dim, 3, groups=dim)
        self.ffn = FeedForward(dim, int(mlp_ratio * dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.sigmoid(self.alpha)[:, None, :, None, None]
        x = torch.lerp(x, self.dw1(x), share[0])
        y, h = self.mixer(self.norm(x))
        x = torch.lerp(x, y, share[1])
        x = torch.lerp(x, self.dw2(x), share[2])
        return torch.lerp(x, self.ffn(x), share[3]), h


class PatchMerging(nn.Module):
    """Halve the map through an inverted bottleneck with squeeze-excite: (b, dim, h, w) -> (b, out_dim, ⌈h/2⌉, ⌈w/2⌉)."""

    def __init__(self, dim: int, out_dim: int, ratio: float = 4.0):
        super().__init__()
        hidden_dim = int(ratio * out_dim)
        self.dw1 = ConvNorm(dim, dim, 3, groups=dim)
        self.conv1 = ConvNorm(dim, hidden_dim)
        self.conv2 = ConvNorm(hidden_dim, hidden_dim, 3, stride=2, groups=hidden_dim)
        self.se = SqueezeExcite(hidden_dim, hidden_dim // 4)
        self.conv3 = ConvNorm(hidden_dim, out_dim)
        self.dw2 = ConvNorm(out_dim, out_dim, 3, groups=out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(x + self.dw1(x)))
        x = F.relu_(self.conv2(x))
        x = self.conv3(self.se(x))
        return x + self.dw2(x)


class Stage(nn.Module):
    """Blocks, then patch merging (not in the last stage). Returns what goes on, the tokens before merging, and the last block's hidden state."""

    def __init__(self, blocks: list[Block], downsample: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for block in self.blocks:
            x, h = block(x)
        return self.downsample(x), x, h


class FusionHead(nn.Module):
    """Multi-stage hidden state fusion: Σ_s β_s·Linear_s(pooled_s), with β the softmax of one free number a source."""

    def __init__(self, dims: list[int], num_classes: int):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(len(dims)))
        self.linears = nn.ModuleList(nn.Linear(dim, num_classes) for dim in dims)
        for layer in self.linears:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: list[Tensor]) -> Tensor:
        return sum(
            beta * linear(x)
            for beta, linear, x in zip(self.weights.softmax(0), self.linears, pooled, strict=True)
        )


class EfficientViM(nn.Module):
    """Images (b, in_chans, height, width) -> logits (b, num_classes).

    One entry a stage in `embed_dim`, `depths` and `state_dim`. Any height and width from 16 pixels on; `img_size` records what the variant was trained with.
    `distillation` adds a second head: in training the pair (logits, distilled logits) is returned, in evaluation their mean.
    """

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: tuple[int, ...] = (128, 192, 320),
        depths: tuple[int, ...] = (2, 2, 2),
        state_dim: tuple[int, ...] = (49, 25, 9),
        mlp_ratio: float = 4.0,
        ssd_expand: float = 1.0,
        distillation: bool = False,
    ):
        super().__init__()
        if not len(embed_dim) == len(depths) == len(state_dim) >= 1:
            raise ValueError(
                f"{embed_dim=}, {depths=} and {state_dim=} must be equally long: one entry for each stage"
            )
        if embed_dim[0] % 8:
            raise ValueError(
                f"embed_dim[0]={embed_dim[0]} must be a multiple of 8: the stem starts at an eighth of it"
            )
        if min(in_chans, num_classes, *depths, *state_dim) < 1:
            raise ValueError(
                f"in_chans={in_chans}, num_classes={num_classes} and every entry of {depths=} and {state_dim=} must be at least 1"
            )
        if img_size < 16:
            raise ValueError(f"img_size={img_size} must be at least 16, the stride of the stem")
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes

        widths = [in_chans, *(embed_dim[0] // n for n in (8, 4, 2, 1))]
        stem = [
            layer
            for i in range(4)
            for layer in (ConvNorm(widths[i], widths[i + 1], 3, stride=2), nn.ReLU(inplace=True))
        ]
        self.patch_embed = nn.Sequential(*stem[:-1])
        stages = []
        for dim, next_dim, depth, states in zip(
            embed_dim, [*embed_dim[1:], None], depths, state_dim, strict=True
        ):
            blocks = [Block(dim, states, mlp_ratio, ssd_expand) for _ in range(depth)]
            stages.append(Stage(blocks, PatchMerging(dim, next_dim) if next_dim else nn.Identity()))
        self.stages = nn.ModuleList(stages)
        sources = [*embed_dim, embed_dim[-1]]  # the hidden state of every stage, and the last map
        self.norms = nn.ModuleList(ChannelNorm(dim) for dim in sources)
        self.head = FusionHead(sources, num_classes)
        self.head_dist = FusionHead(sources, num_classes) if distillation else None

    def forward_intermediates(self, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The stem's map, and of every stage the tokens before merging (b, dim, h, w) and the hidden state of its last block (b, dim, n)."""
        checks.image(images, self.in_chans)
        if min(images.shape[2:]) < 16:
            raise ValueError(
                f"images are {images.shape[2]}×{images.shape[3]} pixels, both sides must be at least 16, the stride of the stem"
            )
        x = stem = self.patch_embed(images)
        maps, hidden = [], []
        for stage in self.stages:
            x, tokens, h = stage(x)
            maps.append(tokens)
            hidden.append(h)
        return stem, maps, hidden

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map: (b, embed_dim[-1], h, w)."""
        return self.forward_intermediates(images)[1][-1]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        _, maps, hidden = self.forward_intermediates(images)
        pooled = [
            norm(x).flatten(2).mean(-1)
            for norm, x in zip(self.norms, [*hidden, maps[-1]], strict=True)
        ]
        if self.head_dist is None:
            return self.head(pooled)
        pair = self.head(pooled), self.head_dist(pooled)
        return pair if self.training else (pair[0] + pair[1]) / 2

    def fuse(self) -> EfficientViM:
        return deploy(self)

    name_maps: dict[str, Rules] = {}


# Official names; timm kept them all.
OFFICIAL: Rules = [
    (r"patch_embed\.conv\.(\d)", lambda m: f"patch_embed.{2 * int(m[1])}"),
    (r"(^|\.)conv\.([01])\.", lambda m: f"{m[1]}conv{int(m[2]) + 1}."),
    (r"(^|\.)conv\.2\.", r"\1se."),
    (r"(^|\.)conv\.3\.", r"\1conv3."),
    (r"(^|\.)BCdt_proj\.conv\.", r"\1bcdt."),
    (r"(^|\.)dw\.conv\.", r"\1dw."),
    (r"(^|\.)(hz|out)_proj\.conv\.weight$", r"\1\2"),
    (r"(^|\.)dwconv([12])\.", r"\1dw\2."),
    (r"(^|\.)ffn\.fc([12])\.", r"\1ffn.pw\2."),
    (r"^norm\.(\d)\.", r"norms.\1."),
    (r"^weights(_dist)?$", r"head\1.weights"),
    (r"^heads(_dist)?\.(\d)\.", r"head\1.linears.\2."),
]
EfficientViM.name_maps = {"official": OFFICIAL, "timm": OFFICIAL}

# Width, depth and number of states of each stage.
VARIANTS: dict[str, dict] = {
    "m1": dict(embed_dim=(128, 192, 320), depths=(2, 2, 2), state_dim=(49, 25, 9)),
    "m2": dict(embed_dim=(128, 256, 512), depths=(2, 2, 2), state_dim=(49, 25, 9)),
    "m3": dict(embed_dim=(224, 320, 512), depths=(2, 2, 2), state_dim=(49, 25, 9)),
    "m4": dict(embed_dim=(224, 320, 512), depths=(3, 4, 2), state_dim=(64, 32, 16), img_size=256),
}
VARIANTS |= {f"{name}_dist": kwargs | {"distillation": True} for name, kwargs in VARIANTS.items()}
MODEL = EfficientViM
