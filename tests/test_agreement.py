"""Agreement: published examples, independent programs, and what must hold for any counts."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score, confusion_matrix, mean_absolute_percentage_error
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.weightstats import DescrStatsW

from mitosis.agreement import (
    Icc,
    Mape,
    bland_altman,
    confusion,
    count_bias,
    hotspot_overlap,
    icc,
    mape,
    spearman,
    weighted_kappa,
)
from mitosis.errors import ConfigError
from mitosis.geometry import Box

# Shrout & Fleiss 1979, table 2: 6 subjects, 4 judges.
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
# Bland & Altman 1986, table 1: first measurement of peak flow (l/min) with the large and the mini meter.
LARGE_METER = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI_METER = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]

counts = st.integers(0, 60)
pairs = st.lists(st.tuples(counts, counts), min_size=2, max_size=15)
score_pairs = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=20)
tables = st.integers(2, 4).flatmap(lambda k: st.lists(st.tuples(*[counts] * k), min_size=2, max_size=8))
windows = st.tuples(*[st.integers(-20, 20)] * 2, *[st.integers(1, 30)] * 2).map(
    lambda w: (w[0], w[1], w[0] + w[2], w[1] + w[3])
)
weightings = st.sampled_from(["linear", "quadratic"])


def columns(rows):
    return tuple(np.array(column) for column in zip(*rows, strict=True))


# Bland and Altman


def test_bland_altman_of_the_peak_flow_meters():
    """The paper: bias -2.1, sd 38.8, interval of the bias -22.0 to 17.8 l/min."""
    result = bland_altman(LARGE_METER, MINI_METER)
    assert (round(result.bias, 1), round(result.sd, 1)) == (-2.1, 38.8)
    assert np.round(result.bias_interval, 1).tolist() == [-22.0, 17.8]
    assert (result.low, result.high) == pytest.approx((-2.118 - 1.96 * 38.765, -2.118 + 1.96 * 38.765), abs=0.01)
    assert result.means[:2].tolist() == [503, 412.5]
    assert result.differences[:2].tolist() == [-18, -35]


@given(pairs)
def test_bland_altman_is_that_of_statsmodels(rows):
    a, b = columns(rows)
    theirs, ours = DescrStatsW(a - b, ddof=1), bland_altman(a, b)
    assert (ours.bias, ours.sd) == pytest.approx((theirs.mean, theirs.std), abs=1e-9)
    if theirs.std > 0:  # statsmodels divides by it
        assert ours.bias_interval == pytest.approx(theirs.tconfint_mean(0.05), abs=1e-6)


@given(pairs)
def test_bland_altman_of_the_swapped_counters_is_mirrored(rows):
    there, back = bland_altman(*columns(rows)), bland_altman(*columns(rows)[::-1])
    assert (back.bias, back.low, back.high, back.sd) == (-there.bias, -there.high, -there.low, there.sd)
    assert back.bias_interval == (-there.bias_interval[1], -there.bias_interval[0])
    assert (back.differences == -there.differences).all()
    assert (back.means == there.means).all()


def test_bland_altman_of_no_and_one_case():
    none, one = bland_altman([], []), bland_altman([5], [3])
    assert np.isnan([none.bias, none.sd, none.low, none.high, *none.bias_interval]).all()
    assert none.means.shape == none.differences.shape == (0,)
    assert (one.bias, one.means.tolist(), one.differences.tolist()) == (2.0, [4.0], [2.0])
    assert np.isnan([one.sd, one.low, one.high, *one.bias_interval]).all()


def test_equal_counters_have_no_bias_and_no_spread():
    result = bland_altman([1, 5, 9], [1, 5, 9])
    assert (result.bias, result.low, result.high, result.sd, result.bias_interval) == (0, 0, 0, 0, (0, 0))


# Errors of counts


def test_mape_leaves_out_cases_without_a_figure_and_says_so():
    assert mape([10, 0, 4, 0], [5, 3, 5, 0]) == Mape(percent=37.5, n=2, n_left_out=2)
    assert mape([3], [0]) == Mape(100.0, 1, 0)


@given(pairs)
def test_mape_is_that_of_sklearn(rows):
    truth, found = columns(rows)
    result = mape(truth, found)
    assert result.n + result.n_left_out == len(rows)
    assert result.n_left_out == np.count_nonzero(truth == 0)
    assume(result.n)
    theirs = mean_absolute_percentage_error(truth[truth > 0], found[truth > 0])
    assert result.percent == pytest.approx(100 * theirs)


def test_count_bias_is_of_the_total():
    assert count_bias([10, 0, 10], [5, 5, 14]) == pytest.approx(0.2)
    assert count_bias([4, 6], [0, 0]) == -1
    assert count_bias([4, 6], [6, 4]) == 0


@pytest.mark.parametrize(("truth", "left_out"), [([], 0), ([0, 0], 2)])
def test_errors_of_nothing_are_undefined(truth, left_out):
    result = mape(truth, truth)
    assert np.isnan(result.percent)
    assert (result.n, result.n_left_out) == (0, left_out)
    assert np.isnan(count_bias(truth, truth))


# Intraclass correlation


def test_icc_of_the_four_judges():
    """0.29 in Shrout and Fleiss's table 4; the interval is 0.019 to 0.761 in R's irr."""
    result = icc(JUDGES)
    assert round(result.value, 2) == 0.29
    assert (round(result.low, 3), round(result.high, 3)) == (0.019, 0.761)


@settings(max_examples=60)
@given(tables)
def test_icc_is_that_of_the_mean_squares_of_statsmodels(rows):
    table = np.array(rows)
    n, k = table.shape
    assume(n > 2 or k > 2)  # two by two, its denominator may be 0
    subject, rater = np.indices(table.shape)
    long = pd.DataFrame({"y": table.ravel().astype(float), "subject": subject.ravel(), "rater": rater.ravel()})
    rows_ms, raters_ms, error_ms = _mean_squares(long)
    assume(min(rows_ms, raters_ms, error_ms) > 1e-6)
    value = (rows_ms - error_ms) / (rows_ms + (k - 1) * error_ms + k * (raters_ms - error_ms) / n)
    low, high = _interval_as_printed(value, n, k, rows_ms, raters_ms, error_ms)
    ours = icc(table)
    assert ours.value == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def _mean_squares(long):
    anova = anova_lm(ols("y ~ C(subject) + C(rater)", data=long).fit())
    squares = anova["sum_sq"] / anova["df"]
    return squares["C(subject)"], squares["C(rater)"], squares["Residual"]


def _interval_as_printed(icc_value, n, k, msr, msc, mse):
    """McGraw and Wong 1996, table 7, ICC(A,1), letter by letter."""
    a = k * icc_value / (n * (1 - icc_value))
    b = 1 + k * icc_value * (n - 1) / (n * (1 - icc_value))
    v = (a * msc + b * mse) ** 2 / ((a * msc) ** 2 / (k - 1) + (b * mse) ** 2 / ((n - 1) * (k - 1)))
    assume(v > 0.05)  # below, F* is too large a number for a float
    f_low, f_high = stats.f.isf(0.025, n - 1, v), stats.f.isf(0.025, v, n - 1)
    low = n * (msr - f_low * mse) / (f_low * (k * msc + (k * n - k - n) * mse) + n * msr)
    high = n * (f_high * msr - mse) / (k * msc + (k * n - k - n) * mse + n * f_high * msr)
    return low, high


def test_interval_of_the_icc_covers_it_as_often_as_it_says():
    """Subjects, raters and error of variance 4, 1 and 1: the true value is 4 / 6. With few raters it covers less."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        table = 2 * rng.normal(size=(12, 1)) + rng.normal(size=(1, 12)) + rng.normal(size=(12, 12))
        result = icc(table)
        covered += result.low <= 4 / 6 <= result.high
    assert 0.92 <= covered / 400 <= 0.98


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=10), st.integers(2, 5))
def test_icc_of_equal_raters_is_one(values, k):
    assume(np.ptp(values) > 1e-3)
    assert icc(np.tile(np.array(values)[:, np.newaxis], k)) == Icc(1.0, 1.0, 1.0)


