"""EfficientFormer: Vision Transformers at MobileNet Speed.

Li, Yuan, Wen, Hu, Evangelidis, Tulyakov, Wang, Ren, NeurIPS 2022, arXiv 2206.01191. Official code:
snap-research/EfficientFormer, commit d01da426243a38303d0a35d01fc928b0e37d38d3 (MIT-style, Snap).
Supernet, search and latency table were never released: here they follow the paper's text.

The idea
    1. FLOPs do not tell time: profile the operators on the device that will run the network.
    2. Mix pixels by a 3×3 mean and channels by 1×1 convolutions while maps are large (*4D blocks*,
       on (b, c, h, w), batch norm, which folds away) …
    3. … and attend only at the end, where few tokens are left (*3D blocks*, on (b, n, c), layer
       norm): one reshape in the whole network.
    4. How many of which, and how wide: train one supernet whose every place holds all candidates,
       then slim it step by step, by the action that loses least accuracy per millisecond.

4D block:   x ← x + λ₁ ⊙ (pool₃(x) − x),   x ← x + λ₂ ⊙ BN(W₂ GELU(BN(W₁ x)))
3D block:   x ← x + λ₁ ⊙ attention(LN(x)),  x ← x + λ₂ ⊙ W₂ GELU(W₁ LN(x)), the attention with 8
            heads, keys of 32 and values of 128 channels, whatever the width c
Supernet:   x_{i+1} = Σ_n softmax_n((α_n + ε_n) / τ) · P_n(x_i)
Multiply-adds on n pixels: 8·n·c² in a 4D block; in a 3D block 8·n·c² + 2560·n·c + 1280·n².
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.levit import Attention
from refimpl.bases.slimming import Architecture, Importance, Step, actions, map_side, within_reach
from refimpl.bases.supernet import (
    LatencyTable,
    MetaPath,
    block_importance,
    copy_channels,
    places,
    recalibrate,
    strongest,
)
from refimpl.deploy import deploy
from refimpl.layers import DropPath, Mlp, drop_path_rates
from refimpl.weights import Rules


def pooling(x: Tensor) -> Tensor:
    """pool₃(x) − x, the mean of 3×3 pixels less the middle one: (b, c, h, w) -> (b, c, h, w).

    At the border the mean is over the real pixels alone (4 in a corner, 6 at an edge).
    """
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False) - x


class ConvMlp(nn.Module):
    """1×1 convolutions dim → 4·dim → dim, a batch norm behind each, GELU between.

    (b, dim, h, w) -> (b, dim, h, w). Convolutions keep their bias, as the official weights do.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, 4 * dim, 1)
        self.norm1 = nn.BatchNorm2d(4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(4 * dim, dim, 1)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.fc2(self.act(self.norm1(self.fc1(x)))))


class Meta4D(nn.Module):
    """The 4D block, pooling and a convolutional MLP: (b, dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, dim: int, drop_path_rate: float = 0.0, layer_scale: float = 1e-5):
        super().__init__()
        self.mlp = ConvMlp(dim)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * pooling(x))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(x))


class Meta3D(nn.Module):
    """The 3D block, attention and an MLP on tokens: (b, r², dim) -> (b, r², dim).

    of_attention: key_dim, num_heads, resolution.
    """

    def __init__(
        self, dim: int, drop_path_rate: float = 0.0, layer_scale: float = 1e-5, **of_attention: int
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mixer = Attention(dim, **of_attention)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1 * self.token_mixer(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2 * self.mlp(self.norm2(x)))


class Flatten(nn.Module):
    """A map as tokens, row by row: (b, c, h, w) -> (b, h·w, c). The one change of layout."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        # Narrowed to the whole, so that its gradient is laid out as x is: in the order that the
        # transposition leaves, batch norm misreads it on a CPU for a batch of one.
        return x.narrow(2, 0, x.shape[2]).transpose(1, 2)


