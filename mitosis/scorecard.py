"""All that is said of a set of results: by slide, case and domain, under every protocol, with intervals and readers.

Fields of one case are alike, so intervals resample whole cases. Curves, thresholds and false positives on look-alikes
always follow the one-to-one rule, at the radius of the chosen protocol.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mitosis.agreement import BlandAltman, Icc, Mape, bland_altman, count_bias, icc, mape, spearman, weighted_kappa
from mitosis.detections import Detections
from mitosis.evaluation import evaluate
from mitosis.grading import RULES, Rule
from mitosis.intervals import bootstrap_interval, bootstrap_sums
from mitosis.matching import DEFAULT_PROTOCOL, PROTOCOLS, MatchResult, Protocol
from mitosis.ranking import DetectionCurve, RankedCandidates, SlideScores

__all__ = ["FP_RATES", "SCORE_RULE", "CountAgreement", "Row", "Scorecard", "score_slides"]

FP_RATES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a mm² at which recall is given."""

SCORE_RULE = RULES["nottingham-density"]
"""What makes a score of a density: that of `mitosis count --rule nottingham-density`."""

FloatArray = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Row:
    """Results of a slide, a case, a domain, all of them, or a reader.

    Attributes
    ----------
    n_figures, n_found : int
        Marks, and detections at or above the threshold.
    result : MatchResult
        Under the chosen protocol.
    one_to_one : MatchResult
        At the radius of the chosen protocol, whatever else its rule is.
    on_look_alikes : int
        False positives of `one_to_one` that lie on a marked look-alike.
    area_mm2 : float
        NaN where it is not known.
    intervals : dict
        95 % intervals of precision, recall and F1 over cases; NaN for fewer than two.
    """

    name: str
    n_slides: int
    n_figures: int
    n_found: int
    result: MatchResult
    one_to_one: MatchResult
    on_look_alikes: int
    area_mm2: float
    intervals: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class CountAgreement:
    """How well the counts of a counter agree with the reference's, one pair of counts a unit (`slide` or `case`).

    Attributes
    ----------
    truth, found : float64 [n]
        The counts.
    count_bias : float
        Sum of `found` over sum of `truth`, less 1.
    kappa : float
        Quadratic-weighted kappa of the scores by density; NaN where areas are not known.
    """

    who: str
    unit: str
    names: tuple[str, ...]
    truth: FloatArray
    found: FloatArray
    count_bias: float
    mape: Mape
    bland_altman: BlandAltman
    icc: Icc
    spearman: float
    kappa: float


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Everything about a set of results.

    Attributes
    ----------
    thresholds : dict
        Of each slide.
    slides, cases, domains : tuple of Row
        In the order of their names.
    protocols : dict
        The same detections under every protocol, pooled.
    readers : tuple of Row
        Other people's marks, scored like detections on the slides that they marked.
    agreement : tuple of CountAgreement
        Of the model and of each reader, over slides and over cases.
    """

    protocol: Protocol
    thresholds: Mapping[str, float]
    slides: tuple[Row, ...]
    cases: tuple[Row, ...]
    domains: tuple[Row, ...]
    pooled: Row
    protocols: Mapping[str, MatchResult]
    curve: DetectionCurve
    average_precision_interval: Interval
    readers: tuple[Row, ...]
    agreement: tuple[CountAgreement, ...]


class _Scored(NamedTuple):
    """A slide, what came of it, and its case."""

    slide: SlideScores
    case_id: str
    result: MatchResult
    n_found: int
    one_to_one: MatchResult
    on_look_alikes: int


def score_slides(
    slides: Sequence[SlideScores],
    thresholds: Mapping[str, float],
    protocol: Protocol = PROTOCOLS[DEFAULT_PROTOCOL],
    readers: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    score_rule: Rule = SCORE_RULE,
    seed: int = 0,
) -> Scorecard:
    """Score every slide at its threshold.

    Parameters
    ----------
    thresholds : dict
        Slide to least score that counts.
    readers : dict of dicts
        Reader to slide to marked figures, float [N, 2] level-0 px; slides that a reader did not look at are absent.
    score_rule : Rule
        Compares densities; the kappa of counts is that of its scores.
    seed : int
        Of the bootstrap.
    """
    slides = sorted(slides, key=lambda slide: slide.slide)
    scored = [_score(slide, thresholds[slide.slide], protocol) for slide in slides]
    of_reader = {
        name: [
            _score(_with_marks(slide, marks[slide.slide]), 0.5, protocol) for slide in slides if slide.slide in marks
        ]
        for name, marks in (readers or {}).items()
    }
    ranked = RankedCandidates.of(slides, protocol.radius_um)
    return Scorecard(
        protocol,
        dict(sorted(thresholds.items())),
        _rows(scored, lambda one: one.slide.slide, seed),
        _rows(scored, lambda one: one.case_id, seed),
        _rows(scored, lambda one: one.slide.domain, seed),
        _row("all", scored, seed),
        {name: _pool(slides, thresholds, other) for name, other in PROTOCOLS.items()},
        ranked.curve(),
        _average_precision_interval(scored, ranked, seed),
        tuple(_row(name, marked, seed) for name, marked in of_reader.items()),
        tuple(
            _agreement(who, unit, _rows(some, key, seed), score_rule)
            for who, some in {"model": scored, **of_reader}.items()
            for unit, key in (("slide", lambda one: one.slide.slide), ("case", lambda one: one.case_id))
        ),
    )


def _with_marks(slide: SlideScores, marks: ArrayLike) -> SlideScores:
    """The slide with a reader's marks in place of the model's candidates."""
    xy = np.asarray(marks, dtype=np.float64).reshape(-1, 2)
    return replace(slide, candidates=Detections(xy, np.ones(len(xy)), np.zeros(len(xy))))


def _score(slide: SlideScores, threshold: float, protocol: Protocol) -> _Scored:
    score, plain = slide.candidates.score, evaluate([slide], threshold, protocol.radius_um)
    return _Scored(
        slide,
        slide.case_id or slide.slide,
        _result(slide, threshold, protocol),
        int(np.count_nonzero(score > threshold if protocol.strict else score >= threshold)),
        plain.pooled,
        plain.on_look_alikes,
    )


def _result(slide: SlideScores, threshold: float, protocol: Protocol) -> MatchResult:
    truth = np.asarray(slide.figures, dtype=np.float64).reshape(-1, 2) * slide.slide_mpp
    return protocol.score(truth, slide.candidates.xy * slide.slide_mpp, slide.candidates.score, threshold)


def _pool(slides: Sequence[SlideScores], thresholds: Mapping[str, float], protocol: Protocol) -> MatchResult:
    return sum((_result(slide, thresholds[slide.slide], protocol) for slide in slides), MatchResult())


def _rows(scored: Sequence[_Scored], key: Callable[[_Scored], str], seed: int) -> tuple[Row, ...]:
    groups = dict[str, list[_Scored]]()
    for one in scored:
        groups.setdefault(key(one), []).append(one)
    return tuple(_row(name, groups[name], seed) for name in sorted(groups))


def _row(name: str, scored: Sequence[_Scored], seed: int) -> Row:
    return Row(
        name,
        len(scored),
        sum(_n_figures(one.slide) for one in scored),
        sum(one.n_found for one in scored),
        sum((one.result for one in scored), MatchResult()),
        sum((one.one_to_one for one in scored), MatchResult()),
        sum(one.on_look_alikes for one in scored),
        float(sum(one.slide.area_mm2 for one in scored)),
        _intervals(scored, seed),
    )


def _n_figures(slide: SlideScores) -> int:
    return len(np.asarray(slide.figures).reshape(-1, 2))


def _intervals(scored: Sequence[_Scored], seed: int) -> dict[str, Interval]:
    of_case = dict[str, MatchResult]()
    for one in scored:
        of_case[one.case_id] = of_case.get(one.case_id, MatchResult()) + one.result
    totals = np.array([(r.tp, r.fp, r.fn) for r in of_case.values()], dtype=np.float64).reshape(-1, 3)
    return {name: bootstrap_sums(totals, share, seed=seed) for name, share in SHARES.items()}


def _agreement(who: str, unit: str, rows: Sequence[Row], score_rule: Rule) -> CountAgreement:
    truth = np.array([row.n_figures for row in rows], dtype=np.float64)
    found = np.array([row.n_found for row in rows], dtype=np.float64)
    area = np.array([row.area_mm2 for row in rows], dtype=np.float64)
    known, names = area > 0, [c.score for c in score_rule.classes]
    score = [
        [
            names.index(score_rule.score(score_rule.value(n, mm2)))
            for n, mm2 in zip(counts[known], area[known], strict=True)
        ]
        for counts in (truth, found)
    ]
    return CountAgreement(
        who,
        unit,
        tuple(row.name for row in rows),
        truth,
        found,
        count_bias(truth, found),
        mape(truth, found),
        bland_altman(found, truth),
        icc(np.stack([truth, found], axis=1)),
        spearman(truth, found),
        weighted_kappa(score[0], score[1], n_classes=len(names)),
    )


def _share_of(part: tuple[int, int, int], whole: tuple[int, int, int]) -> Callable[[FloatArray], FloatArray]:
    """A share of sums (tp, fp, fn), float64 [R, 3] → [R]; a share of nothing is 1, as in `MatchResult`."""

    def share(sums: FloatArray) -> FloatArray:
        above, below = sums @ np.array(part), sums @ np.array(whole)
        return np.where(below > 0, above / below, 1.0)

    return share


SHARES = {
    "precision": _share_of((1, 0, 0), (1, 1, 0)),
    "recall": _share_of((1, 0, 0), (1, 0, 1)),
    "f1": _share_of((2, 0, 0), (2, 1, 1)),
}


def _average_precision_interval(scored: Sequence[_Scored], ranked: RankedCandidates, seed: int) -> Interval:
    names, case = np.unique(np.array([one.case_id for one in scored], dtype=str), return_inverse=True)

    def average_precision(chosen: Sequence[int]) -> float:
        weights = np.bincount(chosen, minlength=len(names)).astype(np.float64)
        return ranked.curve(weights[case]).average_precision

    return bootstrap_interval(range(len(names)), average_precision, n_resamples=1000, seed=seed)
