"""The two atlases: rows that chapters left in the metadata of their stored outputs (`refimpl.chapter.atlas`), collected and laid out; nothing is typed."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from docutils import nodes
from PIL import Image

from refimpl.lab import data
from refimpl.viz import charts
from refimpl_book import html, pages, sources

BUDGET = (
    500_000  # bytes for all figures of one atlas page; tests/test_book.py allows a page 600,000
)


@dataclass
class Row:
    """One record with the figure of the same output and the cell's alternative text."""

    paper: object
    record: dict
    figure: bytes
    alt: str
    id: str  # of the row on its page

    @property
    def title(self) -> str:
        return html.escape(self.record["model"])

    @property
    def state(self) -> str:
        return html.inline(self.record["state"])


def rows(kind: str) -> list[Row]:
    """Every record of a kind in the stored chapters, in the book's order."""
    found = []
    for paper in sources.papers():
        if not sources.written(paper.stem):
            continue
        for cell in json.loads(
            (sources.NOTEBOOKS / f"{paper.stem}.ipynb").read_text(encoding="utf-8")
        )["cells"]:
            alt = cell.get("metadata", {}).get("mystnb", {}).get("image", {}).get("alt", "")
            for output in cell.get("outputs", []):
                record = output.get("metadata", {}).get("refimpl", {}).get(kind)
                if record is not None:
                    id = f"{paper.stem}-{1 + sum(row.paper is paper for row in found)}"
                    found.append(
                        Row(
                            paper,
                            record,
                            base64.b64decode("".join(output["data"]["image/png"])),
                            alt,
                            id,
                        )
                    )
    return found


def squeezed(picture: Image.Image, most: int) -> bytes:
    """A WebP of at most `most` bytes, where quality 30 reaches that; without loss where that is no larger (flat colours)."""

    def written(**options) -> bytes:
        out = io.BytesIO()
        picture.save(out, "webp", method=6, **options)
        return out.getvalue()

    tried = min(written(lossless=True), written(quality=85), key=len)
    for quality in (70, 50, 30):
        if len(tried) > most:
            tried = written(quality=quality)
    return tried


class Atlas(pages.Page):
    """A summary table, then for every chapter its rows: figure, what the weights are, figures by layer."""

    kind = ""
    nothing = ""

    def make(self) -> str | list[nodes.Node]:
        found = rows(self.kind)
        if not found:
            return html.note(self.nothing)
        made = [pages.raw(self.summary(found) + self.credits(found))]
        for paper in dict.fromkeys(row.paper for row in found):
            mine = "".join(
                self.row(row, BUDGET // len(found)) for row in found if row.paper is paper
            )
            made.append(
                self.section(
                    paper.stem,
                    paper.name,
                    pages.raw(
                        f"<p>{html.link(self.to(f'notebooks/{paper.stem}'), 'Read the chapter')}</p>{mine}"
                    ),
                )
            )
        return made

    def row(self, row: Row, most: int) -> str:
        light = self.write(row.figure, f"{self.kind}-{row.id}.webp", most)
        twin = charts.dark_twin(row.figure)
        rule = ""
        if twin:
            dark = self.write(twin, f"{self.kind}-{row.id}-dark.webp", most)
            rule = f'<style>html[data-theme="dark"] img[src="{light}"]{{content:url("{dark}")}}</style>'
        width, height = Image.open(io.BytesIO(row.figure)).size
        image = f'<img src="{light}" alt="{html.escape(row.alt)}" width="{width}" height="{height}" loading="lazy">'
        caption = f"<strong>{row.title}</strong>, {row.state}. {self.caption(row.record)}"
        return f'{rule}<figure class="atlas-row" id="{row.id}">{image}<figcaption>{caption}</figcaption></figure>{self.details(row)}'

    def write(self, figure: bytes, name: str, most: int) -> str:
        """Put a figure among the book's images; its address from this page."""
        target = Path(self.env.app.outdir) / "_images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(squeezed(Image.open(io.BytesIO(figure)).convert("RGB"), most))
        return f"{self.root()}_images/{name}"

    def credits(self, found: list[Row]) -> str:
        known = data.PHOTOS | data.TEXTURES
        names = dict.fromkeys(name for row in found for name in row.record["photos"])
        said = ", ".join(f"{name} ({known[name][1]})" for name in names)
        return f'<p class="facts">Photographs, by way of scikit-image: {html.escape(said)}.</p>'

    def first(self, row: Row) -> str:
        """The cell that names a row of the summary."""
        return f"{html.link(f'#{row.id}', row.title)}<br><small>{row.state}</small>"

    def summary(self, found: list[Row]) -> str:
        raise NotImplementedError

    def caption(self, record: dict) -> str:
        raise NotImplementedError

    def details(self, row: Row) -> str:
        return ""


def number(value: float | None, digits: int = 2) -> html.Cell:
    shown = "–" if value is None else f"{value:.{digits}f}".replace("-", "−")
    return html.Cell(re.sub(r"^−(0\.?0*)$", r"\1", shown), value)


def present(layers: list[dict], key: str) -> list[float]:
    return [layer[key] for layer in layers if layer[key] is not None]


def spark(values: list[float]) -> str:
    """Distance by depth as a small line; the dashed line is uniform attention. The figures stand in the table by layer."""
    top = max([1.1, *values])
    x = lambda i: 2 + 76 * (i / (len(values) - 1) if len(values) > 1 else 0.5)  # noqa: E731
    y = lambda v: 26 - 24 * v / top  # noqa: E731
    points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values))
    dots = "".join(
        f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="1.6"/>' for i, v in enumerate(values)
    )
    return (
        f'<svg class="spark" viewBox="0 0 80 28" width="80" height="28" aria-hidden="true"><path d="M0 {y(1):.1f}H80" class="uniform"/>'
        f'<polyline points="{points}"/>{dots}</svg>'
    )


