"""scikit-learn's handwritten digits."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from refimpl import checks
from refimpl.lab.data.dataset import Dataset, split


@functools.lru_cache(maxsize=8)
def digits(size: int = 8, seed: int = 0) -> Dataset:
    """1,797 handwritten digits, (n, 1, size, size) in [0, 1]: 1,348 to train with, 449 to test.

    size: 8 as recorded, or larger (bilinear). Source: scikit-learn `load_digits`, from UCI's
    "Optical Recognition of Handwritten Digits" (CC BY 4.0).
    """
    checks.integer(8, size=size)
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).float()[:, None] / 16
    if size != 8:
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(raw.target).long()
    source = "UCI handwritten digits, by way of scikit-learn; CC BY 4.0"
    return split(images, labels, tuple("0123456789"), 0.25, seed, source)
