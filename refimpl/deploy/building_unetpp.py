"""U-Net and U-Net++ for inference: no enlarged map and no concatenation is written.

Equal to `refimpl.papers.building_unetpp` but for rounding. A node's first convolution is split by
what it reads: the map from below is convolved at its own size, by one 2×2 convolution per parity of
row and column (`kernels.upsample_concat_conv`), what stands to the left at the node's size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.kernels.upsample_concat_conv.composed import by_parity
from refimpl.papers.building_unetpp import Node, UNetPlusPlus


class FusedNode(nn.Module):
    """`Node` with its norms folded and its first convolution in two, on channels-last maps."""

    def __init__(self, node: Node):
        super().__init__()
        conv = node.conv1.fuse()
        of_below, of_left = conv.weight.tensor_split([node.below_chans], dim=1)
        self.below = convolution(by_parity(of_below.detach()), conv)
        self.left = convolution(of_left.detach(), conv) if of_left.shape[1] else None
        self.bias = conv.bias
        self.conv2 = node.conv2.fuse()

    def forward(self, below: Tensor, *left: Tensor) -> Tensor:
        batch, _, height, width = below.shape
        parts = self.below(below)  # (b, 4·dim, h + 1, w + 1), dim for each parity
        y = self.bias.to(parts.dtype).view(1, -1, 1, 1)
        if self.left is None:
            y = y.expand(batch, -1, 2 * height, 2 * width).clone()
            y = y.contiguous(memory_format=torch.channels_last)
        else:
            y = self.left(torch.cat(left, dim=1)) + y
        for k, part in enumerate(parts.chunk(4, dim=1)):
            i, j = divmod(k, 2)
            y[:, :, i::2, j::2] += part[:, :, i : i + height, j : j + width]
        return F.relu_(self.conv2(F.relu_(y)))


def convolution(weight: Tensor, like: nn.Conv2d) -> nn.Conv2d:
    """With these weights (o, c, k, k), padding 1 and no bias; frozen where `like` is."""
    outputs, inputs, size, _ = weight.shape
    conv = nn.Conv2d(inputs, outputs, size, padding=1, bias=False, device="meta")
    conv.weight = nn.Parameter(weight.clone(), like.weight.requires_grad)
    return conv


def finish(model: UNetPlusPlus) -> None:
    """In place: the encoder's last convolution, which nothing reads, goes."""
    model.encoder.head = None


FUSED = {Node: FusedNode}
