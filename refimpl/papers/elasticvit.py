"""ElasticViT: one supernet for phones of every speed, whose training steps stay near one size.

Paper: Tang and others, *ElasticViT: Conflict-aware Supernet Training for Deploying Fast Vision
       Transformer on Diverse Mobile Devices*, ICCV 2023, arXiv 2303.09730.
Code:  microsoft/Moonlit, folder ElasticViT @ 348a402 (MIT).

A *supernet* holds the weights of its largest network; smaller ones take the first channels of every
layer and the centres of kernels and of bias tables (`cut`). Networks of very different size pull
their common weights apart, so the paper does not draw them freely. With levels l_1 < … < l_m of
cost (100 … 1200 million multiply-adds), one training step at the level b is

    b ← b + U{−1, 0, 1}                             walk to a neighbour, or stay (`walk`)
    a_1, a_2, a_3 ~ networks of cost l_b            new ones, or with probability ρ good old ones
    a_0 = the smallest network kept for level b     learns from the mean answer of the three

New networks prefer width to depth: of five, the one with the lowest FLOPs(at the anchor's widths) −
FLOPs(at the anchor's depths) (`preference`). Old ones are drawn from the level's memory with
probability softmax(−loss) (`Bank`).

The network: a convolutional stem and two stages of inverted bottlenecks (expand 1×1, depthwise k×k,
project 1×1), then four stages of attention and MLP, every norm of which takes tokens and channels
together. Heads have 16 channels for queries and keys, and 16 r for values, r = 2, 3 or 4; a 3×3
depthwise convolution runs over the values:

    y = hardswish(softmax(q kᵀ / 4 + B) (D * v)) W + x

Cost of a transformer block with C channels and N tokens: about N·C²·(2 + 2r + 2m) + N²·C·(1 + r).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from math import exp

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.elastic import adaptive_divergence, call_sliced, clip_by_weights, first, slices
from refimpl.bases.elastic_blocks import Head, MobileBlock, TransformerStage
from refimpl.bases.elastic_space import (
    CONV_STAGES,
    EXPAND,
    FEATURES,
    GATED,
    HEAD_DIM,
    PUBLISHED,
    SPACE,
    STRIDES,
    Genotype,
    Space,
)
from refimpl.deploy import deploy
from refimpl.layers import ConvNorm
from refimpl.weights import Rules

# The heart: which networks one training step trains.


def draw_step(level, banks, space, rho, rng):
    """The next level, its three networks, and which of them the memory gave."""
    step = rng.choice((-1, 0, 1))
    level = min(max(level + step, 0), len(banks) - 1)  # b ← b + U{−1, 0, 1}
    bank = banks[level]
    anchor = banks[0].best() if level > 0 and banks[0].entries else space.smallest()
    networks = []
    for _ in range(3):  # all three of one cost
        known = bank.filled() > 0.5
        if known and rng.random() < rho:  # exploit: with probability softmax(−loss)
            networks.append((bank.draw(rng), True))
            continue
        candidates = [space.near(level, rng) for _ in range(5 if known else 1)]
        scores = [space.preference(candidate, anchor) for candidate in candidates]
        chosen = candidates[scores.index(min(scores))]  # explore: wide, not deep
        networks.append((chosen, False))
    return level, networks


class Bank:
    """The memory of a level: the best networks met so far, with their losses."""

    def __init__(self, capacity: int):
        checks.integer(1, capacity=capacity)
        self.capacity = capacity
        self.entries: list[tuple[float, Genotype]] = []

    def filled(self) -> float:
        return len(self.entries) / self.capacity

    def best(self) -> Genotype:
        return min(self.entries, key=loss_of)[1]

    def add(self, loss: float, genotype: Genotype) -> None:
        """Keep it if there is room, or if it is better than the worst, whose place it takes."""
        if len(self.entries) < self.capacity:
            self.entries.append((loss, genotype))
            return
        worst = max(range(self.capacity), key=lambda i: self.entries[i][0])
        if loss < self.entries[worst][0]:
            self.entries[worst] = (loss, genotype)

    def probabilities(self) -> list[float]:
        """softmax(−loss) over the entries."""
        least = min(loss for loss, _ in self.entries)
        weights = [exp(least - loss) for loss, _ in self.entries]
        return [weight / sum(weights) for weight in weights]

    def draw(self, rng: random.Random) -> Genotype:
        return rng.choices(self.entries, self.probabilities())[0][1]

    def refresh(self, loss: Callable[[Genotype], float]) -> None:
        """Measure all losses anew: the paper does so as the common weights go on learning."""
        self.entries = [(loss(genotype), genotype) for _, genotype in self.entries]


def loss_of(entry: tuple[float, Genotype]) -> float:
    return entry[0]


# The network.


class ElasticViT(nn.Module):
    """Images (b, in_chans, h, w) -> logits (b, num_classes). Resized to img_size where they differ.

    Arguments: as in `Genotype`. num_classes=0 gives features (b, 1984). drop_rate: of these, in
    training. Raises `ValueError` for arguments and images that do not fit.
    """

    spare = False  # the supernet holds more than a network takes

    def __init__(
        self,
        img_size: int | tuple[int, int] = 192,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (16, 24, 40, 64, 96, 192, 272),
        depths: tuple[int, ...] = (1, 3, 3, 2, 2, 2, 2),
        expand_ratios: tuple[int, ...] = (3, 3),
        kernel_sizes: tuple[int, ...] = (3, 3, 3),
        mlp_ratios: tuple[int, ...] = (2, 2, 3, 4),
        value_ratios: tuple[int, ...] = (2, 2, 2, 2),
        drop_rate: float = 0.2,
    ):
        super().__init__()
        self.img_size, _ = checks.image_size(img_size, square=True)
        check_genes(embed_dims, depths, expand_ratios, kernel_sizes, mlp_ratios, value_ratios)
        checks.at_least(1, in_chans=in_chans)
        checks.integer(0, num_classes=num_classes)
        checks.fraction(drop_rate=drop_rate)
        self.in_chans = in_chans
        self.num_classes = num_classes
        dim = embed_dims[0]
        side = -(-self.img_size // 2)
        self.stem = ConvNorm(in_chans, dim, 3, stride=2)
        self.stem_blocks = nn.Sequential()
        for _ in range(depths[0]):
            self.stem_blocks.append(MobileBlock(dim, dim, kernel_sizes[0], 1, spare=self.spare))
        self.stages = nn.Sequential()
        for i, (width, depth) in enumerate(zip(embed_dims[1:], depths[1:], strict=True)):
            dim = width if self.spare else dim
            side = -(-side // STRIDES[i])
            if i < CONV_STAGES:
                form = (kernel_sizes[i + 1], expand_ratios[i])
                stage = nn.Sequential()
                for j in range(depth):
                    stride = 1 if j else STRIDES[i]
                    stage.append(MobileBlock(dim, width, *form, stride, GATED[i], self.spare))
                    dim = width
            else:
                form = (3, EXPAND, STRIDES[i], True, self.spare)
                ratios = (mlp_ratios[i - CONV_STAGES], value_ratios[i - CONV_STAGES])
                reduction = MobileBlock(dim, width, *form)
                stage = TransformerStage(reduction, width, side, depth, *ratios)
                dim = width
            self.stages.append(stage)
        self.head = Head(dim)
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(FEATURES, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map (b, embed_dims[-1], side, side)."""
        checks.image(images, self.in_chans)
        size = (self.img_size, self.img_size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bicubic", align_corners=False)
        return self.stages(self.stem_blocks(F.hardswish(self.stem(images))))

    def forward_head(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.head(x.flatten(2).mT)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> ElasticViT:
        """A copy for inference, equal but for rounding (see `refimpl.deploy`)."""
        return deploy(self)


def check_genes(dims, depths, expand_ratios, kernel_sizes, mlp_ratios, value_ratios) -> None:
    """Raise a `ValueError` unless these are a network."""
    stages = len(STRIDES)
    for name, values, count in (
        ("embed_dims", dims, stages + 1),
        ("depths", depths, stages + 1),
        ("expand_ratios", expand_ratios, CONV_STAGES),
        ("kernel_sizes", kernel_sizes, CONV_STAGES + 1),
        ("mlp_ratios", mlp_ratios, stages - CONV_STAGES),
        ("value_ratios", value_ratios, stages - CONV_STAGES),
    ):
        if len(values) != count:
            raise ValueError(f"{name}={values} must have {count} entries")
        checks.at_least(1, **{name: values})
    for i, dim in enumerate(dims[CONV_STAGES + 1 :], CONV_STAGES + 1):
        checks.multiple(HEAD_DIM, "a head has so many channels", **{f"embed_dims[{i}]": dim})
    if any(size % 2 == 0 for size in kernel_sizes):
        raise ValueError(f"kernel_sizes={kernel_sizes} must be odd")


# The supernet.


def cut(name: str, whole: Tensor, shape: torch.Size) -> Tensor:
    """The part of a supernet's tensor that a network of these shapes takes.

    First channels and centres of kernels (`bases.elastic.first`). A bias table keeps its middle,
    the offsets that a smaller grid has. Of the joint weights of queries, keys and values the first
    rows of each third are taken, one below the other; the network then reads them head by head.
    """
    if name.endswith("bias_table"):
        side = round(len(whole) ** 0.5)
        kept = round(shape[0] ** 0.5)
        table = whole.T.unflatten(1, (side, side))[:, None]  # (heads, 1, 2G − 1, 2G − 1)
        return first(table, (shape[1], 1, kept, kept)).flatten(1).T
    if name.endswith("qkv.weight"):
        rows, dim = shape
        queries, keys, values = whole.tensor_split([whole.shape[1], 2 * whole.shape[1]])
        parts = [queries[:dim, :dim], keys[:dim, :dim], values[: rows - 2 * dim, :dim]]
        return torch.cat(parts)
    return first(whole, shape)


@lru_cache(maxsize=256)
def structure(genotype: Genotype, in_chans: int, num_classes: int) -> ElasticViT:
    """The network without memory behind its tensors."""
    with torch.device("meta"):
        return ElasticViT(**genotype._asdict(), in_chans=in_chans, num_classes=num_classes)


class Supernet(ElasticViT):
    """The weights that all networks of a space share: images, genotype -> logits.

    In training, a network's batch norms write their statistics into the shared ones; these are of
    no use to any single network before `bases.supernet.recalibrate`. Raises `ValueError` for a
    network outside the space.
    """

    spare = True

    def __init__(self, space: Space = SPACE, in_chans: int = 3, num_classes: int = 1000):
        super().__init__(**space.largest()._asdict(), in_chans=in_chans, num_classes=num_classes)
        self.space = space

    def forward(self, images: Tensor, genotype: Genotype) -> Tensor:
        self.space.check(genotype)
        network = structure(genotype, self.in_chans, self.num_classes).train(self.training)
        whole = dict(self.named_parameters()) | dict(self.named_buffers())
        return call_sliced(network, whole, cut, images)

    def forward_features(self, images: Tensor) -> Tensor:
        raise ValueError("a supernet has no map of its own: take subnet(genotype)")

    def fuse(self) -> ElasticViT:
        raise ValueError("a supernet can't be fused: take subnet(genotype).fuse()")

    @torch.no_grad()
    def subnet(self, genotype: Genotype) -> ElasticViT:
        """A network of its own with a copy of its slices, in evaluation mode."""
        self.space.check(genotype)
        given = dict(in_chans=self.in_chans, num_classes=self.num_classes)
        network = ElasticViT(**genotype._asdict(), **given)
        network.load_state_dict(slices(self.state_dict(), network, cut))
        return network.eval()


# Training.


def train_step(
    supernet: Supernet,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    clean: tuple[Tensor, Tensor],
    level: int,
    banks: list[Bank],
    rho: float,
    rng: random.Random,
) -> int:
    """One step of conflict-aware training, in place; returns the next level.

    targets: what the teachers say, (b, k) probabilities; clean: images as they are and their
    classes, on which new networks are judged for the memory.
    """
    level, networks = draw_step(level, banks, supernet.space, rho, rng)
    optimizer.zero_grad()
    answers = []
    for genotype, _ in networks:
        logits = supernet(images, genotype)
        F.cross_entropy(logits, targets).backward()
        answers.append(logits.detach().softmax(1))
    least = supernet.space.least(level)
    adaptive_divergence(supernet(images, least), torch.stack(answers).mean(0)).backward()
    clip_by_weights(supernet.parameters(), 0.1)
    optimizer.step()
    for genotype, known in networks:
        if not known:
            with torch.no_grad():
                loss = F.cross_entropy(supernet(clean[0], genotype), clean[1])
            banks[level].add(loss.item(), genotype)
    return level


def new_banks(space: Space) -> list[Bank]:
    """Empty memories: 150 networks for a level below 500 million multiply-adds, else 50."""
    return [Bank(150 if level < 500 else 50) for level in space.levels]


def soft_targets(teachers: list[Tensor], temperature: float = 0.2) -> Tensor:
    """The teachers' mean answer, sharpened: logits (b, k) each -> probabilities (b, k)."""
    checks.positive(temperature=temperature)
    return torch.stack([(logits / temperature).softmax(1) for logits in teachers]).mean(0)


def parameter_groups(model: nn.Module, weight_decay: float = 0.05) -> list[dict]:
    """Decay on what is not convolutional: blocks of attention and MLP, and the head.

    The first convolution and all inverted bottlenecks have none; bias tables do decay.
    """
    free = {id(p) for part in model.modules() for p in undecayed(part)}
    rest = list(model.parameters())
    return [
        {"params": [p for p in rest if id(p) not in free], "weight_decay": weight_decay},
        {"params": [p for p in rest if id(p) in free], "weight_decay": 0.0},
    ]


def undecayed(part: nn.Module) -> list[nn.Parameter]:
    if isinstance(part, ElasticViT):
        return list(part.stem.parameters())
    return list(part.parameters()) if isinstance(part, MobileBlock) else []


BOTTLENECK = {"pw": "expand", "dw": "depthwise", "pwl": "project"}


NAMES: dict[str, Rules] = {
    "official": [
        (r"relative_position_index$", None),  # a computed buffer
        (r"^first_conv\.", "stem.conv."),
        (r"^first_conv_bn\.", "stem.norm."),
        (r"^conv_stem\.layers\.(\d+)\.0\.", r"stem_blocks.\1."),
        (r"^feature_exactor\.([01])\.layers\.(\d+)\.0\.", r"stages.\1.\2."),
        (r"^feature_exactor\.(\d)\.layers\.0\.reduction\.", r"stages.\1.reduction."),
        (r"^feature_exactor\.(\d)\.layers\.", r"stages.\1.blocks."),
        (r"(^|\.)(pw|dw|pwl)_conv\.", lambda m: f"{m[1]}{BOTTLENECK[m[2]]}.conv."),
        (r"(^|\.)(pw|dw|pwl)_bn\.", lambda m: f"{m[1]}{BOTTLENECK[m[2]]}.norm."),
        (r"(^|\.)se_conv([12])\.", r"\1gate.fc\2."),
        (r"(^|\.)shortcut_conv\.", r"\1shortcut."),
        (r"(^|\.)attention_bias$", r"\1bias_table"),
        (r"(^|\.)dw_v_conv\.", r"\1value_conv."),
        (r"(^|\.)norm1\.", r"\1norm."),
        (r"^pre_head_0\.", "head.fc1."),
        (r"^pre_head_norm_0\.", "head.norm."),
        (r"^pre_head_1\.", "head.fc2."),
        (r"^classifer\.", "classifier."),
    ],
}

VARIANTS = {name: genotype._asdict() for name, genotype in PUBLISHED.items()}
MODEL = ElasticViT
