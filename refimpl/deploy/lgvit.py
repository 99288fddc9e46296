"""LGViT for inference: norms of the local heads fold away, though they stand behind a GELU.

BN(GELU(…)) before a layer folds into that layer: its weights take the scale, its bias what the
weights make of the shift. Before the 3×3 convolution the shift does not reach the padding, so what
the convolution makes of it differs at the border, and is stored as a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.bases.deit import VisionTransformer
from refimpl.deploy import linear_like
from refimpl.deploy.deit import keep_class_token
from refimpl.deploy.norms import affine
from refimpl.layers import fold_norm
from refimpl.papers.lgvit import LocalHead


class FusedLocalHead(nn.Module):
    """`LocalHead` without norms: (b, h, w, dim) -> (b, h·w, dim)."""

    @torch.no_grad()
    def __init__(self, head: LocalHead):
        super().__init__()
        conv, _, norm = head.conv1
        self.fc1 = linear_like(conv.weight.flatten(1), conv.bias)
        scale, shift = affine(norm)
        self.conv = None
        if head.proj is not None:
            self.conv = head.proj
            level = shift[:, None, None].expand(-1, *head.grid)[None]
            inside = F.conv2d(level, self.conv.weight, None, padding=1, groups=len(shift))
            self.register_buffer("inside", inside)  # (1, dim, h, w)
            self.conv.weight *= scale[:, None, None, None]
            scale, shift = affine(head.proj_bn)
        last = fold_norm(*head.conv2)
        weight = last.weight.flatten(1)
        self.fc2 = linear_like(weight * scale, last.bias + weight @ shift)
        for parameter in self.fc2.parameters():
            parameter.requires_grad_(conv.weight.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.fc1(x))
        if self.conv is not None:
            y = F.gelu(self.conv(y.permute(0, 3, 1, 2)) + self.inside).permute(0, 2, 3, 1)
        return (x + self.fc2(y)).flatten(1, 2)


def finish(model: nn.Module) -> None:
    """In place: a ViT's last block computes its class tokens alone, and the pooler goes."""
    if isinstance(model, VisionTransformer):
        keep_class_token(model, model.layout.prefix)
        model.pooler = None


FUSED = {LocalHead: FusedLocalHead}
