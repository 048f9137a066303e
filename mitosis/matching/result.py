"""What comes out of a matching: three numbers, and the pairs behind them where a rule has pairs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MatchResult", "Matching"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MatchResult:
    """True positives, false positives and false negatives; ``a + b`` pools two slides.

    `tp` and `fn` count marks (found and not found), `fp` counts detections. One to one, ``tp + fp`` is the number of
    detections too; under a rule by which one detection may find two marks, or two detections one mark without
    a penalty, it is not, and `precision` is still a share, ``tp / (tp + fp)``.

    A share of nothing is 1.0: where nothing was found nothing found is wrong, and where there is nothing to find and
    nothing was found F1 is 1.0. So every value is a finite number.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: "MatchResult") -> "MatchResult":
        return MatchResult(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def precision(self) -> float:
        """Share of the detections that are true."""
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the marks that were found."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, ``2 tp / (2 tp + fp + fn)``."""
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)


@dataclass(frozen=True, slots=True)
class Matching:
    """Who was matched with whom.

    Attributes
    ----------
    pairs : int64 [K, 2]
        (index of the true point, index of the found point), by the first.
    distances : float64 [K]
        How far the two points of a pair are apart, in the unit of the radius.
    n_truth, n_found : int
        How many points there were.
    """

    pairs: IntArray
    distances: FloatArray
    n_truth: int
    n_found: int

    @property
    def result(self) -> MatchResult:
        """The three numbers."""
        n_pairs = len(self.pairs)
        return MatchResult(n_pairs, self.n_found - n_pairs, self.n_truth - n_pairs)

    @property
    def unmatched_found(self) -> IntArray:
        """Indices of the false positives, ascending."""
        return np.setdiff1d(np.arange(self.n_found), self.pairs[:, 1])

    @property
    def unmatched_truth(self) -> IntArray:
        """Indices of the false negatives, ascending."""
        return np.setdiff1d(np.arange(self.n_truth), self.pairs[:, 0])

    @property
    def localisation(self) -> tuple[float, float]:
        """Mean and standard deviation (of all pairs, ddof 0) of `distances`; (0.0, 0.0) where there is no pair.

        References
        ----------
        "Localisation quality" of the MITOS contest of ICPR 2012, http://ludo17.free.fr/mitos_2012/metrics.html.
        """
        return (float(self.distances.mean()), float(self.distances.std())) if len(self.distances) else (0.0, 0.0)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
