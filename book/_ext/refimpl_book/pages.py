"""The directives behind the generated pages. Each reads `sources` and returns HTML; nothing is typed by hand."""

from __future__ import annotations

import ast
import base64
import io
import json
import re
from collections import Counter
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from refimpl_book import ROOT, api, html, sources

THUMBNAIL = (440, 248)
THUMBNAIL_BYTES = 18_000  # 31 of them stay under the page's 600 KB of figures


class Page(SphinxDirective):
    """A directive that returns HTML and rebuilds when what it read has changed."""

    has_content = True

    def run(self):
        for file in sources.dependencies():
            self.env.note_dependency(file)
        made = self.make()
        return made if isinstance(made, list) else [raw(made)]

    def make(self) -> str | list[nodes.Node]:
        raise NotImplementedError

    def to(self, docname: str, anchor: str = "") -> str:
        """Relative address of another page of the book."""
        return self.env.app.builder.get_relative_uri(self.env.docname, docname) + (
            f"#{anchor}" if anchor else ""
        )

    def root(self) -> str:
        """Relative address of the book's root."""
        return "../" * self.env.docname.count("/")

    def chapter_link(self, paper) -> str:
        """The paper's name, linked where its chapter is written."""
        name = html.escape(paper.name)
        return (
            html.link(self.to(f"notebooks/{paper.stem}"), name)
            if sources.written(paper.stem)
            else name
        )

    def parse(self, text: str) -> list[nodes.Node]:
        """MyST text as nodes, directives included."""
        container = nodes.container()
        self.state.nested_parse(
            StringList(text.splitlines(), source=self.env.docname), 0, container
        )
        return container.children

    def section(self, id: str, title: str, *content: nodes.Node) -> nodes.section:
        made = nodes.section(
            "",
            nodes.title(title, title),
            *content,
            ids=[id],
            names=[nodes.fully_normalize_name(title)],
        )
        return made


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


class PaperList(Page):
    """`{paper-list} <part>`: the papers of a part; those without a chapter by name and idea alone."""

    required_arguments = 1

    def make(self):
        part = self.arguments[0]
        if part not in sources.parts():
            raise self.error(f"unknown part {part!r}; there are {', '.join(sources.parts())}")
        items = []
        for paper in (p for p in sources.papers() if p.part == part):
            idea = html.inline(paper.idea)
            if not sources.written(paper.stem):
                items.append(
                    f'<div class="paper planned"><h2>{html.escape(paper.name)}</h2><p>{idea}</p></div>'
                )
                continue
            facts = [html.escape(paper.title), html.escape(venue(paper))]
            if paper.url:
                facts.append(html.link(paper.url, f"arXiv:{paper.arxiv}"))
            items.append(
                f'<div class="paper"><h2>{self.chapter_link(paper)}</h2><p>{idea}</p><p class="facts">{" · ".join(facts)}</p>'
                f'<p class="facts">{verdict_counts(paper.stem)}</p></div>'
            )
        return (
            f'<div class="papers">{"".join(items)}</div>'
            if items
            else html.note("No paper of this part is in the catalogue yet.")
        )


def venue(paper) -> str:
    return paper.venue if str(paper.year) in paper.venue else f"{paper.venue} {paper.year}".strip()


def verdict_counts(stem: str) -> str:
    counts = Counter(c["verdict"] for c in sources.chapter(stem).claims)
    return " ".join(
        f"{html.verdict(name)} {counts[name]}" for name in html.VERDICTS if counts[name]
    )


class Gallery(Page):
    """Cards of all written chapters; the picture is the chapter's first figure."""

    def make(self):
        cards, rules = [], []
        for paper in (p for p in sources.papers() if sources.written(p.stem)):
            image = ""
            if pictures := thumbnails(Path(self.env.app.outdir), paper.stem):
                light, *dark = (f"{self.root()}{p}" for p in pictures)
                alt = html.escape(sources.chapter(paper.stem).alt)
                image = f'<img src="{light}" alt="{alt}" loading="lazy" width="{THUMBNAIL[0]}" height="{THUMBNAIL[1]}">'
                rules += [
                    f'html[data-theme="dark"] img[src="{light}"]{{content:url("{twin}")}}'
                    for twin in dark
                ]
            place = f"{html.escape(sources.parts()[paper.part])} · {html.escape(venue(paper))}"
            words = f"{self.chapter_link(paper)}<span>{html.inline(paper.idea)}</span><small>{place}</small>"
            cards.append(
                f'<div class="chapter-card">{image}<div class="chapter-card-text">{words}</div></div>'
            )
        if not cards:
            return html.note("The first chapters are being written.")
        return f'<style>{"".join(rules)}</style><div class="gallery">{"".join(cards)}</div>'


