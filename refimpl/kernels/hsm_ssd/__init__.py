"""Hidden-state-mixer SSD, the layer of EfficientViM (Lee et al. 2025, arXiv 2411.15241): tokens into a few states, mix there, read out again.

    w = softmax over tokens of (Δ + A)           one importance map a state
    h = x (w ∘ B)ᵀ                               tokens -> states
    p, z = W_hz h;   h' = W_out (p ∘ silu(z) + D p)   the channels are mixed on n states instead of l tokens
    y = h' C                                     states -> tokens

    x, y: (b, d, l)   dt (Δ), B, C: (b, n, l)   A: (n)   D: (1)   hz_weight: (2e, d)   out_weight: (d, e)   h, h': (b, d, n)

A is the same for all tokens and the softmax normalises over tokens, so it cancels: the result does not depend on it, and it may be `None`.

Tokens to states and back: 4·l·n·d FLOP and about 5·l·n for the softmax; in float32 at least 4·(2·d·l + 3·n·l + 2·d·n) bytes, about n/2 FLOP a byte
for d ≫ n: bound by memory on a GPU. The softmax is folded into one pass over the tokens (running maximum and sum, as in online softmax), so the
maps w are never written. The mixing, 6·n·d·e FLOP, does not grow with l.

Reference followed: mlvlab/EfficientViM @ 304340c, classification/models/EfficientViM.py (`HSMSSD.forward`).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels import Cost, dispatch


def hsm_ssd(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor | None,
    D: Tensor,
    hz_weight: Tensor,
    out_weight: Tensor,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y (b, d, l) and the mixed hidden state h' (b, d, n)."""
    check(x, dt, B, C, A, D, hz_weight, out_weight)
    forms = {"naive": naive, "numpy": with_numpy, "torch": with_torch, "triton": with_triton}
    y, h = dispatch("hsm_ssd", forms, backend, x, dt, B, C, A, D, hz_weight, out_weight)
    return y.to(x.dtype), h.to(x.dtype)  # the NumPy forms compute in float32 where x has less


def naive(x, dt, B, C, A, D, hz_weight, out_weight):
    """One multiplication at a time."""
    (batch, channels, length), states, inner = x.shape, dt.shape[1], out_weight.shape[1]
    A = np.zeros(states, x.dtype) if A is None else A
    y, mixed = np.zeros_like(x), np.zeros((batch, channels, states), x.dtype)
    for b in range(batch):
        for n in range(states):
            top = max(dt[b, n, t] + A[n] for t in range(length))
            total = sum(np.exp(dt[b, n, t] + A[n] - top) for t in range(length))
            h = [0.0] * channels
            for t in range(length):
                weight = np.exp(dt[b, n, t] + A[n] - top) / total * B[b, n, t]
                for d in range(channels):
                    h[d] += weight * x[b, d, t]
            gated = []
            for e in range(inner):
                p = sum(hz_weight[e, d] * h[d] for d in range(channels))
                z = sum(hz_weight[inner + e, d] * h[d] for d in range(channels))
                gated.append(p * z / (1 + np.exp(-z)) + D[0] * p)
            for d in range(channels):
                mixed[b, d, n] = sum(out_weight[d, e] * gated[e] for e in range(inner))
                for t in range(length):
                    y[b, d, t] += mixed[b, d, n] * C[b, n, t]
    return y, mixed


def with_numpy(x, dt, B, C, A, D, hz_weight, out_weight):
    """A stable softmax and four matrix products."""
    logits = dt if A is None else dt + A[:, None]
    w = np.exp(logits - logits.max(-1, keepdims=True))
    w *= B / w.sum(-1, keepdims=True)
    p, z = np.split(hz_weight @ (x @ np.swapaxes(w, -1, -2)), 2, axis=1)
    h = out_weight @ (p * z / (1 + np.exp(-z)) + D * p)
    return h @ C, h


def with_torch(x, dt, B, C, A, D, hz_weight, out_weight):
    """The same, differentiable."""
    w = (dt if A is None else dt + A[:, None]).softmax(-1)
    h = mix(x @ (w * B).transpose(-1, -2), D, hz_weight, out_weight)
    return h @ C, h


def mix(h: Tensor, D: Tensor, hz_weight: Tensor, out_weight: Tensor) -> Tensor:
    """The hidden state mixer, W_out (p ∘ silu(z) + D p) with [p; z] = W_hz h: (b, d, n) -> (b, d, n)."""
    p, z = (hz_weight @ h).chunk(2, 1)
    return out_weight @ (p * F.silu(z) + D * p)


