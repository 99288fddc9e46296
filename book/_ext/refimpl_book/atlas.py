"""The two atlases: rows that chapters left in the metadata of their stored outputs.

`refimpl.chapter.atlas` makes the rows; they are collected and laid out here, nothing is typed.
"""

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

from refimpl.chapter.atlas import OCTAVES, PHOTOS
from refimpl.lab import data
from refimpl.viz import charts
from refimpl_book import html, pages, sources
from refimpl_book.pictures import SMALLEST

BUDGET = 500_000  # bytes for all figures of one atlas; tests/test_book.py allows a page 600,000


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
    return [
        row
        for paper in sources.papers()
        if sources.written(paper.stem)
        for row in rows_of(paper, kind)
    ]


def rows_of(paper, kind: str) -> list[Row]:
    """The records of one chapter."""
    found = []
    for cell in sources.read_json(sources.NOTEBOOKS / f"{paper.stem}.ipynb")["cells"]:
        alt = cell.get("metadata", {}).get("mystnb", {}).get("image", {}).get("alt", "")
        for output in cell.get("outputs", []):
            record = output.get("metadata", {}).get("refimpl", {}).get(kind)
            if record is not None:
                figure = base64.b64decode("".join(output["data"]["image/png"]))
                found.append(Row(paper, record, figure, alt, f"{paper.stem}-{len(found) + 1}"))
    return found


def squeezed(picture: Image.Image, most: int) -> bytes:
    """A WebP of at most `most` bytes, where quality 30 reaches that.

    Without loss where that is no larger, as for flat colours.
    """

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
    """Each chapter's rows, figure first; then one table of what was measured."""

    kind = ""
    nothing = ""

    def make(self) -> str | list[nodes.Node]:
        found = rows(self.kind)
        if not found:
            return html.note(self.nothing)
        made = [pages.raw(self.before(found))]
        most = BUDGET // len(found)
        for paper in dict.fromkeys(row.paper for row in found):
            link = html.link(self.to(f"notebooks/{paper.stem}"), "Read the chapter")
            mine = [self.row(row, most) for row in found if row.paper is paper]
            content = pages.raw(f"<p>{link}</p>{''.join(mine)}")
            made.append(self.section(paper.stem, paper.name, content))
        numbers = pages.raw(self.summary(found) + self.credits(found))
        return [*made, self.section("all-numbers", "All numbers", numbers)]

    def before(self, found: list[Row]) -> str:
        """What stands before the rows."""
        return ""

    def row(self, row: Row, most: int) -> str:
        light = self.write(row.figure, f"{self.kind}-{row.id}.webp", most)
        rule = ""
        if twin := charts.dark_twin(row.figure):
            rule = html.dark_rules(light, self.write(twin, f"{self.kind}-{row.id}-dark.webp", most))
        width, height = Image.open(io.BytesIO(row.figure)).size
        image = (
            f'<img src="{light}" alt="{html.escape(row.alt)}" width="{width}" height="{height}"'
            f' style="--least: {round(SMALLEST[".png"] * width)}px" loading="lazy">'
        )
        caption = f"<strong>{row.title}</strong>, {row.state}. {self.caption(row.record)}"
        return (
            f'{rule}<figure class="atlas-row" id="{row.id}">{image}'
            f"<figcaption>{caption}</figcaption></figure>{self.details(row)}"
        )

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
    """Distance by depth as a small line; the dashed line is uniform attention.

    The numbers stand in the table by layer.
    """
    top = max([1.1, *values])
    step = 76 / (len(values) - 1) if len(values) > 1 else 0
    left = 2 if len(values) > 1 else 40  # a single layer stands in the middle

    def height(value: float) -> str:
        return f"{26 - 24 * value / top:.1f}"

    places = [(f"{left + step * i:.1f}", height(value)) for i, value in enumerate(values)]
    points = " ".join(f"{x},{y}" for x, y in places)
    dots = [f'<circle cx="{x}" cy="{y}" r="1.6"/>' for x, y in places]
    return (
        '<svg class="spark" viewBox="0 0 80 28" width="80" height="28" aria-hidden="true">'
        f'<path d="M0 {height(1)}H80" class="uniform"/><polyline points="{points}"/>'
        f"{''.join(dots)}</svg>"
    )


