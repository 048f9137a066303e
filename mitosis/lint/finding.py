"""What a check says, and how places and names are written in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Place", "Severity", "listing", "places"]

Severity = Literal["error", "warning", "note"]
Place = tuple[float, float]

_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or may be.

    Attributes
    ----------
    check : str
        Key of `mitosis.lint.CHECKS`.
    severity : {"error", "warning", "note"}
        error: training or scoring would be wrong; warning: somebody should look; note: nothing to do, only to know.
    slide : str
        Which slide; empty where the matter is one of the whole folder.
    message : str
        What was found, with the first few places.
    advice : str
        What to do about it.
    marks : tuple of (x, y)
        Every mark concerned, level-0 px.
    """

    check: str
    severity: Severity
    slide: str
    message: str
    advice: str
    marks: tuple[Place, ...] = ()


def places(marks: Sequence[Place]) -> str:
    """The first few places in words, ``(x, y)`` in level-0 px."""
    return listing([f"({x:.0f}, {y:.0f})" for x, y in marks])


def listing(words: Sequence[str]) -> str:
    """The first few words, and how many more there are."""
    more = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
