"""MobileViT for inference. Version 2's layers work on the map itself, channels last.

Its norms take an image as a whole, so their scale and shift go into the product behind them, and
only the patches' softmax and sums know of patches: nothing is unfolded or folded back.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl.bases.mobilevit import (
    PATCH,
    MobileViTv2Block,
    SeparableLayer,
    even,
    in_image,
    resized,
    separable_map,
)
from refimpl.deploy import linear_like
from refimpl.deploy.norms import behind_norm
from refimpl.layers import fold_norm


def normalised(x: Tensor, eps: float) -> Tensor:
    """Mean 0 and variance 1 over all channels and pixels of an image: (b, h, w, c) -> the same."""
    return F.layer_norm(x, x.shape[1:], eps=eps)


class FusedSeparableLayer(nn.Module):
    """`SeparableLayer` on the map: (b, h, w, dim) -> (b, h, w, dim)."""

    def __init__(self, layer: SeparableLayer):
        super().__init__()
        self.dim = layer.attn.dim
        self.eps = layer.norm1.eps
        self.qkv_proj = behind_norm(layer.norm1, layer.attn.qkv_proj)
        self.probe = layer.attn.probe
        self.out_proj = linear_like(layer.attn.out_proj.weight.flatten(1), layer.attn.out_proj.bias)
        self.fc1 = behind_norm(layer.norm2, layer.mlp.fc1)
        self.fc2 = linear_like(layer.mlp.fc2.weight.flatten(1), layer.mlp.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(normalised(x, self.eps))
        hidden = self.fc1(normalised(x, self.eps))
        return self.fc2(F.silu(hidden, inplace=True)).add_(x)

    def attend(self, x: Tensor) -> Tensor:
        """Separable attention: (b, h, w, dim) -> (b, h, w, dim)."""
        grid = tuple(x.shape[1:3])
        x = rearrange(
            self.qkv_proj(x), "b (rows y) (cols x) c -> b rows y cols x c", y=PATCH, x=PATCH
        )
        query, key, value = x.split([1, self.dim, self.dim], dim=-1)
        query = rearrange(query, "b rows y cols x 1 -> b 1 (y x) (rows cols)")
        self.probe(lambda: in_image(separable_map(query), grid), grid)
        scores = rearrange(
            query.softmax(dim=-1),
            "b 1 (y x) (rows cols) -> b rows y cols x 1",
            y=PATCH,
            rows=grid[0] // PATCH,
        )
        context = (key * scores).sum(dim=(1, 3), keepdim=True)  # (b, 1, y, 1, x, dim)
        y = F.relu(value) * context
        return self.out_proj(rearrange(y, "b rows y cols x d -> b (rows y) (cols x) d"))


class FusedMobileViTv2Block(nn.Module):
    """`MobileViTv2Block` whose tokens stay where they are: (b, dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, block: MobileViTv2Block):
        super().__init__()
        self.conv_kxk = block.conv_kxk
        self.conv_1x1 = block.conv_1x1
        self.transformer = nn.Sequential(*map(FusedSeparableLayer, block.transformer))
        self.eps = block.norm.eps
        folded = fold_norm(block.conv_proj.conv, block.conv_proj.norm)
        self.conv_proj = behind_norm(block.norm, folded)

    def forward(self, x: Tensor) -> Tensor:
        x = resized(x, even(x.shape[2:]), align_corners=True)
        x = self.conv_1x1(self.conv_kxk(x)).permute(0, 2, 3, 1)  # (b, h, w, attn_dim)
        x = self.conv_proj(normalised(self.transformer(x), self.eps))
        return x.permute(0, 3, 1, 2)


FUSED = {MobileViTv2Block: FusedMobileViTv2Block}
