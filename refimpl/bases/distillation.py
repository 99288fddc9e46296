"""A second head learns from a teacher, as DeiT trains it.

Touvron and others, *Training Data-Efficient Image Transformers & Distillation through Attention*,
ICML 2021, arXiv 2012.12877; followed as released, in the form that EfficientFormer copies
(snap-research/EfficientFormer @ d01da42, util/losses.py).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from refimpl import checks


def distillation_loss(
    outputs: tuple[Tensor, Tensor],
    targets: Tensor,
    teacher_logits: Tensor,
    kind: str = "hard",
    alpha: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """(1 − α) · CE(head, targets) + α · (the second head against the teacher): one number.

    outputs: what a model with two heads gives in training, a pair of logits (b, k); targets:
    classes (b,) or probabilities (b, k); teacher_logits: (b, k).
    kind: "hard": cross-entropy with the teacher's class; "soft": KL(teacher ‖ student) · τ² over
    b · k, so not the mean per image; "none": the first term alone, whole.
    """
    checks.choice("kind", kind, ("none", "hard", "soft"))
    checks.positive(temperature=temperature)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be between 0 and 1")
    logits, distilled_logits = outputs
    base = F.cross_entropy(logits, targets)
    if kind == "none":
        return base
    if kind == "hard":
        taught = F.cross_entropy(distilled_logits, teacher_logits.argmax(1))
    else:
        student = (distilled_logits / temperature).log_softmax(1)
        teacher = (teacher_logits / temperature).log_softmax(1)
        divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
        taught = divergence * temperature**2 / student.numel()
    return (1 - alpha) * base + alpha * taught
