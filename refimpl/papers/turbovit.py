"""TurboViT: fast transformers by generative architecture search — *our reconstruction* of it.

Wong, Abbasi, Nair, *TurboViT: Generating Fast Vision Transformers via Generative Architecture
Search*, 2023, arXiv 2308.11421. **Neither code, widths nor weights were released**: the network
that the authors found can't be built here. Each part says where it is from:

    [P]  stated in the paper's abstract, or in public summaries of it
    [H]  Hiera's code, from which the paper takes its building blocks (`refimpl.bases.hiera`)
    [D]  follows by arithmetic from published figures
    [A]  our assumption, plausible and unverified

The idea: search a *generator* of networks, not a network. [P in spirit]

    G* = argmax_G U(G(s))   subject to   1_r(G(s)) = 1   for all seeds s

U is a measure of how good a network is, 1_r indicates that it meets hard requirements. A generator
and an inquisitor take turns: one makes networks, the other probes them and changes the generator.
[P] The rule by which it does so was never published; a cross-entropy method takes its place. [A]

    generate   one option per choice i from softmax(l_i), again until 1_r = 1
    inquire    l_i ← (l_i + log f_i) / 2,  f_i the options' smoothed shares in the elite

Networks are Hiera's: blocks of mask unit attention, and queries pooled at three places. [P, H] So
1_r costs no network, as sizes are closed forms. A block of N tokens, N' of which are left, from d
to d' wide, with h hidden channels and K keys for each query:

    parameters      2d + 3dd' + 3d' + d'² + d' + 2d' + 2hd' + h + d'  (+ dd' + d' where d ≠ d')
    multiply-adds   3Ndd' + 2N'Kd' + N'd'² + 2N'hd'  (+ Ndd')
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import product
from math import inf, log10
from typing import NamedTuple

import numpy as np

from refimpl import checks
from refimpl.bases.hiera import PATCH, POOL, Hiera, unrollings

TRIES = 10_000  # designs in a row that may miss the requirements

Picks = tuple[int, ...]  # a design: of each choice the number of its option
Told = tuple[float, Picks]


# The heart: the generator, and the inquisitor that moves it. [A]


def generate(logits: Sequence[np.ndarray], meets: Callable[[Picks], bool], rng: random.Random):
    """G(s): one option of each choice, drawn again until the requirements hold.

    logits: (options,) of each choice; rng: the seed. Raises `ValueError` where none is met.
    """
    weights = [np.exp(scores - scores.max()).tolist() for scores in logits]  # softmax · constant
    for _ in range(TRIES):
        picks = []
        for options in weights:
            picks += rng.choices(range(len(options)), options)
        if meets(tuple(picks)):  # 1_r(G(s)) = 1
            return tuple(picks)
    raise ValueError(f"meets: none of {TRIES} designs drawn meets the requirements")


def inquire(logits: Sequence[np.ndarray], told: Sequence[Told], elite: int = 3):
    """The generator's next logits: half the old ones, half what the elite has in common.

    told: (utility, picks) of every network probed so far.
    """
    best = sorted(set(told), reverse=True)[:elite]
    moved = []
    for choice, scores in enumerate(logits):
        options = [picks[choice] for _, picks in best]
        counts = np.bincount(options, minlength=len(scores)) + 0.5  # no option dies out
        moved.append((scores + np.log(counts / counts.sum())) / 2)
    return moved


class Generator:
    """The generator–inquisitor pair, to be asked and told (`refimpl.lab.search`).

    sizes: options of each choice; meets: whether a design meets the requirements. prototype: a
    design that is more likely than others at first, by the share `trust` of each choice. The
    inquisitor looks after every `per_round` networks at the `elite` best. A design that was told
    is not proposed again, so that every evaluation buys a new one. The same seed, the same search.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        meets: Callable[[Picks], bool],
        prototype: Picks,
        trust: float = 0.4,
        per_round: int = 2,
        elite: int = 3,
        seed: int = 0,
    ):
        checks.at_least(1, sizes=tuple(sizes))
        checks.same_length(sizes=tuple(sizes), prototype=tuple(prototype))
        checks.fraction(trust=trust)
        checks.integer(1, per_round=per_round, elite=elite)
        for choice, (size, pick) in enumerate(zip(sizes, prototype, strict=True)):
            if pick not in range(size):
                raise ValueError(
                    f"prototype={prototype}: choice {choice} has {size} options, from 0"
                )
        self.meets = meets
        self.per_round = per_round
        self.elite = elite
        self.rng = random.Random(seed)
        self.told: list[Told] = []
        self.logits = []
        for size, pick in zip(sizes, prototype, strict=True):
            shares = np.full(size, (1 - trust) / size)
            shares[pick] += trust
            self.logits.append(np.log(shares))

    def probabilities(self) -> list[np.ndarray]:
        """Of the options of each choice: (options,), sum 1."""
        shares = [np.exp(scores - scores.max()) for scores in self.logits]
        return [share / share.sum() for share in shares]

    def ask(self) -> Picks:
        known = {picks for _, picks in self.told}
        return generate(self.logits, lambda p: p not in known and self.meets(p), self.rng)

    def tell(self, picks: Picks, utility: float) -> None:
        """Hear a network's utility; at the end of a round the inquisitor moves the generator."""
        self.told.append((utility, tuple(picks)))
        if len(self.told) % self.per_round == 0:
            self.logits = inquire(self.logits, self.told, self.elite)


