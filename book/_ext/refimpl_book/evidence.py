"""Pages of evidence: freshness, exactness, and where code and paper part."""

from __future__ import annotations

import re

from docutils import nodes

from refimpl.chapter import freshness
from refimpl_book import ROOT, html, sources
from refimpl_book.pages import Page, raw


class Freshness(Page):
    """When and with what each stored chapter was executed."""

    def make(self):
        rows = []
        for paper in sources.papers():
            if sources.written(paper.stem) and (stamp := sources.chapter(paper.stem).stamp):
                rows.append(self.row(paper, stamp))
        if not rows:
            return html.note("No chapter has been executed yet: run <code>make execute</code>.")
        head = ("Chapter", "Executed", "Took", "With", "On", "Sources")
        caption = "When and with what the stored chapters were executed"
        return html.table(head, rows, caption, numeric=(2,))

    def row(self, paper, stamp: dict) -> tuple:
        versions = f"Python {stamp['python']}, torch {stamp['torch']}, numpy {stamp['numpy']}"
        return (
            self.chapter_link(paper),
            html.nowrap(stamp["date"]),
            html.Cell(f"{stamp['seconds']:.0f} s", stamp["seconds"]),
            html.escape(versions),
            html.escape(str(stamp.get("machine", {}).get("name", "–"))),
            self.current(stamp),
        )

    @staticmethod
    def current(stamp: dict) -> str:
        """Whether what the chapter computes with has changed since the run."""
        changed = freshness.stale(stamp, ROOT)
        mark = html.mark(not changed, "changed since" if changed else "unchanged")
        return f"{mark} <code>{stamp['digest'][:12]}</code>"


class Exactness(Page):
    """Every official case: what the official code computes, and how far ours is from it."""

    def make(self):
        cases = sources.exactness().cases
        if not cases:
            return html.note("Not measured yet: run <code>make bench</code>.")
        by_stem: dict[str, list[dict]] = {}
        for case in cases:
            by_stem.setdefault(case["stem"], []).append(case)
        names = {p.stem: p.name for p in sources.papers() if p.stem in by_stem}
        names |= {stem: stem for stem in sorted(by_stem.keys() - names.keys())}  # bases, kernels
        sections = [
            self.section(stem, name, raw(self.cases(name, by_stem[stem])))
            for stem, name in names.items()
        ]
        return [raw(f"<p>{self.summary(cases)}</p>"), *sections]

    @staticmethod
    def summary(cases: list[dict]) -> str:
        worst = max((c["deviation"] for c in cases if c["deviation"] is not None), default=None)
        passed = sum(c["passed"] for c in cases)
        dates = sorted({made["date"] for made in sources.exactness().made})
        versions = sorted({made["torch"] for made in sources.exactness().made})
        certified = sum(certificates(model) > 0 for model in sources.models())
        return (
            f"<strong>{passed} of {len(cases)} official cases agree</strong>; the largest"
            f" deviation of a compared output is {html.format_number(worst, 2)} of its norm."
            f" Checked on {html.span(dates)} with torch {html.escape(', '.join(versions))}."
            f" {certified} of the {len(sources.models())} models that can be created are held"
            " against a case of their own; the rest share its code."
        )

    @staticmethod
    def cases(name: str, cases: list[dict]) -> str:
        rows = []
        for c in cases:
            macs = "–"
            if c.get("macs") and c.get("batch"):
                macs = html.format_count(c["macs"] / c["batch"])
            deviation = "by its test's own measure"
            if c["deviation"] is not None:
                deviation = html.format_number(c["deviation"], 2)
            row = (
                f"<code>{html.escape(c['case'])}</code>",
                html.Cell(f"{c['params']:,}" if c.get("params") else "–", c.get("params")),
                html.Cell(macs, c.get("macs")),
                html.Cell(deviation, c["deviation"]),
                html.mark(c["passed"], "equal" if c["passed"] else "differs"),
                origin(c.get("source", "")),
            )
            rows.append(row)
        head = (
            "Case",
            "Parameters",
            "MACs for one input",
            "Largest deviation",
            "Verdict",
            "Recorded from",
        )
        caption = f"Official cases of {html.escape(name)}"
        return html.table(head, rows, caption, numeric=(1, 2, 3), classes="sortable")


def origin(source: str) -> str:
    """`owner/name@commit path` as a link to that place; anything else as it stands."""
    found = re.match(r"([\w.-]+/[\w.-]+)\s*@\s*([0-9a-f]{7,40})\s*(.*)", source)
    if not found:
        return html.escape(source)
    repository, commit, path = found.groups()
    url = f"https://github.com/{repository}/tree/{commit}"
    place = path.partition(" ")[0]
    if re.fullmatch(r"[\w./-]+", place):
        url += f"/{place}"
    link = html.link(url, f"{html.escape(repository)}@{commit[:7]}")
    return f"{link} {html.escape(path)}" if path else link


def certificates(model: str) -> int:
    """How many official cases of this very variant agree."""
    stem = sources.stem_of(model)
    cases = [c for c in sources.exactness().cases if c["stem"] == stem]
    return sum(c["passed"] and certified_model(stem, c["case"]) == model for c in cases)


def certified_model(stem: str, case: str) -> str | None:
    """The model that a case is named after. The longest name counts: `base_plus` is no `base`."""
    name = f"{stem}_{case.removeprefix(f'{stem}_')}"
    family = [model for model in sources.models() if sources.stem_of(model) == stem]
    fitting = [model for model in family if name == model or name.startswith(f"{model}_")]
    return max(fitting, key=len, default=None)


class Differences(Page):
    """Where official code departs from its paper."""

    def make(self):
        sections = [self.paper(paper) for paper in sources.papers() if paper.differences]
        return sections or html.note("No difference is recorded yet.")

    def paper(self, paper) -> nodes.section:
        rows = [
            (
                html.inline(d.paper_says),
                html.inline(d.code_does),
                html.inline(d.effect),
                shown_by(d.test),
            )
            for d in paper.differences
        ]
        table = html.table(
            ("The paper says", "The code does", "What changes", "Shown by"),
            rows,
            f"Paper and code of {html.escape(paper.name)}",
            wide=(0, 1, 2),
        )
        link = f"<p>{self.chapter_link(paper)}</p>" if sources.written(paper.stem) else ""
        return self.section(paper.stem, paper.name, raw(link + table))


def shown_by(test: str) -> str:
    """The test that shows a difference, as a link to its file."""
    if not test:
        return "no test yet"
    file, _, name = test.partition("::")
    return html.link(sources.source_link(file), f"<code>{html.escape(name)}</code>")


def setup(app):
    app.add_directive("freshness", Freshness)
    app.add_directive("exactness", Exactness)
    app.add_directive("differences", Differences)
