"""DeiT-LT: a small convolutional network teaches a transformer what the rare classes look like.

Rangwani, Mondal, Mishra, Asokan, Babu, *DeiT-LT: Distillation Strikes Back for Vision Transformer
Training on Long-Tailed Datasets*, CVPR 2024, arXiv 2404.02900. Official code: val-iisc/DeiT-LT,
commit bc369700932a950fa8535df80b37f973ac7aae11 (MIT).

The idea
    1. The network is DeiT's: a class token (CLS) learns from labels, a distillation token (DIST)
       from the class that a teacher names. The answer is the mean of both.
    2. The teacher is a ResNet that learned from plain images. Shown the *mixed* images (mixup,
       CutMix) of the student, which it never trained on, it also names rare classes.
    3. Late in training mixing stops, and rare classes weigh more, for the DIST token alone.
    4. The teacher was trained by SAM, which looks for flat minima.

With x̃, ỹ mixed from two images and labels, and n_c images of class c:

    before epoch K   L = ½ CE(cls(x̃), ỹ) + ½ CE(dist(x̃), t),          t = argmax teacher(x̃)
    from epoch K on  L = ½ CE(cls(x), y) + ½ Σ_i w_{t_i} CE_i / Σ_i w_{t_i},   t = argmax teacher(x)
    weights          e_c = (1 − β^{n_c}) / (1 − β),     w_c = C (1/e_c) / Σ_k (1/e_k)
    SAM              ε = ρ g / ‖g‖,     w ← w − lr ∇L(w + ε)

Cost: a training step pays the teacher's forward pass besides; inference pays for one more token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

from refimpl import checks
from refimpl.bases.deit import SIZES, VisionTransformer

Network = Callable[[Tensor], Tensor]  # images (b, c, h, w) -> logits (b, k)


def two_experts_loss(
    student: VisionTransformer,
    teacher: Network,
    images: Tensor,
    labels: Tensor,
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The losses of the class token and of the distillation token, to be averaged."""
    targets = labels  # (b,) classes
    if mix is not None:  # before epoch K
        images, targets = mix(images, labels)  # x̃ (b, c, h, w), ỹ (b, k)
    with torch.no_grad():
        taught = teacher(images).argmax(1)  # t (b,): what the teacher sees in x̃
    cls, dist = student.forward_classifiers(images)  # (b, k) each
    cls_loss = F.cross_entropy(cls, targets)
    dist_loss = F.cross_entropy(dist, taught, class_weights)  # weighted mean, from epoch K on
    return cls_loss, dist_loss


class DeferredLoss:
    """The recipe's loss, called once a training step: (student, images, labels) -> one number.

    deferred_from: the step from which mixing stops and the DIST token's classes are weighted.
    counts: training images per class; beta: see `class_weights`. The teacher is called in
    evaluation mode and keeps its own.
    """

    def __init__(
        self,
        teacher: nn.Module,
        counts: Sequence[int],
        deferred_from: int,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
        beta: float = 0.9999,
    ):
        checks.integer(0, deferred_from=deferred_from)
        self.teacher, self.mix = teacher, mix
        self.deferred_from = deferred_from
        self.weights = class_weights(counts, beta).float()
        self.step = 0

    def __call__(self, student: VisionTransformer, images: Tensor, labels: Tensor) -> Tensor:
        late = self.step >= self.deferred_from
        self.step += 1
        check_labels(labels, len(self.weights))
        training = self.teacher.training
        mix = None if late else self.mix
        weights = self.weights.to(images.device) if late else None
        losses = two_experts_loss(student, self.teacher.eval(), images, labels, mix, weights)
        self.teacher.train(training)
        return sum(losses) / 2


