"""The ledger: every claim of the finished chapters, as a matrix of signs and as two-line cards."""

from __future__ import annotations

import json
from collections import Counter

from docutils import nodes

from refimpl.chapter import rules
from refimpl_book import html, sources
from refimpl_book.pages import Page, raw, venue

ORDERS = (("", "the book’s order"), ("contradicts", "contradictions first"))


class Ledger(Page):
    """Every claim, as the catalogue states it, with what the executed chapter found."""

    def make(self):
        written = [paper for paper in sources.papers() if sources.written(paper.stem)]
        if not written:
            return html.note("No chapter has reported yet: run <code>make execute</code>.")
        found = {paper: sources.verdicts(paper.stem) for paper in written}
        everything = [row for rows in found.values() for row in rows]
        return [
            raw(self.tally(everything, len(written)) + self.matrix(found)),
            raw(f'<div class="filterable ledger">{filters(found)}'),
            *(self.paper(paper, rows) for paper, rows in found.items()),
            raw("</div>"),
        ]

    @staticmethod
    def tally(rows: list, papers: int) -> str:
        total = Counter(row.verdict for row in rows)
        shown = [f"{html.verdict(name)} {total[name]}" for name in html.VERDICTS if total[name]]
        planned = len(sources.papers()) - papers
        words = f"{len(rows)} claims of {papers} papers; {planned} papers are still planned."
        items = "".join(f"<span>{item}</span>" for item in shown)
        return f'<p class="tally"><em>{words}</em>{items}</p>'

    @staticmethod
    def matrix(found: dict) -> str:
        """Papers × claims in coloured signs, each a link to its card."""
        most = max(map(len, found.values()))
        lines = []
        for paper, rows in found.items():
            cells = []
            for row in rows:
                number = row.claim.id.rpartition(".")[2]
                label = f"{paper.name}, claim {number}: {row.verdict}"
                link = (
                    f'<a class="cell" href="#{row.claim.id}" aria-label="{html.escape(label)}"'
                    f' title="{html.escape(label)}">{html.sign(row.verdict)}</a>'
                )
                cells.append(f"<td>{link}</td>")
            cells += ["<td></td>"] * (most - len(rows))
            name = f'<th scope="row"><a href="#{paper.stem}">{html.escape(paper.name)}</a></th>'
            lines.append(f"<tr>{name}{''.join(cells)}</tr>")
        numbers = "".join(f'<th scope="col">{i}</th>' for i in range(1, most + 1))
        return (
            '<div class="table-box"><table class="table matrix">'
            "<caption>Papers and claims</caption>"
            f'<thead><tr><th scope="col">Paper</th>{numbers}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )

    def paper(self, paper, rows: list) -> nodes.section:
        chapter = self.to(f"notebooks/{paper.stem}")
        facts = f"{html.link(chapter, 'Read the chapter')} · {html.escape(venue(paper))}"
        cards = "".join(self.card(paper, row, chapter) for row in rows)
        return self.section(
            paper.stem,
            paper.name,
            raw(f'<p class="facts">{facts}</p><div class="claims">{cards}</div>'),
        )

    @staticmethod
    def card(paper, row, chapter: str) -> str:
        """Verdict and statement; the two numbers; and folded, why, by which rule, how to test."""
        claim = row.claim
        number = claim.id.rpartition(".")[2]
        back = (
            f'<a href="{chapter}#claim-{number}" aria-label="Claim {number} in the chapter'
            f' {html.escape(paper.name)}">{number}</a>'
        )
        here = f"<span><i>Here:</i> {html.inline(row.measured)}</span>" if row.measured else ""
        kept = [("Why", row.why), ("Rule", in_code(claim.rule)), ("Needs", claim.needs)]
        more = [f"<dt>{name}</dt><dd>{html.inline(text)}</dd>" for name, text in kept if text]
        if claim.command:
            more.append(f"<dt>Command</dt><dd><code>{html.escape(claim.command)}</code></dd>")
        more.append(f"<dt>Kind</dt><dd>{html.KINDS[claim.kind]}</dd>")
        return (
            f'<div class="claim item" id="{claim.id}" data-verdict="{row.verdict}"'
            f' data-kind="{claim.kind}" data-paper="{paper.stem}">'
            f'<div class="claim-verdict">{back} {html.verdict(row.verdict)}'
            f'<span class="claim-paper">{html.escape(paper.name)}</span></div>'
            f'<div class="claim-statement">{html.inline(claim.statement)}</div>'
            f'<div class="claim-numbers"><span><i>Paper:</i> {html.inline(claim.reported or "–")}'
            f"</span> {here}</div>"
            f"<details><summary>why</summary><dl>{''.join(more)}</dl></details></div>"
        )


def in_code(rule: str) -> str:
    """A rule that is computed, as code; any other is prose."""
    return f"`{rule}`" if rules.computed(rule) else rule


def filters(found: dict) -> str:
    """What the script makes controls of."""
    rows = [row for rows in found.values() for row in rows]
    used = {row.verdict for row in rows}
    kinds = {row.claim.kind for row in rows}
    verdicts = [
        (name, f"{html.VERDICTS[name][0]} {name}") for name in html.VERDICTS if name in used
    ]
    return controls(
        {
            "verdict": ("Verdict", verdicts),
            "kind": ("Kind", [(k, words) for k, words in html.KINDS.items() if k in kinds]),
            "paper": ("Paper", [(paper.stem, paper.name) for paper in found]),
        },
        ORDERS,
    )


def controls(choices: dict[str, tuple[str, list]], orders: tuple = ()) -> str:
    """Filters as data: attribute -> label and (value, text) of its choices."""
    data = {
        "filters": [
            {"name": name, "label": label, "options": [list(pair) for pair in options]}
            for name, (label, options) in choices.items()
        ],
        "orders": [list(pair) for pair in orders],
    }
    text = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    return f'<script type="application/json" class="filters">{text}</script>'


def setup(app):
    app.add_directive("claims-ledger", Ledger)
