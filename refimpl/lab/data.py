"""Small data sets that need no download: scikit-learn's digits, scikit-image's bundled photographs, Python's own manual, made scenes.

Every loader is seeded and cached, and gives a `Dataset` (or a tensor that it says the shape of). Images are float32, (n, c, h, w).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Photographs that scikit-image's wheel holds (the other names of `skimage.data` are downloads), with author or source and licence.
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
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, split into a training and a test part.

    images: (n, c, h, w) float32; labels: (n,) int64 classes, (n, h, w) int64 classes per pixel, or (n, classes) float32 of 0 and 1;
    classes: their names; train, test: (k,) int64 indices without overlap; source: origin and licence.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    train: Tensor
    test: Tensor
    source: str = ""

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

    def subset(self, per_class: int, seed: int = 0) -> Dataset:
        """The same test part with only `per_class` training images of every class (integer labels)."""
        if self.labels.dim() != 1:
            raise ValueError("subset: only for one integer label an image")
        generator = torch.Generator().manual_seed(seed)
        picked = []
        for c in range(len(self.classes)):
            of_class = self.train[self.train_labels == c]
            if not 1 <= per_class <= len(of_class):
                raise ValueError(
                    f"per_class={per_class} must be between 1 and {len(of_class)}, the training images of class {self.classes[c]!r}"
                )
            picked.append(of_class[torch.randperm(len(of_class), generator=generator)[:per_class]])
        return Dataset(
            self.images,
            self.labels,
            self.classes,
            torch.cat(picked).sort().values,
            self.test,
            self.source,
        )

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.images.shape[1:]))
        return f"Dataset({len(self.train)} training and {len(self.test)} test images of {shape}, {len(self.classes)} classes)"


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
    return Dataset(
        images,
        labels,
        tuple(classes),
        order[count:].sort().values,
        order[:count].sort().values,
        source,
    )


@functools.lru_cache(maxsize=8)
def digits(size: int = 8, seed: int = 0) -> Dataset:
    """1,797 handwritten digits, (n, 1, size, size) in [0, 1], 10 classes; 1,348 for training and 449 for testing.

    size: 8 as recorded, or larger (bilinear). Source: scikit-learn `load_digits`, UCI "Optical Recognition of Handwritten Digits" (CC BY 4.0).
    """
    check_integer("size", size, 8)
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).float()[:, None] / 16
    if size != 8:
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(raw.target).long()
    return split(
        images,
        labels,
        tuple("0123456789"),
        0.25,
        seed,
        "UCI handwritten digits, by way of scikit-learn; CC BY 4.0",
    )


@functools.lru_cache(maxsize=32)
def read_bundled(file: str) -> Tensor:
    """One file of scikit-image's own data folder as (3, h, w) in [0, 1]; never a download."""
    import skimage
    from PIL import Image

    path = Path(skimage.__file__).parent / "data" / file
    if not path.exists():
        raise RuntimeError(
            f"scikit-image {skimage.__version__} does not bundle {file}; install scikit-image>=0.22 from a wheel"
        )
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def resize(image: Tensor, size: int) -> Tensor:
    """Centre-crop (3, h, w) to a square and scale it to (3, size, size), antialiased."""
    side = min(image.shape[1:])
    top, left = ((n - side) // 2 for n in image.shape[1:])
    square = image[:, top : top + side, left : left + side]
    return F.interpolate(
        square[None], (size, size), mode="bicubic", antialias=True, align_corners=False
    )[0].clamp(0, 1)


@functools.lru_cache(maxsize=64)
def photo(name: str = "chelsea", size: int | None = 224, normalise: bool = False) -> Tensor:
    """A photograph as (3, size, size) in [0, 1], cropped to its centre square; `size=None` gives it whole.

    normalise: subtract ImageNet's mean and divide by its standard deviation, as pretrained models expect (`unnormalise` takes it back).
    name: astronaut, coffee, chelsea (a cat), rocket, hubble, retina, ihc, motorcycle, or a texture: brick, grass, gravel. From scikit-image;
    `PHOTOS` and `TEXTURES` name authors and licences.
    """
    files = PHOTOS | TEXTURES
    check_option("name", name, files)
    if size is not None:
        check_integer("size", size, 8)
    image = read_bundled(files[name][0])
    image = image if size is None else resize(image, size)
    return normalised(image) if normalise else image


def normalised(images: Tensor) -> Tensor:
    """(…, 3, h, w) in [0, 1] to ImageNet's normalisation."""
    return (images - images.new_tensor(IMAGENET_MEAN)[:, None, None]) / images.new_tensor(
        IMAGENET_STD
    )[:, None, None]


def unnormalise(images: Tensor) -> Tensor:
    """The inverse of `normalised`, clamped to [0, 1]."""
    return (
        images * images.new_tensor(IMAGENET_STD)[:, None, None]
        + images.new_tensor(IMAGENET_MEAN)[:, None, None]
    ).clamp(0, 1)


@functools.lru_cache(maxsize=8)
def photo_crops(
    size: int = 32, n: int = 1200, seed: int = 0, names: tuple[str, ...] = tuple(PHOTOS)
) -> Dataset:
    """Random square crops of real photographs; the label is the photograph. (n, 3, size, size) in [0, 1], balanced classes.

    A crop covers 1/16 to 1/4 of the photograph's area and is flipped half of the time. Training crops lie left of a vertical line at
    three quarters of the width, test crops (a quarter of n) right of it, so no test pixel was seen in training.
    """
    check_integer("size", size, 8)
    check_integer("n", n, 4 * len(names))
    for name in names:
        check_option("names", name, PHOTOS | TEXTURES)
    rng = np.random.default_rng(seed)
    is_test = np.arange(n) % 4 == 3
    label = np.arange(n) // 4 % len(names)
    images = torch.empty(n, 3, size, size)
    for i in range(n):
        whole = read_bundled((PHOTOS | TEXTURES)[names[label[i]]][0])
        height, width = whole.shape[1:]
        border = 3 * width // 4
        part = whole[:, :, border:] if is_test[i] else whole[:, :, :border]
        side = min(int(math.sqrt(height * width * rng.uniform(1 / 16, 1 / 4))), *part.shape[1:])
        top, left = (rng.integers(0, extent - side + 1) for extent in part.shape[1:])
        crop = part[:, top : top + side, left : left + side]
        crop = F.interpolate(
            crop[None], (size, size), mode="bilinear", antialias=True, align_corners=False
        )[0]
        images[i] = crop.flip(-1) if rng.random() < 0.5 else crop
    index = torch.arange(n)
    test = torch.from_numpy(is_test)
    return Dataset(
        images.clamp(0, 1),
        torch.from_numpy(label).long(),
        tuple(names),
        index[~test],
        index[test],
        "scikit-image photographs; CC0 and public domain",
    )


@functools.lru_cache(maxsize=8)
def faces(seed: int = 0) -> Dataset:
    """200 grey crops, (200, 1, 25, 25) in [0, 1]: 100 faces (class 1) and 100 backgrounds (class 0). Source: `lfw_subset` of scikit-image."""
    import skimage

    pixels = np.load(Path(skimage.__file__).parent / "data" / "lfw_subset.npy")
    images = torch.from_numpy(pixels).float()[:, None]
    labels = torch.cat([torch.ones(100), torch.zeros(100)]).long()
    return split(
        images,
        labels,
        ("background", "face"),
        0.25,
        seed,
        "Labeled Faces in the Wild, subset of scikit-image",
    )


def stereo(size: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The motorcycle stereo pair and its disparity: left, right (3, h, w) in [0, 1], disparity (h, w) in pixels (NaN where unknown).

    size: width to which all three are scaled (disparities scale along). Source: Middlebury stereo data 2014, by way of scikit-image.
    """
    import skimage

    left, right = read_bundled("motorcycle_left.png"), read_bundled("motorcycle_right.png")
    with np.load(Path(skimage.__file__).parent / "data" / "motorcycle_disp.npz") as stored:
        disparity = torch.from_numpy(stored["arr_0"].astype(np.float32))
    disparity = torch.where(disparity.isfinite(), disparity, torch.nan)
    if size is None:
        return left, right, disparity
    check_integer("size", size, 8)
    height, width = left.shape[1:]
    shape = (round(height * size / width), size)
    left, right = (
        F.interpolate(x[None], shape, mode="bilinear", antialias=True, align_corners=False)[
            0
        ].clamp(0, 1)
        for x in (left, right)
    )
    disparity = F.interpolate(disparity[None, None], shape, mode="nearest")[0, 0] * (size / width)
    return left, right, disparity


@functools.lru_cache(maxsize=8)
def far_pairs(size: int = 32, n: int = 2048, seed: int = 0, noise: float = 0.3) -> Dataset:
    """Two small squares of ±2 near opposite corners in noise; class 1 when their signs are equal. (n, 1, size, size).

    Each square alone says nothing: the answer needs an exchange across the whole image. The squares' side is about size/8 (at least 2),
    jittered by one pixel; `noise` is the standard deviation. A quarter of n is for testing. Procedural.
    """
    check_integer("size", size, 8)
    check_integer("n", n, 8)
    if noise < 0:
        raise ValueError(f"noise={noise} must not be negative")
    rng = np.random.default_rng(seed)
    side = max(2, round(size / 8))
    images = rng.normal(0, noise, (n, 1, size, size)).astype(np.float32)
    signs = rng.choice((-1, 1), (n, 2))
    starts = rng.integers(0, 3, (n, 2, 2))
    for image, (first, second), ((top, left), (bottom, right)) in zip(
        images[:, 0], signs, starts, strict=True
    ):
        image[top : top + side, left : left + side] += 2 * first
        image[size - bottom - side : size - bottom, size - right - side : size - right] += (
            2 * second
        )
    labels = torch.from_numpy((signs[:, 0] == signs[:, 1]).astype(np.int64))
    return split(torch.from_numpy(images), labels, ("different", "equal"), 0.25, seed, "procedural")


SCENE_TEXTURES = ("stripes", "checks", "dots", "rings", "noise", "ramp")


@dataclass(frozen=True, eq=False)
class Scenes:
    """Made scenes: images (n, 3, size, size) in [0, 1] and the texture of every pixel, labels (n, size, size) int64 into `classes`."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] = SCENE_TEXTURES

    def crops(self, size: int = 64, n: int = 1024, seed: int = 0, least: int = 40) -> Dataset:
        """Random crops with a multi-label: which textures cover more than `least` pixels. (n, 3, size, size) and (n, classes) float."""
        extent = self.images.shape[-1]
        check_integer("size", size, 8)
        check_integer("n", n, 8)
        if size > extent:
            raise ValueError(f"size={size} is larger than the scenes ({extent})")
        rng = np.random.default_rng(seed)
        which, top, left = (
            rng.integers(0, len(self.images), n),
            *rng.integers(0, extent - size + 1, (2, n)),
        )
        images = torch.stack(
            [
                self.images[i, :, t : t + size, s : s + size]
                for i, t, s in zip(which, top, left, strict=True)
            ]
        )
        pixels = torch.stack(
            [
                self.labels[i, t : t + size, s : s + size]
                for i, t, s in zip(which, top, left, strict=True)
            ]
        )
        present = F.one_hot(pixels.flatten(1), len(self.classes)).sum(1) > least
        return split(images, present.float(), self.classes, 0.25, seed, "procedural")


@functools.lru_cache(maxsize=8)
def scenes(n: int = 64, size: int = 128, seed: int = 0) -> Scenes:
    """Procedural scenes: a background texture with a disc and a square in two other textures out of six, in random colours.

    Returns images (n, 3, size, size) in [0, 1] and labels (n, size, size), the texture of every pixel. `scenes(…).crops(64)` is a training set.
    """
    check_integer("n", n, 1)
    check_integer("size", size, 16)
    rng = np.random.default_rng(seed)
    images = np.empty((n, 3, size, size), np.float32)
    labels = np.empty((n, size, size), np.int64)
    row, column = np.mgrid[:size, :size].astype(np.float32)
    for i in range(n):
        kinds = rng.choice(len(SCENE_TEXTURES), 3, replace=False)
        painted = [paint(SCENE_TEXTURES[k], size, rng) for k in kinds]
        radius, half = rng.uniform(0.14, 0.24, 2) * size
        disc_y, disc_x, square_y, square_x = rng.uniform(0.2, 0.8, 4) * size
        disc = (row - disc_y) ** 2 + (column - disc_x) ** 2 < radius**2
        square = (abs(row - square_y) < half) & (abs(column - square_x) < half)
        images[i], labels[i] = painted[0], kinds[0]
        for mask, picture, kind in ((disc, painted[1], kinds[1]), (square, painted[2], kinds[2])):
            images[i][:, mask], labels[i][mask] = picture[:, mask], kind
    return Scenes(torch.from_numpy(images), torch.from_numpy(labels))


def paint(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """One texture, (3, size, size) in [0, 1]: a pattern in [0, 1] mixes two random colours."""
    row, column = np.mgrid[:size, :size].astype(np.float32)
    period, phase = rng.uniform(6, 12), rng.uniform(0, 12, 2)
    y, x = (row + phase[0]) / period, (column + phase[1]) / period
    if kind == "stripes":
        angle = rng.uniform(0, np.pi)
        pattern = 0.5 + 0.5 * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)))
    elif kind == "checks":
        pattern = (np.floor(y) + np.floor(x)) % 2
    elif kind == "dots":
        pattern = ((y % 1 - 0.5) ** 2 + (x % 1 - 0.5) ** 2 < 0.09).astype(np.float32)
    elif kind == "rings":
        centre = rng.uniform(0, size, 2)
        pattern = 0.5 + 0.5 * np.sin(
            2 * np.pi * np.hypot(row - centre[0], column - centre[1]) / period
        )
    elif kind == "noise":
        pattern = rng.random((size, size))
    else:
        angle = rng.uniform(0, 2 * np.pi)
        slope = column * np.cos(angle) + row * np.sin(angle)
        pattern = (slope - slope.min()) / (np.ptp(slope) + 1e-6)
    dark, light = rng.uniform(0.0, 0.45, 3), rng.uniform(0.55, 1.0, 3)
    mixed = dark[:, None, None] + (light - dark)[:, None, None] * pattern[None]
    return np.clip(mixed + rng.normal(0, 0.02, mixed.shape), 0, 1).astype(np.float32)


