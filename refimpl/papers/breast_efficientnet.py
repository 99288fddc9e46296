"""Breast tumours with EfficientNet: eight types, one of them eight times as frequent as another.

Behzadpour, Ortiz, Azizi, Wu, *Breast Tumor Classification Using EfficientNet Deep Learning Model*,
2024, arXiv 2411.17870. No official code was found: what follows is the method as the abstract and
a public summary tell it. Strengths of the augmentation, split and the variant's letter are not
stated there; those below are ours. Data: BreakHis (Spanhol and others, IEEE TBME 2016).

The idea
    1. EfficientNet with ImageNet weights, its classifier replaced.
    2. *Intensive* augmentation, above all of rare classes, so that their samples multiply: flips,
       turn, scale, shift, shear, brightness, blur, noise. *Regular*: flips alone (inferred).
    3. Cost-sensitive learning: an error on a rare class costs more.
    4. Train on two classes (benign, malignant) first, keep all but the classifier, then on eight.

With n_c training images of class c, N of all, K classes, and w_c = N / (K n_c):

    L = Σ_i w_{y_i} · (−log p_{i, y_i}) / Z        Z = Σ_i w_{y_i} (PyTorch), or b (Keras)

The free rival: with weights w the best posterior is the plain one times w, renormalised. So

    argmax_c p(c|x) w_c = argmax_c (z_c + log w_c),   with w ∝ n^−τ:  z_c − τ log n_c

moves the decision as the weights would, and trains nothing (logit adjustment, Menon and others,
ICLR 2021, arXiv 2007.07314).

Cost: none at inference; in training, what the added samples and the first stage cost in steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.bases import efficientnet

# BreakHis: type -> images, all magnifications together; the first four are benign.
BREAKHIS = {
    "adenosis": 444,
    "fibroadenoma": 1014,
    "phyllodes tumour": 453,
    "tubular adenoma": 569,
    "ductal carcinoma": 3451,
    "lobular carcinoma": 626,
    "mucinous carcinoma": 792,
    "papillary carcinoma": 560,
}
BENIGN = 4  # types


def weighted_loss(
    logits: Tensor, labels: Tensor, class_weights: Tensor, divide_by: str = "weights"
) -> Tensor:
    """Cross-entropy in which an image counts as its class does: (b, K), (b,), (K,) -> one number.

    divide_by: "weights" (PyTorch) divides by the weights' sum in the batch, "images" (Keras) by b.
    """
    log_p = logits.log_softmax(dim=1)  # (b, K)
    costs = -log_p.gather(1, labels[:, None])[:, 0]  # (b,): −log p of the true class
    weights = class_weights[labels]  # (b,): w of the true class
    total = (weights * costs).sum()
    if divide_by == "weights":
        return total / weights.sum()
    return total / len(labels)


def class_weights(counts: Sequence[int], kind: str = "balanced", beta: float = 0.999) -> Tensor:
    """Weights of K classes from their training images: (K,) float64.

    kind: "balanced": N / (K n_c), so that every class adds N / K to Σ w;
        "inverse_sqrt": n_c^−½, scaled to mean 1;
        "effective_number": (1 − β) / (1 − β^n_c), scaled to mean 1 (Cui and others, CVPR 2019,
        arXiv 1901.05555); β = 0 weighs all alike.
    Raises `ValueError` for a class without images.
    """
    checks.choice("kind", kind, ("balanced", "inverse_sqrt", "effective_number"))
    checks.fraction(beta=beta)
    n = check_counts(counts)
    if kind == "balanced":
        return n.sum() / (len(n) * n)
    weights = n**-0.5 if kind == "inverse_sqrt" else (1 - beta) / (1 - beta**n)
    return weights / weights.mean()


def shifted(logits: Tensor, counts: Sequence[int], tau: float = 1.0) -> Tensor:
    """The free rival of class weights n^−τ: z_c − τ log n_c of finished logits (…, K).

    tau: 0 changes nothing, 1 answers as if all classes were equally frequent.
    """
    checks.at_least(0, tau=tau)
    n = check_counts(counts)
    if logits.shape[-1] != len(n):
        raise ValueError(f"logits are of {logits.shape[-1]} classes, counts of {len(n)}")
    return logits - tau * n.log().to(logits)


def check_counts(counts: Sequence[int]) -> Tensor:
    """Images per class as a tensor (K,) float64; each class must have one."""
    counts = [int(count) for count in counts]
    checks.integer(2, **{"len(counts)": len(counts)})
    checks.integer(1, **{f"counts[{c}]": count for c, count in enumerate(counts)})
    return torch.tensor(counts, dtype=torch.float64)


def count(labels: Tensor, num_classes: int) -> list[int]:
    """Images of each class; raises `ValueError` for a class that has none."""
    check_labels("labels", labels, num_classes)
    found = torch.bincount(labels, minlength=num_classes).tolist()
    if 0 in found:
        raise ValueError(
            f"labels: class {found.index(0)} of {num_classes} has no images; every class needs one"
        )
    return found


def check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    """Raise a `ValueError` unless these are whole numbers (n,) that name one of the classes."""
    checks.integer(2, num_classes=num_classes)
    checks.torch_tensor(**{name: labels})
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(
            f"{name} must be one integer per image, got {labels.dtype} of shape"
            f" {tuple(labels.shape)}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"{name} from {int(labels.min())} to {int(labels.max())} must be from 0 to"
            f" {num_classes - 1}"
        )


def malignant(labels: Tensor) -> Tensor:
    """The two-class task: types (n,) of `BREAKHIS` -> 0 benign, 1 malignant, (n,) int64."""
    check_labels("labels", labels, len(BREAKHIS))
    return (labels >= BENIGN).long()


# ---- Augmentation


def uniform(n: int, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def where(images: Tensor, changed: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """Each image changed with probability p: (b, c, h, w) twice -> the same."""
    chosen = torch.rand(len(images), generator=generator) < p
    return torch.where(chosen.to(images.device)[:, None, None, None], changed, images)


def regular(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Flips, each way with probability ½: (b, c, h, w) float -> the same."""
    check_images(images)
    images = where(images, images.flip(3), 0.5, generator)
    return where(images, images.flip(2), 0.5, generator)


