"""Write the generated parts of README.md from the catalogue: `python book/tools/readme.py` (or `make readme`)."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "book" / "tools")]

import address  # noqa: E402
import refimpl  # noqa: E402
from refimpl.catalogue import PARTS  # noqa: E402


def written(stem: str) -> bool:
    """Whether the paper has its chapter."""
    return (ROOT / "notebooks" / f"{stem}.ipynb").exists()


def table() -> str:
    """The papers by part: paper, idea, chapter, Colab, state."""
    repo = address.current()
    owner, name = repo.split("/")
    lines = []
    for key, (part, _) in PARTS.items():
        lines += [f"**{part}**", "", "| Paper | Idea | Read | Run |", "|---|---|---|---|"]
        for p in (p for p in refimpl.list_papers() if p.part == key):
            title = f"[{p.name}]({p.url})" if p.url else p.name
            if written(p.stem):
                read = f"[chapter](https://{owner}.github.io/{name}/notebooks/{p.stem}.html)"
                run = f"[Colab](https://colab.research.google.com/github/{repo}/blob/main/notebooks/{p.stem}.ipynb)"
            else:
                read, run = "planned", ""
            lines.append(
                f"| {title} ({p.venue} {p.year}) | {p.idea} | {read} | {run} |".replace(
                    f"{p.year} {p.year}", str(p.year)
                )
            )
        lines.append("")
    return "\n".join(lines)


def counts() -> str:
    papers = refimpl.list_papers()
    written, models, cases = (
        sum(written(p.stem) for p in papers),
        len(refimpl.list_models()),
        len(list((ROOT / "tests" / "golden").glob("*/*.json"))),
    )
    return f"State: {written} of {len(papers)} chapters, {models} models, {cases} official figures under test."


def render(text: str) -> str:
    """README.md with its generated parts replaced."""
    for name, content in {"papers": table(), "counts": counts()}.items():
        marker = re.compile(rf"(<!-- {name}:begin[^>]*-->\n).*?(<!-- {name}:end -->)", re.S)
        if not marker.search(text):
            raise ValueError(
                f"README.md has no generated part {name!r}: <!-- {name}:begin --> … <!-- {name}:end -->"
            )
        text = marker.sub(lambda m, content=content: m[1] + content + "\n" + m[2], text)
    return text


FIGURE = ROOT / "book" / "_static" / "readme.png"


def figure() -> bytes:
    """The README's picture: the first attention overlay that the EfficientViT chapter stored."""
    notebook = json.loads((ROOT / "notebooks" / "efficientvit.ipynb").read_text(encoding="utf-8"))
    cell = next(
        c
        for c in notebook["cells"]
        if c["cell_type"] == "code" and "attention.overlay(" in "".join(c["source"])
    )
    return base64.b64decode(
        next(
            "".join(o["data"]["image/png"])
            for o in cell["outputs"]
            if "image/png" in o.get("data", {})
        )
    )


if __name__ == "__main__":
    FIGURE.write_bytes(figure())
    path = ROOT / "README.md"
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")
    print("README.md: generated parts refreshed")
