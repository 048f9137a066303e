"""Candidates in a crowd score less, by a formula that is computed anew here; the others stay as they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from mitosis.crowding import COUNTED_FROM, SIDE_UM, discount_crowds, tissue_around
from mitosis.detections import Detections
from mitosis.tissue import TissueMask

MPP = 0.5
HALF = SIDE_UM / 2 / MPP
STEPS = st.integers(1, 10_000).map(lambda steps: steps / 10_000)
PLACES = st.tuples(st.integers(0, 3000), st.integers(0, 3000))
CANDIDATES = st.lists(st.tuples(PLACES, STEPS), max_size=40)


def detections(rows):
    xy = np.array([place for place, _ in rows], dtype=float).reshape(-1, 2)
    return Detections(xy, np.array([score for _, score in rows]), np.zeros(len(rows)))


def cluster(n, score=0.6, at=(1000.0, 1000.0)):
    """So many candidates within some µm of a place."""
    return [((at[0] + 20 * i, at[1]), score) for i in range(n)]


def discounted(rows, area=0.25, weight=1.0, per_mm2=10.0):
    return discount_crowds(detections(rows), np.full(len(rows), area), MPP, weight, per_mm2).score


@given(CANDIDATES, st.floats(0.01, 3), st.floats(1, 200), st.floats(0.001, 0.25))
def test_it_is_what_the_formula_says(rows, weight, per_mm2, area):
    found = discounted(rows, area, weight, per_mm2)
    for (place, score), after in zip(rows, found, strict=True):
        near = [s for p, s in rows if max(abs(np.subtract(p, place))) <= HALF and s >= COUNTED_FROM]
        others = sum(1 - s for s in near) - (1 - score if score >= COUNTED_FROM else 0)
        times = (others + 0.05 * per_mm2) / (area + 0.05) / per_mm2
        odds = logit(min(score, 0.99995)) - weight * max(0, np.log(times))
        assert after == pytest.approx(expit(odds) if times > 1 else score, abs=1.01e-4)


@given(CANDIDATES, st.floats(0, 4), st.randoms())
def test_no_score_rises_and_order_is_nothing_to_it(rows, weight, random):
    found = discounted(rows, weight=weight)
    assert (found <= detections(rows).score).all()
    assert found.min(initial=1.0) >= 1e-4
    order = list(range(len(rows)))
    random.shuffle(order)
    np.testing.assert_array_equal(discounted([rows[i] for i in order], weight=weight), found[order])


def test_the_more_there_are_the_less_each_scores():
    scores = [discounted(cluster(n))[0] for n in (1, 7, 9, 12, 24)]
    assert scores[0] == scores[1] == 0.6  # 6 others, of which 2.4 are look-alikes: on 0.25 mm² fewer than 10 a mm²
    assert (np.diff(scores[1:]) < 0).all()


def test_weight_0_changes_nothing_and_none_are_no_crowd():
    assert discounted(cluster(30), weight=0.0).tolist() == [0.6] * 30
    assert len(discounted([])) == 0


def test_only_what_scores_enough_and_lies_near_makes_a_crowd():
    faint = cluster(30, score=0.05, at=(1000.0, 1100.0))
    far = cluster(30, at=(1000.0, 1000.0 + HALF + 1))
    lone = cluster(1)
    assert discounted(lone + faint)[0] == discounted(lone + far)[0] == 0.6
    near = cluster(30, at=(1000.0, 1000.0 + HALF))
    assert discounted(lone + near)[0] < 0.5
    assert discounted(cluster(1, score=0.05) + near)[0] < 0.05


def test_sure_figures_are_no_crowd_of_look_alikes():
    lone = cluster(1)
    assert discounted(lone + cluster(30, score=1.0))[0] == 0.6
    assert discounted(lone + cluster(30, score=0.9))[0] > discounted(lone + cluster(30, score=0.5))[0]


def test_where_little_tissue_is_seen_little_is_said():
    scores = [discounted(cluster(20), area)[0] for area in (0.0005, 0.1, 0.25)]
    assert scores[0] < scores[1] < scores[2] < 0.6  # the fewer mm² hold them, the denser they are
    assert discounted(cluster(1), 0.0005)[0] == 0.6
    assert discounted(cluster(2), 0.0005)[0] > 0.45  # two on a crop of 22 µm: 2000 a mm², and yet hardly a sign


def test_tissue_around_is_what_lies_in_the_square_and_on_the_slide():
    mask = np.ones((100, 100), bool)
    mask[:, 50:] = False
    tissue = TissueMask(mask, 8.0, MPP, (1600, 1600))  # 800 µm, the left half is tissue
    areas = tissue_around([(400, 800), (0, 0), (800, 800), (1599, 800)], tissue)
    assert areas == pytest.approx([0.2, 0.0625, 0.125, 0.0], abs=1e-9)
    assert tissue_around(np.empty((0, 2)), tissue).shape == (0,)
