"""Fake quantisation: numbers rounded to the few levels that integers give them, as floats.

A uniform quantiser of b bits knows a scale s (the step) and a zero point z (the integer of 0):

    q = clamp(⌊x/s + z⌉, lowest, highest)        x̂ = (q − z) s
    asymmetric   s = (max − min)/(2^b − 1)       z = −⌊min/s⌉, from 0 to 2^b − 1
    symmetric    s = max|x|/(2^(b−1) − ½)        z = 0, from −2^(b−1) to 2^(b−1) − 1

z is stored as an integer of the same b bits. A range that leaves out zero wants a z outside of
them: *zero-point overflow*. Clamping z moves the window of levels to where the numbers are not.

Facts from the official code of the methods that brought each: FQ-ViT (megvii-research, 5daf591),
RepQ-ViT (zkkli, a160561), PTQ4ViT (hahnyuan, b42c790).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl import checks
from refimpl.layers import fold_norm

EPSILON = torch.finfo(torch.float32).eps  # the least scale: that of a channel which is always 0
ZEROS = ("clamped", "contained", "free")
PERCENTILES = (0.999, 0.9999, 0.99999)  # what RepQ-ViT tries
LEAST_GELU = 0.16997124254703522  # −min of GELU


@dataclass(frozen=True)
class Grid:
    """Levels (q − z)·s for the integers q from lowest to highest.

    scale and zero_point broadcast against what is rounded; zero_point need not be whole.
    """

    scale: Tensor
    zero_point: Tensor
    lowest: int
    highest: int

    def codes(self, x: Tensor) -> Tensor:
        """The integers, as floats; their gradient passes through the rounding where it is open."""
        q = x / self.scale + self.zero_point
        rounded = q + (q.round() - q).detach() if q.requires_grad else q.round()
        return rounded.clamp(self.lowest, self.highest)

    def values(self, codes: Tensor) -> Tensor:
        """The level of each integer."""
        return (codes - self.zero_point) * self.scale

    def __call__(self, x: Tensor) -> Tensor:
        """The level that each number is rounded to: any shape -> the same."""
        return self.values(self.codes(x))

    def times(self, factor: float | Tensor) -> Grid:
        """The grid with a wider or narrower step and the same zero point."""
        return replace(self, scale=self.scale * factor)

    @property
    def overflows(self) -> Tensor:
        """Where the zero point is none of the integers that the format holds."""
        return (self.zero_point < self.lowest) | (self.zero_point > self.highest)


def ranges(x: Tensor, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """Least and greatest number of a tensor, or of each entry of an axis, as they broadcast."""
    if axis is None:
        return x.amin(), x.amax()
    others = [dim for dim in range(x.dim()) if dim != axis % x.dim()]
    return x.amin(others, keepdim=True), x.amax(others, keepdim=True)


def grid_between(
    least: Tensor, most: Tensor, bits: int, symmetric: bool = False, zero: str = "clamped"
) -> Grid:
    """The grid that spans least … most.

    zero: of an asymmetric grid whose range leaves out zero: "clamped", the zero point is cut to the
    integers there are; "contained", the range is extended to zero first; "free", the zero point
    stays outside, which takes a wider integer to store it. Raises `ValueError` for bits outside 2
    to 16, numbers that are not finite, and another `zero`.
    """
    checks.choice("zero", zero, ZEROS)
    checks.integer(2, bits=bits)
    if bits > 16:
        raise ValueError(f"bits={bits} must be at most 16")
    if not (least.isfinite().all() and most.isfinite().all()):
        raise ValueError("x holds NaN or infinity: there is no range to divide into levels")
    half = 2 ** (bits - 1)
    if symmetric:
        scale = torch.maximum(-least, most) / (half - 0.5)
        return Grid(scale.clamp(min=EPSILON), torch.zeros_like(scale), -half, half - 1)
    highest = 2**bits - 1
    if zero == "contained":
        least, most = least.clamp(max=0), most.clamp(min=0)
    scale = ((most - least) / highest).clamp(min=EPSILON)
    zero_point = -(least / scale).round()
    if zero == "clamped":
        zero_point = zero_point.clamp(0, highest)
    return Grid(scale, zero_point, 0, highest)


def minmax_grid(
    x: Tensor,
    bits: int,
    symmetric: bool = False,
    axis: int | None = None,
    zero: str = "clamped",
) -> Grid:
    """The grid over all of x, or one for each entry of an axis; see `grid_between`."""
    return grid_between(*ranges(x, axis), bits, symmetric, zero)


def mean_squared_grid(x: Tensor, bits: int, steps: int = 90, step: float = 0.01) -> Grid:
    """FQ-ViT's OMSE: of `steps` ranges, each by `step` of the whole narrower, the one that errs
    least in the square. One grid for all of x, asymmetric, zero point clamped.
    """
    checks.integer(1, steps=steps)
    least, most = ranges(x)
    factors = [1 - i * step for i in range(steps)]
    return closest(x, [grid_between(least * f, most * f, bits) for f in factors])


def percentile_grid(x: Tensor, bits: int, axis: int | None = None) -> Grid:
    """RepQ-ViT's: of the ranges that leave out one number in 10³, 10⁴ or 10⁵ on each side, the one
    that errs least in the square. Asymmetric, zero point free.
    """
    if axis is not None:
        rows = x.movedim(axis, 0).flatten(1)
        grids = [percentile_grid(row, bits) for row in rows]
        shape = [1] * x.dim()
        shape[axis] = len(rows)
        scale = torch.stack([grid.scale for grid in grids]).view(shape)
        zero_point = torch.stack([grid.zero_point for grid in grids]).view(shape)
        return Grid(scale, zero_point, 0, 2**bits - 1)
    grids = []
    for share in PERCENTILES:
        least, most = x.quantile(1 - share), x.quantile(share)
        grids.append(grid_between(least, most, bits, zero="free"))
    return closest(x, grids)


def closest(x: Tensor, grids: list[Grid]) -> Grid:
    """The grid with the least mean squared error, the first of equals."""
    return min(grids, key=lambda grid: F.mse_loss(grid(x), x).item())


def log2_quantise(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """FQ-ViT's quantiser of attention maps: (codes, values), 2^−q; what is too small becomes 0.

    x: from 0 to 1, any shape. What becomes 0 shares its code with the smallest power, so the codes
    alone do not tell the two apart: the official code keeps a mask beside them.
    """
    q = -x.log2().round()
    codes = q.clamp(0, 2**bits - 1)
    return codes, torch.exp2(-codes).masked_fill(q >= 2**bits, 0)


def log_root2_quantise(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """RepQ-ViT's quantiser of attention maps: (δ, values), δ·2^(−q/2), δ a percentile of x."""
    best = None
    for share in PERCENTILES:
        delta = x.quantile(share)
        q = (-2 * (x / delta).log2()).round()
        values = delta * torch.exp2(-q.clamp(0, 2**bits - 1) / 2)
        values = values.masked_fill(q >= 2**bits, 0)
        error = F.mse_loss(values, x)
        if best is None or error < best[0]:
            best = error, delta, values
    return best[1], best[2]


