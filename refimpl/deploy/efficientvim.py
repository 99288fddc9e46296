"""EfficientViM for inference: a map is a table of tokens (channels last), as the mixer wants it.

Equal to `refimpl.papers.efficientvim` but for rounding. What is fast here and not there: norms,
blends and residuals live in the depthwise kernels, the mixer leaves the map as it is stored, and A,
which cancels, is gone. The walk of `deploy` folds the norms of what these classes take over.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.deploy import linear_like, scaled, with_identity
from refimpl.layers import ConvNorm
from refimpl.papers.efficientvim import HSMSSD, Block, PatchMerging, importance_map


def with_blend(layer: ConvNorm, share: Tensor) -> nn.Conv2d:
    """The depthwise convolution that computes (1 − share) x + share·layer(x): share (c,)."""
    return with_identity(scaled(layer.fuse(), share), 1 - share)


class FusedMixer(nn.Module):
    """`HSMSSD` on channels-last maps: (b, dim, h, w) -> (b, dim, h, w), and (b, dim, state_dim)."""

    def __init__(self, layer: HSMSSD):
        super().__init__()
        self.bcdt = layer.bcdt
        self.dw = layer.dw
        self.hz = linear_like(layer.hz, None)
        self.out = linear_like(layer.out, None)
        self.D = layer.D
        self.probe = layer.probe

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grid = x.shape[2:]
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)  # (b, l, d)
        projected = self.dw(self.bcdt(x)).permute(0, 2, 3, 1).flatten(1, 2)
        B, C, dt = projected.chunk(3, dim=2)  # (b, l, n) each
        self.probe(lambda: importance_map(dt.transpose(1, 2)), tuple(grid))
        h = (dt.softmax(dim=1) * B).transpose(1, 2) @ tokens  # (b, n, d)
        p, z = self.hz(h).chunk(2, dim=2)
        h = self.out(p * (F.silu(z) + self.D))  # p ∘ silu(z) + δ p
        y = (C @ h).unflatten(1, grid).permute(0, 3, 1, 2)
        return y, h.transpose(1, 2)


class FusedBlock(nn.Module):
    """`Block` whose norms and blends live in its weights."""

    def __init__(self, block: Block):
        super().__init__()
        share = torch.sigmoid(block.alpha.detach())
        self.dw1 = with_blend(block.dw1, share[0])
        self.norm = block.norm
        self.mixer = FusedMixer(block.mixer)
        self.dw2 = with_blend(block.dw2, share[2])
        self.pw1 = block.ffn.pw1
        self.pw2 = scaled(block.ffn.pw2.fuse(), share[3])
        self.register_buffer("share", share[1, :, None, None].clone())  # of the mixer
        self.register_buffer("keep", (1 - share[3])[:, None, None])  # of the feed-forward's input

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.dw1(x)
        y, h = self.mixer(self.norm(x))
        x = self.dw2(torch.lerp(x, y, self.share.to(x.dtype)))
        y = self.pw2(F.relu_(self.pw1(x)))
        return torch.addcmul(y, x, self.keep.to(x.dtype)), h


class FusedPatchMerging(nn.Module):
    """`PatchMerging` whose norms and residuals live in its weights."""

    def __init__(self, merging: PatchMerging):
        super().__init__()
        self.dw1 = with_identity(merging.dw1.fuse())
        self.conv1 = merging.conv1
        self.conv2 = merging.conv2
        self.se = merging.se
        self.conv3 = merging.conv3
        self.dw2 = with_identity(merging.dw2.fuse())

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(self.dw1(x)))
        x = F.relu_(self.conv2(x))
        return self.dw2(self.conv3(self.se(x)))


FUSED = {Block: FusedBlock, PatchMerging: FusedPatchMerging}
