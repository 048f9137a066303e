"""How many figures are really there, when a detector that misses some and invents some has found n.

The model. In a window of area A the true figures are Poisson with mean L = d A; the detector finds each with
probability r, and adds false ones, Poisson with mean f A:

    true ~ Poisson(d A),  found = Binomial(true, r) + Poisson(f A)

Density d, recall r and false rate f differ from case to case: r by a beta distribution, d and f by gamma distributions.
So in a case with known marks the found figures are beta-binomial, and the figures and the false detections negative
binomial [1]_ [2]_. The parameters of the three are not estimated but averaged over: a grid of their posterior given
the calibration cases, under priors that say little (mean recall uniform, other means Jeffreys', all spreads by a
uniform shrinkage prior [3]_). A new case draws its own d, r and f; what was found in it says something about all three
together, so the draws are weighted by how well they explain it. All is Monte Carlo with a fixed seed: the same input
gives the same numbers.

Four things are not modelled. A hotspot is chosen because much was found there, so its count is rather too high than too
low. A slide unlike the calibration cases (another scanner, another tumour) may lie outside all of this, and with few
figures found the interval leans towards their densities. The threshold should not have been chosen on the very cases
that calibrate it. And the marks are taken for the truth.

References
----------
.. [1] Gelman et al: Bayesian data analysis, 3rd ed, 2013; section 5.3 (beta-binomial, on a grid).
.. [2] Rogan, Gladen: Estimating prevalence from the results of a screening test. Am J Epidemiol 1978;107:71-76.
.. [3] Daniels: A prior for the variance in hierarchical models. Can J Stat 1999;27:567-578.
.. [4] Agresti, Gottard: Nonconservative exact small-sample inference for discrete data. Comput Stat Data Anal
   2007;51:6447-6458.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln, logsumexp, xlogy

__all__ = ["CaseCounts", "Coverage", "Posterior", "TrueCount", "left_out_coverage", "posterior", "true_count"]

FloatArray = NDArray[np.float64]

N_DRAWS = 4000
GRID = (120, 40)
"""Points of the grids for a mean and for a spread."""

LEAST_RECALL = 1e-3

MOST_TERMS = 4_000_000
"""Numbers held at once when draws are weighted."""


@dataclass(frozen=True, slots=True)
class CaseCounts:
    """What the detector did on a case with known marks.

    Attributes
    ----------
    tp, fp, fn : int
        Figures found, false detections, figures missed.
    area_mm2 : float
        Tissue that was looked at.
    case : str
        Name; may be empty.

    Raises
    ------
    ValueError
        A count is negative, or the area is not above 0.
    """

    tp: int
    fp: int
    fn: int
    area_mm2: float
    case: str = ""

    def __post_init__(self) -> None:
        if min(self.tp, self.fp, self.fn) < 0 or not 0 < self.area_mm2 < float("inf"):
            raise ValueError(f"calibration case {self.case!r}: expected counts from 0 and an area above 0, got {self}")


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """Equally likely draws of what is in a window.

    Attributes
    ----------
    count : int64 [M]
        True figures in the window.
    mean : float64 [M]
        Their Poisson mean: what such windows would hold on average.
    """

    count: NDArray[np.int64]
    mean: FloatArray


@dataclass(frozen=True, slots=True)
class TrueCount:
    """What is known of the number of true figures in a window.

    Attributes
    ----------
    low, high : int
        Ends of the interval, which belong to it.
    median : float
    confidence : float
        Probability that the interval holds the number, by the model, as near as whole numbers allow.
    n_cases : int
        Cases that the detector was calibrated on.
    """

    low: int
    high: int
    median: float
    confidence: float
    n_cases: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often the interval of a case left out held its true count; each was calibrated on all other cases."""

    n: int
    n_covered: int
    n_too_low: int
    n_too_high: int

    @property
    def share(self) -> float:
        """NaN without a case."""
        return self.n_covered / self.n if self.n else float("nan")


