"""One measure for all models: paired times, multiply-adds, bytes, and what this machine can do."""

from refimpl.lab.measure.counting import (
    macs,
    parameters,
    peak_memory,
    saved_for_backward,
    traffic,
)
from refimpl.lab.measure.machines import Ceilings, ceilings, machine, processor
from refimpl.lab.measure.operators import by_kind, operator_times
from refimpl.lab.measure.timing import Comparison, Timing, compare, duration

__all__ = [
    "Ceilings",
    "Comparison",
    "Timing",
    "by_kind",
    "ceilings",
    "compare",
    "duration",
    "machine",
    "macs",
    "operator_times",
    "parameters",
    "peak_memory",
    "processor",
    "saved_for_backward",
    "traffic",
]
