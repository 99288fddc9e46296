"""Pages about speed: every measured model in one table, and which model fits a budget.

speed.js makes both live; without a script the tables stand alone.
"""

from __future__ import annotations

import json

from refimpl_book import html, sources
from refimpl_book.evidence import certificates
from refimpl_book.pages import Page

HEAD = (
    "Model",
    "Form",
    "Batch",
    "Top-1, published",
    "Time, measured here",
    "Peak memory",
    "Parameters",
    "MACs",
    "Of ceiling",
    "Ratio to timm",
    "Certificate",
)
GPU_HEAD = ("Model", "Form", "Batch", "Time", "Middle half", "Peak memory", "Of ceiling")
YARDSTICK = "deit_tiny"  # the network that a budget is told in


class Explorer(Page):
    """The CPU's table, sorted, filtered, selected, downloaded; below it, folded, each GPU's."""

    def make(self):
        results = [measured for measured in sources.measured() if measured.models]
        if not results:
            message = html.note("Not measured yet: run <code>make bench</code>.")
            return message + self.unmeasured(set())
        cpu, *gpus = results
        return self.explorer(cpu) + "".join(map(self.gpu, gpus))

    def explorer(self, results: sources.Measured) -> str:
        machines = results.machines()
        ordered = in_order(results.models)
        table = html.table(
            HEAD,
            [self.row(row) for row in ordered],
            f"Measured on {html.escape('; '.join(map(machine_line, machines)))}",
            classes="explorer",
            numeric=range(2, 10),
            id=f"speed-{results.name}",
        )
        records = [record(row) for row in ordered]
        script = payload("explorer-data", {"machines": machines, "models": records})
        box = f'<div class="explorer-box" data-name="{results.name}">{table}{script}</div>'
        return box + self.unmeasured({row["name"] for row in results.models})

    def gpu(self, results: sources.Measured) -> str:
        machines = "; ".join(map(machine_line, results.machines()))
        ordered = in_order(results.models)
        table = html.table(
            GPU_HEAD,
            [self.gpu_row(row) for row in ordered],
            f"Measured on {html.escape(machines)}",
            classes="sortable",
            numeric=range(2, 7),
            id=f"speed-{results.name}",
        )
        names = {row["name"] for row in ordered}
        title = f"{len(names)} models on {results.machines()[0]['name']}"
        return f"<details><summary>{html.escape(title)}</summary>{table}</details>"

    def gpu_row(self, row: dict) -> tuple:
        ceiling = of_ceiling(row)
        return (
            self.model(row),
            html.escape(row["form"]),
            html.Cell(str(row["batch"]), row["batch"]),
            html.Cell(milliseconds(row["seconds"]), row["seconds"]),
            html.Cell(middle_half(row), row["low"]),
            html.Cell(f"{row['memory'] / 1e6:.3g} MB", row["memory"]),
            html.Cell(f"{ceiling:.1%}" if ceiling else "–", ceiling),
        )

    def model(self, row: dict) -> str:
        stem = sources.stem_of(row["name"])
        model = f"<code>{html.escape(row['name'])}</code>"
        return html.link(self.to(f"notebooks/{stem}"), model) if sources.written(stem) else model

    def row(self, row: dict) -> tuple:
        stem = sources.stem_of(row["name"])
        ceiling = of_ceiling(row)
        memory = row.get("memory")
        accuracy = sources.top1(row["name"])
        count = certificates(row["name"])
        certificate = "–"
        if count:
            certificate = html.link(self.to("book/exactness", stem), f"{count} equal")
        time = (
            f'<span title="middle half: {middle_half(row)}">{milliseconds(row["seconds"])}</span>'
        )
        return (
            self.model(row),
            html.escape(row["form"]),
            html.Cell(str(row["batch"]), row["batch"]),
            html.Cell(f"{accuracy:.1f} %" if accuracy else "–", accuracy),
            html.Cell(time, row["seconds"]),
            html.Cell(f"{memory / 1e6:.3g} MB" if memory else "–", memory),
            html.Cell(html.format_count(row["params"]), row["params"]),
            html.Cell(html.format_count(row["macs"]), row["macs"]),
            html.Cell(f"{ceiling:.0%}" if ceiling else "–", ceiling),
            html.Cell(ratio_to_timm(row), row.get("ratio_to_timm")),
            html.Cell(certificate, count),
        )

    def unmeasured(self, measured: set[str]) -> str:
        """Models that can be created and stand in no row, folded."""
        left = sorted(set(sources.models()) - measured)
        if not left:
            return ""
        names = ", ".join(f"<code>{html.escape(model)}</code>" for model in left)
        title = f"{len(left)} models that can be created are not measured yet"
        return f"<details><summary>{title}</summary><p>{names}</p></details>"


