"""Pages of evidence: freshness, exactness, and where code and paper part."""

from __future__ import annotations

import re
from math import log10

from docutils import nodes

from refimpl.chapter import freshness
from refimpl_book import ROOT, html, sources
from refimpl_book.ledger import controls
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


LIMIT = 1e-4  # a case passes below
SCALE = (1e-8, 1e-3)  # of the strip
SOURCES = {  # what a recorded output comes from
    "official run": "the authors’ code was run",
    "peer’s run": "another library’s code was run",
    "formula": "a formula of the paper or code was evaluated",
    "own definition": "no code exists; defined after the text",
}


def source_kind(source: str) -> str:
    """Which of `SOURCES` a recorded output has, by how its file words it."""
    if re.search(r"definition used by this project|no official", source):
        return "own definition"
    if re.search(r"\bformula\b|^property\b|own eval|our evaluation|\bSVD of", source):
        return "formula"
    return "peer’s run" if source.startswith("timm ") else "official run"


class Exactness(Page):
    """Every reference output, and how far ours is from it: a strip first, then the tables."""

    def make(self):
        cases = sources.exactness().cases
        if not cases:
            return html.note("Not measured yet: run <code>make bench</code>.")
        by_stem: dict[str, list[dict]] = {}
        for case in cases:
            by_stem.setdefault(case["stem"], []).append(case)
        names = {p.stem: p.name for p in sources.papers() if p.stem in by_stem}
        for stem in sorted(by_stem.keys() - names.keys()):  # bases, kernels
            family = sources.known_family(stem)
            names[stem] = family.name if family else stem.replace("_", " ")
        sections = [
            self.section(stem, name, raw(self.cases(name, by_stem[stem])))
            for stem, name in names.items()
        ]
        strip = self.strip({name: by_stem[stem] for stem, name in names.items()})
        return [raw(f"<p>{self.summary(cases)}</p>{strip}"), *sections]

    @staticmethod
    def summary(cases: list[dict]) -> str:
        worst = max((c["deviation"] for c in cases if c["deviation"] is not None), default=None)
        dates = sorted({made["date"] for made in sources.exactness().made})
        versions = sorted({made["torch"] for made in sources.exactness().made})
        certified = sum(certificates(model) > 0 for model in sources.models())
        said = []
        for kind, words in SOURCES.items():
            of_kind = [case for case in cases if source_kind(case.get("source", "")) == kind]
            if of_kind:
                good = sum(case["passed"] for case in of_kind)
                said.append(f"<strong>{good} of {len(of_kind)} {kind}s</strong> ({words})")
        return (
            f"Reference outputs that agree: {', '.join(said)}. The largest deviation of a compared"
            f" output is {html.format_number(worst, 2)} of its norm; the limit is 10⁻⁴"
            f" (10⁻³ at thresholds). Checked on {html.span(dates)} with torch"
            f" {html.escape(', '.join(versions))}. {certified} of"
            f" the {len(sources.models())} models that can be created are held against a"
            " reference output of their own; the rest share its code."
        )

    @staticmethod
    def strip(groups: dict[str, list[dict]]) -> str:
        """All deviations on one logarithmic scale, a row per family, the limit as a line."""
        rows, left_out = [], 0
        for name, cases in groups.items():
            dots = []
            for case in cases:
                if case["deviation"] is None:
                    left_out += 1
                    continue
                tone = "good" if case["passed"] else "bad"
                place = 100 * position(case["deviation"])
                dots.append(f'<i class="{tone}" style="left: {place:.1f}%"></i>')
            rows.append(f"<dt>{html.escape(name)}</dt><dd>{''.join(dots)}</dd>")
        ticks = [
            f'<span style="left: {100 * position(10.0**power):.1f}%">10<sup>−{-power}</sup></span>'
            for power in range(-8, -2)
        ]
        every = [case["deviation"] for cases in groups.values() for case in cases]
        shown = [deviation for deviation in every if deviation is not None]
        words = (
            f"{len(shown)} deviations on a logarithmic scale; the limit is ten to the minus four,"
            f" the largest {max(shown):.1e}."
        )
        note = f" {left_out} compared by their tests’ own measures." if left_out else ""
        limit = f'<b class="limit" style="left: {100 * position(LIMIT):.1f}%"></b>'
        return (
            f'<figure class="strips"><div class="strips-plot" role="img" aria-label="{words}">'
            f"<dl>{''.join(rows)}</dl>"
            f'<div class="strips-axis">{limit}{"".join(ticks)}</div></div>'
            f"<figcaption>Each dot is a reference output: its distance to ours as a share of its"
            f" norm. The dashed line is the limit; 10⁻⁸ and less stand at the left.{note}"
            "</figcaption></figure>"
        )

    @staticmethod
    def cases(name: str, cases: list[dict]) -> str:
        rows = []
        for c in cases:
            macs = "–"
            if c.get("macs") and c.get("batch"):
                macs = html.format_count(c["macs"] / c["batch"])
            deviation = "own measure"
            if c["deviation"] is not None:
                deviation = html.format_number(c["deviation"], 2)
            row = (
                f"<code>{html.escape(c['case'])}</code>",
                html.Cell(f"{c['params']:,}" if c.get("params") else "–", c.get("params")),
                html.Cell(macs, c.get("macs")),
                html.Cell(deviation, c["deviation"]),
                html.mark(c["passed"], "equal" if c["passed"] else "differs"),
                source_kind(c.get("source", "")),
                origin(c.get("source", "")),
            )
            rows.append(row)
        head = (
            "Case",
            "Parameters",
            "MACs for one input",
            "Largest deviation",
            "Verdict",
            "Source",
            "Recorded from",
        )
        caption = f"Reference outputs of {html.escape(name)}"
        return html.table(head, rows, caption, numeric=(1, 2, 3), classes="sortable exact-table")


