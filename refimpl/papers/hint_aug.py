"""Hint-Aug: what a pretrained network knows helps to augment a handful of images.

Yu, Wu, Fu, Zhang, Lin, *Hint-Aug: Drawing Hints from Foundation Vision Transformers Towards Boosted
Few-Shot Parameter-Efficient Tuning*, CVPR 2023, arXiv 2304.12520. Official code:
GATECH-EIC/Hint-Aug, commit 575116ae274cafe39c0121aac31d69a9a0bebd43 (MIT).

The idea
    1. A large pretrained transformer is frozen and tuned by few parameters (adapters, LoRA,
       prompts; `bases/parameter_efficient.py`) on few images per class.
    2. Where does tuning over-fit? In the patch whose attention has moved most against the
       pretrained network's, which is still there to be asked (the detector).
    3. Towards what should that patch be disturbed? Towards the classes that the image's own class
       is taken for, as logits of the training images tell (the confusion).
    4. A second step of training is taken on the disturbed images, under their true labels.

With attention a of block l, query token k, pretrained (P) and tuned (T), logits f, images X:

    s_j    = Σ_heads a_kj                                    score of patch j
    fired  = Σ_j |s_j^P − s_j^T| ≥ λ Σ_j |s_j^P|
    p      = argmax_j |s_j^P − s_j^T| if fired, else argmax_j s_j^T
    C_iy   = Σ_{X of class y} f_i(X) − min_i' f_i'(X)
    t_i    = C_iy / Σ_{j≠y} C_jy,   t_y = 0
    X'     = X − ε sign(∂/∂X CE(f(X), softmax t)) in patch p, X elsewhere

As released, the code does none of 2 and 3: see the last part, and the chapter.

Cost of a training step: an ordinary step twice, and besides two passes through the first l blocks
and one forward and backward pass through the whole network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from refimpl import checks
from refimpl.bases.parameter_efficient import TunedTransformer

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation per channel
QUERIES = ("centre", "class", "mean")
Bound = float | Tensor  # one number, or (c, 1, 1): one per channel


def hint_augmented(
    model: TunedTransformer,
    images: Tensor,
    labels: Tensor,
    scores: tuple[Tensor, Tensor],
    likely: Tensor,
    epsilon: Bound,
    threshold: float = 0.1,
    bounds: tuple[Bound, Bound] = (0.0, 1.0),
) -> tuple[Tensor, Tensor, Tensor]:
    """Images disturbed in one patch each; that patch (b,); whether the detector fired (b,)."""
    before, after = scores  # s^P and s^T, (b, n) each
    drift = (before - after).abs()
    fired = drift.sum(1) >= threshold * before.abs().sum(1)
    patch = torch.where(fired, drift.argmax(1), after.argmax(1))  # p
    likely = likely.scatter(1, labels[:, None], 0.0)  # C_iy of each image's y, its own 0
    target = (likely / likely.sum(1, keepdim=True)).softmax(1)  # softmax t: (b, k)
    inside = patch_mask(model, patch[:, None])  # (b, 1, h, w)
    disturbed = pushed(model, images, inside, target, epsilon, bounds)
    return disturbed, patch, fired


def pushed(
    model: TunedTransformer,
    images: Tensor,
    inside: Tensor,
    target: Tensor,
    epsilon: Bound,
    bounds: tuple[Bound, Bound] = (0.0, 1.0),
) -> Tensor:
    """Pixels inside, one signed-gradient step down the cross-entropy to target (b, k), clipped.

    inside: (b, 1, h, w) bool; epsilon: the step, in the images' units, below 0 to climb; bounds: of
    a valid pixel.
    """
    leaf = images.detach().requires_grad_()
    loss = F.cross_entropy(model(leaf), target, reduction="sum")  # each image has its own slope
    (slope,) = torch.autograd.grad(loss, leaf)
    moved = (images - epsilon * slope.sign()).clamp(*as_tensors(bounds, images))
    return torch.where(inside, moved, images)


# ---- Where: attention scores


@torch.no_grad()
def attention_scores(
    model: TunedTransformer, images: Tensor, block: int = 4, query: str = "centre"
) -> Tensor:
    """s_j: attention that each patch gets from one query, summed over heads: (b, n).

    block: counted from 0, as the paper's l = 5 is the fifth. query: "centre", the patch left above
    the middle (number 90 of 14×14, as in the paper); "class", the class token; "mean" over all
    tokens (which the released code takes).
    """
    checks.choice("query", query, QUERIES)
    heads = model.attention_of(images, block).sum(1)  # (b, 1 + P + n, 1 + P + n)
    prefix = model.layout.prefix
    if query == "mean":
        return heads.mean(1)[:, prefix:]
    rows, columns = model.layout.grid
    centre = prefix + (rows - 1) // 2 * columns + (columns - 1) // 2
    return heads[:, 0 if query == "class" else centre, prefix:]


def patch_mask(model: TunedTransformer, patches: Tensor) -> Tensor:
    """Whether a pixel lies in one of an image's patches (b, m) int64: (b, 1, h, w) bool."""
    rows, columns = model.layout.grid
    if len(patches) and not 0 <= int(patches.min()) <= int(patches.max()) < rows * columns:
        raise ValueError(f"patches must be from 0 to {rows * columns - 1}, got {patches.tolist()}")
    chosen = F.one_hot(patches, rows * columns).sum(1).bool()  # (b, n)
    grid = rearrange(chosen, "b (h w) -> b 1 h w", h=rows)
    size = model.patch_embed.patch_size
    return grid.repeat_interleave(size, 2).repeat_interleave(size, 3)


