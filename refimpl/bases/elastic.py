"""Elastic networks: one set of weights from which networks of many sizes are cut, and how the
small ones learn from the large ones.

Slices: Cai and others, *Once-for-All*, ICLR 2020, arXiv 1908.09791. Every layer of a small network
takes the first channels of the large one's, and the centre of its kernels. A slice is a view: what
trains one size trains all that share it.

α-divergence: Wang and others, *AlphaNet*, ICML 2021, arXiv 2102.07954. Of a teacher p and a student
q over the classes,

    D_α(p‖q) = Σ q · ((p/q)^α − 1) / (α(α − 1)),      α → 1: KL(p‖q),   α → 0: KL(q‖p)

punishes with a large α where the student misses what the teacher says, with a small one where it
says what the teacher does not. The adaptive loss takes, per image, the worse of two.

Clipping: Brock and others, arXiv 2102.06171 (2021): a gradient relative to its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from refimpl import checks

Cut = Callable[[str, Tensor, torch.Size], Tensor]


def first(whole: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first channels and the centre of the kernel, as a view: (O, I, K, K) -> (o, i, k, k).

    Tensors of fewer axes have channels only. Raises `ValueError` where `shape` is no part of it.
    """
    fits = len(shape) == whole.dim() and all(
        n <= m for n, m in zip(shape, whole.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"shape={tuple(shape)} is no part of weights {tuple(whole.shape)}")
    for axis, size in enumerate(shape):
        start = (whole.shape[axis] - size) // 2 if axis >= 2 else 0
        whole = whole.narrow(axis, start, size)
    return whole


def slices(whole: Mapping[str, Tensor], part: nn.Module, cut: Cut) -> dict[str, Tensor]:
    """The tensors of a small network, each cut out of the large network's tensor of its name.

    cut: (name, whole tensor, shape) -> tensor of that shape.
    """
    wanted = dict(part.named_parameters()) | dict(part.named_buffers())
    return {name: cut(name, whole[name], tensor.shape) for name, tensor in wanted.items()}


def call_sliced(network: nn.Module, whole: Mapping[str, Tensor], cut: Cut, *inputs: Tensor):
    """Run `network` with weights that are cut out of `whole`; gradients reach `whole`.

    network: only its structure counts, so it may lie on the meta device. In training its batch
    norms write their statistics into `whole`.
    """
    return functional_call(network, slices(whole, network, cut), inputs)


def alpha_divergence(
    logits: Tensor, teacher: Tensor, alpha: float, clip: float = 5.0
) -> tuple[Tensor, Tensor]:
    """D_α(teacher ‖ softmax(logits)) per image (b,), and what to differentiate instead (b,).

    logits: (b, k); teacher: probabilities (b, k). The second is −Σ q ρ log q with q and ρ held
    fixed; its gradient is that of the divergence, but that large (p/q)^α are clipped at `clip`
    (not for α = 1).
    """
    log_student = logits.log_softmax(1)
    student = log_student.detach().exp()
    ratio = teacher.detach() / student
    if alpha == 1:
        value, weight = ratio * ratio.log(), ratio
    elif alpha == 0:
        log_ratio = ratio.clamp(max=clip).log()
        value, weight = -log_ratio, log_ratio - 1
    else:
        power = (ratio**alpha).clamp(max=clip)
        base = 1 / (alpha * (alpha - 1))
        value, weight = base * (power - 1), power / alpha + base
    return (student * value).sum(1), -(student * weight * log_student).sum(1)


def adaptive_divergence(
    logits: Tensor,
    teacher: Tensor,
    alphas: tuple[float, float] = (-1.0, 1.0),
    clip: float = 5.0,
) -> Tensor:
    """The mean over images of the surrogate whose α diverges more: a number to differentiate."""
    low, of_low = alpha_divergence(logits, teacher, alphas[0], clip)
    high, of_high = alpha_divergence(logits, teacher, alphas[1], clip)
    return torch.where(low > high, of_low, of_high).mean()


@torch.no_grad()
def clip_by_weights(parameters: Iterable[Tensor], ratio: float, least: float = 1e-3) -> None:
    """In place: where the norm of a gradient is above `ratio` times that of its weights, shrink it.

    Norms are taken for each output channel (axis 0); a vector counts as one. least: what the norm
    of weights is taken to be at least.
    """
    checks.positive(ratio=ratio, least=least)
    for parameter in parameters:
        if parameter.grad is None:
            continue
        axes = tuple(range(1, parameter.dim())) if parameter.dim() > 1 else None
        keep = parameter.dim() > 1
        norm = torch.linalg.vector_norm(parameter, dim=axes, keepdim=keep).clamp(min=least)
        found = torch.linalg.vector_norm(parameter.grad, dim=axes, keepdim=keep)
        parameter.grad *= (ratio * norm / found.clamp(min=1e-6)).clamp(max=1.0)
