"""State space duality, the layer of Mamba-2: a recurrence, a matrix, and blocks of both.

Dao, Gu, *Transformers are SSMs*, arXiv 2405.21060 (2024). Reference followed: state-spaces/mamba
@ e9594ce, mamba_ssm/modules/ssd_minimal.py and mamba_ssm/ops/triton/ssd_combined.py.

    H_l = exp(a_l) H_{l−1} + x_l B_lᵀ                the recurrence; a_l = Δ_l A ≤ 0 for each head,
    y_l = H_l C_l                                    −∞ resets the state
    y = (L ∘ C Bᵀ) x                                 the matrix: attention under a decaying mask,
    L_ls = exp(Σ_{k=s+1..l} a_k) for l ≥ s, else 0

    x, y     (b, l, h, p)     batch, length, heads, width of a head; x is already multiplied by Δ
    a        (b, l, h)
    B, C     (b, l, g, n)     g groups of heads, n states: head i reads group i // (h / g)
    state    (b, h, p, n)

`ssd_combined` takes Δ, its bias, D and the gate z as the layer of Mamba-2 does. Arithmetic is
float32 (float64 for float64), y comes back in x's type.

In chunks of q steps: the matrix inside a chunk, what the state that enters adds to the outputs,
what the chunk adds to the state. Work per head: l·q·(n + p) + 2·l·p·n multiply-adds against 5·l·p·n
dependent operations of the recurrence, all of it as matrix products, so that their share of the
peak decides, not memory: 2·(q·(n + p) + 2pn) FLOP for 4·(2p + 2n + 1) bytes a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch, wide
from refimpl.kernels.ssd.composed import segsum, semiseparable, with_torch
from refimpl.kernels.ssd.reference import naive, with_numpy

__all__ = [
    "cost",
    "example",
    "naive",
    "segsum",
    "semiseparable",
    "ssd",
    "ssd_combined",
    "with_numpy",
    "with_torch",
]


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
    """y (b, l, h, p), and the last state (b, h, p, n) where asked for. Equation: see the module.

    Any length; `chunk` changes the time it takes, not the result. Raises `ValueError` for shapes,
    types or devices that don't fit.
    """
    check(x, a, B, C, state, chunk)
    y, last = dispatch("ssd", with_torch, backend, x, a, B, C, state, chunk=chunk)
    y = y.to(x.dtype)
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
    """The whole operation: Δ = softplus(dt + dt_bias), y = (ssd(Δx, ΔA) + D x) ⊙ silu(z).

    dt: (b, l, h); A, dt_bias: (h); D: (h) or (h, p); z: (b, l, h, p). options: `chunk`, `backend`.
    """
    checks.shapes(AXES, x=x, dt=dt, A=A, dt_bias=dt_bias, D=D, z=z)
    real = wide(x.dtype)
    token = x.to(real)
    dt = dt.to(real)
    if dt_bias is not None:
        dt = dt + dt_bias.to(real)
    if dt_softplus:
        dt = F.softplus(dt)
    decay = dt * A.to(real)
    y, last = ssd(token * dt[..., None], decay, B, C, state, return_last_state=True, **options)
    if D is not None:
        y = y + (D[:, None] if D.dim() == 1 else D).to(real) * token
    if z is not None:
        y = y * F.silu(z.to(real))
    y = y.to(x.dtype)
    return (y, last) if return_last_state else y


AXES = {
    "x": "batch length heads width",
    "a": "batch length heads",
    "B": "batch length groups states",
    "C": "batch length groups states",
    "state": "batch heads width states",
    "dt": "batch length heads",
    "A": "heads",
    "dt_bias": "heads",
    "D": "heads | heads width",
    "z": "batch length heads width",
}


def check(x: Tensor, a: Tensor, B: Tensor, C: Tensor, state: Tensor | None, chunk: int) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the others."""
    sizes = checks.shapes(AXES, x=x, a=a, B=B, C=C, state=state)
    checks.floating(x=x, a=a, B=B, C=C)
    batch = sizes.pop("batch")
    checks.at_least(1, **sizes)
    checks.at_least(0, batch=batch)
    if sizes["heads"] % sizes["groups"]:
        raise ValueError(
            f"the {sizes['groups']} groups of B and C must divide the {sizes['heads']} heads of x"
        )
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk={chunk!r}, the steps of a chunk, must be a whole number above 0")
    checks.same_device(x=x, a=a, B=B, C=C, state=state)


def cost(x: Tensor, a: Tensor, B: Tensor, C: Tensor, chunk: int = 32, **_) -> Cost:
    """Work of one call in chunks: the matrix inside (C Bᵀ once a group), the states, their use."""
    batch, length, heads, width = x.shape
    groups, states = B.shape[2:]
    inside = chunk * (groups * states + heads * width)
    flops = 2 * batch * length * (inside + 2 * heads * width * states)
    moved = 2 * x.numel() + a.numel() + 2 * B.numel()
    return Cost(flops=flops, bytes=moved * x.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: a Mamba-2 layer of eight heads of 64 ("large"), or a toy ("small")."""
    sizes = {"small": (1, 64, 2, 16, 1, 16), "large": (1, 1024, 8, 64, 1, 64)}
    batch, length, heads, width, groups, states = sizes[size]
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tensors = {
        "x": normal(batch, length, heads, width),
        "a": -F.softplus(normal(batch, length, heads) - 2),
        "B": normal(batch, length, groups, states) / states**0.5,
        "C": normal(batch, length, groups, states),
    }
    return {name: t.to(device, dtype).contiguous() for name, t in tensors.items()}