def with_triton(x, dt, B, C, A, D, hz_weight, out_weight):
    """One pass over the tokens with an online softmax, the mixing as matrix products, one pass back."""
    if len(x) == 0:
        return with_torch(x, dt, B, C, A, D, hz_weight, out_weight)
    to_states, to_tokens = triton_forms()
    h = mix(to_states.apply(x, dt if A is None else dt + A[:, None], B), D, hz_weight, out_weight)
    return to_tokens.apply(h, C), h


@functools.cache
def triton_forms():
    """(x, Δ, B) -> h and (h, C) -> y as differentiable functions; Triton is imported here, on first use."""
    global tl  # kernels look names up in the module: Triton's interpreter does not see closures
    import triton
    import triton.language as tl

    @triton.jit
    def tokens_to_states(
        x,
        dt,
        B,
        h,
        channels,
        states,
        length,
        real: tl.constexpr,
        BD: tl.constexpr,
        NP: tl.constexpr,
        BT: tl.constexpr,
    ):
        batch = tl.program_id(1).to(tl.int64)
        d, n = tl.program_id(0) * BD + tl.arange(0, BD), tl.arange(0, NP)
        top = tl.full((NP,), float("-inf"), real)
        total = tl.zeros((NP,), real)
        sums = tl.zeros((BD, NP), real)
        for start in range(0, length, BT):
            t = start + tl.arange(0, BT)
            inside = (n < states)[:, None] & (t < length)[None, :]
            at = (batch * states + n)[:, None] * length + t[None, :]
            logits = tl.load(dt + at, inside, float("-inf")).to(real)
            logits = tl.where(
                (n < states)[:, None], logits, 0.0
            )  # rows of padding: anything finite
            higher = tl.maximum(top, tl.max(logits, 1))
            w = tl.exp(logits - higher[:, None])
            keep = tl.exp(top - higher)
            top = higher
            total = total * keep + tl.sum(w, 1)
            w *= tl.load(B + at, inside, 0.0).to(real)
            tokens = tl.load(
                x + (batch * channels + d)[:, None] * length + t[None, :],
                (d < channels)[:, None] & (t < length)[None, :],
                0.0,
            )
            sums = sums * keep[None, :] + tl.dot(
                tokens.to(real), tl.trans(w), input_precision="ieee", out_dtype=real
            )
        own = (d < channels)[:, None] & (n < states)[None, :]
        tl.store(
            h + (batch * channels + d)[:, None] * states + n[None, :], sums / total[None, :], own
        )

    @triton.jit
    def states_to_tokens(
        h,
        C,
        y,
        channels,
        states,
        length,
        real: tl.constexpr,
        BD: tl.constexpr,
        NP: tl.constexpr,
        BT: tl.constexpr,
    ):
        batch = tl.program_id(2).to(tl.int64)
        d, n, t = (
            tl.program_id(0) * BD + tl.arange(0, BD),
            tl.arange(0, NP),
            tl.program_id(1) * BT + tl.arange(0, BT),
        )
        own = (d < channels)[:, None] & (n < states)[None, :]
        hidden = tl.load(h + (batch * channels + d)[:, None] * states + n[None, :], own, 0.0).to(
            real
        )
        weights = tl.load(
            C + (batch * states + n)[:, None] * length + t[None, :],
            (n < states)[:, None] & (t < length)[None, :],
            0.0,
        ).to(real)
        out = tl.dot(hidden, weights, input_precision="ieee", out_dtype=real)
        tl.store(
            y + (batch * channels + d)[:, None] * length + t[None, :],
            out,
            (d < channels)[:, None] & (t < length)[None, :],
        )

    def sizes(channels, states, length, dtype):
        power = lambda size, most: min(max(triton.next_power_of_2(size), 16), most)  # noqa: E731  matrix products want at least 16
        blocks = {"BD": power(channels, 64), "NP": power(states, 1 << 30), "BT": power(length, 64)}
        return blocks | {"real": tl.float64 if dtype == torch.float64 else tl.float32}

    class ToStates(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, logits, B):
            x, logits, B = x.contiguous(), logits.contiguous(), B.contiguous()
            ctx.save_for_backward(x, logits, B)
            size = (x.shape[1], B.shape[1], x.shape[2])
            options = sizes(*size, x.dtype)
            h = x.new_empty(len(x), *size[:2])
            tokens_to_states[(triton.cdiv(size[0], options["BD"]), len(x))](
                x, logits, B, h, *size, **options
            )
            return h

        @staticmethod
        def backward(ctx, grad):
            x, logits, B = ctx.saved_tensors
            w = logits.softmax(-1)
            reach = grad.transpose(-1, -2) @ x  # (b, n, l): ∂/∂(w B)
            share = w * reach
            drop = share * B
            return grad @ (w * B), drop - w * drop.sum(-1, keepdim=True), share

    class ToTokens(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h, C):
            h, C = h.contiguous(), C.contiguous()
            ctx.save_for_backward(h, C)
            size = (h.shape[1], h.shape[2], C.shape[2])
            options = sizes(*size, h.dtype)
            y = h.new_empty(len(h), size[0], size[2])
            states_to_tokens[
                (triton.cdiv(size[0], options["BD"]), triton.cdiv(size[2], options["BT"]), len(h))
            ](h, C, y, *size, **options)
            return y

        @staticmethod
        def backward(ctx, grad):
            h, C = ctx.saved_tensors
            return grad @ C.transpose(-1, -2), h.transpose(-1, -2) @ grad

    return ToStates, ToTokens