def soft_distillation(
    dist: Tensor, teacher_logits: Tensor, temperature: float = 3.0, weights: Tensor | None = None
) -> Tensor:
    """The released alternative to hard labels, in no recipe: KL(teacher ‖ student) τ² / (b k).

    dist, teacher_logits: (b, k). weights: of classes (k,); as released they multiply the teacher's
    *log*-probabilities, which are then divided by their sum: no distribution any more.
    """
    checks.positive(temperature=temperature)
    student = (dist / temperature).log_softmax(1)
    teacher = (teacher_logits / temperature).log_softmax(1)
    if weights is not None:
        teacher = teacher * weights
        teacher = teacher / teacher.sum(1, keepdim=True)
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return divergence * temperature**2 / dist.numel()


# ---- The long tail


def class_counts(
    num_classes: int, imbalance: float, most: int, kind: str = "exponential"
) -> list[int]:
    """Images per class: from `most` down to about `most / imbalance`.

    kind: "exponential": ⌊most · imbalance^(−c / (C − 1))⌋; "step": the first half of the classes
    has `most`, the second half the least. Long-tailed CIFAR: most is 50,000 / C.
    """
    checks.integer(2, num_classes=num_classes)
    checks.at_least(1, imbalance=imbalance)
    checks.choice("kind", kind, ("exponential", "step"))
    share = 1 / imbalance
    if kind == "step":
        half = num_classes // 2
        counts = [int(most)] * half + [int(most * share)] * (num_classes - half)
    else:
        counts = [int(most * share ** (c / (num_classes - 1.0))) for c in range(num_classes)]
    if counts[-1] < 1:
        raise ValueError(
            f"most={most} at imbalance={imbalance} leaves class {num_classes - 1} without images"
        )
    return counts


def draw_long_tail(labels: Tensor, counts: Sequence[int], seed: int = 0) -> Tensor:
    """Which images stay: labels (n,) int64 -> indices (Σ counts,) int64, class after class.

    The official choice: NumPy's legacy generator shuffles each class in turn, the first stay.
    Raises `ValueError` where a class has fewer images than are wanted of it.
    """
    checks.integer(1, **{f"counts[{c}]": count for c, count in enumerate(counts)})
    check_labels(labels, len(counts))
    generator = np.random.RandomState(seed)
    kept = []
    for c, count in enumerate(counts):
        of_class = np.flatnonzero(labels.numpy() == c)
        if len(of_class) < count:
            raise ValueError(
                f"counts[{c}]={count} must be at most {len(of_class)}: class {c} has no more images"
            )
        generator.shuffle(of_class)
        kept.append(of_class[:count])
    return torch.from_numpy(np.concatenate(kept))


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise a `ValueError` unless labels are whole numbers (b,) that name one of the classes."""
    checks.torch_tensor(labels=labels)
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(
            f"labels must be one integer per image, got {labels.dtype} of shape"
            f" {tuple(labels.shape)}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())} must be from 0 to"
            f" {num_classes - 1}: counts names {num_classes} classes"
        )


def class_weights(counts: Sequence[int], beta: float = 0.9999) -> Tensor:
    """w_c, in inverse proportion to the effective number of images e_c: (C,) float64, mean 1.

    e_c = (1 − β^n_c) / (1 − β) is n_c for few images and never above 1 / (1 − β): near-copies add
    nothing (Cui and others, CVPR 2019, arXiv 1901.05555). Raises `ValueError` for a class without
    images.
    """
    checks.integer(1, **{f"counts[{c}]": int(count) for c, count in enumerate(counts)})
    checks.fraction(beta=beta)
    inverse = (1 - beta) / (1 - beta ** torch.tensor(list(counts), dtype=torch.float64))
    return inverse * len(inverse) / inverse.sum()


def groups(num_classes: int, borders: tuple[int, int]) -> dict[str, slice]:
    """Classes of head, middle and tail; borders: the first class of the middle, and of the tail."""
    middle, tail = borders
    if not 0 < middle < tail < num_classes:
        raise ValueError(f"borders={borders} must rise, from 1 to {num_classes - 1}")
    return {"head": slice(middle), "middle": slice(middle, tail), "tail": slice(tail, num_classes)}


def group_accuracy(
    answers: Tensor, labels: Tensor, num_classes: int, borders: tuple[int, int]
) -> dict[str, float]:
    """Share of right answers (n,) int64, overall and of each group: every class counts alike.

    Raises `ValueError` for a class without test images.
    """
    check_labels(labels, num_classes)
    sizes = torch.bincount(labels, minlength=num_classes)
    if not sizes.all():
        raise ValueError(f"class {int(sizes.argmin())} has no images to be tested on")
    right = torch.bincount(labels[answers == labels], minlength=num_classes) / sizes
    found = {
        name: float(right[where].mean()) for name, where in groups(num_classes, borders).items()
    }
    return {"overall": float(right.mean())} | found


@dataclass(frozen=True)
class Recipe:
    """How one data set is trained for. Borders as in `groups`, deferred_from is the paper's K."""

    num_classes: int
    borders: tuple[int, int]
    epochs: int
    deferred_from: int
    teacher_size: int  # pixels that the teacher sees; the student has 224