@given(tables, st.randoms(use_true_random=False))
def test_icc_does_not_hang_on_order_or_unit(rows, random):
    table = np.array(rows)
    expected = icc(table)
    assume(abs(expected.value) < 1e3)
    shuffled = random.sample(rows, len(rows))
    for other in (np.array(shuffled), table[:, ::-1], table * 3.7 + 1000, table * 1e-200):
        result = icc(other)
        assert result.value == pytest.approx(expected.value, rel=1e-6, abs=1e-6)
        if np.isfinite(expected.low):
            assert (result.low, result.high) == pytest.approx((expected.low, expected.high), rel=1e-3, abs=1e-3)


@given(tables)
def test_icc_is_at_most_one(rows):
    result = icc(rows)
    assert not result.value > 1
    assert not result.low > result.high
    assert not result.high > 1


@pytest.mark.parametrize(
    "ratings",
    [np.empty((0, 3)), [[1, 2, 3]], [[1], [2], [3]], np.full((4, 3), 0.1), [[1, 2], [2, 1]], [[1, 2], [3, np.nan]]],
    ids=["no subject", "one subject", "one rater", "all equal", "contradiction", "missing"],
)
def test_icc_is_undefined(ratings):
    assert np.isnan([icc(ratings).value, icc(ratings).low, icc(ratings).high]).all()