def move_scales_into_norm(
    grid: Grid, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Grid, Tensor, Tensor, Tensor, Tensor]:
    """RepQ-ViT's reparameterisation: scales per channel behind a layer norm become one for all.

    grid: with scale and zero point per channel (d,) of what the norm gives; gamma, beta: (d,) of
    the norm; weight: (out, d), bias: (out,) of the linear layer behind it. Returns the one grid and
    the new four; the composed function is the same. The mean zero point is not rounded, as in the
    official code, so 0 is none of its levels.
    """
    scale, zero_point = grid.scale.flatten(), grid.zero_point.flatten()
    one = replace(grid, scale=scale.mean(), zero_point=zero_point.mean())
    ratio = scale / one.scale  # r
    shift = one.zero_point * one.scale - zero_point * scale / ratio  # min/r − the new min
    moved = weight * ratio
    return one, gamma / ratio, beta / ratio - shift, moved, bias + moved @ shift


def twin_after_gelu(x: Tensor, scale: float, bits: int) -> Tensor:
    """PTQ4ViT's: half of the integers for what is positive, half for GELU's narrow negative side.

    scale: of the positive side.
    """
    half = 2 ** (bits - 1)
    narrow = LEAST_GELU / half
    positive = (x / scale).round().clamp(0, half - 1) * scale
    negative = (x / narrow).round().clamp(-half, 0) * narrow
    return positive + negative


def twin_after_softmax(x: Tensor, split: float, bits: int) -> Tensor:
    """PTQ4ViT's: half of the integers below `split`, half above it up to 1.

    As in the official code both halves are added, the upper one never below `split`: every result
    is too large by about `split`.
    """
    steps = 2 ** (bits - 1) - 1
    narrow = split / steps
    upper = (x.clamp(split, 1) * steps).round() / steps
    lower = (x.clamp(0, split) / narrow).round() * narrow
    return upper + lower


# ---- Networks: norms folded away, layers listened to


def fold_norms(net: nn.Module) -> None:
    """In place: every convolution takes up the batch norm that is its parent's next part."""
    for parent in list(net.modules()):
        for (first, conv), (second, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, first, fold_norm(conv, norm))
                setattr(parent, second, nn.Identity())


@contextmanager
def listening(
    layers: Mapping[str, nn.Module], hook: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """`hook(name, input, output)` is called whenever one of these layers has computed."""
    handles = []
    for name, layer in layers.items():

        def call(_, inputs, output, name=name):
            hook(name, inputs[0], output)

        handles.append(layer.register_forward_hook(call))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
