"""Detections -> a mitotic count in a stated area.

The count of veterinary pathology, and of this module unless another area is asked for, is that of the 2.37 mm² with
the most mitotic figures: ten fields of a microscope with field number 22 at 40x [1]_ [2]_. Here the place is not
judged by eye: the window is the exact densest one.

References
----------
.. [1] Meuten, Moore, George: Mitotic count and the field of view area: time to standardize. Vet Pathol 2016;53:7-9.
.. [2] Donovan et al: Mitotic figures - normal, atypical, and mimics: a guide to identification. Vet Pathol
   2021;58:243-257.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2

from mitosis.detections import Detections
from mitosis.slides import BadTile
from mitosis.tissue import TissueMask

__all__ = [
    "HOTSPOT_ASPECT",
    "HOTSPOT_MM2",
    "CountReport",
    "Hotspot",
    "find_hotspot",
    "mitotic_count",
    "poisson_interval",
]

HOTSPOT_MM2 = 2.37
"""Area of the hotspot, mm² (Meuten 2016)."""

HOTSPOT_ASPECT = 4 / 3
"""Width to height of the hotspot."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Hotspot:
    """The window with the most mitotic figures.

    Attributes
    ----------
    x0, y0, x1, y1 : float
        The window, level-0 px, within the slide; its borders belong to it.
    area_mm2 : float
        Tissue in the window.
    window_mm2 : float
        The whole window; less than what was asked for where the slide is smaller.
    mitotic_count : int
        Figures in the window.
    interval : (float, float)
        95 % Poisson interval of the count: how far chance alone may have moved it.
    density_per_mm2 : float or None
        Count over `area_mm2`; None where the window has no tissue.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    area_mm2: float
    window_mm2: float
    mitotic_count: int
    interval: tuple[float, float]
    density_per_mm2: float | None

    def contains(self, xy: ArrayLike) -> NDArray[np.bool_]:
        """Which points (float [N, 2], level-0 px) lie in the window, bool [N]."""
        points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        inside: NDArray[np.bool_] = np.all((points >= (self.x0, self.y0)) & (points <= (self.x1, self.y1)), axis=1)
        return inside


@dataclass(frozen=True, slots=True, kw_only=True)
class CountReport:
    """All that is known about one slide's count; what ``count.json`` holds.

    Attributes
    ----------
    slide : str
        Name.
    status : str
        "ok", "degraded" (parts of the slide could not be read) or "no_tissue".
    mitotic_count, n_candidates : int
        Detections at or above the threshold, and all above the low floor.
    threshold : float
        Least score that counts.
    tissue_mm2, excluded_mm2 : float
        Readable tissue, and the part of the slide that could not be read.
    density_per_mm2 : float or None
        Count over tissue; None where there is none.
    hotspot : Hotspot or None
        None where there is no tissue.
    slide_dimensions : (int, int)
        Width and height, level-0 px.
    slide_mpp, mpp : float
        µm/px of level 0, and of the pixels the network saw.
    case_id, domain : str
        The case, and the scanner, laboratory or tumour; may be empty.
    seen_in_training : bool
        The model learned from this case or this very file, so its count here says nothing about new slides.
    training_cases : tuple of str
        What the model learned from.
    model_sha256, verifier_sha256, source_sha256 : str
        Of the weights, of those of the second stage where it gave the scores, and of the slide file; may be empty.
    bad_tiles : tuple of BadTile
        What could not be read.
    settings, versions : dict
        What was asked for and with what it was computed.
    """

    slide: str
    status: str
    mitotic_count: int
    n_candidates: int
    threshold: float
    tissue_mm2: float
    excluded_mm2: float
    density_per_mm2: float | None
    hotspot: Hotspot | None
    slide_dimensions: tuple[int, int]
    slide_mpp: float
    mpp: float
    case_id: str = ""
    domain: str = ""
    seen_in_training: bool = False
    training_cases: tuple[str, ...] = ()
    model_sha256: str = ""
    verifier_sha256: str = ""
    source_sha256: str = ""
    bad_tiles: tuple[BadTile, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def mitotic_count(
    detections: Detections,
    tissue: TissueMask,
    *,
    slide: str,
    threshold: float,
    mpp: float,
    hotspot_mm2: float = HOTSPOT_MM2,
    aspect: float = HOTSPOT_ASPECT,
    bad_tiles: Sequence[BadTile] = (),
    **provenance: Any,
) -> CountReport:
    """Count the detections that reach `threshold`.

    Parameters
    ----------
    detections : Detections
        All candidates, merged.
    tissue : TissueMask
        As found; what `bad_tiles` cover is taken away here.
    threshold : float
        Least score that counts.
    mpp : float
        µm/px of the pixels the network saw.
    hotspot_mm2, aspect : float
        Area and width to height of the hotspot.
    bad_tiles : sequence of BadTile
        Places that could not be read.
    **provenance
        Further fields of `CountReport`, kept as they are.
    """
    boxes = [bad.box for bad in bad_tiles]
    readable, counted = tissue.without(boxes), detections[detections.score >= threshold]
    area = readable.area_mm2
    everything = TissueMask(np.ones_like(tissue.mask), tissue.mpp, tissue.slide_mpp, tissue.dimensions)
    return CountReport(
        slide=slide,
        status="degraded" if bad_tiles else "ok" if area > 0 else "no_tissue",
        mitotic_count=len(counted),
        n_candidates=len(detections),
        threshold=threshold,
        tissue_mm2=area,
        excluded_mm2=everything.area_mm2 - everything.without(boxes).area_mm2,
        density_per_mm2=_density(len(counted), area),
        hotspot=find_hotspot(counted.xy, readable, hotspot_mm2, aspect) if area > 0 else None,
        slide_dimensions=tissue.dimensions,
        slide_mpp=tissue.slide_mpp,
        mpp=mpp,
        bad_tiles=tuple(bad_tiles),
        **provenance,
    )


def find_hotspot(
    xy: ArrayLike, tissue: TissueMask, hotspot_mm2: float = HOTSPOT_MM2, aspect: float = HOTSPOT_ASPECT
) -> Hotspot:
    """The axis-parallel window of a given size, within the slide, that holds the most points.

    Exact: the best window can be slid right until its left edge meets a point or its right edge the slide's, and then
    down likewise, without losing a point; so only those windows are looked at. What is returned is the winner moved
    so that its points lie in its middle, which shows their surroundings on all sides. Of several with the same count
    the one with most tissue wins, then the upper, then the left one. Where there are no points, the same rule picks
    from windows a quarter of their size apart.

    Parameters
    ----------
    xy : float [N, 2]
        Counted figures, level-0 px.
    tissue : TissueMask
        Where there is tissue; it also knows the slide's size.
    hotspot_mm2, aspect : float
        Area of the window, and width to height. If the slide is too narrow or too low for it, the window becomes
        higher or wider to keep its area; if the slide is smaller than the area, it is the whole slide.
    """
    slide_size = np.array(tissue.dimensions, dtype=np.float64)
    points = np.clip(np.asarray(xy, dtype=np.float64).reshape(-1, 2), 0, slide_size)
    size = _window_size(tissue, hotspot_mm2, aspect)
    corners = _densest(points, size, slide_size - size) if len(points) else _spread(size, slide_size - size)
    corners = np.unique(corners, axis=0)
    areas = tissue.areas_mm2_in(np.hstack([corners, corners + size]))
    best = np.lexsort((corners[:, 0], corners[:, 1], -np.round(areas, 9)))[0]
    x0, y0 = corners[best].tolist()
    x1, y1 = np.minimum(corners[best] + size, slide_size).tolist()
    window_mm2 = float(np.prod(size)) * (tissue.slide_mpp / 1000) ** 2
    count = int(np.all((points >= (x0, y0)) & (points <= (x1, y1)), axis=1).sum())
    area = float(areas[best])
    return Hotspot(x0, y0, x1, y1, area, window_mm2, count, poisson_interval(count), _density(count, area))


def poisson_interval(count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of the mean of a Poisson distribution of which `count` was drawn.

    References
    ----------
    Garwood: Fiducial limits for the Poisson distribution. Biometrika 1936;28:437-442.
    """
    tail = (1 - confidence) / 2
    lower = float(chi2.ppf(tail, 2 * count)) / 2 if count else 0.0
    return lower, float(chi2.isf(tail, 2 * count + 2)) / 2


