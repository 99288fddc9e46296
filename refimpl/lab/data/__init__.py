"""Small data sets that need no download.

scikit-learn's digits, scikit-image's bundled photographs, Fashion-MNIST (carried in the package),
Python's own manual, made scenes. Every loader is seeded and cached, and gives a `Dataset`, or a
tensor that it says the shape of. Images are float32, (n, c, h, w).
"""

from refimpl.lab.data.dataset import Dataset, split
from refimpl.lab.data.digit_images import digits
from refimpl.lab.data.fashion_mnist import fashion
from refimpl.lab.data.made import SCENE_TEXTURES, Scenes, far_pairs, scenes
from refimpl.lab.data.photographs import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PHOTOS,
    TEXTURES,
    Retrieval,
    normalised,
    patch_retrieval,
    photo,
    photo_crops,
    resize,
)
from refimpl.lab.data.words import text_corpus

__all__ = [
    "Dataset",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PHOTOS",
    "Retrieval",
    "SCENE_TEXTURES",
    "Scenes",
    "TEXTURES",
    "digits",
    "far_pairs",
    "fashion",
    "normalised",
    "patch_retrieval",
    "photo",
    "photo_crops",
    "resize",
    "scenes",
    "split",
    "text_corpus",
]
