"""Mixture of experts: each token passes through the few small MLPs that its gate chose for it.

Sarkar and others, *Edge-MoE*, arXiv 2305.18691 (2023). The readable PyTorch form, expert by expert,
is `refimpl.papers.edge_moe.expert_by_expert`.

    y_n = Σ_j score[n, j] · (W2_e φ(W1_e x_n + b1_e) + b2_e),   e = chosen[n, j]

    x       (n, d)             tokens
    chosen  (n, k) int64       experts of each token, 0 … e − 1
    score   (n, k)             their weights in the sum
    w1, b1  (e, f, d), (e, f)  first layers; φ = GELU (with erf)
    w2, b2  (e, d, f), (e, d)  second layers

Work: 4 n k d f FLOP, and 8 n k f for GELU and bias. Traffic: the weights of every expert that was
chosen, once, and the tokens. The intensity is about half the tokens per expert in float32, FLOP
per byte: with 129 tokens and two of 16 experts, 16 tokens each, memory is the limit. NumPy and
Triton sort the visits by expert; PyTorch's form computes all experts and masks, e/k times the work,
as only that has the same shapes whatever was chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.grouped_experts.composed import with_torch
from refimpl.kernels.grouped_experts.reference import naive, with_numpy

__all__ = ["cost", "example", "grouped_experts", "naive", "with_numpy", "with_torch"]

AXES = {
    "x": "tokens dim",
    "chosen": "tokens choices",
    "score": "tokens choices",
    "w1": "experts hidden dim",
    "b1": "experts hidden",
    "w2": "experts dim hidden",
    "b2": "experts dim",
}


def grouped_experts(
    x: Tensor,
    chosen: Tensor,
    score: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    backend: str = "auto",
) -> Tensor:
    """(n, d), in x's type. Equation and shapes: see the module.

    Numbers of experts outside 0 … e − 1 are an error of whichever form is called. Raises
    `ValueError` for shapes, types or devices that don't fit.
    """
    real = dict(x=x, score=score, w1=w1, b1=b1, w2=w2, b2=b2)
    sizes = checks.shapes(AXES, chosen=chosen, **real)
    checks.floating(**real)
    if chosen.dtype != torch.int64:
        raise ValueError(f"chosen must be int64 numbers of experts, got {chosen.dtype}")
    checks.same_device(chosen=chosen, **real)
    tokens = sizes.pop("tokens")
    checks.at_least(1, **sizes)
    checks.at_least(0, tokens=tokens)
    widest = x.dtype
    for tensor in real.values():
        widest = torch.promote_types(widest, tensor.dtype)
    weights = (tensor.to(widest) for tensor in (score, w1, b1, w2, b2))
    y = dispatch("grouped_experts", with_torch, backend, x.to(widest), chosen, *weights)
    return y.to(x.dtype)


def cost(
    x: Tensor, chosen: Tensor, score: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> Cost:
    """Two products a visit; each weight of a chosen expert once, tokens in and out."""
    tokens, dim = x.shape
    hidden = w1.shape[1]
    used = len(chosen.unique())
    moved = used * (2 * dim * hidden + dim + hidden) + 2 * tokens * dim
    visits = chosen.numel()
    flops = 4 * visits * dim * hidden + 8 * visits * hidden
    return Cost(flops=flops, bytes=moved * x.element_size() + visits * (8 + x.element_size()))


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 9 tokens of 16, 4 experts of 8; or ("large") a layer of the deployed network."""
    tokens, dim, experts, hidden = (9, 16, 4, 8) if size == "small" else (129, 192, 16, 384)
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=g)
    score, chosen = logits.softmax(-1).topk(2)
    made = {"x": torch.randn(tokens, dim, generator=g), "chosen": chosen, "score": score}
    made["w1"] = torch.randn(experts, hidden, dim, generator=g) / dim**0.5
    made["b1"] = 0.1 * torch.randn(experts, hidden, generator=g)
    made["w2"] = torch.randn(experts, dim, hidden, generator=g) / hidden**0.5
    made["b2"] = 0.1 * torch.randn(experts, dim, generator=g)
    for name, tensor in made.items():
        made[name] = tensor.to(device) if name == "chosen" else tensor.to(device, dtype)
    return made
