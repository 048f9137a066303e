"""Candidates against marks for every threshold at once: the precision-recall and the FROC curve."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mitosis.detections import SCORE_STEPS, Detections
from mitosis.matching import MATCH_RADIUS_UM, gains

__all__ = ["DetectionCurve", "RankedCandidates", "SlideScores"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SlideScores:
    """One slide's marks and candidates.

    Attributes
    ----------
    slide : str
        Name.
    slide_mpp : float
        µm/px of level 0.
    figures : float [N, 2]
        Marked mitotic figures, level-0 px.
    candidates : Detections
        Merged detections above a low floor.
    look_alikes : float [L, 2]
        Marked non-mitotic figures, level-0 px; they only serve to say what the false positives are.
    case_id, domain : str
        The case, and the scanner, laboratory or tumour; may be empty.
    area_mm2 : float
        Where candidates were looked for; NaN where that is not known.
    """

    slide: str
    slide_mpp: float
    figures: ArrayLike
    candidates: Detections
    look_alikes: ArrayLike = ()
    case_id: str = ""
    domain: str = ""
    area_mm2: float = float("nan")


@dataclass(frozen=True, slots=True)
class DetectionCurve:
    """What every threshold would give, over all slides together: each distinct score, falling, is a point.

    Attributes
    ----------
    score : float64 [K]
        Distinct scores, falling.
    n_found, n_true : float64 [K]
        Candidates that reach the score, and how many figures they find one to one within the radius. Whole numbers,
        unless slides are weighted.
    n_figures : float
        Marked figures.
    area_mm2 : float
        Area of all slides together; NaN where it is not known.
    """

    score: FloatArray
    n_found: FloatArray
    n_true: FloatArray
    n_figures: float
    area_mm2: float

    @classmethod
    def of(cls, slides: Iterable[SlideScores], radius_um: float = MATCH_RADIUS_UM) -> "DetectionCurve":
        """The curve of some slides."""
        return RankedCandidates.of(slides, radius_um).curve()

    @property
    def precision(self) -> FloatArray:
        """Share of the detections that are true, float64 [K]."""
        return np.asarray(self.n_true / self.n_found)

    @property
    def recall(self) -> FloatArray:
        """Share of the figures that are found, float64 [K]; NaN where there is no figure."""
        return np.asarray(self.n_true / (self.n_figures or np.nan))

    @property
    def fp_per_mm2(self) -> FloatArray:
        """False positives a mm², float64 [K]: with `recall` the FROC curve."""
        return np.asarray((self.n_found - self.n_true) / (self.area_mm2 or np.nan))

    @property
    def average_precision(self) -> float:
        """Precision summed over the steps of recall: the area under the curve, nothing interpolated.

        Figures that no candidate lies on count as never found. NaN where there is no figure.
        """
        if not self.n_figures:
            return float("nan")
        return float((np.diff(self.n_true, prepend=0) / self.n_figures * self.precision).sum())

    def recall_at(self, fp_per_mm2: float) -> float:
        """The highest recall with at most so many false positives a mm²; NaN without a figure or an area."""
        if not self.n_figures or not self.area_mm2 > 0:
            return float("nan")
        allowed = self.n_found - self.n_true <= fp_per_mm2 * self.area_mm2
        return float(self.n_true[allowed].max(initial=0)) / self.n_figures

    def froc_area(self, limit: float = 8.0) -> float:
        """Mean of `recall_at` from 0 to `limit` false positives a mm²: the area under the FROC curve over its width.

        0 to 1, where challenges give the area itself (up to 8) and false positives an image. NaN as in `recall_at`.
        """
        if not self.n_figures or not self.area_mm2 > 0:
            return float("nan")
        rate = np.minimum(np.append(self.fp_per_mm2, limit), limit)
        best = np.append(0.0, np.maximum.accumulate(self.recall)) if len(self.score) else np.zeros(1)
        return float((np.diff(rate, prepend=0.0) * best).sum() / limit)


@dataclass(frozen=True, slots=True)
class RankedCandidates:
    """The candidates of all slides in the order of their scores: matched once, weighed as often as wanted.

    Attributes
    ----------
    step : int64 [M]
        Scores in whole steps of 1e-4, falling.
    gained : bool [M]
        Which candidates find a figure that those before them on their slide had not found.
    slide : int64 [M]
        Index of each candidate's slide.
    n_figures, area_mm2 : float64 [S]
        Of each slide.
    """

    step: NDArray[np.int64]
    gained: NDArray[np.bool_]
    slide: NDArray[np.int64]
    n_figures: FloatArray
    area_mm2: FloatArray

    @property
    def score(self) -> FloatArray:
        """Scores, falling, float64 [M]."""
        return self.step / SCORE_STEPS

    @classmethod
    def of(cls, slides: Iterable[SlideScores], radius_um: float = MATCH_RADIUS_UM) -> "RankedCandidates":
        """Match the candidates of each slide, best first."""
        slides = list(slides)
        ordered = [slide.candidates.sorted() for slide in slides]
        steps = [np.rint(found.score * SCORE_STEPS).astype(np.int64) for found in ordered]
        gained = [
            gains(slide.figures, found.xy, radius_um / slide.slide_mpp)
            for slide, found in zip(slides, ordered, strict=True)
        ]
        step = np.concatenate([np.empty(0, np.int64), *steps])
        order = np.argsort(-step, kind="stable")
        return cls(
            step[order],
            np.concatenate([np.empty(0, bool), *gained])[order],
            np.repeat(np.arange(len(slides)), [len(found) for found in ordered])[order],
            np.array([_n_figures(slide) for slide in slides], dtype=np.float64),
            np.array([slide.area_mm2 for slide in slides], dtype=np.float64),
        )

    def curve(self, weights: FloatArray | None = None) -> DetectionCurve:
        """The curve with each slide taken so many times (`weights`, float64 [S]), for a bootstrap."""
        chosen = np.ones(len(self.n_figures)) if weights is None else weights
        weight = chosen[self.slide]
        last = np.flatnonzero(np.append(np.diff(self.step), -1)) if len(self.step) else np.empty(0, dtype=np.int64)
        n_found, n_true = np.cumsum(weight)[last], np.cumsum(weight * self.gained)[last]
        some = np.diff(n_found, prepend=0.0) > 0  # of slides of weight 0 nothing shows
        return DetectionCurve(
            self.step[last][some] / SCORE_STEPS,
            n_found[some],
            n_true[some],
            float(chosen @ self.n_figures),
            float((chosen * self.area_mm2)[chosen > 0].sum()),
        )


def _n_figures(slide: SlideScores) -> int:
    return len(np.asarray(slide.figures).reshape(-1, 2))
