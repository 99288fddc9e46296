"""MPCViT for inference: every head in its own cheapest form, tokens without GELU in one product.

A head with α = 0 is linear, so kᵀ v is taken first: 2 n d² multiply-adds in place of 2 n² d. A head
with α = 1 divides by the sum of its row after the product with the values. Heads that were not
binarised do both.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from refimpl.deploy import linear_like
from refimpl.kernels.relu_attention import relu_attention
from refimpl.layers import attention
from refimpl.papers.mpcvit import (
    Attention,
    Block,
    LinearisedMlp,
    MPCViT,
    heterogeneous_attention,
    merge,
    softmax,
)


class SplitAttention(nn.Module):
    """`Attention` with heads in the order of their α, and queries for the first `tokens` alone.

    (b, n, dim) -> (b, tokens, dim). Softmax where there is no α.
    """

    def __init__(self, layer: Attention):
        super().__init__()
        self.num_heads = layer.num_heads
        self.tokens: int | None = None  # all
        self.heterogeneous = layer.alpha is not None
        order = torch.arange(self.num_heads)
        self.averaging = self.num_heads  # heads from the first on that need ReLU-softmax
        self.linear = self.num_heads  # heads from here on need scaling
        if self.heterogeneous:
            alpha = layer.alpha.detach().flatten()
            rank = (alpha != 1).long() + (alpha == 0).long()  # 0: average, 1: both, 2: linear
            order = rank.cpu().argsort(stable=True)
            self.averaging = int((rank < 2).sum())
            self.linear = int((rank < 1).sum())
            self.register_buffer("alpha", layer.alpha.detach()[:, order].clone())
        self.register_buffer("back", order.argsort())
        qkv = rearrange(layer.qkv.weight, "(x heads d) c -> x heads d c", x=3, heads=len(order))
        qkv = qkv[:, order].flatten(1, 2)
        proj = rearrange(layer.proj.weight, "c (heads d) -> c heads d", heads=len(order))
        self.q = linear_like(qkv[0], None)
        self.kv = linear_like(qkv[1:].flatten(0, 1), None)
        self.proj = linear_like(proj[:, order].flatten(1), layer.proj.bias)
        self.probe = layer.probe

    def queries(self, x: Tensor) -> Tensor:
        """(b, n, dim) -> (b, heads, n, d)."""
        return rearrange(self.q(x), "b n (heads d) -> b heads n d", heads=self.num_heads)

    def map(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The maps of all tokens, heads in the model's order: (b, heads, n, n)."""
        if self.heterogeneous:
            weights = heterogeneous_attention(q, k, v, self.alpha)[1]
        else:
            weights = softmax(q @ k.mT * q.shape[-1] ** -0.5)
        return weights[:, self.back]

    def forward(self, x: Tensor) -> Tensor:
        k, v = rearrange(
            self.kv(x), "b n (two heads d) -> two b heads n d", two=2, heads=self.num_heads
        )
        self.probe(lambda: self.map(self.queries(x), k, v))
        q = self.queries(x if self.tokens is None else x[:, : self.tokens])
        y = self.attend(q, k, v) if self.heterogeneous else attention(q, k, v)
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first, last = slice(None, self.averaging), slice(self.linear, None)
        parts = []
        if self.averaging:
            average = relu_attention(q[:, first], k[:, first], v[:, first])
            parts.append(self.alpha[:, first].to(average.dtype) * average)
        if self.linear < self.num_heads:
            scale = (1 - self.alpha[:, last]) / (k.shape[2] * q.shape[-1] ** 0.5)
            parts.append(q[:, last] @ (scale.to(k.dtype) * k[:, last].mT @ v[:, last]))
        if len(parts) == 1:
            return parts[0]
        average, linear = parts
        both = self.averaging - self.linear  # heads that were not binarised
        if both:
            shared = average[:, self.linear :] + linear[:, :both]
            return torch.cat([average[:, : self.linear], shared, linear[:, both:]], 1)
        return torch.cat([average, linear], 1)


class SplitMlp(nn.Module):
    """`LinearisedMlp` with one product for tokens of β = 0: (b, n, dim) -> (b, n, dim)."""

    def __init__(self, mlp: LinearisedMlp):
        super().__init__()
        self.fc1 = linear_like(mlp.fc1.weight, mlp.fc1.bias)
        self.fc2 = linear_like(mlp.fc2.weight, mlp.fc2.bias)
        self.merged = merge(mlp)
        self.act = mlp.act
        self.sort(mlp.beta.detach())

    def sort(self, beta: Tensor) -> None:
        """Take these β (1, n, 1): which tokens keep their GELU, and where each is found again.

        Layers that no token needs are let go.
        """
        bent = beta[0, :, 0] != 0
        kept, rest = bent.nonzero().flatten(), (~bent).nonzero().flatten()
        self.binary = bool((beta[:, kept] == 1).all())
        self.register_buffer("beta", beta.clone())
        self.register_buffer("kept", kept)
        self.register_buffer("rest", rest)
        self.register_buffer("back", torch.cat([kept, rest]).argsort())
        if not len(kept):
            self.fc1 = self.fc2 = None
        if not len(rest):
            self.merged = None

    def forward(self, x: Tensor) -> Tensor:
        if self.merged is None:
            return self.with_gelu(x)
        if self.fc1 is None:
            return self.merged(x).relu()
        linear = self.merged(x[:, self.rest]).relu()
        bent = self.with_gelu(x[:, self.kept])
        return torch.cat([bent, linear], 1)[:, self.back]

    def with_gelu(self, x: Tensor) -> Tensor:
        u = self.fc1(x)
        if self.binary:
            return self.fc2(self.act(u))
        beta = self.beta[:, self.kept]
        y = self.fc2(beta * self.act(u) + (1 - beta) * u)
        return beta * y + (1 - beta) * y.relu()


class ClassBlock(nn.Module):
    """The class token's output of a `Block`: (b, n, dim) -> (b, 1, dim)."""

    def __init__(self, block: Block):
        super().__init__()
        self.pre_norm = block.pre_norm
        self.attn = block.attn
        self.attn.tokens = 1
        self.norm1 = block.norm1
        self.mlp = block.mlp
        if isinstance(self.mlp, SplitMlp):
            self.mlp.sort(self.mlp.beta[:, :1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x[:, :1] + self.attn(self.pre_norm(x)))
        return x + self.mlp(x)


def finish(model: MPCViT) -> None:
    """In place: the last block computes the class token, which alone is read."""
    model.blocks[-1] = ClassBlock(model.blocks[-1])


FUSED = {Attention: SplitAttention, LinearisedMlp: SplitMlp}
