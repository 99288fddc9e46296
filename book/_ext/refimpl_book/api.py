"""Reference pages: one for each module, written by autodoc from the sources.

Docstrings are read as Markdown, as the house writes them.
"""

from __future__ import annotations

import re

from docutils import nodes

from refimpl_book import ROOT, html, modules, sources

PAGES = ROOT / "book" / "api"
PAGE = """# `{name}`

{file}

```{{raw}} html
<span id="module-{name}"></span>
```

```{{eval-rst}}
.. automodule:: {name}
   :members:
   :ignore-module-all:
   :member-order: bysource
```
"""


def write_pages() -> None:
    """A page for each module, written only where it changed: else Sphinx builds it again."""
    PAGES.mkdir(exist_ok=True)
    wanted = {}
    for name in modules.modules():
        file = modules.module_file(name).relative_to(ROOT).as_posix()
        shown = f"`{file}`"
        if not sources.placeholder():
            shown = f"[{file}]({sources.source_link(file)})"
        text = PAGE.format(name=name, file=shown)
        wanted[f"{name}.md"] = text
    for old in PAGES.glob("refimpl*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        page = PAGES / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def as_markdown(app, what, name, obj, options, lines):
    """Replace a docstring by its HTML: it is Markdown, and can break no build."""
    text = "\n".join(lines).strip()
    if not text:
        return
    text = re.sub(
        r"(?m)(?:^>>> .*\n?(?:^(?!>>> |\s*$).*\n?)*)+",
        lambda m: f"```python\n{m[0].rstrip()}\n```\n",
        text,
    )
    shown = html.markdown(text)
    lines[:] = [".. raw:: html", "", *(f"   {line}" for line in shown.splitlines()), ""]


def elsewhere(name: str) -> str | None:
    """Address of a PyTorch, NumPy or Python class that a signature names, by rule.

    No inventory is asked for.
    """
    torch, numpy, python = (
        "https://docs.pytorch.org/docs/stable/",
        "https://numpy.org/doc/stable/reference/",
        "https://docs.python.org/3/library/",
    )
    if name in ("Tensor", "torch.Tensor"):
        return f"{torch}tensors.html#torch.Tensor"
    if name in ("torch.device", "torch.dtype"):
        return f"{torch}tensor_attributes.html#{name}"
    if layer := re.fullmatch(r"torch\.nn\.(?:modules\.\w+\.)?([A-Z]\w+)", name):
        return f"{torch}generated/torch.nn.{layer[1]}.html#torch.nn.{layer[1]}"
    if name in ("numpy.ndarray", "np.ndarray"):
        return f"{numpy}generated/numpy.ndarray.html#numpy.ndarray"
    if name == "numpy.random.Generator":
        return f"{numpy}random/generator.html#numpy.random.Generator"
    if module := re.fullmatch(r"(collections\.abc|pathlib|typing|fractions|datetime)\.(\w+)", name):
        return f"{python}{module[1]}.html#{name}"
    return None


def link_elsewhere(app, env, node, contnode):
    address = elsewhere(node.get("reftarget", "")) if node.get("refdomain") == "py" else None
    return nodes.reference("", "", contnode, internal=False, refuri=address) if address else None


def setup(app):
    app.connect("missing-reference", link_elsewhere)
    write_pages()
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", as_markdown)
    app.config.autodoc_typehints = "signature"
    app.config.autodoc_inherit_docstrings = False
    app.config.autodoc_preserve_defaults = True
    app.config.add_module_names = False
    app.config.nitpick_ignore_regex = [("py:.*", ".*")]
