"""The interval of the true count holds it as often as it says; odd input has defined values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitosis.uncertainty import CaseCounts, _shortest, left_out_coverage, posterior, true_count

SURE = [CaseCounts(8 * k, 20, 2 * k, 20.0) for k in (2, 5, 10, 20, 30, 50, 80, 100)]


def draw_case(rng, recall, false_rate, spread=20.0, shape=3.0):
    """A case of the model: its own density, recall and rate of false detections."""
    area = rng.uniform(1, 3)
    true = rng.poisson(rng.gamma(1.5, 8) * area)
    found = rng.binomial(true, rng.beta(recall * spread, (1 - recall) * spread))
    return CaseCounts(
        int(found), int(rng.poisson(area * rng.gamma(shape, false_rate / shape))), int(true - found), area
    )


def coverage(n_sets, n_new, n_cases, seed):
    rng = np.random.default_rng(seed)
    n_covered, low, high = 0, 0, 0
    for _ in range(n_sets):
        recall, false_rate = rng.uniform(0.6, 0.9), rng.uniform(0.3, 3)
        calibration = [draw_case(rng, recall, false_rate) for _ in range(n_cases)]
        for case in (draw_case(rng, recall, false_rate) for _ in range(n_new)):
            interval = true_count(case.tp + case.fp, case.area_mm2, calibration)
            truth = case.tp + case.fn
            low, high = low + (interval.high < truth), high + (interval.low > truth)
            n_covered += interval.low <= truth <= interval.high
    return n_covered / (n_sets * n_new), low, high


def test_the_interval_covers_the_truth_on_new_cases():
    share, low, high = coverage(n_sets=10, n_new=20, n_cases=15, seed=1)
    assert 0.93 <= share <= 0.97
    assert min(low, high) > 0


def test_an_interval_without_the_spread_between_cases_would_not_hold():
    """What the model is for: pooled recall and precision alone would promise far too much."""
    rng, n_covered = np.random.default_rng(2), 0
    calibration = [draw_case(rng, 0.75, 1.0, spread=5) for _ in range(12)]
    tp, fp, fn = (sum(getattr(case, name) for case in calibration) for name in ("tp", "fp", "fn"))
    new = [draw_case(rng, 0.75, 1.0, spread=5) for _ in range(100)]
    for case in new:
        middle = (case.tp + case.fp) * (tp / (tp + fp)) / (tp / (tp + fn))
        n_covered += abs(case.tp + case.fn - middle) <= 1.96 * (middle * fn / (tp + fn)) ** 0.5 + 1
    assert n_covered / len(new) < 0.85
    held = [
        i.low <= c.tp + c.fn <= i.high for c, i in ((c, true_count(c.tp + c.fp, c.area_mm2, calibration)) for c in new)
    ]
    assert np.mean(held) > 0.88


def test_cases_left_out_are_covered():
    rng = np.random.default_rng(5)
    found = left_out_coverage([draw_case(rng, 0.8, 1.0) for _ in range(16)])
    assert found.n == 16 == found.n_covered + found.n_too_low + found.n_too_high
    assert 0.85 <= found.share <= 1
    liar = [*SURE, CaseCounts(0, 0, 400, 20.0)]  # found nothing of 400: no interval from the others holds that
    assert left_out_coverage(liar).n_too_low == 1
    assert np.isnan(left_out_coverage(SURE[:2]).share)


def test_a_known_detector_gives_the_known_answer():
    """Recall 0.8 and one false detection per mm², each known well: 20 found on 2.37 mm² mean about 22 true ones."""
    interval = true_count(20, 2.37, SURE)
    assert interval.median == pytest.approx((20 - 2.37) / 0.8, rel=0.1)
    assert interval.low <= interval.median <= interval.high
    assert (interval.confidence, interval.n_cases) == (0.95, 8)
    perfect = true_count(20, 2.0, [CaseCounts(k, 0, 0, 20.0) for k in (20, 100, 200, 400, 800)] * 8)
    assert perfect.low == 20
    assert perfect.high <= 22


def test_more_found_means_more_and_less_known_means_wider():
    few, many = true_count(10, 2.0, SURE), true_count(40, 2.0, SURE)
    assert few.high < many.high
    assert few.low < many.low
    unsure = true_count(10, 2.0, [CaseCounts(8, 2, 2, 2.0)])
    assert unsure.high - unsure.low > few.high - few.low


def test_the_same_question_has_the_same_answer():
    assert true_count(7, 2.0, SURE) == true_count(7, 2.0, SURE)
    np.testing.assert_array_equal(posterior(7, 2.0, SURE, seed=3).mean, posterior(7, 2.0, SURE, seed=3).mean)


@pytest.mark.parametrize(
    "calibration",
    [
        [CaseCounts(0, 0, 0, 1.0)],
        [CaseCounts(0, 0, 5, 1.0)],
        [CaseCounts(0, 9, 0, 1e-6)],
        [CaseCounts(10, 0, 0, 5.0)] * 3,
        [CaseCounts(1000, 0, 0, 5.0), CaseCounts(0, 1000, 1000, 5.0)],
    ],
)
@pytest.mark.parametrize("found", [0, 1, 50])
def test_odd_calibrations_have_an_answer(calibration, found):
    interval = true_count(found, 2.37, calibration)
    assert 0 <= interval.low <= interval.median <= interval.high < 1e6


def test_many_figures_fit_in_memory():
    interval = true_count(3000, 300.0, SURE)
    assert interval.low < 3400 < interval.high


def test_without_calibration_the_count_is_what_was_found():
    draws = posterior(12, 2.37)
    assert set(draws.count.tolist()) == {12}
    assert draws.mean.mean() == pytest.approx(12.5, rel=0.05)


def test_impossible_input_is_refused():
    with pytest.raises(ValueError, match="area above 0"):
        posterior(1, 0.0, SURE)
    with pytest.raises(ValueError, match="calibration case 'A'"):
        CaseCounts(1, -1, 0, 2.0, "A")
    with pytest.raises(ValueError, match="area above 0"):
        CaseCounts(1, 1, 0, float("nan"), "A")


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_the_interval_is_the_shortest_or_nearer_to_the_share_by_one_number_less(draws, share):
    low, high = _shortest(np.array(draws), share)
    held = {
        (start, end): sum(start <= draw <= end for draw in draws) / len(draws)
        for start in range(13)
        for end in range(start, 13)
    }
    enough = min(end - start for (start, end), part in held.items() if part >= share)
    best = {
        length: max((part, -start) for (start, end), part in held.items() if end - start == length)
        for length in (enough, enough - 1)
        if length >= 0
    }
    length = min(best, key=lambda length: (round(abs(best[length][0] - share), 9), -length))
    assert (low, high) == (-best[length][1], length - best[length][1])


def test_one_number_less_is_taken_where_it_is_nearer():
    assert _shortest(np.repeat([0, 1, 2], [93, 5, 2]), 0.95) == (0, 0)
    assert _shortest(np.repeat([0, 1, 2], [91, 5, 4]), 0.95) == (0, 1)


def test_where_nothing_is_found_the_interval_begins_at_none_and_wastes_no_tail():
    interval = true_count(0, 0.5, SURE)
    count = posterior(0, 0.5, SURE).count
    assert interval.low == 0
    assert interval.high <= np.quantile(count, 0.95, method="higher")
