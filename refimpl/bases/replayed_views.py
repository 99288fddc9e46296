"""Views that one integer replays: a picture's random augmentation, and a teacher's label for it.

As TinyViT draws and replays them: Wu and others, *TinyViT: Fast Pretraining Distillation for Small
Vision Transformers*, ECCV 2022, arXiv 2207.10666; microsoft/Cream @ 4a13c40,
TinyViT/data/augmentation (random numbers, mixing of pairs) and save_logits.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from refimpl import checks
from refimpl.bases.teacher_records import SEEDS, RecordWriter, TeacherRecords, sample


class ReplayedRandom:
    """The random numbers of one view: the same seed gives the same view, on every machine.

    All methods draw from one `numpy.random.PCG64` stream in the order in which they are called, and
    as the official code turns that stream into numbers.
    """

    def __init__(self, seed: int):
        checks.integer(0, seed=seed)
        self.generator = np.random.Generator(np.random.PCG64(int(seed)))

    def random(self, shape: tuple[int, ...] | None = None) -> float | np.ndarray:
        """At least 0 and less than 1."""
        return self.generator.random(shape)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def randint(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return min(math.floor(self.random() * (high - low + 1)) + low, high)

    def gauss(self, mean: float, deviation: float, shape: tuple[int, ...] | None = None):
        return self.generator.normal(mean, deviation, shape)

    def beta(self, a: float, b: float) -> float:
        return self.generator.beta(a, b)


Augment = Callable[[object, ReplayedRandom], Tensor]  # picture, its random numbers -> view


def mix_pairs(
    images: Tensor,
    seeds: Sequence[int],
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    probability: float = 1.0,
    switch_probability: float = 0.5,
) -> tuple[Tensor, list[float]]:
    """Mix each two consecutive images with one another, as their two seeds say.

    images: (b, c, h, w), b even; seeds: b of them, stored with the images' labels; the XOR of a
    pair's drives the choice of mixup or CutMix, the ratio, and the box. An alpha of 0 switches that
    kind off. Returns the mixed images, and λ per pair as it was drawn: a box cut at the border
    leaves more than λ of the first image, which touches no label here, since the teacher labels the
    mixed image.
    """
    if len(images) % 2 or len(seeds) != len(images):
        raise ValueError(
            f"images and seeds must be equally many and even, got {len(images)} and {len(seeds)}"
        )
    checks.at_least(0, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
    mixed = images.clone()
    drawn = []
    for i in range(0, len(images), 2):
        rng = ReplayedRandom(int(seeds[i]) ^ int(seeds[i + 1]))
        pair = images[i : i + 2]
        ratio, box = draw_mix(
            rng, images.shape[2:], mixup_alpha, cutmix_alpha, probability, switch_probability
        )
        drawn.append(ratio)
        if box is None:
            mixed[i : i + 2] = pair * ratio + pair.flip(0) * (1 - ratio)
        else:
            mixed[i : i + 2, :, box[0], box[1]] = pair.flip(0)[:, :, box[0], box[1]]
    return mixed, drawn


def draw_mix(
    rng: ReplayedRandom,
    size: tuple[int, int],
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: float,
    switch_probability: float,
) -> tuple[float, tuple[slice, slice] | None]:
    """λ of one pair, and the box of CutMix (rows, columns) or `None` for mixup."""
    if rng.random() >= probability or not mixup_alpha + cutmix_alpha:
        return 1.0, None
    cut = cutmix_alpha > 0
    if mixup_alpha > 0 and cutmix_alpha > 0:
        cut = rng.random() < switch_probability
    alpha = cutmix_alpha if cut else mixup_alpha
    ratio = rng.beta(alpha, alpha)
    if not cut:
        return ratio, None
    side = math.sqrt(1 - ratio)
    halves = [int(length * side) // 2 for length in size]
    centres = [rng.randint(0, length - 1) for length in size]
    rows, columns = (
        slice(max(centre - half, 0), min(centre + half, length))
        for centre, half, length in zip(centres, halves, size, strict=True)
    )
    return ratio, (rows, columns)


class ReplayedViews(torch.utils.data.Dataset):
    """Pictures of one epoch as the teacher saw them, with its labels.

    Entry i: (view, seed, classes (K,), probabilities (K,)). keys: a name per picture; augment:
    the function that the teacher's views were made with. One dataset per epoch: make the next one
    for the next. Raises `ValueError` where records are missing, and where a stored view does not
    come out of its seed again: another picture, another `augment`.
    """

    def __init__(
        self,
        pictures: Sequence,
        keys: Sequence[str],
        augment: Augment,
        records: TeacherRecords,
        epoch: int,
    ):
        if len(pictures) != len(keys) or len(set(keys)) != len(keys):
            raise ValueError(
                f"{len(pictures)} pictures want as many different keys; got {len(keys)},"
                f" {len(set(keys))} different ones"
            )
        self.pictures, self.keys, self.augment = pictures, keys, augment
        self.records, self.epoch = records, epoch
        numbers = {key: i for i, key in enumerate(keys)}
        for shard in records.shards(epoch):
            known = shard.about.get("view")
            if known and known["key"] in numbers:
                self.recognise(numbers[known["key"]], known["numbers"])

    def recognise(self, i: int, numbers: list[float]) -> None:
        """Replay one view, and compare it with what was kept of it."""
        view = self[i][0]
        close = dict(rtol=1e-3, atol=1e-3)  # another machine may round otherwise
        seen = torch.tensor(sample(view))
        if len(seen) != len(numbers) or not torch.allclose(seen, torch.tensor(numbers), **close):
            raise ValueError(
                f"the view of {self.keys[i]!r} in epoch {self.epoch} does not come out of its seed"
                " again: the records were written for other pictures or another augment"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (seed,), (classes,), (probabilities,) = self.records.read(self.epoch, [self.keys[i]])
        view = self.augment(self.pictures[i], ReplayedRandom(int(seed)))
        return view, seed, classes, probabilities


def record_epoch(
    teacher: Callable[[Tensor], Tensor],
    pictures: Sequence,
    keys: Sequence[str],
    augment: Augment,
    writer: RecordWriter,
    rng: np.random.Generator,
    batch_size: int = 64,
    mix: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
) -> None:
    """Label one view of every picture and write the records.

    teacher: views (b, …) -> logits (b, C), in evaluation mode; rng: draws the seeds, from 0 to
    2³¹ − 1; mix: of views and their seeds, such as `mix_pairs(views, seeds)[0]`, where the teacher
    labels mixed images. Raises `ValueError` for a teacher in training mode, whose answers would
    depend on the batch.
    """
    if getattr(teacher, "training", False):
        raise ValueError("teacher is in training mode: call eval() first")
    for start in range(0, len(keys), batch_size):
        names = keys[start : start + batch_size]
        seeds = rng.integers(0, SEEDS, len(names)).tolist()
        views = [augment(pictures[start + i], ReplayedRandom(seed)) for i, seed in enumerate(seeds)]
        batch = torch.stack(views)
        shown = batch if mix is None else mix(batch, seeds)
        with torch.no_grad():
            probabilities = teacher(shown).float().softmax(1)
        writer.append(names, seeds, probabilities, batch)


def agreement(
    teacher: Callable[[Tensor], Tensor], views: ReplayedViews, batch_size: int = 64
) -> tuple[float, float]:
    """How well stored labels are those that the teacher gives now.

    Returns mean |p − p'| over the stored classes, and the share of classes that differ in their
    rank: float16 alone gives about 1e-4 and, where probabilities are nearly equal, a few per cent.
    """
    errors, moved = [], []
    for batch in batches(views, batch_size):
        images, _, classes, probabilities = batch
        with torch.no_grad():
            again = teacher(images).float().softmax(1)
        errors.append((again.gather(1, classes) - probabilities).abs().flatten())
        moved.append((again.topk(classes.shape[1]).indices != classes).flatten())
    return float(torch.cat(errors).mean()), float(torch.cat(moved).float().mean())


def batches(views: ReplayedViews, batch_size: int) -> Iterator[list[Tensor]]:
    """The entries in order, stacked."""
    for start in range(0, len(views), batch_size):
        entries = [views[i] for i in range(start, min(start + batch_size, len(views)))]
        yield [torch.stack(column) for column in zip(*entries, strict=True)]
