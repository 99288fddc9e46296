"""Masks of two classes: losses, and what papers call accuracy, IoU and precision.

The losses and scores equal those of qubvel/segmentation_models.pytorch @bd7f877 (MIT). A pixel of
a mask is 1 (the thing that is looked for: a building, a tumour) or 0 (background). TP, FP, FN, TN:
pixels said to be 1 that are, said that are not, not said that are, not said that are not.

Two conventions move scores. Counts may be summed over the whole set first ("set"), or a score be
taken of each image and then averaged ("image"). And a score with a 0 / 0 in it, where there is
nothing to find and nothing was found, is 1: images without any building raise the mean over images,
the mean of class recalls even where something was found there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl import checks


def check_masks(prediction: Tensor, masks: Tensor) -> None:
    """Raise a `ValueError` unless masks (b, 1, h, w) of 0 and 1 fit the prediction."""
    checks.torch_tensor(prediction=prediction, masks=masks)
    if masks.dim() != 4 or prediction.shape != masks.shape:
        raise ValueError(
            f"masks are {tuple(masks.shape)}, the prediction is {tuple(prediction.shape)}:"
            " both must be (batch, 1, height, width) of one size"
        )
    if not ((masks == 0) | (masks == 1)).all():
        raise ValueError("masks must hold 0 (background) and 1 (building) alone")


# -- losses


def overlap_loss(
    logits: Tensor,
    masks: Tensor,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 0.0,
    log: bool = False,
) -> Tensor:
    """1 − (TP + s) / (TP + α·FP + β·FN + s) of soft counts over the whole batch, (): Tversky.

    α = β = ½ is Dice (whose usual form has s twice as large), α = β = 1 Jaccard. logits, masks:
    (b, 1, h, w); smooth: s; log: −log of the ratio, not 1 − ratio. 0 where no pixel is 1.
    """
    check_masks(logits, masks)
    checks.at_least(0, alpha=alpha, beta=beta, smooth=smooth)
    p = logits.sigmoid()
    masks = masks.to(p.dtype)
    hits = (p * masks).sum()
    wrong = alpha * (p.sum() - hits) + beta * (masks.sum() - hits)
    ratio = (hits + smooth) / (hits + wrong + smooth).clamp_min(1e-7)
    loss = -ratio.clamp_min(1e-7).log() if log else 1 - ratio
    return loss * (masks.sum() > 0)


def focal_loss(logits: Tensor, masks: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of (1 − p of the true class)^γ · cross-entropy, ().

    Pixels that are already right count little.
    """
    check_masks(logits, masks)
    checks.at_least(0, gamma=gamma)
    entropy = F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none")
    return ((1 - (-entropy).exp()) ** gamma * entropy).mean()


def segmentation_loss(logits: Tensor | Sequence[Tensor], masks: Tensor) -> Tensor:
    """Cross-entropy per pixel + Dice over the batch, (); with several heads their mean.

    Cross-entropy gives every pixel a gradient, Dice does not care how much background there is.
    logits: (b, 1, h, w), or a tuple of such, as a network with deep supervision gives in training.
    """
    heads = [logits] if isinstance(logits, Tensor) else list(logits)
    if not heads:
        raise ValueError("logits must be a tensor or at least one tensor, got an empty sequence")
    losses = []
    for head in heads:
        dice = overlap_loss(head, masks)
        losses.append(dice + F.binary_cross_entropy_with_logits(head, masks.to(head.dtype)))
    return torch.stack(losses).mean()


# -- scores