RECIPES: dict[str, Recipe] = {
    "cifar10": Recipe(10, (3, 7), 1200, 1100, 32),
    "cifar100": Recipe(100, (36, 71), 1200, 1100, 32),
    "imagenet_lt": Recipe(1000, (390, 835), 1400, 1200, 224),
    "inaturalist": Recipe(8142, (842, 4543), 1000, 900, 224),
}


# ---- What student and teacher see


def soft_labels(labels: Tensor, num_classes: int, smoothing: float = 0.1) -> Tensor:
    """1 − s + s/C on the class, s/C elsewhere: (b,) int64 -> (b, num_classes) float32."""
    check_labels(labels, num_classes)
    return F.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


class Mix:
    """Mixup or CutMix, one for the batch: images (b, c, h, w), labels (b,) -> x̃, ỹ (b, C).

    Image i is mixed with image b − 1 − i. With probability `switch` CutMix puts a box of the
    partner into the image, its share drawn from Beta(cutmix, cutmix); else mixup blends both,
    by a share from Beta(mixup, mixup). ỹ are smoothed labels in the same shares.
    seed: of this object's own generator. Follows timm's batch mode.
    """

    def __init__(
        self,
        num_classes: int,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        switch: float = 0.5,
        smoothing: float = 0.1,
        seed: int = 0,
    ):
        checks.integer(2, num_classes=num_classes)
        checks.positive(mixup=mixup, cutmix=cutmix)
        checks.fraction(smoothing=smoothing)
        if not 0 <= switch <= 1:
            raise ValueError(f"switch={switch} must be between 0 and 1")
        self.num_classes, self.smoothing = num_classes, smoothing
        self.mixup, self.cutmix, self.switch = mixup, cutmix, switch
        self.generator = np.random.default_rng(seed)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        own = soft_labels(labels, self.num_classes, self.smoothing)
        if self.generator.random() < self.switch:
            images, share = self.cut(images)
        else:
            share = self.generator.beta(self.mixup, self.mixup)
            images = share * images + (1 - share) * images.flip(0)
        return images, share * own + (1 - share) * own.flip(0)

    def cut(self, images: Tensor) -> tuple[Tensor, float]:
        """CutMix: images with a box of their partner, and what share of each is left."""
        height, width = images.shape[2:]
        side = math.sqrt(1 - self.generator.beta(self.cutmix, self.cutmix))
        spans = []
        for length in (height, width):
            centre = int(self.generator.integers(length))
            half = int(length * side) // 2
            spans.append(slice(max(centre - half, 0), min(centre + half, length)))
        rows, columns = spans
        mixed = images.clone()
        mixed[:, :, rows, columns] = images.flip(0)[:, :, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return mixed, 1 - area / (height * width)


class SeenAt(nn.Module):
    """A teacher for images of its own size, bicubically resized: any images -> its logits."""

    def __init__(self, teacher: nn.Module, size: int):
        super().__init__()
        checks.integer(1, size=size)
        self.teacher, self.size = teacher, size

    def forward(self, images: Tensor) -> Tensor:
        size = (self.size, self.size)
        return self.teacher(F.interpolate(images, size, mode="bicubic", align_corners=False))


def repeated_indices(
    n: int, epoch: int, replicas: int = 1, rank: int = 0, repeats: int = 3
) -> Tensor:
    """Repeated augmentation: which images one of `replicas` workers takes in an epoch, (k,) int64.

    Every image stands `repeats` times in a row, each time augmented anew; workers take turns.
    An epoch still has about n images, a multiple of 256. Hoffer and others, CVPR 2020.
    """
    checks.integer(256, n=n)
    checks.integer(1, replicas=replicas, repeats=repeats)
    if not 0 <= rank < replicas:
        raise ValueError(f"rank={rank} must be from 0 to {replicas - 1}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(epoch))
    order = order.repeat_interleave(repeats)
    missing = -len(order) % replicas
    order = torch.cat([order, order[:missing]])
    return order[rank::replicas][: n // 256 * 256 // replicas]


# ---- The teacher's flat minimum, and the rank of what is learned


def sharpness_aware_loss(
    model: nn.Module, loss: Callable[[Network], Tensor], rho: float = 0.05
) -> Tensor:
    """SAM: L(w + ε), ε = ρ g / ‖g‖ the steepest step up; `backward()` leaves ∇L(w + ε) at w.

    loss: given a network, its loss on this step's batch, for example
    `lambda net: F.cross_entropy(net(images), labels)`. Foret and others, ICLR 2021,
    arXiv 2010.01412. It costs two forward and two backward passes.
    """
    checks.positive(rho=rho)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss(model), list(learned.values()), allow_unused=True)
    found = {
        name: gradient
        for name, gradient in zip(learned, gradients, strict=True)
        if gradient is not None
    }
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    shifted = {name: learned[name] + rho * g / (norm + 1e-12) for name, g in found.items()}

    def steepest(images: Tensor) -> Tensor:
        return functional_call(model, shifted, (images,))

    return loss(steepest)


def rank_of_features(features: Tensor, share: float = 0.99) -> int:
    """How many principal components hold this share of the variance of features (n, d).

    Our definition: the paper plots ranks, the official code does not compute them.
    """
    checks.shapes({"features": "n d"}, features=features)
    checks.at_least(2, **{"len(features)": len(features)})
    checks.fraction(share=share)
    centred = features.double() - features.double().mean(0)
    held = torch.linalg.svdvals(centred).square().cumsum(0)
    if not held[-1] > 0:
        raise ValueError("features are all equal: they have no variance")
    return int((held < share * held[-1]).sum()) + 1


# ---- The student


def resize_positions(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Positions for another image size: (1, 2 + rows · columns, c) -> the same for `new_grid`.

    Those of the two tokens stay. The others are interpolated bicubically, at the released scale,
    (new rows + 0.1) / rows, which guards against rounding and shifts the samples by a trifle.
    """
    special, patches = table[:, :2], table[:, 2:]
    if patches.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"grid={grid} does not fit the {patches.shape[1]} patches of the table")
    if grid == new_grid:
        return table
    scale = [(new + 0.1) / old for new, old in zip(new_grid, grid, strict=True)]
    patches = rearrange(patches, "1 (h w) c -> 1 c h w", h=grid[0])
    patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    return torch.cat([special, rearrange(patches, "1 c h w -> 1 (h w) c")], dim=1)


VARIANTS: dict[str, dict] = {
    name: size | dict(distilled=True, drop_path_rate=0.1) for name, size in SIZES.items()
}
MODEL = VisionTransformer
