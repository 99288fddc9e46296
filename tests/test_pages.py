"""What the book's pages say of models, kernels and claims, before a browser shows them."""

from __future__ import annotations

import ast
import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="needs the extra 'book'")
pytest.importorskip("quickjs", reason="needs the extra 'book'")

from docutils import nodes

from refimpl import golden, model_index
from refimpl_book import (
    api,
    cells,
    evidence,
    html,
    modules,
    notes,
    operations,
    search,
    social,
    sources,
    theme,
)

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("stem", "case", "model"),
    [
        ("convit", "base_plus", "convit_base_plus"),  # no certificate of convit_base
        ("convit", "tiny_stages", "convit_tiny"),
        ("deit", "deit_tiny_patch16_224", "deit_tiny"),  # a case named after timm's model
        ("deit", "deit_tiny_distilled_patch16_224", "deit_tiny_distilled"),
        ("efficientvit", "cga", None),  # a part of a model
    ],
)
def test_a_case_certifies_the_model_that_it_is_named_after(stem, case, model):
    assert evidence.certified_model(stem, case) == model


def test_certificates_are_the_stored_cases():
    """Every case that names a model counts for that model, and for no other."""
    named = [evidence.certified_model(c["stem"], c["case"]) for c in sources.exactness().cases]
    assert sum(map(evidence.certificates, model_index())) == len([n for n in named if n]) > 20
    files = {f"{path.parent.name}/{path.stem}" for path in golden.FOLDER.glob("*/*.json")}
    assert {f"{c['stem']}/{c['case']}" for c in sources.exactness().cases} <= files


def test_verdicts_join_the_catalogue_s_claims_with_the_stored_reports(monkeypatch):
    stored = sources.Chapter("efficientvit")
    report = {"id": "efficientvit.2", "measured": "x", "verdict": "supports", "why": "y"}
    stored.claims.append(report)
    monkeypatch.setattr(sources, "chapter", lambda stem: stored)
    first, second, *_ = sources.verdicts("efficientvit")
    assert (first.claim.id, first.verdict) == ("efficientvit.1", "not tested here")
    assert (second.claim.id, second.verdict, second.measured) == ("efficientvit.2", "supports", "x")


def test_every_kernel_shows_its_forms():
    assert sources.operations()
    for op in sources.operations():
        shown = operations.listings(sources.KERNELS / op)
        assert {"Loops", "NumPy", "PyTorch"} <= set(shown), op
        assert all(form.heart.strip() for form in shown.values())
        assert "@triton.jit" in shown["Triton"].heart, "the kernel, not what launches it"
        assert "with_triton" in shown["Triton"].names


def test_a_form_is_shown_with_what_it_calls(tmp_path):
    text = """
    def helper(x):
        return x

    def unrelated():
        pass

    @decorated
    def naive(x):
        return helper(x)
    """
    (tmp_path / "reference.py").write_text(textwrap.dedent(text), encoding="utf-8")
    (shown,) = operations.listings(tmp_path).values()
    assert shown.heart.startswith("@decorated\ndef naive") and "def helper" not in shown.heart
    assert shown.rest.startswith("def helper") and shown.names == ("helper",)


def test_a_triton_form_s_heart_is_its_kernel(tmp_path):
    text = """
    @triton.jit
    def inner(x):
        return x

    @triton.jit
    def forward(x):
        inner(x)

    @triton.jit
    def backward(x):
        inner(x)

    def with_triton(x):
        forward[(1,)](x)
        backward[(1,)](x)
    """
    (tmp_path / "triton.py").write_text(textwrap.dedent(text), encoding="utf-8")
    (shown,) = operations.listings(tmp_path).values()
    assert shown.heart.startswith("@triton.jit\ndef forward")
    assert shown.names == ("with_triton", "inner", "backward")


