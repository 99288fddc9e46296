"""EfficientVMamba for inference: what the walk of `deploy` does, and ReLU in place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.papers.efficientvmamba import InvertedResidual


class FusedInvertedResidual(nn.Module):
    """`InvertedResidual` on the same maps, (b, h, w, dim), which are channels last already."""

    def __init__(self, layer: InvertedResidual):
        super().__init__()
        self.conv_pw = layer.conv_pw
        self.conv_dw = layer.conv_dw
        self.se = layer.se
        self.conv_pw2 = layer.conv_pw2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.conv_pw(x.permute(0, 3, 1, 2)))
        y = F.relu_(self.conv_dw(y))
        return self.conv_pw2(self.se(y)).permute(0, 2, 3, 1).add_(x)


FUSED = {InvertedResidual: FusedInvertedResidual}
