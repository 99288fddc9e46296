"""The set-up of a chapter, and what it was told: seed, paper, scale, when it began."""

from __future__ import annotations

import importlib
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from refimpl import catalogue, checks
from refimpl.lab.train import in_notebook
from refimpl.viz import charts, drawing

PACKAGE = Path(__file__).parents[1]
SCALES = ("mini", "full", "record")


@dataclass
class Session:
    """What `setup` was told. `started` is the clock of `chapter.stamp`."""

    seed: int = 0
    stem: str = ""
    scale: str = "mini"
    started: float = field(default_factory=time.perf_counter)


current = Session()


def setup(seed: int = 0, stem: str = "", scale: str = "mini", threads: int | None = None) -> None:
    """Make a chapter's run repeatable: seeds, threads, full float32 products, style of figures.

    Seeds Python, NumPy and PyTorch; cuDNN picks deterministic kernels. Prints nothing.

    seed: at least 0.
    stem: the chapter's paper; `chapter.recorded` needs it.
    scale: "mini" (seconds on a CPU), "full" (a GPU and minutes, may use the network) or
        "record" (trains and stores the recorded runs; from a checkout only).
    threads: PyTorch's CPU threads; by default `OMP_NUM_THREADS` where it is set, else at most two.
    Raises `ValueError` for anything else.
    """
    global current
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r} must be an integer of at least 0")
    if stem:
        checks.choice("stem", stem, catalogue.PAPERS)
    checks.choice("scale", scale, SCALES)
    if scale == "record":
        check_source_tree()
    if threads is None:
        threads = int(os.environ.get("OMP_NUM_THREADS") or min(2, os.cpu_count() or 1))
    checks.at_least(1, threads=threads)
    current = Session(seed, stem, scale)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if in_notebook():
        use_own_png()
    charts.style()


def check_source_tree() -> None:
    """Refuse to record runs where there is no source tree that could hold them."""
    if not (PACKAGE.parent / "pyproject.toml").exists():
        raise ValueError(
            "scale='record' stores weights in the source tree, and this refimpl is an installed"
            " wheel: clone the repository and run `make train CHAPTER=<stem>` there, or call the"
            " cell's train(build()) to train without storing"
        )


def use_own_png() -> None:
    """Let notebooks store figures as `drawing.stored` makes them."""
    from matplotlib.figure import Figure

    # The inline backend puts its formatter in place when it is first imported: before ours.
    importlib.import_module("matplotlib_inline.backend_inline")
    formatters = sys.modules["IPython"].get_ipython().display_formatter.formatters
    formatters["image/png"].for_type(Figure, drawing.stored)
