"""What became of a paper's claims here: reported by the chapter that measured, shown as a table, collected by the book's ledger.

A contradiction is a finding, not a failure: it stays, with its likely reason.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from difflib import get_close_matches

from refimpl import catalogue
from refimpl.chapter import show

VERDICTS = ("supports", "contradicts", "inconclusive", "not tested here")
SIGNS = {"supports": "✓", "contradicts": "✗", "inconclusive": "≈", "not tested here": "–"}


@dataclass(frozen=True)
class Report:
    """One claim and what this run found. Printed as one line, which is deterministic where `measured` is."""

    id: str
    measured: str
    verdict: str
    why: str

    def __repr__(self) -> str:
        return f"{self.id} {SIGNS[self.verdict]} {self.verdict}: {self.measured}"


reports: dict[str, Report] = {}


def find(id: str) -> catalogue.Claim:
    """The claim with this id (`"efficientvit.1"`), or a `ValueError` with the nearest ids."""
    claims = {claim.id: claim for paper in catalogue.PAPERS.values() for claim in paper.claims}
    if id in claims:
        return claims[id]
    near = get_close_matches(str(id), claims, 3, 0.6)
    stem = str(id).split(".")[0]
    hint = (
        f"did you mean {', '.join(near)}?"
        if near
        else f"the papers with claims are {', '.join(sorted({c.split('.')[0] for c in claims})) or 'none'}"
    )
    have = [c for c in claims if c.split(".")[0] == stem]
    raise ValueError(
        f"unknown claim {id!r}; " + (f"{stem} has {', '.join(have)}" if have else hint)
    )


def report(id: str, *, measured: str, verdict: str, why: str) -> Report:
    """Say what this run found about a claim; a later report of the same claim replaces the earlier.

    measured: our figure, in words with its unit; verdict: `supports`, `contradicts`, `inconclusive` or `not tested here`;
    why: one line. Raises `ValueError` for an unknown id or verdict, an empty text, or an identity claim that is left open.
    """
    claim = find(id)
    if verdict not in VERDICTS:
        raise ValueError(
            f"verdict={verdict!r} of claim {id} is not one of {', '.join(map(repr, VERDICTS))}"
        )
    if claim.kind == "identity" and verdict in ("inconclusive", "not tested here"):
        raise ValueError(
            f"claim {id} is an identity, which holds here or does not: verdict={verdict!r} must be 'supports' or 'contradicts'"
        )
    if verdict != "not tested here" and not measured.strip():
        raise ValueError(f"claim {id}: measured is empty, but the verdict is {verdict!r}")
    if not why.strip():
        raise ValueError(f"claim {id}: why is empty; give one line")
    reports[id] = Report(id, measured.strip(), verdict, why.strip())
    return reports[id]


def rows(stem: str) -> list[dict[str, str]]:
    """All claims of a paper in the catalogue's order with what this run found; claims out of reach say what they need.

    Raises `ValueError` while a claim that can be tested here has no report.
    """
    paper = catalogue.PAPERS.get(stem)
    if paper is None:
        near = get_close_matches(str(stem), catalogue.PAPERS, 3, 0.5)
        raise ValueError(
            f"unknown paper {stem!r}" + (f"; did you mean {', '.join(near)}?" if near else "")
        )
    if not paper.claims:
        raise ValueError(f"the catalogue holds no claims of {stem!r}")
    missing = [c.id for c in paper.claims if c.id not in reports and c.kind != "out_of_reach"]
    if missing:
        raise ValueError(
            f"claims without a report: {', '.join(missing)}; call claims.report(id, measured=…, verdict=…, why=…) for each"
        )
    found = []
    for claim in paper.claims:
        given = reports.get(claim.id) or Report(
            claim.id, "", "not tested here", out_of_reach(claim)
        )
        found.append(
            asdict(given)
            | {"statement": claim.statement, "reported": claim.reported, "kind": claim.kind}
        )
    return found


def out_of_reach(claim: catalogue.Claim) -> str:
    command = f" To test it: `{claim.command}`" if claim.command else ""
    return f"Needs {claim.needs or 'more than a laptop'}.{command}"


def table(stem: str) -> None:
    """Show every claim of a paper: statement, the paper's figure, ours, verdict and why. The rows also go into the output's metadata."""
    found = rows(stem)
    shown = [
        {
            "Claim": f"{i}. {row['statement']}",
            "The paper reports": row["reported"] or "–",
            "Measured here": row["measured"] or "–",
            "Verdict": f"{SIGNS[row['verdict']]} {row['verdict']}",
            "Why": row["why"],
        }
        for i, row in enumerate(found, 1)
    ]
    name = catalogue.PAPERS[stem].name
    show.table(
        shown,
        f"The claims of {name}, and what this run found",
        metadata={"refimpl": {"claims": found}},
    )