def thumbnails(outdir: Path, stem: str) -> list[str]:
    """The chapter's first figure, small, and its twin for the dark theme, among the book's images; addresses from the book's root."""
    from refimpl.viz import charts

    if not sources.chapter(stem).figure:
        return []
    figure = base64.b64decode(sources.chapter(stem).figure)
    made = {"": figure, "-dark": charts.dark_twin(figure)}
    return [
        thumbnail(content, outdir / "_images" / f"thumbnail-{stem}{kind}.webp")
        for kind, content in made.items()
        if content
    ]


def thumbnail(figure: bytes, target: Path) -> str:
    from PIL import Image

    target.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(figure)).convert("RGBA")
    for scale, quality in ((2, 75), (1.5, 70), (1.25, 60), (1, 50), (1, 20)):
        picture.thumbnail((scale * THUMBNAIL[0], scale * THUMBNAIL[1]))
        picture.save(target, quality=quality, method=6)
        if target.stat().st_size <= THUMBNAIL_BYTES:
            break
    return f"_images/{target.name}"


class Summary(Page):
    """One line of counts."""

    def make(self):
        claims = [
            c
            for p in sources.papers()
            if sources.written(p.stem)
            for c in sources.chapter(p.stem).claims
        ]
        counts = Counter(c["verdict"] for c in claims)
        cases = sources.exactness()[1]
        facts = {
            f"of {len(sources.papers())} papers have their chapter": sum(
                sources.written(p.stem) for p in sources.papers()
            ),
            "models can be created": len(sources.models()),
            "official cases agree": sum(c["passed"] for c in cases),
            "claims tested": sum(counts[v] for v in ("supports", "contradicts", "inconclusive")),
        }
        return (
            '<ul class="counts">'
            + "".join(f"<li><strong>{n}</strong> {what}</li>" for what, n in facts.items() if n)
            + "</ul>"
        )


class Ledger(Page):
    """Every claim with what the executed chapter found."""

    def make(self):
        sections, total = [], Counter()
        for paper in sources.papers():
            if not sources.written(paper.stem):
                continue
            claims = sources.chapter(paper.stem).claims
            total.update(c["verdict"] for c in claims)
            rows = [
                (
                    html.inline(c["statement"]),
                    html.inline(c["reported"] or "–"),
                    html.inline(c["measured"] or "–"),
                    html.verdict(c["verdict"]),
                    html.inline(c["why"]),
                )
                for c in claims
            ]
            link = f"<p>{html.link(self.to(f'notebooks/{paper.stem}'), 'Read the chapter')} · {html.escape(venue(paper))}</p>"
            made = html.table(
                ("Claim", "The paper reports", "Measured here", "Verdict", "Why"),
                rows,
                f"Claims of {html.escape(paper.name)}",
                classes="ledger",
                wide=(0, 4),
            )
            sections.append(
                self.section(
                    paper.stem,
                    paper.name,
                    raw(
                        link + (made if rows else html.note("The stored chapter holds no reports."))
                    ),
                )
            )
        if not sections:
            return html.note("No chapter has reported yet: run <code>make execute</code>.")
        line = "".join(
            f"<span>{html.verdict(name)} {total[name]}</span>"
            for name in html.VERDICTS
            if total[name]
        )
        return [raw(f'<p class="tally">{line}</p>'), *sections]


