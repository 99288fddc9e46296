"""EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality.

Lee, Choi, Kim, CVPR 2025, arXiv 2411.15241. Official code: mlvlab/EfficientViM, folder
classification, commit 304340cb9c339b61669250d058525c9cdadd5e93 (MIT).

The idea
    1. A state-space layer writes l tokens into n states and reads them out again: cheap, 2·l·n·D.
       Its projections, 3·l·D², are what costs.
    2. An image has no arrow of time: drop the decay, let every token read the same states
       (non-causal SSD, `kernels.ssd.noncausal`).
    3. Linear maps commute with writing and reading. So mix the channels of the n *states* instead
       of the l tokens: 3·n·D².
    4. Only the gate is not linear; the layer defines it on the hidden state (the *hidden state
       mixer*).
    5. Each state weights the tokens by a softmax of its own, so one head does the work of many; the
       stages' hidden states also feed the classifier.

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
from refimpl.layers import ConvFeedForward, ConvNorm, Probe, SqueezeExcite, conv_stem
from refimpl.weights import Rules


def hidden_state_mixer(
    x: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    A: Tensor,
    delta: Tensor,
    W_hz: Tensor,
    W_out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Tokens into states, mixed there, read out: y (b, d, l) and the mixed states (b, d, n).

    x: (b, d, l); B, C, dt (Δ): (b, n, l); A: (n,); delta (δ): (1,); W_hz: (2e, d); W_out: (d, e).
    """
    w = (dt + A[:, None]).softmax(dim=-1)  # how much each state takes of each token: (b, n, l)
    h = x @ (w * B).transpose(1, 2)  # tokens -> states: (b, d, n)
    p, z = (W_hz @ h).chunk(2, dim=1)  # (b, e, n) each
    h = W_out @ (p * F.silu(z) + delta * p)  # channels are mixed on n states, not on l tokens
    return h @ C, h  # states -> tokens: (b, d, l)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels at each position: (b, dim, …) -> (b, dim, …)."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)  # channels last, as `layer_norm` wants them
        x = F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1)


class HSMSSD(nn.Module):
    """The layer around the mixer: (b, dim, h, w) -> (b, dim, h, w), and states (b, dim, state_dim).

    `A` is a dead parameter: added to logits that a softmax over tokens normalises, it cancels. It
    is kept so that official weights load. expand: width of the mixer as a multiple of dim.
    """

    def __init__(self, dim: int, state_dim: int, expand: float = 1.0):
        super().__init__()
        inner_dim = int(expand * dim)
        checks.at_least(1, **{"state_dim": state_dim, "expand·dim": inner_dim})
        width = 3 * state_dim
        self.bcdt = nn.Conv2d(dim, width, 1, bias=False)
        self.dw = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.hz = nn.Parameter(torch.empty(2 * inner_dim, dim))
        self.out = nn.Parameter(torch.empty(dim, inner_dim))
        for weight in (self.hz, self.out):
            nn.init.kaiming_uniform_(weight, a=5**0.5)  # PyTorch's default for linear layers
        self.A = nn.Parameter(torch.empty(state_dim).uniform_(1, 16))
        self.D = nn.Parameter(torch.ones(1))  # δ
        self.probe = Probe()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grid = x.shape[2:]
        B, C, dt = self.dw(self.bcdt(x)).flatten(2).chunk(3, dim=1)  # (b, n, l) each
        self.probe(lambda: importance_map(dt), tuple(grid))
        y, h = hidden_state_mixer(x.flatten(2), B, C, dt, self.A, self.D, self.hz, self.out)
        return y.unflatten(2, grid), h


def importance_map(dt: Tensor) -> Tensor:
    """How much each state takes of each token, a state as a head: (b, n, l) -> (b, n, l, l).

    All tokens read the same states, so the rows of a state's map are equal.
    """
    weights = dt.softmax(dim=-1)
    return weights[:, :, None].expand(-1, -1, dt.shape[-1], -1)


def blend(x: Tensor, y: Tensor, share: Tensor) -> Tensor:
    """(1 − share) x + share y, with one share per channel: (b, c, h, w); share: (c,)."""
    return x + share[:, None, None] * (y - x)


