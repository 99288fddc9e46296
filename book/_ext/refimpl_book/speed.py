"""The page of speed: every measured model in one table, which refimpl.js makes live."""

from __future__ import annotations

import json

from refimpl_book import html, sources
from refimpl_book.evidence import certificates
from refimpl_book.pages import Page

HEAD = (
    "Model",
    "Form",
    "Batch",
    "Parameters",
    "MACs",
    "Latency",
    "IQR",
    "Of ceiling",
    "Ratio to timm",
    "Peak memory",
    "Certificate",
)


class Explorer(Page):
    """One table for the CPU and for each GPU: sorted, filtered, selected, downloaded."""

    def make(self):
        results = [measured for measured in sources.measured() if measured.models]
        if not results:
            message = html.note("Not measured yet: run <code>make bench</code>.")
            return message + self.unmeasured(set())
        return "".join(map(self.machine, results))

    def machine(self, results: sources.Measured) -> str:
        machines = results.machines()
        table = html.table(
            HEAD,
            [self.row(row) for row in results.models],
            f"Models measured on {html.escape('; '.join(map(machine_line, machines)))}",
            classes="explorer",
            numeric=range(2, 10),
            id=f"speed-{results.name}",
        )
        records = [record(row) for row in results.models]
        data = json.dumps({"machines": machines, "models": records}, ensure_ascii=False)
        payload = data.replace("</", "<\\/")
        script = f'<script type="application/json" class="explorer-data">{payload}</script>'
        box = f'<div class="explorer-box" data-name="{results.name}">{table}{script}</div>'
        return box + self.unmeasured({row["name"] for row in results.models})

    def row(self, row: dict) -> tuple:
        stem = sources.stem_of(row["name"])
        model = f"<code>{html.escape(row['name'])}</code>"
        if sources.written(stem):
            model = html.link(self.to(f"notebooks/{stem}"), model)
        spread = row["high"] - row["low"]
        ceiling = of_ceiling(row)
        memory = row.get("memory")
        count = certificates(row["name"])
        certificate = "–"
        if count:
            certificate = html.link(self.to("book/exactness", stem), f"{count} equal")
        return (
            model,
            html.escape(row["form"]),
            html.Cell(str(row["batch"]), row["batch"]),
            html.Cell(html.format_count(row["params"]), row["params"]),
            html.Cell(html.format_count(row["macs"]), row["macs"]),
            html.Cell(milliseconds(row["seconds"]), row["seconds"]),
            html.Cell(milliseconds(spread, 2), spread),
            html.Cell(f"{ceiling:.0%}" if ceiling else "–", ceiling),
            html.Cell(ratio_to_timm(row), row.get("ratio_to_timm")),
            html.Cell(f"{memory / 1e6:.3g} MB" if memory else "–", memory),
            html.Cell(certificate, count),
        )

    def unmeasured(self, measured: set[str]) -> str:
        """Models that can be created and stand in no row."""
        left = sorted(set(sources.models()) - measured)
        if not left:
            return ""
        names = ", ".join(f"<code>{html.escape(model)}</code>" for model in left)
        return f"<p>Models that can be created and are not in this table yet: {names}.</p>"


def record(row: dict) -> dict:
    """A row as it is downloaded: flat, with the date of its measurement."""
    flat = {key: value for key, value in row.items() if key not in ("machine", "ceilings")}
    return flat | {
        "paper": sources.stem_of(row["name"]),
        "official_cases": certificates(row["name"]),
        "date": row.get("date") or row["machine"].get("date", ""),
    }


def of_ceiling(row: dict) -> float | None:
    """The fraction of the machine's matrix-product rate that a model reached."""
    ceiling = row["ceilings"].get("gflops")
    if not ceiling:
        return None
    return 2 * row["macs"] * row["batch"] / row["seconds"] / (1e9 * ceiling)


def ratio_to_timm(row: dict) -> str:
    if not row.get("ratio_to_timm"):
        return "–"
    return f"{row['ratio_to_timm']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"


def milliseconds(seconds: float, digits: int = 3) -> str:
    return f"{html.format_number(1e3 * seconds, digits)} ms"


def machine_line(machine: dict) -> str:
    """`AMD EPYC (1 thread, torch 2.13.0, 2026-11-25)`."""
    facts = []
    if threads := machine.get("threads"):
        facts.append(f"{threads} thread{'s' if threads != 1 else ''}")
    if version := machine.get("torch"):
        facts.append(f"torch {version}")
    if date := machine.get("date"):
        facts.append(str(date))
    return f"{machine.get('name', 'a machine without a name')} ({', '.join(facts)})"


def setup(app):
    app.add_directive("speed-explorer", Explorer)
