"""The networks that a search may choose among, as data: ElasticViT's space, what its networks cost,
and evolution in it.

Tang and others, ICCV 2023, arXiv 2303.09730; microsoft/Moonlit, ElasticViT @ 348a402,
models/model.py `compute_flops` and search.py. The network itself is `refimpl.papers.elasticvit`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from refimpl import checks

HEAD_DIM = 16
EXPAND = 6  # of the reductions, and of the head
FEATURES = 1984
STRIDES = (2, 2, 2, 1, 2, 2)  # of the six stages; the stem has 2 too
CONV_STAGES = 2
GATED = (False, True)  # of these
TRIES = 100_000


class Genotype(NamedTuple):
    """One network: its resolution, and per stage widths, depths and ratios. All blocks of a stage
    are equal. embed_dims, depths: stem and six stages; expand_ratios: two convolutional stages;
    kernel_sizes: stem and these two; mlp_ratios, value_ratios: four stages of attention."""

    img_size: int
    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    expand_ratios: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    value_ratios: tuple[int, ...]

    @classmethod
    def from_official(cls, arch: Sequence) -> Genotype:
        """Of the official code's list: resolution, channels, depths, then lists with one entry a
        block: expansion, kernel, MLP ratio, heads, window, query-key scale, value scale."""
        size, dims, depths, expand, kernels, mlp, heads, windows, scales, values = arch
        conv, tokens = depths[: CONV_STAGES + 1], depths[CONV_STAGES + 1 :]
        per_stage = [
            one_a_stage("expand_ratios", expand, conv)[1:],
            one_a_stage("kernel_sizes", kernels, conv),
            one_a_stage("mlp_ratios", mlp, tokens),
            one_a_stage("value_ratios", values, tokens),
        ]
        expected = [dim // HEAD_DIM for dim in dims[CONV_STAGES + 1 :]]
        found = one_a_stage("heads", heads, tokens)
        if list(found) != expected or set(windows) != {1} or set(scales) != {1}:
            raise ValueError(
                f"heads={found} must be {expected}, {HEAD_DIM} channels each, and windows and"
                f" query-key scales 1, got {windows} and {scales}"
            )
        return cls(size, tuple(dims), tuple(depths), *per_stage)


def one_a_stage(name: str, entries: Sequence[int], depths: Sequence[int]) -> tuple[int, ...]:
    """One entry a stage, from one a block, which must be equal within a stage."""
    rest = list(entries)
    stages = []
    for depth in depths:
        stage, rest = rest[:depth], rest[depth:]
        if len(stage) != depth or len(set(stage)) != 1:
            raise ValueError(f"{name}={list(entries)} must hold one value a stage, depths {depths}")
        stages.append(stage[0])
    if rest:
        raise ValueError(f"{name}={list(entries)} must have {sum(depths)} entries")
    return tuple(stages)


def bottleneck_cost(
    dim: int, width: int, ratio: int, kernel: int, sides: tuple[int, int], gated: bool
) -> int:
    """Multiply-adds of a `MobileBlock` by the authors' formula; sides: of its input and output."""
    before, after = sides[0] ** 2, sides[1] ** 2
    inner = dim * ratio
    total = dim * inner * before if ratio > 1 else 0
    total += inner * (kernel**2 + width) * after
    total += 2 * inner * (inner // 4) if gated else 0
    return total + (dim * width * after if sides[0] > sides[1] else 0)


def attention_cost(width: int, ratio: int, tokens: int) -> int:
    """Multiply-adds of an `Attention` by the authors' formula: a value's 3×3 counts as one."""
    values = width * ratio
    linear = tokens * width * (2 * width + values) + tokens * values * width
    maps = tokens**2 * (width + width // HEAD_DIM + values)
    return linear + maps + tokens * values


def mflops(genotype: Genotype, in_chans: int = 3, num_classes: int = 1000) -> float:
    """Multiply-adds in millions by the authors' formula, in which the paper's limits are given.

    It leaves out gates and shortcuts of the reductions, and counts their odd sides as even ones.
    """
    g = genotype
    side = -(-g.img_size // 2)
    dim = g.embed_dims[0]
    total = 9 * in_chans * dim * side**2
    total += g.depths[0] * bottleneck_cost(dim, dim, 1, g.kernel_sizes[0], (side, side), False)
    for i, (width, depth) in enumerate(zip(g.embed_dims[1:], g.depths[1:], strict=True)):
        after = -(-side // STRIDES[i])
        if i < CONV_STAGES:
            ratio, kernel, gated = g.expand_ratios[i], g.kernel_sizes[i + 1], GATED[i]
            total += bottleneck_cost(dim, width, ratio, kernel, (side, after), gated)
            block = bottleneck_cost(width, width, ratio, kernel, (after, after), gated)
            total += (depth - 1) * block
        else:
            tokens = after**2
            total += EXPAND * dim * (dim * STRIDES[i] ** 2 + 9 + width) * tokens
            total += depth * attention_cost(width, g.value_ratios[i - CONV_STAGES], tokens)
            total += depth * 2 * tokens * width**2 * g.mlp_ratios[i - CONV_STAGES]
        side, dim = after, width
    total += EXPAND * dim * (dim * tokens + FEATURES) + FEATURES * num_classes
    return total / 1e6


def preference(genotype: Genotype, anchor: Genotype) -> float:
    """The lower, the more of its cost is width: FLOPs(anchor's widths) − FLOPs(anchor's depths).

    Of the stages of attention only, in millions.
    """
    start = CONV_STAGES + 1
    dims = genotype.embed_dims[:start] + anchor.embed_dims[start:]
    depths = genotype.depths[:start] + anchor.depths[start:]
    return mflops(genotype._replace(embed_dims=dims)) - mflops(genotype._replace(depths=depths))


class Space(NamedTuple):
    """All networks that the supernet holds: choices per gene, each from small to large."""

    img_sizes: tuple[int, ...]
    embed_dims: tuple[tuple[int, ...], ...]  # stem and six stages; along a network they never fall
    depths: tuple[tuple[int, ...], ...]
    expand_ratios: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    value_ratios: tuple[int, ...]
    levels: tuple[float, ...]  # million multiply-adds
    band: float  # a level's networks cost so much more at most
    floors: tuple[tuple[float, int], ...]  # up to this level, a network of so many pixels is kept

    def choices(self) -> dict[str, list[tuple[int, ...]]]:
        """Gene -> what each of its places may hold."""
        return {
            "img_size": [self.img_sizes],
            "embed_dims": list(self.embed_dims),
            "depths": list(self.depths),
            "expand_ratios": [self.expand_ratios] * CONV_STAGES,
            "kernel_sizes": [self.kernel_sizes] * (CONV_STAGES + 1),
            "mlp_ratios": [self.mlp_ratios] * (len(STRIDES) - CONV_STAGES),
            "value_ratios": [self.value_ratios] * (len(STRIDES) - CONV_STAGES),
        }

    def made(self, pick: Callable[[str, int, list[int]], int], least: Genotype | None = None):
        """The network whose genes `pick(gene, place, options)` chooses, none below `least`'s."""
        genes = {}
        for gene, places in self.choices().items():
            values: list[int] = []
            for place, options in enumerate(places):
                floor = as_tuple(getattr(least, gene))[place] if least else 0
                if gene == "embed_dims" and values:
                    floor = max(floor, values[-1])
                values.append(pick(gene, place, [x for x in options if x >= floor]))
            genes[gene] = values[0] if gene == "img_size" else tuple(values)
        return Genotype(**genes)

    def smallest(self) -> Genotype:
        return self.made(lambda gene, place, options: options[0])

    def largest(self) -> Genotype:
        return self.made(lambda gene, place, options: options[-1])

    def draw(self, rng: random.Random, least: Genotype | None = None) -> Genotype:
        """Every gene uniformly among what it may hold here."""
        return self.made(lambda gene, place, options: rng.choice(options), least)

    def least(self, level: int) -> Genotype:
        """The smallest network that is kept for a level."""
        size = next(size for limit, size in self.floors if self.levels[level] <= limit)
        return self.smallest()._replace(img_size=size)

    def near(self, level: int, rng: random.Random) -> Genotype:
        """A network of this level, drawn until its cost is right."""
        target = self.levels[level]
        for _ in range(TRIES):
            genotype = self.draw(rng, self.least(level))
            if target <= mflops(genotype) <= target + self.band:
                return genotype
        raise ValueError(
            f"level {level} is met by no network: none of {TRIES} drawn costs {target} to"
            f" {target + self.band} million multiply-adds"
        )

    preference = staticmethod(preference)

    def check(self, genotype: Genotype) -> None:
        """Raise a `ValueError` unless the space holds this network."""
        for gene, places in self.choices().items():
            values = as_tuple(getattr(genotype, gene))
            if len(values) != len(places):
                raise ValueError(f"{gene}={values} must have {len(places)} entries")
            for place, (value, options) in enumerate(zip(values, places, strict=True)):
                if value not in options:
                    raise ValueError(
                        f"{gene}={values}: {value} at place {place} is outside the space, which"
                        f" has {options}"
                    )
        if list(genotype.embed_dims) != sorted(genotype.embed_dims):
            raise ValueError(f"embed_dims={genotype.embed_dims} must not fall along the network")


def as_tuple(gene: int | tuple[int, ...]) -> tuple[int, ...]:
    return gene if isinstance(gene, tuple) else (gene,)


SPACE = Space(
    img_sizes=(128, 160, 176, 192, 224, 256),
    embed_dims=(
        (16, 24),
        (16, 24, 32),
        (16, 24, 32, 40, 48),
        (48, 64, 80, 96),
        tuple(range(80, 161, 16)),
        tuple(range(144, 289, 16)),
        tuple(range(160, 321, 16)),
    ),
    depths=(
        (1, 2),
        (2, 3, 4, 5),
        (2, 3, 4, 5, 6),
        (1, 2, 3, 4, 5),
        *[(1, 2, 3, 4, 5, 6)] * 3,
    ),
    expand_ratios=(3, 4, 5, 6),
    kernel_sizes=(3, 5),
    mlp_ratios=(2, 3, 4, 5),
    value_ratios=(2, 3, 4),
    levels=(100, 200, 300, 400, 500, 700, 900, 1200),
    band=20,
    floors=((220, 128), (420, 176), (float("inf"), 224)),
)


# The published networks: resolution, widths, depths; expansion, kernels, MLP and value ratios.
TABLE = {
    "t1": (
        (128, (16, 24, 32, 64, 96, 176, 272), (1, 2, 3, 1, 1, 1, 1)),
        ((3, 3), (3, 3, 3), (2, 2, 3, 4), (2, 2, 2, 2)),
    ),
    "t2": (
        (160, (16, 24, 40, 48, 96, 176, 256), (1, 2, 3, 1, 1, 2, 2)),
        ((3, 3), (3, 3, 3), (3, 4, 3, 2), (2, 2, 2, 2)),
    ),
    "s1": (
        (192, (16, 24, 40, 64, 96, 192, 272), (1, 3, 3, 2, 2, 2, 2)),
        ((3, 3), (3, 3, 3), (2, 2, 3, 4), (2, 2, 2, 2)),
    ),
    "s2": (
        (224, (16, 24, 48, 64, 96, 192, 256), (1, 3, 3, 2, 2, 2, 2)),
        ((3, 3), (3, 3, 3), (2, 2, 2, 4), (2, 2, 2, 2)),
    ),
    "m": (
        (224, (16, 32, 48, 64, 96, 192, 288), (1, 3, 5, 2, 2, 2, 2)),
        ((3, 3), (5, 3, 3), (2, 4, 4, 5), (2, 2, 2, 2)),
    ),
    "l1": (
        (256, (16, 24, 40, 64, 96, 192, 320), (1, 3, 3, 2, 2, 2, 2)),
        ((3, 6), (5, 5, 5), (4, 3, 4, 4), (2, 2, 2, 2)),
    ),
    "l1_5": (
        (256, (16, 24, 48, 64, 96, 256, 320), (2, 4, 4, 2, 2, 2, 2)),
        ((3, 4), (3, 3, 5), (4, 5, 3, 5), (2, 2, 2, 2)),
    ),
    "l2": (
        (256, (16, 24, 40, 80, 128, 256, 304), (1, 3, 4, 2, 2, 2, 2)),
        ((6, 6), (3, 3, 3), (3, 2, 3, 5), (2, 2, 2, 3)),
    ),
    "l3": (
        (256, (16, 32, 48, 80, 128, 256, 320), (1, 3, 4, 2, 2, 2, 2)),
        ((5, 5), (5, 3, 5), (4, 4, 3, 5), (2, 2, 2, 2)),
    ),
}
PUBLISHED = {name: Genotype(*sizes, *ratios) for name, (sizes, ratios) in TABLE.items()}


def mutated(genotype: Genotype, space: Space, rng: random.Random) -> Genotype:
    """Every depth changes with probability 0.4, every other gene with 0.2.

    A changed gene takes its smallest value with probability 0.55, else any. Widths that then fall
    along the network are raised.
    """

    def pick(gene: str, place: int, options: list[int]) -> int:
        kept = max(as_tuple(getattr(genotype, gene))[place], options[0])
        if rng.random() >= (0.4 if gene == "depths" else 0.2):
            return kept
        return options[0] if rng.random() < 0.55 else rng.choice(options)

    return space.made(pick)


def crossed(mother: Genotype, father: Genotype, space: Space, rng: random.Random) -> Genotype:
    """Every gene from one of the two; widths that then fall along the network are raised."""

    def pick(gene: str, place: int, options: list[int]) -> int:
        parent = rng.choice((mother, father))
        return max(as_tuple(getattr(parent, gene))[place], options[0])

    return space.made(pick)


class Evolution:
    """The paper's search at one budget, to be asked and told (`refimpl.lab.search`).

    legal: whether a network is within the budget; first: known good ones, from a memory.
    initial networks, filled up by chance; then rounds of `children`, one half mutated, the other
    crossed, of the best `parents` so far. Higher scores are better.
    """

    def __init__(
        self,
        space: Space,
        legal: Callable[[Genotype], bool],
        first: Sequence[Genotype] = (),
        initial: int = 512,
        parents: int = 256,
        children: int = 256,
        seed: int = 0,
    ):
        checks.integer(1, initial=initial, parents=parents)
        checks.integer(2, children=children)
        self.space = space
        self.legal = legal
        self.parents = parents
        self.children = children
        self.rng = random.Random(seed)
        self.scores: dict[Genotype, float] = {}
        self.seen: set[Genotype] = set()
        self.queue = [genotype for genotype in first if legal(genotype)]
        self.seen.update(self.queue)
        while len(self.queue) < initial:
            self.queue.append(self.new(lambda: self.space.draw(self.rng)))

    def new(self, propose: Callable[[], Genotype]) -> Genotype:
        """A proposal that is legal and was not made before."""
        for _ in range(TRIES):
            genotype = propose()
            if genotype not in self.seen and self.legal(genotype):
                self.seen.add(genotype)
                return genotype
        raise ValueError(
            f"the budget is met by no further network: {TRIES} proposals are not legal"
        )

    def breed(self) -> None:
        """The next round."""
        ranked = sorted(self.scores, key=lambda genotype: -self.scores[genotype])
        best = ranked[: self.parents]

        def mutation() -> Genotype:
            return mutated(self.rng.choice(best), self.space, self.rng)

        def crossover() -> Genotype:
            return crossed(self.rng.choice(best), self.rng.choice(best), self.space, self.rng)

        for i in range(self.children):
            self.queue.append(self.new(mutation if i < self.children // 2 else crossover))

    def ask(self) -> Genotype:
        if not self.queue:
            self.breed()
        return self.queue.pop(0)

    def tell(self, genotype: Genotype, score: float) -> None:
        self.scores[genotype] = score
