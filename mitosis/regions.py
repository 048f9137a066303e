"""A region of interest: the part of a slide in which a count is wanted, drawn by a person."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import LinearRing, Point, Polygon
from skimage.draw import polygon2mask

from mitosis.annotations import Annotation, read_region_outlines
from mitosis.errors import AnnotationError
from mitosis.files import sha256
from mitosis.geometry import Box
from mitosis.tissue import TissueMask

__all__ = ["Region", "read_region", "region_at"]


@dataclass(frozen=True)
class Region:
    """Part of a slide.

    Attributes
    ----------
    outlines : tuple of Polygon
        Level-0 px; what lies in any of them, and in none of its holes, belongs to the region.
    sha256 : str
        Of the file that it was read from; may be empty.
    """

    outlines: tuple[Polygon, ...]
    sha256: str = ""

    @classmethod
    def of_rings(cls, areas: Iterable[Sequence[Sequence[Sequence[float]]]]) -> "Region":
        """The region that `rings` tells."""
        return cls(tuple(Polygon(border, holes) for border, *holes in areas))

    @property
    def rings(self) -> tuple[tuple[tuple[tuple[float, float], ...], ...], ...]:
        """Of each outline the border, then its holes: corners, level-0 px."""
        return tuple(
            tuple(tuple((float(x), float(y)) for x, y in ring.coords) for ring in (area.exterior, *area.interiors))
            for area in self.outlines
        )

    def tissue_in(self, tissue: TissueMask) -> TissueMask:
        """The tissue whose mask pixel has its centre in the region."""
        height, width = tissue.mask.shape
        inside = self.pixels_in(Box(0, 0, width, height), tissue.mpp / tissue.slide_mpp)
        return TissueMask(tissue.mask & inside, tissue.mpp, tissue.slide_mpp, tissue.dimensions)

    def pixels_in(self, window: Box, ratio: float) -> NDArray[np.bool_]:
        """Bool [H, W]: which pixels of a window have their centre in the region.

        Parameters
        ----------
        window : Box
            In px that are each `ratio` level-0 px wide.
        """
        inside = np.zeros(window.size[::-1], dtype=bool)
        for outline in self.outlines:
            part = _fill(window, outline.exterior, ratio)
            for hole in outline.interiors:
                part &= ~_fill(window, hole, ratio)
            inside |= part
        return inside

    def holding(self, marks: Sequence[Annotation]) -> tuple[Annotation, ...]:
        """The marks that lie in the region."""
        return tuple(mark for mark in marks if any(area.contains(Point(mark.x, mark.y)) for area in self.outlines))


def _fill(window: Box, ring: LinearRing, ratio: float) -> NDArray[np.bool_]:
    """Bool [H, W]: the pixels whose centre lies in a ring."""
    rows_columns = np.asarray(ring.coords, dtype=np.float64)[:, 1::-1] / ratio - 0.5 - (window.y0, window.x0)
    filled: NDArray[np.bool_] = polygon2mask(window.size[::-1], rows_columns)  # type: ignore[no-untyped-call]  # untyped library
    return filled


def region_at(path: Path | None) -> Region | None:
    """The region in a file, if there is one; raises as `read_region`."""
    return read_region(path) if path else None


def read_region(path: Path) -> Region:
    """Read a region of interest as QuPath exports it: every area of a GeoJSON file, whatever its class.

    Raises
    ------
    AnnotationError
        The file cannot be read, or holds no area.
    """
    outlines = read_region_outlines(path)
    if not outlines:
        raise AnnotationError(f"{path}: holds no area. Draw the region of interest in QuPath and export it as GeoJSON.")
    return Region(outlines, sha256(path))
