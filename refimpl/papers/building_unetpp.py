"""Buildings from above: U-Net++ on EfficientNet encoders.

Paper: Ovi, Bashree, Mukherjee, Mosharrof, Parthima, *Performance Analysis of Various EfficientNet
       Based U-Net++ Architecture for Automatic Building Extraction from High Resolution Satellite
       Images*, arXiv 2310.06847 (2023). On U-Net++: Zhou and others, arXiv 1807.10165, 1912.05074.
Code:  none was found. The reference outputs are from qubvel/segmentation_models.pytorch @bd7f877
       (MIT) with the encoder of efficientnet_pytorch 0.7.1, the common meaning of these words.

The idea
    1. An encoder made for classes halves its maps five times: it knows *what*, no longer *where*.
    2. U-Net goes back up and hands each level the encoder's map of that size (a skip).
    3. That map is shallow, the one from below is deep. U-Net++ puts nodes between the two: each
       sees all nodes before it on its level, and the one below it.
    4. Heads on all nodes of the finest level, trained together (deep supervision), make each
       depth a network of its own, so that the deeper part can be cut off after training (pruning).

Node (i, j): level i, 0 the finest; column j, 0 the encoder; H two 3×3 convolutions with norm and
ReLU, U twice the size by the nearest pixel:

    X^{i,j} = H([ U(X^{i+1,j−1}), X^{i,j−1}, …, X^{i,0} ])      i + j ≤ L (here L = 4)

U-Net keeps the nodes i + j = L, and of the maps before them the encoder's alone.
segmentation_models.pytorch counts the other way: its x_d_l is X^{3−l, l−d+1}.

Cost of a node of h·w pixels: 9·h·w·(c_in·c_out + c_out²) multiply-adds. The finest level has most
pixels and most nodes, so nesting costs little memory for weights and much work: on B0 5 % more
parameters than U-Net, 87 % more multiply-adds.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.efficientnet import ConvNorm as EncoderConvNorm
from refimpl.bases.efficientnet import EfficientNet, SameConv2d, same_padding
from refimpl.deploy import deploy
from refimpl.layers import ConvNorm
from refimpl.weights import Rules


def nested_nodes(maps: Sequence[Tensor], nodes: Mapping[str, nn.Module]) -> list[list[Tensor]]:
    """All nodes of U-Net++: grid[i][j] = X^{i,j}, (b, c_ij, h / 2^i, w / 2^i).

    maps: the encoder's, finest first, each half as large as the one before; nodes: "i_j" -> module
    that takes the map from below and those to its left. Fewer maps make a shallower network.
    """
    grid = [[x] for x in maps]  # column 0: X^{i,0}
    for j in range(1, len(maps)):  # column by column, each one node shorter
        for i in range(len(maps) - j):
            below = grid[i + 1][j - 1]  # X^{i+1,j−1}: half the size, a column earlier
            left = grid[i][::-1]  # X^{i,j−1}, …, X^{i,0}: every node before on this level
            grid[i].append(nodes[f"{i}_{j}"](below, *left))  # X^{i,j}
    return grid


def plain_nodes(maps: Sequence[Tensor], nodes: Mapping[str, nn.Module]) -> Tensor:
    """U-Net: up from the deepest map, beside each node the encoder's map alone; the last node."""
    depth = len(maps) - 1
    x = maps[depth]
    for i in reversed(range(depth)):
        x = nodes[f"{i}_{depth - i}"](x, maps[i])
    return x


def joined(below: Tensor, *left: Tensor) -> Tensor:
    """[U(below), left …]: (b, c, h, w), (b, c', 2h, 2w) … -> (b, c + Σ c', 2h, 2w)."""
    height, width = 2 * below.shape[2], 2 * below.shape[3]
    for x in left:
        if tuple(x.shape[2:]) != (height, width):
            raise ValueError(
                f"a map of {x.shape[2]}×{x.shape[3]} pixels does not fit the one below it,"
                f" {below.shape[2]}×{below.shape[3]}: it must be {height}×{width}, twice the size"
            )
    return torch.cat([F.interpolate(below, scale_factor=2.0, mode="nearest"), *left], dim=1)


