"""Matching: one to one, as many pairs as possible, then the shortest; in any order of the points."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitosis.matching import MatchResult, gains, match, optimal
from mitosis.matching.neighbours import edges_within, is_near

points = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=7)
radii = st.sampled_from([0.0, 1.0, 2.5, 5.0, 7.5])


def brute_force(truth, found, radius):
    """(number of pairs, least total distance) over every one-to-one matching."""

    @cache
    def best(i, used):
        if i == len(truth):
            return (0, 0.0)
        options = [best(i + 1, used)]
        for j, other in enumerate(found):
            distance = math.dist(truth[i], other)
            if not used >> j & 1 and distance <= radius:
                pairs, total = best(i + 1, used | 1 << j)
                options.append((pairs - 1, total + distance))
        return min(options)

    pairs, total = best(0, 0)
    return -pairs, total


@given(points, points, radii)
def test_equals_brute_force(truth, found, radius):
    matching = match(truth, found, radius)
    n_pairs, total = brute_force(truth, found, radius)
    assert len(matching.pairs) == n_pairs
    assert matching.distances.sum() == pytest.approx(total)


@given(points, points, radii, st.randoms(use_true_random=False))
def test_is_one_to_one_complete_and_independent_of_order(truth, found, radius, random):
    matching = match(truth, found, radius)
    assert len(set(matching.pairs[:, 0])) == len(set(matching.pairs[:, 1])) == len(matching.pairs)
    assert (matching.distances <= radius).all()
    result = matching.result
    assert (result.tp + result.fn, result.tp + result.fp) == (len(truth), len(found))
    assert len(matching.unmatched_found) == result.fp
    assert len(matching.unmatched_truth) == result.fn
    shuffled = match(random.sample(truth, len(truth)), random.sample(found, len(found)), radius)
    assert shuffled.result == result
    assert shuffled.distances.sum() == pytest.approx(matching.distances.sum())
    shift = np.array([7, -3])
    moved = match(np.reshape(truth, (-1, 2)) + shift, np.reshape(found, (-1, 2)) + shift, radius)
    assert moved.result == result


@given(points, points)
def test_is_symmetric_and_grows_with_the_radius(truth, found):
    pairs = [len(match(truth, found, radius).pairs) for radius in (0, 1, 2.5, 5, 7.5, 20)]
    assert pairs == sorted(pairs)
    assert pairs[-1] == min(len(truth), len(found))
    assert pairs == [len(match(found, truth, radius).pairs) for radius in (0, 1, 2.5, 5, 7.5, 20)]


@given(points, points, radii)
def test_gains_count_the_true_positives_of_every_prefix(truth, found, radius):
    gained = np.cumsum(gains(truth, found, radius))
    assert gained.tolist() == [match(truth, found[: k + 1], radius).result.tp for k in range(len(found))]


def test_far_detection_does_not_spoil_a_near_one():
    """Assigning first and cutting at the radius afterwards, as is often done, finds nothing here."""
    matching = match([(0, 0), (10, 0)], [(9, 0), (100, 0)], 7.5)
    assert matching.pairs.tolist() == [[1, 0]]
    assert matching.result == MatchResult(tp=1, fp=1, fn=1)


def test_prefers_two_long_pairs_to_one_short_pair():
    assert match([(0, 0), (10, 0)], [(4, 0), (-5, 0)], 7.5).result == MatchResult(tp=2)


def test_radius_is_inclusive_and_a_duplicate_is_a_false_positive():
    assert match([(0, 0)], [(7.5, 0), (0, 7.5)], 7.5).result == MatchResult(tp=1, fp=1)
    assert match([(0, 0)], [(7.51, 0)], 7.5).result == MatchResult(fp=1, fn=1)
    assert match([(1, 1), (1, 1)], [(1, 1), (1, 1), (1, 1)], 0).result == MatchResult(tp=2, fp=1)


def test_shares_of_nothing_are_one():
    assert match([], [], 1).result.f1 == 1.0
    nothing_found = match([(0, 0)], np.empty((0, 2)), 1).result
    assert (nothing_found.precision, nothing_found.recall, nothing_found.f1) == (1.0, 0.0, 0.0)
    nothing_there = match(np.array([]), [(0, 0)], 1).result
    assert (nothing_there.precision, nothing_there.recall, nothing_there.f1) == (0.0, 1.0, 0.0)


def test_results_add_up():
    pooled = MatchResult(1, 2, 3) + MatchResult(4, 5, 6)
    assert pooled == MatchResult(5, 7, 9)
    assert (pooled.precision, pooled.recall, pooled.f1) == (5 / 12, 5 / 14, 10 / 26)


def test_a_thousand_figures_in_one_crowd_are_matched():
    grid = np.stack(np.meshgrid(np.arange(32), np.arange(32)), axis=-1).reshape(-1, 2) * 4.0
    assert match(grid, grid[::-1] + 1.0, 5.0).result == MatchResult(tp=1024)
    assert gains(grid, grid[::-1] + 1.0, 5.0).all()


@pytest.mark.parametrize("bad", [[(0, np.nan)], [(1, 2, 3)], [1, 2]])
def test_refuses_what_are_not_points(bad):
    with pytest.raises(ValueError, match=r"found_xy: expected finite points \[N, 2\]"):
        match([(0, 0)], bad, 1)


def test_refuses_a_negative_radius():
    with pytest.raises(ValueError, match="radius"):
        match([(0, 0)], [(0, 0)], -1)


def test_a_crowd_solved_as_a_list_of_edges_is_matched_as_well(monkeypatch):
    monkeypatch.setattr(optimal, "DENSE_CELLS", 0)
    test_equals_brute_force()
    test_a_thousand_figures_in_one_crowd_are_matched()


def test_localisation_is_of_the_pairs():
    assert match([(0, 0), (50, 0)], [(1, 0), (50, 3), (99, 0)], 7.5).localisation == (2.0, 1.0)
    assert match([(0, 0)], [(99, 0)], 7.5).localisation == (0.0, 0.0)


@given(points, points, radii)
def test_neighbours_are_all_within_the_radius(truth, found, radius):
    """Identical points too, whose distance of 0 a sparse matrix may drop."""
    a, b = np.reshape(truth, (-1, 2)).astype(float), np.reshape(found, (-1, 2)).astype(float)
    expected = [(i, j) for i, p in enumerate(a) for j, q in enumerate(b) if math.dist(p, q) <= radius]
    edges, distances = edges_within(a, b, radius)
    assert [tuple(edge) for edge in edges.tolist()] == expected
    assert distances == pytest.approx([math.dist(a[i], b[j]) for i, j in expected])
    assert np.flatnonzero(is_near(a, b, radius)).tolist() == sorted({i for i, _ in expected})


def test_a_radius_without_end_reaches_everything():
    assert match([(0, 0), (1e6, 0)], [(5, 5), (9e6, 0)], math.inf).result == MatchResult(tp=2)
