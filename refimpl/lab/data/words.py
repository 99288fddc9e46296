"""Text that comes with Python."""

import functools


@functools.lru_cache(maxsize=1)
def text_corpus() -> str:
    """About half a million characters of English: the topics of Python's own `help()`.

    From `pydoc_data.topics` (PSF licence). The text belongs to the running Python, so its length
    differs between versions.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
