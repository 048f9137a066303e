"""The curves: every threshold at once."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from mitosis.detections import Detections
from mitosis.evaluation import evaluate
from mitosis.ranking import DetectionCurve, RankedCandidates, SlideScores


def scores(figures, found, slide="a", area_mm2=float("nan")):
    rows = np.array(found, dtype=float).reshape(-1, 3)
    return SlideScores(slide, 1.0, figures, Detections(rows[:, :2], rows[:, 2], rows[:, 2] * 0), area_mm2=area_mm2)


def recall_at(slides, fp_per_mm2, area_mm2):
    return replace(DetectionCurve.of(slides), area_mm2=area_mm2).recall_at(fp_per_mm2)


place = st.tuples(st.integers(0, 20), st.integers(0, 20))
found_places = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from([0.1, 0.3, 0.30010, 0.7, 0.9])), max_size=8
)
slide_lists = st.lists(st.tuples(st.lists(place, min_size=1, max_size=4), found_places), min_size=1, max_size=3)


def test_average_precision_of_a_known_curve():
    """Found in order: true, false, true; the third figure is never found."""
    slide = scores([(0, 0), (50, 0), (300, 0)], [(0, 0, 0.9), (100, 0, 0.8), (50, 0, 0.7), (200, 0, 0.1)])
    assert DetectionCurve.of([slide]).average_precision == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    split = [scores([(0, 0)], [(0, 0, 0.9), (100, 0, 0.8)]), scores([(50, 0), (300, 0)], [(50, 0, 0.7), (200, 0, 0.1)])]
    assert DetectionCurve.of(split).average_precision == pytest.approx(DetectionCurve.of([slide]).average_precision)


def test_equal_scores_are_one_point_of_the_curve():
    slide = scores([(0, 0)], [(0, 0, 0.9), (100, 0, 0.9)])
    assert DetectionCurve.of([slide]).average_precision == 0.5
    assert recall_at([slide], 0.5, 1.0) == 0
    assert recall_at([slide], 1.0, 1.0) == 1


def test_recall_is_that_of_the_most_detections_with_few_enough_false_positives():
    slide = scores([(0, 0), (50, 0)], [(0, 0, 0.9), (100, 0, 0.8), (50, 0, 0.7), (200, 0, 0.1)])
    assert [recall_at([slide], fp, 2.0) for fp in (0, 0.49, 0.5, 9)] == [0.5, 0.5, 1.0, 1.0]


def test_without_figures_nan_and_without_candidates_nothing():
    for measure in (lambda slides: DetectionCurve.of(slides).average_precision, lambda s: recall_at(s, 1, 1)):
        assert np.isnan(measure([scores([], [(0, 0, 0.5)])]))
        assert measure([scores([(0, 0)], [])]) == 0


@given(slide_lists)
def test_average_precision_is_the_sum_over_all_thresholds(data):
    slides = [scores(figures, found) for figures, found in data]
    area, before = 0.0, 0.0
    for threshold in (0.9, 0.7, 0.3001, 0.3, 0.1):
        result = evaluate(slides, threshold).pooled
        area += (result.recall - before) * result.precision
        before = result.recall
    assert DetectionCurve.of(slides).average_precision == pytest.approx(area)


def test_average_precision_is_that_of_scikit_learn_where_every_figure_is_found():
    rng = np.random.default_rng(0)
    step = rng.integers(1, 200, 300) * 0.005
    true = rng.random(300) < step
    found = [(30 * i, 0, s) for i, s in enumerate(step)]
    slide = scores([(30 * i, 0) for i in np.flatnonzero(true)], found)
    assert DetectionCurve.of([slide]).average_precision == pytest.approx(average_precision_score(true, step))


def test_froc_area_of_a_known_curve():
    """Recall 0.5 without a false positive, 1.0 from one a mm² on."""
    slide = scores([(0, 0), (50, 0)], [(0, 0, 0.9), (100, 0, 0.8), (150, 0, 0.8), (50, 0, 0.7)], area_mm2=2.0)
    curve = DetectionCurve.of([slide])
    assert curve.fp_per_mm2.tolist() == [0, 1, 1]
    assert curve.recall.tolist() == [0.5, 0.5, 1.0]
    assert curve.froc_area(2.0) == pytest.approx((1 * 0.5 + 1 * 1.0) / 2)
    assert curve.froc_area(0.5) == pytest.approx(0.5)


@given(slide_lists, st.floats(0.1, 20))
def test_froc_area_is_the_mean_of_recall_at(data, limit):
    slides = [scores(figures, found, area_mm2=1.0) for figures, found in data]
    curve = DetectionCurve.of(slides)
    rates = (np.arange(2000) + 0.5) / 2000 * limit
    assert curve.froc_area(limit) == pytest.approx(np.mean([curve.recall_at(r) for r in rates]), abs=1e-2)


def test_nothing_found_nothing_marked_and_no_area_are_defined_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = DetectionCurve.of([])
        assert np.isnan([nothing.average_precision, nothing.recall_at(1), nothing.froc_area()]).all()
        blind = DetectionCurve.of([scores([(0, 0)], [], area_mm2=1.0)])
        assert (blind.average_precision, blind.recall_at(1), blind.froc_area()) == (0, 0, 0)
        unmarked = DetectionCurve.of([scores([], [(0, 0, 0.5)], area_mm2=0.0)])
        assert np.isnan([*unmarked.recall, *unmarked.fp_per_mm2, unmarked.froc_area()]).all()


@given(slide_lists, st.data())
def test_a_weight_is_a_number_of_copies(data, draw):
    slides = [scores(figures, found, str(i), 1.0 + i) for i, (figures, found) in enumerate(data)]
    weights = draw.draw(st.lists(st.integers(0, 3), min_size=len(slides), max_size=len(slides)))
    weighted = RankedCandidates.of(slides).curve(np.array(weights, dtype=float))
    copied = DetectionCurve.of([s for s, n in zip(slides, weights, strict=True) for _ in range(n)])
    assert weighted.score.tolist() == copied.score.tolist()
    assert weighted.n_found.tolist() == copied.n_found.tolist()
    assert weighted.n_true.tolist() == copied.n_true.tolist()
    assert (weighted.n_figures, weighted.area_mm2) == (copied.n_figures, pytest.approx(copied.area_mm2))
