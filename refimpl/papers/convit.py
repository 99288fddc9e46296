"""ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases.

d'Ascoli, Touvron, Leavitt, Morcos, Biroli, Sagun, ICML 2021, arXiv 2103.10697.
Official code: facebookresearch/convit @ 0a9340aaf50dd101c2d3766e575f24085afc92ed.

A convolution looks at fixed offsets, attention looks wherever the content says. ConViT starts its
heads as the first and lets training turn them into the second: *gated positional self-attention*
(GPSA) mixes two attention maps with one learned gate per head. For query i and key j on a grid,
δ = (column_j − column_i, row_j − row_i):

    content    S_h = softmax_j(q_h k_hᵀ / √d)
    position   P_h = softmax_j(w_h · r_ij),      r_ij = (δ_col, δ_row, ‖δ‖²)
    mix        A_h = (1 − σ(λ_h)) S_h + σ(λ_h) P_h

At the start w_h = α (2 Δ_col, 2 Δ_row, −1), so that w·r = −α‖δ − Δ‖² + const: head h looks at
offset Δ_h, as one tap of a √heads × √heads kernel does, blurred with variance 1/(2α). Reading back
from trained weights: Δ = −(w_col, w_row) / (2 w_dist), α = −w_dist.

Two facts make this cheap. ‖δ‖² = δ_col² + δ_row², so P_h is the Kronecker product of an attention
over rows and one over columns, whatever w_h is; and P_h depends on no image. So the n × n map is
never needed: P_h v costs 2 n √n multiply-adds per channel instead of n². `refimpl.deploy.convit`
works that way, this file as the paper writes it. The rows of A_h sum to one already; the official
code divides by that sum once more, which is left out here.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import Block, check_transformer, init_weights
from refimpl.deploy import deploy
from refimpl.layers import Layout, PatchEmbed, Probe, drop_path_rates


def gated_attention_map(q: Tensor, k: Tensor, w: Tensor, gating: Tensor, grid: tuple[int, int]):
    """A, content and position mixed by the gate: (b, heads, n, n), rows sum to 1.

    q, k: (b, heads, n, d); w: (heads, 3); gating, the λ: (heads,); grid: rows and columns of the
    n tokens.
    """
    content = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)  # S: (b, heads, n, n)
    position = positional_map(w, *grid)  # P: (heads, n, n), the same for every image
    gate = gating.sigmoid()[:, None, None]  # σ(λ): (heads, 1, 1)
    return (1 - gate) * content + gate * position


def positional_map(w: Tensor, rows: int, cols: int) -> Tensor:
    """P, where each head looks by position alone: w (heads, 3) -> (heads, n, n), rows sum to 1."""
    relative = relative_features(rows, cols, w.device).to(w.dtype)  # r: (n, n, 3)
    scores = torch.einsum("h r, i j r -> h i j", w, relative)
    return scores.softmax(dim=-1)


def relative_features(rows: int, cols: int, device: torch.device | None = None) -> Tensor:
    """r_ij = (δ_col, δ_row, ‖δ‖²) of key j seen from query i, tokens row by row: (n, n, 3)."""
    row = torch.arange(rows, device=device).repeat_interleave(cols).float()  # of each token: (n,)
    col = torch.arange(cols, device=device).repeat(rows).float()
    delta_col = col[None] - col[:, None]
    delta_row = row[None] - row[:, None]
    return torch.stack([delta_col, delta_row, delta_col**2 + delta_row**2], dim=-1)


class PositionalScores(nn.Linear):
    """Holds w (heads, 3) and c (heads,) of the scores w_h · r_ij + c_h.

    c cancels in the softmax, so it is never added and wants no gradient; it is kept because
    checkpoints hold it. A class of its own, because int8 quantisation replaces `nn.Linear`, and
    eight bits are too few for ‖δ‖².
    """

    def __init__(self, num_heads: int):
        super().__init__(3, num_heads)
        self.bias.requires_grad_(False)


class GPSA(nn.Module):
    """Gated positional self-attention over patch tokens: (b, n, dim) -> (b, n, dim).

    locality_strength: α of the convolutional start; grid: rows and columns of the tokens, a square
    that follows from their number unless given.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = False,
        locality_strength: float = 1.0,
        grid: tuple[int, int] | None = None,
    ):
        super().__init__()
        checks.heads(dim, num_heads)
        checks.positive(locality_strength=locality_strength)
        self.num_heads = num_heads
        self.grid = grid
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.pos_proj = PositionalScores(num_heads)
        self.gating_param = nn.Parameter(torch.ones(num_heads))  # λ
        self.proj = nn.Linear(dim, dim)
        self.probe = Probe(Layout(grid) if grid else None)
        self.apply(init_weights)
        self.init_local(locality_strength)

    @torch.no_grad()
    def init_local(self, locality_strength: float) -> None:
        """Start as a convolution: head h looks at offset Δ_h of a k × k kernel, k = ⌊√heads⌋.

        Heads beyond k² keep small random weights; values start as the identity.
        """
        nn.init.eye_(self.v.weight)
        k = math.isqrt(self.num_heads)
        head = torch.arange(k * k)
        offset = torch.stack([head // k, head % k], dim=1) - (k - 1) / 2  # (Δ_col, Δ_row)
        self.pos_proj.weight[: k * k] = torch.cat([2 * offset, -torch.ones(k * k, 1)], dim=1)
        self.pos_proj.weight *= locality_strength
        nn.init.ones_(self.gating_param)

    def gate(self) -> Tensor:
        """σ(λ), the part that the positional map has in the mix: (heads,)."""
        return self.gating_param.sigmoid()

    def centres(self) -> tuple[Tensor, Tensor]:
        """Where each head's positional map is centred, and how sharply.

        Returns Δ, in columns and rows: (heads, 2), and α: (heads,). With α < 0 the head looks away
        from the centre.
        """
        w_col, w_row, w_dist = self.pos_proj.weight.unbind(dim=1)
        return torch.stack([w_col, w_row], dim=1) / (-2 * w_dist[:, None]), -w_dist

    def positional_map(self, rows: int, cols: int) -> Tensor:
        """P on a grid: (heads, n, n)."""
        return positional_map(self.pos_proj.weight, rows, cols)

    def grid_of(self, n: int) -> tuple[int, int]:
        """Rows and columns of n tokens; a `ValueError` where they do not fill the grid."""
        rows, cols = self.grid or (math.isqrt(n), math.isqrt(n))
        if rows * cols != n:
            raise ValueError(
                f"{n} tokens don't fill a grid of {rows}×{cols}; GPSA takes patch tokens alone, on"
                " a square grid unless it was built with another"
            )
        return rows, cols

    def forward(self, x: Tensor) -> Tensor:
        grid = self.grid_of(x.shape[1])
        q, k = rearrange(
            self.qk(x), "b n (two heads d) -> two b heads n d", two=2, heads=self.num_heads
        )
        v = rearrange(self.v(x), "b n (heads d) -> b heads n d", heads=self.num_heads)
        attention = gated_attention_map(q, k, self.pos_proj.weight, self.gating_param, grid)
        self.probe(lambda: attention, grid)
        return self.proj(rearrange(attention @ v, "b heads n d -> b n (heads d)"))


class ConViT(nn.Module):
    """Images (b, in_chans, *img_size) -> logits (b, num_classes).

    The first `local_up_to_layer` blocks hold GPSA and see patches alone; then the class token joins
    and plain attention follows.

    img_size: pixels, one number for a square or (height, width).
    num_classes: 0 leaves the classifier out; the output then is the class token (b, embed_dim).
    local_up_to_layer: 0 makes a plain transformer.
    locality_strength: α of the convolutional start.
    drop_path_rate: of the last block; it rises linearly from 0 in the first.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        local_up_to_layer: int = 10,
        locality_strength: float = 1.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        check_transformer(depth, num_classes, in_chans, mlp_ratio, drop_path_rate)
        if not 0 <= local_up_to_layer < depth:
            raise ValueError(
                f"local_up_to_layer={local_up_to_layer} must be at least 0 and below depth={depth}:"
                " the class token needs a plain block after the local ones"
            )
        self.local_up_to_layer = local_up_to_layer
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        rows, cols = grid = self.patch_embed.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * cols, embed_dim))  # of patches alone
        self.blocks = nn.ModuleList()
        for i, rate in enumerate(drop_path_rates(drop_path_rate, depth)):
            local = None
            if i < local_up_to_layer:
                local = GPSA(embed_dim, num_heads, qkv_bias, locality_strength, grid)
            joined = Layout(grid, prefix=1)  # of plain attention, where the class token has joined
            self.blocks.append(
                Block(embed_dim, num_heads, mlp_ratio, qkv_bias, rate, attn=local, layout=joined)
            )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)
        for block in self.blocks[:local_up_to_layer]:
            block.attn.init_local(locality_strength)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the final norm: (b, 1 + n, embed_dim), class token, then patches by rows."""
        x = self.patch_embed(images) + self.pos_embed
        for i, block in enumerate(self.blocks):
            if i == self.local_up_to_layer:
                cls = self.cls_token.expand(x.shape[0], -1, -1)  # a traced model keeps len(x)
                x = torch.cat([cls, x], dim=1)
            x = block(x)
        return self.norm(x)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Logits from tokens: (b, 1 + n, embed_dim) -> (b, num_classes)."""
        return self.head(tokens[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> ConViT:
        """A copy for inference.

        Everything that does not depend on the input is precomputed, and the last block computes
        only the class token, so `forward_features` gives (b, 1, embed_dim).
        """
        return deploy(self)


def non_locality(attention: Tensor, rows: int, cols: int) -> Tensor:
    """How far each head looks, in patches: attention (b, heads, n, n) over patches -> (heads,).

    D_h = 1/n Σ_i Σ_j A_hij ‖δ_ij‖, A averaged over the batch. Uniform attention gives the grid's
    mean distance (7.28 on 14×14).
    """
    n = rows * cols
    if attention.shape[-2:] != (n, n):
        raise ValueError(
            f"attention is {tuple(attention.shape)}; a {rows}×{cols} grid wants its last two axes"
            f" to be {n} (leave the class token out)"
        )
    distance = relative_features(rows, cols)[..., 2].sqrt().to(attention)
    return (attention.mean(dim=0) * distance).sum(dim=(-2, -1)) / n


# Table 1 of the paper. Width = heads × 48, or × 64 with a plus.
VARIANTS: dict[str, dict] = {
    "tiny": dict(embed_dim=192, num_heads=4),
    "tiny_plus": dict(embed_dim=256, num_heads=4),
    "small": dict(embed_dim=432, num_heads=9),
    "small_plus": dict(embed_dim=576, num_heads=9),
    "base": dict(embed_dim=768, num_heads=16),
    "base_plus": dict(embed_dim=1024, num_heads=16),
}
MODEL = ConViT
