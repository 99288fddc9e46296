"""What the pages are made from: the catalogue, the stored notebooks, the results of `make bench`. Read once a build."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from refimpl import catalogue, model_index
from refimpl.catalogue import Paper
from refimpl_book import ROOT

RESULTS = ROOT / "book" / "results"
NOTEBOOKS = ROOT / "notebooks"


@dataclass
class Chapter:
    """What a stored notebook says about itself in the metadata of its outputs, and its first figure."""

    stem: str
    claims: list[dict] = field(default_factory=list)
    stamp: dict = field(default_factory=dict)
    figure: str = ""  # base64 of the first PNG
    alt: str = ""


@cache
def repository() -> str:
    """The repository's address, from `_config.yml`, the one place that has it."""
    return re.search(
        r"^\s*url:\s*(https://\S+)\s*$", (ROOT / "_config.yml").read_text(encoding="utf-8"), re.M
    )[1].rstrip("/")


def source_link(path: str) -> str:
    return f"{repository()}/blob/main/{path}"


def published() -> str:
    """Where GitHub Pages serves the book."""
    owner, name = repository().split("/")[-2:]
    return f"https://{owner}.github.io/{name}/"


@cache
def papers() -> tuple[Paper, ...]:
    return tuple(catalogue.PAPERS.values())


def parts() -> dict[str, str]:
    return {key: part.title for key, part in catalogue.PARTS.items()}


@cache
def chapter(stem: str) -> Chapter | None:
    """The stored chapter of a paper, or `None` while there is none."""
    path = NOTEBOOKS / f"{stem}.ipynb"
    if not path.exists():
        return None
    found = Chapter(stem)
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        alt = cell.get("metadata", {}).get("mystnb", {}).get("image", {}).get("alt", "")
        for output in cell.get("outputs", []):
            if not found.figure and "image/png" in output.get("data", {}):
                found.figure, found.alt = "".join(output["data"]["image/png"]), alt
            said = output.get("metadata", {}).get("refimpl", {})
            found.claims += said.get("claims", [])
            found.stamp = said.get("stamp", found.stamp)
    return found


@cache
def in_toc() -> frozenset[str]:
    """Stems whose chapter stands in the table of contents."""
    return frozenset(
        re.findall(
            r"^\s*-?\s*file:\s*notebooks/(\w+)\s*$",
            (ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"),
            re.M,
        )
    )


def written(stem: str) -> bool:
    return stem in in_toc() and chapter(stem) is not None


@cache
def exactness() -> tuple[dict, list[dict]]:
    """(how it was made, one record per official case) of `book/results/exactness.json`."""
    path = RESULTS / "exactness.json"
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return (data.get("made", {}), data["cases"]) if isinstance(data, dict) else ({}, data)


@cache
def timings() -> dict[str, dict]:
    """Every benchmark result, name of the file's machine -> content: `cpu.json`, `gpu-<name>.json`."""
    files = [*RESULTS.glob("cpu*.json"), *sorted(RESULTS.glob("gpu-*.json"))]
    return {f.stem: json.loads(f.read_text(encoding="utf-8")) for f in files}


def models() -> dict[str, tuple[str, str]]:
    """Every model that can be created: name -> (module, variant)."""
    return model_index()


def differences() -> list[tuple[Paper, catalogue.Difference]]:
    return [(paper, difference) for paper in papers() for difference in paper.differences]


def kernel_files() -> list[Path]:
    return sorted(p for p in (ROOT / "refimpl" / "kernels").glob("*.py") if p.stem != "__init__")


def dependencies() -> list[str]:
    """Files whose change must rebuild the generated pages."""
    files = [
        *(ROOT / "refimpl").rglob("*.py"),
        ROOT / "book" / "_toc.yml",
        *NOTEBOOKS.glob("*.ipynb"),
        *RESULTS.glob("*.json"),
    ]
    return [str(f) for f in files]
