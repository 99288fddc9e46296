"""The uneven Vision Transformer for inference: masks of heads folded, two matrices for attention.

The last block works for the two tokens that the classifiers read.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from refimpl.bases.uneven import UnevenAttention, UnevenTransformer
from refimpl.deploy import linear_like
from refimpl.layers import attention, attention_map


class FusedAttention(nn.Module):
    """`UnevenAttention` with its masks of heads folded: (b, n, dim) -> (b, n, dim).

    tokens: how many of the first ones ask, `None` for all; the result has as many.
    """

    def __init__(self, layer: UnevenAttention):
        super().__init__()
        self.num_heads, self.scale = layer.num_heads, layer.scale
        self.tokens: int | None = None
        weights, biases = zip(*map(layer.flat, ("query", "key", "value")), strict=True)
        self.widths = [bias.numel() for bias in biases[1:]]
        self.query = linear_like(weights[0], biases[0])
        self.key_value = linear_like(torch.cat(weights[1:]), torch.cat(biases[1:]))
        self.proj = linear_like(layer.flat_projection(), layer.proj.bias)
        self.token_mask = layer.token_mask
        self.probe = layer.probe

    def queries(self, x: Tensor, tokens: int | None) -> Tensor:
        """(b, n, dim) -> (b, heads, n, d), of the first `tokens`."""
        return self.heads(self.query(x[:, :tokens]) * self.token_mask[:tokens])

    def heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (heads d) -> b heads n d", heads=self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        both = self.key_value(x) * self.token_mask
        k, v = map(self.heads, both.split(self.widths, -1))
        self.probe(lambda: attention_map(self.queries(x, None), k, scale=self.scale))
        y = attention(self.queries(x, self.tokens), k, v, scale=self.scale)
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))


class LastBlock(nn.Module):
    """The first `tokens` outputs of a block: (b, n, dim) -> (b, tokens, dim)."""

    def __init__(self, block: nn.Module, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.norm1, self.attn, self.norm2, self.mlp = (
            block.norm1,
            block.attn,
            block.norm2,
            block.mlp,
        )
        self.attn.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : self.tokens] + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


FUSED = {UnevenAttention: FusedAttention}


def finish(model: UnevenTransformer) -> None:
    """In place: the last block computes the class and the distillation token."""
    model.blocks[-1] = LastBlock(model.blocks[-1], model.layout.prefix)
