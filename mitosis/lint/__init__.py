"""What is wrong with an expert's marks, found before anybody trains on them or scores with them.

A new check is a function ``(collection) -> findings`` and a line in `CHECKS`. It looks at marks as the files have them,
says what it found with the places, and what to do. A check of how coordinates were written (axes, level, boxes) speaks
only where another reading fits clearly better: a false alarm costs more than a doubt left unsaid.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mitosis.cohort import SlideSource
from mitosis.lint.boxes import box_reading
from mitosis.lint.collection import Collection, SlideMarks, SlideView, Standing, collect
from mitosis.lint.files import empty, ignored, orphans, same_marks, unlabelled, unreadable
from mitosis.lint.finding import Finding
from mitosis.lint.marks import contradictions, duplicates, off_tissue, other_level, outside, swapped_axes
from mitosis.lint.sizes import figure_size, image_size, pixel_size

__all__ = ["CHECKS", "Check", "Collection", "Finding", "SlideMarks", "SlideView", "Standing", "check_all", "lint"]

Check = Callable[[Collection], Iterable[Finding]]

CHECKS: dict[str, Check] = {
    "unreadable": unreadable,
    "unlabelled": unlabelled,
    "orphans": orphans,
    "same_marks": same_marks,
    "empty": empty,
    "ignored": ignored,
    "image_size": image_size,
    "box_reading": box_reading,
    "swapped_axes": swapped_axes,
    "other_level": other_level,
    "outside": outside,
    "off_tissue": off_tissue,
    "figure_size": figure_size,
    "pixel_size": pixel_size,
    "contradictions": contradictions,
    "duplicates": duplicates,
}
"""Every check, in the order in which its findings are told."""


def lint(
    annotations: Path, sources: Sequence[SlideSource], on_slide: Callable[[str], None] | None = None
) -> tuple[Finding, ...]:
    """Run every check on the marks of slides.

    Parameters
    ----------
    annotations : Path
        File or folder of marks.
    sources : sequence of SlideSource
        The slides, with the µm/px to use.
    on_slide : callable, optional
        Told the name of each slide that has been looked at.

    Returns
    -------
    tuple of Finding
        In the order of `CHECKS`, then of the slides. A slide or file that cannot be read is a finding too.
    """
    return check_all(collect(annotations, sources, on_slide))


def check_all(collection: Collection) -> tuple[Finding, ...]:
    """Every finding of every check."""
    return tuple(finding for check in CHECKS.values() for finding in check(collection))