@functools.lru_cache(maxsize=1)
def text_corpus() -> str:
    """About half a million characters of English: the topics of Python's own `help()` (`pydoc_data.topics`; PSF licence).

    The text belongs to the running Python, so its length differs between versions.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Vectors to search, with queries to learn from and queries to test with: (n, d), (m, d), (t, d) float32 arrays of unit length."""

    vectors: np.ndarray
    train_queries: np.ndarray
    test_queries: np.ndarray
    patches: np.ndarray  # (n, 8, 8, 3), what the vectors are
    source: str = ""


@functools.lru_cache(maxsize=8)
def patch_retrieval(queries: str = "sketch", seed: int = 0) -> Retrieval:
    """Colour patches of photographs as vectors of 8·8·3 = 192 numbers, and queries that look for them: 600 to learn from, 400 others to test.

    queries: "copy", the patch itself with noise (distributed like the data), or "sketch", the patch without colour and without its slowly
    varying part (distributed unlike the data). Up to 400 patches a photograph, of 1200 positions drawn, flat ones left out.
    """
    from scipy.ndimage import gaussian_filter

    check_option("queries", queries, ("copy", "sketch"))
    rng = np.random.default_rng(seed)
    patches = []
    for file, _ in PHOTOS.values():
        windows = np.lib.stride_tricks.sliding_window_view(
            read_bundled(file).permute(1, 2, 0).numpy(), (8, 8), axis=(0, 1)
        )  # (y, x, 3, 8, 8)
        drawn = windows[
            rng.integers(0, windows.shape[0], 1200), rng.integers(0, windows.shape[1], 1200)
        ]
        patches.append(drawn[drawn.mean(1).std((1, 2)) >= 0.02][:400].transpose(0, 2, 3, 1))
    patches = np.concatenate(patches)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    asked = rng.permutation(len(patches))[:1000]
    seen = patches[asked]
    if queries == "sketch":
        grey = seen.mean(3)
        seen = np.repeat((grey - gaussian_filter(grey, (0, 1.5, 1.5)))[..., None], 3, 3)
    noisy = unit(seen.reshape(1000, -1))
    noisy = unit(noisy + 0.02 * rng.standard_normal(noisy.shape))
    return Retrieval(
        unit(patches.reshape(len(patches), -1)),
        noisy[:600],
        noisy[600:],
        patches,
        "patches of scikit-image photographs",
    )


def check_integer(name: str, value: int, least: int) -> None:
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}")


def check_option(name: str, value: str, options) -> None:
    if value not in options:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(options)}")
