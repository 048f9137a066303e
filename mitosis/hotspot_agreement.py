"""Whether the hotspot of a count is where the marks are densest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mitosis.agreement import hotspot_overlap
from mitosis.counting import find_hotspot
from mitosis.geometry import grid_dimensions
from mitosis.ranking import SlideScores
from mitosis.tissue import TissueMask

__all__ = ["HotspotAgreement", "compare_hotspots"]

GRID_MPP = 16.0


@dataclass(frozen=True, slots=True)
class HotspotAgreement:
    """A slide's hotspot beside the densest window of the same size and shape by the marks.

    Attributes
    ----------
    overlap : float
        Intersection over union of the two windows, 0 to 1. Windows of equal count may lie apart.
    n_in_hotspot, n_in_best : int
        Marked figures in the hotspot, and in the densest window.
    """

    slide: str
    overlap: float
    n_in_hotspot: int
    n_in_best: int


def compare_hotspots(slide: SlideScores, dimensions: tuple[int, int], hotspot: Sequence[float]) -> HotspotAgreement:
    """Compare the hotspot of a count, (x0, y0, x1, y1) in level-0 px, with where the marks are densest.

    Where the tissue lies is not known here, so the densest window is looked for on the whole slide.
    """
    x0, y0, x1, y1 = hotspot
    figures = np.asarray(slide.figures, dtype=np.float64).reshape(-1, 2)
    width, height = grid_dimensions(dimensions, slide.slide_mpp, GRID_MPP)
    everywhere = TissueMask(np.ones((height, width), dtype=bool), GRID_MPP, slide.slide_mpp, dimensions)
    area_mm2 = (x1 - x0) * (y1 - y0) * (slide.slide_mpp / 1000) ** 2
    best = find_hotspot(figures, everywhere, area_mm2, (x1 - x0) / (y1 - y0))
    inside = np.all((figures >= (x0, y0)) & (figures <= (x1, y1)), axis=1)
    overlap = hotspot_overlap((x0, y0, x1, y1), (best.x0, best.y0, best.x1, best.y1))
    return HotspotAgreement(slide.slide, overlap, int(inside.sum()), best.mitotic_count)