class Freshness(Page):
    """When and with what each stored chapter was executed."""

    def make(self):
        rows = []
        for paper in sources.papers():
            if sources.written(paper.stem) and (stamp := sources.chapter(paper.stem).stamp):
                machine = stamp.get("machine", {})
                rows.append(
                    (
                        self.chapter_link(paper),
                        html.nowrap(stamp["date"]),
                        html.Cell(f"{stamp['seconds']:.0f} s", stamp["seconds"]),
                        html.escape(
                            f"Python {stamp['python']}, torch {stamp['torch']}, numpy {stamp['numpy']}"
                        ),
                        html.escape(str(machine.get("name", "–"))),
                        self.current(stamp),
                    )
                )
        if not rows:
            return html.note("No chapter has been executed yet: run <code>make execute</code>.")
        return html.table(
            ("Chapter", "Executed", "Took", "With", "On", "Sources"),
            rows,
            "When and with what the stored chapters were executed",
            numeric=(2,),
        )

    @staticmethod
    def current(stamp: dict) -> str:
        """Whether the package has changed since the run."""
        from refimpl.chapter import freshness

        digest = f"<code>{stamp['digest'][:12]}</code>"
        if freshness.stale(stamp, ROOT):
            return f'<span class="verdict bad"><span aria-hidden="true">✗</span> changed since</span> {digest}'
        return f'<span class="verdict good"><span aria-hidden="true">✓</span> unchanged</span> {digest}'


class Exactness(Page):
    """Every official case: what the official code computes, and how far ours is from it."""

    def make(self):
        made, cases = sources.exactness()
        if not cases:
            return html.note("Not measured yet: run <code>make bench</code>.")
        sections = []
        for paper in sources.papers():
            mine = [c for c in cases if c["stem"] == paper.stem]
            if mine:
                sections.append(
                    self.section(paper.stem, paper.name, raw(self.cases(paper.name, mine)))
                )
        known = {p.stem for p in sources.papers()}
        for stem in sorted({c["stem"] for c in cases} - known):
            sections.append(
                self.section(
                    stem, stem, raw(self.cases(stem, [c for c in cases if c["stem"] == stem]))
                )
            )
        worst = max((c["deviation"] for c in cases if c["deviation"] is not None), default=None)
        passed = sum(c["passed"] for c in cases)
        how = (
            f" Checked on {html.escape(made['date'])} with torch {html.escape(made['torch'])}."
            if made
            else ""
        )
        certified = sum(certificates(m) > 0 for m in sources.models())
        how += f" {certified} of the {len(sources.models())} models that can be created are held against a case of their own; the rest share its code."
        deviation = (
            f"the largest deviation of a compared output is {html.figure(worst, 2)} of its norm"
        )
        text = f"<p><strong>{passed} of {len(cases)} official cases agree</strong>; {deviation}.{how}</p>"
        return [raw(text), *sections]

    @staticmethod
    def cases(name: str, cases: list[dict]) -> str:
        rows = []
        for c in cases:
            deviation = (
                "by its test's own measure"
                if c["deviation"] is None
                else html.figure(c["deviation"], 2)
            )
            sign = (
                '<span class="verdict good"><span aria-hidden="true">✓</span> equal</span>'
                if c["passed"]
                else '<span class="verdict bad"><span aria-hidden="true">✗</span> differs</span>'
            )
            macs = html.count(c["macs"] / c["batch"]) if c.get("macs") and c.get("batch") else "–"
            rows.append(
                (
                    f"<code>{html.escape(c['case'])}</code>",
                    html.Cell(f"{c['params']:,}" if c.get("params") else "–", c.get("params")),
                    html.Cell(macs, c.get("macs")),
                    html.Cell(deviation, c["deviation"]),
                    sign,
                    origin(c.get("source", "")),
                )
            )
        caption = f"Official cases of {html.escape(name)}"
        return html.table(
            (
                "Case",
                "Parameters",
                "MACs for one input",
                "Largest deviation",
                "Verdict",
                "Recorded from",
            ),
            rows,
            caption,
            numeric=(1, 2, 3),
            classes="sortable",
        )


def origin(source: str) -> str:
    """`owner/name@commit path` as a link to that place; anything else as it stands."""
    found = re.match(r"([\w.-]+/[\w.-]+)\s*@\s*([0-9a-f]{7,40})\s*(.*)", source)
    if not found:
        return html.escape(source)
    repository, commit, path = found.groups()
    place, _, rest = path.partition(" ")
    url = f"https://github.com/{repository}/tree/{commit}" + (
        f"/{place}" if re.fullmatch(r"[\w./-]+", place) else ""
    )
    return html.link(url, f"{html.escape(repository)}@{commit[:7]}") + (
        f" {html.escape(path)}" if path else ""
    )