def _density(count: int, area_mm2: float) -> float | None:
    return count / area_mm2 if area_mm2 > 0 else None


def _window_size(tissue: TissueMask, area_mm2: float, aspect: float) -> FloatArray:
    """Width and height of the window, level-0 px."""
    slide_width, slide_height = tissue.dimensions
    area = area_mm2 / (tissue.slide_mpp / 1000) ** 2
    width, height = (area * aspect) ** 0.5, (area / aspect) ** 0.5
    if width > slide_width:
        width, height = slide_width, min(area / slide_width, slide_height)
    elif height > slide_height:
        width, height = min(area / slide_height, slide_width), slide_height
    return np.array([width, height], dtype=np.float64)


def _spread(size: FloatArray, last: FloatArray) -> FloatArray:
    """Corners [M, 2] of windows a quarter of their size apart, up to the corner `last`."""
    x, y = (np.append(np.arange(0, end, step), end) for end, step in zip(last, size / 4, strict=True))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _densest(points: FloatArray, size: FloatArray, last: FloatArray) -> FloatArray:
    """Corners [M, 2] of all windows with the most points, each moved so that its points are in the middle."""
    points = points[np.lexsort((points[:, 0], points[:, 1]))]
    corner = np.minimum(points, last)
    most = 0
    centred: list[FloatArray] = []
    first = np.searchsorted(points[:, 1], points[:, 1] - size[1])
    end = np.searchsorted(points[:, 1], points[:, 1] + size[1], side="right")
    for i, left in enumerate(corner[:, 0]):
        # A window whose left edge meets point i holds it, so its other points are near.
        near = points[first[i] : end[i]]
        near = near[(near[:, 0] >= left) & (near[:, 0] <= left + size[0])]
        if len(near) < most:
            continue
        tops = np.unique(np.minimum(near[:, 1], last[1]))
        start = np.searchsorted(near[:, 1], tops)
        stop = np.searchsorted(near[:, 1], tops + size[1], side="right")
        if (stop - start).max() > most:
            most, centred = int((stop - start).max()), []
        for k in np.flatnonzero(stop - start == most):
            centred.append(_centred(near[start[k] : stop[k]], np.array([left, tops[k]]), size, last))
    return np.array(centred)


def _centred(members: FloatArray, corner: FloatArray, size: FloatArray, last: FloatArray) -> FloatArray:
    """The window at `corner` moved so that its `members` lie in its middle, as far as the slide allows."""
    low, high = members.min(axis=0), members.max(axis=0)
    moved = np.clip((low + high - size) / 2, 0, last)
    fits: FloatArray = np.where((moved <= low) & (high <= moved + size), moved, corner)
    return fits
