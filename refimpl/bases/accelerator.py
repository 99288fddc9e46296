"""What a layer costs on an accelerator: arithmetic, and moving its numbers through the chip.

The model of ShiftAddViT's official code (GATECH-EIC/ShiftAddViT, commit
47671cf011ad0211b9f6d476dd443157687b63c1, Apache-2.0), in the manner of Eyeriss: an array of 16 × 12
processing elements at 250 MHz, each with registers, around them a network, a buffer and the memory
outside the chip.

A layer's loops over n images, m output channels, c input channels and e output rows are cut into
    n = n0 n3,  m = m0 m1 m2 m3,  c = c0 c1 c2,  e = e1 e3
where level 3 is outside the chip, 2 in the buffer, 1 across the elements, 0 in the registers.
How often a number is moved follows from the cut; the cheapest cut that fits is taken.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

from refimpl import checks

KINDS = ("conv", "linear", "shift", "add")
ARITHMETIC = {  # pJ of one operation of a multiply-add (its sum is not charged beside it)
    32: dict(conv=3.7, linear=3.7, shift=0.13, add=0.9),
    8: dict(conv=0.2, linear=0.2, shift=0.024, add=0.03),
}
MOVE = 3.7  # pJ of a word of 16 bits from a register
DRAM, BUFFER, NETWORK, WEIGHTS = 200, 6 * MOVE, 2 * MOVE, 2 * MOVE  # pJ of a word of 16 bits
SHIFT_BITS = (16 + 5) // 2  # of an input (16) and a weight (5), on average
CLOCK = 250e6  # Hz
ELEMENTS, INPUTS, KERNEL, OUTPUTS, WORDS = 16 * 12, 12, 192 * 5, 16, 65_536  # capacities at 32 bits


class Layer(NamedTuple):
    """A layer's sizes; convolutions have square kernels, and `linear` makes linear layers."""

    kind: str
    batch: int
    kernel: int
    stride: int
    height: int
    width: int
    in_channels: int
    out_height: int
    out_width: int
    out_channels: int


class Bill(NamedTuple):
    """What the chosen cut costs: energies in mJ, latency in s.

    arithmetic, dram, buffer, network, registers add up to `energy`; so do arithmetic, inputs,
    weights, outputs. least_energy, least_latency: the best of any cut.
    """

    energy: float
    latency: float
    least_energy: float
    least_latency: float
    arithmetic: float
    dram: float
    buffer: float
    network: float
    registers: float
    inputs: float
    weights: float
    outputs: float


def linear(tokens: int, in_features: int, out_features: int, kind: str = "linear") -> Layer:
    """A linear layer as the official code counts it: its tokens are images of one pixel."""
    return Layer(kind, tokens, 1, 1, 1, 1, in_features, 1, 1, out_features)


@cache
def cuts(number: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """All ways to write `number` as an ordered product of that many factors."""
    if parts == 1:
        return ((number,),)
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return tuple((d, *rest) for d in divisors for rest in cuts(number // d, parts - 1))


@cache
def bill(layer: Layer, bits: int = 32) -> Bill:
    """What a layer costs with the cut that has the least energy and latency together.

    bits: of its numbers, 32 or 8; shifts move `SHIFT_BITS` whatever it says, and additions are
    charged neither memory nor buffer, and the network only for sums. Together: each minus its
    least, over its most, summed.
    Raises `ValueError` for an unknown kind or number of bits, sizes below 1, or a layer that fits
    in no cut.
    """
    checks.choice("kind", layer.kind, KINDS)
    checks.choice("bits", str(bits), map(str, ARITHMETIC))
    checks.integer(1, **layer._asdict() | dict(kind=1))
    _, n, r, stride, h, w, c, e, f, m = layer
    ways = list(product(cuts(n, 2), cuts(m, 4), cuts(c, 3), cuts(e, 2)))
    factors = np.array([images + outs + ins + rows for images, outs, ins, rows in ways], float).T
    n0, n3, m0, m1, m2, m3, c0, c1, c2, e1, e3 = factors  # each (ways,)

    memory, elements = (1, 1) if bits == 32 else (2, 4)  # how much more holds at 8 bits
    held = c1 * c0 * ((e1 - 1) * stride + r) * ((f - 1) * stride + r) + m2 * m1 * m0 * e1 * f
    fits = (m0 <= OUTPUTS * memory) & (m1 * c1 * e1 * r < ELEMENTS * elements)
    fits &= (
        (c0 * r < INPUTS * memory) & (m0 * c0 * r < KERNEL * memory) & (n0 * held < WORDS * memory)
    )
    if layer.kind != "linear" and (h, w, e, f) != (1, 1, 1, 1):
        fits &= e1 > 1  # rows are spread over the elements
    if not fits.any():
        raise ValueError(f"{layer} fits in no way on the accelerator: make it smaller")

    scale = (SHIFT_BITS if layer.kind == "shift" else bits) / 16 * 1e-9  # words, and mJ of a pJ
    outside = scale * (layer.kind != "add")
    entries, kernels, results = n * h * w * c, r * r * c * m, n * e * f * m
    rows, columns = r * e / h, r * f / w  # how often windows read an entry, each way
    none = np.zeros(len(ways))
    words = {  # moved from each place: inputs, weights, outputs, each (ways,)
        "dram": [m3 * entries, n3 * e3 * kernels, none + results],
        "buffer": [m3 * m2 * entries, none, np.maximum(2 * (c2 - 1), 1) * results],
        "network": [
            m3 * m2 * m1 * rows * entries,
            n3 * e3 * e1 * kernels,
            np.maximum(c2 * (c1 * r - 1), 1) * results,
        ],
        "registers": [
            m3 * m2 * m1 * m0 * rows * columns * entries,
            n3 * n0 * e3 * e1 * f * kernels,
            np.maximum(2 * c2 * c1 * r * (c0 * r - 1), 1) * results,
        ],
    }
    price = {  # of a word of inputs, weights, outputs
        "dram": [outside * DRAM] * 3,
        "buffer": [outside * BUFFER] * 3,
        "network": [outside * NETWORK, outside * NETWORK, scale * MOVE],
        "registers": [scale * MOVE, scale * WEIGHTS, scale * MOVE],
    }
    into = {  # place -> mJ of inputs, weights, outputs (3, ways)
        place: np.array(price[place])[:, None] * np.array(moved) for place, moved in words.items()
    }
    arithmetic = ARITHMETIC[bits][layer.kind] * 1e-9 * results * r * r * c
    energy = arithmetic + sum(part.sum(0) for part in into.values())
    speed = CLOCK * (32 / SHIFT_BITS if layer.kind == "shift" else 1)
    latency = n3 * n0 * m3 * m2 * m0 * c2 * c0 * e3 * f * r / speed

    least = energy[fits].min(), latency[fits].min()
    together = (energy - least[0]) / energy[fits].max()
    together = together + (latency - least[1]) / latency[fits].max()
    best = np.where(fits, together, math.inf).argmin()
    of_place = [part[:, best].sum() for part in into.values()]
    of_what = sum(part[:, best] for part in into.values())
    found = (energy[best], latency[best], *least, arithmetic, *of_place, *of_what)
    return Bill(*(float(value) for value in found))
