"""Whether the hotspot of a count is where the marks are densest."""

import math
from dataclasses import dataclass

import numpy as np

from mitosis.agreement import hotspot_overlap
from mitosis.counting import Hotspot, find_hotspot
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


def compare_hotspots(slide: SlideScores, dimensions: tuple[int, int], hotspot: Hotspot) -> HotspotAgreement:
    """Compare the hotspot of a count with where the marks are densest.

    Where the tissue lies is not known here, so the densest window is looked for on the whole slide.
    """
    figures = np.asarray(slide.figures, dtype=np.float64).reshape(-1, 2)
    width, height = grid_dimensions(dimensions, slide.slide_mpp, GRID_MPP)
    everywhere = TissueMask(np.ones((height, width), dtype=bool), GRID_MPP, slide.slide_mpp, dimensions)
    aspect = (hotspot.x1 - hotspot.x0) / (hotspot.y1 - hotspot.y0)
    best = find_hotspot(figures, everywhere, hotspot.window_mm2, aspect, shape=hotspot.shape)
    n_inside = int(hotspot.contains(figures).sum())
    return HotspotAgreement(slide.slide, _overlap(hotspot, best), n_inside, best.mitotic_count)


def _overlap(a: Hotspot, b: Hotspot) -> float:
    """Intersection over union of two windows of one size and shape."""
    if a.shape == "rectangle":
        return hotspot_overlap((a.x0, a.y0, a.x1, a.y1), (b.x0, b.y0, b.x1, b.y1))
    apart = math.hypot(a.x0 + a.x1 - b.x0 - b.x1, a.y0 + a.y1 - b.y0 - b.y1) / 2
    half = min(apart / (a.x1 - a.x0), 1.0)  # of the way between the centres, in radii
    both = 2 * (math.acos(half) - half * math.sqrt(1 - half**2))  # two segments of a circle of radius 1
    return both / (2 * math.pi - both)
