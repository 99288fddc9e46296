"""Selective scan in PyTorch: in blocks that stay in the cache, with a gradient of its own, and by
doubling, composed of PyTorch's operators. Equation and shapes: see the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.kernels import derivative, gradients, transformed, wide


def with_torch(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    scan: Callable | None = None,
) -> tuple[Tensor, Tensor]:
    """y (b, d, l) and the last state (b, d, n), differentiable.

    scan: the recurrence, `block_scan` or `doubling`. Left out, it is the first, and the second
    where operators are recorded to run again (torch.compile, torch.export, torch.jit.trace).
    """
    real = wide(u.dtype)
    kind = torch.promote_types(A.dtype, real) if A.is_complex() else real
    token = u.to(real)
    step = delta.to(real)
    A = A.to(kind)
    if delta_bias is not None:
        step = step + delta_bias.to(real)[:, None]
    if delta_softplus:
        step = F.softplus(step)
    groups = math.lcm(*(m.shape[1] for m in (B, C) if m.dim() == 4))
    B = grouped(B, A, groups)
    C = grouped(C, A, groups)
    if state is None:
        state = A.new_zeros(u.shape[0], *A.shape)
    if scan is None:
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        scan = doubling if recorded else block_scan
    y, last = scan(
        by_group(token, groups),
        by_group(step, groups),
        states_first(A, groups).contiguous(),
        B,
        C,
        states_first(state.to(kind), groups),
    )
    y = y.flatten(2).permute(1, 2, 0)
    if D is not None:
        y = y + D.to(real)[:, None] * token
    if z is not None:
        y = y * F.silu(z.to(real))
    return y.to(u.dtype), last.transpose(-1, -2).flatten(1, 2)


def by_group(m: Tensor, groups: int) -> Tensor:
    """(b, d, l) -> (l, b, g, 1, d/g)."""
    return m.permute(2, 0, 1).unflatten(2, (groups, 1, -1)).contiguous()


def states_first(m: Tensor, groups: int) -> Tensor:
    """(…, d, n) -> (…, g, n, d/g)."""
    return m.unflatten(-2, (groups, -1)).transpose(-1, -2)


def grouped(m: Tensor, A: Tensor, groups: int) -> Tensor:
    """B or C as (l, b, g, n, 1), for the d/g channels of a group; constant as (1, 1, g, n, d/g)."""
    if m.dim() == 2:
        return states_first(m.to(A.dtype), groups)[None, None]
    if A.is_complex():
        pairs = m.to(A.real.dtype).unflatten(-1, (-1, 2))  # along time
        m = torch.view_as_complex(pairs.contiguous())
    if m.dim() == 3:
        m = m[:, None]
    m = m.to(A.dtype).repeat_interleave(groups // m.shape[1], 1)
    return m.permute(3, 0, 1, 2)[..., None].contiguous()


def doubling(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor):
    """The recurrence in log₂ l passes over whole tensors (Hillis, Steele): log₂ l times the work.

    After pass k every step holds the product of its last 2ᵏ pairs (a, x). Shapes: see `BlockScan`.
    """
    a = torch.exp(delta * A)
    x = ((delta * u) * B).expand_as(a)
    x = torch.cat([x[:1] + a[:1] * h0, x[1:]])
    reach = 1
    while reach < x.shape[0]:
        x = torch.cat([x[:reach], x[reach:] + a[reach:] * x[:-reach]])
        a = torch.cat([a[:reach], a[reach:] * a[:-reach]])
        reach *= 2
    return read(C, x), x[-1]


def block_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor):
    """The recurrence in blocks of time steps: y and the last state. Shapes: see `BlockScan`."""
    return BlockScan.apply(u, delta, A, B, C, h0)[:2]


class BlockScan(torch.autograd.Function):
    """The bare recurrence, block after block of time steps; only the states between are kept.

    u, delta: (l, b, g, 1, c); A: (g, n, c); B, C: (l, b, g, n, 1) or (1, 1, g, n, c);
    h0: (b, g, n, c). Returns y (l, b, g, c), the last state, and the states that enter the blocks.
    The way back is a scan too, against time: λ_l = C_l ȳ_l + a_{l+1} λ_{l+1}; then B̄_l = λ Δu,
    C̄_l = h ȳ, Ā = Σ λ Δ a h_{l−1}. Gradients of gradients, `torch.func.vmap` and forward-mode
    derivatives go by `doubling`.
    """

    @staticmethod
    def forward(u, delta, A, B, C, h0):
        parts = blocks(len(u), -(-len(u) // block_length(h0.numel())))
        y = torch.empty(u.shape[:3] + u.shape[4:], dtype=u.dtype, device=u.device)
        # Written, scanned and read anew by every block: they stay in the cache
        buffers = h0.new_empty(2, parts[0].stop, *h0.shape)
        entering = []
        h = h0
        for part in parts:
            entering.append(h)
            a, x = pairs(u, delta, A, B, part, buffers)
            h = scan_(a, x, h).clone()
            y[part] = read(at(C, part), x)
        return y, h, torch.stack(entering)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, entering = output
        ctx.mark_non_differentiable(entering)
        ctx.save_for_backward(*inputs, entering)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad_y, grad_last, _):
        *inputs, entering = ctx.saved_tensors
        if torch.is_grad_enabled() or transformed():  # to be differentiated again, or mapped
            return gradients(doubling, tuple(inputs), (grad_y, grad_last))
        return backward_in_blocks(*inputs[:5], entering, grad_y, grad_last)

    @staticmethod
    def jvp(ctx, *tangents):
        inputs = ctx.saved_tensors
        given = zip(inputs, tangents, strict=True)
        tangents = tuple(torch.zeros_like(m) if t is None else t for m, t in given)
        return (*derivative(doubling, inputs, tangents), None)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        y, last = torch.func.vmap(doubling, in_dims)(*inputs)
        return (y, last, last[:, None]), (0, 0, 0)


def backward_in_blocks(u, delta, A, B, C, entering, grad_y, carry):
    """Gradients of u, delta, A, B, C and h0. entering: the states that enter the blocks."""
    parts = blocks(len(u), len(entering))
    grad_y = (2 * grad_y if A.is_complex() else grad_y).unsqueeze(3).to(A.dtype)
    grad_u = torch.empty_like(u)
    grad_delta = torch.empty_like(delta)
    grad_A = torch.zeros_like(A)
    grad_B = torch.zeros_like(B)
    grad_C = torch.zeros_like(C)
    buffers = A.new_empty(5, parts[0].stop, *entering[0].shape)
    for part, h in reversed(list(zip(parts, entering, strict=True))):
        a, states = pairs(u, delta, A, B, part, buffers)
        spent, before, lam = buffers[2:, : len(a)]
        scan_(spent.copy_(a), states, h)
        before[0] = h
        before[1:] = states[:-1]  # h_{l−1} of every step
        upstream = grad_y[part]
        torch.mul(at(C, part).conj(), upstream, out=lam)
        spent[:-1] = a[1:].conj()
        spent[-1] = 1
        scan_(spent, lam, carry, reverse=True)
        carry = a[0].conj() * lam[0]
        add_to(grad_C, part, states.conj() * upstream)
        add_to(grad_B, part, lam * (delta[part] * u[part]))
        grad_input = (lam * at(B, part).conj()).sum(3, keepdim=True).real
        lam *= before.mul_(a).conj()  # λ a h_{l−1}: what Δ and A share
        grad_delta[part] = u[part] * grad_input + (lam * A.conj()).sum(3, keepdim=True).real
        grad_u[part] = delta[part] * grad_input
        grad_A += (lam * delta[part]).sum((0, 1))
    return grad_u, grad_delta, grad_A, grad_B, grad_C, carry


def blocks(length: int, count: int) -> list[slice]:
    """The time steps of each of `count` blocks of about equal length."""
    size = -(-length // count)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def block_length(states: int) -> int:
    """Time steps of a block: enough to make a call worth its overhead, few enough that the pairs
    (a, x), 8 bytes for each of `states` numbers, stay in the cache."""
    return min(max(2 ** round(math.log2(200_000 / max(states, 1))), 16), 256)


def at(m: Tensor, part: slice) -> Tensor:
    """The time steps `part` of B or C; a constant serves all of them."""
    return m[part] if len(m) > 1 else m


def pairs(u, delta, A, B, part, buffers):
    """Decay a = exp(ΔA), input x = Δ u B of the steps `part`, in the buffers: (t, b, g, n, c)."""
    delta = delta[part]
    a = buffers[0, : len(delta)]
    x = buffers[1, : len(delta)]
    torch.mul(delta, A, out=a).exp_()
    torch.mul(delta * u[part], at(B, part), out=x)
    return a, x


def scan_(a: Tensor, x: Tensor, h: Tensor, reverse: bool = False) -> Tensor:
    """Replace x by the states x_t ← x_t + a_t x_{t−1}, in place, and return the last one.

    √t groups of √t steps: the groups all at once, then one after the other the state that enters.
    a is used up. reverse: from the end of time.
    """
    steps = math.isqrt(len(x))
    whole = len(x) // steps * steps
    pieces = [(slice(0, whole), steps), (slice(whole, len(x)), len(x) - whole)]
    order = -1 if reverse else 1
    for piece, count in pieces[::order]:
        if count == 0:
            continue
        a_groups = a[piece].unflatten(0, (-1, count))
        x_groups = x[piece].unflatten(0, (-1, count))
        a_steps = a_groups.unbind(1)[::order]
        x_steps = x_groups.unbind(1)[::order]
        for s in range(1, count):
            x_steps[s].addcmul_(a_steps[s], x_steps[s - 1])
            a_steps[s].mul_(a_steps[s - 1])
        groups = list(zip(a_groups.unbind(), x_groups.unbind(), strict=True))
        for a_group, x_group in groups[::order]:
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
