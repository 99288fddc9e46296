"""31 papers on efficient deep learning: short implementations, equal to the official code.

>>> import refimpl
>>> refimpl.list_models("efficientvit_*")
>>> model = refimpl.create_model("efficientvit_m0")
>>> refimpl.paper("efficientvit").claims
"""

from __future__ import annotations

import importlib
from fnmatch import fnmatch
from functools import cache

from refimpl import checks
from refimpl.catalogue import BASES, PAPERS, Claim, Difference, Paper

__version__ = "0.2.0"
__all__ = [
    "Claim",
    "Difference",
    "Paper",
    "create_model",
    "list_models",
    "list_papers",
    "paper",
]


def list_papers() -> list[Paper]:
    """Every paper of the book, in the book's order."""
    return list(PAPERS.values())


def paper(stem: str) -> Paper:
    """One paper by its stem (`"efficientvit"`)."""
    checks.choice("stem", stem, PAPERS, "paper")
    return PAPERS[stem]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that can be created and match the pattern (`"efficientvit_*"`)."""
    return sorted(name for name in model_index() if fnmatch(name, pattern))


def create_model(name: str, **kwargs):
    """Build a model by name (`<stem>_<variant>`), with random weights.

    `kwargs` go to its constructor over the variant's own. Raises `ValueError` for a name that is
    none, and says so where the paper is known and has no model here.
    """
    if name not in model_index():
        refuse(name)
    path, variant = model_index()[name]
    module = importlib.import_module(path)
    return module.MODEL(**module.VARIANTS[variant] | kwargs)


def refuse(name: str) -> None:
    """Raise the `ValueError` for a name that is no model; it suggests none of another family."""
    stems = [stem for stem in (*PAPERS, *BASES) if name == stem or name.startswith(f"{stem}_")]
    papers = [PAPERS[stem] for stem in stems if stem in PAPERS]
    if papers and not papers[0].variants:
        raise ValueError(f"unknown model {name!r}; there is no model of {papers[0].name} here")
    own = [known for known in model_index() for stem in stems if known.startswith(f"{stem}_")]
    checks.choice("name", name, own or model_index(), "model")


@cache
def model_index() -> dict[str, tuple[str, str]]:
    """Model name -> (module, variant), from the catalogue alone: nothing is imported.

    Raises `ValueError` when two modules claim the same name.
    """
    families = [(f"refimpl.bases.{base}", base, variants) for base, variants in BASES.items()]
    families += [(f"refimpl.papers.{p.stem}", p.stem, p.variants) for p in PAPERS.values()]
    index: dict[str, tuple[str, str]] = {}
    for module, prefix, variants in families:
        for variant in variants:
            name = f"{prefix}_{variant}"
            if name in index:
                raise ValueError(f"{module} and {index[name][0]} both name a model {name!r}")
            index[name] = (module, variant)
    return index
