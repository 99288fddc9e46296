"""31 papers on efficient deep learning as short reference implementations that compute exactly what the authors' code computes.

>>> import refimpl
>>> refimpl.list_models("efficientvit_*")
>>> model = refimpl.create_model("efficientvit_m0")
>>> refimpl.paper("efficientvit").claims
"""

from __future__ import annotations

import importlib
import types
from difflib import get_close_matches
from fnmatch import fnmatch

from refimpl import papers
from refimpl.catalogue import BASES, PAPERS, Claim, Difference, Paper

__version__ = "0.1.0"
__all__ = ["Claim", "Difference", "Paper", "create_model", "list_models", "paper", "papers"]


class Papers(types.ModuleType):
    """The package `refimpl.papers` answers a call too: one name serves both, or the first import of a paper would hide the function."""

    def __call__(self) -> list[Paper]:
        """Every paper of the book, in the book's order."""
        return list(PAPERS.values())


papers.__class__ = Papers


def paper(stem: str) -> Paper:
    """One paper by its stem (`"efficientvit"`)."""
    return PAPERS[known(stem, PAPERS, "paper")]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that can be created and match the pattern (`"efficientvit_*"`)."""
    return sorted(name for name in model_index() if fnmatch(name, pattern))


def create_model(name: str, **kwargs):
    """Build a model by name (`<stem>_<variant>`), with random weights. `kwargs` go to its constructor over the variant's own."""
    index = model_index()
    module, variant = index[known(name, index, "model")]
    return importlib.import_module(module).create(variant, **kwargs)


def model_index() -> dict[str, tuple[str, str]]:
    """Model name -> (module, variant), from the catalogue alone: nothing is imported."""
    index = {}
    for paper in PAPERS.values():
        index |= {f"{paper.stem}_{v}": (f"refimpl.papers.{paper.stem}", v) for v in paper.variants}
    for prefix, (module, variants) in BASES.items():
        index |= {f"{prefix}_{v}": (f"refimpl.bases.{module}", v) for v in variants}
    return index


def known(name: str, options, what: str) -> str:
    """`name` when it is one of the options, else a `ValueError` with the nearest ones."""
    if name in options:
        return name
    near = get_close_matches(str(name), options, 3, 0.5)
    hint = f"; did you mean {', '.join(map(repr, near))}?" if near else f"; there are {', '.join(sorted(options)[:8])} …"
    raise ValueError(f"unknown {what} {name!r}{hint}")
