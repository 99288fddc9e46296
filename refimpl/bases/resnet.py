"""The small residual networks of CIFAR, as they teach on long tails.

He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016, arXiv 1512.03385,
section 4.2; followed as released with DeiT-LT (val-iisc/DeiT-LT @ bc36970, teacher_models/).

    x ← ReLU BN conv₃ₓ₃(x)
    x ← ReLU(BN conv₃ₓ₃ ReLU BN conv₃ₓ₃(x) + shortcut(x))    blocks; a stage's first has stride 2
    logits = W mean(x) + b,   or, without lengths, cos(w_c, mean(x))

The shortcut has no weights (option A): it takes every second pixel, and zeros are the channels that
are new. Trained by LDAM (Cao and others, NeurIPS 2019, arXiv 1906.07413) the classifier is the
cosine; trained by PaCo (Cui and others, ICCV 2021, arXiv 2107.12028) it is linear, on the same
pooled vector, and what else a checkpoint holds (a slower copy, a queue, projections) is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy
from refimpl.layers import ConvNorm
from refimpl.weights import Rules


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: (b, in_chans, h, w) -> (b, dim, ⌈h/stride⌉, ⌈w/stride⌉).

    The new channels of the shortcut are half before and half behind the old ones.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.before = (dim - in_chans) // 2
        self.behind = dim - in_chans - self.before
        self.conv1 = ConvNorm(in_chans, dim, 3, stride)
        self.conv2 = ConvNorm(dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.before, self.behind))
        return F.relu(y + shortcut)


class CosineLinear(nn.Module):
    """cos(w_c, x) for every class: (b, dim) -> (b, num_classes). weight: (dim, num_classes)."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(dim, num_classes), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0)


class ResNet(nn.Module):
    """Images (b, in_chans, h, w) of any size -> logits (b, num_classes).

    depths: blocks of each stage; widths: its channels. cosine: logits without lengths, −1 … 1.
    num_classes: 0 leaves the classifier out; the output then is the pooled vector (b, widths[-1]).
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 10,
        depths: tuple[int, ...] = (5, 5, 5),
        widths: tuple[int, ...] = (16, 32, 64),
        cosine: bool = False,
    ):
        super().__init__()
        checks.same_length(depths=depths, widths=widths)
        checks.at_least(1, in_chans=in_chans, depths=depths, widths=widths)
        checks.integer(0, num_classes=num_classes)
        if list(widths) != sorted(widths):
            raise ValueError(f"widths={widths} must not fall: a shortcut can only add channels")
        self.in_chans, self.num_classes = in_chans, num_classes
        self.conv1 = ConvNorm(in_chans, widths[0], 3)
        width = widths[0]
        self.stages = nn.ModuleList()
        for i, (depth, dim) in enumerate(zip(depths, widths, strict=True)):
            first = BasicBlock(width, dim, stride=2 if i else 1)
            self.stages.append(
                nn.Sequential(first, *(BasicBlock(dim, dim) for _ in range(1, depth)))
            )
            width = dim
        if num_classes == 0:
            self.linear = nn.Identity()
        else:
            self.linear = (CosineLinear if cosine else nn.Linear)(width, num_classes)
        self.apply(init_weights)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map: (b, in_chans, h, w) -> (b, widths[-1], h', w')."""
        checks.image(images, self.in_chans)
        x = F.relu(self.conv1(images))
        for stage in self.stages:
            x = stage(x)
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> ResNet:
        """A copy for inference with every norm folded into its convolution."""
        return deploy(self)


def init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight)


def ldam_loss(logits: Tensor, labels: Tensor, counts: Sequence[int], weight: Tensor | None = None):
    """LDAM: cross-entropy of 30 · cosines, of which the label's first loses a margin: one number.

    The margin of class c falls with its count, ½ (n_c / n_min)^(−1/4): rare classes are kept at a
    distance from the border. logits: cosines (b, k); labels: (b,) int64; weight: of classes (k,).
    """
    checks.integer(1, **{f"counts[{c}]": n for c, n in enumerate(counts)})
    if len(counts) != logits.shape[1]:
        raise ValueError(f"counts has {len(counts)} classes, logits have {logits.shape[1]}")
    counts = torch.tensor(counts, dtype=logits.dtype, device=logits.device)
    margins = 0.5 * (counts / counts.min()) ** -0.25
    chosen = F.one_hot(labels, logits.shape[1])
    return F.cross_entropy(30 * (logits - chosen * margins), labels, weight)


TRUNK: Rules = [
    (r"(^|\.)layer(\d)\.", lambda found: f"{found[1]}stages.{int(found[2]) - 1}."),
    (r"(^|\.)conv(\d)\.", r"\1conv\2.conv."),
    (r"(^|\.)bn(\d)\.", r"\1conv\2.norm."),
]
NAMES: dict[str, Rules] = {
    "official": TRUNK,
    "paco": [
        (r"^(encoder_k\.|linear_k\.|queue|encoder_q\.fc\.)", None),  # used in training alone
        (r"^encoder_q\.", ""),
        *TRUNK,
    ],
}