def confusion(prediction: Tensor, masks: Tensor) -> Tensor:
    """Pixels of each image that are TP, FP, FN, TN: (b, 4) int64.

    prediction: (b, 1, h, w), True or 1 where a building is said to be (`logits > 0`).
    """
    check_masks(prediction, masks)
    said = prediction.bool().flatten(1)
    true = masks.bool().flatten(1)
    cells = (said & true, said & ~true, ~said & true, ~said & ~true)
    return torch.stack([cell.sum(1) for cell in cells], dim=1)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, not a number where both are 0."""
    return np.where(whole == 0, np.nan, part / np.where(whole == 0, 1, whole))


def definitions(tp, fp, fn, tn) -> dict[str, np.ndarray]:
    """What papers call accuracy, IoU and precision, from counts or shares of pixels (any shape).

    A score with a 0 / 0 in it is 1.
    """
    tp, fp, fn, tn = (np.asarray(cell, np.float64) for cell in (tp, fp, fn, tn))
    wrong = fp + fn
    recall = ratio(tp, tp + fn)
    specificity = ratio(tn, tn + fp)
    building = ratio(tp, tp + wrong)
    background = ratio(tn, tn + wrong)
    precision = ratio(tp, tp + fp)
    found = {
        "pixel accuracy": ratio(tp + tn, tp + tn + wrong),
        "class-mean accuracy": (recall + specificity) / 2,
        "recall": recall,
        "specificity": specificity,
        "building IoU": building,
        "background IoU": background,
        "mean IoU": (building + background) / 2,
        "micro IoU": ratio(tp + tn, tp + tn + 2 * wrong),
        "building precision": precision,
        "mean precision": (precision + ratio(tn, tn + fn)) / 2,
        "F1": ratio(2 * tp, 2 * tp + wrong),
    }
    return {name: np.where(np.isnan(score), 1.0, score) for name, score in found.items()}


REDUCTIONS = ("set", "image", "none")


def scores(counts: Tensor, reduction: str = "set") -> dict[str, np.ndarray]:
    """All `definitions` of counts (b, 4) as `confusion` gives them.

    reduction: "set" sums counts over the images first (micro), "image" takes the mean of the
    images' scores, "none" gives one score an image, (b,).
    """
    checks.choice("reduction", reduction, REDUCTIONS)
    checks.torch_tensor(counts=counts)
    if counts.dim() != 2 or counts.shape[1] != 4 or len(counts) == 0:
        raise ValueError(f"counts must be (images, 4) of TP, FP, FN, TN, got {tuple(counts.shape)}")
    table = counts.sum(0) if reduction == "set" else counts.T
    found = definitions(*table.cpu().numpy())
    if reduction == "image":
        return {name: score.mean() for name, score in found.items()}
    return found


def largest_mean_iou(pixel_accuracy: float) -> float:
    """a / (2 − a): with two classes no mean IoU is above it; it is reached where TP = TN.

    With e = 1 − a the mean IoU is ½ (t/(t + e) + (a − t)/(a − t + e)) for TP = t of all pixels:
    t/(t + e) is concave, so the mean of two is largest where both are alike, t = a/2.
    """
    if not 0 <= pixel_accuracy <= 1:
        raise ValueError(f"pixel_accuracy={pixel_accuracy!r} must be between 0 and 1")
    return pixel_accuracy / (2 - pixel_accuracy)


def tables_with(wanted: dict[str, float], steps: int = 600) -> list[tuple[float, ...]]:
    """All shares (TP, FP, FN, TN) of pixels, sum 1, that give three scores at once.

    wanted: an accuracy ("pixel accuracy" or "class-mean accuracy"), then two other names of
    `definitions`, each with its value in (0, 1). Three numbers and the sum fix the four shares, so
    there are a few such tables or none. steps: of the search, in the share of buildings and in
    their recall; roots closer than a step are found as one or not at all.
    """
    (kind, accuracy), *others = wanted.items()
    checks.choice("wanted", kind, ("pixel accuracy", "class-mean accuracy"), "accuracy")
    if len(others) != 2:
        raise ValueError(f"wanted must be an accuracy and two more scores, got {list(wanted)}")
    for name, value in wanted.items():
        checks.choice("wanted", name, definitions(1, 1, 1, 1), "score")
        if not 0 < value < 1:
            raise ValueError(f"{name}={value!r} must be between 0 and 1")
    grid = (np.arange(steps) + 0.5) / steps
    share, recall = np.meshgrid(grid, grid, indexing="ij")

    def errors(share, recall):
        """How far the two other scores are off, where the accuracy is right; the four shares."""
        if kind == "pixel accuracy":
            specificity = (accuracy - share * recall) / (1 - share)
        else:
            specificity = 2 * accuracy - recall
        inside = (specificity >= 0) & (specificity <= 1) & (recall >= 0) & (recall <= 1)
        specificity = np.clip(specificity, 0, 1)
        cells = (
            share * recall,
            (1 - share) * (1 - specificity),
            share * (1 - recall),
            (1 - share) * specificity,
        )
        found = definitions(*cells)
        off = np.stack([found[name] - value for name, value in others])
        return np.where(inside, off, np.nan), cells

    off, _ = errors(share, recall)
    corners = np.stack([off[:, :-1, :-1], off[:, 1:, :-1], off[:, :-1, 1:], off[:, 1:, 1:]])
    crossed = ((corners.min(0) <= 0) & (corners.max(0) >= 0)).all(0)  # both change their sign
    tables: list[tuple[float, ...]] = []
    for a, b in np.argwhere(crossed):
        point = np.array([grid[a], grid[b]])
        for _ in range(30):  # Newton
            value, cells = errors(*point)
            slopes = []
            for step in np.eye(2) * 1e-7:
                slopes.append((errors(*(point + step))[0] - value) / 1e-7)
            slope = np.stack(slopes, 1)
            if not np.isfinite(slope).all() or abs(np.linalg.det(slope)) < 1e-12:
                break
            point = point - np.linalg.solve(slope, value)
        value, cells = errors(*point)
        known = any(np.allclose(cells, table, atol=1e-6) for table in tables)
        if np.isfinite(value).all() and np.abs(value).max() < 1e-9 and not known:
            tables.append(tuple(float(cell) for cell in cells))
    return tables
