"""Where a call's time goes, operator by operator and by kind of work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from refimpl import checks

MOVES = (
    "copy clone contiguous cat stack view reshape permute transpose expand select slice as_strided"
    " split chunk unbind index gather roll pad resolve empty zeros resize fill flatten ::to ::t"
)
KINDS = {  # kind of work -> pieces of operator names ("::t": the whole name); the first that fits
    "convolution": ("conv",),
    "attention (fused)": ("scaled_dot_product",),
    "matrix product": ("mm", "matmul", "linear", "einsum", "dot"),
    "normalisation": ("norm",),
    "softmax": ("softmax",),
    "copies and reshapes": tuple(MOVES.split()),
}


def operator_times(function: Callable[[], object], rounds: int = 7) -> dict[str, float]:
    """Seconds that each operator takes by itself in a call (`aten::mm` …), largest first.

    Each is the least of the rounds, since what disturbs only adds. Gradients are off. Small
    operators look dearer under the profiler than they are: read shares, not milliseconds.
    """
    from torch.profiler import ProfilerActivity, profile

    checks.integer(1, rounds=rounds)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    found: dict[str, list[float]] = {}
    with torch.no_grad():
        function()
        for _ in range(rounds):
            with silent_stderr(), profile(activities=activities) as recorded:
                function()
            for event in recorded.key_averages():
                own = getattr(event, "self_device_time_total", 0) or event.self_cpu_time_total
                if event.key.startswith("aten::"):
                    found.setdefault(event.key, []).append(own / 1e6)
    least = {name: min(times) if len(times) == rounds else 0.0 for name, times in found.items()}
    return dict(sorted(least.items(), key=lambda item: -item[1]))


def by_kind(times: Mapping[str, float]) -> dict[str, float]:
    """`operator_times` added up by the kinds of work in `KINDS`, the rest as "element-wise"."""
    total: dict[str, float] = {}
    for name, seconds in times.items():
        kind = kind_of(name)
        total[kind] = total.get(kind, 0.0) + seconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def kind_of(operator: str) -> str:
    """The kind of work of one operator (`aten::addmm` -> "matrix product")."""
    for kind, pieces in KINDS.items():
        for piece in pieces:
            if operator.endswith(piece) if piece.startswith("::") else piece in operator:
                return kind
    return "element-wise"


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Standard error to nowhere: the profiler's C++ part writes lines about itself."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
