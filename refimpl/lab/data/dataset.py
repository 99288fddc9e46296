"""Images and labels in two parts, and how smaller training parts are drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refimpl import checks


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, split into a training and a test part."""

    images: Tensor  # (n, c, h, w) float32
    labels: Tensor  # (n,) or (n, h, w) int64 classes, or (n, classes) float32 of 0 and 1
    classes: tuple[str, ...]  # their names
    train: Tensor  # (k,) int64 indices
    test: Tensor  # (m,) int64 indices, none of them in `train`
    source: str = ""  # origin and licence

    @property
    def train_images(self) -> Tensor:
        return self.images[self.train]

    @property
    def train_labels(self) -> Tensor:
        return self.labels[self.train]

    @property
    def test_images(self) -> Tensor:
        return self.images[self.test]

    @property
    def test_labels(self) -> Tensor:
        return self.labels[self.test]

    def few_shot(self, shots: int, seed: int = 0) -> Dataset:
        """The same test part with only `shots` training images of every class.

        Raises `ValueError` where a class has fewer, or where labels are not one integer per image.
        """
        checks.integer(1, shots=shots)
        least = min(self.class_counts())
        if shots > least:
            raise ValueError(
                f"shots={shots} must be at most {least}, the training images of the rarest class"
            )
        return self.drawn([shots] * len(self.classes), seed)

    def long_tailed(self, imbalance: float, seed: int = 0) -> Dataset:
        """The same test part with training images whose number falls from class to class.

        Class c of C keeps ⌊n · imbalance^(−c / (C − 1))⌋, with n the count of the rarest class:
        the first class n, the last n / imbalance (Cui et al. 2019, as long-tailed CIFAR).
        Raises `ValueError` where imbalance is below 1 or leaves the last class empty, or where
        labels are not one integer per image.
        """
        least = min(self.class_counts())
        if not 1 <= imbalance <= least:
            raise ValueError(
                f"imbalance={imbalance} must be between 1 and {least}, the training images of the"
                " rarest class"
            )
        last = max(len(self.classes) - 1, 1)
        counts = [int(least * (1 / imbalance) ** (c / last)) for c in range(len(self.classes))]
        return self.drawn([max(count, 1) for count in counts], seed)

    def class_counts(self) -> list[int]:
        """How many training images each class has."""
        if self.labels.dim() != 1:
            raise ValueError(
                f"labels of shape {tuple(self.labels.shape)} have no classes to draw from; wanted"
                " one integer per image"
            )
        return torch.bincount(self.train_labels, minlength=len(self.classes)).tolist()

    def drawn(self, counts: Sequence[int], seed: int) -> Dataset:
        """Training images drawn at random, `counts[c]` of class c."""
        generator = torch.Generator().manual_seed(seed)
        labels = self.train_labels
        picked = []
        for c, count in enumerate(counts):
            of_class = self.train[labels == c]
            picked.append(of_class[torch.randperm(len(of_class), generator=generator)[:count]])
        return replace(self, train=torch.cat(picked).sort().values)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.images.shape[1:]))
        return (
            f"Dataset({len(self.train)} training and {len(self.test)} test images of {shape},"
            f" {len(self.classes)} classes)"
        )


def split(
    images: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    test_share: float = 0.25,
    seed: int = 0,
    source: str = "",
) -> Dataset:
    """A `Dataset` with a random test part of `round(test_share · n)` images."""
    if len(images) != len(labels):
        raise ValueError(
            f"split: len(images)={len(images)} and len(labels)={len(labels)} must be equal"
        )
    count = round(test_share * len(images))
    if not 0 < count < len(images):
        raise ValueError(
            f"split: test_share={test_share} of {len(images)} images leaves a part empty"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train = order[count:].sort().values
    test = order[:count].sort().values
    return Dataset(images, labels, tuple(classes), train, test, source)
