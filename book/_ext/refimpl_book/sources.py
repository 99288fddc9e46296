"""What the pages are made from: the catalogue, the stored notebooks, the results of `make bench`.

Read once a build.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from refimpl import catalogue, model_index
from refimpl.catalogue import Claim, Difference, Paper
from refimpl_book import ROOT

RESULTS = ROOT / "book" / "results"
NOTEBOOKS = ROOT / "notebooks"
KERNELS = ROOT / "refimpl" / "kernels"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# -- the repository


@cache
def repository() -> str:
    """The repository's address, from `_config.yml`, the one place that has it."""
    text = (ROOT / "_config.yml").read_text(encoding="utf-8")
    return re.search(r"^\s*url:\s*(https://\S+)\s*$", text, re.M)[1].rstrip("/")


def source_link(path: str) -> str:
    return f"{repository()}/blob/main/{path}"


def placeholder() -> bool:
    """Whether the repository's address is still the one of the template."""
    return repository().split("/")[-2] == "OWNER"


def colab(stem: str) -> str:
    """Where a chapter opens in Colab."""
    owner, name = repository().split("/")[-2:]
    place = f"{owner}/{name}/blob/main/notebooks/{stem}.ipynb"
    return f"https://colab.research.google.com/github/{place}"


def published() -> str:
    """Where GitHub Pages serves the book."""
    owner, name = repository().split("/")[-2:]
    return f"https://{owner}.github.io/{name}/"


@cache
def citation() -> str:
    """How to cite the book: `CITATION.cff` as BibTeX, without an address that is nobody's."""
    known = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    authors = " and ".join(f"{{{author['name']}}}" for author in known["authors"])
    lines = [f"title = {{{known['title']}}}", f"author = {{{authors}}}"]
    lines.append(f"version = {{{known['version']}}}")
    if not placeholder():
        lines.append(f"url = {{{known['url']}}}")
    return "@software{refimpl,\n  " + ",\n  ".join(lines) + "\n}"


# -- the catalogue


@cache
def papers() -> tuple[Paper, ...]:
    """Every paper, in the book's order."""
    return tuple(catalogue.PAPERS.values())


def parts() -> dict[str, str]:
    """Key -> title of every part."""
    return {key: part.title for key, part in catalogue.PARTS.items()}


def differences() -> list[tuple[Paper, Difference]]:
    return [(paper, difference) for paper in papers() for difference in paper.differences]


def models() -> dict[str, tuple[str, str]]:
    """Every model that can be created: name -> (module, variant)."""
    return model_index()


def stem_of(model: str) -> str:
    """The family of a model: the stem of the paper or base that defines it."""
    module, _ = models()[model]
    return module.rsplit(".", 1)[1]


def family_name(model: str) -> str:
    """The short name of the paper or base that a model belongs to."""
    stem = stem_of(model)
    return known_family(stem).name if known_family(stem) else stem


def licence(model: str) -> str:
    """The licence of the official code and weights, `""` where it is not known."""
    family = known_family(stem_of(model))
    return family.licence if family else ""


def top1(model: str) -> float | None:
    """Top-1 accuracy on ImageNet-1k in percent, as the authors publish it."""
    family = known_family(stem_of(model))
    _, variant = models()[model]
    return dict(family.top1).get(variant) if family else None


def known_family(stem: str) -> Paper | catalogue.Published | None:
    return catalogue.PAPERS.get(stem) or catalogue.BASES_PUBLISHED.get(stem)


def operations() -> list[str]:
    """Names of the kernels: the folders of `refimpl.kernels`."""
    return sorted(path.parent.name for path in KERNELS.glob("*/__init__.py"))


# -- the chapters


@dataclass
class Chapter:
    """What a stored notebook says about itself in its outputs, and its picture."""

    stem: str
    claims: list[dict] = field(default_factory=list)
    stamp: dict = field(default_factory=dict)
    figure: str = ""  # base64 of the PNG tagged `chapter-picture`, else of the first
    alt: str = ""
    drawings: str = ""  # the same figure, packed by `refimpl.viz.drawing`
    explorer: str = ""  # HTML of the first attention explorer


