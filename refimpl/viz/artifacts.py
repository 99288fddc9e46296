"""What a feature map shows beside content: how much of it is position, and three ways to look.

Features are (b, h, w, c), a vector for every patch of every image; for one image (h, w, c).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def check_features(features: Tensor, least: int = 1) -> Tensor:
    """(b, h, w, c), one image's (h, w, c) getting a batch of one; a `ValueError` otherwise."""
    features = features[None] if features.dim() == 3 else features
    if features.dim() != 4 or len(features) < least:
        raise ValueError(
            f"features are (b, h, w, c) with b of at least {least}, got {tuple(features.shape)}"
        )
    return features.detach().float()


def position_share(features: Tensor) -> float:
    """η²: how much of the features' variance their position in the map explains, from 0 to 1.

    features: (b, h, w, c). Variance over positions of the mean over images, divided by the total
    variance; both are summed over channels. By chance alone it is about 1/b, so compare at equal b.
    """
    features = check_features(features, 2)
    explained = features.mean(0).flatten(0, 1).var(0, unbiased=False).sum()
    total = features.flatten(0, 2).var(0, unbiased=False).sum()
    return (explained / total.clamp(min=1e-12)).item()


def position_readout(features: Tensor, ridge: float = 1e-2) -> float:
    """R² of a linear read-out of (row, column) from a patch's feature.

    1: position can be read exactly; 0 or less: not at all. features: (b, h, w, c). Ridge regression
    on standardised channels, fitted on the first half of the images and scored on the rest; ridge:
    relative to the number of patches.
    """
    features = check_features(features, 2).double()
    b, h, w, c = features.shape
    place = torch.cartesian_prod(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w)).to(features)
    half = b // 2
    seen, unseen = features[:half].reshape(-1, c), features[half:].reshape(-1, c)
    mean, spread = seen.mean(0), seen.std(0).clamp(min=1e-6)
    seen = (seen - mean) / spread
    unseen = (unseen - mean) / spread
    penalty = ridge * len(seen) * torch.eye(c).to(seen)
    weights = torch.linalg.solve(seen.T @ seen + penalty, seen.T @ place.repeat(half, 1))
    wanted = place.repeat(b - half, 1)
    return (1 - (wanted - unseen @ weights).square().sum() / wanted.square().sum()).item()


def pca_colours(features: Tensor) -> Tensor:
    """The first three principal directions as red, green and blue, in [0, 1], scaled robustly.

    (h, w, c) -> (h, w, 3), or (b, h, w, c) -> (b, h, w, 3); all images share directions and scale.
    As in the code of *Denoising Vision Transformers*: the directions come from centred features,
    the projection is of the features themselves; of each colour the values within twice the median
    distance to the median set the scale. A direction's sign is arbitrary; here its largest entry is
    positive, so that colours do not flip between runs.
    """
    flat = check_features(features).flatten(0, 2).double()
    if flat.shape[1] < 3:
        raise ValueError(f"pca_colours needs at least 3 channels, got {flat.shape[1]}")
    centred = flat - flat.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # by rising eigenvalue
    directions = directions[:, -3:].flip(1)
    largest = directions.abs().argmax(0, keepdim=True)
    directions = directions * directions.gather(0, largest).sign()
    colours = flat @ directions
    distance = (colours - colours.median(0).values).abs()
    kept = distance < 2 * distance.median(0).values.clamp(min=1e-12)
    low = torch.where(kept, colours, torch.inf).amin(0)
    high = torch.where(kept, colours, -torch.inf).amax(0)
    colours = ((colours - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return colours.float().reshape(*features.shape[:-1], 3)


def unit_range(maps: Tensor) -> Tensor:
    """Each (h, w) map scaled from its minimum to its maximum (plus 1e-6)."""
    low = maps.amin((-2, -1), keepdim=True)
    high = maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low + 1e-6)


def norm_map(features: Tensor) -> Tensor:
    """‖feature‖ of every patch, scaled to [0, 1] by image: (…, h, w, c) -> (…, h, w).

    So far only the reference outputs of DVT need it.
    """
    return unit_range(check_features(features).norm(dim=-1)).reshape(features.shape[:-1])


def similarity_map(features: Tensor, query: tuple[int, int] | None = None) -> Tensor:
    """Cosine of every patch to one, scaled to [0, 1] by image: (…, h, w, c) -> (…, h, w).

    query: (row, column) of that one, the centre by default. So far only the reference outputs of
    DVT need it.
    """
    batch = check_features(features)
    h, w = batch.shape[1:3]
    row, column = query or (h // 2, w // 2)
    if not (0 <= row < h and 0 <= column < w):
        raise ValueError(f"query={query} lies outside the map of {h}×{w} patches")
    similarity = F.cosine_similarity(batch, batch[:, row, None, column, None], dim=-1)
    return unit_range(similarity).reshape(features.shape[:-1])
