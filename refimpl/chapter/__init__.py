"""What a notebook says to its reader and leaves for the book: set-up, sentences, tables, sources, claims, atlas rows, the stamp."""

from refimpl.chapter import atlas, claims
from refimpl.chapter.freshness import stamp
from refimpl.chapter.results import stored
from refimpl.chapter.show import say, setup, show_source, table

__all__ = ["atlas", "claims", "say", "setup", "show_source", "stamp", "stored", "table"]
