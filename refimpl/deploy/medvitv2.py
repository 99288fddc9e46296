"""MedViTV2 for inference: windows in row bands, KAN layers in tiles, norms folded where possible.

A norm before attention goes into its projections only where a token is a place with all its
channels. In the released order a token mixes places of one channel, so the norm stays, as the two
numbers per channel that it is. The feed-forward layer that is never run is left out.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from refimpl.deploy.norms import affine, fold_norms_before
from refimpl.kernels.kan_layer import kan_layer
from refimpl.kernels.neighbourhood_attention import neighbourhood_attention
from refimpl.papers.medvitv2 import (
    GlobalBlock,
    KANLayer,
    LocalBlock,
    NeighbourhoodAttention,
    check_pooling,
    on_all_tokens,
    to_map,
    to_tokens,
)
from refimpl.papers.medvitv2 import neighbourhood_attention as with_weights


class Affine(nn.Module):
    """A batch norm in evaluation mode: x·scale + shift per channel, (b, c, h, w) -> the same."""

    @torch.no_grad()
    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        scale, shift = affine(norm)
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class FusedKANLayer(nn.Module):
    """`KANLayer` as one call: (b, h, w, in_dim) -> (b, h, w, out_dim)."""

    def __init__(self, layer: KANLayer):
        super().__init__()
        self.norm = layer.norm
        self.register_buffer("grid", layer.grid.detach())
        self.weight = layer.spline.weight

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        y = kan_layer(rows, self.norm.weight, self.norm.bias, self.grid, self.weight)
        return y.view(*x.shape[:-1], y.shape[-1])


class FusedNeighbourhoodAttention(nn.Module):
    """`NeighbourhoodAttention` in row bands: (b, h, w, dim) -> (b, h, w, dim)."""

    def __init__(self, layer: NeighbourhoodAttention):
        super().__init__()
        self.num_heads = layer.num_heads
        self.window = (layer.window_size,) * 2, (layer.dilation,) * 2
        self.qkv = layer.qkv
        self.rpb = layer.rpb
        self.proj = layer.proj
        self.probe = layer.probe

    def forward(self, tokens: Tensor) -> Tensor:
        grid = tuple(tokens.shape[1:3])
        qkv = self.qkv(tokens).unflatten(3, (3, self.num_heads, -1))
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).unbind()
        self.probe(
            lambda: on_all_tokens(with_weights(q, k, v, *self.window, self.rpb)[1], *self.window),
            grid if self.probe.layout else None,
        )
        y = neighbourhood_attention(q, k, v, self.rpb, *self.window)
        return self.proj(rearrange(y, "b heads h w d -> b h w (heads d)"))


class FusedLocalBlock(nn.Module):
    """`LocalBlock` without batch norms: (b, in_chans, h, w) -> (b, dim, h', w')."""

    def __init__(self, block: LocalBlock):
        super().__init__()
        self.layout = block.layout
        self.patch_embed = block.patch_embed
        self.attn = block.attn
        self.norm1 = Affine(block.norm1)
        if block.layout == "permuted":
            self.norm1 = nn.Identity()
            self.attn.qkv = fold_norms_before([block.norm1], block.attn.qkv)
        self.norm2 = Affine(block.norm2)
        self.ffn = block.ffn

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        attended = self.attn(to_tokens(self.norm1(x), self.layout))
        u = x + to_map(attended, self.layout)
        x = self.norm2(u)
        return u + x + self.ffn(x)


class FusedGlobalBlock(nn.Module):
    """`GlobalBlock` without batch norms: (b, in_chans, h, w) -> (b, dim, h', w')."""

    def __init__(self, block: GlobalBlock):
        super().__init__()
        self.layout = block.layout
        self.patch_embed = block.patch_embed
        self.e_mhsa = block.e_mhsa
        self.e_mhsa.take_norm_before(block.norm1)
        self.projection = block.projection
        self.mhca = block.mhca
        self.norm2 = Affine(block.norm2)
        self.kan = block.kan

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        tokens = rearrange(x, "b c h w -> b (h w) c")
        check_pooling(tokens.shape[1], self.e_mhsa.run)
        x = x + rearrange(self.e_mhsa(tokens), "b (h w) c -> b c h w", h=x.shape[2])
        z = self.projection(x)
        x = torch.cat([x, z + self.mhca(z)], dim=1)
        return x + to_map(self.kan(to_tokens(self.norm2(x), self.layout)), self.layout)


FUSED = {
    GlobalBlock: FusedGlobalBlock,
    KANLayer: FusedKANLayer,
    LocalBlock: FusedLocalBlock,
    NeighbourhoodAttention: FusedNeighbourhoodAttention,
}
