"""The rule of the canine data sets CCMCT and CMC and of the alternative labels of TUPAC16: mixed neighbourhoods."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from mitosis.matching.neighbours import as_points, is_near
from mitosis.matching.protocol import Protocol
from mitosis.matching.result import MatchResult

__all__ = ["CCMCT", "in_neighbourhoods", "suppress", "suppressed_neighbourhoods"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def in_neighbourhoods(truth_um: ArrayLike, found_um: ArrayLike, radius_um: float) -> MatchResult:
    """Apply the core rule, without the suppression that comes before it.

    Marks and detections are put into one set. The neighbourhood of a point is all points no further away than the
    radius, itself too. Where a neighbourhood has both a mark and a detection, all of its marks are found and none of
    its detections is false, even if they are up to two radii apart.

    Parameters
    ----------
    truth_um, found_um : float [N, 2] and [M, 2]
        µm, inclusive.

    Raises
    ------
    ValueError
        Points are not finite [N, 2], or the radius is negative.

    References
    ----------
    ``_F1_core`` in lib/calculate_F1.py of https://github.com/DeepMicroscopy/MITOS_WSI_CMC (the same in
    MITOS_WSI_CCMCT and TUPAC16_AlternativeLabels).
    """
    truth, found = as_points(truth_um, "truth_um"), as_points(found_um, "found_um")
    # A neighbourhood round a mark is mixed if a detection lies in it; a mark is found if it lies in a mixed one, and
    # if that is one round a detection, then the one round the mark itself is mixed too. The same for detections.
    mixed_truth = truth[is_near(truth, found, radius_um)]
    mixed_found = found[is_near(found, truth, radius_um)]
    tp = int(is_near(truth, mixed_truth, radius_um).sum())
    fp = len(found) - int(is_near(found, mixed_found, radius_um).sum())
    return MatchResult(tp, fp, len(truth) - tp)


def suppress(found_um: ArrayLike, scores: ArrayLike, radius_um: float) -> IntArray:
    """Indices, ascending, of the detections that no better one drops, int64 [K].

    From the highest score down, each detection that is still there drops all others no further away than the radius
    (inclusive). Of equal scores the smaller y, then x, comes first, whatever the order of the detections; the evaluator
    takes whichever its sort puts last.

    References
    ----------
    ``non_max_suppression_by_distance`` in lib/nms_WSI.py of https://github.com/DeepMicroscopy/MITOS_WSI_CCMCT.
    """
    found, score = as_points(found_um, "found_um"), np.asarray(scores, dtype=np.float64)
    crowded = _with_neighbour(found, radius_um)
    keep = ~crowded
    order = np.flatnonzero(crowded)
    order = order[np.lexsort((found[order, 0], found[order, 1], -score[order]))]
    # A dense crowd would have a quadratic number of pairs; no cell ever holds more than a few that were kept.
    side = radius_um * (1 + 1e-9) or 1.0
    cells: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for index, (x, y) in zip(order.tolist(), found[order].tolist(), strict=True):
        column, row = math.floor(x / side), math.floor(y / side)
        around = ((column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
        if any(math.hypot(x - u, y - v) <= radius_um for cell in around for u, v in cells.get(cell, ())):
            continue
        cells.setdefault((column, row), []).append((x, y))
        keep[index] = True
    return np.flatnonzero(keep)


def suppressed_neighbourhoods(
    truth_um: FloatArray, found_um: FloatArray, scores: FloatArray, radius_um: float
) -> MatchResult:
    """`suppress`, then `in_neighbourhoods`, with the same radius; a dropped detection is neither true nor false."""
    return in_neighbourhoods(truth_um, found_um[suppress(found_um, scores, radius_um)], radius_um)


CCMCT = Protocol(
    name="ccmct",
    radius_um=6.25,  # 25 px at 0.25 µm/px
    rule=suppressed_neighbourhoods,
    source=(
        "lib/calculate_F1.py: _F1_core and lib/nms_WSI.py (github.com/DeepMicroscopy: MITOS_WSI_CCMCT, MITOS_WSI_CMC, "
        "TUPAC16_AlternativeLabels)"
    ),
    quirks=(
        "Detections within the radius of a better one are dropped first and never count. Then not one to one: one "
        "detection may find two marks, and a mark up to two radii away from any detection is found if another mark "
        "lies between. The first version left slides without any detection out of the false negatives; here, as in "
        "the later one, their marks are missed."
    ),
    strict=True,
)


def _with_neighbour(found: FloatArray, radius: float) -> NDArray[np.bool_]:
    """Which points may have another one within the radius, bool [M]; hardly more than have."""
    if len(found) < 2:
        return np.zeros(len(found), dtype=bool)
    distances, _ = cKDTree(found).query(found, k=2, distance_upper_bound=max(radius * (1 + 1e-9), 1e-150))
    return np.asarray(np.isfinite(distances[:, 1]))