class Node(nn.Module):
    """H: (b, below_chans, h, w) and maps (b, ·, 2h, 2w), left_chans in all -> (b, dim, 2h, 2w)."""

    def __init__(self, below_chans: int, left_chans: int, dim: int):
        super().__init__()
        self.below_chans = below_chans
        self.conv1 = ConvNorm(below_chans + left_chans, dim, 3)
        self.conv2 = ConvNorm(dim, dim, 3)
        for conv in (self.conv1.conv, self.conv2.conv):
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")

    def forward(self, below: Tensor, *left: Tensor) -> Tensor:
        x = F.relu(self.conv1(joined(below, *left)))
        return F.relu(self.conv2(x))


def make_nodes(
    encoder_dims: tuple[int, ...], decoder_dims: tuple[int, ...], nested: bool
) -> nn.ModuleDict:
    """Nodes "i_j": those of `nested_nodes`, or only those that `plain_nodes` takes.

    encoder_dims: channels of the maps, finest first, L + 1 of them; decoder_dims: of the nodes
    with i + j = L, coarsest first. All other nodes have as many as the encoder on their level.
    """
    depth = len(encoder_dims) - 1
    along = dict(zip(reversed(range(depth)), decoder_dims, strict=True))  # level -> channels

    def dim(i: int, j: int) -> int:
        return along[i] if 0 < j == depth - i else encoder_dims[i]

    nodes = nn.ModuleDict()
    for j in range(1, depth + 1):
        for i in range(depth + 1 - j):
            if nested or i + j == depth:
                left = encoder_dims[i] * (j if nested else 1)
                nodes[f"{i}_{j}"] = Node(dim(i + 1, j - 1), left, dim(i, j))
    return nodes


class FixedPadding(nn.Conv2d):
    """A strided convolution whose padding was computed once, for maps of `size`, and stays so."""

    def __init__(self, conv: SameConv2d, size: int):
        kernel_size, stride = conv.kernel_size[0], conv.stride[0]
        super().__init__(
            *(conv.in_channels, conv.out_channels, kernel_size, stride),
            groups=conv.groups,
            bias=False,
        )
        self.weight = conv.weight
        self.before_after = same_padding(size, kernel_size, stride)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, 2 * self.before_after))