# What is asked of a network: U, and the requirements 1_r.


def netscore(
    accuracy: float,
    parameters: float,
    multiply_adds: float,
    alpha: float = 2.0,
    beta: float = 0.5,
    gamma: float = 0.5,
) -> float:
    """U = 20 log₁₀(a^α / (p^β m^γ)), decibels: the authors' measure before (arXiv 1806.05512).

    accuracy in percent, parameters in millions, multiply-adds in thousand millions. Half of both
    sizes is worth 6 dB, as much as an accuracy 1.41 times as high.
    """
    checks.positive(accuracy=accuracy, parameters=parameters, multiply_adds=multiply_adds)
    return 20 * (alpha * log10(accuracy) - beta * log10(parameters) - gamma * log10(multiply_adds))


class Counts(NamedTuple):
    """Size of a network, and its work for one image."""

    parameters: int
    multiply_adds: int


class Requirements(NamedTuple):
    """Hard upper bounds; `inf` asks nothing."""

    parameters: float = inf
    multiply_adds: float = inf

    def load(self, counts: Counts) -> float:
        """How much of its bounds a network uses, of the tighter one: 1_r = 1 up to 1."""
        return max(counts.parameters / self.parameters, counts.multiply_adds / self.multiply_adds)

    def met(self, counts: Counts) -> bool:
        """1_r."""
        return self.load(counts) <= 1


# [D] 2.47 times fewer parameters than FasterViT-0 (31.4 M), 3.4 times fewer multiply-adds than
# MobileViTv2-2.0 (7.5 G, which the tables call FLOPs)
PAPER = Requirements(parameters=31.4e6 / 2.47, multiply_adds=7.5e9 / 3.4)


