"""Made images whose answer is known: signs in far corners, scenes of textures."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl import checks
from refimpl.lab.data.dataset import Dataset, split


@functools.lru_cache(maxsize=8)
def far_pairs(size: int = 32, n: int = 2048, seed: int = 0, noise: float = 0.3) -> Dataset:
    """Two small squares of ±2 near opposite corners in noise; class 1 when their signs are equal.

    Images are (n, 1, size, size), a quarter for testing. Each square alone says nothing: the answer
    needs an exchange across the whole image. The squares' side is about size/8 (at least 2), their
    place varies by up to two pixels.

    noise: standard deviation, not negative.
    """
    checks.integer(8, size=size, n=n)
    checks.at_least(0, noise=noise)
    rng = np.random.default_rng(seed)
    side = max(2, round(size / 8))
    images = rng.normal(0, noise, (n, 1, size, size)).astype(np.float32)
    signs = rng.choice((-1, 1), (n, 2))
    offsets = rng.integers(0, 3, (n, 2, 2))
    for i in range(n):
        (top, left), (bottom, right) = offsets[i]
        first = images[i, 0, top : top + side, left : left + side]
        first += 2 * signs[i, 0]
        bottom, right = size - bottom, size - right
        second = images[i, 0, bottom - side : bottom, right - side : right]
        second += 2 * signs[i, 1]
    labels = torch.from_numpy((signs[:, 0] == signs[:, 1]).astype(np.int64))
    return split(torch.from_numpy(images), labels, ("different", "equal"), 0.25, seed, "procedural")


SCENE_TEXTURES = ("stripes", "checks", "dots", "rings", "noise", "ramp")


@dataclass(frozen=True, eq=False)
class Scenes:
    """Made scenes and the texture of each of their pixels."""

    images: Tensor  # (n, 3, size, size) in [0, 1]
    labels: Tensor  # (n, size, size) int64 into `classes`
    classes: tuple[str, ...] = SCENE_TEXTURES

    def crops(self, size: int = 64, n: int = 1024, seed: int = 0, least: int = 40) -> Dataset:
        """Random crops, labelled with the textures that cover more than `least` pixels.

        Images are (n, 3, size, size), labels (n, classes) float32 of 0 and 1.
        """
        extent = self.images.shape[-1]
        checks.integer(8, size=size, n=n)
        if size > extent:
            raise ValueError(f"size={size} is larger than the scenes ({extent})")
        rng = np.random.default_rng(seed)
        scene = rng.integers(0, len(self.images), n)
        top, left = rng.integers(0, extent - size + 1, (2, n))
        images = torch.empty(n, 3, size, size)
        labels = torch.empty(n, size, size, dtype=torch.int64)
        for i in range(n):
            rows = slice(top[i], top[i] + size)
            columns = slice(left[i], left[i] + size)
            images[i] = self.images[scene[i], :, rows, columns]
            labels[i] = self.labels[scene[i], rows, columns]
        present = F.one_hot(labels.flatten(1), len(self.classes)).sum(1) > least
        return split(images, present.float(), self.classes, 0.25, seed, "procedural")


@functools.lru_cache(maxsize=8)
def scenes(n: int = 64, size: int = 128, seed: int = 0) -> Scenes:
    """A background texture with a disc and a square in two other textures out of six.

    Colours are random. `scenes(…).crops(64)` is a training set.
    """
    checks.integer(1, n=n)
    checks.integer(16, size=size)
    rng = np.random.default_rng(seed)
    images = np.empty((n, 3, size, size), np.float32)
    labels = np.empty((n, size, size), np.int64)
    row, column = np.mgrid[:size, :size].astype(np.float32)
    for i in range(n):
        background, disc, square = rng.choice(len(SCENE_TEXTURES), 3, replace=False)
        pictures = [paint(SCENE_TEXTURES[k], size, rng) for k in (background, disc, square)]
        radius, half = rng.uniform(0.14, 0.24, 2) * size
        disc_y, disc_x, square_y, square_x = rng.uniform(0.2, 0.8, 4) * size
        in_disc = (row - disc_y) ** 2 + (column - disc_x) ** 2 < radius**2
        in_square = (abs(row - square_y) < half) & (abs(column - square_x) < half)
        images[i] = pictures[0]
        labels[i] = background
        images[i][:, in_disc] = pictures[1][:, in_disc]
        labels[i][in_disc] = disc
        images[i][:, in_square] = pictures[2][:, in_square]
        labels[i][in_square] = square
    return Scenes(torch.from_numpy(images), torch.from_numpy(labels))


def paint(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """One texture, (3, size, size) in [0, 1]: a pattern in [0, 1] mixes two random colours."""
    row, column = np.mgrid[:size, :size].astype(np.float32)
    period = rng.uniform(6, 12)
    phase = rng.uniform(0, 12, 2)
    y = (row + phase[0]) / period
    x = (column + phase[1]) / period
    if kind == "stripes":
        angle = rng.uniform(0, np.pi)
        pattern = 0.5 + 0.5 * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)))
    elif kind == "checks":
        pattern = (np.floor(y) + np.floor(x)) % 2
    elif kind == "dots":
        pattern = ((y % 1 - 0.5) ** 2 + (x % 1 - 0.5) ** 2 < 0.09).astype(np.float32)
    elif kind == "rings":
        centre = rng.uniform(0, size, 2)
        radius = np.hypot(row - centre[0], column - centre[1])
        pattern = 0.5 + 0.5 * np.sin(2 * np.pi * radius / period)
    elif kind == "noise":
        pattern = rng.random((size, size))
    else:
        angle = rng.uniform(0, 2 * np.pi)
        slope = column * np.cos(angle) + row * np.sin(angle)
        pattern = (slope - slope.min()) / (np.ptp(slope) + 1e-6)
    dark = rng.uniform(0.0, 0.45, 3)[:, None, None]
    light = rng.uniform(0.55, 1.0, 3)[:, None, None]
    mixed = dark + (light - dark) * pattern[None]
    return np.clip(mixed + rng.normal(0, 0.02, mixed.shape), 0, 1).astype(np.float32)
