"""Protocols: every published rule of scoring against its own words, and what all of them have in common."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitosis.matching import DEFAULT_PROTOCOL, MATCH_RADIUS_UM, PROTOCOLS, MatchResult, match
from mitosis.matching.ccmct import in_neighbourhoods, suppress

STEP_UM = 1.25
"""All radii but 8 are whole steps, so that points at exactly the radius are common, and a fifth of a step is exact."""
places = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)), max_size=9)


def um(steps):
    return np.reshape(steps, (-1, 2)) * STEP_UM


def detections(random, found, ties=False):
    return np.array([random.randint(1, 3) for _ in found] if ties else random.sample(range(1, 99), len(found))) / 100


# What the evaluators say, in their own words: slow, and one point after the other.


def midog_says(truth, found, radius):
    used = []
    for t in truth:
        free = [(math.dist(t, f), j) for j, f in enumerate(found) if j not in used and math.dist(t, f) <= radius]
        used += [min(free)[1]] if free else []
    return MatchResult(len(used), len(found) - len(used), len(truth) - len(used))


def amida_says(truth, found, radius):
    tp = sum(any(math.dist(t, f) <= radius for f in found) for t in truth)
    return MatchResult(tp, sum(all(math.dist(t, f) > radius for t in truth) for f in found), len(truth) - tp)


def ccmct_says(truth, found, radius):
    every = [*found, *truth]
    hit = set()
    for centre in every:
        inside = [k for k, point in enumerate(every) if math.dist(centre, point) <= radius]
        if min(inside) < len(found) <= max(inside):
            hit |= set(inside)
    tp = sum(k >= len(found) for k in hit)
    return MatchResult(tp, len(found) - (len(hit) - tp), len(truth) - tp)


def nms_says(found, scores, radius):
    left = sorted(range(len(found)), key=lambda j: (-scores[j], found[j][1], found[j][0], j))
    kept = []
    while left:
        kept.append(left[0])
        left = [j for j in left if math.dist(found[j], found[kept[-1]]) > radius]
    return sorted(kept)


@given(places, places, st.randoms(use_true_random=False))
def test_protocols_do_what_the_evaluators_say(truth, found, random):
    truth, found = um(truth), um(found)
    scores = detections(random, found, ties=True)
    assert PROTOCOLS["midog"].score(truth, found, scores) == midog_says(truth, found, 7.5)
    assert PROTOCOLS["amida-tupac"].score(truth, found, scores) == amida_says(truth, found, 7.5)
    assert in_neighbourhoods(truth, found, 6.25) == ccmct_says(truth, found, 6.25)
    kept = suppress(found, scores, 6.25)
    assert kept.tolist() == nms_says(found, scores, 6.25)
    assert PROTOCOLS["ccmct"].score(truth, found, scores) == ccmct_says(truth, found[kept], 6.25)
    for name, radius in (("optimal", 7.5), ("mitos12-5um", 5), ("mitos12-8um", 8)):
        assert PROTOCOLS[name].score(truth, found, scores) == match(truth, found, radius).result


def line(*x):
    return [(a, 0.0) for a in x]


def test_midog_takes_marks_in_the_order_of_their_file():
    score = PROTOCOLS["midog"].score
    assert score(line(0, 10), line(4, -5), [0.9, 0.9]) == MatchResult(1, 1, 1)
    assert score(line(10, 0), line(4, -5), [0.9, 0.9]) == MatchResult(2, 0, 0)
    assert score(line(0), line(1, 2), [0.9, 0.9]) == MatchResult(1, 1, 0)
    assert score(line(0), line(7.5), [0.9]) == MatchResult(1, 0, 0)


def test_midog_gives_the_first_of_two_detections_equally_far_away():
    """The first mark takes the first of -5 and 5; only 5 is left within reach of the second if that is -5."""
    assert PROTOCOLS["midog"].score(line(0, 10), line(-5, 5), [0.1, 0.9]) == MatchResult(2, 0, 0)
    assert PROTOCOLS["midog"].score(line(0, 10), line(5, -5), [0.1, 0.9]) == MatchResult(1, 1, 1)


def test_amida_lets_a_circle_hold_many_and_a_detection_serve_two():
    score = PROTOCOLS["amida-tupac"].score
    assert score(line(0), line(1, -7, 7.5, 7.75), [0.9] * 4) == MatchResult(1, 1, 0)
    both = score(line(0, 10), line(5), [0.9])
    assert both == MatchResult(2, 0, 0)
    assert (both.precision, both.recall, both.f1) == (1.0, 1.0, 1.0)


def test_ccmct_counts_neighbourhoods():
    """In px of 0.25 µm, as in the evaluator."""
    px = 0.25
    assert in_neighbourhoods(line(0, 24 * px), line(48 * px), 25 * px) == MatchResult(2, 0, 0)
    assert in_neighbourhoods(line(0, 40 * px), line(20 * px), 25 * px) == MatchResult(2, 0, 0)
    assert in_neighbourhoods(line(0), line(-10 * px, 10 * px), 25 * px) == MatchResult(1, 0, 0)
    assert in_neighbourhoods(line(0), line(24 * px, 48 * px), 25 * px) == MatchResult(1, 0, 0)
    assert in_neighbourhoods(line(0), line(25 * px), 25 * px) == MatchResult(1, 0, 0)
    assert in_neighbourhoods(line(0), line(26 * px), 25 * px) == MatchResult(0, 1, 1)
    chain = PROTOCOLS["ccmct"].score(line(0, 24 * px), line(48 * px), [0.9])
    assert chain == MatchResult(2, 0, 0)


def test_ccmct_drops_what_is_near_a_better_detection_first():
    assert suppress(line(0, 6.25, 12.5), [0.7, 0.8, 0.9], 6.25).tolist() == [0, 2]
    assert suppress(line(0, 6.5), [0.7, 0.8], 6.25).tolist() == [0, 1]
    assert suppress([(3, 1), (2, 1), (9, 0)], [0.5] * 3, 6.25).tolist() == [1, 2]
    assert suppress(line(1, 1, 2), [0.5] * 3, 0.0).tolist() == [0, 2]
    assert PROTOCOLS["ccmct"].score(line(0), line(1, -1), [0.8, 0.9]) == MatchResult(1, 0, 0)
    assert PROTOCOLS["ccmct"].score(line(-6, 6), line(-6, 0), [0.8, 0.9]) == MatchResult(2, 0, 0)


def test_mitos12_has_two_radii():
    truth, found, scores = line(0, 50, 100), line(5, 57.5, 108, 109), [0.9] * 4
    assert PROTOCOLS["mitos12-5um"].score(truth, found, scores) == MatchResult(1, 3, 2)
    assert PROTOCOLS["mitos12-8um"].score(truth, found, scores) == MatchResult(3, 1, 0)


def test_the_default_is_the_rule_of_match():
    assert PROTOCOLS[DEFAULT_PROTOCOL].radius_um == MATCH_RADIUS_UM
    assert PROTOCOLS[DEFAULT_PROTOCOL].score(line(0, 10), line(9, 100), [1, 1]) == MatchResult(1, 1, 1)


def test_a_crowd_of_identical_detections_finds_one_mark():
    found = np.zeros((3000, 2))
    for name, protocol in PROTOCOLS.items():
        result = protocol.score([(0, 0)], found, np.ones(3000))
        assert result == MatchResult(1, 0 if name in ("ccmct", "amida-tupac") else 2999, 0), name


@pytest.mark.parametrize("name", PROTOCOLS)
class TestEveryProtocol:
    def test_is_described(self, name):
        protocol = PROTOCOLS[name]
        assert protocol.name == name
        assert protocol.source
        assert protocol.quirks.endswith(".")

    def test_has_defined_values_at_the_edges(self, name):
        score = PROTOCOLS[name].score
        assert score([(0, 0), (50, 0)], [(50, 1), (0, 1)], [0.9, 0.8]) == MatchResult(tp=2)
        assert score([], [], []) == MatchResult()
        assert score([(0, 0), (9, 9)], [], []) == MatchResult(fn=2)
        assert score(np.empty((0, 2)), [(0, 0), (50, 50)], [0.9, 0.8]) == MatchResult(fp=2)
        assert score([(3, 3)], [(3, 3)], [0.9]) == MatchResult(tp=1)
        assert score([(0, 0)], [(100, 0)], [0.9]) == MatchResult(0, 1, 1)

    def test_applies_the_threshold(self, name):
        protocol = PROTOCOLS[name]
        at = [protocol.score(line(0), line(0, 50), [0.5, 0.4], threshold) for threshold in (0.3, 0.5, 0.6)]
        missed = MatchResult(fn=1)
        assert at == [MatchResult(1, 1, 0), missed if protocol.strict else MatchResult(tp=1), missed]
        assert protocol.strict == (name in ("ccmct", "amida-tupac"))
        other = replace(protocol, strict=not protocol.strict)
        assert other.score(line(0), line(0), [0.5], 0.5).tp != at[1].tp

    def test_takes_pairs_at_exactly_its_radius(self, name):
        protocol = PROTOCOLS[name]
        assert protocol.score([(0, 0)], [(0, protocol.radius_um)], [0.9]) == MatchResult(tp=1)
        assert protocol.score([(0, 0)], [(0, protocol.radius_um + 0.01)], [0.9]) == MatchResult(0, 1, 1)

    def test_refuses_what_is_no_number(self, name):
        score = PROTOCOLS[name].score
        with pytest.raises(ValueError, match="truth_um: expected finite points"):
            score([(0, np.nan)], [], [])
        with pytest.raises(ValueError, match="found_um: expected finite points"):
            score([], [(0, np.inf)], [0.5])
        for scores in ([np.nan], [], [0.5, 0.5], [[0.5]]):
            with pytest.raises(ValueError, match="scores: expected 1 finite numbers"):
                score([], [(0, 0)], scores)
        with pytest.raises(ValueError, match="threshold"):
            score([], [], [], np.nan)

    @given(places, places, st.randoms(use_true_random=False))
    def test_stays_within_bounds(self, name, truth, found, random):
        result = PROTOCOLS[name].score(um(truth), um(found), detections(random, found, ties=True), 0.015)
        assert 0 <= result.tp <= len(truth)
        assert result.tp + result.fn == len(truth)
        assert 0 <= result.fp <= len(found)
        assert all(0 <= share <= 1 for share in (result.precision, result.recall, result.f1))

    @given(places, places, st.randoms(use_true_random=False))
    def test_does_not_depend_on_where_things_are_or_in_which_unit(self, name, truth, found, random):
        protocol, scores = PROTOCOLS[name], detections(random, found)
        truth, found = um(truth), um(found)
        result = protocol.score(truth, found, scores)
        assert protocol.score(truth + (40, -15), found + (40, -15), scores) == result
        for turn in ([(0, 1), (-1, 0)], [(1, 0), (0, -1)], [(0.6, 0.8), (-0.8, 0.6)]):
            a, b = (np.round(xy @ turn * 4) / 4 for xy in (truth, found))
            assert protocol.score(a, b, scores) == result
        doubled = replace(protocol, radius_um=protocol.radius_um * 2)
        assert doubled.score(truth * 2, found * 2, scores) == result


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "midog"])  # which does, see above
@given(places, places, st.randoms(use_true_random=False))
def test_does_not_depend_on_the_order_of_the_points(name, truth, found, random):
    truth, found, scores = um(truth), um(found), detections(random, found, ties=True)
    i, j = (random.sample(range(len(xy)), len(xy)) for xy in (truth, found))
    result = PROTOCOLS[name].score(truth, found, scores)
    assert PROTOCOLS[name].score(truth[i], found[j], scores[j]) == result
