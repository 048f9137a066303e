"""How far a result may have moved by the choice of the cases: bootstrap intervals.

Whole cases are drawn, never fields or figures: the fields of one case resemble each other, so an interval over fields
would be too narrow. The limits are the percentile interval of Efron and Tibshirani [1]_: of the sorted results of B
resamples the k-th from below and the k-th from above, with ``k = (B + 1) (1 - level) / 2`` rounded down. They are
approximate and too narrow for few cases (below about 20), since the spread of few cases understates the true one.

References
----------
.. [1] Efron, Tibshirani: An Introduction to the Bootstrap. Chapman & Hall 1993, chapter 13.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mitosis.errors import ConfigError

__all__ = ["bootstrap_interval", "bootstrap_sums"]

BLOCK = 1 << 20
"""How many draws of cases are held at once, so that the memory does not grow with their number."""

T = TypeVar("T")
FloatArray = NDArray[np.float64]


def bootstrap_interval(
    cases: Sequence[T],
    statistic: Callable[[Sequence[T]], float],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of cases.

    The same cases in the same order with the same seed give the same interval.

    Parameters
    ----------
    cases : sequence
        One item a case (patient or animal), with all that belongs to it.
    statistic : callable
        Gets a list of as many cases, drawn with replacement, and gives a number. A resample for which it is NaN
        (undefined) is left out.
    n_resamples : int
        How often cases are drawn.
    level : float
        Share of the results that lie within the interval, between 0 and 1.
    seed : int
        Start of the random numbers.

    Returns
    -------
    (float, float)
        (NaN, NaN) with fewer than two cases or where every resample gives NaN.

    Raises
    ------
    ConfigError
        `n_resamples` is below 1 or `level` is not between 0 and 1.
    """
    _check(n_resamples, level)
    n = len(cases)
    if n < 2:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    results = [statistic([cases[i] for i in rng.integers(n, size=n).tolist()]) for _ in range(n_resamples)]
    return _percentiles(np.array(results, dtype=np.float64), level)


def bootstrap_sums(
    totals: ArrayLike,
    statistic: Callable[[FloatArray], FloatArray],
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """`bootstrap_interval` of a statistic of sums over cases, such as F1 of the pooled tp, fp and fn; much faster.

    How often each case is drawn is multinomial; all sums are one product of these numbers with `totals`. The resamples
    are those of `bootstrap_interval` with the same seed.

    Parameters
    ----------
    totals : float [n_cases, k]
        What each case adds to each of the k sums.
    statistic : callable
        Gets the sums, float [n_resamples, k], and gives float [n_resamples]. A division of nothing by nothing in it is
        NaN without a warning, and that resample is left out.
    n_resamples, level, seed
        As for `bootstrap_interval`.

    Returns
    -------
    (float, float)
        (NaN, NaN) with fewer than two cases or where every resample gives NaN.

    Raises
    ------
    ConfigError
        `n_resamples` is below 1 or `level` is not between 0 and 1.
    ValueError
        `totals` are not finite [n_cases, k], or the statistic does not give one number a resample.
    """
    _check(n_resamples, level)
    values = np.asarray(totals, dtype=np.float64)
    if (values.ndim != 2 and values.size) or not np.isfinite(values).all():
        raise ValueError(f"totals: expected finite numbers [n_cases, k], but got an array of shape {values.shape}")
    if len(values) < 2:
        return np.nan, np.nan
    sums = _resampled_sums(values, n_resamples, np.random.default_rng(seed))
    with np.errstate(divide="ignore", invalid="ignore"):
        results = np.asarray(statistic(sums), dtype=np.float64)
    if results.shape != (n_resamples,):
        raise ValueError(f"statistic: expected an array of shape {(n_resamples,)}, but it gave {results.shape}")
    return _percentiles(results, level)


def _check(n_resamples: int, level: float) -> None:
    if n_resamples < 1:
        raise ConfigError(f"n_resamples is {n_resamples}, but nothing can be said without a resample. Use 1 or more.")
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}, but it is a share between 0 and 1. Use 0.95 for 95 %.")


def _resampled_sums(totals: FloatArray, n_resamples: int, rng: np.random.Generator) -> FloatArray:
    """Sums [n_resamples, k] of `totals` [n, k] over cases drawn with replacement."""
    n, rows = len(totals), max(1, BLOCK // len(totals))
    blocks = []
    for start in range(0, n_resamples, rows):
        size = min(rows, n_resamples - start)
        # Each resample counts in n bins of its own. Drawing cases and counting them is as good as drawing multinomial
        # numbers, and lets both functions see the same resamples.
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, np.newaxis]
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        blocks.append(weights.astype(np.float64) @ totals)
    return np.concatenate(blocks)


def _percentiles(results: FloatArray, level: float) -> tuple[float, float]:
    """The k-th smallest and the k-th largest of the results that are numbers."""
    known = np.sort(results[~np.isnan(results)])
    if not len(known):
        return np.nan, np.nan
    # The slack keeps a k that is a whole number from being rounded down. Ranks, unlike means of two neighbours, are
    # defined for infinite results too.
    k = max(1, int((len(known) + 1) * (1 - level) / 2 + 1e-9))
    return float(known[k - 1]), float(known[-k])
