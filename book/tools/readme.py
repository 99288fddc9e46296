"""Write the generated parts of README.md: `python book/tools/readme.py` (or `make readme`).

The counts and the table of papers come from the catalogue, the picture from the EfficientViT
chapter. `make readme` also writes the book's table of contents (`contents.py`).
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import address
import contents
import refimpl
from refimpl.catalogue import PAPERS, PARTS, Paper

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PICTURE = ROOT / "book" / "_static" / "readme.png"


def paper_table() -> str:
    """The papers by part: paper, idea, chapter, Colab; those without a chapter as planned."""
    lines = []
    for key, stems in contents.chapters().items():
        lines += [
            f"**{PARTS[key].title}**",
            "",
            "| Paper | Idea | Read | Run |",
            "|---|---|---|---|",
        ]
        lines += [paper_row(PAPERS[stem], stem in stems) for stem in PARTS[key].stems]
        lines.append("")
    return "\n".join(lines)


def paper_row(paper: Paper, written: bool) -> str:
    repo = address.current()
    owner, name = repo.split("/")
    title = f"[{paper.name}]({paper.url})" if paper.url else paper.name
    venue = paper.venue if str(paper.year) in paper.venue else f"{paper.venue} {paper.year}"
    read, run = "planned", ""
    if written:
        read = f"[chapter](https://{owner}.github.io/{name}/notebooks/{paper.stem}.html)"
        place = f"{repo}/blob/main/notebooks/{paper.stem}.ipynb"
        run = f"[Colab](https://colab.research.google.com/github/{place})"
    return f"| {title} ({venue}) | {paper.idea} | {read} | {run} |"


def counts() -> str:
    """One sentence about how far the work has come."""
    papers = refimpl.list_papers()
    chapters = sum(map(len, contents.chapters().values()))
    models = len(refimpl.list_models())
    cases = len(list((ROOT / "tests" / "golden").glob("*/*.json")))
    return (
        f"State: {chapters} of {len(papers)} chapters, {models} models,"
        f" {cases} reference outputs under test."
    )


def render(text: str) -> str:
    """README.md with its generated parts replaced."""
    parts = {"counts": counts(), "picture": picture(), "papers": paper_table()}
    for name, content in parts.items():
        part = re.compile(rf"(<!-- {name}:begin[^>]*-->\n).*?(<!-- {name}:end -->)", re.S)
        if not part.search(text):
            raise ValueError(f"README.md has no <!-- {name}:begin --> … <!-- {name}:end -->")
        text = part.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)
    return text


def chapter_picture() -> tuple[bytes, str]:
    """The README's picture: the one that stands for the EfficientViT chapter, and its alt text."""
    path = ROOT / "notebooks" / "efficientvit.ipynb"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "chapter-picture" not in cell["metadata"].get("tags", []):
            continue
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                png = base64.b64decode("".join(output["data"]["image/png"]))
                return png, cell["metadata"]["mystnb"]["image"]["alt"]
    raise ValueError(f"{path} stores no picture in a cell tagged chapter-picture")


def picture() -> str:
    """The picture as Markdown."""
    return f"![{chapter_picture()[1]}]({PICTURE.relative_to(ROOT).as_posix()})"


def refresh() -> None:
    """Write README.md's generated parts and its picture."""
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
    PICTURE.write_bytes(chapter_picture()[0])


if __name__ == "__main__":
    refresh()
    contents.refresh()
    print("README.md, book/_toc.yml: generated parts refreshed")
