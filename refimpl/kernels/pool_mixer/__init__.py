"""Pool mixer with its residual, the mixer of EfficientFormer's (and PoolFormer's) blocks.

Li and others, *EfficientFormer*, arXiv 2206.01191 (2022). Reference followed:
snap-research/EfficientFormer @ d01da42, models/efficientformer.py (`Pooling`, and `Meta4D` around
it). The readable PyTorch form is `refimpl.papers.efficientformer`'s.

    y = x + λ ⊙ (pool₃(x) − x)

    x, y    (b, c, h, w)
    scale   (c)             λ, one number per channel

pool₃ is the mean over 3×3 pixels, stride 1, of the pixels that exist: 9 inside, 6 at an edge, 4 in
a corner, fewer in maps of one row or column. Arithmetic is in the widest type of the arguments, the
result comes back in x's type.

Work: about 12 FLOP per number (8 additions, a division, the blend). Traffic: read once, written
once, 8 bytes in float32. That is 1.5 FLOP per byte: the limit is the rate of a copy. Step by step
(pool, subtract, scale, add) the same takes about ten passes over the map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks
from refimpl.kernels import Cost, dispatch
from refimpl.kernels.pool_mixer.composed import with_torch
from refimpl.kernels.pool_mixer.reference import naive, with_numpy

__all__ = ["cost", "example", "naive", "pool_mixer", "with_numpy", "with_torch"]


def pool_mixer(x: Tensor, scale: Tensor, backend: str = "auto") -> Tensor:
    """x + scale ⊙ (pool₃(x) − x): (b, c, h, w), (c) -> (b, c, h, w), in x's type.

    Raises `ValueError` for shapes, types or devices that don't fit.
    """
    check(x, scale)
    widest = torch.promote_types(x.dtype, scale.dtype)
    y = dispatch("pool_mixer", with_torch, backend, x.to(widest), scale.to(widest))
    return y.to(x.dtype)


AXES = {"x": "batch channels height width", "scale": "channels"}


def check(x: Tensor, scale: Tensor) -> None:
    """Raise a `ValueError` that names the first argument that does not fit the other."""
    sizes = checks.shapes(AXES, x=x, scale=scale)
    checks.floating(x=x, scale=scale)
    batch = sizes.pop("batch")
    checks.at_least(1, **sizes)
    checks.at_least(0, batch=batch)
    checks.same_device(x=x, scale=scale)


def cost(x: Tensor, scale: Tensor) -> Cost:
    """Work of one call."""
    moved = 2 * x.numel() + scale.numel()
    return Cost(flops=12 * x.numel(), bytes=moved * x.element_size())


def example(
    size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict:
    """Arguments: the first stage of EfficientFormer-L1, eight images ("large"), or a toy."""
    shape = {"small": (2, 6, 7, 7), "large": (8, 48, 56, 56)}[size]
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    scale = torch.randn(shape[1], generator=g, dtype=torch.float64)
    return {"x": x.to(device, dtype), "scale": scale.to(device, dtype)}