def posterior(found: int, area_mm2: float, calibration: Sequence[CaseCounts] = (), seed: int = 0) -> Posterior:
    """Draws of the true count and its mean, given that `found` figures were detected on `area_mm2` of tissue.

    Without calibration cases the detector is taken at its word: the count is `found`, and only its mean is uncertain.
    """
    if found < 0 or not 0 < area_mm2 < float("inf"):
        raise ValueError(f"expected a count from 0 and an area above 0, got {found} and {area_mm2}")
    rng = np.random.default_rng(seed)
    if not calibration:
        return Posterior(np.full(N_DRAWS, found, dtype=np.int64), rng.gamma(found + 0.5, 1.0, N_DRAWS))
    case = _draw_cases(tuple(calibration), seed)
    recall, shape, false_mean = case.recall, case.shape, area_mm2 * case.false_rate
    rate = shape / (case.density * area_mm2)
    n_parts = -(-N_DRAWS * (found + 1) // MOST_TERMS)
    parts = zip(*(np.array_split(v, n_parts) for v in (recall, false_mean, shape, rate)), strict=True)
    explained = [_explain(found, r, f, k, b, rng) for r, f, k, b in parts]
    weight = np.concatenate([w for w, _ in explained])
    n_found = np.concatenate([n for _, n in explained])
    chance = np.exp(weight - weight.max())
    i = rng.choice(N_DRAWS, N_DRAWS, p=chance / chance.sum())
    mean = rng.gamma(n_found[i] + shape[i]) / (recall[i] + rate[i])
    return Posterior(n_found[i] + rng.poisson(mean * (1 - recall[i])), mean)


def true_count(
    found: int, area_mm2: float, calibration: Sequence[CaseCounts], confidence: float = 0.95, seed: int = 0
) -> TrueCount:
    """The shortest interval that holds the number of true figures in a window in which `found` were detected.

    Its probability is as near to `confidence` as whole numbers allow. Were it never below, the intervals of fields of
    left-out cases would hold 97.5 % of the true counts, and with equal tails 99 %, as nothing lies below 0; so they
    hold 96 %. The mean of what is held, not the least, is what a mid-P interval keeps too [4]_.
    """
    count = posterior(found, area_mm2, calibration, seed).count
    low, high = _shortest(count, confidence)
    return TrueCount(low, high, float(np.median(count)), confidence, len(calibration))


def _shortest(count: NDArray[np.int64], share: float) -> tuple[int, int]:
    """The shortest interval with at least a share of the draws, or one number less if that is nearer to the share.

    Of several of one length it is that with most draws, then the lowest.
    """
    until = np.concatenate([[0], np.cumsum(np.bincount(count))])  # draws below each number
    low = np.flatnonzero(until[-1] - until[:-1] >= share * len(count))
    end = np.searchsorted(until, until[low] + share * len(count))
    enough = int((end - low).min())
    best = []
    for length in range(max(1, enough - 1), enough + 1):
        held = until[length:] - until[:-length]
        first = int(held.argmax())
        best.append((abs(held[first] - share * len(count)), -length, first, first + length - 1))
    return min(best)[2:]


def left_out_coverage(cases: Sequence[CaseCounts], confidence: float = 0.95, seed: int = 0) -> Coverage:
    """Whether the intervals hold on cases with known marks: each is left out, and calibrated on all others.

    About `confidence` of them should be covered. Where few are found intervals begin at 0, so none is too high.
    Fewer than three cases say nothing, and give a coverage of none.
    """
    low = high = n = 0
    for i, case in enumerate(cases) if len(cases) > 2 else ():
        others = [*cases[:i], *cases[i + 1 :]]
        interval = true_count(case.tp + case.fp, case.area_mm2, others, confidence, seed)
        truth = case.tp + case.fn
        n, low, high = n + 1, low + (interval.high < truth), high + (interval.low > truth)
    return Coverage(n, n - low - high, low, high)


class _Cases(NamedTuple):
    """Draws of what a new case is like, float64 [N_DRAWS] each.

    `shape` and `density` (per mm²) are those of the gamma distribution of its density, which is not drawn.
    """

    recall: FloatArray
    false_rate: FloatArray
    shape: FloatArray
    density: FloatArray


@lru_cache(maxsize=8)
def _draw_cases(calibration: tuple[CaseCounts, ...], seed: int) -> _Cases:
    rng = np.random.default_rng([seed, len(calibration)])
    areas = [case.area_mm2 for case in calibration]
    recall = _draw_recall(calibration, rng)
    shape, density = _draw_gamma([case.tp + case.fn for case in calibration], areas, rng)
    false_shape, false_mean = _draw_gamma([case.fp for case in calibration], areas, rng)
    return _Cases(recall, rng.gamma(false_shape) * false_mean / false_shape, shape, density)


def _draw_recall(cases: Sequence[CaseCounts], rng: np.random.Generator) -> FloatArray:
    """Recalls of new cases, float64 [N_DRAWS]."""
    found, missed = (np.array(counts)[:, None, None] for counts in zip(*((c.tp, c.fn) for c in cases), strict=True))

    def log_posterior(mean: FloatArray, root: FloatArray) -> FloatArray:
        size = 1 / root**2 - 1  # the square of `root` is the correlation within a case, uniform a priori
        a, b = mean * size, (1 - mean) * size
        likelihood: FloatArray = (betaln(found + a, missed + b) - betaln(a, b)).sum(axis=0)
        return likelihood + np.log(root)

    mean, root = _draw_grid(log_posterior, (0.0, 1.0), rng)
    size = 1 / root**2 - 1
    return np.maximum(rng.beta(mean * size, (1 - mean) * size), LEAST_RECALL)


def _draw_gamma(
    counts: Sequence[int], areas_mm2: Sequence[float], rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Shapes and means, float64 [N_DRAWS] each, of the gamma distribution of the rates per mm² behind these counts."""
    count, area = np.array(counts)[:, None, None], np.array(areas_mm2)[:, None, None]

    def log_posterior(log_mean: FloatArray, root: FloatArray) -> FloatArray:
        shape, expected = 1 / root**2 - 1, area * np.exp(log_mean)
        likelihood = gammaln(count + shape) - gammaln(shape) - shape * np.log1p(expected / shape)
        likelihood = likelihood + xlogy(count, expected / (shape + expected))
        total: FloatArray = likelihood.sum(axis=0)
        return total + log_mean / 2 + np.log(root)

    middle = float(np.log((count.sum() + 0.5) / area.sum()))
    log_mean, root = _draw_grid(log_posterior, (middle - 5, middle + 3), rng)
    return 1 / root**2 - 1, np.exp(log_mean)


def _draw_grid(
    log_posterior: Callable[[FloatArray, FloatArray], FloatArray], ends: tuple[float, float], rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Draws, float64 [N_DRAWS] each, of a parameter between `ends` and of one between 0 and 1, on and around a grid."""
    n, m = GRID
    step = (ends[1] - ends[0]) / n
    first = np.float64(ends[0]) + (np.arange(n, dtype=np.float64) + 0.5) * step
    second = (np.arange(m, dtype=np.float64) + 0.5) / m
    logs = log_posterior(first[:, None], second[None, :]).ravel()
    chosen = rng.choice(n * m, N_DRAWS, p=np.exp(logs - logsumexp(logs)))
    shift = rng.uniform(-0.499, 0.499, (2, N_DRAWS))
    return first[chosen // m] + shift[0] * step, second[chosen % m] + shift[1] / m


def _explain(
    found: int,
    recall: FloatArray,
    false_mean: FloatArray,
    shape: FloatArray,
    rate: FloatArray,
    rng: np.random.Generator,
) -> tuple[FloatArray, NDArray[np.int64]]:
    """For each draw the log probability of `found`, and how many of them are true, drawn given `found`.

    True ones that are found are negative binomial: Poisson with the mean L r, L gamma with `shape` and `rate`.
    """
    n = np.arange(found + 1)
    false_mean = np.maximum(false_mean, 1e-300)
    rising = np.log(shape[:, None] + n[:-1]).cumsum(axis=1)  # log of Gamma(n + shape) / Gamma(shape)
    terms = np.pad(rising, ((0, 0), (1, 0))) + n * np.log(recall / (recall + rate))[:, None]
    terms += (found - n) * np.log(false_mean)[:, None] - gammaln(n + 1) - gammaln(found - n + 1)
    top = terms.max(axis=1)
    total = np.exp(terms - top[:, None]).cumsum(axis=1)
    drawn: NDArray[np.int64] = (total < rng.random((len(total), 1)) * total[:, -1:]).sum(axis=1)
    weight: FloatArray = top + np.log(total[:, -1]) + shape * np.log(rate / (recall + rate)) - false_mean
    return weight, drawn
