"""One measure for all models: paired latency, multiply-adds, memory, and the ceilings of this machine."""

from __future__ import annotations

import os
import platform
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.benchmark import timer as timer_clock
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


@dataclass(frozen=True)
class Timing:
    """Seconds a call of one form, over the rounds; `ratio` is to the first form, taken round by round. `_low`, `_high`: quartiles."""

    name: str
    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def iqr(self) -> float:
        """Interquartile range in seconds."""
        return self.high - self.low


@dataclass(frozen=True)
class Comparison:
    """Forms timed in turns. `comparison["fused"].ratio` is the time of `fused` as a multiple of the first form's."""

    timings: tuple[Timing, ...]
    rounds: int
    threads: int
    processor_time: bool = False

    def __getitem__(self, name: str) -> Timing:
        for timing in self.timings:
            if timing.name == name:
                return timing
        raise ValueError(
            f"no form {name!r} was timed; there are {', '.join(repr(t.name) for t in self.timings)}"
        )

    def rows(self) -> list[dict[str, str]]:
        return [
            {
                "Form": t.name,
                "Median": duration(t.median),
                "Middle half": f"{duration(t.low)} – {duration(t.high)}",
                "Time relative to the first": f"{t.ratio:.2f} ({t.ratio_low:.2f}–{t.ratio_high:.2f})",
            }
            for t in self.timings
        ]

    def caption(self) -> str:
        what = "Processor time" if self.processor_time else "Time"
        return f"{what} of a call: {self.rounds} rounds in turns, {self.threads} thread{'s' if self.threads != 1 else ''}"


def duration(seconds: float) -> str:
    """Three digits with a fitting unit: `1.23 ms`."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError("unreachable")


def compare(
    forms: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    threads: int = 1,
    min_time: float = 0.02,
    processor_time: bool = False,
) -> Comparison:
    """Time several forms of one computation fairly: in turns (A B C, C B A, …), so that a drift of the machine hits all alike.

    forms: name → function without arguments; the first is the reference of the ratios. min_time: seconds that each form runs
    per round (at least one call). processor_time: read the processor's clock instead of the wall's, which gives the same on an idle
    machine and keeps ratios right on one that is busy with other things; for work on a CPU alone. Gradients are off.
    Raises `ValueError` on no forms, or fewer than three rounds.
    """
    if not forms:
        raise ValueError("compare: forms is empty; give a dictionary of name → function")
    for name, form in forms.items():
        if not callable(form):
            raise ValueError(
                f"compare: the form {name!r} is {type(form).__name__}, wanted a function without arguments"
            )
    if rounds < 3:
        raise ValueError(f"compare: rounds={rounds} must be at least 3")
    if threads < 1 or min_time < 0:
        raise ValueError(
            f"compare: threads={threads} must be at least 1 and min_time={min_time} not negative"
        )
    with torch.no_grad():
        clock = time.process_time if processor_time else timer_clock
        timers = {
            name: Timer("form()", globals={"form": form}, num_threads=threads, timer=clock)
            for name, form in forms.items()
        }
        calls = {}
        for name, timer in timers.items():
            timer.timeit(1)  # the first call allocates and picks kernels
            calls[name] = max(1, round(min_time / max(timer.timeit(1).median, 1e-9)))
        seconds: dict[str, list[float]] = {name: [] for name in timers}
        for i in range(rounds):
            for name in timers if i % 2 == 0 else reversed(timers):
                seconds[name].append(timers[name].timeit(calls[name]).median)
    first = np.array(seconds[next(iter(forms))])
    timings = []
    for name, values in seconds.items():
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        ratio_low, ratio, ratio_high = np.quantile(np.array(values) / first, (0.25, 0.5, 0.75))
        timings.append(Timing(name, *map(float, (median, low, high, ratio, ratio_low, ratio_high))))
    return Comparison(tuple(timings), rounds, threads, processor_time)


def parameters(model: nn.Module, trainable: bool = False) -> int:
    """Number of parameters; only those that receive a gradient if `trainable`."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def count_fused(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


FUSED_ATTENTION = [
    getattr(torch.ops.aten, name)
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    if hasattr(torch.ops.aten, name)
]


def macs(model: nn.Module | Callable, *inputs: torch.Tensor, attention: bool = True) -> int:
    """Multiply-adds of `model(*inputs)` for the whole batch: convolutions and matrix products, by PyTorch's counter (FLOPs / 2).

    `attention=False` leaves the two products inside a fused attention out, as PyTorch's counter does on a CPU (and as the official
    figures were recorded); products that a model writes out are always counted. Modules are counted in evaluation mode.
    """
    count = count_fused if attention else (lambda *args, out_shape=None, **kwargs: 0)
    counter = FlopCounterMode(display=False, custom_mapping=dict.fromkeys(FUSED_ATTENTION, count))
    with evaluating(model), torch.no_grad(), counter:
        model(*inputs)
    return counter.get_total_flops() // 2


@contextmanager
def evaluating(model):
    """Evaluation mode, and every submodule's own mode again afterwards."""
    modes = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators return, and takes them off again when they are freed."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            t.untyped_storage()._cdata
            for t in tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                if storage._cdata not in self.known and storage._cdata not in given:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak_memory(function: Callable[[], object]) -> int:
    """Most bytes that `function()` holds at one moment in tensors it made itself, gradients' saved tensors included.

    On a GPU the allocator's own figure; on a CPU the sum of living tensor storages, without scratch memory inside an operator.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        if (used := torch.cuda.max_memory_allocated() - before) > 0:
            return used
    with LiveBytes() as meter:
        function()
    return meter.peak


class Traffic(TorchDispatchMode):
    """Adds up the bytes of every operator's tensors: what goes in, and what comes out."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        aliases = [r.alias_info for r in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            tensors = tree_leaves((args, kwargs, result))
            self.bytes += sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
        return result


