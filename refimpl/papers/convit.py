"""ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases.

d'Ascoli, Touvron, Leavitt, Morcos, Biroli, Sagun, ICML 2021, arXiv 2103.10697.
Official code: facebookresearch/convit @ 0a9340aaf50dd101c2d3766e575f24085afc92ed.

A convolution looks at fixed offsets, attention looks wherever the content says. ConViT starts its heads as the first and lets
training turn them into the second: *gated positional self-attention* (GPSA) mixes two attention maps with one learned gate a head.
For query i and key j on a grid, δ = (column_j − column_i, row_j − row_i):

    content    S_h = softmax_j(q_h k_hᵀ / √d)
    position   P_h = softmax_j(w_h · (δ_col, δ_row, ‖δ‖²))
    mix        A_h = (1 − σ(λ_h)) S_h + σ(λ_h) P_h

At the start w_h = α (2 Δ_col, 2 Δ_row, −1), so that w·r = −α‖δ − Δ‖² + const: head h looks at offset Δ_h, as one tap of a
√heads × √heads kernel does, blurred with variance 1/(2α). Reading back from trained weights: Δ = −(w_col, w_row) / (2 w_dist), α = −w_dist.

Two facts make this cheap. ‖δ‖² = δ_col² + δ_row², so P_h is the Kronecker product of an attention over rows and one over columns,
whatever w_h is; and P_h depends on no image. The n × n map is never needed: P_h v costs 2 n √n multiply-adds a channel instead of n².
The rows of A_h sum to one already; the official code divides by that sum once more, which is left out here.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.deit import Block, check_transformer, init_weights, read_alone
from refimpl.deploy import linear_like
from refimpl.layers import Layout, PatchEmbed, Probe, attention_map


def relative_features(rows: int, cols: int) -> Tensor:
    """r_ij = (δ_col, δ_row, ‖δ‖²) of key j seen from query i, tokens row by row: (n, n, 3)."""
    row, col = torch.arange(rows * cols) // cols, torch.arange(rows * cols) % cols
    delta_col, delta_row = col[None] - col[:, None], row[None] - row[:, None]
    return torch.stack([delta_col, delta_row, delta_col**2 + delta_row**2], -1).float()


def grid_of(n: int, layout: Layout | None) -> tuple[int, int]:
    """Rows and columns of n patch tokens: the layout's, else a square."""
    grid = layout.grid if layout else (math.isqrt(n), math.isqrt(n))
    if grid[0] * grid[1] != n:
        raise ValueError(
            f"{n} tokens don't fill a grid of {grid[0]}×{grid[1]}; GPSA wants patch tokens alone, on a square grid unless a layout says otherwise"
        )
    return grid


