"""What a benchmark gives: one measured value beside its baseline."""

from dataclasses import dataclass

__all__ = ["Figure"]


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