def traffic(function: Callable[[], object]) -> int:
    """Bytes that the operators of `function()` read and write when each touches its tensors once.

    Views move nothing. A fused operator counts what enters and leaves it, an expanded tensor its
    full size; what a cache saves is not taken off. Gradients are off.
    """
    with torch.no_grad(), Traffic() as counter:
        function()
    return counter.bytes


MOVES = "copy clone contiguous cat stack view reshape permute transpose expand select slice as_strided split chunk unbind index gather roll pad"
KINDS = {  # kind of work -> pieces of operator names; the first that fits counts
    "convolution": ("conv",),
    "attention (fused)": ("scaled_dot_product",),
    "matrix product": ("mm", "matmul", "linear", "einsum", "dot"),
    "normalisation": ("norm",),
    "softmax": ("softmax",),
    "copies and reshapes": (
        *MOVES.split(),
        "resolve",
        "empty",
        "zeros",
        "resize",
        "fill",
        "flatten",
        "::to",
        "::t",
    ),
}


def operator_times(function: Callable[[], object], rounds: int = 7) -> dict[str, float]:
    """Seconds that each operator takes by itself in a call (`aten::mm` …): the least of the rounds (what disturbs only adds), largest first. Gradients are off.

    Small operators look dearer under the profiler than they are: read shares, not milliseconds.
    """
    from torch.profiler import ProfilerActivity, profile

    if rounds < 1:
        raise ValueError(f"operator_times: rounds={rounds} must be at least 1")
    activities = [ProfilerActivity.CPU] + (
        [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    )
    found: dict[str, list[float]] = {}
    with torch.no_grad():
        function()
        for _ in range(rounds):
            with (
                silent_stderr(),
                profile(activities=activities) as recorded,
            ):  # the profiler's C++ part writes two lines about itself
                function()
            for event in recorded.key_averages():
                own = getattr(event, "self_device_time_total", 0) or event.self_cpu_time_total
                if event.key.startswith("aten::"):
                    found.setdefault(event.key, []).append(own / 1e6)
    least = {name: min(times) if len(times) == rounds else 0.0 for name, times in found.items()}
    return dict(sorted(least.items(), key=lambda item: -item[1]))


def by_kind(times: Mapping[str, float]) -> dict[str, float]:
    """`operator_times` added up by kind of work: matrix product, convolution, softmax, normalisation, copies and reshapes, element-wise."""
    total: dict[str, float] = {}
    for name, seconds in times.items():
        fits = lambda part: name.endswith(part) if part.startswith("::") else part in name  # noqa: B023, E731
        kind = next(
            (kind for kind, parts in KINDS.items() if any(map(fits, parts))), "element-wise"
        )
        total[kind] = total.get(kind, 0.0) + seconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))


@contextmanager
def silent_stderr():
    """Standard error to nowhere, for C++ code as well."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@dataclass(frozen=True)
class Ceilings:
    """What this machine can do at best: `gflops` in a matrix product, `gbs` (gigabytes a second, read plus written) in a copy."""

    gflops: float
    gbs: float
    threads: int
    device: str
    dtype: str

    @property
    def ridge(self) -> float:
        """Arithmetic intensity (FLOP/byte) above which the arithmetic, and below which the memory, limits."""
        return self.gflops / self.gbs

    def limit(self, flops: float, bytes: float) -> float:
        """The least seconds in which this machine can do so much work: max(flops / GEMM rate, bytes / copy rate)."""
        return max(flops / (self.gflops * 1e9), bytes / (self.gbs * 1e9))

    def asdict(self) -> dict:
        return asdict(self)


def ceilings(
    threads: int = 1, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Ceilings:
    """Measure this machine's ceilings in about a second: a square matrix product, and a copy far larger than the caches."""
    side, length = (1024, 16 * 2**20) if torch.device(device).type == "cpu" else (4096, 256 * 2**20)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones(length, device=device)
    target = torch.empty_like(source)

    clock = (
        time.process_time if threads == 1 and torch.device(device).type == "cpu" else timer_clock
    )  # the same unless the machine is busy

    def best(function: Callable[[], object], repeats: int) -> float:
        timer = Timer(
            "function()", globals={"function": function}, num_threads=threads, timer=clock
        )
        timer.timeit(1)
        return min(timer.timeit(1).median for _ in range(repeats))

    with torch.no_grad():
        seconds_product = best(lambda: torch.mm(a, b, out=product), 9)
        seconds_copy = best(lambda: target.copy_(source), 9)
    return Ceilings(
        gflops=2 * side**3 / seconds_product / 1e9,
        gbs=2 * source.nbytes / seconds_copy / 1e9,
        threads=threads,
        device=machine(device)["name"],
        dtype=str(dtype).removeprefix("torch."),
    )


def machine(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """This machine in words: processor name, cores, PyTorch's threads and version, system, date."""
    return {
        "name": torch.cuda.get_device_name(device)
        if torch.device(device).type == "cuda"
        else processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "system": platform.system(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            ]
        if names:
            return names[0]
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
