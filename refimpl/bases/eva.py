"""EVA-02: a plain Vision Transformer of rotary positions and gated MLPs, attending in windows.

Fang, Sun, Wang, Huang, Wang, Cao, *EVA-02: A Visual Representation for Neon Genesis*, arXiv
2303.11331 (2023), in the form that detectors use: windows in most blocks, wider ones in some.
Code: DYZhang09/ToC3D @ 32ae96126ed6ed2d2dcba4af668846572b347d81 (Apache-2.0), whose dense backbone
it is.

    x ← x + Attention(LN(x)) in windows,    x ← x + SwiGLU(LN(x))
    SwiGLU(x) = W₃ LN(SiLU(W₁ x) ∘ (W₂ x))                 a norm inside the MLP ("sub-LN")
    A = softmax((R q)(R k)ᵀ/√d),  keys without bias        R turns pairs of channels

R (RoPE) turns the pair (x₁, x₂) by an angle that grows with the token's row or column: the product
of two turned vectors then depends on the distance of their tokens alone. Half of the pairs tell the
row, half the column. Whatever a window's side, it spans as many positions as 16 tokens did in
pre-training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases.swin import cut_windows, stitch_windows
from refimpl.layers import DropPath, Probe, attention, attention_map

POSITIONS = 16  # that a window spans, however many tokens it has
Rotation = tuple[Tensor, Tensor]  # cosines and sines, (…, n, d) each


def rotation_table(
    side: int, head_dim: int, device: torch.device | None = None, positions: int = POSITIONS
) -> Rotation:
    """Cosines and sines of the angles of side² tokens, row by row: (side², head_dim) each.

    Pair i of the first half turns by t_row · 10000^(−2i/m), m = head_dim/2, of the second half by
    t_col likewise; t = index · positions / side.
    """
    checks.multiple(4, "pairs of channels for rows and for columns", head_dim=head_dim)
    half = head_dim // 2
    speeds = 10000.0 ** (-torch.arange(0, half, 2, device=device).float() / half)  # (m/2,)
    places = torch.arange(side, device=device).float() / side * positions
    angles = (places[:, None] * speeds).repeat_interleave(2, 1)  # (side, m)
    rows = angles[:, None].expand(side, side, half)
    columns = angles[None].expand(side, side, half)
    angles = torch.cat([rows, columns], -1).flatten(0, 1)
    return angles.cos(), angles.sin()


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbouring channels: (b, heads, n, d) -> the same; the table is (…, n, d)."""
    cosines, sines = (table.to(x.dtype) for table in rotation)
    first, second = x[..., ::2], x[..., 1::2]
    quarter_turn = torch.stack([-second, first], -1).flatten(-2)  # (x₁, x₂) → (−x₂, x₁)
    return x * cosines + quarter_turn * sines


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions: (b, n, dim) -> (b, n, dim)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        checks.heads(dim, num_heads)
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)
        self.probe = Probe()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values: (b, n, dim) each."""
        q = self.q_proj(x) + self.q_bias
        v = self.v_proj(x) + self.v_bias
        return q, self.k_proj(x), v

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """rotation: one table for all, (n, d), or one per entry of the batch, (b, 1, n, d)."""
        by_head = "b n (heads d) -> b heads n d"
        q, k, v = (rearrange(t, by_head, heads=self.num_heads) for t in self.project(x))
        q, k = rotated(q, rotation), rotated(k, rotation)
        self.probe(lambda: attention_map(q, k))
        y = attention(q, k, v.to(q.dtype))
        return self.proj(rearrange(y, "b heads n d -> b n (heads d)"))


class SwiGLU(nn.Module):
    """Gated MLP with a norm inside: (…, dim) -> (…, dim)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        checks.at_least(1, hidden_dim=hidden_dim)
        self.w1 = nn.Linear(dim, hidden_dim)
        self.w2 = nn.Linear(dim, hidden_dim)
        self.ffn_ln = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.w3 = nn.Linear(hidden_dim, dim)

    def gated(self, x: Tensor) -> Tensor:
        return F.silu(self.w1(x)) * self.w2(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(self.gated(x)))


class EvaBlock(nn.Module):
    """One block that attends in square windows: (b, h, w, dim) -> (b, h, w, dim).

    Maps that windows do not divide are padded with zeros right and bottom, *after* the norm; padded
    tokens are attended to like any other.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        mlp_ratio: float = 8 / 3,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        checks.integer(1, window_size=window_size)
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RotaryAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SwiGLU(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """rotation: of the window's tokens, from `rotation_table(window_size, head_dim)`."""
        windows = padded_windows(self.norm1(x), self.window_size)
        attended = self.attn(windows, rotation)
        x = x + self.drop_path(whole_map(attended, x.shape[1:3], self.window_size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def padded_windows(x: Tensor, side: int, value: float = 0.0) -> Tensor:
    """Pad right and bottom, then cut: (b, h, w, c) -> (b · windows, side², c), windows row by row.

    value: of the padding.
    """
    down, right = -x.shape[1] % side, -x.shape[2] % side
    return cut_windows(F.pad(x, (0, 0, 0, right, 0, down), value=value), (side, side))


def whole_map(windows: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """The inverse of `padded_windows`: (b · windows, side², c) -> (b, *grid, c)."""
    counts = -(-grid[0] // side), -(-grid[1] // side)
    return stitch_windows(windows, counts, side)[:, : grid[0], : grid[1]]


def resized_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Learned positions of a square grid on another grid, bicubic: (1, 1 + n, c) -> (1, *grid, c).

    The first entry, of a class token that these networks do not have, is left out.
    """
    side = int((table.shape[1] - 1) ** 0.5)
    square = rearrange(table[:, 1:], "1 (h w) c -> 1 c h w", h=side)
    if (side, side) != tuple(grid):
        square = F.interpolate(square, tuple(grid), mode="bicubic")
    return rearrange(square, "1 c h w -> 1 h w c")


def by_score(scores: Tensor) -> Tensor:
    """Indices from the highest score to the lowest, the first of equals first: (b, n) -> (b, n)."""
    if torch.onnx.is_in_onnx_export():  # whose operator keeps the order of equals
        return scores.topk(scores.shape[1], -1).indices
    return scores.argsort(stable=True, dim=-1, descending=True)


def rows(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens of these indices: (b, n, c), (b, m) -> (b, m, c)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