def counts(
    img_size: int | tuple[int, int] = 224,
    in_chans: int = 3,
    num_classes: int = 1000,
    embed_dim: int = 96,
    depths: tuple[int, ...] = (1, 2, 7, 2),
    mlp_ratio: float = 4.0,
    q_pool: int = 3,
    mask_unit_attn: tuple[bool, ...] = (True, True, False, False),
    mask_unit_size: int = 8,
    dim_mul: float = 2.0,
) -> Counts:
    """Size of the Hiera of these arguments, which is not built. Heads change neither number. [H]

    The same as counting its tensors and `refimpl.bases.hiera.multiply_adds`.
    """
    checks.same_length(depths=tuple(depths), mask_unit_attn=tuple(mask_unit_attn))
    checks.at_least(1, depths=tuple(depths))
    checks.integer(1, in_chans=in_chans, embed_dim=embed_dim, mask_unit_size=mask_unit_size)
    checks.integer(0, num_classes=num_classes, q_pool=q_pool)
    checks.positive(mlp_ratio=mlp_ratio, dim_mul=dim_mul)
    unrollings(depths, q_pool, mask_unit_size)
    height, width = checks.image_size(img_size, PATCH * mask_unit_size, "a mask unit's side")
    tokens = (height // PATCH) * (width // PATCH)
    unit = mask_unit_size**2  # tokens that attend to each other, where they do so locally
    kernel = 49 * in_chans * embed_dim  # 7×7
    parameters = kernel + embed_dim + tokens * embed_dim
    work = tokens * kernel
    dim = embed_dim
    for stage, depth in enumerate(depths):
        for i in range(depth):
            first = stage > 0 and i == 0
            pools = first and stage <= q_pool
            out = int(dim * dim_mul) if first else dim
            left = tokens // POOL if pools else tokens
            keys = unit if mask_unit_attn[stage - first] else tokens
            hidden = int(out * mlp_ratio)
            maps = 3 * dim * out + out * out + 2 * hidden * out  # weights of linear layers
            parameters += maps + 2 * dim + 7 * out + hidden  # with norms and biases
            work += 3 * tokens * dim * out + 2 * left * keys * out
            work += left * out * out + 2 * left * hidden * out
            if out != dim:
                parameters += dim * out + out
                work += tokens * dim * out
            unit = unit // POOL if pools else unit
            dim, tokens = out, left
    parameters += 2 * dim + (dim + 1) * num_classes  # the last norm, the classifier
    return Counts(parameters, work + dim * num_classes)


class Space(NamedTuple):
    """Hiera-shaped designs: one option of each choice. [P for the shape, A for the options]"""

    embed_dims: tuple[int, ...]
    depths: tuple[tuple[int, ...], ...]  # options for each stage
    mlp_ratios: tuple[float, ...]
    mask_unit_attn: tuple[tuple[bool, ...], ...]  # each one a flag per stage

    @property
    def choices(self) -> tuple[tuple, ...]:
        return (self.embed_dims, *self.depths, self.mlp_ratios, self.mask_unit_attn)

    @property
    def sizes(self) -> Picks:
        """Options of each choice, as `Generator` wants them."""
        return tuple(len(options) for options in self.choices)

    def all(self) -> list[Picks]:
        return list(product(*map(range, self.sizes)))

    def design(self, picks: Picks) -> dict:
        """Arguments of `Hiera` and of `counts`. Raises `ValueError` outside the space."""
        if len(picks) != len(self.sizes) or any(
            pick not in range(size) for pick, size in zip(picks, self.sizes, strict=True)
        ):
            raise ValueError(f"picks={picks} must name an option of each choice: {self.sizes}")
        options = [choice[pick] for choice, pick in zip(self.choices, picks, strict=True)]
        embed_dim, *depths, mlp_ratio, mask_unit_attn = options
        return {
            "embed_dim": embed_dim,
            "depths": tuple(depths),
            "mlp_ratio": mlp_ratio,
            "mask_unit_attn": mask_unit_attn,
        }


EARLY = (True, True, False, False)  # attend locally early and globally late [H]
SPACE = Space(
    embed_dims=tuple(range(32, 129, 8)),
    depths=((1, 2, 3), (1, 2, 3, 4), tuple(range(1, 17)), (1, 2, 3, 4)),
    mlp_ratios=(1.0, 2.0, 3.0, 4.0),
    mask_unit_attn=(EARLY,),
)


class TurboLike(Hiera):
    """A stand-in within the paper's bounds, *not* the authors' network. Arguments: as of `Hiera`.

    Images (b, in_chans, *img_size) -> logits (b, num_classes).
    """


# Hiera-shaped, within `PAPER`. The authors' widths and depths are unknown: these are ours. [A]
VARIANTS: dict[str, dict] = {
    "like_48": {"embed_dim": 48, "depths": (1, 2, 11, 2)},
    "like_56": {"embed_dim": 56, "depths": (1, 2, 7, 2)},
    "like_56_deep": {"embed_dim": 56, "depths": (1, 1, 12, 1)},
}
MODEL = TurboLike
