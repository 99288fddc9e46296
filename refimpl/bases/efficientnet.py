"""EfficientNet: one small network, found by search, then made wider, deeper and finer by one rule.

Paper: Tan and Le, *EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*,
       ICML 2019, arXiv 1905.11946.
Code:  tensorflow/tpu, models/official/efficientnet (Apache-2.0). The reference outputs are from
       timm 1.0.31, whose `tf_efficientnet_b*` have TensorFlow's padding and its weights.

B0 is seven stages of one block, MBConv. From C channels, with h = e·C:

    y ← act(BN(W_1×1 x))                 expand: C → h channels, left out where e = 1
    y ← act(BN(w_k×k * y))               depthwise: each channel by itself, stride 1 or 2
    y ← y · σ(W₂ act(W₁ mean(y)))        gate: h → C/4 → h, one number per channel
    y ← BN(W_1×1 y)                      project: h → C' channels, no activation
    y ← x + y                            where stride is 1 and C' = C

Compound scaling: with multiply-adds ∝ depth · width² · resolution², choose α · β² · γ² ≈ 2, and for
2^φ times the work take depth α^φ, width β^φ, resolution γ^φ (α = 1.2, β = 1.1, γ = 1.15).
The published B1–B7 are hand-rounded and are *not* these powers: see `VARIANTS`.

Cost at k = 3, e = 6 and H·W pixels: h·C products per pixel to expand, 9·h between, h·C' to project:
nearly all multiply-adds are in the two 1×1 products, most of the bytes in the maps of h channels.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from itertools import accumulate

import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.layers import DropPath
from refimpl.weights import Rules

STAGES = (  # of B0: kernel size, stride of the first block, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, HEAD = 32, 1280  # channels of B0 before and after the stages
STRIDES = (2, 2, 4, 8, 16, 16, 32, 32)  # of the maps after the stem and after each stage
NORMS = {  # padding -> what goes with it in the code that uses it
    "same": dict(eps=1e-3, momentum=0.01),  # TensorFlow
    "symmetric": dict(eps=1e-5, momentum=0.1),  # PyTorch
}


def compound_scaling(
    phi: float, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15
) -> tuple[float, float, float]:
    """Multiples of depth, width and resolution for 2^φ times the work: α^φ, β^φ, γ^φ.

    The work grows by (α·β²·γ²)^φ, with the paper's constants 1.92^φ.
    """
    return alpha**phi, beta**phi, gamma**phi


def round_channels(channels: int, width: float) -> int:
    """`channels · width` rounded to a multiple of 8, and up where it would lose over a tenth."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth: float) -> int:
    """⌈repeats · depth⌉ blocks."""
    return math.ceil(repeats * depth)