@pytest.mark.parametrize(
    ("line", "tex"),
    [
        ("y_l = Σ_n C_l[n] h_l[n]", r"y_{l} = \sum _{n} C_{l}[n] h_{l}[n]"),
        ("x̂_j ∈ {0 … 2ᵇ−1}ᵈ", r"\hat x_{j} \in  \{0 \ldots  2^{b}-1\}^{d}"),
        ("softmax(q kᵀ / √d_k)", r"\operatorname{softmax}(q k^\top  / \sqrt{d_{k}})"),
        ("H_l = exp(a_l) H_{l−1}", r"H_{l} = \operatorname{exp}(a_{l}) H_{l-1}"),
        ("y₁ for l ≥ s", r"y_{1}\ \mathrm{for}\ l \ge  s"),
    ],
)
def test_plain_equations_become_tex(line, tex):
    assert notes.tex(line) == tex


def test_what_belongs_to_an_equation_is_set_with_it():
    """An aligned equals sign, a second equation behind a comma; a remark stays a remark."""
    block = """
    s_ij = q_i    over keys
    y_i  = s_ij v_j,   t = 2"""
    shown = notes.equations(block.strip("\n"))
    assert shown.count('class="katex"') == 2 and "<div>over keys</div>" in shown
    assert r"y_{i} = s_{ij} v_{j}, \quad t = 2" in shown and shown.count("<div></div>") == 1


def test_every_docstring_of_a_kernel_is_set():
    """No equation fails in KaTeX, and every kernel shows some; its shapes are folded."""
    for op in sources.operations():
        text = (sources.KERNELS / op / "__init__.py").read_text(encoding="utf-8")
        said = notes.notes(ast.get_docstring(ast.parse(text)))
        shown = "".join(said.shown)
        assert 'class="equations"' in shown and "katex-error" not in shown, op
        assert 'class="katex"' in shown and "<table" in "".join(said.folded), op


def test_an_overview_of_kernels_never_infers_a_gpu(monkeypatch):
    """What nobody verified is said to be open, whatever the other forms say."""
    monkeypatch.setattr(sources, "measured", lambda: [])
    monkeypatch.setattr(sources, "compiled", lambda op: {})
    for cell in (operations.on_gpu("ssd"), operations.compiled("ssd")):
        assert "not yet" in cell.shown
    compiled = {"targets": [80], "types": ["float32"], "errors": [{"error": "x"}]}
    monkeypatch.setattr(sources, "compiled", lambda op: compiled)
    assert "✗" in operations.compiled("ssd").shown
    assert "not yet" in operations.on_gpu("ssd").shown


def test_a_type_that_failed_on_a_gpu_is_named(monkeypatch):
    """float32 alone is no sign that the kernel holds in every type."""
    good = {"problems": 6, "worst": 1.0, "beyond": []}
    beyond = {"problems": 6, "worst": 2.5, "beyond": [{"ratio": 2.5}]}
    record = {
        "op": "ssd",
        "verified": "gpu",
        "date": "2026-11-27",
        "machine": {"name": "a GPU"},
        "agreement": {"triton_gpu": 1.0},
        "checks": {"float32": good, "float64": beyond, "float16": good | {"problems": 0}},
        "problems": ["verify in float16: it did not compile"],
    }
    monkeypatch.setattr(sources, "measured", lambda: [sources.Measured("gpu-x", [], [record])])
    shown = operations.on_gpu("ssd").shown
    assert "✗" in shown and "not in float64; not in float16" in shown
    told = operations.provenance("ssd")
    assert "1 of 6 problems beyond 2" in told and "it did not compile" in told
    record["checks"] = {"float32": good}
    assert "✓" in operations.on_gpu("ssd").shown


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 3, "–"),
        (0, 3, "0"),
        (0.12345, 3, "0.123"),
        (12345, 3, "12300"),
        (7.04e-6, 2, "7×10<sup>−6</sup>"),
        (-2.5e7, 3, "−2.5×10<sup>7</sup>"),
    ],
)
def test_numbers_are_short(value, digits, text):
    assert html.format_number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (12, "12"), (1500, "1.5 k"), (2_345_678, "2.35 M"), (4.2e12, "4200 G")],
)
def test_counts_have_units(value, text):
    assert html.format_count(value) == text


