"""EfficientMod for inference: norms' scales folded into what reads them, the gate in place.

Equal to `refimpl.papers.efficientmod` but for rounding. A layer norm depends on the image and
stays, but its scale and shift are a diagonal matrix and a vector, which the linear layers behind it
take in; layer scale goes into the output projection in the same way.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from refimpl.deploy import scaled
from refimpl.deploy.norms import bare, behind_norm
from refimpl.layers import attention, attention_map
from refimpl.papers.efficientmod import AttentionBlock, EfficientMod, ModulationBlock


class FusedModulationBlock(nn.Module):
    """`ModulationBlock` with scales folded: (b, h, w, dim) -> (b, h, w, dim)."""

    def __init__(self, block: ModulationBlock):
        super().__init__()
        context_layer = block.mlp.context_layer
        self.norm = bare(block.norm)
        self.proj_in = behind_norm(block.norm, context_layer.proj_in)
        self.conv = context_layer.conv
        self.proj_out = context_layer.proj_out
        self.fc1 = behind_norm(block.norm, block.mlp.fc1)
        self.fc2 = scaled(block.mlp.fc2, block.gamma)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        y = self.conv(self.proj_in(n).permute(0, 3, 1, 2))  # channels last in memory
        c = self.proj_out(torch.ops.aten.gelu_(y).permute(0, 2, 3, 1))
        v = self.fc1(n)
        if v.shape[-1] > c.shape[-1]:
            v = torch.ops.aten.gelu_(v)
        v.unflatten(-1, (-1, c.shape[-1])).mul_(c[..., None, :])  # hidden channel j meets j mod d
        return self.fc2(v).add_(x)


class FusedAttentionBlock(nn.Module):
    """`AttentionBlock` with scales folded: (b, h, w, dim) -> (b, h, w, dim)."""

    def __init__(self, block: AttentionBlock):
        super().__init__()
        self.num_heads = block.attn.num_heads
        self.norm1 = bare(block.norm1)
        self.qkv = behind_norm(block.norm1, block.attn.qkv)
        self.probe = block.attn.probe
        self.proj = block.attn.proj
        self.norm2 = bare(block.norm2)
        self.fc1 = behind_norm(block.norm2, block.mlp.fc1)
        self.fc2 = block.mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = x.flatten(1, 2)  # (b, n, dim)
        q, k, v = rearrange(
            self.qkv(self.norm1(x)),
            "b n (three heads d) -> three b heads n d",
            three=3,
            heads=self.num_heads,
        )
        self.probe(lambda: attention_map(q, k), (height, width))
        y = attention(q, k, v)
        x = self.proj(rearrange(y, "b heads n d -> b n (heads d)")).add_(x)
        x = self.fc2(torch.ops.aten.gelu_(self.fc1(self.norm2(x)))).add_(x)
        return x.unflatten(1, (height, width))


def finish(model: EfficientMod) -> None:
    """In place: the last norm's scale goes through the mean into the classifier."""
    if isinstance(model.head, nn.Linear):
        model.head = behind_norm(model.norm, model.head)
        model.norm = bare(model.norm)


FUSED = {ModulationBlock: FusedModulationBlock, AttentionBlock: FusedAttentionBlock}
