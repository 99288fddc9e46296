"""Selective scan, the recurrence of Mamba: a leaky memory; each token decides what it keeps.

Gu, Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, arXiv 2312.00752.
Reference followed: state-spaces/mamba @ e9594ce, mamba_ssm/ops/selective_scan_interface.py
(`selective_scan_ref`).

    Δ_l = softplus(delta_l + delta_bias)               bias and softplus are each optional
    h_l = exp(Δ_l A) ⊙ h_{l−1} + (Δ_l u_l) B_l         elementwise over (d, n), h_0 = state or 0
    y_l = Σ_n C_l[n] h_l[n] + D u_l                    D is optional
    y_l ⊙ silu(z_l)                                    z is optional

    u, delta, z, y    (b, d, l)     batch, channels, length
    A                 (d, n)        n states a channel; A < 0 forgets
    B, C              (b, n, l)     or (b, g, n, l): channel c reads group c // (d / g)
                                    or (d, n): the same at all times
    D, delta_bias     (d)
    state             (b, d, n)

A may be complex; then B and C over time hold real and imaginary parts in turn, (b, n, 2l), and
y = 2·Re Σ_n C h. Arithmetic is float32 (float64 for float64), y comes back in u's type. Only A is
discretised exactly; B̄ is ΔB, the first-order term. The step is associative,
(a₁, x₁)∘(a₂, x₂) = (a₁a₂, a₂x₁ + x₂), so any order of brackets gives the same states.

Work: about 7n + 2 operations for each (b, d, l), one of them an exponential. Traffic when nothing
is written in between: u and delta in, y out, 12 bytes in float32, and B and C, shared by the
channels of a group. At n = 16 that is under 10 operations per byte: bound by memory on a GPU, with
the exponentials close behind. Storing exp(ΔA) and ΔBu, as the textbook form does, moves 16n bytes
more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch, wide
from refimpl.kernels.selective_scan.composed import BlockScan, doubling, scan_, with_torch
from refimpl.kernels.selective_scan.reference import naive, with_numpy

__all__ = [
    "BlockScan",
    "cost",
    "doubling",
    "example",
    "naive",
    "scan_",
    "selective_scan",
    "selective_step",
    "with_numpy",
    "with_torch",
]


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
) -> Tensor | tuple[Tensor, Tensor]:
    """y (b, d, l), and the last state (b, d, n) where asked for. Shapes, equation: see the module.

    Raises `ValueError` for shapes, types or devices that don't fit, and for complex A with Triton.
    """
    check(u, delta, A, B, C, D, z, delta_bias, state)
    tensors = (u, delta, A, B, C, D, z, delta_bias, state)
    options = {"delta_softplus": delta_softplus}
    y, last = dispatch("selective_scan", with_torch, backend, *tensors, **options)
    y = y.to(u.dtype)
    return (y, last) if return_last_state else y


def selective_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """One token of the same recurrence, for decoding: memory does not grow with the length.

    state: (b, d, n); u, delta, z: (b, d); A: (d, n), real; B, C: (b, n); D, delta_bias: (d).
    Returns y (b, d), in u's type, and the next state. Types as in `selective_scan`.
    """
    checks.shapes(STEP_AXES, u=u, delta=delta, A=A, B=B, C=C, D=D, z=z)
    checks.shapes(STEP_AXES, u=u, A=A, delta_bias=delta_bias, state=state)
    checks.floating(u=u, A=A)
    real = wide(u.dtype)
    token = u.to(real)
    step = delta.to(real)
    if delta_bias is not None:
        step = step + delta_bias.to(real)
    if delta_softplus:
        step = F.softplus(step)
    decay = torch.exp(step[..., None] * A.to(real))
    state = decay * state.to(real) + (step * token)[..., None] * B.to(real)[:, None]
    y = (state * C.to(real)[:, None]).sum(-1)
    if D is not None:
        y = y + D.to(real) * token
    if z is not None:
        y = y * F.silu(z.to(real))
    return y.to(u.dtype), state


STEP_AXES = {
    "u": "batch channels",
    "delta": "batch channels",
    "z": "batch channels",
    "A": "channels states",
    "B": "batch states",
    "C": "batch states",
    "D": "channels",
    "delta_bias": "channels",
    "state": "batch channels states",
}
AXES = {
    "u": "batch channels length",
    "delta": "batch channels length",
    "z": "batch channels length",
    "A": "channels states",
    "D": "channels",
    "delta_bias": "channels",
    "state": "batch channels states",
}
OVER_TIME = "channels states | batch states {times} | batch groups states {times}"


def check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    state: Tensor | None = None,
) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    named = {"u": u, "delta": delta, "A": A, "D": D, "z": z, "delta_bias": delta_bias}
    sizes = checks.shapes(AXES, **named, state=state)
    checks.floating(u=u, delta=delta)
    checks.at_least(1, channels=sizes["channels"], length=sizes["length"], states=sizes["states"])
    over_time = OVER_TIME.format(times=2 * sizes["length"] if A.is_complex() else "length")
    for name, value in {"B": B, "C": C}.items():
        axes = AXES | {name: over_time}
        groups = checks.shapes(axes, u=u, A=A, **{name: value}).get("groups", 1)
        if groups < 1 or sizes["channels"] % groups:
            raise ValueError(
                f"the {groups} groups of {name} must divide the {sizes['channels']} channels of u"
            )
    checks.same_device(**named, state=state, B=B, C=C)


def cost(u: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z=None, **_) -> Cost:
    """Work of one call; an exponential counts as one operation."""
    steps = u.numel()
    operations = 7 * A.shape[1] + 2 * (D is not None) + 4 * (z is not None)
    streams = 3 + (z is not None)  # u, delta, y, and z
    moved = streams * steps + B.numel() + C.numel() + A.numel()
    return Cost(flops=steps * operations, bytes=moved * u.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: one image in EfficientVMamba's first stage ("large"), or a toy ("small")."""
    batch, channels, states, length = {"small": (1, 8, 16, 64), "large": (1, 192, 16, 784)}[size]
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tensors = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length) - 3,
        "A": -torch.arange(1, states + 1, dtype=torch.float64).expand(channels, -1),
        "B": normal(batch, states, length),
        "C": normal(batch, states, length),
        "D": normal(channels),
        "delta_bias": 0.1 * normal(channels),
    }
    tensors = {name: t.to(device, dtype).contiguous() for name, t in tensors.items()}
    return tensors | {"delta_softplus": True}
