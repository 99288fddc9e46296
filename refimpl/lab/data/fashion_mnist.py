"""12,000 images of Fashion-MNIST, carried in the package as one picture."""

from __future__ import annotations

import functools
from importlib import resources

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from refimpl.lab.data.dataset import Dataset

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
TRAIN = 10_000  # the first 10,000 are official training images, the other 2,000 official test ones


@functools.lru_cache(maxsize=2)
def fashion(size: int = 28) -> Dataset:
    """12,000 grey pictures of clothes, (n, 1, size, size) in [0, 1], 10 classes.

    10,000 to train with and 2,000 to test: the first of the official training and test parts.
    `few_shot` and `long_tailed` of the result draw smaller training parts by seed.

    size: 28 as published, or 32 (two black pixels on each side).
    Source: Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747), © 2017 Zalando SE, MIT
    licence; its text is in `fashion_mnist_12k_LICENSE.txt` beside the pictures.
    Needs Pillow (extra `chapters`). Raises `ValueError` for another size.
    """
    if size not in (28, 32):
        raise ValueError(f"size={size!r} must be 28 (as published) or 32 (padded with black)")
    from PIL import Image

    folder = resources.files(__package__)
    with (folder / "fashion_mnist_12k.png").open("rb") as file, Image.open(file) as sheet:
        tiles = torch.from_numpy(np.asarray(sheet).copy())
    images = rearrange(tiles, "(rows h) (columns w) -> (rows columns) 1 h w", h=28, w=28)
    images = F.pad(images.float() / 255, [(size - 28) // 2] * 4)
    digits = (folder / "fashion_mnist_12k_labels.txt").read_text(encoding="ascii").split()
    labels = torch.tensor([int(digit) for digit in "".join(digits)])
    index = torch.arange(len(images))
    source = "Fashion-MNIST, Zalando SE 2017; MIT"
    return Dataset(images, labels, CLASSES, index[:TRAIN], index[TRAIN:], source)
