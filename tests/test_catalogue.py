"""The catalogue: 31 papers, each with all its places or none; claims, differences, references."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import get_args

import pytest

from refimpl.catalogue import BASES, BASES_PUBLISHED, PAPERS, PARTS, Claim, Kind

ROOT = Path(__file__).parents[1]
CLAIMS = [claim for paper in PAPERS.values() for claim in paper.claims]
DIFFERENCES = [difference for paper in PAPERS.values() for difference in paper.differences]
ARXIV = re.compile(r"0\d{3}\.\d{4}|1[0-4]\d\d\.\d{4}|\d{4}\.\d{5}")  # four digits before 2015
every_paper = pytest.mark.parametrize("stem", PAPERS)


def chapter_places(stem: str) -> list[Path]:
    """Where a paper that has its chapter stands in the tree, beside its catalogue entry."""
    return [
        ROOT / "notebooks" / f"{stem}.ipynb",
        ROOT / "notebooks" / "text" / f"{stem}.md",
        ROOT / "refimpl" / "papers" / f"{stem}.py",
        ROOT / "tests" / "papers" / f"test_{stem}.py",
        ROOT / "tests" / "papers" / "exercises" / f"{stem}.py",
        ROOT / "tests" / "golden" / stem,
    ]


def bibliography() -> dict[str, dict[str, str]]:
    """All references, one field a line in the files: key -> fields without outer braces."""
    entries: dict[str, dict[str, str]] = {}
    files = [ROOT / "book" / "references.bib", *(ROOT / "book" / "references").glob("*.bib")]
    for line in "\n".join(file.read_text(encoding="utf-8") for file in files).splitlines():
        if head := re.fullmatch(r"@\w+\{(\w+),", line):
            assert head[1] not in entries, f"{head[1]} stands twice in the bibliography"
            fields = entries[head[1]] = {}
        elif field := re.fullmatch(r"  (\w+) += \{(.+)\},", line):
            fields[field[1]] = field[2].strip("{}").replace(r"\&", "&")
    return entries


def test_the_31_papers():
    """Every paper stands in one part, and every file of the catalogue is a paper of the book."""
    stems = [stem for part in PARTS.values() for stem in part.stems]
    assert len(stems) == len(set(stems)) == 31
    assert list(PAPERS) == stems
    files = {path.stem for path in (ROOT / "refimpl" / "catalogue").glob("[!_]*.py")}
    assert files == set(stems)


@every_paper
def test_entry_stands_under_its_stem(stem):
    assert PAPERS[stem].stem == stem
    assert stem in PARTS[PAPERS[stem].part].stems


@every_paper
def test_entry_is_complete(stem):
    paper = PAPERS[stem]
    assert all((paper.name, paper.title, paper.authors, paper.venue, paper.idea, paper.claims)), (
        "a field is empty"
    )
    assert 2017 <= paper.year <= 2026
    assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv)
    assert paper.code or not paper.commit
    assert re.fullmatch(r"([0-9a-f]{7}|[0-9a-f]{40})?", paper.commit)
    assert paper.code == "" or paper.code.startswith("https://")
    assert "\n" not in paper.idea
    assert paper.idea.endswith((".", "?"))


@every_paper
def test_all_its_places_or_none(stem):
    paper = PAPERS[stem]
    there = chapter_places(stem)
    notebook, text, module, test, *_ = there
    missing = [str(place.relative_to(ROOT)) for place in there if not place.exists()]
    if notebook.exists() or text.exists():
        assert not missing
    if not module.exists():
        assert not paper.variants
        return
    assert test.exists(), f"{stem} has code and no test"
    code = importlib.import_module(f"refimpl.papers.{stem}")
    assert tuple(getattr(code, "VARIANTS", ())) == paper.variants
    defined = [name for name, thing in vars(code).items() if is_from(thing, code.__name__)]
    assert defined, "nothing is defined there"


def is_from(thing: object, module: str) -> bool:
    return getattr(thing, "__module__", "") == module


@pytest.mark.parametrize("prefix", BASES)
def test_bases_exist(prefix):
    variants = importlib.import_module(f"refimpl.bases.{prefix}").VARIANTS
    assert tuple(variants) == BASES[prefix]


@pytest.mark.parametrize("prefix", BASES_PUBLISHED)
def test_published_accuracies_of_bases_name_variants(prefix):
    check_top1(BASES_PUBLISHED[prefix].top1, BASES[prefix])


@every_paper
def test_published_accuracies_name_variants(stem):
    check_top1(PAPERS[stem].top1, PAPERS[stem].variants)


def check_top1(top1, variants):
    named = [variant for variant, _ in top1]
    assert len(set(named)) == len(named) and set(named) <= set(variants)
    assert all(50 < accuracy < 95 for _, accuracy in top1), "percent on ImageNet-1k"


@every_paper
def test_kernels_exist(stem):
    missing = [
        op for op in PAPERS[stem].kernels if not (ROOT / "refimpl" / "kernels" / op).is_dir()
    ]
    assert not missing


@every_paper
def test_claims_are_numbered_through(stem):
    assert [claim.id for claim in PAPERS[stem].claims] == [
        f"{stem}.{n}" for n in range(1, len(PAPERS[stem].claims) + 1)
    ]
    assert [difference.id for difference in PAPERS[stem].differences] == [
        f"{stem}.d{n}" for n in range(1, len(PAPERS[stem].differences) + 1)
    ]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claim_can_be_tested(claim: Claim):
    assert claim.kind in get_args(Kind)
    assert claim.statement.endswith(".")
    assert claim.reported
    assert not claim.reported.endswith(".")
    out_of_reach = claim.kind == "out_of_reach"
    assert bool(claim.needs) == out_of_reach, (
        "what it needs is said if, and only if, it is out of reach"
    )
    assert bool(claim.command) == out_of_reach, (
        "what would test it is said if, and only if, it is out of reach"
    )


def test_every_paper_has_a_claim_that_is_tested_here():
    assert all(
        any(claim.kind != "out_of_reach" for claim in paper.claims) for paper in PAPERS.values()
    )


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.id)
def test_difference_is_told_whole(difference):
    assert all(
        text.endswith(".")
        for text in (difference.paper_says, difference.code_does, difference.effect)
    )
    if not difference.test:
        return
    file, _, name = difference.test.partition("::")
    functions = {
        node.name
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert name.partition("[")[0] in functions, f"{difference.test} is not there"


@every_paper
def test_differences_of_a_written_paper_have_tests(stem):
    paper = PAPERS[stem]
    if chapter_places(stem)[0].exists():
        assert not [difference.id for difference in paper.differences if not difference.test]


@every_paper
def test_stands_in_the_bibliography(stem):
    paper, entry = PAPERS[stem], bibliography()[stem]
    assert entry["title"] == paper.title
    assert entry["author"].split(" and ") == paper.authors.split(", ")
    assert int(entry["year"]) == paper.year
    assert (entry["eprint"], entry["archiveprefix"]) == (paper.arxiv, "arXiv")


def test_references_lead_somewhere():
    for key, entry in bibliography().items():
        assert entry["title"], key
        assert entry["author"], key
        assert re.fullmatch(r"\d{4}", entry["year"]), key
        assert ARXIV.fullmatch(entry.get("eprint", "0000.00000")), key


def test_code_names_of_the_notation_exist():
    """The last column of each table names things of the package, not words of a comment."""
    lines = (ROOT / "book" / "notation.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines if line.startswith("|")]
    names = [name for row in rows for name in re.findall(r"`([\w.]+)`", row[-2])]
    assert len(names) > 30
    known = identifiers()
    assert not [name for name in names if not set(name.split(".")) <= known]


def identifiers() -> set[str]:
    """Every name that the package's code defines or uses: modules, functions, arguments, fields."""
    found = {"refimpl"}
    for path in (ROOT / "refimpl").rglob("*.py"):
        found |= {path.stem, path.parent.name}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for field in ("id", "attr", "arg", "name"):
                if isinstance(name := getattr(node, field, None), str):
                    found.add(name)
    return found


def test_glossary_defines_each_term_once():
    text = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
    glossary = text[text.index("```{glossary}") :]
    terms = re.findall(r"^(?!:|```)(\S.*)\n  \S", glossary, re.MULTILINE)
    assert len(terms) == len(set(terms)) > 100
    assert set(re.findall(r"\{term\}`([^`]+)`", text)) <= set(terms)