def stem(in_chans: int, dim: int) -> nn.Sequential:
    """Two 3×3 convolutions of stride 2: (b, in_chans, h, w) -> (b, dim, ⌈h/4⌉, ⌈w/4⌉)."""
    checks.multiple(2, "the stem starts at half of it", **{"embed_dims[0]": dim})
    layers = []
    for width, next_width in ((in_chans, dim // 2), (dim // 2, dim)):
        conv = nn.Conv2d(width, next_width, 3, stride=2, padding=1)
        layers += [conv, nn.BatchNorm2d(next_width), nn.ReLU()]
    return nn.Sequential(*layers)


def embedding(dim: int, out_dim: int) -> nn.Sequential:
    """Between two stages: (b, dim, h, w) -> (b, out_dim, ⌈h/2⌉, ⌈w/2⌉), no activation."""
    proj = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)
    return nn.Sequential(OrderedDict(proj=proj, norm=nn.BatchNorm2d(out_dim)))


class EfficientFormer(nn.Module):
    """Images (b, in_chans, img_size, img_size) -> logits (b, num_classes).

    embed_dims, depths: one entry per stage; num_vit: how many blocks are 3D, the last of the last
    stage. img_size: fixed once built (bias tables); a pair must be square. num_classes=0 leaves the
    heads out and gives pooled features (b, embed_dims[-1]). distilled: a second classifier; in
    training the pair (logits, distilled logits) is returned, in evaluation their mean.
    key_dim, num_heads: of attention. layer_scale: what λ₁ and λ₂ start from.
    Raises `ValueError` for arguments and images that do not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (48, 96, 224, 448),
        depths: tuple[int, ...] = (3, 2, 6, 4),
        num_vit: int = 1,
        key_dim: int = 32,
        num_heads: int = 8,
        distilled: bool = True,
        drop_path_rate: float = 0.0,
        layer_scale: float = 1e-5,
    ):
        super().__init__()
        checks.same_length(embed_dims=embed_dims, depths=depths)
        checks.at_least(1, in_chans=in_chans, embed_dims=embed_dims, depths=depths)
        checks.integer(0, num_classes=num_classes)
        checks.fraction(drop_path_rate=drop_path_rate)
        if not 0 <= num_vit <= depths[-1]:
            raise ValueError(
                f"num_vit={num_vit} must be between 0 and depths[-1]={depths[-1]}: 3D blocks"
                " stand at the end of the last stage"
            )
        self.img_size, _ = checks.image_size(img_size, square=True)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.patch_embed = stem(in_chans, embed_dims[0])
        self.network = nn.Sequential()
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.embed_dims = embed_dims
        resolution = map_side(self.img_size, len(depths) - 1)
        self.of_attention = dict(key_dim=key_dim, num_heads=num_heads, resolution=resolution)
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            if i > 0:
                self.network.append(embedding(embed_dims[i - 1], dim))
            last = i == len(depths) - 1
            stage = nn.Sequential()
            for _ in range(depth - num_vit if last else depth):
                stage.append(Meta4D(dim, next(rates), layer_scale))
            if last:
                stage.append(Flatten())
                for _ in range(num_vit):
                    stage.append(Meta3D(dim, next(rates), layer_scale, **self.of_attention))
            self.network.append(stage)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.dist_head = nn.Linear(dim, num_classes) if num_classes and distilled else None
        self.apply(initialise)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last tokens, normalised: (b, r², embed_dims[-1])."""
        checks.image(images, self.in_chans, (self.img_size, self.img_size))
        return self.norm(self.network(self.patch_embed(images)))

    def forward_head(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = x.mean(1)
        logits = self.head(x)
        if self.dist_head is None:
            return logits
        distilled_logits = self.dist_head(x)
        if self.training:
            return logits, distilled_logits
        return (logits + distilled_logits) / 2

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> EfficientFormer:
        """A copy for inference, equal but for rounding (see `refimpl.deploy`)."""
        return deploy(self)


def initialise(module: nn.Module) -> None:
    """In place: linear layers and 1×1 convolutions from N(0, 0.02²), cut at ±2; biases 0."""
    if isinstance(module, nn.Linear) or getattr(module, "kernel_size", None) == (1, 1):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class OnMap(nn.Sequential):
    """A 3D block amid maps: (b, c, r, r) -> (b, c, r, r), reshaped there and back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Flatten()(x)).transpose(1, 2).view_as(x)


class Supernet(EfficientFormer):
    """The search space: an EfficientFormer with a `MetaPath` at every place.

    3D blocks are offered in the last stage, where all published models have them (in the paper, in
    the last two). embed_dims, depths: the largest. noise: see `bases.supernet.NOISES`.
    """

    def __init__(
        self,
        embed_dims: tuple[int, ...] = (96, 192, 384, 768),
        depths: tuple[int, ...] = (6, 6, 18, 8),
        noise: str = "uniform",
        layer_scale: float = 1e-5,
        **others,
    ):
        model = dict(num_vit=0, distilled=False, layer_scale=layer_scale)
        super().__init__(embed_dims=embed_dims, depths=depths, **model, **others)
        for i, depth in enumerate(depths):
            stage = self.network[2 * i]
            for place in range(depth):
                blocks = {"identity": nn.Identity(), "4d": stage[place]}
                if i == len(depths) - 1:
                    block = Meta3D(embed_dims[i], layer_scale=layer_scale, **self.of_attention)
                    blocks["3d"] = OnMap(block)
                stage[place] = MetaPath(blocks, noise)
        self.apply(initialise)

    def stages(self) -> list[list[MetaPath]]:
        """The places of each stage."""
        return [places(stage) for stage in self.network[::2]]

    @torch.no_grad()
    def importance(self) -> Importance:
        """`block_importance` of every place, per stage."""
        found = []
        for row in self.stages():
            logits = torch.stack([place.logits for place in row])
            found.append(block_importance(logits.exp()).tolist())
        return found

    def largest(self) -> Architecture:
        """A block at every place; in the last stage 3D from where on the logits like it best."""
        *first, last = self.stages()
        logits = torch.stack([place.logits.detach() for place in last])  # (places, 3)
        totals = [logits[:k, 1].sum() + logits[k:, 2].sum() for k in range(len(last) + 1)]
        maps = totals.index(max(totals))
        kinds = [("4d",) * len(row) for row in first]
        kinds.append(("4d",) * maps + ("3d",) * (len(last) - maps))
        return Architecture(self.embed_dims, tuple(kinds))


class NetworkLatency(LatencyTable):
    """Architecture -> what a batch takes here: stem, embeddings and blocks, each fused."""

    def __init__(self, supernet: Supernet, batch_size: int = 1, **how):
        super().__init__(**how)
        self.supernet = supernet
        self.batch_size = batch_size

    def __call__(self, architecture: Architecture) -> float:
        return self.total(architecture.parts(self.supernet.img_size, self.supernet.in_chans))

    def build(self, key: tuple) -> tuple[nn.Module, Tensor]:
        kind, side, *widths = key
        x = torch.randn(self.batch_size, widths[0], side, side)
        if kind == "3d":
            part = Meta3D(*widths, **self.supernet.of_attention)
            return deploy(nn.Sequential(part)), Flatten()(x).contiguous()
        part = {"stem": stem, "embedding": embedding, "4d": Meta4D}[kind](*widths)
        return deploy(nn.Sequential(part)), x.contiguous(memory_format=torch.channels_last)


def inherit(supernet: Supernet, architecture: Architecture, images: Tensor) -> EfficientFormer:
    """The network with the supernet's weights, its batch norms measured anew on `images`.

    A narrower stage keeps the channels with the largest scale in the norm before it, and the first
    ones inside an MLP (how the paper judges widths that its supernet does not have, is not said).
    """
    network = EfficientFormer(
        supernet.img_size,
        supernet.in_chans,
        supernet.num_classes,
        distilled=False,
        key_dim=supernet.of_attention["key_dim"],
        num_heads=supernet.of_attention["num_heads"],
        **architecture.arguments(),
    )
    dims = architecture.embed_dims
    wide = supernet.patch_embed
    kept = [strongest(wide[4].weight, dims[0])]
    half = strongest(wide[1].weight, dims[0] // 2)
    copy_channels(network.patch_embed, wide.state_dict(), [*kept, half])
    for i, row in enumerate(supernet.stages()):
        if i > 0:
            wide = supernet.network[2 * i - 1]
            state = wide.state_dict()
            state["proj.weight"] = state["proj.weight"][:, kept[0]]
            kept = [strongest(wide.norm.weight, dims[i])]
            copy_channels(network.network[2 * i - 1], state, kept)
        blocks = (b for b in network.network[2 * i] if not isinstance(b, Flatten))
        for place, kind in zip(row, architecture.kinds[i], strict=True):
            if kind != "identity":
                state = place.blocks[kind].state_dict()
                state = {name.removeprefix("0."): tensor for name, tensor in state.items()}
                copy_channels(next(blocks), state, [*kept, torch.arange(4 * dims[i])])
    copy_channels(network.norm, supernet.norm.state_dict(), kept)
    copy_channels(network.head, supernet.head.state_dict(), kept)
    return recalibrate(network, images)


def slim(
    architecture: Architecture,
    target: float,
    latency: Callable[[Architecture], float],
    accuracy: Callable[[Architecture], float],
    importance: Importance,
    price: Callable[[Architecture], float] | None = None,
) -> list[Step]:
    """Latency-driven slimming: the steps from `architecture` to one within `target`.

    latency: by the table, in the unit of `target`; accuracy: inside the supernet; price: what drops
    are divided by, by default the latency. Raises `ValueError` for a target out of reach.
    """
    price = price or latency
    within_reach(target, architecture, latency)
    path = [Step("start", architecture, latency(architecture), accuracy(architecture))]
    while path[-1].latency > target:
        now = path[-1]
        candidates = []
        for action, smaller in actions(now.architecture, importance).items():
            for then in smaller:  # the least important first
                saved = price(now.architecture) - price(then)
                if latency(then) < now.latency and saved > 0:
                    drop = now.accuracy - accuracy(then)
                    candidates.append((drop / saved, action, then))
                    break
        _, action, best = min(candidates, key=lambda candidate: candidate[0])
        path.append(Step(action, best, latency(best), accuracy(best)))
    return path


TIMM_STEM = {"conv1": 0, "norm1": 1, "conv2": 3, "norm2": 4}
NAMES: dict[str, Rules] = {
    "official": [(r"attention_bias_idxs$", None)],  # a computed buffer
    "timm": [
        (r"attention_bias_idxs$", None),
        (r"^stem\.(\w+)", lambda m: f"patch_embed.{TIMM_STEM[m[1]]}"),
        (r"^stages\.(\d)\.downsample", lambda m: f"network.{2 * int(m[1]) - 1}"),
        (r"^(network\.[135])\.conv", r"\1.proj"),
        (r"^stages\.(\d)\.blocks", lambda m: f"network.{2 * int(m[1])}"),
        (r"ls([12])\.gamma$", r"layer_scale_\1"),
        (r"^head_dist\.", "dist_head."),
    ],
}

COLUMNS = ("embed_dims", "depths", "num_vit")  # of the paper's table
TABLE = {
    "l1": ((48, 96, 224, 448), (3, 2, 6, 4), 1),
    "l3": ((64, 128, 320, 512), (4, 4, 12, 6), 4),
    "l7": ((96, 192, 384, 768), (6, 6, 18, 8), 8),
}
VARIANTS = {name: dict(zip(COLUMNS, row, strict=True)) for name, row in TABLE.items()}
MODEL = EfficientFormer
