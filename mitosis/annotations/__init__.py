"""What experts marked on a slide."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Annotation", "Label"]


class Label(StrEnum):
    """What a mark stands for."""

    MITOTIC_FIGURE = "mitotic figure"
    NON_MITOTIC_FIGURE = "non-mitotic figure"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One marked cell.

    Attributes
    ----------
    x, y : float
        Centre, level-0 px (the centre of pixel (row i, column j) is ``(j + 0.5, i + 0.5)``).
    label : Label
        Mitotic figure or look-alike.
    outlines : tuple of shapely Polygon, level-0 px
        The cell's segments where the expert drew them; empty for a point or a box.
    """

    x: float
    y: float
    label: Label