class AttentionAtlas(Atlas):
    """The photographs through every model with attention."""

    kind = "attention_atlas"
    nothing = (
        "No chapter has left a row yet: a chapter adds one with"
        " <code>refimpl.chapter.atlas.attention_row</code>."
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

    def before(self, found):
        """Two models side by side: a script draws both, for the patch under one cursor."""
        shown = [
            {
                "name": f"{row.record['model']}, {html.plain(row.state)}",
                "layers": len(row.record["layers"]),
                "maps": row.record["maps"],
            }
            for row in found
            if "maps" in row.record
        ]
        if not shown:
            return ""
        name, place = next(iter(PHOTOS.items()))
        picture = Image.fromarray(
            (255 * data.photo(name, 288)).round().byte().permute(1, 2, 0).numpy()
        )
        out = io.BytesIO()
        picture.save(out, "webp", quality=80)
        target = Path(self.env.app.outdir) / "_images" / f"atlas-{name}.webp"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(out.getvalue())
        told = {
            "rows": shown,
            "octaves": OCTAVES,
            "start": place,
            "photo": f"{self.root()}_images/{target.name}",
        }
        text = json.dumps(told, ensure_ascii=False).replace("</", "<\\/")
        script = f'<script type="application/json" class="compare-data">{text}</script>'
        return f'<div class="atlas-compare">{script}</div>'

    def summary(self, found):
        caption = (
            "What the heads do on the photographs: means over layers, and distance travelled as a"
            " fraction of uniform attention’s"
        )
        return html.table(
            self.head,
            map(self.line, found),
            caption,
            classes="sortable",
            numeric=range(1, 7),
            wide=(0,),
            id="attention-summary",
        )

    def line(self, row: Row) -> tuple:
        layers = row.record["layers"]
        distances = present(layers, "distance")
        first, last = (distances[0], distances[-1]) if distances else (None, None)
        return (
            self.first(row),
            html.Cell(str(len(layers)), len(layers)),
            number(mean(layers, "similarity")),
            number(mean(layers, "centred")),
            number(mean(layers, "entropy")),
            number(first),
            number(last),
            html.Cell(spark(distances), last - first if distances else None),
        )

    def caption(self, record):
        layers = record["layers"]
        said = [
            f"layer {i + 1} (<code>{html.escape(layers[i]['name'])}</code>, {grid(layers[i])})"
            for i in dict.fromkeys(record["drawn"])
        ]
        size = record["img_size"]
        return f"Drawn: {' and '.join(said)} of {len(layers)}, at {size} × {size} pixels."

    def details(self, row):
        table = []
        for i, layer in enumerate(row.record["layers"], 1):
            measures = [layer[key] for key in ("similarity", "centred", "entropy", "distance")]
            line = (
                f"{i}. <code>{html.escape(layer['name'])}</code>",
                html.Cell(grid(layer)),
                html.Cell(str(layer["heads"]), layer["heads"]),
                *(number(measure, 3) for measure in measures),
            )
            table.append(line)
        head = ("Layer", "Map", "Heads", "Heads alike", "Centred", "Entropy", "Distance")
        caption = f"{row.title}, {row.state}: its layers"
        made = html.table(head, table, caption, numeric=range(2, 7))
        title = f"<summary>{row.title}: the numbers of its layers</summary>"
        return f'<details class="atlas-layers">{title}{made}</details>'


def mean(layers: list[dict], key: str) -> float | None:
    """Mean over the layers that have this measure."""
    values = present(layers, key)
    return fmean(values) if values else None


def grid(layer: dict) -> str:
    """`14 × 14 patches, in windows of 7 × 7`."""
    if layer["grid"] is None:
        return "tokens without a place"
    window = f", in windows of {layer['window']} × {layer['window']}" if layer["window"] else ""
    return f"{layer['grid'][0]} × {layer['grid'][1]} patches{window}"


class ArtifactAtlas(Atlas):
    """What of every model's features belongs to position."""

    kind = "artifact_atlas"
    nothing = (
        "No chapter has left a row yet: a chapter adds one with"
        " <code>refimpl.chapter.atlas.artifact_row</code>."
    )
    columns = {  # heading -> measure, digits
        "η²": ("share", 3),
        "R²": ("readout", 2),
        "η² of the pixels": ("pixels_share", 3),
        "R² of the pixels": ("pixels_readout", 2),
        "Blank image: spread": ("blank_spread", 2),
        "Blank image: agreement": ("blank_agreement", 2),
    }

    def summary(self, found):
        return html.table(
            ("Model", *self.columns),
            map(self.line, found),
            "How much of the features belongs to position",
            classes="sortable",
            numeric=range(1, 7),
            wide=(0,),
            id="artifact-summary",
        )

    def line(self, row: Row) -> tuple:
        measures = [number(row.record[key], digits) for key, digits in self.columns.values()]
        return (self.first(row), *measures)

    def caption(self, record):
        rows, columns = record["grid"]
        size = record["img_size"]
        return (
            f"A map of {rows} × {columns} from {size} × {size} pixels; measured on"
            f" {record['crops']} crops."
        )


def setup(app):
    app.add_directive("attention-atlas", AttentionAtlas)
    app.add_directive("artifact-atlas", ArtifactAtlas)
