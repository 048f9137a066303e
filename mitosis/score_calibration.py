"""Scores that say how often they are right: temperature and offset, fitted where the truth is known."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from mitosis.detections import SCORE_STEPS

__all__ = ["UNCALIBRATED", "ScoreCalibration", "calibration_error", "fit_calibration", "log_odds"]

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoreCalibration:
    """What makes probabilities of scores, in their order.

    Attributes
    ----------
    temperature : float
        What log-odds are divided by, above 0; above 1 brings scores nearer to each other.
    offset : float
        What is added to them then.

    References
    ----------
    Platt: Probabilistic outputs for support vector machines, Advances in Large Margin Classifiers, 1999:61-74;
    temperature alone: Guo, Pleiss, Sun, Weinberger, ICML 2017, arXiv 1706.04599. Figures are rare, so scores learned on
    batches with many of them are all too high: that takes an offset.
    """

    temperature: float = 1.0
    offset: float = 0.0

    def __call__(self, score: ArrayLike) -> Values:
        """Probabilities, whole multiples of 1e-4 from 1e-4 to 1, of scores of the same shape."""
        scores = np.asarray(score, dtype=np.float64)
        if self == UNCALIBRATED:
            return scores
        steps = np.rint(expit(log_odds(scores) / self.temperature + self.offset) * SCORE_STEPS)
        probability: Values = np.maximum(steps, 1) / SCORE_STEPS
        return probability


UNCALIBRATED = ScoreCalibration()
"""The calibration that changes nothing."""


def log_odds(scores: Values) -> Values:
    """Log-odds of scores, as if each lay at least half a step from 0 and 1."""
    half = 0.5 / SCORE_STEPS  # a score is rounded, so none is certain
    odds: Values = logit(np.clip(scores, half, 1 - half))
    return odds


def fit_calibration(score: ArrayLike, is_figure: ArrayLike) -> ScoreCalibration:
    """The calibration with the least log loss on candidates whose truth is known.

    Targets are those of Platt, ``(n + 1) / (n + 2)`` and ``1 / (m + 2)`` of n figures and m others, which keeps it
    finite where scores tell all of them apart.

    Parameters
    ----------
    score : float [N]
    is_figure : bool [N]

    Returns
    -------
    ScoreCalibration
        `UNCALIBRATED`, where there are no figures or nothing else.
    """
    truth = np.asarray(is_figure, dtype=bool)
    n_figures, n_others = int(truth.sum()), int((~truth).sum())
    if not n_figures or not n_others:
        return UNCALIBRATED
    odds = log_odds(np.asarray(score, dtype=np.float64))
    target = np.where(truth, (n_figures + 1) / (n_figures + 2), 1 / (n_others + 2))

    def loss(parameters: Values) -> tuple[float, Values]:
        slope = np.exp(parameters[0])  # stays above 0, so that the order of scores stays
        values = slope * odds + parameters[1]
        error = expit(values) - target
        return float(np.mean(np.logaddexp(0, values) - target * values)), np.array(
            [np.mean(error * slope * odds), np.mean(error)]
        )

    best = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-4, 4), (-12, 12)]).x
    return ScoreCalibration(round(float(np.exp(-best[0])), 4), round(float(best[1]), 4))


def calibration_error(probability: ArrayLike, is_figure: ArrayLike, n_bins: int = 10) -> float:
    """Mean distance between probability and share of figures, over bins of equal width weighted by what they hold.

    0 for no candidates.

    References
    ----------
    Expected calibration error: Naeini, Cooper, Hauskrecht, AAAI 2015:2901-2907.
    """
    values, truth = np.asarray(probability, dtype=np.float64), np.asarray(is_figure, dtype=np.float64)
    if not len(values):
        return 0.0
    bins = np.minimum((values * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, weights=values - truth, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(values))
