"""The book's local Sphinx extension: pages made from the catalogue, the chapters and the results.

`sources` reads and `html` writes HTML; `katex` sets mathematics at build time. `pages`, `evidence`,
`speed`, `operations` and `atlas` hold the directives, `api` the reference pages. `reading` arranges
a chapter's page, out of what `cells` makes of its cells. `theme` says what each page gets and what
is taken away from it, `pictures` gives figures their place, `dark` draws those of the dark theme.
`search` makes both spellings one word, `social` describes a page to others.
Nothing here asks a network for anything.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # the checkout's refimpl, whether or not it is installed


EVERYWHERE = ("katex", "theme", "pictures", "dark", "search", "social")
CHAPTERS = ("reading", "notation")
PAGES = ("api", "pages", "landing", "ledger", "evidence", "speed", "operations", "atlas")


def setup(app):
    for name in (*EVERYWHERE, *CHAPTERS, *PAGES):
        import_module(f"refimpl_book.{name}").setup(app)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": False}
