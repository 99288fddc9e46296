"""DeepShift: linear layers whose weights are signed powers of two, so that products are shifts.

Elhoushi et al., *DeepShift: Towards Multiplication-Less Neural Networks*, arXiv 1905.13298; as
ShiftAddViT's code holds it. W = 2^round(e) · sign(round(s)), e in [−14, 0]; inputs are fixed-point
numbers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SHIFT = -14  # five bits: the sign, and fifteen exponents 0 … −14


def straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """The first one's value, the second one's gradient."""
    return value.detach() + (gradient - gradient.detach())


def power_of_two(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Exponents round(log₂|w|) (−∞ for 0) and signs −1, 0, 1: any shape -> two of it.

    By ln|w| / ln 2, as in the released code: near √2 · 2^k the last bit decides.
    """
    return (weight.abs().log() / math.log(2)).round(), weight.sign()


def sum_of_two_powers(weight: Tensor) -> Tensor:
    """The nearest of 16 sizes ⅔ (a + b), with the sign: any shape -> the same.

    a: 0, 1, 1/4 or 1/16; b: 0, 1/2, 1/8 or 1/32.
    """
    first = torch.tensor([0, 1, 1 / 4, 1 / 16]).to(weight)
    sizes = (first[:, None] + first / 2).flatten().sort().values * 2 / 3
    nearest = (weight.abs()[..., None] - sizes).abs().argmin(-1)
    return sizes[nearest] * weight.sign()


def shift_weight(shift: Tensor, sign: Tensor) -> Tensor:
    """W = 2^round(e) · sign(round(s)), e clamped to [−14, 0]: two of one shape -> the same.

    Gradients pass straight through rounding and clamp; the sign gets W's own, not times 2^e.
    """
    exponent = straight_through(shift.clamp(MIN_SHIFT, 0).round(), shift)
    size = torch.exp2(exponent)
    return size * sign.detach().round().sign() + (sign - sign.detach())


def fixed_point(x: Tensor, integer_bits: int = 16, fraction_bits: int = 16) -> Tensor:
    """Rounded down to multiples of 2^−fraction_bits and clamped: any shape -> the same.

    Range [−2^(i−1), 2^(i−1) − 1] for i integer bits. The gradient passes straight through.
    """
    most = 2.0 ** (integer_bits - 1)
    grid = 2.0**fraction_bits
    return straight_through(((x * grid).floor() / grid).clamp(-most, most - 1), x)


class ShiftLinear(nn.Module):
    """Linear layer whose weights are signed powers of two: (…, in) -> (…, out)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.shift = nn.Parameter(torch.empty(out_features, in_features).uniform_(MIN_SHIFT, 0))
        self.sign = nn.Parameter(torch.empty(out_features, in_features).uniform_(-1, 1))
        bound = in_features**-0.5
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))

    @torch.no_grad()
    def copy_dense(self, layer: nn.Linear) -> None:
        """In place: the nearest powers of two to a dense layer's weights, and its bias."""
        shift, sign = power_of_two(layer.weight)
        self.shift.copy_(shift.clamp(MIN_SHIFT, 0))
        self.sign.copy_(sign)
        self.bias.copy_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(fixed_point(x), shift_weight(self.shift, self.sign), fixed_point(self.bias))
