"""The papers as data: what each says, what is claimed, where its code departs from its text. Imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["identity", "miniature", "out_of_reach"]


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper that can be tested. `reported` is the paper's own figure, `command` what would test it where it is out of reach here."""

    id: str  # "<stem>.<number>"
    statement: str
    reported: str
    kind: Kind
    needs: str = ""  # out_of_reach: the hardware or data that a laptop lacks
    command: str = ""  # out_of_reach: what would test it


@dataclass(frozen=True)
class Difference:
    """Where the official code departs from the paper, or from sense. `test` is the id of a test that shows it."""

    id: str  # "<stem>.d<number>"
    paper_says: str
    code_does: str
    effect: str
    test: str = ""  # "tests/papers/test_<stem>.py::test_name"


@dataclass(frozen=True)
class Paper:
    stem: str
    name: str  # short name, "EfficientViT"
    title: str
    authors: str
    venue: str
    year: int
    part: str  # key of PARTS
    idea: str  # one line
    arxiv: str = ""
    code: str = ""  # repository of the official code, "" where there is none
    commit: str = ""
    licence: str = ""
    variants: tuple[str, ...] = ()  # models that can be created, as in the paper's table
    chapter: bool = False  # the chapter is written
    kernels: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    differences: tuple[Difference, ...] = ()

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""


PARTS: dict[str, str] = {
    "attention": "Attention rebuilt",
    "state_spaces": "State spaces",
    "tokens": "Fewer tokens",
    "bits": "Fewer bits and multiplications",
    "search": "Searching for architectures",
    "learning": "Learning with less",
    "work": "At work",
    "beyond": "Beyond vision",
    "inside": "Seeing inside",
}

# Models that papers start from: prefix of the name -> (module in refimpl.bases, variants).
BASES: dict[str, tuple[str, tuple[str, ...]]] = {}

PAPERS: dict[str, Paper] = {}
