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
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from numpy.typing import ArrayLike

from mitosis.detections import Detections
from mitosis.grading import Grade, Rule, find_rule, grade
from mitosis.hotspots import (
    HOTSPOT_ASPECT,
    HOTSPOT_MM2,
    Hotspot,
    Shape,
    find_hotspot,
    find_hotspots,
    in_region,
    poisson_interval,
    region_corners,
    within_region,
)
from mitosis.slides import BadTile
from mitosis.tissue import TissueMask, touched
from mitosis.uncertainty import CaseCounts, TrueCount, posterior, true_count

__all__ = [
    "HOTSPOT_ASPECT",
    "HOTSPOT_MM2",
    "CountReport",
    "Hotspot",
    "area_text",
    "find_hotspot",
    "mitotic_count",
    "poisson_interval",
]

FEWEST_CASES = 4
"""Calibration cases that it takes to say how cases differ; with fewer the true count could be anything."""


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
    more_hotspots : tuple of Hotspot
        The next ones, if more than one was asked for.
    region : tuple of (float, float)
        Corners of the region of interest, level-0 px, if one was given: nothing outside it counts.
    region_outlines : tuple of tuples of rings
        Of each area of the region of interest that was drawn for the slide, the border and then its holes, level-0 px;
        empty without one.
    true_count : TrueCount or None
        Interval of the true count in the hotspot, where the detector was calibrated.
    grades : tuple of Grade
        What the rules that were asked for say of the hotspot.
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
    model_sha256, verifier_sha256, card_sha256 : str
        Of the weights, of those of the second stage where it gave the scores, and of the model's card; may be empty.
    source_sha256, region_sha256 : str
        Of the slide file, and of the file of the region of interest if there was one; may be empty.
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
    more_hotspots: tuple[Hotspot, ...] = ()
    region: tuple[tuple[float, float], ...] = ()
    region_outlines: tuple[tuple[tuple[tuple[float, float], ...], ...], ...] = ()
    true_count: TrueCount | None = None
    grades: tuple[Grade, ...] = ()
    seen_in_training: bool = False
    training_cases: tuple[str, ...] = ()
    model_sha256: str = ""
    verifier_sha256: str = ""
    card_sha256: str = ""
    source_sha256: str = ""
    region_sha256: str = ""
    bad_tiles: tuple[BadTile, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def area_text(mm2: float) -> str:
    """An area in mm² for people: two decimals, of less than 0.1 mm² two digits."""
    return f"{mm2:.2f}" if mm2 >= 0.1 or not mm2 else f"{mm2:.2g}"


def mitotic_count(
    detections: Detections,
    tissue: TissueMask,
    *,
    slide: str,
    threshold: float,
    mpp: float,
    hotspot_mm2: float = HOTSPOT_MM2,
    aspect: float = HOTSPOT_ASPECT,
    shape: Shape = "rectangle",
    n_hotspots: int = 1,
    region: ArrayLike | None = None,
    rules: Sequence[str] = (),
    calibration: Sequence[CaseCounts] = (),
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
    shape, n_hotspots, region
        As in `find_hotspots`; with a region the counts and areas of the report are those in it.
    rules : sequence of str
        Names of the grading rules to apply to the first hotspot.
    calibration : sequence of CaseCounts
        What the detector does at this threshold on cases it has not seen; four or more of them give the true count
        an interval.
    bad_tiles : sequence of BadTile
        Places that could not be read.
    **provenance
        Further fields of `CountReport`, kept as they are.
    """
    chosen, boxes = [find_rule(name) for name in rules], [bad.box for bad in bad_tiles]
    corners: tuple[tuple[float, float], ...] = ()
    seen = tissue
    if region is not None:
        seen, detections = within_region(tissue, region), detections[in_region(detections.xy, region)]
        corners = tuple((float(x), float(y)) for x, y in region_corners(region))
    readable, counted = seen.without(boxes), detections[detections.score >= threshold]
    area = readable.area_mm2
    hotspots: tuple[Hotspot, ...] = ()
    if area > 0:
        hotspots = find_hotspots(counted.xy, readable, hotspot_mm2, aspect, shape=shape, n=n_hotspots)
    unreadable = touched(tissue.mask.shape, boxes, tissue.mpp / tissue.slide_mpp)
    return CountReport(
        slide=slide,
        status="degraded" if bad_tiles else "ok" if area > 0 else "no_tissue",
        mitotic_count=len(counted),
        n_candidates=len(detections),
        threshold=threshold,
        tissue_mm2=area,
        excluded_mm2=replace(tissue, mask=unreadable).area_mm2,
        density_per_mm2=len(counted) / area if area > 0 else None,
        hotspot=hotspots[0] if hotspots else None,
        more_hotspots=hotspots[1:],
        region=corners,
        true_count=_true_count(hotspots, calibration),
        grades=_grades(hotspots, chosen, calibration if len(calibration) >= FEWEST_CASES else ()),
        slide_dimensions=tissue.dimensions,
        slide_mpp=tissue.slide_mpp,
        mpp=mpp,
        bad_tiles=tuple(bad_tiles),
        **provenance,
    )


def _true_count(hotspots: Sequence[Hotspot], calibration: Sequence[CaseCounts]) -> TrueCount | None:
    if not hotspots or len(calibration) < FEWEST_CASES or hotspots[0].area_mm2 <= 0:
        return None
    return true_count(hotspots[0].mitotic_count, hotspots[0].area_mm2, calibration)


def _grades(hotspots: Sequence[Hotspot], rules: Sequence[Rule], calibration: Sequence[CaseCounts]) -> tuple[Grade, ...]:
    if not hotspots or not rules:
        return ()
    count, area = hotspots[0].mitotic_count, hotspots[0].area_mm2
    means = posterior(count, area, calibration).mean if area > 0 else None
    return tuple(grade(count, area, rule, means) for rule in rules)