class Encoder(nn.Module):
    """EfficientNet's maps at strides 2, 4, 8, 16, 32: (b, in_chans, h, w) -> five maps.

    padding_size: the image's side that the padding of strided convolutions is computed for.
    early_skip: the map at stride 16 leaves after the first block of the fifth stage, not the last.
    The classifier's convolution (`head`) is kept for checkpoints; nothing reads it.
    """

    def __init__(
        self,
        width: float,
        depth: float,
        padding_size: int,
        in_chans: int,
        early_skip: bool,
        drop_path_rate: float,
    ):
        super().__init__()
        checks.integer(1, padding_size=padding_size)
        shape = dict(width=width, depth=depth, in_chans=in_chans, drop_path_rate=drop_path_rate)
        net = EfficientNet(**shape, padding="same", num_classes=0)
        size = padding_size
        for part in net.modules():
            if isinstance(part, EncoderConvNorm) and isinstance(part.conv, SameConv2d):
                part.conv = FixedPadding(part.conv, size)
                size = -(-size // part.conv.stride[0])
        counts = [len(stage) for stage in net.blocks]
        skip = sum(counts[:4]) + 1 if early_skip else sum(counts[:5])
        self.cuts = (sum(counts[:2]), sum(counts[:3]), skip, sum(counts))  # blocks before a map
        self.stem = net.stem
        self.blocks = nn.Sequential(*(block for stage in net.blocks for block in stage))
        self.head = net.head.requires_grad_(False)
        ends = [self.blocks[cut - 1].project.norm.num_features for cut in self.cuts]
        self.dims = (net.stem.norm.num_features, *ends)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = [self.stem(images)]
        x = maps[0]
        for start, stop in zip((0, *self.cuts), self.cuts, strict=False):
            for block in self.blocks[start:stop]:
                x = block(x)
            maps.append(x)
        return tuple(maps)


class UNetPlusPlus(nn.Module):
    """Images (b, in_chans, h, w), sides multiples of 32 -> logits (b, num_classes, h, w).

    width, depth, padding_size, early_skip, drop_path_rate: the encoder's; img_size: what a variant
        is meant for, any other multiple of 32 works too.
    num_classes: 1 is a mask (a pixel is a building where its logit is above 0); 0 leaves the heads
        out and gives the map that the last head reads.
    decoder_dims: channels of the nodes at strides 16, 8, 4, 2, and of the last one at stride 1.
    nested: U-Net++, or False for the plain U-Net.
    deep_supervision: instead of a last node at stride 1 a head on each of X^{0,1} … X^{0,4}. In
        training the four logits come as a tuple, in evaluation as their mean.
    Raises `ValueError` for arguments and images that do not fit.
    """

    def __init__(
        self,
        width: float = 1.0,
        depth: float = 1.0,
        padding_size: int = 224,
        img_size: int | tuple[int, int] = 256,
        in_chans: int = 3,
        num_classes: int = 1,
        decoder_dims: tuple[int, ...] = (256, 128, 64, 32, 16),
        nested: bool = True,
        deep_supervision: bool = False,
        early_skip: bool = False,
        drop_path_rate: float = 0.2,
    ):
        super().__init__()
        checks.image_size(img_size, 32, "the stride of the deepest map")
        checks.integer(0, num_classes=num_classes)
        checks.at_least(1, decoder_dims=decoder_dims)
        if len(decoder_dims) != 5:
            raise ValueError(f"decoder_dims={decoder_dims} must be five: strides 16, 8, 4, 2, 1")
        if deep_supervision and not nested:
            raise ValueError(
                "deep_supervision=True wants nested=True: U-Net has one node at the finest level"
            )
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.nested = nested
        self.encoder = Encoder(width, depth, padding_size, in_chans, early_skip, drop_path_rate)
        dims = self.encoder.dims
        self.nodes = make_nodes(dims, decoder_dims[:4], nested)
        self.heads = nn.ModuleDict()  # column -> head of X^{0,column}
        self.full = None if deep_supervision else Node(decoder_dims[3], 0, decoder_dims[4])
        self.head = None
        if num_classes and deep_supervision:
            for j in range(1, len(dims)):
                channels = decoder_dims[3] if j == len(dims) - 1 else dims[0]
                self.heads[str(j)] = nn.Conv2d(channels, num_classes, 1)
        elif num_classes:
            self.head = nn.Conv2d(decoder_dims[4], num_classes, 3, padding=1)
        for head in (*self.heads.values(), self.head):
            if head is not None:
                nn.init.xavier_uniform_(head.weight)
                nn.init.zeros_(head.bias)

    def forward_features(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the heads read: (b, 16, h, w); with deep supervision maps (b, ·, h/2, w/2)."""
        checks.image(images, self.in_chans, multiple=32)
        maps = self.encoder(images)
        if not self.nested:
            return self.full(plain_nodes(maps, self.nodes))
        finest = nested_nodes(maps, self.nodes)[0]  # X^{0,0}, X^{0,1}, …
        if self.full is not None:
            return self.full(finest[-1])
        return tuple(finest[int(j)] for j in self.heads) or finest[-1]

    def forward_head(self, features: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if self.head is not None:
            return self.head(features)
        if not self.heads:
            return features
        logits = []
        for x, head in zip(features, self.heads.values(), strict=True):
            logits.append(F.interpolate(head(x), scale_factor=2.0, mode="bilinear"))
        return tuple(logits) if self.training else torch.stack(logits).mean(0)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.forward_head(self.forward_features(images))

    def pruned(self, column: int) -> UNetPlusPlus:
        """A copy with the head of X^{0,column} alone, and of all else only what that head needs.

        Nodes with i + j > column and the encoder behind its map at stride 2^(column + 1) go. Wants
        a network with deep supervision: other heads were not trained.
        """
        if str(column) not in self.heads:
            have = ", ".join(self.heads) or "none: it was built without deep_supervision"
            raise ValueError(f"column={column!r} must be a column with a head; there are {have}")
        small = copy.deepcopy(self)
        cuts = self.encoder.cuts[:column]
        small.encoder.cuts = cuts
        small.encoder.blocks = small.encoder.blocks[: cuts[-1]]
        small.encoder.head = None
        small.nodes = nn.ModuleDict(
            {name: node for name, node in small.nodes.items() if sum(place(name)) <= column}
        )
        small.heads = nn.ModuleDict({str(column): small.heads[str(column)]})
        return small

    def fuse(self) -> nn.Module:
        """An inference-only copy: norms folded, no enlarged or concatenated map is written."""
        return deploy(self)


def place(name: str) -> tuple[int, int]:
    """(i, j) of the node "i_j"."""
    i, j = name.split("_")
    return int(i), int(j)


# The encoders: width, depth, nominal image size. Two rules of the reference: paddings are for the
# nominal size, whatever the image's; and B0 alone hands over its map at stride 16 early.
SCALES = {
    "b0": (1.0, 1.0, 224),
    "b1": (1.0, 1.1, 240),
    "b2": (1.1, 1.2, 260),
    "b3": (1.2, 1.4, 300),
    "b4": (1.4, 1.8, 380),
}
MODEL = UNetPlusPlus
VARIANTS: dict[str, dict] = {}
for name, (width, depth, size) in SCALES.items():
    VARIANTS[name] = dict(width=width, depth=depth, padding_size=size, early_skip=name == "b0")
VARIANTS |= {f"{name}_supervised": VARIANTS[name] | dict(deep_supervision=True) for name in SCALES}
VARIANTS |= {f"unet_{name}": VARIANTS[name] | dict(nested=False) for name in SCALES}


def nested_name(match: re.Match) -> str:
    """U-Net++'s `decoder.blocks.x_d_l.` -> node (3 − l, l − d + 1)."""
    d, level = int(match[1]), int(match[2])
    return f"nodes.{3 - level}_{level - d + 1}."


def level_name(match: re.Match) -> str:
    """U-Net's `decoder.blocks.l.`, coarsest first -> the node of that level."""
    level = int(match[1])
    return f"nodes.{3 - level}_{level + 1}." if level < 4 else "full."


# segmentation_models.pytorch (the encoder: efficientnet_pytorch). Its x_d_l is X^{3−l, l−d+1}.
NAMES: dict[str, Rules] = {
    "official": [
        (r"(^|\.)_fc\.", None),  # the classifier of an encoder's own checkpoint
        (r"(^|\.)_conv_stem\.", r"\1stem.conv."),
        (r"(^|encoder\.)_bn0\.", r"\1stem.norm."),
        (r"(^|\.)_conv_head\.", r"\1head.conv."),
        (r"(^|encoder\.)_bn1\.", r"\1head.norm."),
        (r"(^|\.)_blocks\.", r"\1blocks."),
        (r"_(expand|depthwise|project)_conv\.", r"\1.conv."),
        (r"_se_(reduce|expand)\.", r"gate.\1."),
        (r"_bn0\.", "expand.norm."),
        (r"_bn1\.", "depthwise.norm."),
        (r"_bn2\.", "project.norm."),
        (r"^decoder\.blocks\.x_0_4\.", "full."),
        (r"^decoder\.blocks\.x_(\d)_(\d)\.", nested_name),
        (r"^decoder\.blocks\.(\d)\.", level_name),
        (r"(conv[12])\.0\.", r"\1.conv."),
        (r"(conv[12])\.1\.", r"\1.norm."),
        (r"^segmentation_head\.0\.", "head."),
    ]
}
