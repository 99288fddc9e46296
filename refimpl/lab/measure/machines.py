"""This machine: its name, and what it can do at best."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark import timer as wall_clock


@dataclass(frozen=True)
class Ceilings:
    """What a machine can do at best, as `ceilings` measured it."""

    gflops: float  # 10⁹ operations a second, in a matrix product
    gbs: float  # 10⁹ bytes a second, read plus written, in a copy
    threads: int
    device: str
    dtype: str

    @property
    def ridge(self) -> float:
        """FLOP/byte above which the arithmetic, and below which the memory, limits."""
        return self.gflops / self.gbs

    def limit(self, flops: float, bytes: float) -> float:
        """The least seconds for so much work: max(flops / product rate, bytes / copy rate)."""
        return max(flops / (self.gflops * 1e9), bytes / (self.gbs * 1e9))


def ceilings(
    threads: int = 1, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Ceilings:
    """Measure this machine's ceilings in about a second.

    A square matrix product of `dtype`, and a copy of float32 far larger than the caches.
    """
    on_cpu = torch.device(device).type == "cpu"
    side = 1024 if on_cpu else 4096
    length = 16 * 2**20 if on_cpu else 256 * 2**20
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    product = torch.empty_like(a)
    source = torch.ones(length, device=device)
    target = torch.empty_like(source)
    # Wall and processor agree for one thread of an idle machine; on a busy one the latter is right.
    clock = time.process_time if threads == 1 and on_cpu else wall_clock
    with torch.no_grad():
        seconds_product = least(lambda: torch.mm(a, b, out=product), threads, clock)
        seconds_copy = least(lambda: target.copy_(source), threads, clock)
    return Ceilings(
        gflops=2 * side**3 / seconds_product / 1e9,
        gbs=2 * source.nbytes / seconds_copy / 1e9,
        threads=threads,
        device=machine(device)["name"],
        dtype=str(dtype).removeprefix("torch."),
    )


def least(function: Callable[[], object], threads: int, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of nine calls."""
    timer = Timer("function()", globals={"function": function}, num_threads=threads, timer=clock)
    timer.timeit(1)
    return min(timer.timeit(1).median for _ in range(9))


def machine(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """This machine in words: processor, cores, PyTorch's threads and version, system, date."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "name": torch.cuda.get_device_name(device) if on_gpu else processor(),
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
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