class Differences(Page):
    """Where official code departs from its paper."""

    def make(self):
        sections = []
        for paper in sources.papers():
            rows = [
                (
                    html.inline(d.paper_says),
                    html.inline(d.code_does),
                    html.inline(d.effect),
                    html.link(
                        sources.source_link(d.test.split("::")[0]),
                        f"<code>{html.escape(d.test.split('::')[-1])}</code>",
                    )
                    if d.test
                    else "no test yet",
                )
                for d in paper.differences
            ]
            if rows:
                table = html.table(
                    ("The paper says", "The code does", "What changes", "Shown by"),
                    rows,
                    f"Paper and code of {html.escape(paper.name)}",
                    wide=(0, 1, 2),
                )
                sections.append(
                    self.section(
                        paper.stem,
                        paper.name,
                        raw(
                            (
                                f"<p>{self.chapter_link(paper)}</p>"
                                if sources.written(paper.stem)
                                else ""
                            )
                            + table
                        ),
                    )
                )
        return sections or html.note("No difference is recorded yet.")


class Explorer(Page):
    """All models in one table that can be sorted, filtered, selected and downloaded; refimpl.js makes it live."""

    def make(self):
        results = sources.timings()
        if not any(r.get("models") for r in results.values()):
            return html.note("Not measured yet: run <code>make bench</code>.") + self.unmeasured(
                set()
            )
        return "".join(self.machine(name, r) for name, r in results.items() if r.get("models"))

    def machine(self, name: str, results: dict) -> str:
        head = (
            "Model",
            "Form",
            "Batch",
            "Parameters",
            "MACs",
            "Latency",
            "IQR",
            "Of ceiling",
            "Ratio to timm",
            "Peak memory",
            "Certificate",
        )
        rows, records = [], []
        ceiling = results.get("ceilings", {}).get("gflops")
        for r in results["models"]:
            stem = stem_of(r["name"])
            certificate, model = certificates(r["name"]), f"<code>{html.escape(r['name'])}</code>"
            records.append({**r, "paper": stem, "official_cases": certificate})
            ratio, spread = r.get("ratio_to_timm"), r["high"] - r["low"]
            share = 2 * r["macs"] * r["batch"] / r["seconds"] / (1e9 * ceiling) if ceiling else None
            between = f" ({r['ratio_low']:.2f}–{r['ratio_high']:.2f})" if r.get("ratio_low") else ""
            rows.append(
                (
                    html.link(self.to(f"notebooks/{stem}"), model)
                    if sources.written(stem)
                    else model,
                    html.escape(r["form"]),
                    html.Cell(str(r["batch"]), r["batch"]),
                    html.Cell(html.count(r["params"]), r["params"]),
                    html.Cell(html.count(r["macs"]), r["macs"]),
                    html.Cell(milliseconds(r["seconds"]), r["seconds"]),
                    html.Cell(milliseconds(spread, 2), spread),
                    html.Cell(f"{share:.0%}" if share else "–", share),
                    html.Cell(f"{ratio:.2f}{between}" if ratio else "–", ratio),
                    html.Cell(
                        f"{r['memory'] / 1e6:.3g} MB" if r.get("memory") else "–", r.get("memory")
                    ),
                    html.Cell(
                        html.link(self.to("book/exactness", stem), f"{certificate} equal")
                        if certificate
                        else "–",
                        certificate,
                    ),
                )
            )
        caption = f"Models measured on {html.escape(machine_line(results))}"
        table = html.table(
            head, rows, caption, classes="explorer", numeric=tuple(range(2, 10)), id=f"speed-{name}"
        )
        payload = json.dumps(
            {"machine": results.get("machine", {}), "models": records}, ensure_ascii=False
        ).replace("</", "<\\/")
        script = f'<script type="application/json" class="explorer-data">{payload}</script>'
        return (
            f'<div class="explorer-box" data-name="{name}">{table}{script}</div>'
            + self.unmeasured({r["name"] for r in results["models"]})
        )

    def unmeasured(self, measured: set[str]) -> str:
        left = [m for m in sources.models() if m not in measured]
        if not left:
            return ""
        return f"<p>Models that can be created and are not in this table yet: {', '.join(f'<code>{html.escape(m)}</code>' for m in sorted(left))}.</p>"


