"""State space duality in PyTorch: the matrix, and chunks. Equation and shapes: see the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels import wide
from refimpl.kernels.ssd.reference import GONE


def segsum(a: Tensor) -> Tensor:
    """Σ_{k=s+1..l} a_k at [l, s], −∞ above the diagonal: (…, l) -> (…, l, l).

    A product with a triangle of ones adds up exactly the terms between s and l. Subtracting
    cumulative sums instead cancels: for strong decay it loses half the digits. What is below −10⁴
    counts as −10⁴: its exponential is 0 all the same, and zero times it is no NaN, as 0 · −∞ is.
    """
    ones = torch.ones(a.shape[-1], a.shape[-1], dtype=a.dtype, device=a.device)
    terms = a.clamp(min=GONE)[..., None, :] * ones.triu(1)
    sums = terms @ ones.triu()  # [s, l]: this way round the products fold into one
    above = torch.full_like(ones, -torch.inf).tril(-1)
    return (sums + above).transpose(-1, -2)


def semiseparable(a: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The matrix of the layer, L ∘ C Bᵀ, for a whole sequence: (b, h, l, l)."""
    per_group = a.shape[2] // B.shape[2]
    B = B.repeat_interleave(per_group, 2).transpose(1, 2)
    C = C.repeat_interleave(per_group, 2).transpose(1, 2)
    return segsum(a.transpose(1, 2)).exp() * (C @ B.transpose(-1, -2))


def with_torch(
    x: Tensor, a: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None, *, chunk: int = 32
) -> tuple[Tensor, Tensor]:
    """y and the last state, differentiable: the four steps of the paper, span after span.

    A span is as many chunks as keep their matrices in the cache.
    """
    batch, length, heads, width = x.shape
    real = wide(x.dtype)
    if state is None:
        state = x.new_zeros(batch, heads, width, B.shape[3])
    state = state.to(real)
    chunk = min(chunk, length)
    span = chunk * max(1, 2**17 // max(1, batch * heads * chunk * chunk))
    parts = []
    for start in range(0, length, span):
        part = slice(start, start + span)
        given = [m[:, part].to(real) for m in (x, a, B, C)]
        y, state = chunks(*given, state, chunk)
        parts.append(y)
    return torch.cat(parts, 1).to(x.dtype), state


def chunks(
    x: Tensor, a: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """y and the last state of a span of chunks; heads first: every step is a batch of products."""
    length, heads = x.shape[1:3]
    x = chunked(x, chunk)
    a = chunked(a, chunk)
    B = chunked(B, chunk)
    C = chunked(C, chunk)
    inside = (B @ C.transpose(-1, -2)).transpose(-1, -2)  # C Bᵀ per group, laid out as segsum is
    per_group = heads // B.shape[1]
    if per_group > 1:
        B = B.repeat_interleave(per_group, 1)
        C = C.repeat_interleave(per_group, 1)
        inside = inside.repeat_interleave(per_group, 1)
    decay = segsum(a).exp()
    since_start = decay[..., :, 0] * a[..., :1].exp()
    # Σ_s exp(a_{s+1} + … + a_last) x_s B_sᵀ: (b, h, c, p, n)
    added = (x * decay[..., -1, :, None]).transpose(-1, -2) @ B
    across = since_start[..., -1, None, None]
    entering = []
    for i in range(added.shape[2]):
        entering.append(state)
        state = across[:, :, i] * state + added[:, :, i]
    from_before = C @ torch.stack(entering, 2).transpose(-1, -2)
    y = (inside * decay) @ x + since_start[..., None] * from_before
    return y.flatten(2, 3)[:, :, :length].transpose(1, 2), state


def chunked(m: Tensor, chunk: int) -> Tensor:
    """(b, l, h, …) -> (b, h, c, q, …), copied once for all the products to come.

    Zeros fill up the last chunk: a = 0 keeps the state, x = 0 adds nothing.
    """
    if short := -m.shape[1] % chunk:
        m = F.pad(m, [0, 0] * (m.dim() - 2) + [0, short])
    return m.transpose(1, 2).unflatten(2, (-1, chunk)).contiguous()