# ---- Towards what: the confusion of logits


def logit_confusion(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Row y: Σ over samples of class y of f − min f, that is C transposed: (k, k).

    logits: (b, k); labels: (b,) int64. Rows add up over batches. Raises `ValueError` for labels
    that name no class.
    """
    check_labels(labels, num_classes)
    checks.shapes({"logits": f"samples {num_classes}"}, logits=logits)
    lifted = logits - logits.amin(1, keepdim=True)  # the least likely class gets nothing
    rows = logits.new_zeros(num_classes, num_classes)
    return rows.index_add(0, labels, lifted)


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise a `ValueError` unless labels are whole numbers (b,) that name one of the classes."""
    checks.shapes({"labels": "samples"}, labels=labels)
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())} must be from 0 to"
            f" {num_classes - 1}"
        )


# ---- Training


def draw_shots(labels: Tensor, shots: int, num_classes: int, seed: int = 0) -> Tensor:
    """Which samples a few-shot set has: labels (n,) int64 -> indices (shots · num_classes,).

    Raises `ValueError` for a class with fewer samples than shots.
    """
    checks.integer(1, shots=shots, num_classes=num_classes)
    check_labels(labels, num_classes)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for c in range(num_classes):
        of_class = (labels == c).nonzero()[:, 0]
        if len(of_class) < shots:
            raise ValueError(
                f"shots={shots} must be at most {len(of_class)}, which is all that class {c} has"
            )
        drawn.append(of_class[torch.randperm(len(of_class), generator=generator)[:shots]])
    return torch.cat(drawn)


class HintAug:
    """The paper's augmentation, called on a batch: (model, images, labels) -> images.

    pretrained: the network before tuning; kept in evaluation mode, asked without gradients.
    epsilon: radius in pixel values of [0, 1]; mean, std: how images were normalised, one number per
    channel. block, query: see `attention_scores`; threshold: λ.

    `observe` collects the confusion of an epoch, `end_epoch` puts it to use; before the first end
    of an epoch images are left alone.
    """

    def __init__(
        self,
        pretrained: TunedTransformer,
        num_classes: int,
        epsilon: float = 0.001,
        threshold: float = 0.1,
        block: int = 4,
        query: str = "centre",
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
    ):
        checks.positive(epsilon=epsilon, **{f"std[{i}]": value for i, value in enumerate(std)})
        checks.at_least(0, threshold=threshold)
        checks.integer(2, num_classes=num_classes)
        checks.choice("query", query, QUERIES)
        self.pretrained = pretrained.eval()
        self.num_classes, self.threshold = num_classes, threshold
        self.block, self.query = block, query
        self.epsilon, self.bounds = in_units(epsilon, mean, std)
        self.confusion: Tensor | None = None
        self.collected = torch.zeros(num_classes, num_classes)

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Take a training batch's logits (b, k) into the confusion of this epoch."""
        rows = logit_confusion(logits.detach(), labels, self.num_classes)
        self.collected = self.collected.to(rows.device) + rows

    def end_epoch(self) -> None:
        """Use what was observed since the last end. `ValueError` for a class without samples."""
        empty = (self.collected.sum(1) == 0).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(f"confusion: no samples of class {empty[0]} were observed")
        self.confusion = self.collected
        self.collected = torch.zeros_like(self.collected)

    def __call__(self, model: TunedTransformer, images: Tensor, labels: Tensor) -> Tensor:
        if self.confusion is None:
            return images
        check_labels(labels, self.num_classes)
        likely = self.confusion[labels]
        epsilon, low, high = as_tensors((self.epsilon, *self.bounds), images)
        limits = (epsilon, self.threshold, (low, high))
        training = model.training
        model.eval()  # asked without dropout
        before = attention_scores(self.pretrained, images, self.block, self.query)
        after = attention_scores(model, images, self.block, self.query)
        disturbed, *_ = hint_augmented(model, images, labels, (before, after), likely, *limits)
        model.train(training)
        return disturbed


Augment = Callable[[TunedTransformer, Tensor, Tensor], Tensor]  # model, images, labels -> images


def tuning_step(
    model: TunedTransformer,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    augment: Augment | None = None,
) -> Tensor:
    """An ordinary step, then one on `augment`'s images; returns the first step's logits (b, k).

    augment: a `HintAug`, or any rival of it; it sees the model as the first step left it. `None`:
    one step only.
    """
    first = model(images)
    descend(optimizer, F.cross_entropy(first, labels))
    if augment is not None:
        disturbed = augment(model, images, labels)
        descend(optimizer, F.cross_entropy(model(disturbed), labels))  # the true labels
    return first.detach()


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def as_tensors(values: tuple[Bound, ...], like: Tensor) -> tuple[Tensor, ...]:
    """Numbers and tensors as tensors of this one's kind and device."""
    return tuple(torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in values)