def stage_repeats(depth: float, lite: bool = False) -> list[int]:
    """Blocks of the seven stages. Lite leaves the first and the last stage as they are in B0."""
    repeats = [round_repeats(stage[-1], depth) for stage in STAGES]
    if lite:
        repeats[0], repeats[-1] = STAGES[0][-1], STAGES[-1][-1]
    return repeats


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: pixels before and after, so that ⌈size / stride⌉ come out.

    What is odd stands at the end, so at an even size and stride 2 the map lies half a pixel beside
    that of symmetric padding.
    """
    out = math.ceil(size / stride)
    total = max((out - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution padded as the image at hand needs it: (b, c, h, w) -> (b, c', ⌈h/s⌉, ⌈w/s⌉)."""

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
        return super().forward(F.pad(x, (left, right, top, bottom)))


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, activation unless `act` is `None`."""

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: str = "symmetric",
        act: Callable[[], nn.Module] | None = None,
    ):
        norm = nn.BatchNorm2d(out_chans, **NORMS[padding])
        shape = dict(stride=stride, groups=groups, bias=False)
        if padding == "same" and stride > 1:  # at stride 1 both paddings are one
            conv = SameConv2d(in_chans, out_chans, kernel_size, **shape)
        else:
            shape["padding"] = kernel_size // 2
            conv = nn.Conv2d(in_chans, out_chans, kernel_size, **shape)
        parts = OrderedDict(conv=conv, norm=norm)
        if act is not None:
            parts["act"] = act()
        super().__init__(parts)


class Gate(nn.Module):
    """Squeeze-and-excite: weigh channels by a network of their means, (b, c, h, w) -> the same."""

    def __init__(self, dim: int, hidden_dim: int, act: Callable[[], nn.Module]):
        super().__init__()
        self.reduce = nn.Conv2d(dim, hidden_dim, 1)
        self.act = act()
        self.expand = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)  # (b, c, 1, 1)
        return x * self.expand(self.act(self.reduce(mean))).sigmoid()


class MBConv(nn.Module):
    """Inverted bottleneck with depthwise convolution and gate.

    (b, in_chans, h, w) -> (b, out_chans, ⌈h/stride⌉, ⌈w/stride⌉).

    expand_ratio: of the hidden width, e above; padding: "same" or "symmetric"; gated: False leaves
    the gate out (Lite); act: the activation's class.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 3,
        stride: int = 1,
        expand_ratio: int = 6,
        padding: str = "symmetric",
        gated: bool = True,
        act: Callable[[], nn.Module] = nn.SiLU,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        hidden = expand_ratio * in_chans
        self.residual = stride == 1 and in_chans == out_chans
        self.expand = nn.Identity()
        if expand_ratio != 1:
            self.expand = ConvNorm(in_chans, hidden, padding=padding, act=act)
        self.depthwise = ConvNorm(hidden, hidden, kernel_size, stride, hidden, padding, act)
        self.gate = Gate(hidden, max(1, in_chans // 4), act) if gated else nn.Identity()
        self.project = ConvNorm(hidden, out_chans, padding=padding)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)  # (b, h, height, width)
        y = self.depthwise(y)  # (b, h, height / stride, width / stride)
        y = self.gate(y)
        y = self.project(y)  # (b, out_chans, height / stride, width / stride)
        return x + self.drop_path(y) if self.residual else y


class EfficientNet(nn.Module):
    """Images (b, in_chans, height, width), of any size -> logits (b, num_classes).

    width, depth: multiples of B0's channels and blocks; img_size: a number or a pair, records what
        the variant was trained with.
    padding: "same" (TensorFlow, with batch norm's ε = 1e-3) or "symmetric" (PyTorch, ε = 1e-5).
        Weights of one are not weights of the other. torchvision's B5–B7 are symmetric with 1e-3.
    lite: no gates, and ReLU6 for SiLU: what small chips and 8 bits can do. Stem, head and the
        number of blocks in the first and the last stage stay those of B0.
    num_classes: 0 leaves the classifier out; the output then is the head's mean (b, 1280·width).
    drop_rate: dropout before the classifier; drop_path_rate: block b of B is dropped at rate · b/B.
    """

    def __init__(
        self,
        width: float = 1.0,
        depth: float = 1.0,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        padding: str = "symmetric",
        lite: bool = False,
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.2,
    ):
        super().__init__()
        checks.choice("padding", padding, NORMS)
        checks.image_size(img_size)
        checks.integer(1, in_chans=in_chans)
        checks.integer(0, num_classes=num_classes)
        checks.fraction(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        if not (width > 0 and depth > 0):
            raise ValueError(f"width={width} and depth={depth} must be more than 0")
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        act = nn.ReLU6 if lite else nn.SiLU
        stem = STEM if lite else round_channels(STEM, width)
        self.num_features = HEAD if lite else round_channels(HEAD, width)
        self.stem = ConvNorm(in_chans, stem, 3, stride=2, padding=padding, act=act)
        repeats = stage_repeats(depth, lite)
        self.blocks = nn.Sequential()
        channels, index = stem, 0
        for (kernel_size, stride, expand_ratio, base, _), count in zip(
            STAGES, repeats, strict=True
        ):
            stage = nn.Sequential()
            out_chans = round_channels(base, width)
            for j in range(count):
                block = MBConv(
                    channels,
                    out_chans,
                    kernel_size,
                    stride if j == 0 else 1,
                    expand_ratio,
                    padding,
                    gated=not lite,
                    act=act,
                    drop_path_rate=drop_path_rate * index / sum(repeats),
                )
                stage.append(block)
                channels = out_chans
                index += 1
            self.blocks.append(stage)
        self.head = ConvNorm(channels, self.num_features, padding=padding, act=act)
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Identity()
        if num_classes:
            self.classifier = nn.Linear(self.num_features, num_classes)
        self.apply(initialise)

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """The maps after the stem and after each of the seven stages, at `STRIDES`.

        Encoders of dense prediction take one per stride 2, 4, 8, 16, 32, the last of each or, at
        stride 2, the stem's: [0, 2, 3, 5, 7].
        """
        checks.image(images, self.in_chans)
        maps = [self.stem(images)]
        for stage in self.blocks:
            maps.append(stage(maps[-1]))
        return maps

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map (b, 1280·width, height/32, width/32)."""
        checks.image(images, self.in_chans)
        return self.head(self.blocks(self.stem(images)))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(features.mean((2, 3))))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> nn.Module:
        """An inference-only copy: norms folded, 1×1 convolutions as matrix products."""
        return deploy(self)


def initialise(module: nn.Module) -> None:
    """Convolutions N(0, 2 / fan-out), the linear layer uniform in ± fan-out^−½, biases 0."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, std=math.sqrt(2 * module.groups / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.uniform_(module.weight, -(module.out_features**-0.5), module.out_features**-0.5)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


# The paper's table: width, depth, resolution, dropout.
SCALES = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
}
LITE = ("b0", "b1", "b2")  # TensorFlow's Lite has the same widths, depths and sizes


def variant(
    width: float, depth: float, img_size: int, drop_rate: float, padding: str, lite: bool = False
) -> dict:
    """The constructor's arguments of one row of the table."""
    row = dict(width=width, depth=depth, img_size=img_size, drop_rate=drop_rate, padding=padding)
    return row | dict(lite=True) if lite else row


MODEL = EfficientNet
VARIANTS: dict[str, dict] = {
    **{name: variant(*row, "symmetric") for name, row in SCALES.items()},
    **{f"tf_{name}": variant(*row, "same") for name, row in SCALES.items()},
    **{name.replace("b", "lite"): variant(*SCALES[name], "same", lite=True) for name in LITE},
}

# -- names of weights elsewhere

BLOCK = r"^(blocks\.\d+\.\d+\.)"
FIRST = r"^(blocks\.0\.\d+\.)"  # blocks of the first stage have no expansion
TIMM: Rules = [
    (r"^conv_stem\.", "stem.conv."),
    (r"^bn1\.", "stem.norm."),
    (r"^conv_head\.", "head.conv."),
    (r"^bn2\.", "head.norm."),
    (FIRST + r"bn1\.", r"\1depthwise.norm."),
    (FIRST + r"conv_pw\.", r"\1project.conv."),
    (FIRST + r"bn2\.", r"\1project.norm."),
    (BLOCK + r"conv_pw\.", r"\1expand.conv."),
    (BLOCK + r"bn1\.", r"\1expand.norm."),
    (BLOCK + r"conv_dw\.", r"\1depthwise.conv."),
    (BLOCK + r"bn2\.", r"\1depthwise.norm."),
    (BLOCK + r"se\.conv_(reduce|expand)\.", r"\1gate.\2."),
    (BLOCK + r"conv_pwl\.", r"\1project.conv."),
    (BLOCK + r"bn3\.", r"\1project.norm."),
]


def torchvision_part(match: re.Match) -> str:
    """`features.2.0.block.1.` -> `blocks.1.0.depthwise.`; the first stage starts with that part."""
    stage = int(match[1]) - 1
    parts = ("depthwise", "gate", "project") if stage == 0 else PARTS
    return f"blocks.{stage}.{match[2]}.{parts[int(match[3])]}."


PARTS = ("expand", "depthwise", "gate", "project")
TORCHVISION: Rules = [
    (r"^features\.0\.", "stem."),
    (r"^features\.8\.", "head."),
    (r"^features\.(\d)\.(\d+)\.block\.(\d)\.", torchvision_part),
    (r"(^|\.)(stem|head|expand|depthwise|project)\.0\.", r"\1\2.conv."),
    (r"(^|\.)(stem|head|expand|depthwise|project)\.1\.", r"\1\2.norm."),
    (r"\.gate\.fc1\.", ".gate.reduce."),
    (r"\.gate\.fc2\.", ".gate.expand."),
    (r"^classifier\.1\.", "classifier."),
]


def efficientnet_pytorch(depth: float, lite: bool = False) -> Rules:
    """The names of lukemelas/EfficientNet-PyTorch, which counts blocks through all stages."""
    ends = list(accumulate(stage_repeats(depth, lite)))

    def place(match: re.Match) -> str:
        index = int(match[1])
        stage = sum(end <= index for end in ends)
        first = ends[stage - 1] if stage else 0
        return f"blocks.{stage}.{index - first}."

    return [
        (r"^_blocks\.(\d+)\.", place),
        (r"^_conv_stem\.", "stem.conv."),
        (r"^_bn0\.", "stem.norm."),
        (r"^_conv_head\.", "head.conv."),
        (r"^_bn1\.", "head.norm."),
        (r"^_fc\.", "classifier."),
        (BLOCK + r"_(expand|depthwise|project)_conv\.", r"\1\2.conv."),
        (BLOCK + r"_se_(reduce|expand)\.", r"\1gate.\2."),
        (BLOCK + r"_bn0\.", r"\1expand.norm."),
        (BLOCK + r"_bn1\.", r"\1depthwise.norm."),
        (BLOCK + r"_bn2\.", r"\1project.norm."),
    ]


# "official" are timm's names: the reference outputs carry them, TensorFlow's variables have others.
NAMES: dict[str, Rules] = {"official": TIMM, "torchvision": TORCHVISION}
for _, depth, _, _ in SCALES.values():
    NAMES[f"efficientnet_pytorch, depth {depth}"] = efficientnet_pytorch(depth)
for name in LITE:
    depth = SCALES[name][1]
    NAMES[f"efficientnet_pytorch, Lite, depth {depth}"] = efficientnet_pytorch(depth, lite=True)