def test_raters_who_differ_on_equal_subjects_share_nothing():
    result = icc([[1, 2], [1, 2], [1, 2]])
    assert result.value == 0
    assert np.isnan([result.low, result.high]).all()


def test_a_rater_who_always_counts_more_lowers_the_icc():
    truth = np.array([1, 4, 6, 9, 15])
    assert icc(np.stack([truth, truth + 2], axis=1)).value < icc(np.stack([truth, truth + 1], axis=1)).value < 1


# Rank correlation


@given(pairs)
def test_spearman_is_that_of_scipy(rows):
    a, b = columns(rows)
    assume(np.ptp(a) > 0 < np.ptp(b))
    assume(len(a) > 2)  # scipy warns about the p value of two cases
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


@given(pairs, st.randoms(use_true_random=False))
def test_spearman_only_sees_the_order(rows, random):
    a, b = columns(rows)
    expected = spearman(a, b)
    np.testing.assert_equal(spearman(b, a), expected)
    np.testing.assert_equal(spearman(np.sqrt(a) * 7 - 3, b**3), expected)
    np.testing.assert_allclose(spearman(-a, b), -expected)
    np.testing.assert_allclose(spearman(*columns(random.sample(rows, len(rows)))), expected)
    assert not abs(expected) > 1


def test_spearman_of_the_same_and_the_opposite_order():
    assert spearman([1, 5, 5, 20], [0, 2, 2, 3]) == 1
    assert spearman([1, 5, 20], [3, 2, 0]) == -1


@pytest.mark.parametrize(
    ("a", "b"), [([], []), ([1], [2]), ([1, 1], [1, 2]), ([3, 3, 3], [3, 3, 3]), ([1, np.nan], [1, 2])]
)
def test_spearman_is_undefined(a, b):
    assert np.isnan(spearman(a, b))


# Scores


@given(score_pairs, weightings)
def test_kappa_is_that_of_sklearn(rows, weights):
    a, b = columns(rows)
    assume(np.ptp([a, b]) > 0)  # sklearn divides nothing by nothing
    theirs = cohen_kappa_score(a, b, labels=[1, 2, 3, 4], weights=weights)
    assert weighted_kappa(a, b, 4, weights) == pytest.approx(theirs, abs=1e-12)


@given(score_pairs, weightings, st.randoms(use_true_random=False))
def test_kappa_is_symmetric_and_bounded(rows, weights, random):
    a, b = columns(rows)
    kappa = weighted_kappa(a, b, weights=weights)
    assert -1 <= kappa <= 1
    assert weighted_kappa(b, a, weights=weights) == kappa
    assert weighted_kappa(a + 7, b + 7, weights=weights) == kappa
    assert weighted_kappa(5 - a, 5 - b, weights=weights) == kappa
    assert weighted_kappa(*columns(random.sample(rows, len(rows))), weights=weights) == kappa
    assert weighted_kappa(a, a, weights=weights) == 1


def test_kappa_by_hand():
    """Distances 0, 0, 1, 2; those of each score of `a` to all of `b` add up to 2, 2, 6, 6, squared to 2, 2, 10, 10."""
    a, b = [1, 2, 3, 3], [1, 2, 2, 1]
    assert weighted_kappa(a, b, weights="linear") == pytest.approx(1 - 3 * 4 / 16)
    assert weighted_kappa(a, b) == pytest.approx(1 - 5 * 4 / 24)


