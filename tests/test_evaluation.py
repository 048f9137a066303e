"""Evaluation: per slide and pooled; the threshold that is really the best."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitosis.detections import Detections
from mitosis.errors import AnnotationError
from mitosis.evaluation import SlideScores, average_precision, choose_threshold, evaluate, recall_at
from mitosis.matching import MatchResult


def scores(figures, found, look_alikes=(), slide="a", slide_mpp=1.0):
    rows = np.array(found, dtype=float).reshape(-1, 3)
    return SlideScores(slide, slide_mpp, figures, Detections(rows[:, :2], rows[:, 2], rows[:, 2] * 0), look_alikes)


def test_slides_are_matched_apart_and_pooled():
    slides = [
        scores([(0, 0), (50, 0)], [(1, 0, 0.9), (80, 0, 0.9), (90, 0, 0.9), (50, 0, 0.2)], [(81, 0)], "a"),
        scores([(0, 0)], [], slide="b"),
        scores([], [(50, 0, 0.5)], slide="c"),
    ]
    evaluation = evaluate(slides, threshold=0.5)
    assert [s.result for s in evaluation.slides] == [MatchResult(1, 2, 1), MatchResult(fn=1), MatchResult(fp=1)]
    assert evaluation.pooled == MatchResult(1, 3, 2)
    assert [s.on_look_alikes for s in evaluation.slides] == [1, 0, 0]
    assert evaluation.on_look_alikes == 1


def test_radius_is_in_um():
    slide = scores([(0, 0)], [(20, 0, 0.9)], slide_mpp=0.25)
    assert evaluate([slide], 0.5).pooled.tp == 1
    assert evaluate([scores([(0, 0)], [(20, 0, 0.9)], slide_mpp=0.5)], 0.5).pooled.tp == 0


def test_no_slides_give_an_empty_result():
    assert evaluate([], 0.5).pooled == MatchResult()


place = st.tuples(st.integers(0, 20), st.integers(0, 20))
found_places = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from([0.1, 0.3, 0.30010, 0.7, 0.9])), max_size=8
)


@given(st.lists(st.tuples(st.lists(place, min_size=1, max_size=4), found_places), min_size=1, max_size=3))
def test_chosen_threshold_is_the_best_of_all(data):
    slides = [scores(figures, found) for figures, found in data]
    best = max(evaluate(slides, t).pooled.f1 for t in (0.1, 0.3, 0.3001, 0.7, 0.9))
    assert evaluate(slides, choose_threshold(slides)).pooled.f1 == pytest.approx(best)


def test_threshold_lies_in_the_middle_of_the_best_stretch():
    slide = scores([(0, 0), (50, 0)], [(0, 0, 0.9), (50, 0, 0.8), (100, 0, 0.2)])
    assert choose_threshold([slide]) == 0.5
    assert choose_threshold([scores([(0, 0)], [(0, 0, 0.9001), (90, 0, 0.9)])]) == 0.9001
    assert choose_threshold([scores([(0, 0)], [(0, 0, 0.8)])]) == 0.4


def test_of_equal_stretches_the_longest_wins():
    found = [(0, 0, 0.9), (100, 0, 0.88), (150, 0, 0.87), (50, 0, 0.8), (200, 0, 0.2)]
    slide = scores([(0, 0), (50, 0), (300, 0)], found)
    assert evaluate([slide], 0.9).pooled.f1 == 0.5
    tied = scores([(0, 0), (50, 0)], [(0, 0, 0.9), (100, 0, 0.88), (50, 0, 0.8), (150, 0, 0.7), (200, 0, 0.1)])
    assert choose_threshold([tied]) == 0.75


def test_threshold_without_a_hit_is_one_half_and_without_figures_an_error():
    assert choose_threshold([scores([(0, 0)], [(99, 0, 0.9)])]) == 0.5
    with pytest.raises(AnnotationError, match="no mitotic figure"):
        choose_threshold([scores([], [(0, 0, 0.5)])])


def test_average_precision_of_a_known_curve():
    """Found in order: true, false, true; the third figure is never found."""
    slide = scores([(0, 0), (50, 0), (300, 0)], [(0, 0, 0.9), (100, 0, 0.8), (50, 0, 0.7), (200, 0, 0.1)])
    assert average_precision([slide]) == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    split = [scores([(0, 0)], [(0, 0, 0.9), (100, 0, 0.8)]), scores([(50, 0), (300, 0)], [(50, 0, 0.7), (200, 0, 0.1)])]
    assert average_precision(split) == pytest.approx(average_precision([slide]))


def test_equal_scores_are_one_point_of_the_curve():
    slide = scores([(0, 0)], [(0, 0, 0.9), (100, 0, 0.9)])
    assert average_precision([slide]) == 0.5
    assert recall_at([slide], 0.5, 1.0) == 0
    assert recall_at([slide], 1.0, 1.0) == 1


def test_recall_is_that_of_the_most_detections_with_few_enough_false_positives():
    slide = scores([(0, 0), (50, 0)], [(0, 0, 0.9), (100, 0, 0.8), (50, 0, 0.7), (200, 0, 0.1)])
    assert [recall_at([slide], fp, 2.0) for fp in (0, 0.49, 0.5, 9)] == [0.5, 0.5, 1.0, 1.0]


def test_without_figures_nan_and_without_candidates_nothing():
    for measure in (average_precision, lambda slides: recall_at(slides, 1, 1)):
        assert np.isnan(measure([scores([], [(0, 0, 0.5)])]))
        assert measure([scores([(0, 0)], [])]) == 0


@given(st.lists(st.tuples(st.lists(place, min_size=1, max_size=4), found_places), min_size=1, max_size=3))
def test_average_precision_is_the_sum_over_all_thresholds(data):
    slides = [scores(figures, found) for figures, found in data]
    area, before = 0.0, 0.0
    for threshold in (0.9, 0.7, 0.3001, 0.3, 0.1):
        result = evaluate(slides, threshold).pooled
        area += (result.recall - before) * result.precision
        before = result.recall
    assert average_precision(slides) == pytest.approx(area)