@cache
def chapter(stem: str) -> Chapter | None:
    """The stored chapter of a paper, or `None` while there is none."""
    path = NOTEBOOKS / f"{stem}.ipynb"
    if not path.exists():
        return None
    found = Chapter(stem)
    tagged = False
    for cell in read_json(path)["cells"]:
        chosen = "chapter-picture" in cell.get("metadata", {}).get("tags", [])
        for output in cell.get("outputs", []):
            data, about = output.get("data", {}), output.get("metadata", {})
            if "image/png" in data and (not found.figure or (chosen and not tagged)):
                tagged = chosen
                found.figure = "".join(data["image/png"])
                found.alt = alternative_text(cell)
                found.drawings = about.get("image/png", {}).get("refimpl", {}).get("drawings", "")
            shown = "".join(data.get("text/html", ""))
            if 'class="attention-explorer"' in shown and not found.explorer:
                found.explorer = shown
            said = about.get("refimpl", {})
            found.claims += said.get("claims", [])
            found.stamp = said.get("stamp", found.stamp)
    return found


def alternative_text(cell: dict) -> str:
    return cell.get("metadata", {}).get("mystnb", {}).get("image", {}).get("alt", "")


def written(stem: str) -> bool:
    """Whether a paper has its chapter."""
    return chapter(stem) is not None


@dataclass(frozen=True)
class Verdict:
    """A claim as the catalogue states it, and what the stored chapter reports of it."""

    claim: Claim
    measured: str
    verdict: str
    why: str


def verdicts(stem: str) -> list[Verdict]:
    """Every claim of a paper with its stored report; one without a report is not tested here."""
    reports = {row["id"]: row for row in chapter(stem).claims}
    missing = {"measured": "", "verdict": "not tested here", "why": "The chapter reports nothing."}
    found = []
    for claim in catalogue.PAPERS[stem].claims:
        row = reports.get(claim.id, missing)
        found.append(Verdict(claim, row["measured"], row["verdict"], row["why"]))
    return found


# -- the results


@dataclass
class Exactness:
    """How the official cases were checked, and one record for each."""

    made: list[dict]  # date and version of torch, one a stem
    cases: list[dict]


@cache
def exactness() -> Exactness:
    """All of `book/results/exactness/<stem>.json`."""
    files = [read_json(path) for path in sorted((RESULTS / "exactness").glob("*.json"))]
    cases = [case for file in files for case in file["cases"]]
    return Exactness([file["made"] for file in files], cases)


@dataclass
class Measured:
    """Everything that was measured in one folder of results, `cpu` or `gpu-<name>`.

    Each row carries the `machine` and `ceilings` of its own file.
    """

    name: str
    models: list[dict]
    kernels: list[dict]

    def machines(self) -> list[dict]:
        """The machines behind the rows of models, each once."""
        seen = {json.dumps(row["machine"]): row["machine"] for row in self.models}
        return list(seen.values())


@cache
def measured() -> list[Measured]:
    """The results of `make bench`: the CPU first, then every GPU."""
    folders = [RESULTS / "cpu", *sorted(RESULTS.glob("gpu-*"))]
    found = []
    for folder in folders:
        rows = []
        for path in sorted(folder.glob("*.json")):
            file = read_json(path)
            about = {key: file.get(key, {}) for key in ("machine", "ceilings")}
            rows += [about | row for row in file.get("models", [])]
        kernels = [read_json(path) for path in sorted(folder.glob("kernels/*.json"))]
        found.append(Measured(folder.name, rows, kernels))
    return found


@cache
def compiled(op: str) -> dict:
    """What compiling a kernel without a GPU gave, empty where nobody has: `--only compiled`."""
    path = RESULTS / "compiled" / f"{op}.json"
    return read_json(path) if path.exists() else {}


def dependencies() -> list[str]:
    """Files whose change must rebuild the generated pages."""
    files = [
        *(ROOT / "refimpl").rglob("*.py"),
        ROOT / "book" / "_toc.yml",
        *NOTEBOOKS.glob("*.ipynb"),
        *RESULTS.rglob("*.json"),
    ]
    return [str(file) for file in files]
