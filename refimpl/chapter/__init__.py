"""What a notebook says to its reader and leaves for the book.

Set-up, sentences, tables, sources, claims, atlas rows, recorded runs, the stamp.
"""

from refimpl.chapter import atlas, claims
from refimpl.chapter.freshness import stamp
from refimpl.chapter.results import stored
from refimpl.chapter.runs import recorded
from refimpl.chapter.session import setup
from refimpl.chapter.show import say, show_source
from refimpl.chapter.tables import table

__all__ = [
    "atlas",
    "claims",
    "recorded",
    "say",
    "setup",
    "show_source",
    "stamp",
    "stored",
    "table",
]
