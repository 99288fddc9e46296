"""Random crops of an image, as torchvision's `RandomResizedCrop` draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Crop:
    """A rectangle of the image in pixels, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def sample_crop(
    height: int,
    width: int,
    g: torch.Generator,
    area: tuple[float, float] = (0.1, 0.5),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Crop:
    """A random crop of an image of this size, mirrored every other time.

    area: range of the crop's part of the image's area, drawn uniformly; aspect: range of width over
    height, drawn log-uniformly. After ten tries that don't fit, the largest middle square.
    """

    def uniform(low: float, high: float) -> float:
        return torch.empty(()).uniform_(low, high, generator=g).item()

    flip = uniform(0, 1) < 0.5
    for _ in range(10):
        crop_area = height * width * uniform(*area)
        aspect_ratio = math.exp(uniform(math.log(aspect[0]), math.log(aspect[1])))
        w = round(math.sqrt(crop_area * aspect_ratio))
        h = round(math.sqrt(crop_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (), generator=g))
            left = int(torch.randint(0, width - w + 1, (), generator=g))
            return Crop(top, left, h, w, flip)
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side, flip)
