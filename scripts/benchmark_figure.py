"""What a benchmark gives: one measured value beside its baseline; and how memory is measured."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Figure", "peak_mb"]


@dataclass(frozen=True)
class Figure:
    """One measured value beside its baseline; `ratio` is how many times better it is."""

    name: str
    value: float
    unit: str
    baseline: float
    ratio: float

    @classmethod
    def less_is_better(cls, name: str, value: float, unit: str, baseline: float) -> "Figure":
        """A time, a cost or a size."""
        return cls(name, value, unit, baseline, baseline / value)


def peak_mb() -> float:
    """Most memory that this process has held at once, MB of 10⁶ bytes.

    `ru_maxrss` of Linux begins with what the process that started this one held, so there the system is asked in
    another way.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
