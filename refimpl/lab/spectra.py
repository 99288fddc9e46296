"""Spatial frequency of maps: how much of their energy changes quickly from place to place.

The frequency of a map's channel is how many periods fit along it; Nyquist's frequency is half its
side, a change of sign from each position to the next. Frequency 0 is the mean (DC).
"""

from __future__ import annotations

import torch
from torch import Tensor

from refimpl import checks


def energy(features: Tensor) -> tuple[Tensor, Tensor]:
    """|FFT|² of square maps (b, c, side, side), the mean over images and channels, and where.

    Returns energies and their distance from DC in periods per map: (side, side) float64 each.
    The energies sum to what the squares of a map sum to on average.
    """
    checks.shapes({"features": "b c side side"}, features=features)
    side = features.shape[-1]
    found = torch.fft.fft2(features.double(), norm="ortho").abs().square().mean((0, 1))
    periods = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    return found, torch.hypot(periods[:, None], periods)


def spectrum(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean energy by frequency: (b, c, side, side) -> (frequencies, energies), (side // 2 + 1,).

    Frequencies are fractions of Nyquist's; an energy is the mean over all directions that round to
    the same number of periods. Corners beyond Nyquist's frequency are left out.
    """
    found, radius = energy(features)
    last = len(found) // 2
    ring = radius.round().long()
    means = torch.stack([found[ring == i].mean() for i in range(last + 1)])
    return torch.arange(last + 1) * 2 / len(found), means


def high_frequency_share(features: Tensor, beyond: float = 0.5) -> float:
    """Share of the energy of maps (b, c, side, side) beyond a fraction of Nyquist's frequency.

    The mean counts as energy, so a constant map has 0. `ValueError` where all is zero.
    """
    checks.fraction(beyond=beyond)
    found, radius = energy(features)
    if not found.sum() > 0:
        raise ValueError("features are all zero: their energy has no shares")
    return float(found[radius > beyond * len(found) / 2].sum() / found.sum())


def gain(before: Tensor, after: Tensor, frequency: int) -> float:
    """What is left of the amplitude of one frequency along a line of tokens, (n, d) each.

    frequency: whole periods along the line, at most n / 2. `ValueError` where `before` has none.
    """
    n = len(before)
    if not 0 <= frequency <= n // 2:
        raise ValueError(f"frequency={frequency} must be from 0 to {n // 2}, half of {n} tokens")
    amplitude = torch.fft.fft(before.double(), dim=0)[frequency].norm()
    if amplitude < 1e-9:
        raise ValueError(f"frequency={frequency} is not in the tokens: its amplitude is 0")
    return float(torch.fft.fft(after.double(), dim=0)[frequency].norm() / amplitude)
