"""Swin for inference: the bias of each attention, mask and all, is stored as it is added."""

from __future__ import annotations

from torch import Tensor, nn

from refimpl.bases.swin import NormedPatchEmbed, WindowAttention
from refimpl.deploy import PatchProduct


class FusedWindowAttention(WindowAttention):
    """`WindowAttention` whose bias is not gathered: (b, h, w, dim) -> (b, h, w, dim)."""

    def __init__(self, layer: WindowAttention):
        nn.Module.__init__(self)
        self.num_heads = layer.num_heads
        self.grid = layer.grid
        self.window = layer.window
        self.shift = layer.shift
        self.padding = layer.padding
        self.register_buffer("stored_bias", layer.bias().detach().contiguous())
        self.qkv = layer.qkv
        self.proj = layer.proj
        self.probe = layer.probe

    def bias(self) -> Tensor:
        return self.stored_bias


def patch_product(embed: NormedPatchEmbed) -> nn.Sequential:
    """The same as one matrix product on flat patches, a norm, and the tokens laid on the grid."""
    return nn.Sequential(PatchProduct(embed), embed.norm, nn.Unflatten(1, embed.grid))


FUSED = {WindowAttention: FusedWindowAttention, NormedPatchEmbed: patch_product}