def in_order(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: (row["batch"], row["seconds"]))


def payload(name: str, data: dict) -> str:
    text = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    return f'<script type="application/json" class="{name}">{text}</script>'


def record(row: dict) -> dict:
    """A row as it is downloaded: flat, with the date of its measurement."""
    flat = {key: value for key, value in row.items() if key not in ("machine", "ceilings")}
    return flat | {
        "paper": sources.stem_of(row["name"]),
        "top1_published": sources.top1(row["name"]),
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


def middle_half(row: dict) -> str:
    return f"{milliseconds(row['low'])} – {milliseconds(row['high'])}"


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


# -- which model


class Choices(Page):
    """Measured models with a published accuracy, as choices for a budget."""

    def scale(self) -> float | None:
        """Seconds of the yardstick."""
        return {row["name"]: row["seconds"] for row in single_images()}.get(YARDSTICK)

    def choices(self) -> list[dict]:
        rows = [row for row in single_images() if sources.top1(row["name"])]
        found = [self.choice(row, self.scale()) for row in rows]
        return sorted(found, key=lambda choice: choice["time"])

    def make(self):
        if not self.scale():
            return html.note("Not measured yet: run <code>make bench</code>.")
        return self.shown()

    def choice(self, row: dict, scale: float) -> dict:
        model = row["name"]
        stem = sources.stem_of(model)
        failed = []
        if sources.written(stem):
            failed = [v for v in sources.verdicts(stem) if v.verdict == "contradicts"]
        written = sources.written(stem)
        return {
            "name": model,
            "family": sources.family_name(model),
            "stem": stem,
            "chapter": self.to(f"notebooks/{stem}") if written else "",
            "top1": sources.top1(model),
            "time": round(row["seconds"] / scale, 3),
            "milliseconds": round(1e3 * row["seconds"], 2),
            "memory": round(row.get("memory", 0) / 1e6, 1),
            "params": row["params"],
            "licence": sources.licence(model),
            "certificates": certificates(model),
            "exactness": self.to("book/exactness", stem),
            "failed": [
                {"address": self.to("book/ledger", v.claim.id), "text": v.claim.statement}
                for v in failed
            ],
            "tested": written,
        }


class Which(Choices):
    """The question and its answer, which need a script; the table below holds the same."""

    def shown(self):
        script = payload("which-data", {"choices": self.choices()})
        return f'<div class="which">{script}<div class="which-answer"></div></div>'


class WhichTable(Choices):
    """Every choice with what it costs."""

    def shown(self):
        choices, rows = self.choices(), single_images()
        head = (
            "Model",
            "Top-1, published",
            "Time",
            "Peak memory",
            "Licence of the official code",
            "Certificate",
            "Claims that failed",
        )
        table = html.table(
            head,
            [self.row(choice) for choice in choices],
            f"{len(choices)} models: time of the fused form, one image, one thread, as a multiple"
            f" of DeiT-Tiny’s {milliseconds(self.scale())} on"
            f" {html.escape(rows[0]['machine']['name'])}",
            numeric=(1, 2, 3),
            classes="sortable",
        )
        left_out = len(rows) - len(choices)
        if not left_out:
            return table
        return f"{table}<p>{left_out} measured models have no published ImageNet accuracy.</p>"

    @staticmethod
    def row(choice: dict) -> tuple:
        model = f"<code>{choice['name']}</code>"
        if choice["chapter"]:
            model = html.link(choice["chapter"], model)
        count = choice["certificates"]
        certificate = html.link(choice["exactness"], f"{count} equal") if count else "–"
        numbers = ", ".join(
            html.link(item["address"], item["address"].rpartition(".")[2])
            for item in choice["failed"]
        )
        failed = numbers or ("none" if choice["tested"] else "no chapter")
        return (
            model,
            html.Cell(f"{choice['top1']:.1f} %", choice["top1"]),
            html.Cell(f"{choice['time']:.2f}", choice["time"]),
            html.Cell(f"{choice['memory']:.3g} MB", choice["memory"]),
            html.escape(choice["licence"] or "not stated"),
            html.Cell(certificate, count),
            failed,
        )


def single_images() -> list[dict]:
    """One CPU row per model: batch 1, fused where there is a fused form."""
    best: dict[str, dict] = {}
    for row in next((m.models for m in sources.measured() if m.name == "cpu"), []):
        if row["batch"] == 1 and (row["name"] not in best or row["form"] == "fused"):
            best[row["name"]] = row
    return list(best.values())


def setup(app):
    app.add_directive("speed-explorer", Explorer)
    app.add_directive("which-model", Which)
    app.add_directive("which-table", WhichTable)
    app.add_js_file("speed.js", loading_method="defer")