class Block(nn.Module):
    """Four sub-layers: depthwise convolution, mixer, depthwise convolution, feed-forward.

    (b, dim, h, w) -> (b, dim, h, w), and the mixer's states (b, dim, state_dim). Each is blended in
    with a learned per-channel weight, x ← (1 − σ(α)) x + σ(α) f(x). α starts near 0, so that input
    and sub-layer start with weight ½ each.
    """

    def __init__(self, dim: int, state_dim: int, mlp_ratio: float = 4.0, expand: float = 1.0):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((4, dim), 1e-4))
        self.dw1 = ConvNorm(dim, dim, 3, groups=dim)
        self.norm = ChannelNorm(dim)
        self.mixer = HSMSSD(dim, state_dim, expand)
        self.dw2 = ConvNorm(dim, dim, 3, groups=dim)
        self.ffn = ConvFeedForward(dim, int(mlp_ratio * dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.sigmoid(self.alpha)  # (4, dim)
        x = blend(x, self.dw1(x), share[0])
        y, h = self.mixer(self.norm(x))
        x = blend(x, y, share[1])
        x = blend(x, self.dw2(x), share[2])
        x = blend(x, self.ffn(x), share[3])
        return x, h


class PatchMerging(nn.Module):
    """Halve the map through an inverted bottleneck with squeeze-excite.

    (b, dim, h, w) -> (b, out_dim, ⌈h/2⌉, ⌈w/2⌉)
    """

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
        x = x + self.dw1(x)
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = self.conv3(self.se(x))
        return x + self.dw2(x)


class Stage(nn.Module):
    """Blocks, then patch merging (not in the last stage).

    (b, dim, h, w) -> what goes on, the map before merging (b, dim, h, w), and the last block's
    states (b, dim, n).
    """

    def __init__(self, blocks: list[Block], downsample: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for block in self.blocks:
            x, h = block(x)
        return self.downsample(x), x, h


class FusionHead(nn.Module):
    """Multi-stage hidden state fusion: Σ_s β_s·Linear_s(pooled_s), s over the sources.

    β is the softmax of one free number per source. A list of (b, dim_s) -> (b, num_classes).
    """

    def __init__(self, dims: list[int], num_classes: int):
        super().__init__()
        self.source_logits = nn.Parameter(torch.ones(len(dims)))
        self.linears = nn.ModuleList(nn.Linear(dim, num_classes) for dim in dims)
        for layer in self.linears:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: list[Tensor]) -> Tensor:
        beta = self.source_logits.softmax(dim=0)
        logits = [linear(x) for linear, x in zip(self.linears, pooled, strict=True)]
        return sum(beta_s * logits_s for beta_s, logits_s in zip(beta, logits, strict=True))


class EfficientViM(nn.Module):
    """Images (b, in_chans, height, width) -> logits (b, num_classes).

    embed_dims, depths, state_dims: one entry per stage. Any height and width from 16 pixels on;
    img_size (a number or a pair) records what the variant was trained with. num_classes=0 leaves
    the head out and gives the pooled sources side by side (b, Σ embed_dims + embed_dims[-1]).
    distilled: a second head; in training the pair (logits, distilled logits) is returned, in
    evaluation their mean. Raises `ValueError` for arguments and images that do not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (128, 192, 320),
        depths: tuple[int, ...] = (2, 2, 2),
        state_dims: tuple[int, ...] = (49, 25, 9),
        mlp_ratio: float = 4.0,
        ssd_expand: float = 1.0,
        distilled: bool = False,
    ):
        super().__init__()
        checks.same_length(embed_dims=embed_dims, depths=depths, state_dims=state_dims)
        checks.at_least(1, in_chans=in_chans, depths=depths, state_dims=state_dims)
        checks.integer(0, num_classes=num_classes)
        checks.image_size(img_size)
        checks.at_least(16, img_size=img_size)  # the stride of the stem
        self.img_size = img_size
        self.in_chans = in_chans
        self.num_classes = num_classes

        self.patch_embed = conv_stem(in_chans, embed_dims[0])
        self.stages = nn.ModuleList()
        for i, dim in enumerate(embed_dims):
            last = i + 1 == len(embed_dims)
            blocks = [Block(dim, state_dims[i], mlp_ratio, ssd_expand) for _ in range(depths[i])]
            downsample = nn.Identity() if last else PatchMerging(dim, embed_dims[i + 1])
            self.stages.append(Stage(blocks, downsample))
        sources = [*embed_dims, embed_dims[-1]]  # the states of every stage, and the last map
        self.norms = nn.ModuleList(ChannelNorm(dim) for dim in sources)
        self.head = FusionHead(sources, num_classes) if num_classes else None
        self.head_dist = FusionHead(sources, num_classes) if num_classes and distilled else None

    def forward_intermediates(self, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The stem's map, and of every stage the map before merging and its last block's states.

        (b, dim, h, w) and (b, dim, n).
        """
        checks.image(images, self.in_chans)
        if min(images.shape[2:]) < 16:
            raise ValueError(
                f"images are {images.shape[2]}×{images.shape[3]} pixels, both sides must be at"
                " least 16, the stride of the stem"
            )
        stem = self.patch_embed(images)
        x = stem
        maps = []
        states = []
        for stage in self.stages:
            x, before_merging, h = stage(x)
            maps.append(before_merging)
            states.append(h)
        return stem, maps, states

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """What the heads read: the states of every stage (b, dim, n), and the last map."""
        _, maps, states = self.forward_intermediates(images)
        return [*states, maps[-1]]

    def forward_head(self, features: list[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        pooled = [norm(x).flatten(2).mean(-1) for norm, x in zip(self.norms, features, strict=True)]
        if self.head is None:
            return torch.cat(pooled, dim=1)
        if self.head_dist is None:
            return self.head(pooled)
        logits = self.head(pooled)
        distilled_logits = self.head_dist(pooled)
        if self.training:
            return logits, distilled_logits
        return (logits + distilled_logits) / 2

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> EfficientViM:
        """A copy for inference: norms and blends folded into the convolutions, A left out, maps
        stored channels last (see `refimpl.deploy`)."""
        return deploy(self)


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
    (r"^weights(_dist)?$", r"head\1.source_logits"),
    (r"^heads(_dist)?\.(\d)\.", r"head\1.linears.\2."),
]
NAMES: dict[str, Rules] = {"official": OFFICIAL, "timm": OFFICIAL}

# Width, depth and number of states of each stage.
VARIANTS: dict[str, dict] = {
    "m1": dict(embed_dims=(128, 192, 320), depths=(2, 2, 2), state_dims=(49, 25, 9)),
    "m2": dict(embed_dims=(128, 256, 512), depths=(2, 2, 2), state_dims=(49, 25, 9)),
    "m3": dict(embed_dims=(224, 320, 512), depths=(2, 2, 2), state_dims=(49, 25, 9)),
    "m4": dict(embed_dims=(224, 320, 512), depths=(3, 4, 2), state_dims=(64, 32, 16), img_size=256),
}
VARIANTS |= {f"{name}_dist": sizes | {"distilled": True} for name, sizes in VARIANTS.items()}
MODEL = EfficientViM