class AttentionAtlas(Atlas):
    """The photographs through every model with attention."""

    kind = "attention_atlas"
    nothing = "No chapter has left a row yet: a chapter adds one with <code>refimpl.chapter.atlas.attention_row</code>."

    def summary(self, found):
        table = []
        for row in found:
            layers = row.record["layers"]
            far = present(layers, "distance")
            means = [
                fmean(v) if (v := present(layers, key)) else None
                for key in ("similarity", "centred", "entropy")
            ]
            ends = [far[0], far[-1]] if far else [None, None]
            table.append(
                (
                    self.first(row),
                    html.Cell(str(len(layers)), len(layers)),
                    *map(number, means),
                    *map(number, ends),
                    html.Cell(spark(far), far[-1] - far[0] if far else None),
                )
            )
        head = (
            "Model",
            "Layers",
            "Heads alike",
            "Centred",
            "Entropy",
            "Distance: first layer",
            "Distance: last layer",
            "By depth",
        )
        caption = "What the heads do on the photographs: means over layers, and distance travelled as a share of uniform attention’s"
        return html.table(
            head,
            table,
            caption,
            classes="sortable",
            numeric=range(1, 7),
            wide=(0,),
            id="attention-summary",
        )

    def caption(self, record):
        layers = record["layers"]
        early, late = record["drawn"]
        said = [
            f"layer {i + 1} (<code>{html.escape(layers[i]['name'])}</code>, {grid(layers[i])})"
            for i in dict.fromkeys((early, late))
        ]
        return f"Drawn: {' and '.join(said)} of {len(layers)}, at {record['img_size']} × {record['img_size']} pixels."

    def details(self, row):
        table = [
            (
                f"{i}. <code>{html.escape(layer['name'])}</code>",
                html.Cell(grid(layer)),
                html.Cell(str(layer["heads"]), layer["heads"]),
                *(
                    number(layer[key], digits)
                    for key, digits in (
                        ("similarity", 3),
                        ("centred", 3),
                        ("entropy", 3),
                        ("distance", 3),
                    )
                ),
            )
            for i, layer in enumerate(row.record["layers"], 1)
        ]
        head = ("Layer", "Map", "Heads", "Heads alike", "Centred", "Entropy", "Distance")
        made = html.table(
            head, table, f"{row.title}, {row.state}: every layer", numeric=range(2, 7)
        )
        return f'<details class="atlas-layers"><summary>{row.title}: the figures of every layer</summary>{made}</details>'


def grid(layer: dict) -> str:
    """`14 × 14 patches, in windows of 7 × 7`."""
    if layer["grid"] is None:
        return "tokens without a place"
    window = f", in windows of {layer['window']} × {layer['window']}" if layer["window"] else ""
    return f"{layer['grid'][0]} × {layer['grid'][1]} patches{window}"


class ArtifactAtlas(Atlas):
    """What of every model's features belongs to position."""

    kind = "artifact_atlas"
    nothing = "No chapter has left a row yet: a chapter adds one with <code>refimpl.chapter.atlas.artifact_row</code>."
    measures = (
        "share",
        "readout",
        "pixels_share",
        "pixels_readout",
        "blank_spread",
        "blank_agreement",
    )

    def summary(self, found):
        table = [
            (
                self.first(row),
                *(
                    number(row.record[key], 3 if key.endswith("share") else 2)
                    for key in self.measures
                ),
            )
            for row in found
        ]
        head = (
            "Model",
            "η²",
            "R²",
            "η² of the pixels",
            "R² of the pixels",
            "Blank image: spread",
            "Blank image: agreement",
        )
        caption = "How much of the features belongs to position"
        return html.table(
            head,
            table,
            caption,
            classes="sortable",
            numeric=range(1, 7),
            wide=(0,),
            id="artifact-summary",
        )

    def caption(self, record):
        h, w = record["grid"]
        return f"A map of {h} × {w} from {record['img_size']} × {record['img_size']} pixels; measured on {record['crops']} crops."


def setup(app):
    app.add_directive("attention-atlas", AttentionAtlas)
    app.add_directive("artifact-atlas", ArtifactAtlas)
