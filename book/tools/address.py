"""Set the repository's address everywhere: `python book/tools/address.py owner/name`.

`make address REPO=owner/name` does the same. `_config.yml` is the one place that holds the address;
the chapters' first cell, README.md and CITATION.cff follow. Standard library only.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def current(root: Path = ROOT) -> str:
    """`owner/name` as `_config.yml` has it."""
    text = (root / "_config.yml").read_text(encoding="utf-8")
    return re.search(r"^\s*url:\s*https://github\.com/([\w.-]+/[\w.-]+)\s*$", text, re.M)[1]


def holders(root: Path = ROOT) -> list[Path]:
    """Every file that names the address."""
    files = [
        root / name for name in ("_config.yml", "README.md", "CITATION.cff", "CONTRIBUTING.md")
    ]
    files += sorted((root / "notebooks").glob("*.ipynb"))
    files += sorted((root / "notebooks" / "text").glob("*.md"))
    return files


def spellings(repo: str) -> list[str]:
    """The ways in which an address is written: repository, published book."""
    owner, name = repo.split("/")
    return [f"github.com/{repo}", f"github/{repo}", f"{owner}.github.io/{name}"]


def rewrite(new: str, root: Path = ROOT) -> list[Path]:
    """Replace the current address by `new`; the files that changed."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        raise ValueError(f"REPO={new!r} is not of the form owner/name")
    pairs = list(zip(spellings(current(root)), spellings(new), strict=True))
    changed = []
    for path in holders(root):
        text = path.read_text(encoding="utf-8")
        replaced = text
        for old, fresh in pairs:
            replaced = re.sub(re.escape(old) + r"(?![\w-])", fresh, replaced)
        if replaced != text:
            path.write_text(replaced, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python book/tools/address.py owner/name")
    try:
        files = rewrite(sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))
    print(f"{sys.argv[1]}: {len(files)} files rewritten")