def in_units(
    epsilon: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """ε and the bounds 0 and 1 of a pixel, in units of normalised images: (c, 1, 1) each."""
    shift = torch.tensor(mean).view(-1, 1, 1)
    scale = torch.tensor(std).view(-1, 1, 1)
    return epsilon / scale, ((0 - shift) / scale, (1 - shift) / scale)


# ---- As released


def released_scores(attention: Tensor, prefix: int = 1) -> Tensor:
    """Attention maps (b, heads, n, n) -> scores of the patches behind the prefix, (b, n − prefix).

    Mean over heads; each *column* scaled to length 1; mean over queries. A column of length 1 has a
    mean of at most 1/√n, so two scores never differ by more.
    """
    heads = attention.mean(1)
    return F.normalize(heads, dim=1).mean(1)[:, prefix:]


def released_patches(
    pretrained: Tensor, tuned: Tensor, prefixes: tuple[int, int] = (1, 1), threshold: float = 0.7
) -> Tensor:
    """The two patches that the released detector chooses, from two attention maps: (b, 2).

    Above the threshold (never, see `released_scores`) those where pretrained − tuned is largest;
    else the two that get the most attention in the tuned network.
    """
    drift = released_scores(pretrained, prefixes[0]) - released_scores(tuned, prefixes[1])
    if drift.abs().max() > threshold:
        return drift.topk(2).indices
    return tuned.mean((1, 2))[:, prefixes[1] :].topk(2).indices


def released_attack(
    model: TunedTransformer, images: Tensor, patches: Tensor, noise: Tensor, epsilon: float = 0.001
) -> Tensor:
    """What the released attack computes: patches (b, m) with noise of radius ε, no gradient.

    images: normalised by ImageNet's mean and deviation; noise: uniform in [0, 1], (b, c, h, w).
    """
    radius, bounds = in_units(epsilon, *IMAGENET)
    low, high = as_tensors(bounds, images)
    radius = radius.to(images)
    noisy = images + (2 * radius * noise - radius)  # in this order: bit for bit as released
    return torch.where(patch_mask(model, patches), noisy.clamp(low, high), images)


def restored_attack(
    model: TunedTransformer,
    images: Tensor,
    patches: Tensor,
    target: Tensor,
    noise: Tensor,
    iterations: int = 1,
    epsilon: float = 0.001,
    lr: float = 0.1,
) -> Tensor:
    """The released attack with its commented-out loss: Adam *raises* CE(f(X'), target).

    epsilon: 0 for no limit, the patch then starts as noise. Otherwise as `released_attack`.
    """
    radius, bounds = in_units(epsilon, *IMAGENET)
    bounds = as_tensors(bounds, images)
    radius = radius.to(images)
    mask = patch_mask(model, patches)
    start = released_attack(model, images, patches, noise, epsilon)
    if not epsilon:
        start = bounds[0] + noise * (bounds[1] - bounds[0])
    pixels = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=lr, maximize=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.95)
    for _ in range(iterations):
        descend(optimizer, F.cross_entropy(model(torch.where(mask, pixels, images)), target))
        schedule.step()
        with torch.no_grad():
            if epsilon:
                pixels.copy_(pixels.clamp(images - radius, images + radius))
            pixels.clamp_(*bounds)
    return torch.where(mask, pixels, images).detach()


def released_label(confusion: Tensor, labels: Tensor) -> Tensor:
    """softmax of the summed logits, the own class among them: (k, k), (b,) -> (b, k)."""
    return confusion[labels].softmax(1)


def released_target(labels: Tensor, num_classes: int) -> Tensor:
    """What the disturbed image is to be taken for: 1 at the class, 0.1 elsewhere, (b, k)."""
    return F.one_hot(labels, num_classes) * 0.9 + 0.1


def released_rows(counts: Tensor) -> Tensor:
    """An option: counts of mistakes (k, k), own class zeroed, each row divided by its sum."""
    mistakes = counts.clone().fill_diagonal_(0)
    return mistakes / mistakes.sum(1, keepdim=True)


def released_projection(gradients: Tensor, others: Tensor) -> Tensor:
    """PCGrad as released, (b, n) each: where two disagree, g − (g·h / ‖h‖) h.

    Divided by ‖h‖², which the name promises, nothing of h would be left in g.
    """
    agreement = (gradients * others).sum(1, keepdim=True)
    along = agreement / others.norm(dim=1, keepdim=True) * others
    return torch.where(agreement < 0, gradients - along, gradients)


VARIANTS: dict[str, dict] = {
    "adapter": dict(adapter_dim=8, drop_path_rate=0.1),
    "lora": dict(lora_rank=8, drop_path_rate=0.1),
    "vpt": dict(num_prompts=5, drop_path_rate=0.1),
}
MODEL = TunedTransformer
