"""A kernel's docstring as a page shows it: equations set, shapes as a table, the rest folded.

The docstrings are the only place where a kernel is described. Their equations stand there as plain
text, `y_l = Σ_n C_l[n] h_l[n]`, with a remark two spaces or more to the right; `tex` translates.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from dataclasses import dataclass, field

from refimpl_book import html

FUNCTIONS = {"exp", "log", "softmax", "softplus", "silu"}
SIGNS = {
    "←": r"\leftarrow ",
    "->": r"\to ",
    "−": "-",
    "∗": "*",
    "·": r"\cdot ",
    "×": r"\times ",
    "⊙": r"\odot ",
    "∘": r"\circ ",
    "√": r"\sqrt",
    "Σ": r"\sum ",
    "Π": r"\prod ",
    "Δ": r"\Delta ",
    "μ": r"\mu ",
    "…": r"\ldots ",
    "..": r"\ldots ",
    "∞": r"\infty ",
    "∈": r"\in ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "½": r"\tfrac12 ",
    "ᵀ": r"^\top ",
    "|": "|",
    "'": "'",
    "\N{EM SPACE}": r"\quad ",
}
BINARY = set("=+−·⊙∘←∗")  # TeX spaces them by itself
HATS = {"\N{COMBINING CIRCUMFLEX ACCENT}": r"\hat", "\N{COMBINING MACRON}": r"\bar"}
TOKEN = re.compile(
    r"(?P<space> +)|(?P<sub>_\{[^}]*\}|_[A-Za-z0-9]+)|(?P<word>[A-Za-z]{2,})"
    r"|(?P<hatted>\w[\u0302\u0304])|(?P<other>->|\.\.|.)"
)
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹ᵇᵈⁿ⁻", "0123456789bdn-")
LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


def tex(line: str) -> str:
    """A line of plain text mathematics as TeX; words and names of several letters stand upright."""
    found = []
    line = unicodedata.normalize("NFD", line.strip())
    line = re.sub(r"√(\w+)(_\w+)?", lambda m: f"√{{{m[1]}{m[2] or ''}}}", line)
    tokens = list(TOKEN.finditer(line))
    for i, token in enumerate(tokens):
        text = token[0]
        if token["space"]:
            beside = tokens[i - 1 : i] + tokens[i + 1 : i + 2]
            words = any(t["word"] for t in beside) and not any(t[0] in BINARY for t in beside)
            found.append(r"\ " if words else " ")
        elif token["sub"]:
            found.append(f"_{{{below(text[1:].strip('{}'))}}}")
        elif token["word"]:
            kind = "operatorname" if text in FUNCTIONS else "mathrm"
            found.append(rf"\{kind}{{{text}}}")
        elif token["hatted"]:
            found.append(f"{HATS[text[1]]} {text[0]}")
        elif text.translate(LOWERED) != text:
            found.append(f"_{{{text.translate(LOWERED)}}}")
        elif text.translate(RAISED) != text:
            goes_on = bool(found) and found[-1].startswith("^{")
            base = found.pop()[2:-1] if goes_on else ""
            found.append(f"^{{{base}{text.translate(RAISED)}}}")
        elif text in "{}" and not opened_by_root(line, token.start()):
            found.append(f"\\{text}")
        else:
            found.append(SIGNS.get(text, text))
    return "".join(found)


def below(text: str) -> str:
    """What stands in a subscript: letters as they are, a word upright."""
    if re.fullmatch(r"[A-Za-z]{3,}", text):
        return rf"\mathrm{{{text}}}"
    return "".join(SIGNS.get(sign, sign) for sign in re.split(r"(\.\.|.)", text) if sign)


def opened_by_root(line: str, place: int) -> bool:
    """Whether a brace at this place belongs to a root, not to a set."""
    opened = line.rfind("{", 0, place + 1)
    return opened > 0 and line[opened - 1] == "√"


# -- a docstring's parts


@dataclass
class Notes:
    """What a docstring holds, in its order up to the last equation; then what can be folded."""

    shown: list[str] = field(default_factory=list)  # HTML
    folded: list[str] = field(default_factory=list)


def notes(docstring: str) -> Notes:
    """The sentence, the source and the equations shown; shapes, work and traffic folded."""
    blocks = [block for block in re.split(r"\n{2,}", docstring) if block.strip()]
    last = max((i for i, block in enumerate(blocks) if is_equations(block)), default=0)
    made = Notes()
    for i, block in enumerate(blocks):
        (made.shown if i <= last and not is_shapes(block) else made.folded).append(as_html(block))
    return made


def as_html(block: str) -> str:
    if is_shapes(block):
        return shapes(block)
    return equations(block) if is_equations(block) else html.markdown(block)


def is_indented(block: str) -> bool:
    return all(line.startswith("    ") for line in block.splitlines())


def is_shapes(block: str) -> bool:
    return is_indented(block) and bool(re.match(r"\s+\S.*?\s{2,}\(", block))


def is_equations(block: str) -> bool:
    return is_indented(block) and not is_shapes(block)


def columns(block: str) -> list[list[str]]:
    """Lines split where two spaces or more stand; the text of a line far to the right goes on."""
    rows = []
    for line in textwrap.dedent(block).splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        indent = len(line) - len(line.lstrip())
        if rows and indent > 16 and len(cells) == 1:
            rows[-1] = [*rows[-1], cells[0]]
        else:
            rows.append([*([""] if indent else []), *cells])
    return rows


def joined(cells: list[str]) -> list[str]:
    """Pieces of one equation as one: an equals sign may be aligned, and a list is spaced."""
    line, *rest = cells
    while rest and (rest[0].startswith("=") or line.endswith((",", ";"))):
        space = " " if rest[0].startswith("=") else " \N{EM SPACE}"
        line += space + rest.pop(0)
    return [line, *rest]


def equations(block: str) -> str:
    """Equations in the first column, remarks in the second."""
    rows = []
    for cells in columns(block):
        goes_on = cells[0] == ""
        line, *remarks = joined(cells[1:] if goes_on else cells)
        written = tex(line)
        shown = html.inline(f"${written}$")
        place = ' class="goes-on"' if goes_on else ""
        remark = html.escape(" ".join(remarks))
        rows.append(f"<div{place}>{shown}</div><div>{remark}</div>")
    return f'<div class="equations">{"".join(rows)}</div>'


def shapes(block: str) -> str:
    """Arguments and results with their shapes."""
    rows = []
    for cells in columns(block):
        name, shape, *meaning = cells
        rows.append((f"<code>{html.escape(name)}</code>", html.escape(shape), prose(meaning)))
    return html.table(("Name", "Shape", ""), rows, "Shapes", wide=(2,))


def prose(pieces: list[str]) -> str:
    return html.inline(" ".join(pieces))
