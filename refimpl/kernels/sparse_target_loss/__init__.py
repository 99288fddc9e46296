"""Cross-entropy with a label of which K classes are known and the others share the rest.

TinyViT (Wu et al., arXiv 2207.10666): the label is what was stored of a teacher's probabilities.

    m = (1 − Σ_k p_k) / (C − K)                       share of each class that was not stored
    ŷ_c = p_k at c = I(k), else m                     the label, never built
    loss = − Σ_c ŷ_c log softmax(z)_c
         = T·logsumexp(z) − Σ_k (p_k − m) z_I(k) − m Σ_c z_c,     T = Σ_k p_k + (C − K) m

    logits         (b, C)        floating point, z
    indices        (b, K) int64  distinct classes I(1) … I(K) of each row, 1 ≤ K ≤ C
    probabilities  (b, K)        floating point, p; may be rounded, so that Σ p is not quite ≤ 1
    result         (b,)          a loss per row, in the type of logits

T is 1 but for rounding, unless K = C, where it is Σ p. The gradient by z is T·softmax(z) − m, less
p − m at the K classes.

Work: four FLOP a logit (maximum, difference, exponential, two sums; the exponential counted as
one), 4 K for the stored classes. Traffic: b·C logits once, and 12 or so bytes a stored class: below
two FLOP per byte, bound by memory. Expanded to a dense label, the same crosses memory about five
times: label out, scattered, log softmax out and in again, product out. The way back reads the
logits once more and writes the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.sparse_target_loss.composed import with_torch
from refimpl.kernels.sparse_target_loss.reference import naive, with_numpy

__all__ = ["cost", "example", "naive", "sparse_target_loss", "with_numpy", "with_torch"]

AXES = {
    "logits": "batch classes",
    "indices": "batch kept",
    "probabilities": "batch kept",
}


def sparse_target_loss(
    logits: Tensor, indices: Tensor, probabilities: Tensor, backend: str = "auto"
) -> Tensor:
    """A loss per row, (b,). Equation and shapes: see the module.

    Differentiable in logits and probabilities. Indices outside 0 … C − 1 are an error of whichever
    form is called. Raises `ValueError` for shapes, types or devices that don't fit.
    """
    tensors = dict(logits=logits, indices=indices, probabilities=probabilities)
    sizes = checks.shapes(AXES, **tensors)
    checks.floating(logits=logits, probabilities=probabilities)
    if indices.dtype != torch.int64:
        raise ValueError(f"indices must be int64 numbers of classes, got {indices.dtype}")
    checks.same_device(**tensors)
    if not 1 <= sizes["kept"] <= sizes["classes"]:
        raise ValueError(
            f"indices must name at least 1 and at most {sizes['classes']} classes of each row, all"
            f" that there are; got {sizes['kept']}"
        )
    widest = torch.promote_types(logits.dtype, probabilities.dtype)
    loss = dispatch(
        *("sparse_target_loss", with_torch, backend),
        *(logits.to(widest), indices, probabilities.to(widest)),
    )
    return loss.to(logits.dtype)


def cost(logits: Tensor, indices: Tensor, probabilities: Tensor) -> Cost:
    """Four FLOP a logit and a stored class; every argument once, and a number per row."""
    moved = logits.nbytes + indices.nbytes + probabilities.nbytes
    moved += len(logits) * logits.element_size()
    return Cost(flops=4 * (logits.numel() + indices.numel()), bytes=moved)


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: 4 rows of 10 classes, 3 kept; or ("large") 128 rows of 21,841, 100 kept."""
    batch, classes, kept = (4, 10, 3) if size == "small" else (128, 21_841, 100)
    g = torch.Generator().manual_seed(seed)
    teacher = (3 * torch.randn(batch, classes, generator=g)).softmax(1)
    probabilities, indices = teacher.topk(kept)
    return {
        "logits": torch.randn(batch, classes, generator=g).to(device, dtype),
        "indices": indices.to(device),
        "probabilities": probabilities.to(device, dtype),
    }