def intensive(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The paper's list, in this order: (b, c, h, w) float in [0, 1] -> the same.

    Flips; turn by any angle, scale 0.85–1.15, shear ±0.1, shift by a tenth of half the side (one
    standard deviation), all in one resampling with reflection; brightness × 0.85–1.15; blur (1 2 1)
    with probability 0.3; noise with a deviation of 0 to 0.05. The strengths are ours. Scale stays
    narrow: the size of nuclei tells types apart.
    """
    images = moved(regular(images, generator), generator)
    n = len(images)
    column = (n, 1, 1, 1)
    bright = uniform(n, 0.85, 1.15, generator).view(column).to(images)
    images = images * bright
    images = where(images, blurred(images), 0.3, generator)
    deviation = uniform(n, 0, 0.05, generator).view(column).to(images)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return (images + deviation * noise).clamp(0, 1)


def moved(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Turned, scaled, sheared and shifted, what lies outside filled by reflection."""
    n = len(images)
    turn = uniform(n, 0, 2 * math.pi, generator)
    scale = uniform(n, 0.85, 1.15, generator)
    shear = uniform(n, -0.1, 0.1, generator)
    shift = 0.1 * torch.randn(n, 2, generator=generator)
    cos, sin = turn.cos() / scale, turn.sin() / scale
    rows = torch.stack([cos, shear * cos - sin, sin, shear * sin + cos], dim=1).view(n, 2, 2)
    matrix = torch.cat([rows, shift[:, :, None]], dim=2).to(images)  # (b, 2, 3): where to look
    grid = F.affine_grid(matrix, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def blurred(images: Tensor) -> Tensor:
    """Each channel convolved with (1 2 1)ᵀ(1 2 1) / 16; the border repeats."""
    channels = images.shape[1]
    line = torch.tensor([0.25, 0.5, 0.25]).to(images)
    kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(images, [1] * 4, mode="replicate"), kernel, groups=channels)


def check_images(images: Tensor) -> None:
    checks.shapes({"images": "batch channels height width"}, images=images)
    checks.floating(images=images)


def grown(labels: Tensor, target: int) -> Tensor:
    """Which images to augment so that rare classes multiply: labels (n,) -> indices (m,) int64.

    Every image once, then those of each class with fewer than `target` again, in turns, until the
    class has `target`. Do this after splitting: before, copies of one image fall on both sides.
    """
    checks.integer(1, target=target)
    check_labels("labels", labels, max(2, int(labels.max()) + 1))
    indices = [torch.arange(len(labels))]
    for c in labels.unique():
        own = torch.nonzero(labels == c)[:, 0]
        missing = torch.arange(max(0, target - len(own)))
        indices.append(own[missing % len(own)])
    return torch.cat(indices)


# ---- Protocol


def split(
    labels: Tensor, patients: Tensor, test_share: float = 0.5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Whole patients to one side or the other: indices for training and for testing, int64.

    labels, patients: (n,) int64; a patient has one type. Of each type this share of its patients
    is for testing, rounded, at least one on each side. `patients=torch.arange(n)` splits by image,
    and lets a net recognise the patient. Raises `ValueError` where a class would be missing from a
    side, or a patient has two types.
    """
    checks.fraction(test_share=test_share)
    checks.shapes({"labels": "n", "patients": "n"}, labels=labels, patients=patients)
    check_labels("labels", labels, max(2, int(labels.max()) + 1))
    generator = torch.Generator().manual_seed(seed)
    test = torch.zeros(len(labels), dtype=torch.bool)
    seen: set[int] = set()
    for c in labels.unique().tolist():
        own = patients[labels == c].unique()
        if twice := seen & set(own.tolist()):
            raise ValueError(f"patients: {min(twice)} has images of two types")
        seen |= set(own.tolist())
        if len(own) < 2:
            raise ValueError(
                f"class {c} has one patient only: it would be missing from training or from the"
                " test; a split by patient needs two of each"
            )
        size = min(max(1, round(test_share * len(own))), len(own) - 1)
        chosen = own[torch.randperm(len(own), generator=generator)[:size]]
        test |= torch.isin(patients, chosen)
    return torch.nonzero(~test)[:, 0], torch.nonzero(test)[:, 0]


def start_from(model: nn.Module, source: nn.Module, classifier: str = "classifier") -> nn.Module:
    """The second stage: all weights and statistics of `source` but the classifier's, in place.

    classifier: name of the last layer. Raises `ValueError` where anything else differs in shape.
    """
    given = {n: t for n, t in source.state_dict().items() if not n.startswith(classifier + ".")}
    own = {n: t for n, t in model.state_dict().items() if not n.startswith(classifier + ".")}
    if len(own) == len(model.state_dict()):
        raise ValueError(f"classifier={classifier!r}: the model has no weights of that name")
    wrong = sorted(set(own) ^ set(given)) or [n for n in own if own[n].shape != given[n].shape]
    if wrong:
        raise ValueError(f"source does not fit: {wrong[0]} is missing from one or of another shape")
    model.load_state_dict(given, strict=False)
    return model


# ---- What a clinician reads


class Report(NamedTuple):
    """What became of the test images; rows of the confusion matrix are the truth."""

    confusion: Tensor  # (K, K) int64, or float64 where rows were weighted
    precision: Tensor  # (K,) float64: of what is named so, how much is; 0 where nothing is
    recall: Tensor  # (K,) float64: of what is so, how much is named
    f1: Tensor  # (K,) float64: harmonic mean of both
    accuracy: float  # share of right answers
    balanced: float  # mean recall over classes


def report(truth: Tensor, prediction: Tensor, num_classes: int) -> Report:
    """Truth and answers (n,) int64 -> what a clinician reads.

    Raises `ValueError` for a class without test images: its recall is not 0, it is unknown.
    """
    check_labels("prediction", prediction, num_classes)
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has {len(truth)} images, prediction {len(prediction)}")
    count(truth, num_classes)
    pairs = truth * num_classes + prediction
    return of_confusion(torch.bincount(pairs, minlength=num_classes**2).view(num_classes, -1))


def of_confusion(confusion: Tensor) -> Report:
    """The report of a matrix (K, K)."""
    checks.shapes({"confusion": "classes classes"}, confusion=confusion)
    right = confusion.diagonal().double()
    named, there = confusion.sum(0).double(), confusion.sum(1).double()
    if not there.all():
        raise ValueError(f"confusion: class {int(there.argmin())} has no images in its row")
    precision = right / named.clamp(min=torch.finfo(torch.float64).tiny)
    f1 = 2 * right / (named + there)
    recall = right / there
    accuracy = float(right.sum() / there.sum())
    return Report(confusion, precision, recall, f1, accuracy, float(recall.mean()))


def at_shares(confusion: Tensor, counts: Sequence[int]) -> Report:
    """The report as it would be where classes are as frequent as `counts`: rows are weighted.

    Recall does not move, precision and accuracy do: both depend on how frequent a disease is.
    """
    n = check_counts(counts)
    recall = of_confusion(confusion)
    if len(n) != len(recall.recall):
        raise ValueError(f"confusion is of {len(recall.recall)} classes, counts of {len(n)}")
    rows = confusion.double() / confusion.sum(1, keepdim=True)
    return of_confusion(rows * n[:, None] / n.sum())


def interval(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of n trials, 95 % for z = 1.96; right for 0 and 1, too.

    Images of one patient are no independent trials: with the number of *patients* for n it is
    cautious, with that of images too narrow.
    """
    checks.positive(n=n, z=z)
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must be between 0 and 1")
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if share == 0 else centre - half
    high = 1.0 if share == 1 else centre + half
    return low, high


MODEL = efficientnet.EfficientNet
VARIANTS: dict[str, dict] = {  # the letter is not stated; others: efficientnet_tf_b1 …
    "b0": efficientnet.VARIANTS["tf_b0"] | dict(num_classes=len(BREAKHIS)),
}
