"""State space duality, the layer of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): one function as a recurrence, as a matrix, and as blocks of both.

    H_l = exp(a_l) H_{l−1} + x_l B_lᵀ,   y_l = H_l C_l                              the recurrence, a_l = Δ_l A ≤ 0, one number a head
    y = (L ∘ C Bᵀ) x,   L_ls = exp(Σ_{k=s+1..l} a_k) for l ≥ s, else 0              the matrix: attention under a decaying mask

    x: (b, l, h, p)   a: (b, l, h)   B, C: (b, l, g, n), head i reads group i // (h/g)   state H: (b, h, p, n)

x is already multiplied by Δ; `ssd_combined` takes Δ, its bias, D and the gate z as the layer does.

In chunks of q steps: the matrix inside a chunk, what the state that enters adds to the outputs, what the chunk adds to the state. Work of a
head: l·q·(n + p) + 2·l·p·n multiply-adds against 5·l·p·n dependent operations of the recurrence, all of it as matrix products, so that their
share of the peak decides, not memory: 2·(q·(n + p) + 2pn) FLOP for 4·(2p + 2n + 1) bytes a step.

Reference followed: state-spaces/mamba @ e9594ce, mamba_ssm/modules/ssd_minimal.py and mamba_ssm/ops/triton/ssd_combined.py.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels import Cost, dispatch


def ssd(
    x: Tensor,
    a: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None = None,
    chunk: int = 32,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """y (b, l, h, p), and the last state (b, h, p, n) where asked for. Any length; `chunk` changes the time it takes, not the result."""
    check(x, a, B, C, state, chunk)
    forms = {"naive": naive, "numpy": with_numpy, "torch": with_torch, "triton": with_triton}
    y, last = dispatch("ssd", forms, backend, x, a, B, C, state, chunk=chunk)
    y = y.to(x.dtype)  # the NumPy forms compute in float32 where x has less
    return (y, last) if return_last_state else y


def ssd_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state: Tensor | None = None,
    return_last_state: bool = False,
    **options,
) -> Tensor | tuple[Tensor, Tensor]:
    """The whole Mamba-2 operation: Δ = softplus(dt + dt_bias), y = ssd(Δx, ΔA) + D x, y ⊙ silu(z).

    dt: (b, l, h); A, dt_bias: (h); D: (h) or (h, p); z: (b, l, h, p). `options`: `chunk`, `backend`.
    """
    if tuple(dt.shape) != tuple(x.shape[:3]):
        raise ValueError(
            f"ssd_combined: dt must have shape {tuple(x.shape[:3])} to go with x {tuple(x.shape)}, got {tuple(dt.shape)}"
        )
    for name, value, accepted in (
        ("A", A, [x.shape[2:3]]),
        ("dt_bias", dt_bias, [x.shape[2:3]]),
        ("D", D, [x.shape[2:3], x.shape[2:]]),
        ("z", z, [x.shape]),
    ):
        if value is not None and value.shape not in accepted:
            raise ValueError(
                f"ssd_combined: {name} must have shape {' or '.join(str(tuple(s)) for s in accepted)}, got {tuple(value.shape)}"
            )
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    dt = dt.to(real) if dt_bias is None else dt.to(real) + dt_bias
    dt = F.softplus(dt) if dt_softplus else dt
    y, last = ssd(
        (x * dt[..., None]).to(real), dt * A, B, C, state, return_last_state=True, **options
    )
    if D is not None:
        y = y + (D[:, None] if D.dim() == 1 else D) * x
    y = (y if z is None else y * F.silu(z.to(real))).to(x.dtype)
    return (y, last) if return_last_state else y


def naive(x, a, B, C, state=None, *, chunk=32):
    """The recurrence, one multiplication at a time (`chunk` is of no use to it)."""
    (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
    h = (
        np.zeros((batch, heads, width, states), np.result_type(x, a))
        if state is None
        else state.copy()
    )
    y = np.zeros(x.shape, h.dtype)
    for b in range(batch):
        for i in range(heads):
            g = i // (heads // groups)
            for t in range(length):
                decay = np.exp(a[b, t, i])
                for p in range(width):
                    for n in range(states):
                        h[b, i, p, n] = decay * h[b, i, p, n] + x[b, t, i, p] * B[b, t, g, n]
                        y[b, t, i, p] += h[b, i, p, n] * C[b, t, g, n]
    return y, h


def with_numpy(x, a, B, C, state=None, *, chunk=32):
    """Chunk after chunk, all heads at once: the matrix inside, the state between."""
    (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
    by_head = lambda m, per: np.moveaxis(m.reshape(batch, length, groups, per, *m.shape[3:]), 1, 3)  # noqa: E731  (b, l, h, …) -> (b, g, h/g, l, …)
    x, a, B, C = (
        by_head(x, heads // groups),
        by_head(a, heads // groups),
        by_head(B, 1),
        by_head(C, 1),
    )
    h = np.zeros((batch, heads, width, states), np.result_type(x, a)) if state is None else state
    h = h.reshape(batch, groups, heads // groups, width, states)
    y = np.empty(x.shape, h.dtype)
    for start in range(0, length, chunk):
        part = slice(start, min(start + chunk, length))
        x_c, a_c, B_c, C_c = x[..., part, :], a[..., part], B[..., part, :], C[..., part, :]
        ones = np.ones((a_c.shape[-1],) * 2, a.dtype)
        decay = np.tril(
            np.exp(np.tril(ones) @ (a_c[..., None] * np.tril(ones, -1)))
        )  # exp(segsum a)
        since_start = decay[..., :, 0] * np.exp(a_c[..., :1])
        y[..., part, :] = (decay * (C_c @ np.swapaxes(B_c, -1, -2))) @ x_c + since_start[
            ..., None
        ] * (C_c @ np.swapaxes(h, -1, -2))
        h = (
            since_start[..., -1, None, None] * h
            + np.swapaxes(x_c * decay[..., -1, :, None], -1, -2) @ B_c
        )
    return np.moveaxis(y, 3, 1).reshape(batch, length, heads, width), h.reshape(
        batch, heads, width, states
    )


def segsum(a: Tensor) -> Tensor:
    """Σ_{k=s+1..l} a_k at [l, s], −∞ above the diagonal: (…, l) -> (…, l, l).

    A product with a triangle of ones adds up exactly the terms between s and l. Subtracting cumulative sums instead cancels: for strong decay
    it loses half the digits.
    """
    ones = torch.ones(a.shape[-1], a.shape[-1], dtype=a.dtype, device=a.device)
    sums = (
        a[..., None, :] * ones.triu(1)
    ) @ ones.triu()  # [s, l]: this way round the products fold into one
    return (sums + torch.full_like(ones, -torch.inf).tril(-1)).transpose(-1, -2)


def semiseparable(a: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The matrix of the layer, L ∘ C Bᵀ, for a whole sequence: (b, h, l, l)."""
    B, C = (m.repeat_interleave(a.shape[2] // m.shape[2], 2).transpose(1, 2) for m in (B, C))
    return segsum(a.transpose(1, 2)).exp() * (C @ B.transpose(-1, -2))


def with_torch(x, a, B, C, state=None, *, chunk=32):
    """The four steps of the paper, span after span: as many chunks at once as keep their matrices in the cache. Differentiable."""
    batch, length, heads, width = x.shape
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    state = (
        x.new_zeros(batch, heads, width, B.shape[3], dtype=real)
        if state is None
        else state.to(real)
    )
    chunk = min(chunk, length)
    span = chunk * max(1, 2**17 // max(1, batch * heads * chunk * chunk))
    y = []
    for parts in zip(*(m.to(real).split(span, 1) for m in (x, a, B, C)), strict=True):
        part, state = chunks(*parts, state, chunk)
        y.append(part)
    return torch.cat(y, 1).to(x.dtype), state


def chunks(
    x: Tensor, a: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """y and the last state of a span of chunks, heads first, so that every step is a batch of matrix products."""
    length, heads = x.shape[1:3]
    x, a, B, C = (chunked(m, chunk) for m in (x, a, B, C))
    inside = (B @ C.transpose(-1, -2)).transpose(
        -1, -2
    )  # C Bᵀ, once a group, laid out as segsum is
    B, C, inside = (
        m.repeat_interleave(heads // m.shape[1], 1) if m.shape[1] != heads else m
        for m in (B, C, inside)
    )
    decay = segsum(a).exp()
    since_start = decay[..., :, 0] * a[..., :1].exp()
    added = (x * decay[..., -1, :, None]).transpose(
        -1, -2
    ) @ B  # Σ_s exp(a_{s+1} + … + a_last) x_s B_sᵀ: (b, h, c, p, n)
    entering = []
    for gain, across in zip(
        added.unbind(2), since_start[..., -1, None, None].unbind(2), strict=True
    ):
        entering.append(state)
        state = across * state + gain
    y = (inside * decay) @ x + since_start[..., None] * (
        C @ torch.stack(entering, 2).transpose(-1, -2)
    )
    return y.flatten(2, 3)[:, :, :length].transpose(1, 2), state


def chunked(m: Tensor, chunk: int) -> Tensor:
    """(b, l, h, …) -> (b, h, c, q, …), copied once for all the products to come. Zeros fill up the last chunk: a = 0 keeps the state, x = 0 adds nothing."""
    if short := -m.shape[1] % chunk:
        m = F.pad(m, [0, 0] * (m.dim() - 2) + [0, short])
    return m.transpose(1, 2).unflatten(2, (-1, chunk)).contiguous()


def with_triton(x, a, B, C, state=None, *, chunk=32):
    """A program per (batch, head, block of the head's width) walks the chunks with the state in registers. Gradients: the composed form, computed anew."""
    if len(x) == 0:
        return with_torch(x, a, B, C, state, chunk=chunk)
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    state = (
        x.new_zeros(len(x), x.shape[2], x.shape[3], B.shape[3], dtype=real)
        if state is None
        else state.to(real)
    )
    return triton_ssd().apply(x, a.to(real), B.to(x.dtype), C.to(x.dtype), state, chunk)


@functools.cache
def triton_ssd():
    """The compiled kernel as a differentiable function; Triton is imported here, on first use."""
    global tl  # kernels look names up in the module: Triton's interpreter does not see closures
    import triton
    import triton.language as tl

    @triton.jit
    def forward(
        x,
        a,
        B,
        C,
        h0,
        y,
        last,
        length,
        heads,
        width,
        states,
        per_group,
        Q: tl.constexpr,
        PB: tl.constexpr,
        NP: tl.constexpr,
    ):
        real = a.dtype.element_ty
        head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
        group, groups = head // per_group, heads // per_group
        step, n, p = tl.arange(0, Q), tl.arange(0, NP), tl.program_id(0) * PB + tl.arange(0, PB)
        own = (p < width)[:, None] & (n < states)[None, :]
        at_state = ((batch * heads + head) * width + p)[:, None] * states + n[None, :]
        h = tl.load(h0 + at_state, own, 0.0)  # (p, n)
        for start in range(0, length, Q):
            t = start + step
            inside = t < length
            rates = tl.load(a + (batch * length + t) * heads + head, inside, 0.0)
            token = (batch * length + t)[:, None]
            mask_n = inside[:, None] & (n < states)[None, :]
            mask_p = inside[:, None] & (p < width)[None, :]
            b = tl.load(B + (token * groups + group) * states + n[None, :], mask_n, 0.0).to(real)
            c = tl.load(C + (token * groups + group) * states + n[None, :], mask_n, 0.0).to(real)
            value = tl.load(x + (token * heads + head) * width + p[None, :], mask_p, 0.0).to(real)
            # exp(segsum a): rows l, columns s; terms between s and l are added, never subtracted
            decay = tl.exp(
                tl.cumsum(tl.where(step[:, None] > step[None, :], rates[:, None], 0.0), 0)
            )
            decay = tl.where(step[:, None] >= step[None, :], decay, 0.0)
            to_end = tl.sum(tl.where((step == Q - 1)[:, None], decay, 0.0), 0)
            since_start = tl.sum(tl.where((step == 0)[None, :], decay, 0.0), 1) * tl.exp(
                tl.sum(tl.where(step == 0, rates, 0.0), 0)
            )
            across = tl.sum(tl.where(step == Q - 1, since_start, 0.0), 0)
            mixed = tl.dot(c, tl.trans(b), input_precision="ieee", out_dtype=real) * decay
            out = tl.dot(mixed, value, input_precision="ieee", out_dtype=real)
            out += since_start[:, None] * tl.dot(
                c, tl.trans(h), input_precision="ieee", out_dtype=real
            )
            h = across * h + tl.dot(
                tl.trans(value * to_end[:, None]), b, input_precision="ieee", out_dtype=real
            )
            tl.store(y + (token * heads + head) * width + p[None, :], out, mask_p)
        tl.store(last + at_state, h, own)

    class TritonSSD(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, a, B, C, state, chunk):
            x, a, B, C, state = (m.contiguous() for m in (x, a, B, C, state))
            ctx.save_for_backward(x, a, B, C, state)
            ctx.chunk = chunk
            batch, length, heads, width = x.shape
            groups, states = B.shape[2:]
            y, last = torch.empty_like(x), torch.empty_like(state)
            power = lambda size, most: min(max(triton.next_power_of_2(size), 16), most)  # noqa: E731  matrix products want at least 16
            block = power(width, 64)
            sizes = {"Q": power(min(chunk, length), 64), "PB": block, "NP": power(states, 1 << 30)}
            forward[(triton.cdiv(width, block), heads, batch)](
                x, a, B, C, state, y, last, length, heads, width, states, heads // groups, **sizes
            )
            return y, last

        @staticmethod
        def backward(ctx, grad_y, grad_last):
            inputs = [m.detach().requires_grad_() for m in ctx.saved_tensors]
            with torch.enable_grad():
                outputs = with_torch(*inputs, chunk=ctx.chunk)
            return *torch.autograd.grad(outputs, inputs, (grad_y, grad_last)), None

    return TritonSSD


def check(x, a, B, C, state, chunk) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    if x.dim() != 4:
        raise ValueError(
            f"ssd: x must be (batch, length, heads, width), got {x.dim()} dimensions: {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise ValueError(f"ssd: x must be a floating-point tensor, got {x.dtype}")
    if 0 in x.shape[1:]:
        raise ValueError(
            f"ssd: x needs at least one step, one head and a width of one, got {tuple(x.shape)}"
        )
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(
            f"ssd: chunk={chunk!r}, the number of steps in a chunk, must be a whole number of at least 1"
        )
    if a.shape != x.shape[:3]:
        raise ValueError(
            f"ssd: a must be (batch, length, heads) = {tuple(x.shape[:3])} to go with x {tuple(x.shape)}, got {tuple(a.shape)}"
        )
    for name, value in (("B", B), ("C", C)):
        if value.dim() != 4 or value.shape[:2] != x.shape[:2] or 0 in value.shape[2:]:
            raise ValueError(
                f"ssd: {name} must be (batch, length, groups, states) = ({x.shape[0]}, {x.shape[1]}, groups, states), got {tuple(value.shape)}"
            )
        if x.shape[2] % value.shape[2]:
            raise ValueError(
                f"ssd: the {value.shape[2]} groups of {name} must divide the {x.shape[2]} heads of x"
            )
    if B.shape != C.shape:
        raise ValueError(
            f"ssd: B and C must have the same shape, got {tuple(B.shape)} and {tuple(C.shape)}"
        )
    wanted = (x.shape[0], x.shape[2], x.shape[3], B.shape[3])
    if state is not None and tuple(state.shape) != wanted:
        raise ValueError(
            f"ssd: state must be (batch, heads, width, states) = {wanted}, got {tuple(state.shape)}"
        )
    for name, value in {"a": a, "B": B, "C": C, "state": state}.items():
        if value is not None and value.device != x.device:
            raise ValueError(f"ssd: {name} is on {value.device}, x on {x.device}")


def cost(x, a, B, C, chunk: int = 32, **_) -> Cost:
    """Work of one call in chunks: the matrix inside a chunk (with C Bᵀ once a group), the states, their read-out."""
    batch, length, heads, width = x.shape
    groups, states = B.shape[2:]
    flops = (
        2
        * batch
        * length
        * (chunk * (groups * states + heads * width) + 2 * heads * width * states)
    )
    return Cost(flops=flops, bytes=(2 * x.numel() + a.numel() + 2 * B.numel()) * x.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments for `ssd`: a Mamba-2 layer of eight heads of 64 (`large`), or a toy (`small`)."""
    batch, length, heads, width, groups, states = {
        "small": (1, 64, 2, 16, 1, 16),
        "large": (1, 1024, 8, 64, 1, 64),
    }[size]
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    tensors = {
        "x": normal(batch, length, heads, width),
        "a": -F.softplus(normal(batch, length, heads) - 2),
        "B": normal(batch, length, groups, states) / states**0.5,
        "C": normal(batch, length, groups, states),
    }
    return {name: t.to(device, dtype).contiguous() for name, t in tensors.items()}
