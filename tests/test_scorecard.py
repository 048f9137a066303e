"""The scorecard: rows that add up, intervals over cases, readers beside the model."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitosis.detections import Detections
from mitosis.matching import PROTOCOLS, MatchResult
from mitosis.ranking import SlideScores
from mitosis.scorecard import SCORE_RULE, score_slides


def slide(name, figures, found, case="", domain="", area_mm2=1.0, look_alikes=()):
    rows = np.array(found, dtype=float).reshape(-1, 3)
    candidates = Detections(rows[:, :2], rows[:, 2], rows[:, 2] * 0)
    return SlideScores(name, 1.0, figures, candidates, look_alikes, case, domain, area_mm2)


SLIDES = [
    slide("a1", [(0, 0), (50, 0)], [(1, 0, 0.9), (90, 0, 0.8), (50, 0, 0.2)], "a", "x", look_alikes=[(91, 0)]),
    slide("a2", [(0, 0)], [(0, 1, 0.9)], "a", "x"),
    slide("b1", [], [(5, 5, 0.6)], "b", "y", area_mm2=0.5),
    slide("c1", [(9, 9)], [], "c", "y"),
]
HALF = {one.slide: 0.5 for one in SLIDES}


def test_rows_add_up():
    card = score_slides(SLIDES, HALF)
    assert [row.name for row in card.slides] == ["a1", "a2", "b1", "c1"]
    assert [row.result for row in card.cases] == [MatchResult(2, 1, 1), MatchResult(fp=1), MatchResult(fn=1)]
    assert [(row.name, row.n_slides) for row in card.domains] == [("x", 2), ("y", 2)]
    assert card.pooled.result == MatchResult(2, 2, 2)
    assert (card.pooled.n_figures, card.pooled.n_found, card.pooled.on_look_alikes) == (4, 4, 1)
    assert card.pooled.area_mm2 == 3.5
    assert sum((row.result for row in card.domains), MatchResult()) == card.pooled.result


def test_a_slide_without_a_case_is_one_of_its_own():
    card = score_slides([slide("p", [], []), slide("q", [(0, 0)], [])], {"p": 0.5, "q": 0.5})
    assert [row.name for row in card.cases] == ["p", "q"]
    assert [row.name for row in card.domains] == [""]


def test_every_slide_has_its_own_threshold():
    assert score_slides(SLIDES, {**HALF, "a1": 0.1}).pooled.result == MatchResult(3, 2, 1)


def test_all_protocols_score_the_same_detections():
    twice = slide("t", [(0, 0)], [(1, 0, 0.9), (-7, 0, 0.9)])
    card = score_slides([twice], {"t": 0.5})
    assert set(card.protocols) == set(PROTOCOLS)
    assert card.protocols["optimal"] == card.pooled.result == MatchResult(1, 1, 0)
    assert card.protocols["amida-tupac"] == MatchResult(1, 0, 0)
    other = score_slides([twice], {"t": 0.5}, PROTOCOLS["amida-tupac"])
    assert other.pooled.result == MatchResult(1, 0, 0)


def test_intervals_are_over_cases_and_lie_round_the_value():
    card = score_slides(SLIDES, HALF)
    low, high = card.pooled.intervals["f1"]
    assert low <= card.pooled.result.f1 <= high
    assert low < high
    assert np.isnan(card.cases[0].intervals["f1"]).all()
    low, high = card.average_precision_interval
    assert low <= card.curve.average_precision <= high
    assert card.pooled.intervals == score_slides(SLIDES[::-1], HALF).pooled.intervals


def test_cases_that_are_all_alike_leave_no_doubt():
    alike = [slide(name, [(0, 0), (50, 0)], [(0, 0, 0.9), (99, 0, 0.9)], name) for name in "abcd"]
    card = score_slides(alike, dict.fromkeys("abcd", 0.5))
    assert card.pooled.intervals["f1"] == (0.5, 0.5)
    assert card.average_precision_interval == (card.curve.average_precision,) * 2


def test_readers_are_scored_on_the_slides_they_marked():
    readers = {"sure": {one.slide: one.figures for one in SLIDES}, "lazy": {"a1": [(0, 0)], "c1": []}}
    card = score_slides(SLIDES, HALF, readers=readers)
    assert [(row.name, row.n_slides) for row in card.readers] == [("sure", 4), ("lazy", 2)]
    assert card.readers[0].result == MatchResult(4, 0, 0)
    assert card.readers[1].result == MatchResult(1, 0, 2)
    agreement = {(one.who, one.unit): one for one in card.agreement}
    assert set(agreement) == {(who, unit) for who in ("model", "sure", "lazy") for unit in ("slide", "case")}
    sure = agreement["sure", "slide"]
    assert (sure.count_bias, sure.bland_altman.bias, sure.icc.value, sure.spearman) == (0, 0, 1, pytest.approx(1))
    assert (sure.mape.percent, sure.mape.n_left_out, sure.kappa) == (0, 1, 1)
    assert agreement["model", "case"].truth.tolist() == [3, 0, 1]
    assert agreement["model", "case"].found.tolist() == [3, 1, 0]
    assert agreement["lazy", "slide"].count_bias == pytest.approx(-2 / 3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_more_false_positives_lie_on_look_alikes_than_there_are(protocol):
    """Of two detections on one figure `amida-tupac` ignores the second, which lies on a look-alike."""
    twice = slide("a", [(0, 0)], [(0, 0, 0.9), (3, 0, 0.8), (50, 0, 0.5)], look_alikes=[(3, 0), (50, 0)])
    row = score_slides([twice], {"a": 0.5}, PROTOCOLS[protocol]).pooled
    assert row.one_to_one == MatchResult(1, 2, 0)
    assert row.on_look_alikes == 2


def test_densities_between_two_scores_are_those_that_the_rule_of_a_count_gives():
    """Between 3 and 4 a mm² lie score 1 and 2."""
    some = [slide(name, [(0, 0)] * n, [(0, 0, 0.9)] * n, area_mm2=2.37) for name, n in (("a", 7), ("b", 8))]
    thrice = [replace(some[0], candidates=some[1].candidates), some[1]]
    assert SCORE_RULE.score(SCORE_RULE.value(7, 2.37)) == "1"
    assert SCORE_RULE.score(SCORE_RULE.value(8, 2.37)) == "2"
    assert score_slides(some, {"a": 0.5, "b": 0.5}).agreement[0].kappa == 1
    assert score_slides(thrice, {"a": 0.5, "b": 0.5}).agreement[0].kappa == 0


def test_scores_follow_the_density():
    """3 and 9 a mm² are scores 1 and 3; counted as 3 and 6 they are 1 and 2."""
    grid = [(100.0 * i, 0.0) for i in range(9)]
    some = [
        slide("p", grid[:3], [(x, y, 0.9) for x, y in grid[:3]]),
        slide("q", grid, [(x, y, 0.9) for x, y in grid[:6]]),
    ]
    model = score_slides(some, {"p": 0.5, "q": 0.5}).agreement[0]
    assert model.kappa == pytest.approx(1 - 0.5 / 1.5)
    unknown = [slide(one.slide, one.figures, [], area_mm2=float("nan")) for one in some]
    assert np.isnan(score_slides(unknown, {"p": 0.5, "q": 0.5}).agreement[0].kappa)


def test_nothing_at_all_is_defined():
    card = score_slides([], {})
    assert card.pooled.result == MatchResult()
    assert card.slides == card.cases == card.domains == ()
    assert np.isnan(card.curve.average_precision)
    assert np.isnan(card.average_precision_interval).all()


points = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4)
found = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.sampled_from([0.2, 0.6, 0.9])), max_size=5)


@settings(deadline=None, max_examples=25)  # each draws a thousand resamples twice
@given(st.lists(st.tuples(points, found, st.sampled_from("ab")), max_size=4))
def test_order_of_slides_does_not_matter_and_sums_hold(data):
    slides = [slide(f"s{i}", *rest) for i, rest in enumerate(data)]
    thresholds = {one.slide: 0.5 for one in slides}
    card, turned = score_slides(slides, thresholds), score_slides(slides[::-1], thresholds)
    assert card.slides == turned.slides or np.isnan(card.pooled.intervals["f1"]).any()
    assert card.pooled.result == turned.pooled.result
    assert card.protocols == turned.protocols
    assert sum((row.result for row in card.cases), MatchResult()) == card.pooled.result
    assert card.pooled.n_figures == card.pooled.result.tp + card.pooled.result.fn
