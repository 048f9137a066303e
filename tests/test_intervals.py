"""Bootstrap intervals: those of scipy, the same from both functions, the same again with the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mitosis import intervals
from mitosis.errors import ConfigError
from mitosis.intervals import bootstrap_interval, bootstrap_sums

COUNTS = [3, 0, 7, 12, 1, 1, 25, 4, 0, 9, 2, 5, 31, 6, 2]


def f1(sums):
    tp, fp, fn = sums.T
    return 2 * tp / (2 * tp + fp + fn)


def f1_of_cases(cases):
    tp, fp, fn = np.sum(cases, axis=0)
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else np.nan


def outcomes(n_cases, seed=0):
    return np.random.default_rng(seed).poisson((8, 3, 2), (n_cases, 3))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_limits_are_those_of_scipy(level):
    """The standard error of a limit of 20,000 resamples is about 0.02 standard deviations of the mean."""
    settings = {"n_resamples": 20_000, "confidence_level": level, "method": "percentile"}
    theirs = stats.bootstrap((COUNTS,), np.mean, rng=np.random.default_rng(11), **settings).confidence_interval
    ours = bootstrap_interval(COUNTS, np.mean, n_resamples=20_000, level=level, seed=5)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.1 * stats.sem(COUNTS))


def test_interval_of_a_normal_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(2)
    samples = rng.normal(size=(400, 40, 1))
    limits = np.array([bootstrap_sums(sample, lambda sums: sums[:, 0], n_resamples=400) for sample in samples])
    covered = np.mean((limits[:, 0] <= 0) & (limits[:, 1] >= 0))
    assert 0.9 <= covered <= 0.97


@pytest.mark.parametrize(("level", "low", "high"), [(0.9, 5, 95), (0.5, 25, 75), (0.98, 1, 99), (0.999, 1, 99)])
def test_limits_are_the_kth_results_from_both_ends(level, low, high):
    results = iter(np.random.default_rng(0).permutation(np.arange(1, 100)).tolist())
    assert bootstrap_interval([0, 0], lambda _: next(results), n_resamples=99, level=level) == (low, high)


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(0, 1000), st.sampled_from([1, 7, 200]))
def test_both_functions_see_the_same_resamples(n_cases, seed, n_resamples):
    cases = outcomes(n_cases, seed)
    slow = bootstrap_interval(cases.tolist(), f1_of_cases, n_resamples=n_resamples, seed=seed)
    assert bootstrap_sums(cases, f1, n_resamples=n_resamples, seed=seed) == slow


def test_memory_has_no_influence(monkeypatch):
    whole = bootstrap_sums(outcomes(30), f1)
    monkeypatch.setattr(intervals, "BLOCK", 1000)
    assert bootstrap_sums(outcomes(30), f1) == whole
    monkeypatch.setattr(intervals, "BLOCK", 1)
    assert bootstrap_sums(outcomes(30), f1) == whole


def test_the_seed_is_all_that_chance_hangs_on():
    first = bootstrap_interval(COUNTS, np.mean, n_resamples=200, seed=1)
    np.random.default_rng().random(10)
    assert bootstrap_interval(COUNTS, np.mean, n_resamples=200, seed=1) == first
    assert bootstrap_interval(COUNTS, np.mean, n_resamples=200, seed=2) != first
    assert bootstrap_sums(outcomes(20), f1, seed=1) == bootstrap_sums(outcomes(20), f1, seed=1)
    assert bootstrap_sums(outcomes(20), f1, seed=1) != bootstrap_sums(outcomes(20), f1, seed=2)


def test_cases_stay_whole():
    """Fields of one case are never torn apart, and a resample has as many cases as there are."""
    cases = [("A", (1, 2, 3)), ("B", (4,)), ("C", ())]
    seen = []
    bootstrap_interval(cases, lambda drawn: seen.append(drawn) or 0.0, n_resamples=50)
    assert all(len(drawn) == 3 and set(drawn) <= set(cases) for drawn in seen)
    assert {len(set(drawn)) for drawn in seen} == {1, 2, 3}


@given(st.lists(st.integers(0, 50), min_size=2, max_size=10), st.floats(0.5, 0.99))
@settings(max_examples=30)
def test_mirrored_statistic_has_the_mirrored_interval(cases, level):
    low, high = bootstrap_interval(cases, np.mean, n_resamples=50, level=level)
    assert low <= high
    assert bootstrap_interval(cases, lambda drawn: -np.mean(drawn), n_resamples=50, level=level) == (-high, -low)


@pytest.mark.parametrize("n_cases", [0, 1])
def test_fewer_than_two_cases_have_no_interval(n_cases):
    assert np.isnan(bootstrap_interval(COUNTS[:n_cases], np.mean)).all()
    assert np.isnan(bootstrap_sums(outcomes(2)[:n_cases], f1)).all()
    assert np.isnan(bootstrap_sums([], f1)).all()


def test_undefined_results_are_left_out():
    results = [np.nan, 1.0, 2.0, 3.0, np.nan]
    given_back = iter(results)
    assert bootstrap_interval([1, 2], lambda _: next(given_back), n_resamples=5, level=0.5) == (1.0, 3.0)
    assert np.isnan(bootstrap_interval([1, 2], lambda _: np.nan, n_resamples=5)).all()


def test_nothing_over_nothing_is_left_out_without_a_warning():
    """One case of two has figures: the resamples that miss it have no F1."""
    assert bootstrap_sums([[4, 1, 1], [0, 0, 0]], f1, n_resamples=100) == (0.8, 0.8)
    assert np.isnan(bootstrap_sums(np.zeros((5, 3)), f1)).all()


def test_infinite_results_count():
    low, high = bootstrap_sums([[1, 0], [1, 1]], lambda sums: sums[:, 0] / sums[:, 1], n_resamples=200)
    assert (low, high) == (1.0, np.inf)


@pytest.mark.parametrize("bad", [{"n_resamples": 0}, {"level": 0.0}, {"level": 1.0}, {"level": 95}, {"level": np.nan}])
def test_settings_out_of_range(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        bootstrap_interval([], np.mean, **bad)
    with pytest.raises(ConfigError, match=next(iter(bad))):
        bootstrap_sums([], f1, **bad)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="totals"):
        bootstrap_sums([1.0, 2.0], f1)
    with pytest.raises(ValueError, match="totals"):
        bootstrap_sums([[1.0, np.nan], [1.0, 2.0]], f1)
    with pytest.raises(ValueError, match="statistic"):
        bootstrap_sums(outcomes(3), lambda sums: sums)
