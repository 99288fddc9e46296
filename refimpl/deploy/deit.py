"""The plain Vision Transformer for inference: its last block works for the tokens that are read.

A classifier reads the class token alone, so in the last block the patches need only be keys and
values: of the block's 12 n dim² multiply-adds in linear layers, 2 n dim² remain.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from refimpl.bases.deit import Attention, Block, VisionTransformer
from refimpl.deploy import linear_like
from refimpl.layers import attention, attention_map


def finish(model: VisionTransformer) -> None:
    """In place: the last block computes the class token, and the distillation token if any."""
    keep_class_token(model, model.layout.prefix)


def keep_class_token(model: nn.Module, tokens: int = 1) -> None:
    """In place: the last of the model's `blocks` computes only its first `tokens` outputs."""
    model.blocks[-1] = ClassBlock(model.blocks[-1], tokens)


class ClassBlock(nn.Module):
    """The first `tokens` outputs of a plain `Block`: (b, n, dim) -> (b, tokens, dim)."""

    def __init__(self, block: Block, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.norm1 = block.norm1
        self.attn = ClassAttention(block.attn, tokens)
        self.norm2 = block.norm2
        self.mlp = block.mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : self.tokens] + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ClassAttention(nn.Module):
    """`Attention` with the first `tokens` as its only queries: (b, n, dim) -> (b, tokens, dim).

    Its probe shows the map of all tokens nevertheless.
    """

    def __init__(self, layer: Attention, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.num_heads = layer.num_heads
        dim = layer.proj.in_features
        weight, bias = layer.qkv.weight, layer.qkv.bias
        self.q = linear_like(weight[:dim], None if bias is None else bias[:dim])
        self.kv = linear_like(weight[dim:], None if bias is None else bias[dim:])
        self.probe = layer.probe
        self.proj = layer.proj

    def queries(self, x: Tensor) -> Tensor:
        """(b, n, dim) -> (b, heads, n, d)."""
        return rearrange(self.q(x), "b n (heads d) -> b heads n d", heads=self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        k, v = rearrange(
            self.kv(x), "b n (two heads d) -> two b heads n d", two=2, heads=self.num_heads
        )
        self.probe(lambda: attention_map(self.queries(x), k))
        y = attention(self.queries(x[:, : self.tokens]), k, v)
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))
