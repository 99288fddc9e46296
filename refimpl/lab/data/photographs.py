"""scikit-image's bundled photographs: whole, as crops to tell apart, as patches to search."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl import checks
from refimpl.lab.data.dataset import Dataset

# In scikit-image's wheel (the other names of `skimage.data` are downloads): file, author, licence.
PHOTOS: dict[str, tuple[str, str]] = {
    "astronaut": ("astronaut.png", "NASA, Eileen Collins; public domain"),
    "coffee": ("coffee.png", "Rachel Michetti; CC0"),
    "chelsea": ("chelsea.png", "Stéfan van der Walt; CC0"),
    "rocket": ("rocket.jpg", "SpaceX; public domain"),
    "hubble": ("hubble_deep_field.jpg", "NASA; public domain"),
    "retina": ("retina.jpg", "Mikael Häggström, Medical gallery, 2014; CC0"),
    "ihc": ("ihc.png", "stained colon tissue; no known copyright restrictions"),
    "motorcycle": (
        "motorcycle_left.png",
        "D. Scharstein et al., Middlebury stereo data 2014, left view; licence not stated",
    ),
}
TEXTURES: dict[str, tuple[str, str]] = {
    "brick": ("brick.png", "CC0Textures; CC0"),
    "grass": ("grass.png", "linolafett; CC0"),
    "gravel": ("gravel.png", "CC0Textures; CC0"),
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@functools.lru_cache(maxsize=32)
def read_bundled(file: str) -> Tensor:
    """One file of scikit-image's own data folder as (3, h, w) in [0, 1]; never a download."""
    import skimage
    from PIL import Image

    path = Path(skimage.__file__).parent / "data" / file
    if not path.exists():
        raise RuntimeError(
            f"scikit-image {skimage.__version__} does not bundle {file}; install"
            " scikit-image>=0.22 from a wheel"
        )
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def resize(image: Tensor, size: int) -> Tensor:
    """Centre-crop (3, h, w) to a square and scale it to (3, size, size), antialiased."""
    height, width = image.shape[1:]
    side = min(height, width)
    top = (height - side) // 2
    left = (width - side) // 2
    square = image[:, top : top + side, left : left + side]
    return F.interpolate(
        square[None], (size, size), mode="bicubic", antialias=True, align_corners=False
    )[0].clamp(0, 1)


@functools.lru_cache(maxsize=64)
def photo(name: str = "chelsea", size: int | None = 224, normalise: bool = False) -> Tensor:
    """A photograph as (3, size, size) in [0, 1], cropped to its centre square.

    name: astronaut, coffee, chelsea (a cat), rocket, hubble, retina, ihc, motorcycle, or a
        texture: brick, grass, gravel. `PHOTOS` and `TEXTURES` name authors and licences.
    size: at least 8; `None` gives the whole photograph (3, h, w).
    normalise: subtract ImageNet's mean and divide by its standard deviation, as most pretrained
        models expect.
    """
    files = PHOTOS | TEXTURES
    checks.choice("name", name, files)
    if size is not None:
        checks.integer(8, size=size)
    image = read_bundled(files[name][0])
    image = image if size is None else resize(image, size)
    return normalised(image) if normalise else image


def normalised(images: Tensor) -> Tensor:
    """(…, 3, h, w) in [0, 1] to ImageNet's normalisation."""
    mean = images.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = images.new_tensor(IMAGENET_STD)[:, None, None]
    return (images - mean) / std


