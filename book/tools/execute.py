"""Execute chapters: `notebooks/text/<stem>.md` -> `notebooks/<stem>.ipynb` with outputs.

python book/tools/execute.py [stem …]         no stem: every chapter; two at a time with -j 2
python book/tools/execute.py --record stem    train and store the chapter's recorded runs instead

Papermill does the work and prints one line for each cell.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
import papermill
from papermill.engines import NBClientEngine, papermill_engines

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
TEXT_FORMAT = "md:myst"
KEPT = ("tags", "mystnb")


class OneLineACell(NBClientEngine):
    """papermill's own engine, which says what each cell took."""

    @classmethod
    def execute_managed_notebook(cls, manager, kernel_name, **options):
        total, started = len(manager.nb.cells), {}
        start, complete = manager.cell_start, manager.cell_complete

        def cell_start(cell, cell_index=None, **more):
            started[cell_index] = time.perf_counter()
            return start(cell, cell_index, **more)

        def cell_complete(cell, cell_index=None, **more):
            if cell.cell_type == "code" and cell_index in started:
                first = cell.source.strip().partition("\n")[0][:80]
                seconds = time.perf_counter() - started[cell_index]
                print(f"  [{cell_index + 1:3d}/{total}] {seconds:6.2f} s  {first}", flush=True)
            return complete(cell, cell_index, **more)

        manager.cell_start, manager.cell_complete = cell_start, cell_complete
        return super().execute_managed_notebook(manager, kernel_name, **options)


def read_text(stem: str) -> nbformat.NotebookNode:
    """The notebook without outputs, as the text has it, with ids that depend on the place alone."""
    notebook = jupytext.read(NOTEBOOKS / "text" / f"{stem}.md")
    for i, cell in enumerate(notebook.cells):
        cell.id = f"{stem.replace('_', '-')[:50]}-{i:03d}"
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out what depends on the run and helps nobody; join what one cell wrote in pieces."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(
            {k: v for k, v in cell.metadata.items() if k in KEPT and v}
        )
        if cell.cell_type != "code":
            continue
        outputs = []
        for output in cell.outputs:
            if (
                outputs
                and output.output_type == "stream" == outputs[-1].output_type
                and output.name == outputs[-1].name
            ):
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        cell.outputs = outputs
    return notebook


def run(stem: str, parameters: dict) -> nbformat.NotebookNode:
    """Run one chapter in an empty folder; the notebook with its outputs."""
    print(stem, flush=True)
    papermill_engines.register("one_line_a_cell", OneLineACell)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / f"{stem}.ipynb", Path(folder) / "out.ipynb"
        nbformat.write(read_text(stem), source)
        papermill.execute_notebook(
            source,
            target,
            parameters=parameters,
            engine_name="one_line_a_cell",
            progress_bar=False,
            cwd=folder,
        )
        return nbformat.read(target, as_version=4)


def execute(stem: str) -> None:
    """Run one chapter and write its notebook and text."""
    begun = time.perf_counter()
    notebook = clean(run(stem, {}))
    replace(NOTEBOOKS / f"{stem}.ipynb", nbformat.writes(notebook) + "\n")
    write_text(stem, notebook)
    seconds = time.perf_counter() - begun
    print(f"{stem}: {seconds:.0f} s -> notebooks/{stem}.ipynb", flush=True)


def record(stem: str) -> None:
    """Run one chapter with `scale="record"`: its runs go to `refimpl/checkpoints/<stem>/`."""
    from refimpl.chapter import runs

    if not any("parameters" in cell.metadata.get("tags", []) for cell in read_text(stem).cells):
        raise SystemExit(f"{stem}: no cell is tagged 'parameters', so scale can't be set")
    run(stem, {"scale": "record"})
    for name, made in runs.read_record(stem).items():
        print(f"{stem}/{name}: {made['steps']} steps, {made['seconds']} s, {made['score']:.4g}")


def write_text(stem: str, notebook: nbformat.NotebookNode) -> None:
    replace(NOTEBOOKS / "text" / f"{stem}.md", text_of(notebook))


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all: the old one stays until the new one is complete."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def text_of(notebook: nbformat.NotebookNode) -> str:
    """The jupytext MyST form of a notebook: what people edit and review."""
    bare = nbformat.from_dict(
        {**notebook, "metadata": {"kernelspec": notebook.metadata.kernelspec}}
    )
    return jupytext.writes(bare, fmt=TEXT_FORMAT)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stems", nargs="*", help="chapters (default: every text)")
    parser.add_argument("--record", action="store_true", help="store the chapters' recorded runs")
    parser.add_argument(
        "-j", "--jobs", type=int, default=1, help="chapters at a time, one torch thread each"
    )
    arguments = parser.parse_args()
    known = sorted(path.stem for path in (NOTEBOOKS / "text").glob("*.md"))
    stems = arguments.stems or known
    if unknown := sorted(set(stems) - set(known)):
        parser.error(f"no notebooks/text/{unknown[0]}.md; there are: {', '.join(known) or 'none'}")
    if arguments.record and not arguments.stems:
        parser.error("--record wants the names of the chapters whose runs are to be trained again")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.jobs == 1 or len(stems) == 1 or arguments.record:
        for stem in stems:
            (record if arguments.record else execute)(stem)
        return 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        command = [sys.executable, __file__]
        codes = pool.map(lambda stem: subprocess.run([*command, stem]).returncode, stems)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
