"""Hidden state mixer, the layer of EfficientViM: tokens into a few states, mix there, read out.

Lee, Choi, Kim, *EfficientViM*, arXiv 2411.15241 (2025). Reference followed: mlvlab/EfficientViM
@ 304340c, classification/models/EfficientViM.py (`HSMSSD.forward`). The readable PyTorch form is
`refimpl.papers.efficientvim`'s.

    w = softmax over tokens of (Δ + A)               one importance map per state
    h = x (w ⊙ B)ᵀ                                   tokens -> states
    p, z = W_hz h
    h' = W_out (p ⊙ silu(z) + D p)                   channels are mixed on n states, not on l tokens
    y = h' C                                         states -> tokens

    x, y          (b, d, l)      batch, channels, length
    dt (Δ), B, C  (b, n, l)      n states
    A             (n)            or None
    D             (1)
    hz_weight     (2e, d)
    out_weight    (d, e)
    h, h'         (b, d, n)

A is the same for all tokens and the softmax normalises over tokens, so it cancels: the result does
not depend on it, and it may be `None`. Arithmetic is in the widest type of the arguments, results
come back in x's type.

Work: tokens to states and back 4·l·n·d FLOP, the softmax about 5·l·n, the mixing, which does not
grow with l, 6·n·d·e. Traffic at least 4·(2·d·l + 3·n·l + 2·d·n) bytes in float32: about n/2 FLOP
per byte for d ≫ n, bound by memory on a GPU. Triton folds the softmax into one pass over the tokens
(running maximum and sum), so that the maps w are never written.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.hsm_ssd.composed import with_torch
from refimpl.kernels.hsm_ssd.reference import naive, with_numpy

__all__ = ["cost", "example", "hsm_ssd", "naive", "with_numpy", "with_torch"]


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
    """y (b, d, l) and the mixed states h' (b, d, n), in x's type. Equation: see the module.

    Raises `ValueError` for shapes, types or devices that don't fit.
    """
    tensors = (x, dt, B, C, A, D, hz_weight, out_weight)
    check(*tensors)
    types = [t.dtype for t in tensors if t is not None]
    widest = functools.reduce(torch.promote_types, types)
    tensors = [t if t is None else t.to(widest) for t in tensors]
    y, h = dispatch("hsm_ssd", with_torch, backend, *tensors)
    return y.to(x.dtype), h.to(x.dtype)


AXES = {
    "x": "batch channels length",
    "dt": "batch states length",
    "B": "batch states length",
    "C": "batch states length",
    "A": "states",
    "D": "1",
    "out_weight": "channels inner",
}


def check(x, dt, B, C, A, D, hz_weight, out_weight) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    named = {"x": x, "dt": dt, "B": B, "C": C, "A": A, "D": D, "out_weight": out_weight}
    sizes = checks.shapes(AXES, **named)
    axes = AXES | {"hz_weight": f"{2 * sizes['inner']} channels"}
    checks.shapes(axes, x=x, hz_weight=hz_weight)
    checks.floating(**named, hz_weight=hz_weight)
    batch = sizes.pop("batch")
    checks.at_least(1, **sizes)
    checks.at_least(0, batch=batch)
    checks.same_device(**named, hz_weight=hz_weight)


def cost(x: Tensor, dt: Tensor, hz_weight: Tensor, out_weight: Tensor, **_) -> Cost:
    """Work of one call: tokens to states and back, the softmax, the mixing."""
    batch, channels, length = x.shape
    states = dt.shape[1]
    inner = out_weight.shape[1]
    flops = batch * states * (4 * length * channels + 5 * length + 6 * channels * inner)
    weights = hz_weight.numel() + out_weight.numel()
    moved = 2 * x.numel() + 3 * dt.numel() + 2 * batch * states * channels + weights
    return Cost(flops=flops, bytes=moved * x.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: a map of 28 × 28 tokens ("large"), or a toy ("small")."""
    batch, channels, length, states = {"small": (1, 16, 49, 9), "large": (1, 192, 784, 25)}[size]
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

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
