"""How sure a classifier is: largest probability and entropy of a row of logits, in one pass.

The test at an early exit, as in Xu and others, *LGViT*, arXiv 2308.00255 (2023); the readable form
stands in `refimpl.bases.early_exit`. The running sums are those of the online softmax, Milakov and
Gimelshein, arXiv 1805.02867 (2018), with one sum more.

    p_k        = softmax_k(z)
    confidence = max_k p_k        = 1 / s
    entropy    = −Σ_k p_k ln p_k  = ln s − t/s
    s = Σ_k exp(z_k − μ),   t = Σ_k (z_k − μ) exp(z_k − μ),   μ = max_k z_k

    logits                    (b, k)    k = 10 … 21 843
    confidence, entropy       (b,)      in the type of the logits; entropy in nats

Tile after tile of classes: where one raises μ by δ, what was summed so far becomes
t ← e^(−δ) (t − δ s), s ← e^(−δ) s. No probability is stored. Near certainty ln s and t/s are small
and alike, so the entropy there is right to a rounding of 1, not of itself.

Work: about six FLOP a logit. Traffic: b·k numbers, read once; bound by memory everywhere. Composed
of operators, logits and probabilities cross memory five times. At an exit this is a ten-thousandth
of the model's time: the kernel is here as the shortest example of statistics gathered in passing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.exit_scores.composed import with_torch
from refimpl.kernels.exit_scores.reference import naive, with_numpy

__all__ = ["cost", "example", "exit_scores", "naive", "with_numpy", "with_torch"]

AXES = {"logits": "batch classes"}


def exit_scores(logits: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Confidence and entropy, (b,) each. Equation and shapes: see the module.

    Raises `ValueError` for shapes or types that don't fit.
    """
    sizes = checks.shapes(AXES, logits=logits)
    if sizes["classes"] == 0:
        raise ValueError(f"logits must hold at least one class, got {tuple(logits.shape)}")
    checks.floating(logits=logits)
    if logits.is_meta:
        raise ValueError("logits are on the meta device, which holds no numbers to be sure of")
    confidence, entropy = dispatch("exit_scores", with_torch, backend, logits)
    return confidence.to(logits.dtype), entropy.to(logits.dtype)


def cost(logits: Tensor) -> Cost:
    """Six FLOP a logit; logits once, and two numbers a row."""
    moved = (logits.numel() + 2 * len(logits)) * logits.element_size()
    return Cost(flops=6 * logits.numel(), bytes=moved)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 4 rows of 10 classes; or ("large") 1024 rows of ImageNet's 1000."""
    shape = (4, 10) if size == "small" else (1024, 1000)
    logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return {"logits": logits.to(device, dtype)}
