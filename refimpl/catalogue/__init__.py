"""The papers as data: what each says, what is claimed, where its code departs from its text.

One file per paper, `catalogue/<stem>.py`, which defines `PAPER`. `PARTS` is the only place of the
book's order. Imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Literal, NamedTuple

Kind = Literal["identity", "miniature", "out_of_reach"]


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper that can be tested."""

    id: str  # "<stem>.<number>"
    statement: str  # as strong as the abstract says it
    reported: str  # the paper's own numbers
    kind: Kind
    rule: str = ""  # which measured quantity means what; see `chapter.claims.verdict`
    needs: str = ""  # out_of_reach: the hardware or data that a laptop lacks
    command: str = ""  # out_of_reach: what would test it


@dataclass(frozen=True)
class Difference:
    """Where the official code departs from the paper, or from sense."""

    id: str  # "<stem>.d<number>"
    paper_says: str
    code_does: str
    effect: str
    test: str = ""  # of a test that shows it: "tests/papers/test_<stem>.py::test_name"


@dataclass(frozen=True)
class Paper:
    """What the book knows about a paper before it runs anything."""

    stem: str
    name: str  # short name, "EfficientViT"
    title: str
    authors: str
    venue: str
    year: int
    idea: str  # one line
    arxiv: str = ""
    code: str = ""  # repository of the official code, "" where there is none
    commit: str = ""
    licence: str = ""
    variants: tuple[str, ...] = ()  # models that can be created, as in the paper's table
    top1: tuple[tuple[str, float], ...] = ()  # (variant, published % on ImageNet-1k), authors' own
    kernels: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    differences: tuple[Difference, ...] = ()

    @property
    def url(self) -> str:
        """Address on arXiv, `""` where the paper is not there."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    @property
    def part(self) -> str:
        """Key of the part of the book that it stands in."""
        return next(key for key, part in PARTS.items() if self.stem in part.stems)


class Part(NamedTuple):
    """A part of the book: its title, and its papers in the book's order."""

    title: str
    stems: tuple[str, ...]


PARTS: dict[str, Part] = {
    "attention": Part(
        "Attention rebuilt", ("efficientvit", "efficientformer", "efficientmod", "fmvit")
    ),
    "state_spaces": Part("State spaces", ("efficientvim", "efficientvmamba")),
    "tokens": Part("Fewer tokens", ("stvit", "lookupvit", "lgvit")),
    "bits": Part(
        "Fewer bits and multiplications",
        ("efficientqat", "qhyvit", "shiftaddvit", "mpcvit", "edge_moe"),
    ),
    "search": Part("Searching for architectures", ("elasticvit", "asvit", "turbovit", "nvit")),
    "learning": Part("Learning with less", ("tinyvit", "deit_lt", "hint_aug", "vivit")),
    "work": Part(
        "At work",
        ("medvitv2", "breast_efficientnet", "building_unetpp", "dfu_ensemble", "toc3d"),
    ),
    "beyond": Part("Beyond vision", ("enamel", "leanvec")),
    "inside": Part("Seeing inside", ("convit", "dvt")),
}

# Models that papers start from: module in refimpl.bases, also the prefix of the name -> variants.
BASES: dict[str, tuple[str, ...]] = {
    "deit": ("tiny", "small", "base", "tiny_distilled", "small_distilled", "base_distilled"),
    "efficientnet": (
        *("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"),
        *("tf_b0", "tf_b1", "tf_b2", "tf_b3", "tf_b4", "tf_b5", "tf_b6", "tf_b7"),
        *("lite0", "lite1", "lite2"),
    ),
    "hiera": ("tiny", "small", "base", "base_plus", "large", "huge"),
    "llama": ("2_7b", "2_13b", "2_70b", "3_8b", "3_70b"),
    "mobilevit": (
        *("xxs", "xs", "s"),
        *("v2_050", "v2_075", "v2_100", "v2_125", "v2_150", "v2_175", "v2_200"),
    ),
    "swin": ("tiny", "small", "base", "large", "base_384", "large_384"),
}


class Published(NamedTuple):
    """What the authors of a base publish: short name, licence of code and weights, accuracy."""

    name: str
    licence: str
    top1: tuple[tuple[str, float], ...]  # as `Paper.top1`


BASES_PUBLISHED: dict[str, Published] = {
    "deit": Published(
        "DeiT",
        "Apache-2.0",
        (
            ("tiny", 72.2),
            ("small", 79.9),
            ("base", 81.8),
            ("tiny_distilled", 74.5),
            ("small_distilled", 81.2),
            ("base_distilled", 83.4),
        ),
    ),
    "efficientnet": Published(
        "EfficientNet",
        "Apache-2.0",
        (
            *(("b0", 77.1), ("b1", 79.1), ("b2", 80.1), ("b3", 81.6)),
            *(("b4", 82.9), ("b5", 83.6), ("b6", 84.0), ("b7", 84.3)),
            *(("lite0", 75.1), ("lite1", 76.7), ("lite2", 77.6)),
        ),
    ),
    "hiera": Published(
        "Hiera",
        "Apache-2.0, weights CC-BY-NC-4.0",
        (
            *(("tiny", 82.8), ("small", 83.8), ("base", 84.5)),
            *(("base_plus", 85.2), ("large", 86.1), ("huge", 86.9)),
        ),
    ),
    "mobilevit": Published(
        "MobileViT",
        "Apple's of ml-cvnets",
        (
            *(("xxs", 69.0), ("xs", 74.8), ("s", 78.4)),
            *(("v2_050", 70.2), ("v2_075", 75.6), ("v2_100", 78.1), ("v2_125", 79.6)),
            *(("v2_150", 80.4), ("v2_175", 80.8), ("v2_200", 81.2)),
        ),
    ),
    "swin": Published(
        "Swin",
        "MIT",
        (("tiny", 81.3), ("small", 83.0), ("base", 83.5), ("base_384", 84.5)),
    ),
}

# stem -> paper, in the book's order
PAPERS: dict[str, Paper] = {
    stem: import_module(f"{__name__}.{stem}").PAPER
    for part in PARTS.values()
    for stem in part.stems
}
