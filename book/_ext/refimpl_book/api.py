"""Reference pages: one for each module, written by autodoc from the sources.

Docstrings are read as Markdown, as the house writes them.
"""

from __future__ import annotations

import inspect
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
{given}```
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
        facts = " · ".join(filter(None, [shown, chapters_of(name)]))
        text = PAGE.format(name=name, file=facts, given=given(name))
        wanted[f"{name}.md"] = text
    for old in PAGES.glob("refimpl*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        page = PAGES / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def chapters_of(name: str) -> str:
    """The chapters that use a module, in the book's order, as links."""
    stems = modules.used_in().get(name, [])
    links = [
        f"{{doc}}`{paper.name} </notebooks/{paper.stem}>`"
        for paper in sources.papers()
        if paper.stem in stems
    ]
    return f"used in {', '.join(links)}" if links else ""


def given(name: str) -> str:
    """What a room gives on from its files, as a list of links."""
    lines = []
    for module, names in modules.given_on(name).items():
        links = [f":py:obj:`~{module}.{part}`" for part in names if part]
        page = f":py:mod:`{module}`"
        lines.append(f"- {page}: {', '.join(links)}" if links else f"- {page}")
    return "\n".join(["", ".. rubric:: Also given here", "", *lines, ""]) if lines else ""


ARGUMENT = r"[*`]*[A-Za-z_]\w*`?"
ARGUMENTS = rf"{ARGUMENT}(?:, {ARGUMENT})*: "


def list_arguments(text: str, names: set[str]) -> str:
    """Paragraphs of the form `x: what it is; y, z: what they are` become lists."""

    def is_list(paragraph: str) -> bool:
        found = re.match(ARGUMENTS, paragraph)
        return bool(found) and set(re.findall(r"\w+", found[0])) <= names

    def as_list(paragraph: str) -> str:
        items = re.split(rf";\s+(?={ARGUMENTS})", paragraph)
        lines = []
        for item in items:
            argument, _, what = item.partition(": ")
            shown = ", ".join(f"`{name}`" for name in re.findall(r"\w+", argument))
            lines.append(f"- {shown}: {what.strip()}")
        return "\n".join(lines)

    paragraphs = text.split("\n\n")
    return "\n\n".join(as_list(p) if is_list(p) else p for p in paragraphs)


def parameters(obj) -> set[str]:
    """Names of what a function or a class takes, and of its annotated fields."""
    try:
        found = set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return set()
    return found | set(getattr(obj, "__annotations__", {}))


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
    shown = html.markdown(list_arguments(text, parameters(obj)))
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
    app.config.python_maximum_signature_line_length = 88
    app.config.add_module_names = False
    app.config.nitpick_ignore_regex = [("py:.*", ".*")]
