"""ZZ-Example: Leaning on the Mean.

Nobody, Nowhere, 2024. Not a paper: the smallest one that keeps every rule of the house.

Tokens agree on something when each moves a fraction s of the way to their mean. One number per
layer is learned, and the cost is that of two sums.

    lean    y_i = x_i + s (m − x_i),    m = (x_1 + … + x_n) / n
    layer   x ← x + relu(y W + b)

The mean stays where it is, and distances between tokens shrink by 1 − s. Cost per layer: 2·n·d
additions, and n·d² multiply-adds for W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.deploy import deploy


def lean(tokens: Tensor, fraction: Tensor | float) -> Tensor:
    """Move each token a fraction s of the way to the mean of all: (b, n, d) -> (b, n, d)."""
    mean = tokens.mean(dim=1, keepdim=True)  # m: (b, 1, d)
    return tokens + fraction * (mean - tokens)  # s = 0 leaves them, s = 1 makes all alike


class ZZExample(nn.Module):
    """Patches, `depth` leaning layers, a mean over tokens, a linear head."""

    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 8,
        in_chans: int = 3,
        num_classes: int = 10,
        embed_dim: int = 16,
        depth: int = 2,
    ):
        super().__init__()
        checks.at_least(1, img_size=img_size, in_chans=in_chans, embed_dim=embed_dim, depth=depth)
        checks.multiple(patch_size, "the side of a patch", img_size=img_size)
        self.img_size = img_size
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)
        self.fractions = nn.Parameter(torch.full((depth,), 0.5))  # s, one per layer
        self.layers = nn.ModuleList(nn.Linear(embed_dim, embed_dim) for _ in range(depth))
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w), sides multiples of a patch's -> features (b, embed_dim)."""
        checks.image(images, self.in_chans, multiple=self.patch_size)
        tokens = rearrange(self.patch_embed(images), "b d h w -> b (h w) d")
        for fraction, layer in zip(self.fractions, self.layers, strict=True):
            tokens = tokens + F.relu(layer(lean(tokens, fraction)))
        return tokens.mean(dim=1)

    def forward_head(self, features: Tensor) -> Tensor:
        """Features (b, embed_dim) -> logits (b, num_classes)."""
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) -> logits (b, num_classes)."""
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> nn.Module:
        """An inference-only copy, equal within 1e-4."""
        return deploy(self)


VARIANTS = {"tiny": {}, "small": {"embed_dim": 32, "depth": 4}}
MODEL = ZZExample
