"""A candidate among many look-alikes is less likely a figure than one that looks the same and stands alone.

A second stage sees a cell and a little around it, but not how many nuclei on this part of the slide look like figures
to it. By Bayes' rule the odds that a candidate is a figure go with figures per mm² over look-alikes per mm². The latter
can be told: a candidate of score p is a look-alike with probability 1 - p. As figures do not become more frequent
because stain, scanner or tissue let more nuclei look like them, log-odds fall by the logarithm of that density [1]_.
Look-alikes that are many also score higher, so a weight above 1 may fit better. Where they are few nothing is changed:
whole slides have emptier tissue than the fields of view that thresholds are chosen on.

References
----------
.. [1] Saerens, Latinne, Decaestecker: Adjusting the outputs of a classifier to new a priori probabilities. Neural
   Comput 2002;14:21-41.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from scipy.special import expit

from mitosis.detections import SCORE_STEPS, Detections
from mitosis.score_calibration import log_odds
from mitosis.tissue import TissueMask

__all__ = ["COUNTED_FROM", "SIDE_UM", "discount_crowds", "tissue_around"]

SIDE_UM = 500.0
"""Side of the square round a candidate in which others are counted, µm: about a field of view."""

COUNTED_FROM = 0.1
"""Least score of a candidate that is one of a crowd."""

_PRIOR_MM2 = 0.05
"""Tissue that the assumed density weighs as much as: with less than that around it, a candidate is hardly changed."""

_CHUNK = 1000

FloatArray = NDArray[np.float64]


def tissue_around(xy: ArrayLike, tissue: TissueMask) -> FloatArray:
    """Tissue in the square round each of some places (float [N, 2], level-0 px), mm² [N]."""
    places, half = np.asarray(xy, dtype=np.float64).reshape(-1, 2), SIDE_UM / 2 / tissue.slide_mpp
    return tissue.areas_mm2_in(np.hstack([places - half, places + half]))


def discount_crowds(
    candidates: Detections, around_mm2: ArrayLike, slide_mpp: float, weight: float, per_mm2: float
) -> Detections:
    """All candidates of a slide, in their order, the log-odds of those among many look-alikes lowered.

    They fall by ``weight * log(d / per_mm2)`` where the density d of look-alikes around is above `per_mm2`: the sum of
    ``1 - score`` over the other candidates that score at least `COUNTED_FROM`, a mm² of tissue, as if `per_mm2` had
    been found on a further 0.05 mm².

    Parameters
    ----------
    candidates : Detections
        Scores of the second stage, not calibrated.
    around_mm2 : float [N]
        `tissue_around` them, mm².
    slide_mpp : float
        µm/px of level 0.
    weight : float
        0 changes nothing.
    per_mm2 : float
        Look-alikes per mm² that are no crowd, above 0.
    """
    if not weight or not len(candidates):
        return candidates
    area = np.asarray(around_mm2, dtype=np.float64) + _PRIOR_MM2
    expected = _look_alikes(candidates, SIDE_UM / 2 / slide_mpp) + per_mm2 * _PRIOR_MM2
    crowding = np.log(expected / (area * per_mm2))
    steps = np.rint(expit(log_odds(candidates.score) - weight * crowding) * SCORE_STEPS)
    score = np.where(crowding > 0, np.maximum(steps, 1) / SCORE_STEPS, candidates.score)
    return Detections(candidates.xy, score, candidates.area_um2)


def _look_alikes(candidates: Detections, half: float) -> FloatArray:
    """How many of the others within `half` px in x and in y are look-alikes, by their scores, [N]."""
    steps = np.rint(candidates.score * SCORE_STEPS).astype(np.int64)  # whole numbers, whose sum hangs on no order
    counted = candidates.score >= COUNTED_FROM
    tree, share = cKDTree(candidates.xy[counted]), SCORE_STEPS - steps[counted]
    around = [
        share[near].sum()
        for start in range(0, len(candidates), _CHUNK)
        for near in tree.query_ball_point(candidates.xy[start : start + _CHUNK], half, p=np.inf)
    ]
    return (np.array(around) - np.where(counted, SCORE_STEPS - steps, 0)) / SCORE_STEPS
