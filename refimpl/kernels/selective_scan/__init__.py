"""Selective scan, the recurrence of Mamba (Gu & Dao 2023, arXiv 2312.00752): a leaky memory that decides from each token what to keep.

    Δ_l = softplus(delta_l + delta_bias)                        bias and softplus are each optional
    h_l = exp(Δ_l A) ⊙ h_{l−1} + (Δ_l u_l) B_l                  A < 0, elementwise over (d, n), h_0 = state or 0
    y_l = Σ_n C_l[n] h_l[n] + D u_l,     then  y ⊙ silu(z)      D and z are optional

    u, delta, z: (b, d, l)    A: (d, n)    D, delta_bias: (d)    state: (b, d, n)
    B, C: (b, n, l), or (b, g, n, l) with channel c in group c // (d/g), or constant (d, n)
    A may be complex; B and C over time then hold real and imaginary parts interleaved, (b, n, 2l), and y is 2·Re Σ_n C h.

Arithmetic is float32 (float64 for float64 input); y comes back in u's type. Only A is discretised exactly; B̄ is ΔB, the first-order term.
The step is associative: (a₁, x₁)∘(a₂, x₂) = (a₁a₂, a₂x₁ + x₂), so any order of brackets gives the same states.

Work: about 7n + 2 operations per (b, d, l), one of them an exponential. Traffic when nothing is materialised: u, delta in and y out, 12 bytes in float32,
plus B and C shared by the channels of a group. At n = 16 that is under 10 operations a byte: bound by memory on a GPU, with the exponentials close behind.
Storing exp(ΔA) and ΔBu, as the textbook form does, moves 16n bytes more per (b, d, l).

Reference followed: state-spaces/mamba @ e9594ce, mamba_ssm/ops/selective_scan_interface.py (`selective_scan_ref`).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels import Cost, dispatch

METHODS = ("blocks", "associative")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    state: Tensor | None = None,
    return_last_state: bool = False,
    backend: str = "auto",
    **options,
) -> Tensor | tuple[Tensor, Tensor]:
    """y (b, d, l), and the last state (b, d, n) where asked for. `options` go to the backend (torch: `method`, `block`)."""
    check(u, delta, A, B, C, D, z, delta_bias, state)
    forms = {"naive": naive, "numpy": with_numpy, "torch": with_torch, "triton": with_triton}
    y, last = dispatch(
        "selective_scan",
        forms,
        backend,
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        state,
        delta_softplus=delta_softplus,
        **options,
    )
    y = y.to(u.dtype)  # the NumPy forms compute in float32 where u has less
    return (y, last) if return_last_state else y


def naive(u, delta, A, B, C, D=None, z=None, delta_bias=None, state=None, *, delta_softplus=False):
    """One multiplication at a time."""
    (batch, channels, length), states = u.shape, A.shape[1]
    scale = 2 if np.iscomplexobj(A) else 1
    B, C = (per_channel(np, m, A, u.shape) for m in (B, C))
    y = np.zeros(u.shape, u.dtype)
    h = (
        np.zeros((batch, channels, states), A.dtype)
        if state is None
        else state.astype(np.result_type(state, A))
    )
    for b in range(batch):
        for d in range(channels):
            for t in range(length):
                step = delta[b, d, t] + (delta_bias[d] if delta_bias is not None else 0)
                if delta_softplus and step <= 20:
                    step = np.log1p(np.exp(step))
                for n in range(states):
                    h[b, d, n] = (
                        np.exp(step * A[d, n]) * h[b, d, n] + step * u[b, d, t] * B[b, d, n, t]
                    )
                    y[b, d, t] += scale * (C[b, d, n, t] * h[b, d, n]).real
                if D is not None:
                    y[b, d, t] += D[d] * u[b, d, t]
                if z is not None:
                    y[b, d, t] *= z[b, d, t] / (1 + np.exp(-z[b, d, t]))
    return y, h


def with_numpy(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, state=None, *, delta_softplus=False
):
    """√l blocks of √l steps: first all blocks at once from zero, step by step; then block by block the state that enters."""
    (batch, channels, length), states = u.shape, A.shape[1]
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = np.where(delta > 20, delta, np.log1p(np.exp(np.minimum(delta, 20))))
    B, C = (per_channel(np, m, A, u.shape) for m in (B, C))
    steps = math.isqrt(length - 1) + 1
    blocks = -(-length // steps)
    a = np.ones(
        (blocks * steps, batch, states, channels), A.dtype
    )  # time first; padding keeps the state: a = 1, x = 0
    x = np.zeros(a.shape, np.result_type(A, u))
    time_first = lambda m: m.transpose(3, 0, 2, 1)  # noqa: E731  (b, d, n, l) -> (l, b, n, d)
    np.exp(time_first(delta[:, :, None] * A[:, :, None]), out=a[:length])
    np.multiply(time_first((delta * u)[:, :, None]), time_first(B), out=x[:length])
    a, x = (m.reshape(blocks, steps, batch, states, channels) for m in (a, x))
    for s in range(1, steps):
        x[:, s] += a[:, s] * x[:, s - 1]
        a[:, s] *= a[:, s - 1]
    h = np.zeros(x.shape[2:], x.dtype) if state is None else state.transpose(0, 2, 1)
    for block, decay in zip(x, a, strict=True):
        block += decay * h
        h = block[-1]
    h_all = x.reshape(a.shape[0] * steps, *x.shape[2:])[:length]
    y = np.einsum("lbnd,bdnl->bdl", h_all, C, optimize=batch * channels > 0)
    y = 2 * y.real if np.iscomplexobj(A) else y
    y = y if D is None else y + D[:, None] * u
    y = y if z is None else y * z / (1 + np.exp(-z))
    return y.astype(u.dtype, copy=False), h.transpose(0, 2, 1).copy()


def per_channel(lib, m, A, shape):
    """B or C in any of its accepted forms as (b, d, n, l), repeated over channels (a view where it can be)."""
    batch, channels, length = shape
    if m.ndim == 2:
        return lib.broadcast_to(m[None, :, :, None], (batch, *m.shape, length))
    if A.dtype.kind == "c":
        m = np.ascontiguousarray(m).view(A.dtype)  # pairs along time
    m = m[:, None] if m.ndim == 3 else m
    batch, groups, states, length = m.shape
    return lib.broadcast_to(
        m[:, :, None], (batch, groups, channels // groups, states, length)
    ).reshape(batch, channels, states, length)


def with_torch(
    u,
    delta,
    A,
    B,
    C,
    D=None,
    z=None,
    delta_bias=None,
    state=None,
    *,
    delta_softplus=False,
    method="blocks",
    block=None,
):
    """Differentiable. `"blocks"`: time steps in blocks that stay in the cache, gradients by hand. `"associative"`: log₂ l whole-tensor
    passes, composed (so that it can be differentiated twice), at log₂ l times the work. `block`: time steps in a block."""
    if method not in METHODS:
        raise ValueError(
            f"selective_scan: method={method!r} is not one of {', '.join(map(repr, METHODS))}"
        )
    if block is not None and block < 1:
        raise ValueError(
            f"selective_scan: block={block}, the number of time steps in a block, must be at least 1"
        )
    real = torch.float64 if u.dtype == torch.float64 else torch.float32
    kind = torch.promote_types(A.dtype, real) if A.is_complex() else real
    given, u, delta, A = u.dtype, u.to(real), delta.to(real), A.to(kind)
    if delta_bias is not None:
        delta = delta + delta_bias.to(real)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    groups = math.lcm(*(m.shape[1] for m in (B, C) if m.dim() == 4))
    B, C = (grouped(m, A, groups) for m in (B, C))
    by_group = lambda m: m.permute(2, 0, 1).unflatten(2, (groups, 1, -1))  # noqa: E731  (b, d, l) -> (l, b, g, 1, d/g)
    pairs = lambda m: m.unflatten(-2, (groups, -1)).transpose(-1, -2)  # noqa: E731  (…, d, n) -> (…, g, n, d/g)
    h0 = A.new_zeros(len(u), *A.shape) if state is None else state.to(kind)
    core = BlockScan.apply if method == "blocks" else associative
    y, last = core(
        by_group(u).contiguous(),
        by_group(delta).contiguous(),
        pairs(A).contiguous(),
        B,
        C,
        pairs(h0),
        block,
    )
    y = y.flatten(2).permute(1, 2, 0)
    y = y if D is None else y + D.to(real)[:, None] * u
    y = y if z is None else y * F.silu(z.to(real))
    return y.to(given), last.transpose(-1, -2).flatten(1, 2)


def grouped(m: Tensor, A: Tensor, groups: int) -> Tensor:
    """B or C as (l, b, g, n, 1), shared by the d/g channels of a group; a constant as (1, 1, g, n, d/g)."""
    if m.dim() == 2:
        return m.to(A.dtype).unflatten(0, (groups, -1)).transpose(-1, -2)[None, None]
    if A.is_complex():
        m = torch.view_as_complex(
            m.to(A.real.dtype).unflatten(-1, (-1, 2)).contiguous()
        )  # pairs along time
    m = m[:, None] if m.dim() == 3 else m
    return (
        m.to(A.dtype)
        .repeat_interleave(groups // m.shape[1], 1)
        .permute(3, 0, 1, 2)[..., None]
        .contiguous()
    )


class BlockScan(torch.autograd.Function):
    """The bare recurrence, block after block of time steps; only the states between blocks are kept for the way back.

    u, delta: (l, b, g, 1, c); A: (g, n, c); B, C: (l, b, g, n, 1) or (1, 1, g, n, c); h0: (b, g, n, c). Returns y (l, b, g, c) and the last state.
    The way back is a scan too, against time: λ_l = C_l ȳ_l + a_{l+1} λ_{l+1}; then B̄_l = λ Δu, C̄_l = h ȳ, Ā = Σ λ Δ a h_{l−1}.
    """

    @staticmethod
    def forward(ctx, u, delta, A, B, C, h0, block):
        size = min(block or block_size(h0.numel()), len(u))
        y = torch.empty(u.shape[:3] + u.shape[4:], dtype=u.dtype, device=u.device)
        buffers = h0.new_empty(
            2, size, *h0.shape
        )  # written, scanned and read anew in every block: they stay in the cache
        entering, h = [], h0
        for part in blocks(len(u), size):
            entering.append(h)
            a, x = terms(u, delta, A, B, part, buffers)
            h = scan_(a, x, h).clone()
            y[part] = read(at(C, part), x)
        ctx.save_for_backward(u, delta, A, B, C, *entering)
        ctx.size = size
        return y, h

    @staticmethod
    def backward(ctx, grad_y, carry):
        u, delta, A, B, C, *entering = ctx.saved_tensors
        grad_y = (2 * grad_y if A.is_complex() else grad_y).unsqueeze(3).to(A.dtype)
        grad_u, grad_delta = torch.empty_like(u), torch.empty_like(delta)
        grad_A, grad_B, grad_C = (torch.zeros_like(m) for m in (A, B, C))
        buffers = A.new_empty(5, ctx.size, *entering[0].shape)
        for part, h in reversed(list(zip(blocks(len(u), ctx.size), entering, strict=True))):
            a, states = terms(u, delta, A, B, part, buffers)
            spent, before, lam = buffers[2:, : len(a)]
            scan_(spent.copy_(a), states, h)
            before[0], before[1:] = h, states[:-1]  # h_{l−1} of every step
            upstream = grad_y[part]
            torch.mul(at(C, part).conj(), upstream, out=lam)
            spent[:-1], spent[-1] = a[1:].conj(), 1
            scan_(spent, lam, carry, reverse=True)
            carry = a[0].conj() * lam[0]
            add_to(grad_C, part, states.conj() * upstream)
            add_to(grad_B, part, lam * (delta[part] * u[part]))
            grad_input = (lam * at(B, part).conj()).sum(3, keepdim=True).real
            lam *= before.mul_(a).conj()  # λ a h_{l−1}: what Δ and A share
            grad_delta[part] = u[part] * grad_input + (lam * A.conj()).sum(3, keepdim=True).real
            grad_u[part] = delta[part] * grad_input
            grad_A += (lam * delta[part]).sum((0, 1))
        return grad_u, grad_delta, grad_A, grad_B, grad_C, carry, None


def blocks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def block_size(states: int) -> int:
    """Time steps of a block: enough to make a call worth its overhead, few enough that the pairs (a, x), 8 bytes a state, stay in the cache."""
    return min(max(2 ** round(math.log2(200_000 / max(states, 1))), 16), 256)


def at(m: Tensor, part: slice) -> Tensor:
    """The time steps `part` of B or C; a constant serves all of them."""
    return m[part] if len(m) > 1 else m


def terms(u, delta, A, B, part, buffers):
    """Decay a = exp(ΔA) and input x = Δ u B of the time steps `part`, written into the buffers: (t, b, g, n, c) each."""
    delta = delta[part]
    a, x = buffers[0, : len(delta)], buffers[1, : len(delta)]
    torch.mul(delta, A, out=a).exp_()
    torch.mul(delta * u[part], at(B, part), out=x)
    return a, x


def scan_(a: Tensor, x: Tensor, h: Tensor, reverse: bool = False) -> Tensor:
    """Replace x by the states x_t ← x_t + a_t x_{t−1}, in place (a is used up), and return the last one.

    √t groups of √t steps: the groups all at once, then one after the other the state that enters. `reverse`: from the end of time.
    """
    steps = math.isqrt(len(x))
    whole = len(x) // steps * steps
    pieces = [(slice(0, whole), steps), (slice(whole, len(x)), len(x) - whole)]
    for piece, count in pieces[::-1] if reverse else pieces:
        if count == 0:
            continue
        a_groups, x_groups = (m[piece].unflatten(0, (-1, count)) for m in (a, x))
        a_steps, x_steps = (m.unbind(1)[:: -1 if reverse else 1] for m in (a_groups, x_groups))
        for s in range(1, count):
            x_steps[s].addcmul_(a_steps[s], x_steps[s - 1])
            a_steps[s].mul_(a_steps[s - 1])
        for a_group, x_group in list(zip(a_groups.unbind(), x_groups.unbind(), strict=True))[
            :: -1 if reverse else 1
        ]:
            x_group.addcmul_(a_group, h)
            h = x_group[0 if reverse else -1]
    return h


def read(C: Tensor, h: Tensor) -> Tensor:
    """Σ_n C h: (t, b, g, c)."""
    y = (C.transpose(-1, -2) @ h).squeeze(3) if C.shape[-1] == 1 else (C * h).sum(3)
    return 2 * y.real if y.is_complex() else y


def add_to(total: Tensor, part: slice, grad: Tensor) -> None:
    """Sum a gradient (t, b, g, n, c) over what its tensor was shared by."""
    target = total[part] if len(total) > 1 else total
    target += grad.sum_to_size(target.shape)


def associative(u, delta, A, B, C, h0, block=None):
    """The same recurrence by doubling (Hillis & Steele): after pass k every step holds the product of its last 2ᵏ pairs."""
    a = torch.exp(delta * A)
    x = ((delta * u) * B).expand_as(a)
    x = torch.cat([x[:1] + a[:1] * h0, x[1:]])
    reach = 1
    while reach < len(x):
        x = torch.cat([x[:reach], x[reach:] + a[reach:] * x[:-reach]])
        a = torch.cat([a[:reach], a[reach:] * a[:-reach]])
        reach *= 2
    return read(C, x), x[-1]


def with_triton(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, state=None, *, delta_softplus=False
):
    """A program per (batch, block of channels): tiles of time, states in registers; on the way back the tiles are computed anew."""
    if A.is_complex():
        raise ValueError(
            "selective_scan: A is complex; the Triton form computes real scans only, use backend='torch'"
        )
    if len(u) == 0:
        return with_torch(u, delta, A, B, C, D, z, delta_bias, state, delta_softplus=delta_softplus)
    channels, length = u.shape[1:]
    real = torch.float64 if u.dtype == torch.float64 else torch.float32
    groups = math.lcm(
        *(channels if m.dim() == 2 else m.shape[1] if m.dim() == 4 else 1 for m in (B, C))
    )
    B, C = (
        m[None, :, :, None].expand(len(u), -1, -1, length)
        if m.dim() == 2
        else m
        if m.dim() == 4
        else m[:, None]
        for m in (B, C)
    )
    B, C = (m.repeat_interleave(groups // m.shape[1], 1) for m in (B, C))
    h0 = u.new_zeros(len(u), *A.shape, dtype=real) if state is None else state.to(real)
    bias = u.new_zeros(channels, dtype=real) if delta_bias is None else delta_bias.to(real)
    skip = u.new_zeros(channels, dtype=real) if D is None else D.to(real)
    y, last = triton_scan().apply(u, delta, A.to(real), B, C, skip, bias, h0, delta_softplus)
    y = y if z is None else y * F.silu(z.to(real))
    return y.to(u.dtype), last


@functools.cache
def triton_scan():
    """The compiled kernels as one differentiable function; Triton is imported here, on first use."""
    global tl, combine, load_delta  # kernels look names up in the module: Triton's interpreter does not see closures
    import triton
    import triton.language as tl

    @triton.jit
    def combine(a1, x1, a2, x2):
        return a1 * a2, a2 * x1 + x2

    @triton.jit
    def load_delta(ptr, rows, bias, t, first, stop, real, SOFTPLUS: tl.constexpr):
        """Δ at the times t of a tile, 0 outside [first, stop); and dΔ/d(delta)."""
        inside = rows[1] & (t >= first)[None, :] & (t < stop)[None, :]
        raw = tl.load(ptr + rows[0] + t[None, :], inside, 0.0).to(real) + bias[:, None]
        slope = tl.full(raw.shape, 1.0, real)
        if SOFTPLUS:
            small = tl.minimum(raw, 20.0)
            slope = tl.where(raw > 20.0, 1.0, 1.0 / (1.0 + tl.exp(-small)))
            raw = tl.where(raw > 20.0, raw, tl.log(1.0 + tl.exp(small)))
        return tl.where(inside, raw, 0.0), slope

    @triton.jit
    def forward(u, delta, A, B, C, D, bias, h0, y, last, entering, length, width, N, tiles,
                SOFTPLUS: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr):  # fmt: skip
        real = A.dtype.element_ty
        group, groups, batch = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
        offset = tl.program_id(0) * BD + tl.arange(0, BD)
        valid = offset < width
        channel = group * width + offset
        row = (batch * groups * width + channel).to(tl.int64)
        rows = ((row * length)[:, None], valid[:, None])
        n_all, tile_t = tl.arange(0, NP), tl.arange(0, BT)
        own = valid[:, None] & (n_all < N)[None, :]
        h = tl.load(h0 + row[:, None] * N + n_all[None, :], own, 0.0)
        skip, offset_delta = tl.load(D + channel, valid, 0.0), tl.load(bias + channel, valid, 0.0)
        shared = ((batch * groups + group) * N).to(tl.int64) * length
        for k in range(tiles):
            tl.store(entering + (row * tiles + k)[:, None] * N + n_all[None, :], h, own)
            t = k * BT + tile_t
            inside = valid[:, None] & (t < length)[None, :]
            step, _ = load_delta(delta, rows, offset_delta, t, 0, length, real, SOFTPLUS)
            token = tl.load(u + rows[0] + t[None, :], inside, 0.0).to(real)
            out = skip[:, None] * token
            for n in range(N):
                at = shared + n * length + t
                decay = tl.exp(step * tl.load(A + channel * N + n, valid, 0.0)[:, None])
                x = step * token * tl.load(B + at, t < length, 0.0).to(real)[None, :]
                here = (n_all == n)[None, :]
                carry = tl.sum(tl.where(here, h, 0.0), 1)
                x += tl.where((tile_t == 0)[None, :], decay * carry[:, None], 0.0)
                _, x = tl.associative_scan((decay, x), 1, combine)
                out += x * tl.load(C + at, t < length, 0.0).to(real)[None, :]
                end = tl.sum(tl.where((tile_t == BT - 1)[None, :], x, 0.0), 1)
                h = tl.where(here, end[:, None], h)
            tl.store(y + rows[0] + t[None, :], out, inside)
        tl.store(last + row[:, None] * N + n_all[None, :], h, own)

    @triton.jit
    def backward(u, delta, A, B, C, D, bias, entering, grad_y, grad_u, grad_delta, grad_A, grad_B, grad_C, grad_h, length, width, N, tiles,
                 SOFTPLUS: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr):  # fmt: skip
        real = A.dtype.element_ty
        group, groups, batch = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
        offset = tl.program_id(0) * BD + tl.arange(0, BD)
        valid = offset < width
        channel = group * width + offset
        row = (batch * groups * width + channel).to(tl.int64)
        rows = ((row * length)[:, None], valid[:, None])
        n_all, tile_t = tl.arange(0, NP), tl.arange(0, BT)
        own = valid[:, None] & (n_all < N)[None, :]
        mu = tl.load(
            grad_h + row[:, None] * N + n_all[None, :], own, 0.0
        )  # a λ of the step after the tile
        sum_A = tl.zeros((BD, NP), real)
        skip, offset_delta = tl.load(D + channel, valid, 0.0), tl.load(bias + channel, valid, 0.0)
        shared = ((batch * groups + group) * N).to(tl.int64) * length
        first, final = (tile_t == 0)[None, :], (tile_t == BT - 1)[None, :]
        for back in range(tiles):
            k = tiles - 1 - back
            t = k * BT + tile_t
            inside = valid[:, None] & (t < length)[None, :]
            step, slope = load_delta(delta, rows, offset_delta, t, 0, length, real, SOFTPLUS)
            step_before, _ = load_delta(delta, rows, offset_delta, t - 1, 0, length, real, SOFTPLUS)
            step_after, _ = load_delta(delta, rows, offset_delta, t + 1, 0, length, real, SOFTPLUS)
            token = tl.load(u + rows[0] + t[None, :], inside, 0.0).to(real)
            token_before = tl.load(u + rows[0] + t[None, :] - 1, inside & (t > 0)[None, :], 0.0).to(
                real
            )
            upstream = tl.load(grad_y + rows[0] + t[None, :], inside, 0.0).to(real)
            h = tl.load(entering + (row * tiles + k)[:, None] * N + n_all[None, :], own, 0.0)
            grad_step = tl.zeros((BD, BT), real)
            grad_input = tl.zeros((BD, BT), real)
            for n in range(N):
                at = shared + n * length + t
                here = (n_all == n)[None, :]
                rate = tl.load(A + channel * N + n, valid, 0.0)[:, None]
                B_n = tl.load(B + at, t < length, 0.0).to(real)[None, :]
                decay = tl.exp(step * rate)
                # h_{l−1} of every step: the same scan one step late, started by the state that enters
                carry = tl.sum(tl.where(here, h, 0.0), 1)[:, None]
                B_before = tl.load(B + at - 1, (t < length) & (t > 0), 0.0).to(real)[None, :]
                a_before = tl.where(first, 0.0, tl.exp(step_before * rate))
                x_before = tl.where(first, carry, step_before * token_before * B_before)
                _, before = tl.associative_scan((a_before, x_before), 1, combine)
                state = decay * before + step * token * B_n
                # λ_l = C_l ȳ_l + a_{l+1} λ_{l+1}
                lam = upstream * tl.load(C + at, t < length, 0.0).to(real)[None, :]
                lam += tl.where(final, tl.sum(tl.where(here, mu, 0.0), 1)[:, None], 0.0)
                _, lam = tl.associative_scan(
                    (tl.exp(step_after * rate), lam), 1, combine, reverse=True
                )
                mu = tl.where(here, tl.sum(tl.where(first, decay * lam, 0.0), 1)[:, None], mu)
                kept = lam * decay * before
                grad_input += lam * B_n
                grad_step += kept * rate
                sum_A += tl.where(here, tl.sum(kept * step, 1)[:, None], 0.0)
                tl.atomic_add(grad_B + at, tl.sum(lam * step * token, 0), t < length)
                tl.atomic_add(grad_C + at, tl.sum(state * upstream, 0), t < length)
            tl.store(
                grad_u + rows[0] + t[None, :], step * grad_input + skip[:, None] * upstream, inside
            )
            tl.store(
                grad_delta + rows[0] + t[None, :], (grad_step + token * grad_input) * slope, inside
            )
        tl.store(grad_A + row[:, None] * N + n_all[None, :], sum_A, own)
        tl.store(grad_h + row[:, None] * N + n_all[None, :], mu, own)

    class TritonScan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u, delta, A, B, C, D, bias, h0, softplus):
            u, delta, A, B, C, D, bias, h0 = (
                m.contiguous() for m in (u, delta, A, B, C, D, bias, h0)
            )
            (batch, channels, length), states, groups = u.shape, A.shape[1], B.shape[1]
            width = channels // groups
            sizes = {
                "NP": triton.next_power_of_2(states),
                "BD": min(triton.next_power_of_2(width), 8),
                "BT": min(triton.next_power_of_2(length), 128),
            }
            ctx.tiles = triton.cdiv(length, sizes["BT"])
            ctx.grid = (triton.cdiv(width, sizes["BD"]), groups, batch)
            y, last = torch.empty_like(u, dtype=A.dtype), torch.empty_like(h0)
            entering = A.new_empty(batch, channels, ctx.tiles, states)
            forward[ctx.grid](
                u,
                delta,
                A,
                B,
                C,
                D,
                bias,
                h0,
                y,
                last,
                entering,
                length,
                width,
                states,
                ctx.tiles,
                softplus,
                **sizes,
            )
            ctx.save_for_backward(u, delta, A, B, C, D, bias, entering)
            ctx.softplus, ctx.sizes = softplus, sizes
            return y, last

        @staticmethod
        def backward(ctx, grad_y, grad_last):
            u, delta, A, B, C, D, bias, entering = ctx.saved_tensors
            grad_y, grad_h = grad_y.contiguous(), grad_last.contiguous().clone()
            grad_u, grad_delta = (torch.empty_like(m, dtype=A.dtype) for m in (u, delta))
            grad_A = A.new_empty(len(u), *A.shape)
            grad_B, grad_C = (torch.zeros_like(m, dtype=A.dtype) for m in (B, C))
            size = (u.shape[2], u.shape[1] // B.shape[1], A.shape[1], ctx.tiles)
            grads = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_h)
            backward[ctx.grid](
                u,
                delta,
                A,
                B,
                C,
                D,
                bias,
                entering,
                grad_y,
                *grads,
                *size,
                ctx.softplus,
                **ctx.sizes,
            )
            grad_D = (grad_y * u).sum((0, 2))
            as_given = (
                m.to(given.dtype)
                for m, given in zip(grads[:2] + grads[3:5], (u, delta, B, C), strict=True)
            )
            grad_u, grad_delta_given, grad_B, grad_C = as_given
            return (
                grad_u,
                grad_delta_given,
                grad_A.sum(0),
                grad_B,
                grad_C,
                grad_D,
                grad_delta.sum((0, 2)),
                grad_h,
                None,
            )

    return TritonScan


def selective_step(
    state, u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False
) -> tuple[Tensor, Tensor]:
    """One token of the same recurrence, for decoding: its memory does not grow with the length.

    state: (b, d, n); u, delta, z: (b, d); A: (d, n); B, C: (b, n); D, delta_bias: (d). Returns y (b, d) and the next state.
    """
    check(
        *(m[..., None] for m in (u, delta)),
        A,
        *(m[..., None] for m in (B, C)),
        D,
        None if z is None else z[..., None],
        delta_bias,
        state,
    )
    delta = delta if delta_bias is None else delta + delta_bias
    delta = F.softplus(delta) if delta_softplus else delta
    state = torch.exp(delta[..., None] * A) * state + (delta * u)[..., None] * B[:, None]
    y = (state * C[:, None]).sum(-1)
    y = y if D is None else y + D * u
    return (y if z is None else y * F.silu(z)), state


def check(u, delta, A, B, C, D=None, z=None, delta_bias=None, state=None) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    if u.dim() != 3:
        raise ValueError(
            f"selective_scan: u must be (batch, channels, length), got {u.dim()} dimensions: {tuple(u.shape)}"
        )
    if not u.is_floating_point():
        raise ValueError(f"selective_scan: u must be a floating-point tensor, got {u.dtype}")
    batch, channels, length = u.shape
    if channels == 0:
        raise ValueError(f"selective_scan: u has no channels, shape {tuple(u.shape)}")
    if length == 0:
        raise ValueError(
            f"selective_scan: u has length 0, shape {tuple(u.shape)}; a scan needs at least one step"
        )
    if A.dim() != 2 or len(A) != channels or A.shape[1] == 0:
        raise ValueError(
            f"selective_scan: A must be (channels, states) with {channels} channels as in u and at least one state, got {tuple(A.shape)}"
        )
    states = A.shape[1]
    wanted = {
        "delta": (delta, u.shape),
        "z": (z, u.shape),
        "D": (D, (channels,)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (value, shape) in (wanted | {"state": (state, (batch, channels, states))}).items():
        if value is not None and tuple(value.shape) != tuple(shape):
            raise ValueError(
                f"selective_scan: {name} must have shape {tuple(shape)} to go with u {tuple(u.shape)} and A {tuple(A.shape)}, got {tuple(value.shape)}"
            )
    times = 2 * length if A.is_complex() else length
    for name, value in (("B", B), ("C", C)):
        groups = value.shape[1] if value.dim() == 4 else 1
        accepted = [(channels, states), (batch, states, times), (batch, groups, states, times)]
        if tuple(value.shape) not in accepted or groups < 1:
            raise ValueError(
                f"selective_scan: {name} must be (channels, states), (batch, states, length) or (batch, groups, states, length), here "
                f"{accepted[0]}, {accepted[1]} or ({batch}, groups, {states}, {times}), got {tuple(value.shape)}"
            )
        if channels % groups:
            raise ValueError(
                f"selective_scan: the {groups} groups of {name} must divide the {channels} channels of u"
            )
    for name, value in {
        "delta": delta,
        "A": A,
        "B": B,
        "C": C,
        "D": D,
        "z": z,
        "delta_bias": delta_bias,
        "state": state,
    }.items():
        if value is not None and value.device != u.device:
            raise ValueError(f"selective_scan: {name} is on {value.device}, u on {u.device}")


def cost(u, delta, A, B, C, D=None, z=None, **_) -> Cost:
    """Work of one call; an exponential counts as one operation."""
    steps, states = u.numel(), A.shape[1]
    streams = 3 + (z is not None)
    moved = streams * steps + B.numel() + C.numel() + A.numel()
    return Cost(
        flops=steps * (7 * states + 2 * (D is not None) + 4 * (z is not None)),
        bytes=moved * u.element_size(),
    )


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments for `selective_scan`: one image's worth of EfficientVMamba's first stage (`large`), or a toy (`small`)."""
    batch, channels, states, length = {"small": (1, 8, 16, 64), "large": (1, 192, 16, 784)}[size]
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    A = -torch.arange(1, states + 1, dtype=torch.float64).expand(channels, -1)
    tensors = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length) - 3,
        "A": A,
        "B": normal(batch, states, length),
        "C": normal(batch, states, length),
        "D": normal(channels),
        "delta_bias": 0.1 * normal(channels),
    }
    return {name: t.to(device, dtype).contiguous() for name, t in tensors.items()} | {
        "delta_softplus": True
    }
