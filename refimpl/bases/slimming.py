"""Networks of pooling (4D) and attention (3D) blocks as data, and the ways to make one smaller.

What EfficientFormer's slimming moves in (Li and others, NeurIPS 2022, arXiv 2206.01191, section
*Latency Driven Slimming*): depth, width, and the number of attention blocks; neither kernel sizes
nor expansion ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from refimpl import checks

KINDS = ("identity", "4d", "3d")
LEAST_WIDTH = 16  # widths are multiples of it

Importance = Sequence[Sequence[float]]


def map_side(img_size: int, stage: int) -> int:
    """Side of the map in a stage: a quarter of the image in the first, then half, rounded up."""
    return -(-img_size // (4 * 2**stage))


@dataclass(frozen=True)
class Architecture:
    """A network inside a supernet: its widths, and per stage what stands at each place.

    kinds: "4d", "3d" or "identity"; 3D blocks in the last stage, and behind all of its 4D blocks.
    Every stage keeps a block. Raises `ValueError` for anything else.
    """

    embed_dims: tuple[int, ...]
    kinds: tuple[tuple[str, ...], ...]

    def __post_init__(self):
        checks.same_length(embed_dims=self.embed_dims, kinds=self.kinds)
        checks.at_least(1, embed_dims=self.embed_dims, depths=self.depths)
        for kind in chain(*self.kinds):
            checks.choice("kinds", kind, KINDS)
        last = [kind for kind in self.kinds[-1] if kind != "identity"]
        if "3d" in chain(*self.kinds[:-1]) or last != sorted(last, reverse=True):
            raise ValueError(
                f"kinds={self.kinds}: 3D blocks must stand at the end of the last stage, since"
                " behind them no map is left"
            )

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage."""
        return tuple(len(stage) - stage.count("identity") for stage in self.kinds)

    def arguments(self) -> dict:
        """What `EfficientFormer` wants to know of it."""
        num_vit = self.kinds[-1].count("3d")
        return {"embed_dims": self.embed_dims, "depths": self.depths, "num_vit": num_vit}

    def parts(self, img_size: int, in_chans: int) -> list[tuple]:
        """The layers that it is put together from, one key each: (kind, side of the map, widths …).

        The head is left out: it takes next to nothing.
        """
        dims = self.embed_dims
        keys = [("stem", img_size, in_chans, dims[0])]
        for i, stage in enumerate(self.kinds):
            if i > 0:
                keys.append(("embedding", map_side(img_size, i - 1), dims[i - 1], dims[i]))
            side = map_side(img_size, i)
            keys += [(kind, side, dims[i]) for kind in stage if kind != "identity"]
        return keys

    def placing(self, stage: int, place: int, kind: str) -> Architecture:
        """The same with another kind at one place."""
        kinds = [list(row) for row in self.kinds]
        kinds[stage][place] = kind
        return replace(self, kinds=tuple(map(tuple, kinds)))

    def narrowing(self, stage: int) -> Architecture:
        """The same with one stage cut to the next smaller multiple of 16."""
        dims = list(self.embed_dims)
        dims[stage] = (dims[stage] - 1) // LEAST_WIDTH * LEAST_WIDTH
        return replace(self, embed_dims=tuple(dims))


def actions(architecture: Architecture, importance: Importance) -> dict[str, list[Architecture]]:
    """What each of the three actions leads to, the least important first.

    importance: per stage and place. "remove": a block by identity, as long as its stage keeps
    one; "exchange": the first 3D block by a 4D block; "narrow": a stage by up to 16 channels.
    """
    blocks = []
    stages = []
    for s, stage in enumerate(architecture.kinds):
        real = [(importance[s][i], s, i) for i, kind in enumerate(stage) if kind != "identity"]
        stages.append((sum(value for value, *_ in real), s))
        if len(real) > 1:
            blocks += real
    last = architecture.kinds[-1]
    found = {
        "remove": [architecture.placing(s, i, "identity") for _, s, i in sorted(blocks)],
        "exchange": [],
        "narrow": [
            architecture.narrowing(s)
            for _, s in sorted(stages)
            if architecture.embed_dims[s] > LEAST_WIDTH
        ],
    }
    if "3d" in last:
        found["exchange"].append(architecture.placing(len(stages) - 1, last.index("3d"), "4d"))
    return found


def least_latency(architecture: Architecture, latency: Callable[[Architecture], float]) -> float:
    """What is reached when every step is the one that saves most, until none saves anything."""
    level = [[0.0] * len(stage) for stage in architecture.kinds]
    while True:
        smaller = [a for options in actions(architecture, level).values() for a in options]
        best = min(smaller, key=latency, default=architecture)
        if latency(best) >= latency(architecture):
            return latency(architecture)
        architecture = best


def within_reach(
    target: float, architecture: Architecture, latency: Callable[[Architecture], float]
) -> None:
    """Raise a `ValueError` for a target that no slimming of this architecture reaches."""
    checks.positive(target=target)
    least = least_latency(architecture, latency)
    if target < least:
        raise ValueError(
            f"target={target:.4g} can't be reached from this architecture: the least reachable"
            f" latency is {least:.4g}"
        )


@dataclass(frozen=True)
class Step:
    """One step of a slimming: what was done, and what it led to.

    latency: in the table's unit (ms); accuracy: a fraction, inside the supernet.
    """

    action: str
    architecture: Architecture
    latency: float
    accuracy: float