@functools.lru_cache(maxsize=8)
def photo_crops(
    size: int = 32, n: int = 1200, seed: int = 0, names: tuple[str, ...] = tuple(PHOTOS)
) -> Dataset:
    """Random square crops of real photographs, labelled with the photograph; balanced classes.

    Images are (n, 3, size, size) in [0, 1]. A crop covers 1/16 to 1/4 of the photograph's area and
    is flipped half of the time. Training crops lie left of a vertical line at three quarters of the
    width, test crops (a quarter of n) right of it, so no test pixel was seen in training.
    """
    checks.integer(8, size=size)
    checks.integer(4 * len(names), n=n)
    files = PHOTOS | TEXTURES
    for name in names:
        checks.choice("names", name, files)
    rng = np.random.default_rng(seed)
    is_test = np.arange(n) % 4 == 3
    label = np.arange(n) // 4 % len(names)
    images = torch.empty(n, 3, size, size)
    for i in range(n):
        whole = read_bundled(files[names[label[i]]][0])
        border = 3 * whole.shape[2] // 4
        part = whole[:, :, border:] if is_test[i] else whole[:, :, :border]
        images[i] = random_crop(part, whole.shape[1] * whole.shape[2], size, rng)
    index = torch.arange(n)
    test = torch.from_numpy(is_test)
    labels = torch.from_numpy(label).long()
    source = "scikit-image photographs; CC0 and public domain"
    return Dataset(images.clamp(0, 1), labels, tuple(names), index[~test], index[test], source)


def random_crop(part: Tensor, area: int, size: int, rng: np.random.Generator) -> Tensor:
    """A square of 1/16 to 1/4 of `area` pixels out of `part`, (3, size, size), perhaps flipped."""
    side = min(int(math.sqrt(area * rng.uniform(1 / 16, 1 / 4))), *part.shape[1:])
    top = rng.integers(0, part.shape[1] - side + 1)
    left = rng.integers(0, part.shape[2] - side + 1)
    crop = part[:, top : top + side, left : left + side]
    crop = F.interpolate(
        crop[None], (size, size), mode="bilinear", antialias=True, align_corners=False
    )[0]
    return crop.flip(-1) if rng.random() < 0.5 else crop


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Vectors to search, queries to learn from, queries to test with: float32 of unit length."""

    vectors: np.ndarray  # (n, d)
    train_queries: np.ndarray  # (m, d)
    test_queries: np.ndarray  # (t, d)
    patches: np.ndarray  # (n, 8, 8, 3), what the vectors are
    source: str = ""


@functools.lru_cache(maxsize=8)
def patch_retrieval(queries: str = "sketch", seed: int = 0) -> Retrieval:
    """Colour patches of photographs as vectors of 8·8·3 = 192 numbers, and queries for them.

    600 queries to learn from, 400 others to test with. Up to 400 patches per photograph, of 1200
    positions drawn, flat ones left out.

    queries: "copy", the patch itself with noise (distributed like the data), or "sketch", the
        patch without colour and without its slowly varying part (distributed unlike the data).
    """
    from scipy.ndimage import gaussian_filter

    checks.choice("queries", queries, ("copy", "sketch"))
    rng = np.random.default_rng(seed)
    patches = np.concatenate([textured_patches(file, rng) for file, _ in PHOTOS.values()])
    asked = rng.permutation(len(patches))[:1000]
    seen = patches[asked]
    if queries == "sketch":
        grey = seen.mean(3)
        edges = grey - gaussian_filter(grey, (0, 1.5, 1.5))
        seen = np.repeat(edges[..., None], 3, 3)
    clean = unit(seen.reshape(1000, -1))
    noisy = unit(clean + 0.02 * rng.standard_normal(clean.shape))
    vectors = unit(patches.reshape(len(patches), -1))
    source = "patches of scikit-image photographs"
    return Retrieval(vectors, noisy[:600], noisy[600:], patches, source)


def textured_patches(file: str, rng: np.random.Generator) -> np.ndarray:
    """Up to 400 patches of one photograph, (n, 8, 8, 3), whose grey values vary by 0.02 or more."""
    pixels = read_bundled(file).permute(1, 2, 0).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (8, 8), axis=(0, 1))
    rows = rng.integers(0, windows.shape[0], 1200)
    columns = rng.integers(0, windows.shape[1], 1200)
    drawn = windows[rows, columns]  # (1200, 3, 8, 8)
    textured = drawn.mean(1).std((1, 2)) >= 0.02
    return drawn[textured][:400].transpose(0, 2, 3, 1)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32."""
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