def test_every_room_has_its_reference_pages():
    rooms = modules.rooms()
    folders = {path.parent.name for path in (ROOT / "refimpl").glob("*/__init__.py")}
    filled = {room for room in folders if modules.docstring(f"refimpl.{room}") or room in rooms}
    assert filled <= set(rooms)
    names = [name for room in rooms.values() for name in room]
    assert len(names) == len(set(names))
    assert {"refimpl", "refimpl.checks", "refimpl.golden", "refimpl.chapter.claims"} <= set(names)
    assert not [name for name in names if re.match(r"refimpl\.catalogue\.", name)]


@pytest.mark.parametrize(
    ("british", "american"),
    [
        ("neighbouring", "neighboring"),
        ("quantisation", "quantization"),
        ("normalisations", "normalizations"),
        ("analysed", "analyzed"),
        ("centre", "center"),
        ("metres", "meters"),
        ("greyscale", "grayscale"),
        ("modelling", "modeling"),
        ("licence", "license"),
        ("artefacts", "artifacts"),
        ("tumours", "tumors"),
    ],
)
def test_both_spellings_are_one_word_of_the_index(british, american):
    words = search.English({})
    assert words.stem(british) == words.stem(american.capitalize())


@pytest.mark.parametrize("word", ["hour", "four", "basis", "noise", "genre", "called", "size"])
def test_other_words_stay(word):
    assert search.american(word) == word


@pytest.mark.parametrize(
    ("name", "short", "depth"),
    [
        ("refimpl", "refimpl", 0),
        ("refimpl.layers", "layers", 0),
        ("refimpl.papers.convit", "papers.convit", 0),
        ("refimpl.lab.measure.timing", "timing", 2),
    ],
)
def test_modules_have_short_names_in_the_tree(name, short, depth):
    assert modules.short_name(name) == (short, depth)


def test_what_is_given_on_is_found_where_it_is_written():
    assert modules.home("refimpl.lab.measure.compare") == ("refimpl.lab.measure.timing", "compare")
    given = modules.given_on("refimpl.lab.measure")
    assert "compare" in given["refimpl.lab.measure.timing"]


def test_uses_are_read_from_a_notebook_s_cells(tmp_path):
    given = [
        "%pip install x\nif True:\n    !ls\nfrom refimpl import lab, viz",
        "from refimpl.layers import ConvNorm\nlab.measure.compare(1)",
    ]
    text = {"cells": [{"cell_type": "code", "source": [cell]} for cell in given]}
    notebook = tmp_path / "a.ipynb"
    notebook.write_text(json.dumps(text), encoding="utf-8")
    assert modules.uses(notebook) == {"refimpl.layers", "refimpl.lab.measure.timing"}


def test_every_paper_is_used_in_its_chapter():
    for paper in filter(lambda paper: sources.written(paper.stem), sources.papers()):
        assert paper.stem in modules.used_in()[f"refimpl.papers.{paper.stem}"]


def test_arguments_become_a_list():
    text = "What it does.\n\nx: (b, n), of\ntwo lines; y, z: floats.\n\nNote: stays; w: not a name."
    assert api.list_arguments(text, {"x", "y", "z"}) == (
        "What it does.\n\n- `x`: (b, n), of\ntwo lines\n- `y`, `z`: floats.\n\n"
        "Note: stays; w: not a name."
    )


def test_written_tables_know_their_columns():
    table = '<table class="table"><thead><tr><th>A</th><th>B</th></tr></thead><tbody><tr>'
    made = theme.with_labels(re.match(".*", f"{table}<td>1</td><td>2</td></tr></tbody></table>"))
    assert '<td data-label="B" role="cell">2</td>' in made and 'class="table cards written"' in made


def test_a_long_signature_is_no_list_of_meanings():
    signature = '<dt class="sig py">f(<dl><dd><em>x</em>,</dd></dl>)</dt>'
    made = theme.SIGNATURE.sub(theme.with_lines, f"{signature}<dd>kept</dd>")
    assert "<dl>" not in made and '<span class="sig-dd"><em>x</em>,</span>' in made
    assert made.endswith("</dt><dd>kept</dd>")