class GPSA(nn.Module):
    """Gated positional self-attention over patch tokens: (b, n, dim) -> (b, n, dim).

    `locality_strength` is α of the convolutional start. `pos_proj.bias` (c_h) cancels in the softmax, so its gradient is zero; it is kept,
    frozen, because checkpoints hold it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = False,
        locality_strength: float = 1.0,
        layout: Layout | None = None,
    ):
        super().__init__()
        checks.heads(dim, num_heads)
        if not locality_strength > 0:
            raise ValueError(f"locality_strength={locality_strength} must be above 0")
        self.num_heads = num_heads
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.pos_proj = nn.Linear(3, num_heads)  # w_h, c_h
        self.pos_proj.bias.requires_grad_(False)
        self.gating_param = nn.Parameter(torch.ones(num_heads))  # λ_h
        self.proj = nn.Linear(dim, dim)
        self.probe = Probe(layout)
        self.apply(init_weights)
        self.init_local(locality_strength)

    @torch.no_grad()
    def init_local(self, locality_strength: float) -> None:
        """Start as a convolution: head h at offset Δ_h of a k × k kernel, k = ⌊√heads⌋; heads beyond k² keep small random weights."""
        nn.init.eye_(self.v.weight)
        k = math.isqrt(self.num_heads)
        head = torch.arange(k * k)
        centre = (
            torch.stack([head // k, head % k], 1) - (k - 1) / 2
        )  # (Δ_col, Δ_row); rows run fastest
        self.pos_proj.weight[: k * k] = torch.cat([2 * centre, -torch.ones(k * k, 1)], 1)
        self.pos_proj.weight *= locality_strength
        nn.init.ones_(self.gating_param)

    def gate(self) -> Tensor:
        """σ(λ), the share of the positional map: (heads,)."""
        return self.gating_param.sigmoid()

    def centres(self) -> tuple[Tensor, Tensor]:
        """Where each head's positional map is centred, (Δ_col, Δ_row): (heads, 2), and its strength α: (heads,). α < 0: the head avoids the centre."""
        w_col, w_row, w_dist = self.pos_proj.weight.unbind(1)
        return torch.stack([w_col, w_row], 1) / (-2 * w_dist[:, None]), -w_dist

    def positional_factors(self, rows: int, cols: int) -> tuple[Tensor, Tensor]:
        """Attention over rows (heads, rows, rows) and over columns (heads, cols, cols), whose Kronecker product is P."""
        w_col, w_row, w_dist = self.pos_proj.weight[:, :, None, None].unbind(1)

        def along(n: int, w: Tensor) -> Tensor:
            place = torch.arange(n, device=w.device, dtype=w.dtype)
            delta = place - place[:, None]
            return (w * delta + w_dist * delta**2).softmax(-1)

        return along(rows, w_row), along(cols, w_col)

    def positional_map(self, rows: int, cols: int) -> Tensor:
        """P: (heads, n, n)."""
        return kron(*self.positional_factors(rows, cols))

    def forward(self, x: Tensor) -> Tensor:
        grid = grid_of(x.shape[1], self.probe.layout)
        q, k = (
            self.qk(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (b, heads, n, d) each
        v = self.v(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        p_row, p_col = self.positional_factors(*grid)
        gate = self.gate()[:, None, None]
        self.probe(lambda: gated_map(q, k, p_row, p_col, gate))
        return self.proj(gated_attention(q, k, v, p_row, p_col, gate))


def gated_attention(
    q: Tensor, k: Tensor, v: Tensor, p_row: Tensor, p_col: Tensor, gate: Tensor
) -> Tensor:
    """(1 − σ) S v + σ P v of all heads, without S and without P: q, k, v (b, heads, n, d), gate (heads, 1, 1) -> (b, n, heads · d)."""
    b, heads, n, d = v.shape
    rows, cols = p_row.shape[-1], p_col.shape[-1]
    content = F.scaled_dot_product_attention(q, k, v)  # S v
    position = p_row @ v.reshape(b, heads, rows, cols * d)  # P v: mix the rows …
    position = p_col[:, None] @ position.view(b, heads, rows, cols, d)  # … then the columns of each
    return torch.lerp(content, position.view(b, heads, n, d), gate).transpose(1, 2).flatten(2)


def gated_map(q: Tensor, k: Tensor, p_row: Tensor, p_col: Tensor, gate: Tensor) -> Tensor:
    """A = (1 − σ) S + σ P in full, to be looked at: (b, heads, n, n)."""
    return torch.lerp(
        attention_map(q, k, None, 1 / math.sqrt(q.shape[-1])), kron(p_row, p_col), gate
    )


def kron(p_row: Tensor, p_col: Tensor) -> Tensor:
    """P from its factors: (heads, n, n)."""
    return rearrange(
        p_row[:, :, None, :, None] * p_col[:, None, :, None, :],
        "heads i k j l -> heads (i k) (j l)",
    )


class FixedGPSA(nn.Module):
    """GPSA of finished weights on one grid: its factors are stored, q, k and v come from one product. (b, n, dim) -> (b, n, dim)."""

    def __init__(self, layer: GPSA, grid: tuple[int, int]):
        super().__init__()
        self.num_heads = layer.num_heads
        biases = None if layer.v.bias is None else torch.cat([layer.qk.bias, layer.v.bias])
        self.qkv = linear_like(torch.cat([layer.qk.weight, layer.v.weight]), biases)
        for name, tensor in zip(
            ("p_row", "p_col", "gate"),
            (*layer.positional_factors(*grid), layer.gate()[:, None, None]),
            strict=True,
        ):
            self.register_buffer(name, tensor.detach())
        self.probe, self.proj = layer.probe, layer.proj

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        self.probe(lambda: gated_map(q, k, self.p_row, self.p_col, self.gate))
        return self.proj(gated_attention(q, k, v, self.p_row, self.p_col, self.gate))


class ConViT(nn.Module):
    """Images (b, in_chans, img_size, img_size) -> logits (b, num_classes).

    The first `local_up_to_layer` blocks hold GPSA and see patches alone; then the class token joins and plain attention follows.
    `local_up_to_layer=0` is a ViT. num_classes=0 leaves the head out. drop_path rises linearly over the blocks.
    """

    def __init__(
        self,
        img_size: int = 224,
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
        drop_path: float = 0.0,
    ):
        super().__init__()
        check_transformer(depth, num_classes, in_chans, mlp_ratio, drop_path)
        if not 0 <= local_up_to_layer < depth:
            raise ValueError(
                f"local_up_to_layer={local_up_to_layer} must be at least 0 and below depth={depth}: the class token needs a plain block after the local ones"
            )
        self.local_up_to_layer = local_up_to_layer
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        grid = (self.patch_embed.grid_size,) * 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(
            torch.zeros(1, self.patch_embed.num_patches, embed_dim)
        )  # none for the class token
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias,
                drop_path * i / max(depth - 1, 1),
                attn=GPSA(embed_dim, num_heads, qkv_bias, locality_strength, Layout(grid))
                if i < local_up_to_layer
                else None,
                layout=Layout(grid, prefix=1),  # the class token has joined
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)
        for block in self.blocks[:local_up_to_layer]:
            block.attn.init_local(locality_strength)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the final norm: (b, 1 + n, c), class token first, then patches row by row."""
        x = self.patch_embed(images) + self.pos_embed
        for i, block in enumerate(self.blocks):
            if i == self.local_up_to_layer:
                x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
            x = block(x)
        return self.norm(x)

    def forward_head(self, tokens: Tensor) -> Tensor:
        return self.head(tokens[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def fuse(self) -> ConViT:
        """The deployment form: a copy in which nothing is computed anew for each image that depends on no image, and nothing that nobody reads.

        Positional factors and gates are stored, and the last block works for the class token alone, so `forward_features` gives only that: (b, 1, c).
        Patches are embedded by a matrix product, weights stored input by input.
        """
        model = copy.deepcopy(self).eval()
        for block in model.blocks:
            if isinstance(block.attn, GPSA):
                block.attn = FixedGPSA(block.attn, self.layouts[0].grid)
        return read_alone(model, tokens=1)


def non_locality(attention: Tensor, rows: int, cols: int) -> Tensor:
    """How far each head looks, in patches: attention (b, heads, n, n) over patch tokens -> (heads,).

    D_h = 1/n Σ_i Σ_j A_hij ‖δ_ij‖, A averaged over the batch. Uniform attention gives the grid's mean distance (7.28 on 14×14).
    """
    if attention.shape[-1] != rows * cols or attention.shape[-2] != rows * cols:
        raise ValueError(
            f"attention is {tuple(attention.shape)}; a {rows}×{cols} grid wants its last two axes to be {rows * cols} (leave the class token out)"
        )
    distance = relative_features(rows, cols)[..., 2].sqrt().to(attention)
    return (attention.mean(0) * distance).sum((-2, -1)) / (rows * cols)


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