def stem_of(model: str) -> str:
    """The stem that a model's name begins with; the longest, since stems share beginnings."""
    stems = [m.rsplit(".", 1)[-1] for m, _ in sources.models().values()]
    return max(
        (s for s in {*stems, *(p.stem for p in sources.papers())} if model.startswith(f"{s}_")),
        key=len,
        default=model.split("_")[0],
    )


def certificates(model: str) -> int:
    """How many official cases of this very variant agree."""
    stem = stem_of(model)
    models = [m for m in sources.models() if stem_of(m) == stem]

    def model_of(case: str) -> str | None:  # the longest name counts: base_plus is no base
        name = f"{stem}_{case.removeprefix(f'{stem}_')}"
        return max(
            (m for m in models if name == m or name.startswith(f"{m}_")), key=len, default=None
        )

    return sum(
        c["passed"] and model_of(c["case"]) == model
        for c in sources.exactness()[1]
        if c["stem"] == stem
    )


def milliseconds(seconds: float, digits: int = 3) -> str:
    return f"{html.figure(1e3 * seconds, digits)} ms"


def machine_line(results: dict) -> str:
    machine = results.get("machine", {})
    facts = (
        [f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"]
        if machine.get("threads")
        else []
    )
    facts += [f"torch {machine['torch']}"] if machine.get("torch") else []
    facts += [str(machine["date"])] if machine.get("date") else []
    return f"{machine.get('name', 'a machine without a name')} ({', '.join(facts)})"


class Kernels(Page):
    """Every kernel: what it computes, its four forms, who verified which, and its distance from the machine's limit."""

    def make(self):
        return [self.kernel(path) for path in sources.kernel_files()] or html.note(
            "No kernel is written yet."
        )

    def kernel(self, path: Path) -> nodes.section:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        op = path.stem
        users = ", ".join(self.chapter_link(p) for p in sources.papers() if op in p.kernels)
        places = {
            "API": self.to(f"book/api/refimpl.kernels.{op}"),
            "source": sources.source_link(f"refimpl/kernels/{op}.py"),
            "tests": sources.source_link(f"tests/kernels/test_{op}.py"),
        }
        facts = [f"used by {users}"] * bool(users) + [
            html.link(url, name) for name, url in places.items()
        ]
        intro = f'<p class="facts">{" · ".join(facts)}</p>' + html.markdown(
            ast.get_docstring(tree) or ""
        )
        tabs = "\n".join(
            f"```{{tab-item}} {title}\n:sync: {title}\n\n~~~python\n{code}\n~~~\n```"
            for title, code in listings(tree, text).items()
        )
        made = self.parse(f"````{{tab-set}}\n{tabs}\n````")
        return self.section(
            op, kernel_title(op), raw(intro), *made, raw(provenance(op)), raw(times(op))
        )


def kernel_title(op: str) -> str:
    """`lvq_inner_product` -> `LVQ distance`: a word without a vowel is an abbreviation."""
    words = [w if re.search("[aeiouy]", w) else w.upper() for w in op.split("_")]
    return " ".join([words[0][0].upper() + words[0][1:], *words[1:]])


def listings(tree: ast.Module, text: str) -> dict[str, str]:
    """The four forms as they stand in the file, each followed by the functions of the file that it calls."""
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    lines = text.splitlines()

    def source(node) -> str:
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        return "\n".join(lines[first - 1 : node.end_lineno])

    def reached(name: str, seen: dict) -> dict:
        node = next((f for f in functions if f.name == name), None)
        if node is not None and name not in seen:
            seen[name] = node
            for used in ast.walk(node):
                if isinstance(used, ast.Name):
                    reached(used.id, seen)
        return seen

    found = {}
    for title, entry in {
        "Loops": "naive",
        "NumPy": "with_numpy",
        "PyTorch": "with_torch",
        "Triton": "with_triton",
    }.items():
        if first := reached(entry, {}):
            helpers = sorted(
                (n for name, n in first.items() if name != entry), key=lambda n: n.lineno
            )
            found[title] = "\n\n\n".join(source(n) for n in (first[entry], *helpers))
    return found


BACKENDS = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "triton_interpreter": "Triton, interpreted",
    "triton_gpu": "Triton, compiled on a GPU",
    "triton": "Triton",
}


