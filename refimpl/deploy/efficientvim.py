"""EfficientViM for inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.deploy import Conv1x1AsLinear, linear_like
from refimpl.layers import ConvNorm
from refimpl.papers.efficientvim import Block, PatchMerging


def pointwise(weight: Tensor, bias: Tensor | None) -> Conv1x1AsLinear:
    """The `Conv1x1AsLinear` with the weights of a 1×1 convolution."""
    return linear_like(weight.flatten(1), bias, Conv1x1AsLinear)


def absorb(depthwise: ConvNorm, keep: Tensor, share: Tensor) -> nn.Conv2d:
    """keep·x + share·f(x) as one depthwise convolution, the identity in the middle of its kernel."""
    conv = depthwise.fuse()
    with torch.no_grad():
        conv.weight *= share[:, None, None, None]
        conv.weight[:, 0, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] += keep
        conv.bias *= share
    return conv


class FusedBlock(nn.Module):
    """A block whose norms and blends live in its weights."""

    def __init__(self, block: Block):
        super().__init__()
        share = torch.sigmoid(block.alpha.detach())
        self.dw1, self.dw2 = (
            absorb(dw, 1 - share[i], share[i]) for i, dw in ((0, block.dw1), (2, block.dw2))
        )
        self.norm, self.mixer = block.norm, block.mixer
        self.mixer.bcdt = pointwise(self.mixer.bcdt.weight, None)
        self.mixer.A = None  # cancels
        pw1, pw2 = block.ffn.pw1.fuse(), block.ffn.pw2.fuse()
        self.pw1 = pointwise(pw1.weight, pw1.bias)
        self.pw2 = pointwise(pw2.weight * share[3][:, None, None, None], pw2.bias * share[3])
        self.register_buffer("share", share[1][:, None, None])
        self.register_buffer("keep", (1 - share[3])[:, None, None])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.dw1(x)
        y, h = self.mixer(self.norm(x))
        x = self.dw2(torch.lerp(x, y, self.share))
        return torch.addcmul(self.pw2(F.relu_(self.pw1(x))), x, self.keep), h


class FusedPatchMerging(nn.Module):
    """Patch merging whose norms and residuals live in its weights."""

    def __init__(self, merging: PatchMerging):
        super().__init__()
        self.dw1, self.dw2 = (
            absorb(dw, *torch.ones(2, len(dw.norm.weight)).to(dw.norm.weight))
            for dw in (merging.dw1, merging.dw2)
        )
        self.conv1, self.conv3 = (
            pointwise(conv.weight, conv.bias)
            for conv in (merging.conv1.fuse(), merging.conv3.fuse())
        )
        self.conv2, self.se = merging.conv2.fuse(), merging.se

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(self.dw1(x)))
        x = F.relu_(self.conv2(x))
        return self.dw2(self.conv3(self.se(x)))


FUSED = {Block: FusedBlock, PatchMerging: FusedPatchMerging}
