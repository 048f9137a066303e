"""What a protocol of scoring is: a radius, a rule, and where both come from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mitosis.matching.neighbours import as_points
from mitosis.matching.result import MatchResult

__all__ = ["Protocol", "Rule"]

Rule = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float], MatchResult]
"""``(truth_um [N, 2], found_um [M, 2], scores [M], radius_um) -> MatchResult``, of points that are already checked and
detections that already reach the threshold."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """One published way to score detections against marks.

    Attributes
    ----------
    name : str
    radius_um : float
        How far a detection may lie from a mark, µm, inclusive.
    rule : callable
        Which detections and marks count as found; see `Rule`.
    source : str
        Paper or evaluator that it reproduces.
    quirks : str
        What is odd about it and must be known to whoever reads its numbers.
    strict : bool
        A detection counts if its score is above the threshold; otherwise at the threshold too.
    """

    name: str
    radius_um: float
    rule: Rule
    source: str
    quirks: str
    strict: bool = False

    def score(self, truth_um: ArrayLike, found_um: ArrayLike, scores: ArrayLike, threshold: float = 0.0) -> MatchResult:
        """Score one slide.

        Parameters
        ----------
        truth_um : float [N, 2]
            Marks, µm; in the order of their file, which some rules depend on.
        found_um : float [M, 2]
            Detections, µm.
        scores : float [M]
            Their scores.
        threshold : float
            Least score of a detection that counts (with `strict`: scores above it count).

        Raises
        ------
        ValueError
            Points are not finite [N, 2], scores are not one finite number a detection, or the threshold is NaN.
        """
        truth, found = as_points(truth_um, "truth_um"), as_points(found_um, "found_um")
        score = np.asarray(scores, dtype=np.float64)
        if score.shape != (len(found),) or not np.isfinite(score).all():
            raise ValueError(f"scores: expected {len(found)} finite numbers, but got an array of shape {score.shape}")
        if np.isnan(threshold):
            raise ValueError("threshold: expected a number, but got NaN")
        counts = score > threshold if self.strict else score >= threshold
        return self.rule(truth, found[counts], score[counts], self.radius_um)
