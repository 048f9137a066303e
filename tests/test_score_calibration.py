"""Scores become probabilities: what was distorted is found again, and the order stays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from mitosis.score_calibration import UNCALIBRATED, ScoreCalibration, calibration_error, fit_calibration

SCORES = st.lists(st.integers(1, 10_000).map(lambda steps: steps / 10_000), min_size=1, max_size=50)
CALIBRATIONS = st.builds(ScoreCalibration, st.floats(0.1, 10), st.floats(-5, 5))


def distorted(temperature, offset, n=40_000, seed=0):
    """Scores whose calibration is known, and the truth drawn from it."""
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.5, 2, n).clip(1e-3, 1 - 1e-3)
    return expit((logit(probability) - offset) * temperature), rng.random(n) < probability


@pytest.mark.parametrize(("temperature", "offset"), [(1.0, 0.0), (2.0, -1.0), (0.5, 0.5)])
def test_a_known_distortion_is_found_again(temperature, offset):
    score, truth = distorted(temperature, offset)
    found = fit_calibration(score, truth)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.offset == pytest.approx(offset, abs=0.08)


def test_it_lowers_the_calibration_error_of_other_candidates():
    found = fit_calibration(*distorted(2.0, -1.0))
    score, truth = distorted(2.0, -1.0, seed=1)
    assert calibration_error(score, truth) > 0.1
    assert calibration_error(found(score), truth) < 0.01


@given(SCORES, CALIBRATIONS)
def test_the_order_stays_and_so_does_the_range(scores, calibration):
    after = calibration(sorted(scores))
    assert (np.diff(after) >= 0).all()
    assert after.min() >= 1e-4
    assert after.max() <= 1
    assert np.allclose(after * 10_000, np.rint(after * 10_000))


@given(SCORES)
def test_none_changes_nothing(scores):
    assert UNCALIBRATED(scores).tolist() == scores


@pytest.mark.parametrize("truth", [[], [True, True], [False, False]])
def test_without_both_kinds_there_is_none(truth):
    assert fit_calibration([0.3, 0.6][: len(truth)], truth) == UNCALIBRATED


def test_scores_that_tell_all_apart_stay_finite():
    found = fit_calibration([0.1, 0.2, 0.8, 1.0], [False, False, True, True])
    assert np.isfinite([found.temperature, found.offset]).all()
    assert found.temperature > 0


def test_the_error_is_that_of_a_worked_example():
    """Two bins: 0.2 and 0.3 with one figure (0.25 against 0.5), 0.9 without (0.9 against 0)."""
    assert calibration_error([0.21, 0.29, 0.9], [True, False, False], n_bins=2) == pytest.approx((0.5 + 0.9) / 3)
    assert calibration_error([], []) == 0
