"""How good detections are against an expert's marks, and which threshold is best."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mitosis.detections import SCORE_STEPS
from mitosis.errors import AnnotationError
from mitosis.masks import IGNORE, MITOTIC_FIGURE
from mitosis.matching import MATCH_RADIUS_UM, MatchResult, match
from mitosis.ranking import DetectionCurve, SlideScores

__all__ = [
    "Evaluation",
    "MaskOverlap",
    "Objective",
    "SlideEvaluation",
    "calibration_rows",
    "candidate_truth",
    "choose_threshold",
    "cross_thresholds",
    "evaluate",
]

Objective = Literal["f1", "count"]


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


def choose_threshold(
    slides: Iterable[SlideScores], radius_um: float = MATCH_RADIUS_UM, objective: Objective = "f1"
) -> float:
    """The threshold that is best over all slides together: with the best F1, or with as many detections as figures.

    Every threshold is looked at, at the cost of one. What is judged is constant between two neighbouring scores; of
    the best stretches the longest wins (then the one with the fewest detections), and its middle is returned, rounded
    up to 1e-4. For F1 0.5 is returned where no candidate lies on a figure.

    Parameters
    ----------
    objective : {"f1", "count"}
        `count` gives an unbiased count: false positives make up for what is missed. Something is always counted.

    Raises
    ------
    AnnotationError
        There is no figure to choose with.
    """
    curve = DetectionCurve.of(slides, radius_um)
    if not curve.n_figures:
        raise AnnotationError("There is no mitotic figure to choose a threshold with. Add marked slides.")
    if not curve.n_true.any():
        return 0.5
    if objective == "f1":
        value = 2.0 * curve.n_true / (curve.n_figures + curve.n_found)
    else:
        value = -np.abs(curve.n_found - curve.n_figures)
    upper = np.rint(curve.score * SCORE_STEPS).astype(np.int64)
    lower = np.append(upper[1:], 0)
    best = np.flatnonzero(value == value.max())
    chosen = best[np.argmax(upper[best] - lower[best])]
    return float(-(-(upper[chosen] + lower[chosen]) // 2)) / SCORE_STEPS


def cross_thresholds(
    slides: Sequence[SlideScores], radius_um: float = MATCH_RADIUS_UM, objective: Objective = "f1"
) -> Mapping[str, float]:
    """For each case the threshold chosen on all other cases, so that no case is scored at one chosen on itself.

    Raises
    ------
    AnnotationError
        There is only one case, or the others hold no figure.
    """
    cases = sorted({slide.case_id for slide in slides})
    if len(cases) < 2:
        raise AnnotationError(
            "A threshold is chosen on other cases than those it scores, and there is only one case. "
            "Add slides of other cases, or say with --case-pattern how a slide's name tells its case."
        )
    return {
        case: choose_threshold([slide for slide in slides if slide.case_id != case], radius_um, objective)
        for case in cases
    }


def candidate_truth(slides: Iterable[SlideScores]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Score [N] of every candidate of all slides, and whether it is a figure, one to one within 7.5 µm."""
    scores, truth = [np.empty(0)], [np.empty(0, dtype=bool)]
    for slide in slides:
        pairs = match(slide.figures, slide.candidates.xy, MATCH_RADIUS_UM / slide.slide_mpp).pairs
        scores.append(slide.candidates.score)
        truth.append(np.isin(np.arange(len(slide.candidates)), pairs[:, 1]))
    return np.concatenate(scores), np.concatenate(truth)


def calibration_rows(slides: Sequence[SlideScores], thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """True positives, false positives and false negatives of each case at each threshold, for a model's card.

    Every slide needs its `area_mm2`; a case without any area is left out.
    """
    area = dict[str, float]()
    for slide in slides:
        area[slide.case_id] = area.get(slide.case_id, 0.0) + slide.area_mm2
    rows = []
    for threshold in dict.fromkeys(thresholds):
        sums = {case: MatchResult() for case, size in sorted(area.items()) if size > 0}
        for slide, one in zip(slides, evaluate(slides, threshold).slides, strict=True):
            if slide.case_id in sums:
                sums[slide.case_id] += one.result
        rows += [
            {"case": case, "threshold": threshold, "tp": r.tp, "fp": r.fp, "fn": r.fn, "area_mm2": round(area[case], 6)}
            for case, r in sums.items()
        ]
    return rows


@dataclass(frozen=True, slots=True)
class MaskOverlap:
    """Pixels of predicted against drawn masks; ``a + b`` pools two of them.

    Attributes
    ----------
    n : int
        Pixels that count (those of the ignore label do not).
    n_marked, n_found, n_both : int
        Those that the drawn mask calls figure, the predicted one, and both.
    """

    n: int = 0
    n_marked: int = 0
    n_found: int = 0
    n_both: int = 0

    def __add__(self, other: "MaskOverlap") -> "MaskOverlap":
        return MaskOverlap(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of(cls, mask: NDArray[np.uint8], found: NDArray[np.bool_]) -> "MaskOverlap":
        """Compare a mask, uint8 [H, W] as in `mitosis.masks`, with where a figure was found, bool [H, W]."""
        if mask.shape != found.shape:
            raise ValueError(f"found: expected the mask's shape {mask.shape}, but got {found.shape}")
        counted = mask != IGNORE
        marked, found = (mask == MITOTIC_FIGURE), found & counted
        return cls(int(counted.sum()), int(marked.sum()), int(found.sum()), int((marked & found).sum()))

    @property
    def accuracy(self) -> float:
        """Share of the pixels on which the two agree: above 0.999 for a network that never fires, so of no use."""
        return 1 - (self.n_marked + self.n_found - 2 * self.n_both) / self.n if self.n else 1.0

    @property
    def sensitivity(self) -> float:
        """Share of the marked pixels that were found; 1.0 where none is marked."""
        return self.n_both / self.n_marked if self.n_marked else 1.0

    @property
    def specificity(self) -> float:
        """Share of all other pixels that were not found; 1.0 where every pixel is marked."""
        others = self.n - self.n_marked
        return 1 - (self.n_found - self.n_both) / others if others else 1.0

    @property
    def dice(self) -> float:
        """``2 |A and B| / (|A| + |B|)`` of the pixels; 1.0 where neither has any (Dice, Ecology 1945;26:297-302)."""
        both = self.n_marked + self.n_found
        return 2 * self.n_both / both if both else 1.0

    @property
    def iou(self) -> float:
        """``|A and B| / |A or B|`` of the pixels; 1.0 where neither has any (Jaccard 1912)."""
        either = self.n_marked + self.n_found - self.n_both
        return self.n_both / either if either else 1.0
