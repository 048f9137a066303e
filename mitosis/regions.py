"""A region of interest: the part of a slide in which a count is wanted, drawn by a person."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import LinearRing, Polygon
from skimage.draw import polygon2mask

from mitosis.annotations import read_region_outlines
from mitosis.errors import AnnotationError
from mitosis.files import sha256
from mitosis.tissue import TissueMask

__all__ = ["Region", "read_region"]


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

    def tissue_in(self, tissue: TissueMask) -> TissueMask:
        """The tissue whose mask pixel has its centre in the region."""
        inside = np.zeros_like(tissue.mask)
        scale = tissue.slide_mpp / tissue.mpp
        for outline in self.outlines:
            part = _fill(tissue.mask.shape, outline.exterior, scale)
            for hole in outline.interiors:
                part &= ~_fill(tissue.mask.shape, hole, scale)
            inside |= part
        return TissueMask(tissue.mask & inside, tissue.mpp, tissue.slide_mpp, tissue.dimensions)


def _fill(shape: tuple[int, ...], ring: LinearRing, scale: float) -> NDArray[np.bool_]:
    """Bool [H, W]: the pixels whose centre lies in a ring."""
    rows_columns = np.asarray(ring.coords, dtype=np.float64)[:, 1::-1] * scale - 0.5
    filled: NDArray[np.bool_] = polygon2mask(shape, rows_columns)  # type: ignore[no-untyped-call]  # untyped library
    return filled


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
