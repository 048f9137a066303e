"""Evaluation: per slide and pooled; the threshold that is really the best."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitosis.detections import Detections
from mitosis.errors import AnnotationError
from mitosis.evaluation import (
    MaskOverlap,
    calibration_rows,
    candidate_truth,
    choose_threshold,
    cross_thresholds,
    evaluate,
)
from mitosis.masks import IGNORE
from mitosis.matching import MatchResult
from mitosis.ranking import SlideScores


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


def test_count_threshold_gives_as_many_detections_as_figures():
    found = [(0, 0, 0.9), (100, 0, 0.8), (150, 0, 0.7), (200, 0, 0.2), (250, 0, 0.15)]
    slide = scores([(0, 0), (50, 0), (300, 0)], found)
    threshold = choose_threshold([slide], objective="count")
    assert threshold == 0.45
    assert (slide.candidates.score >= threshold).sum() == 3


@given(st.lists(st.tuples(st.lists(place, min_size=1, max_size=4), found_places), min_size=1, max_size=3))
def test_no_threshold_counts_with_less_bias(data):
    slides = [scores(figures, found) for figures, found in data]
    n_figures = sum(len(figures) for figures, _ in data)

    def bias(threshold):
        result = evaluate(slides, threshold).pooled
        return abs(result.tp + result.fp - n_figures)

    best = max((found[2] for _, some in data for found in some), default=0)
    if evaluate(slides, 0.05).pooled.tp:
        chosen = choose_threshold(slides, objective="count")
        assert chosen <= best  # one that counts nothing at all is no choice
        assert bias(chosen) == min(bias(t) for t in (0.1, 0.3, 0.3001, 0.7, 0.9) if t <= best)


def test_crossed_thresholds_are_chosen_on_the_other_cases():
    a = replace(scores([(0, 0)], [(0, 0, 0.8)]), case_id="a")
    b = replace(scores([(0, 0)], [(0, 0, 0.4), (50, 0, 0.3)], slide="b"), case_id="b")
    again = replace(b, slide="b2")
    assert cross_thresholds([a, b, again]) == {"a": 0.35, "b": 0.4}
    assert choose_threshold([b, again]) == 0.35
    with pytest.raises(AnnotationError, match="only one case"):
        cross_thresholds([b, again])


def test_calibration_rows_hold_each_case_at_each_threshold():
    def slide(name, case, area):
        found = Detections([[50, 50], [200, 20]], [0.9, 0.4], [9, 9])
        return SlideScores(name, 0.5, [(50, 50), (150, 150)], found, case_id=case, area_mm2=area)

    rows = calibration_rows(
        [slide("a", "A", 0.1), slide("b", "A", 0.2), slide("c", "B", 0.3), slide("d", "C", 0)], [0.5, 0.3, 0.5]
    )
    assert [tuple(row.values()) for row in rows] == [
        ("A", 0.5, 2, 0, 2, 0.3),
        ("B", 0.5, 1, 0, 1, 0.3),
        ("A", 0.3, 2, 2, 2, 0.3),
        ("B", 0.3, 1, 1, 1, 0.3),
    ]


def test_mask_overlap_of_a_known_mask():
    mask = np.array([[0, 1, 1, 2], [IGNORE, IGNORE, 0, 1]], dtype=np.uint8)
    found = np.array([[0, 1, 0, 1], [1, 0, 0, 1]], dtype=bool)
    overlap = MaskOverlap.of(mask, found)
    assert overlap == MaskOverlap(n=6, n_marked=3, n_found=3, n_both=2)
    assert (overlap.dice, overlap.iou) == (2 / 3, 0.5)
    assert (overlap.accuracy, overlap.sensitivity, overlap.specificity) == pytest.approx((4 / 6, 2 / 3, 2 / 3))
    assert overlap + overlap == MaskOverlap(12, 6, 6, 4)
    nothing = MaskOverlap()
    assert (nothing.dice, nothing.iou, nothing.accuracy, nothing.sensitivity, nothing.specificity) == (1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="shape"):
        MaskOverlap.of(mask, found[:1])


def test_a_network_that_never_fires_is_nearly_always_right_and_of_no_use():
    mask = np.zeros((200, 200), dtype=np.uint8)
    mask[5:10, 5:10] = 1
    overlap = MaskOverlap.of(mask, np.zeros(mask.shape, dtype=bool))
    assert overlap.accuracy > 0.999
    assert (overlap.dice, overlap.sensitivity, overlap.specificity) == (0, 0, 1)


def test_each_figure_makes_one_candidate_true():
    """Two candidates within 7.5 µm of one figure, one far away: one of the two is it."""
    found = Detections([(100, 100), (104, 100), (500, 500)], [0.4, 0.6, 0.2], np.zeros(3))
    score, truth = candidate_truth([SlideScores("S", 0.5, [(103, 100)], found)])
    assert score.tolist() == found.score.tolist()
    assert truth.tolist() == [False, True, False]
    assert [len(part) for part in candidate_truth([])] == [0, 0]
