"""How well counters agree, on counts and on scores: a model and readers, or readers among themselves.

The same rules hold for all measures. Counters are compared on the same cases in the same order, as lists of one
length n. Where a measure is undefined, or a value is missing (NaN), the result is NaN, without a warning. Lists that
differ in length and infinite numbers are a ValueError.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import f, rankdata, t

from mitosis.errors import ConfigError

__all__ = [
    "BlandAltman",
    "Icc",
    "Mape",
    "bland_altman",
    "confusion",
    "count_bias",
    "hotspot_overlap",
    "icc",
    "mape",
    "spearman",
    "weighted_kappa",
]

FloatArray = NDArray[np.float64]
Weights = Literal["quadratic", "linear"]

TAIL = 0.025
"""What a 95 % interval leaves out on each side."""

ROUNDING = 1e-28
"""Share of a mean square below which another one is nothing but rounding."""

POWERS = {"linear": 1, "quadratic": 2}
"""What the distance of two scores is raised to, by the name of the weights."""


@dataclass(frozen=True, slots=True, eq=False)
class BlandAltman:
    """Limits of agreement of two counters, in the unit of the counts.

    Attributes
    ----------
    bias, sd : float
        Mean and standard deviation (n - 1 in the denominator) of the differences.
    low, high : float
        Limits of agreement, bias - 1.96 sd and bias + 1.96 sd.
    bias_interval : (float, float)
        95 % interval of the bias, by Student's t.
    means, differences : float64 [n]
        (a + b) / 2 and a - b of each case, for the plot.
    """

    bias: float
    low: float
    high: float
    sd: float
    bias_interval: tuple[float, float]
    means: FloatArray
    differences: FloatArray


@dataclass(frozen=True, slots=True)
class Mape:
    """Mean absolute percentage error of `n` cases; `n_left_out` more have no true figure, so it is undefined there."""

    percent: float
    n: int
    n_left_out: int


@dataclass(frozen=True, slots=True)
class Icc:
    """Intraclass correlation and its 95 % interval."""

    value: float
    low: float
    high: float


def bland_altman(a: ArrayLike, b: ArrayLike) -> BlandAltman:
    """Bias of `a` against `b` (float [n]), and the limits between which about 95 % of their differences lie.

    The limits suppose normal differences. Where these grow with the mean, as counts' do, the limits are too wide for
    low counts and too narrow for high ones; the plot shows it. All is NaN without a case; with one, all but the bias.

    References
    ----------
    Bland, Altman: Statistical methods for assessing agreement between two methods of clinical measurement. Lancet
    1986;327:307-310.
    """
    first, second = _paired(a, b)
    differences = first - second
    n = len(differences)
    bias = float(differences.mean()) if n else np.nan
    sd = float(differences.std(ddof=1)) if n > 1 else np.nan
    margin = float(t.isf(TAIL, n - 1)) * sd / n**0.5 if n > 1 else np.nan
    low, high, interval = bias - 1.96 * sd, bias + 1.96 * sd, (bias - margin, bias + margin)
    return BlandAltman(bias, low, high, sd, interval, (first + second) / 2, differences)


def mape(truth: ArrayLike, found: ArrayLike) -> Mape:
    """Mean of ``|found - truth| / truth`` over the cases with a true figure, in percent; counts are float [n].

    Cases without one are left out, and the result says how many, because what was found there does not count. Who
    finds nothing has 100 %; who finds too many has no upper bound.
    """
    true, other = _paired(truth, found)
    counted = true != 0
    n = int(counted.sum())
    errors = np.abs(other[counted] - true[counted]) / np.abs(true[counted])
    return Mape(float(100 * errors.mean()) if n else np.nan, n, len(true) - n)


def count_bias(truth: ArrayLike, found: ArrayLike) -> float:
    """Relative bias of the total of counts (float [n]), ``(sum of found - sum of truth) / sum of truth``.

    0.1 means 10 % too many. Too many in one case and too few in another cancel out. NaN without any true figure.
    """
    true, other = _paired(truth, found)
    total = float(true.sum())
    return (float(other.sum()) - total) / total if total else np.nan


def icc(ratings: ArrayLike) -> Icc:
    """ICC(2,1): what share of the variance of one rater's rating comes from the subjects.

    Two-way random effects, absolute agreement, single rater; ICC(A,1) in [2]_. A rater who always counts more lowers
    it. It is 1 for raters who agree on everything, may be below 0, and hangs on how much the subjects differ.
    `ratings` are float [n, k], n subjects by k raters. All is NaN with fewer than two of either, where all ratings are
    equal, and for [[1, 2], [2, 1]] and its like, two raters who contradict each other: there is no variance to share.
    The limits suppose normal ratings and are approximate: for few raters of different habits they are too narrow (90 %
    rather than 95 % for 4 raters), and they may miss a value below 0. They are NaN where the subjects' means are equal.

    References
    ----------
    .. [1] Shrout, Fleiss: Intraclass correlations: uses in assessing rater reliability. Psychol Bull 1979;86:420-428.
    .. [2] McGraw, Wong: Forming inferences about some intraclass correlation coefficients. Psychol Methods
       1996;1:30-46; the interval is in table 7.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2 or np.isinf(table).any():
        raise ValueError(f"ratings: expected finite numbers [n, k], but got an array of shape {table.shape}")
    n, k = table.shape
    if n < 2 or k < 2 or np.isnan(table).any() or np.ptp(table) == 0:
        return Icc(np.nan, np.nan, np.nan)
    subjects, raters, error = _mean_squares(table)
    if raters + error <= ROUNDING * subjects:
        return Icc(1.0, 1.0, 1.0)
    rest = k * raters + (k * n - k - n) * error
    if subjects + rest <= ROUNDING * error:
        return Icc(np.nan, np.nan, np.nan)
    # Both limits of McGraw and Wong, and the value itself, are one share of the mean square of the subjects: as it is,
    # divided by F* and multiplied by F**, which are quantiles of one F distribution. In its degrees of freedom,
    # a MSC + b MSE is that mean square, and a is k ICC / (n (1 - ICC)).
    a = (subjects - error) / ((n - 1) * error + raters)
    b = 1 + (n - 1) * a
    spread = (a * raters) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1))
    freedom = subjects**2 / spread if subjects > ROUNDING * (raters + error) else np.nan
    factors = np.array([1.0, f.ppf(TAIL, freedom, n - 1), f.isf(TAIL, freedom, n - 1)])
    shares = n * (subjects * factors - error) / (n * subjects * factors + rest)
    return Icc(*shares.tolist())


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of counts (float [n]), -1 to 1: do two counters put the cases in the same order?

    Equal counts share their mean rank. NaN with fewer than two cases or where one counter gives every case the same.

    References
    ----------
    Spearman: The proof and measurement of association between two things. Am J Psychol 1904;15:72-101.
    """
    first, second = _paired(a, b)
    if np.isnan(first).any() or np.isnan(second).any():
        return np.nan
    ranks, others = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    spread = float(np.sqrt((ranks @ ranks) * (others @ others)))
    return float(np.clip(ranks @ others / spread, -1, 1)) if spread else np.nan


def weighted_kappa(a: ArrayLike, b: ArrayLike, n_classes: int | None = None, weights: Weights = "quadratic") -> float:
    """Cohen's weighted kappa, -1 to 1: how far scores agree beyond chance, near misses counting less than far ones.

    Parameters
    ----------
    a, b : int [n]
        Scores on one scale of equal steps, such as 1, 2, 3. Where all are one and the same score kappa is 1.0; NaN
        without a case.
    n_classes : int, optional
        How many scores the scale has, to find a slip of the pen. Kappa does not hang on it: the weights are those of
        the distance of two scores, and a score that nobody gave adds nothing.
    weights : str
        "quadratic" or "linear" in the distance.

    Raises
    ------
    ConfigError
        There are no such weights.
    ValueError
        Scores are not whole numbers, or further apart than `n_classes` allows.

    References
    ----------
    Cohen: Weighted kappa: nominal scale agreement with provision for scaled disagreement or partial credit. Psychol
    Bull 1968;70:213-220.
    """
    if weights not in POWERS:
        raise ConfigError(f"weights: there is no {weights!r}. Use one of {', '.join(POWERS)}.")
    first, second = _paired(a, b)
    both = np.concatenate([first, second])
    if not len(both) or np.isnan(both).any():
        return np.nan
    if (both != np.rint(both)).any():
        raise ValueError("scores: expected whole numbers, but some are not. Give the score of a count, not the count.")
    if n_classes is not None and np.ptp(both) >= n_classes:
        raise ValueError(f"scores: {both.min():g} and {both.max():g} cannot both be among {n_classes} scores")
    power = POWERS[weights]
    scores, n_scores = np.unique(first, return_counts=True)
    others, n_others = np.unique(second, return_counts=True)
    # Whole numbers up to here, so that equal lists give 1.0 and swapped ones the same bits.
    expected = float(n_scores @ (np.abs(scores[:, np.newaxis] - others) ** power) @ n_others)
    observed = float((np.abs(first - second) ** power).sum() * len(first))
    return 1 - observed / expected if expected else 1.0


def confusion(a: Iterable[Hashable], b: Iterable[Hashable], classes: Sequence[Hashable]) -> NDArray[np.int64]:
    """Cases by the class that `a` gives (row) and that `b` gives (column), int64 [m, m] in the order of `classes` [m].

    Raises
    ------
    ValueError
        The lists differ in length, a case has another class, or a class is listed twice.
    """
    place = {label: i for i, label in enumerate(classes)}
    rows, columns = _places(a, place, "a"), _places(b, place, "b")
    if len(place) < len(classes) or len(rows) != len(columns):
        raise ValueError(
            f"expected each class once and two lists of one length, but got the classes {list(classes)} and "
            f"{len(rows)} and {len(columns)} cases"
        )
    counts = np.zeros((len(place), len(place)), dtype=np.int64)
    np.add.at(counts, (rows, columns), 1)
    return counts


def hotspot_overlap(a_box: Sequence[float], b_box: Sequence[float]) -> float:
    """Intersection over union of two windows (x0, y0, x1, y1) in one unit: did two counters look at the same place?

    0 is apart, 1 the same place; NaN if neither window has an area.

    Raises
    ------
    ValueError
        Not four finite numbers, or a window ends before it begins.
    """
    boxes = np.array([a_box, b_box], dtype=np.float64)
    if boxes.shape != (2, 4) or not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError(f"expected two windows with x0 <= x1 and y0 <= y1, but got {boxes.tolist()}")
    both = float(np.prod(np.maximum(boxes[:, 2:].min(axis=0) - boxes[:, :2].max(axis=0), 0)))
    either = float(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).sum()) - both
    return both / either if either else np.nan


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both as float64 [n]."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"expected two lists of one length, but got arrays of shape {first.shape} and {second.shape}")
    if np.isinf(first).any() or np.isinf(second).any():
        raise ValueError("expected finite numbers, but some are infinite")
    return first, second


def _mean_squares(table: FloatArray) -> tuple[float, float, float]:
    """Mean squares of the subjects, the raters and the error of a two-way table without replicates."""
    n, k = table.shape
    # Only ratios of them are used, so the table may be moved and scaled: nothing is too large or small to be squared.
    table = table - table[0, 0]
    table = table / np.abs(table).max()
    rows, columns, mean = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True), table.mean()
    subjects = k * np.square(rows - mean).sum() / (n - 1)
    raters = n * np.square(columns - mean).sum() / (k - 1)
    error = np.square(table - rows - columns + mean).sum() / ((n - 1) * (k - 1))
    return float(subjects), float(raters), float(error)


def _places(labels: Iterable[Hashable], place: dict[Hashable, int], name: str) -> list[int]:
    labels = list(labels)
    for label in labels:
        if label not in place:
            raise ValueError(f"{name}: {label} is none of the classes {list(place)}. List it or leave the case out.")
    return [place[label] for label in labels]