def measured(op: str) -> list[tuple[dict, dict]]:
    """(results file, record of this kernel) of every machine that measured it."""
    return [
        (results, k)
        for results in sources.timings().values()
        for k in results.get("kernels", [])
        if k["op"] == op
    ]


def provenance(op: str) -> str:
    """Which form was verified where, in units of the composed form's own rounding error. The GPU's row is never inferred from the interpreter's."""
    rows = []
    for backend in ("numpy", "torch", "triton_interpreter", "triton_gpu"):
        seen = [(results, k) for results, k in measured(op) if backend in k.get("agreement", {})]
        label = BACKENDS[backend]
        rows += [
            (
                label,
                html.figure(k["agreement"][backend], 2),
                html.escape(results["machine"]["name"]),
                html.nowrap(k["date"]),
            )
            for results, k in seen
        ]
        rows += [(label, "–", "not verified yet", "–")] * (not seen)
    caption = "Distance to the loops in float64, as a multiple of the composed PyTorch form’s own rounding error"
    return html.table(("Form", "Error", "Verified on", "Date"), rows, caption, numeric=(1,))


def times(op: str) -> str:
    """What a call costs, and how far each form is from what the machine could do."""
    rows, costs = [], []
    for results, k in measured(op):
        limit = k["limit_seconds"]
        for backend, seconds in k["seconds"].items():
            spread = f"{milliseconds(k['low'][backend])} – {milliseconds(k['high'][backend])}"
            where = html.escape(machine_line(results))
            rows.append(
                (
                    BACKENDS.get(backend, html.escape(backend)),
                    milliseconds(seconds),
                    spread,
                    milliseconds(limit),
                    f"{100 * limit / seconds:.2g} %",
                    where,
                )
            )
        shapes = ", ".join(
            f"<code>{html.escape(name)}</code> ({', '.join(map(str, shape))})"
            for name, shape in k["shapes"].items()
        )
        costs.append(
            f"{shapes}: {html.count(k['flops'])}FLOP, {html.count(k['bytes'])}B, {k['flops'] / k['bytes']:.3g} FLOP a byte"
        )
    if not rows:
        return html.note("Not timed yet: run <code>make bench</code>.")
    caption = f"Time against the machine’s limit, the larger of FLOPs over its rate and bytes over its bandwidth. {'; '.join(dict.fromkeys(costs))}"
    return html.table(
        ("Form", "Time", "Quartiles", "Limit", "Share of the limit", "Machine"),
        rows,
        caption,
        numeric=(1, 2, 3, 4),
    )


class ApiIndex(Page):
    """Every module with the first sentence of its docstring."""

    def make(self):
        sections = []
        for room, title in api.ROOMS.items():
            names = [
                m for m in api.modules() if (m.split(".")[1] if m.count(".") == 2 else "") == room
            ]
            rows = [
                (
                    html.link(self.to(f"book/api/{m}"), f"<code>{m}</code>"),
                    html.inline(api.summary(m)),
                )
                for m in names
            ]
            if rows:
                sections.append(
                    self.section(
                        room or "front-door",
                        title,
                        raw(
                            html.table(
                                ("Module", "What it holds"), rows, f"Modules: {title}", wide=(1,)
                            )
                        ),
                    )
                )
        return sections


def setup(app):
    app.add_directive("paper-list", PaperList)
    app.add_directive("gallery", Gallery)
    app.add_directive("counts", Summary)
    app.add_directive("claims-ledger", Ledger)
    app.add_directive("freshness", Freshness)
    app.add_directive("exactness", Exactness)
    app.add_directive("differences", Differences)
    app.add_directive("speed-explorer", Explorer)
    app.add_directive("kernels", Kernels)
    app.add_directive("api-index", ApiIndex)
