"""Tuned transformers for inference: what is of low rank joins the matrix that it updates.

The last block works for the class token alone, as in `deploy/deit.py`. Adapters stay, as their
activation keeps them apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl.bases.deit import Attention
from refimpl.bases.parameter_efficient import TunedAttention, TunedBlock, TunedTransformer
from refimpl.deploy import linear_like
from refimpl.deploy.deit import ClassBlock


@torch.no_grad()
def merged(layer: TunedAttention) -> Attention:
    """Plain attention with W + B A for q, k and v; `layer` is left alone."""
    plain = Attention(layer.proj.in_features, layer.num_heads, layout=layer.probe.layout)
    weight = layer.qkv.weight
    learns = weight.requires_grad
    if layer.lora is not None:
        weight = weight + layer.lora.b.weight @ layer.lora.a.weight
    plain.qkv = linear_like(weight, layer.qkv.bias)
    plain.qkv.requires_grad_(learns)
    plain.proj = layer.proj
    plain.probe = layer.probe
    return plain


class PromptedClassBlock(ClassBlock):
    """The class token's output of a `TunedBlock`: (b, 1 + P + n, dim) -> (b, 1, dim)."""

    def __init__(self, block: TunedBlock):
        super().__init__(block, tokens=1)
        self.prompts = block.prompts
        self.adapter = block.adapter

    def forward(self, x: Tensor) -> Tensor:
        x = self.prompts(x)
        x = x[:, :1] + self.attn(self.norm1(x))
        return x + self.adapter(self.mlp(self.norm2(x)))


def finish(model: TunedTransformer) -> None:
    """In place: the last block computes the class token."""
    model.blocks[-1] = PromptedClassBlock(model.blocks[-1])


FUSED = {TunedAttention: merged}