def test_kappa_of_one_score():
    assert weighted_kappa([2, 2, 2], [2, 2, 2]) == 1
    assert weighted_kappa([2, 2, 2], [3, 3, 3]) == 0
    assert weighted_kappa([1], [1], n_classes=1) == 1


@pytest.mark.parametrize(("a", "b"), [([], []), ([1, np.nan], [1, 2])])
def test_kappa_is_undefined(a, b):
    assert np.isnan(weighted_kappa(a, b))


def test_kappa_of_what_are_no_scores():
    with pytest.raises(ValueError, match="whole numbers"):
        weighted_kappa([1, 1.5], [1, 2])
    with pytest.raises(ValueError, match="1 and 4"):
        weighted_kappa([1, 4], [1, 2], n_classes=3)
    with pytest.raises(ConfigError, match="cubic"):
        weighted_kappa([1, 2], [1, 2], weights="cubic")


@given(score_pairs)
def test_confusion_is_that_of_sklearn(rows):
    a, b = columns(rows)
    ours = confusion(a, b, [4, 2, 1, 3])
    assert ours.dtype == np.int64
    assert (ours == confusion_matrix(a, b, labels=[4, 2, 1, 3])).all()
    assert (confusion(b, a, [4, 2, 1, 3]) == ours.T).all()


def test_confusion_of_words_and_of_nothing():
    assert confusion(["low", "low", "high"], ["low", "high", "high"], ["low", "high"]).tolist() == [[1, 1], [0, 1]]
    assert confusion([], [], [1, 2]).tolist() == [[0, 0], [0, 0]]
    assert confusion([], [], []).shape == (0, 0)


@pytest.mark.parametrize(
    ("a", "b", "classes", "message"),
    [
        ([1, 4], [1, 2], [1, 2, 3], "a: 4"),
        ([1, 2], [1, np.nan], [1, 2], "b: nan"),
        ([1], [1, 2], [1, 2], "one length"),
        ([1], [1], [1, 2, 1], "once"),
    ],
)
def test_confusion_of_what_does_not_fit(a, b, classes, message):
    with pytest.raises(ValueError, match=message):
        confusion(a, b, classes)


# Places


@given(windows, windows)
def test_overlap_is_that_of_the_pixels(a, b):
    grid = np.zeros((2, 80, 80), dtype=bool)
    for layer, (x0, y0, x1, y1) in zip(grid, (a, b), strict=True):
        layer[y0 + 20 : y1 + 20, x0 + 20 : x1 + 20] = True
    assert hotspot_overlap(a, b) == grid.all(axis=0).sum() / grid.any(axis=0).sum()
    assert hotspot_overlap(b, a) == hotspot_overlap(a, b)
    assert hotspot_overlap(a, a) == 1


def test_overlap_of_windows_without_an_area_and_apart():
    assert hotspot_overlap(Box(0, 0, 2, 2), Box(2, 0, 4, 2)) == 0
    assert hotspot_overlap((0, 0, 2, 2), (1, 1, 1, 1)) == 0
    assert np.isnan(hotspot_overlap((1, 1, 1, 1), (1, 1, 1, 1)))


@pytest.mark.parametrize("box", [(0, 0, -1, 2), (0, 0, 1, np.nan), (0, 0, np.inf, 1)])
def test_overlap_of_what_is_no_window(box):
    with pytest.raises(ValueError, match="x0 <= x1"):
        hotspot_overlap(box, (0, 0, 1, 1))


# What holds for all


@pytest.mark.parametrize("measure", [bland_altman, mape, count_bias, spearman, weighted_kappa])
def test_lists_that_do_not_belong_together(measure):
    for a, b in (([1, 2], [1]), ([[1, 2]], [[1, 2]]), (1, 2)):
        with pytest.raises(ValueError, match="one length"):
            measure(a, b)
    with pytest.raises(ValueError, match="infinite"):
        measure([1, np.inf], [1, 2])


def test_a_missing_value_makes_the_result_undefined():
    assert np.isnan(bland_altman([1, np.nan], [1, 2]).low)
    assert np.isnan(mape([1, np.nan], [1, 2]).percent)
    assert np.isnan(count_bias([1, 2], [np.nan, 2]))


def test_ratings_that_are_no_table():
    for ratings in ([1, 2, 3], [[1, np.inf], [2, 3]]):
        with pytest.raises(ValueError, match="ratings"):
            icc(ratings)