def test_an_address_brings_where_to_report_and_to_cite(monkeypatch):
    assert "url" not in sources.citation() or not sources.placeholder()
    monkeypatch.setattr(sources, "repository", lambda: "https://github.com/someone/elsewhere")
    assert not sources.placeholder()
    address = theme.problem_address("notebooks/convit")
    assert address.startswith("https://github.com/someone/elsewhere/issues/new?title=notebooks/")


def test_descriptions_are_short_and_whole():
    assert social.description("notebooks/efficientvit", None).startswith("One attention layer")
    assert social.short("word " * 100).endswith("word…")
    assert len(social.short("word " * 100)) <= social.LONGEST


def test_with_an_address_every_page_has_a_card(tmp_path, monkeypatch):
    pytest.importorskip("sphinxext.opengraph", reason="needs the extra 'book'")
    from PIL import Image
    from sphinx.application import Sphinx

    monkeypatch.setattr(sources, "repository", lambda: "https://github.com/someone/elsewhere")
    (tmp_path / "book" / "_static").mkdir(parents=True)
    shutil.copy(ROOT / social.CARDS["image"], tmp_path / social.CARDS["image"])
    text = "A page\n======\n\nA sentence of some length, long enough to describe a page.\n"
    (tmp_path / "index.rst").write_text(text, encoding="utf-8")
    app = Sphinx(
        srcdir=tmp_path,
        confdir=None,
        outdir=tmp_path / "out",
        doctreedir=tmp_path / "trees",
        buildername="html",
        confoverrides={"extensions": ["refimpl_book.social"]},
        status=None,
        warningiserror=True,
    )
    app.build()
    made = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    home = "https://someone.github.io/elsewhere/"
    (card,) = re.findall(rf'property="og:image" content="{home}(.*?)"', made)
    assert Image.open(tmp_path / "out" / card).size == (1146, 600)
    assert made.count('name="description"') == 1
    assert 'property="og:description" content="A sentence of some length' in made
    assert f'property="og:url" content="{home}index.html"' in made


def code_cell(text: str, shows: str = "", hide: str | None = "input") -> nodes.container:
    """A cell as MyST-NB makes it."""
    cell = nodes.container("", nb_element="cell_code", cell_metadata={"tags": []})
    if hide:
        cell["hide_mode"] = hide
    cell += nodes.container("", nodes.literal_block("", text), nb_element="cell_code_source")
    output = nodes.container("", nb_element="cell_code_output")
    if shows:
        output += nodes.paragraph("", shows)
    cell += output
    return cell


def test_folded_cells_that_show_nothing_open_with_the_next():
    section = nodes.section("", nodes.title("", "See it"))
    section += [code_cell("a = 1"), code_cell("b = 2"), code_cell("print(a)", shows="1")]
    section += [nodes.paragraph("", "text"), code_cell("c = 3"), code_cell("heart", hide=None)]
    section += [code_cell("d = 4"), code_cell("e = 5")]
    setup = code_cell("import x")
    chapter = nodes.section("", nodes.title("", "Paper"), setup, code_cell("y = 1"), section)
    cells.fold(nodes.container("", chapter))
    found = [(cells.source(cell), cell.get("prompt_show")) for cell in cells.cells(chapter)]
    assert found == [
        ("import x", "Show how this was computed"),
        ("y = 1", "Show how this was computed"),
        ("a = 1\n\nb = 2\n\nprint(a)", "Show how this was computed · 3 cells"),
        ("c = 3", "Show how this was computed"),
        ("heart", None),
        ("d = 4\n\ne = 5", "Show how this was computed · 2 cells"),
    ]
    cells.mark_runs(chapter)
    shown = [raw.astext() for raw in chapter.findall(nodes.raw)]
    assert [text.split(">")[1].split("<")[0] for text in shown[-2:]] == [
        "code · 3 cells",
        "code · 4 cells",
    ]