def check(x, dt, B, C, A, D, hz_weight, out_weight) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(
            f"hsm_ssd: x must be a floating-point tensor (batch, channels, length), got {x.dtype} of shape {tuple(x.shape)}"
        )
    batch, channels, length = x.shape
    if channels == 0 or length == 0:
        raise ValueError(
            f"hsm_ssd: x needs at least one channel and one token, got {tuple(x.shape)}"
        )
    if dt.dim() != 3 or (dt.shape[0], dt.shape[2]) != (batch, length) or dt.shape[1] == 0:
        raise ValueError(
            f"hsm_ssd: dt must be (batch, states, length) = ({batch}, states, {length}), got {tuple(dt.shape)}"
        )
    states = dt.shape[1]
    inner = out_weight.shape[-1] if out_weight.dim() else 0
    wanted = {"B": (B, dt.shape), "C": (C, dt.shape), "A": (A, (states,)), "D": (D, (1,))}
    wanted |= {
        "out_weight": (out_weight, (channels, inner)),
        "hz_weight": (hz_weight, (2 * inner, channels)),
    }
    for name, (value, shape) in wanted.items():
        if value is not None and tuple(value.shape) != tuple(shape):
            raise ValueError(
                f"hsm_ssd: {name} must have shape {tuple(shape)} to go with x {tuple(x.shape)} and dt {tuple(dt.shape)}, got {tuple(value.shape)}"
            )
    for name, value in {
        "dt": dt,
        "B": B,
        "C": C,
        "A": A,
        "D": D,
        "hz_weight": hz_weight,
        "out_weight": out_weight,
    }.items():
        if value is not None and value.device != x.device:
            raise ValueError(f"hsm_ssd: {name} is on {value.device}, x on {x.device}")


def cost(x, dt, B, C, A, D, hz_weight, out_weight, **_) -> Cost:
    """Work of one call: tokens to states and back, the softmax, the mixing."""
    (batch, channels, length), states, inner = x.shape, dt.shape[1], out_weight.shape[1]
    flops = batch * states * (4 * length * channels + 5 * length + 6 * channels * inner)
    moved = (
        2 * x.numel()
        + 3 * dt.numel()
        + 2 * batch * states * channels
        + hz_weight.numel()
        + out_weight.numel()
    )
    return Cost(flops=flops, bytes=moved * x.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments for `hsm_ssd`: a map of 28 × 28 tokens (`large`), or a toy (`small`)."""
    batch, channels, length, states = {"small": (1, 16, 49, 9), "large": (1, 192, 784, 25)}[size]
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    tensors = {
        "x": normal(batch, channels, length),
        "dt": normal(batch, states, length),
        "B": normal(batch, states, length),
        "C": normal(batch, states, length) / states**0.5,
        "A": 1 + 15 * torch.rand(states, generator=g, dtype=torch.float64),
        "D": torch.ones(1, dtype=torch.float64),
        "hz_weight": normal(2 * channels, channels) / channels**0.5,
        "out_weight": normal(channels, channels) / channels**0.5,
    }
    return {name: t.to(device, dtype).contiguous() for name, t in tensors.items()}
