"""What became of a paper's claims here: reported by the chapter that measured, shown as a table.

The notebook carries of a claim only id, measured, verdict and why (and the numbers that a rule
compared); the book's ledger joins statement, reported figure and rule from the catalogue.
A contradiction is a finding, not a failure: it stays, with its likely reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from refimpl import catalogue, checks
from refimpl.chapter import rules, show, tables

VERDICTS = ("supports", "contradicts", "inconclusive", "not tested here")
SIGNS = {"supports": "✓", "contradicts": "✗", "inconclusive": "≈", "not tested here": "–"}


@dataclass(frozen=True)
class Report:
    """One claim and what this run found. Printed as a line, deterministic where `measured` is."""

    id: str
    measured: str
    verdict: str
    why: str
    values: dict[str, float] = field(default_factory=dict)  # what the claim's rule compared

    def __repr__(self) -> str:
        return f"{self.id} {SIGNS[self.verdict]} {self.verdict}: {self.measured}"

    def record(self) -> dict:
        """What the notebook keeps of it."""
        kept = {"id": self.id, "measured": self.measured, "verdict": self.verdict, "why": self.why}
        return kept | ({"values": self.values} if self.values else {})


reports: dict[str, Report] = {}


def find(id: str) -> catalogue.Claim:
    """The claim with this id (`"efficientvit.1"`), or a `ValueError` with the nearest ids."""
    claims = {claim.id: claim for paper in catalogue.PAPERS.values() for claim in paper.claims}
    stem = str(id).partition(".")[0]
    of_paper = [name for name in claims if name.partition(".")[0] == stem]
    checks.choice("id", id, of_paper or claims, "claim")
    return claims[id]


def report(
    id: str,
    *,
    measured: str,
    why: str,
    verdict: str | None = None,
    values: Mapping[str, float] | None = None,
) -> Report:
    """Say what this run found about a claim; a later report of the same claim replaces the earlier.

    measured: our figure, in words with its unit.
    why: one line.
    values: the numbers that the claim's rule compares, by name; the verdict follows from them.
    verdict: `supports`, `contradicts`, `inconclusive` or `not tested here`, where the claim's rule
        is prose; a computed rule leaves only `not tested here` to be given.

    Raises `ValueError` for an unknown id or verdict, an empty text, numbers that the rule does not
    compare, a given verdict where it follows from numbers, or an identity claim that is left open.
    """
    claim = find(id)
    numbers = {name: rules.finite(name, value) for name, value in (values or {}).items()}
    if verdict is not None:
        checks.choice("verdict", verdict, VERDICTS)
    if verdict != "not tested here" and rules.computed(claim.rule):
        if verdict is not None or values is None:
            raise ValueError(
                f"claim {id}: its verdict follows from numbers; give values= for the rule"
                f" {claim.rule!r} and no verdict"
            )
        verdict = rules.verdict(claim.rule, numbers)
    elif verdict is None:
        raise ValueError(f"claim {id}: no rule computes its verdict; give verdict=…")
    if claim.kind == "identity" and verdict in ("inconclusive", "not tested here"):
        raise ValueError(
            f"claim {id} is an identity, which holds here or does not: verdict={verdict!r} must be"
            " 'supports' or 'contradicts'"
        )
    if verdict != "not tested here" and not measured.strip():
        raise ValueError(f"claim {id}: measured is empty, but the verdict is {verdict!r}")
    if not why.strip():
        raise ValueError(f"claim {id}: why is empty; give one line")
    reports[id] = Report(id, measured.strip(), verdict, why.strip(), numbers)
    return reports[id]


def rows(stem: str) -> list[tuple[catalogue.Claim, Report]]:
    """All claims of a paper in the catalogue's order with what this run found.

    Claims out of reach say what they need. Raises `ValueError` while a claim that can be tested
    here has no report.
    """
    checks.choice("stem", stem, catalogue.PAPERS, "paper")
    claims = catalogue.PAPERS[stem].claims
    if not claims:
        raise ValueError(f"the catalogue holds no claims of {stem!r}")
    missing = [c.id for c in claims if c.id not in reports and c.kind != "out_of_reach"]
    if missing:
        raise ValueError(
            f"claims without a report: {', '.join(missing)}; call claims.report(id, measured=…,"
            " why=…, verdict=… or values=…) for each"
        )
    return [(claim, reports.get(claim.id) or out_of_reach(claim)) for claim in claims]


def out_of_reach(claim: catalogue.Claim) -> Report:
    """What stands in the place of a report where a laptop is not enough."""
    command = f" To test it: `{claim.command}`" if claim.command else ""
    why = f"Needs {claim.needs or 'more than a laptop'}.{command}"
    return Report(claim.id, "", "not tested here", why)


def table(stem: str) -> None:
    """Show every claim of a paper: what was tested as a table; rules and the rest fold below it.

    The output's metadata keeps the reports for the book's ledger.
    """
    numbered = [(i, claim, made) for i, (claim, made) in enumerate(rows(stem), 1)]
    tested = [row for row in numbered if row[2].verdict != "not tested here"]
    untested = [row for row in numbered if row[2].verdict == "not tested here"]
    parts = []
    if tested:
        title = f"The claims of {catalogue.PAPERS[stem].name}, and what this run found"
        shown = [tested_row(*row) for row in tested]
        parts.append((tables.as_html(shown, title), tables.as_text(shown, title)))
    ruled = [{"Claim": str(i), "Rule": written(claim.rule)} for i, claim, _ in tested if claim.rule]
    if ruled:
        parts.append(folded("The rules of the verdicts", ruled))
    if untested:
        title = f"{counted(len(untested))} not tested here, and what a test would need"
        parts.append(folded(title, [untested_row(*row) for row in untested]))
    bundle = {
        "text/html": "\n".join(html for html, _ in parts),
        "text/plain": "\n\n".join(text for _, text in parts),
    }
    records = [made.record() for _, _, made in numbered]
    show.publish(bundle, {"refimpl": {"claims": records}})


def tested_row(number: int, claim: catalogue.Claim, made: Report) -> dict[str, str]:
    return {
        "Claim": f"{number}. {claim.statement}",
        "The paper reports": claim.reported or "–",
        "Measured here": made.measured or "–",
        "Verdict": f"{SIGNS[made.verdict]} {made.verdict}",
        "Why": made.why,
    }


def untested_row(number: int, claim: catalogue.Claim, made: Report) -> dict[str, str]:
    return {
        "Claim": f"{number}. {claim.statement}",
        "The paper reports": claim.reported or "–",
        "Why not": made.why,
    }


def folded(title: str, shown: list[dict[str, str]]) -> tuple[str, str]:
    """A table that opens when asked: as HTML, and as text."""
    inside = tables.as_html(shown, "")
    page = f"<details><summary>{tables.cell(title)}</summary>\n{inside}\n</details>"
    return page, tables.as_text(shown, title)


def written(rule: str) -> str:
    """A rule with what is computed in it as code, and what its names mean in words."""
    if not rules.computed(rule):
        return rule
    formula, where, meaning = rule.partition("; where ")
    return f"`{formula}`{where}{meaning}"


def counted(count: int) -> str:
    return "One claim was" if count == 1 else f"{count} claims were"
