"""Detections against marks: which found point is which true point, under a named protocol."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

__all__ = ["MATCH_RADIUS_UM", "PROTOCOLS", "MatchResult", "Matching", "gains", "match"]

MATCH_RADIUS_UM = 7.5
"""How far, in µm, a detection may lie from the mark it is counted for; the radius of the MIDOG challenges."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MatchResult:
    """True positives, false positives and false negatives; ``a + b`` pools two slides.

    A share of nothing is 1.0: where nothing was found nothing found is wrong, and where there is nothing to find and
    nothing was found F1 is 1.0. So every value is a finite number.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: "MatchResult") -> "MatchResult":
        return MatchResult(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def precision(self) -> float:
        """Share of the detections that are true."""
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the marks that were found."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, ``2 tp / (2 tp + fp + fn)``."""
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)


@dataclass(frozen=True, slots=True)
class Matching:
    """Who was matched with whom.

    Attributes
    ----------
    pairs : int64 [K, 2]
        (index of the true point, index of the found point), by the first.
    distances : float64 [K]
        How far the two points of a pair are apart, in the unit of the radius.
    n_truth, n_found : int
        How many points there were.
    """

    pairs: IntArray
    distances: FloatArray
    n_truth: int
    n_found: int

    @property
    def result(self) -> MatchResult:
        """The three numbers."""
        n_pairs = len(self.pairs)
        return MatchResult(n_pairs, self.n_found - n_pairs, self.n_truth - n_pairs)

    @property
    def unmatched_found(self) -> IntArray:
        """Indices of the false positives, ascending."""
        return np.setdiff1d(np.arange(self.n_found), self.pairs[:, 1])

    @property
    def unmatched_truth(self) -> IntArray:
        """Indices of the false negatives, ascending."""
        return np.setdiff1d(np.arange(self.n_truth), self.pairs[:, 0])


def match(truth_xy: ArrayLike, found_xy: ArrayLike, radius: float) -> Matching:
    """Match one to one: as many pairs within `radius` as possible, and among those matchings the least total distance.

    The numbers do not depend on the order of the points. Two detections on one mark are one true and one false
    positive.

    Parameters
    ----------
    truth_xy, found_xy : float [N, 2] and [M, 2]
        Points, in the unit of `radius` (px or µm).
    radius : float
        Largest distance of a pair, inclusive.

    Raises
    ------
    ValueError
        Points are not finite [N, 2], or the radius is negative.
    """
    truth, found = _points(truth_xy, "truth_xy"), _points(found_xy, "found_xy")
    edges, distances = _edges(truth, found, radius)
    lonely = (np.bincount(edges[:, 0])[edges[:, 0]] == 1) & (np.bincount(edges[:, 1])[edges[:, 1]] == 1)
    chosen = [np.flatnonzero(lonely)]
    crowded = np.flatnonzero(~lonely)
    chosen += [
        crowded[group][_assign(edges[crowded[group]], distances[crowded[group]])] for group in _groups(edges[~lonely])
    ]
    keep = np.sort(np.concatenate(chosen))
    return Matching(edges[keep], distances[keep], len(truth), len(found))


def gains(truth_xy: ArrayLike, found_xy: ArrayLike, radius: float) -> NDArray[np.bool_]:
    """Which found points, taken one after the other in the order given, raise the number of true positives.

    ``gains(...)[:k].sum()`` is the number of pairs that `match` makes of the first k found points, for every k at
    once: a largest matching is made larger by a new vertex only along an augmenting path that starts there (Berge
    1957), and one that could not be matched when it came never will be.

    Returns
    -------
    bool [M]
    """
    truth, found = _points(truth_xy, "truth_xy"), _points(found_xy, "found_xy")
    edges, _ = _edges(truth, found, radius)
    near: dict[int, list[int]] = {}
    for i, j in edges.tolist():
        near.setdefault(j, []).append(i)
    partner: dict[int, int] = {}
    gained = np.zeros(len(found), dtype=bool)
    for j in sorted(near):
        gained[j] = _augment(j, near, partner)
    return gained


PROTOCOLS: dict[str, Callable[[ArrayLike, ArrayLike, float], Matching]] = {"optimal": match}
"""Every rule of matching by its name."""


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _points(xy: ArrayLike, name: str) -> FloatArray:
    points = np.asarray(xy, dtype=np.float64)
    if points.size == 0:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"{name}: expected finite points [N, 2], but got an array of shape {points.shape}")
    return points


def _edges(truth: FloatArray, found: FloatArray, radius: float) -> tuple[IntArray, FloatArray]:
    """Pairs [E, 2] no further apart than `radius`, sorted, and their distances [E]."""
    if not radius >= 0:
        raise ValueError(f"radius: expected a number of at least 0, but got {radius}")
    if not len(truth) or not len(found):
        return np.empty((0, 2), dtype=np.int64), np.empty(0)
    # The tree compares squared distances; a little slack leaves the last word on "inclusive" to one formula.
    near = cKDTree(found).query_ball_point(truth, radius * (1 + 1e-9), return_sorted=True)
    first = np.repeat(np.arange(len(truth)), [len(js) for js in near])
    second = np.concatenate([np.asarray(js, dtype=np.int64) for js in near])
    distances = np.hypot(*(truth[first] - found[second]).T)
    inside = distances <= radius
    return np.stack([first[inside], second[inside]], axis=1), distances[inside]


def _groups(edges: IntArray) -> Iterator[IntArray]:
    """Indices of the edges of each connected component."""
    if not len(edges):
        return
    n_truth, n_found = edges.max(axis=0) + 1
    n = n_truth + n_found
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1] + n_truth)), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    of_edge = component[edges[:, 0]]
    order = np.argsort(of_edge, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(of_edge[order])) + 1)


def _assign(edges: IntArray, distances: FloatArray) -> IntArray:
    """Indices of the edges of one component that its best matching uses."""
    rows, row = np.unique(edges[:, 0], return_inverse=True)
    columns, column = np.unique(edges[:, 1], return_inverse=True)
    # One pair that is no edge costs more than all real pairs together, so the number of real pairs comes first.
    cost = np.full((len(rows), len(columns)), (distances.max() + 1) * (min(len(rows), len(columns)) + 1))
    cost[row, column] = distances
    edge = np.full(cost.shape, -1)
    edge[row, column] = np.arange(len(edges))
    used: IntArray = edge[linear_sum_assignment(cost)]
    return used[used >= 0]


def _augment(start: int, near: dict[int, list[int]], partner: dict[int, int]) -> bool:
    """Match found point `start`, moving partners of other true points if that helps (breadth first)."""
    reached_from: dict[int, int] = {}
    freed_by: dict[int, int] = {}
    queue = [start]
    for j in queue:
        for i in near[j]:
            if i in reached_from:
                continue
            reached_from[i] = j
            if i not in partner:
                _flip(i, reached_from, freed_by, partner)
                return True
            freed_by[partner[i]] = i
            queue.append(partner[i])
    return False


def _flip(free: int, reached_from: dict[int, int], freed_by: dict[int, int], partner: dict[int, int]) -> None:
    """Walk back from true point `free`, giving every true point on the way the found point it was reached from."""
    true_point: int | None = free
    while true_point is not None:
        j = reached_from[true_point]
        partner[true_point] = j
        true_point = freed_by.get(j)
