"""EfficientVMamba for inference: what the walk of `deploy` does, and ReLU in place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.papers.efficientvmamba import InvertedResidual


class FusedInvertedResidual(nn.Module):
    """`InvertedResidual` on the same maps, (b, h, w, dim), which are channels last already."""

    def __init__(self, layer: InvertedResidual):
        super().__init__()
        self.pw1 = layer.pw1
        self.dw = layer.dw
        self.se = layer.se
        self.pw2 = layer.pw2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.pw1(x.permute(0, 3, 1, 2)))
        y = F.relu_(self.dw(y))
        return self.pw2(self.se(y)).permute(0, 2, 3, 1).add_(x)


FUSED = {InvertedResidual: FusedInvertedResidual}
