"""ConViT for inference: positional attention by rows and columns, stored; the class token alone.

‖δ‖² = δ_col² + δ_row², so exp(w·r) is a product of one factor for the columns and one for the
rows, and so is its sum over a full grid: P = P_row ⊗ P_col, for any w. P v then costs 2 n √n
multiply-adds per channel instead of n², and no n × n map is made: neither for positions nor, with
PyTorch's own attention, for content.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from refimpl.deploy import linear_like
from refimpl.deploy.deit import keep_class_token
from refimpl.layers import attention, attention_map
from refimpl.papers.convit import GPSA, ConViT


def positional_factors(w: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """P_row (heads, rows, rows) and P_col (heads, cols, cols) of w (heads, 3)."""
    w_col, w_row, w_dist = w.T[..., None, None]  # (heads, 1, 1) each
    return along(rows, w_row, w_dist), along(cols, w_col, w_dist)


def along(size: int, slope: Tensor, curvature: Tensor) -> Tensor:
    """Attention along one axis, softmax_j(slope δ + curvature δ²): (heads, size, size)."""
    place = torch.arange(size, device=slope.device, dtype=slope.dtype)
    delta = place - place[:, None]
    return (slope * delta + curvature * delta**2).softmax(dim=-1)


def kronecker(p_row: Tensor, p_col: Tensor) -> Tensor:
    """P = P_row ⊗ P_col, in full: (heads, n, n)."""
    product = einsum(p_row, p_col, "heads i k, heads j l -> heads i j k l")
    return rearrange(product, "heads i j k l -> heads (i j) (k l)")


def separable_product(p_row: Tensor, p_col: Tensor, v: Tensor) -> Tensor:
    """P v without P, rows and then columns: v (b, heads, n, d) -> (b, heads, n, d)."""
    b, heads, n, d = v.shape
    rows, cols = p_row.shape[-1], p_col.shape[-1]
    y = p_row @ v.reshape(b, heads, rows, cols * d)
    y = p_col[:, None] @ y.view(b, heads, rows, cols, d)
    return y.view(b, heads, n, d)


class FixedGPSA(nn.Module):
    """`GPSA` of finished weights on its grid: (b, n, dim) -> (b, n, dim).

    p_row holds σ(λ) P_row and keep 1 − σ(λ); q, k and v come from one product.
    """

    def __init__(self, layer: GPSA):
        super().__init__()
        self.num_heads = layer.num_heads
        bias = None if layer.v.bias is None else torch.cat([layer.qk.bias, layer.v.bias])
        self.qkv = linear_like(torch.cat([layer.qk.weight, layer.v.weight]), bias)
        gate = layer.gate().detach()[:, None, None]
        p_row, p_col = positional_factors(layer.pos_proj.weight.detach(), *layer.grid)
        self.register_buffer("p_row", gate * p_row)
        self.register_buffer("p_col", p_col)
        self.register_buffer("keep", 1 - gate)
        self.probe = layer.probe
        self.proj = layer.proj

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads
        )
        self.probe(lambda: self.keep * attention_map(q, k) + kronecker(self.p_row, self.p_col))
        position = separable_product(self.p_row, self.p_col, v)
        y = self.keep * attention(q, k, v) + position
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))


def fixed(layer: GPSA) -> nn.Module:
    """The layer on the grid that it was built for; the layer itself where it takes any grid."""
    return FixedGPSA(layer) if layer.grid else layer


def finish(model: ConViT) -> None:
    """In place: the last block computes only the class token."""
    keep_class_token(model)


FUSED = {GPSA: fixed}