def position(deviation: float) -> float:
    """Where a deviation lies on the strip, from 0 to 1; what is smaller stands at its beginning."""
    low, high = map(log10, SCALE)
    return min(max((log10(max(deviation, SCALE[0])) - low) / (high - low), 0), 1)


def origin(source: str) -> str:
    """`owner/name@commit path` as a link to that place; anything else as it stands.

    Of the path only the file is shown, and what is named in it.
    """
    found = re.match(r"([\w.-]+/[\w.-]+)\s*@\s*([0-9a-f]{7,40})\s*(.*)", source)
    if not found:
        return html.escape(source)
    repository, commit, path = found.groups()
    url = f"https://github.com/{repository}/tree/{commit}"
    place = path.partition(" ")[0]
    if re.fullmatch(r"[\w./-]+", place):
        url += f"/{place}"
    link = html.link(url, f"{html.escape(repository)}@{commit[:7]}")
    named = path.replace(place, place.rpartition("/")[2], 1)
    return f"{link} {html.escape(named)}" if path else link


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
    """Where official code departs from its paper: shown by a test first, then only noted."""

    def make(self):
        shown, noted = [], []
        for paper, difference in sources.differences():
            (shown if difference.test else noted).append(self.card(paper, difference))
        if not shown and not noted:
            return html.note("No difference is recorded yet.")
        papers = dict.fromkeys(paper for paper, _ in sources.differences())
        choices = {"paper": ("Paper", [(paper.stem, paper.name) for paper in papers])}
        made = [raw(f'<div class="filterable differences">{controls(choices)}')]
        made.append(self.group("shown", f"{len(shown)} shown by a test", shown))
        if noted:
            made.append(
                self.group("noted", f"{len(noted)} noted, not yet shown", noted, "Show them")
            )
        return [*made, raw("</div>")]

    def group(self, id: str, title: str, cards: list[str], fold: str = "") -> nodes.section:
        """fold: what opens the cards, where they are folded away."""
        content = f'<div class="claims">{"".join(cards)}</div>'
        if fold:
            content = f'<details class="folded"><summary>{fold}</summary>{content}</details>'
        return self.section(id, title, raw(content))

    def card(self, paper, difference) -> str:
        shown = "no test yet"
        if difference.test:
            file, _, name = difference.test.partition("::")
            shown = html.code_link(file, name)
        rows = {
            "The paper says": html.inline(difference.paper_says),
            "The code does": html.inline(difference.code_does),
            "What changes": html.inline(difference.effect),
            "Shown by": shown,
        }
        facts = "".join(f"<dt>{label}</dt><dd>{text}</dd>" for label, text in rows.items())
        return (
            f'<div class="difference item" id="{difference.id}" data-paper="{paper.stem}">'
            f"<p><b>{self.chapter_link(paper)}</b></p><dl>{facts}</dl></div>"
        )


def setup(app):
    app.add_directive("freshness", Freshness)
    app.add_directive("exactness", Exactness)
    app.add_directive("differences", Differences)
