"""How good detections are against an expert's marks, and which threshold is best."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from mitosis.detections import SCORE_STEPS, Detections
from mitosis.errors import AnnotationError
from mitosis.matching import MATCH_RADIUS_UM, MatchResult, gains, match

__all__ = [
    "Evaluation",
    "SlideEvaluation",
    "SlideScores",
    "average_precision",
    "choose_threshold",
    "evaluate",
    "recall_at",
]

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
    """

    slide: str
    slide_mpp: float
    figures: ArrayLike
    candidates: Detections
    look_alikes: ArrayLike = ()


@dataclass(frozen=True, slots=True)
class SlideEvaluation:
    """One slide's result; `on_look_alikes` of its false positives lie on a marked look-alike."""

    slide: str
    result: MatchResult
    on_look_alikes: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of all slides, in the order given, and pooled (micro-averaged)."""

    slides: tuple[SlideEvaluation, ...]
    threshold: float
    radius_um: float

    @property
    def pooled(self) -> MatchResult:
        """True positives, false positives and false negatives of all slides together."""
        return sum((slide.result for slide in self.slides), MatchResult())

    @property
    def on_look_alikes(self) -> int:
        """How many false positives lie on a marked look-alike."""
        return sum(slide.on_look_alikes for slide in self.slides)


def evaluate(slides: Iterable[SlideScores], threshold: float, radius_um: float = MATCH_RADIUS_UM) -> Evaluation:
    """Match the candidates that reach `threshold` with the marked figures of each slide.

    A slide without any detection counts with all its figures missed.
    """
    return Evaluation(tuple(_evaluate_slide(slide, threshold, radius_um) for slide in slides), threshold, radius_um)


def _evaluate_slide(slide: SlideScores, threshold: float, radius_um: float) -> SlideEvaluation:
    radius = radius_um / slide.slide_mpp
    found = slide.candidates[slide.candidates.score >= threshold]
    matching = match(slide.figures, found.xy, radius)
    look_alikes = np.asarray(slide.look_alikes, dtype=np.float64).reshape(-1, 2)
    on_look_alikes = 0
    if len(look_alikes):
        distance, _ = cKDTree(look_alikes).query(found.xy[matching.unmatched_found])
        on_look_alikes = int(np.count_nonzero(distance <= radius))
    return SlideEvaluation(slide.slide, matching.result, on_look_alikes)


def choose_threshold(slides: Iterable[SlideScores], radius_um: float = MATCH_RADIUS_UM) -> float:
    """The threshold with the best F1 over all slides together.

    Every threshold is looked at, at the cost of one. F1 is constant between two neighbouring scores; of the best
    stretches the longest wins (then the one with the fewest detections), and its middle is returned, rounded up to
    1e-4. 0.5 is returned where no candidate lies on a figure.

    Raises
    ------
    AnnotationError
        There is no figure to choose with.
    """
    slides = list(slides)
    n_figures = _count_figures(slides)
    if not n_figures:
        raise AnnotationError("There is no mitotic figure to choose a threshold with. Add marked slides.")
    upper, n_found, n_true = _counts_by_threshold(slides, radius_um)
    if not n_true.any():
        return 0.5
    f1 = 2.0 * n_true / (n_figures + n_found)
    lower = np.append(upper[1:], 0)
    best = np.flatnonzero(f1 == f1.max())
    chosen = best[np.argmax(upper[best] - lower[best])]
    return float(-(-(upper[chosen] + lower[chosen]) // 2)) / SCORE_STEPS


def average_precision(slides: Iterable[SlideScores], radius_um: float = MATCH_RADIUS_UM) -> float:
    """Area under the precision-recall curve of all slides together: precision summed over the steps of recall.

    Nothing is interpolated, and figures that no candidate lies on count as never found. NaN where there is no figure.
    """
    slides = list(slides)
    n_figures = _count_figures(slides)
    if not n_figures:
        return float("nan")
    _, n_found, n_true = _counts_by_threshold(slides, radius_um)
    return float((np.diff(n_true, prepend=0) / n_figures * (n_true / n_found)).sum())


def recall_at(
    slides: Iterable[SlideScores], fp_per_mm2: float, area_mm2: float, radius_um: float = MATCH_RADIUS_UM
) -> float:
    """The highest recall with at most `fp_per_mm2` false positives a mm² (a point of the FROC curve).

    Parameters
    ----------
    area_mm2 : float
        Area of all slides together in which candidates were looked for. NaN is given where there is no figure.
    """
    slides = list(slides)
    n_figures = _count_figures(slides)
    if not n_figures:
        return float("nan")
    _, n_found, n_true = _counts_by_threshold(slides, radius_um)
    allowed = n_found - n_true <= fp_per_mm2 * area_mm2
    return float(n_true[allowed].max(initial=0)) / n_figures


def _count_figures(slides: list[SlideScores]) -> int:
    return sum(len(np.asarray(slide.figures).reshape(-1, 2)) for slide in slides)


def _counts_by_threshold(
    slides: list[SlideScores], radius_um: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Each distinct score in whole steps, falling; how many candidates reach it; how many of them are true."""
    steps, gained = _candidates_by_score(slides, radius_um)
    last = np.flatnonzero(np.append(np.diff(steps), -1)) if len(steps) else np.empty(0, dtype=np.int64)
    return steps[last], (last + 1).astype(np.int64), np.cumsum(gained, dtype=np.int64)[last]


def _candidates_by_score(slides: list[SlideScores], radius_um: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Scores of all slides' candidates in whole steps, falling, and which of them raise the true positives."""
    steps, gained = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=bool)]
    for slide in slides:
        ordered = slide.candidates.sorted()
        steps.append(np.rint(ordered.score * SCORE_STEPS).astype(np.int64))
        gained.append(gains(slide.figures, ordered.xy, radius_um / slide.slide_mpp))
    all_steps = np.concatenate(steps)
    order = np.argsort(-all_steps, kind="stable")
    return all_steps[order], np.concatenate(gained)[order]
