"""One to one, as many pairs as possible, then the shortest: the rule this toolkit counts and learns by."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

from mitosis.matching.neighbours import as_points, edges_within
from mitosis.matching.protocol import Protocol
from mitosis.matching.result import Matching, MatchResult

__all__ = ["MATCH_RADIUS_UM", "OPTIMAL", "gains", "match", "one_to_one"]

MATCH_RADIUS_UM = 7.5
"""How far, in µm, a detection may lie from the mark it is counted for; the radius of the MIDOG challenges."""

DENSE_CELLS = 1 << 20  # a crowd whose table of costs has more cells is solved as a list of edges

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


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
    truth, found = as_points(truth_xy, "truth_xy"), as_points(found_xy, "found_xy")
    edges, distances = edges_within(truth, found, radius)
    centre = _star_centres(edges)
    in_star = np.flatnonzero(centre >= 0)
    crowded = np.flatnonzero(centre < 0)
    chosen = [in_star[_firsts(centre[in_star], distances[in_star])]]
    chosen += [
        crowded[group][_assign(edges[crowded[group]], distances[crowded[group]])] for group in _groups(edges[crowded])
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
    truth, found = as_points(truth_xy, "truth_xy"), as_points(found_xy, "found_xy")
    edges, _ = edges_within(truth, found, radius)
    centre = _star_centres(edges)
    in_star = np.flatnonzero(centre >= 0)
    gained = np.zeros(len(found), dtype=bool)
    # A star has one pair, and the first of its found points makes it.
    gained[edges[in_star[_firsts(centre[in_star], edges[in_star, 1])], 1]] = True
    near: dict[int, list[int]] = {}
    for i, j in edges[centre < 0].tolist():
        near.setdefault(j, []).append(i)
    partner: dict[int, int] = {}
    for j in sorted(near):
        gained[j] = _augment(j, near, partner)
    return gained


def one_to_one(truth_um: FloatArray, found_um: FloatArray, scores: FloatArray, radius_um: float) -> MatchResult:  # noqa: ARG001 - every rule of a protocol is asked the same way
    """`match` as the rule of a protocol."""
    return match(truth_um, found_um, radius_um).result


OPTIMAL = Protocol(
    name="optimal",
    radius_um=MATCH_RADIUS_UM,
    rule=one_to_one,
    source="this toolkit: maximum-cardinality, then minimum-distance bipartite matching",
    quirks=(
        "None intended: one to one, the most pairs possible, in any order of the points. A second detection on a mark "
        "is a false positive."
    ),
)


def _star_centres(edges: IntArray) -> IntArray:
    """For each edge the centre of its star, or -1 where the points around it are no star, int64 [E].

    A star is a true point whose found points have no other, or the other way round: all that is usually there. A true
    centre i is i, a found centre j comes after all of those.
    """
    if not len(edges):
        return np.empty(0, dtype=np.int64)
    first, second = edges.T
    n_first, n_second = np.bincount(first), np.bincount(second)
    true_star = np.bincount(first, n_second[second] == 1) == n_first
    found_star = np.bincount(second, n_first[first] == 1) == n_second
    return np.where(true_star[first], first, np.where(found_star[second], second + len(n_first), -1))


def _firsts(group: IntArray, value: IntArray | FloatArray) -> IntArray:
    """Index of the least `value` of each group (the first of several)."""
    order = np.lexsort((value, group))
    _, start = np.unique(group[order], return_index=True)
    return np.asarray(order[start])


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
    no_edge = (distances.max() + 1) * (min(len(rows), len(columns)) + 1)
    if len(rows) * len(columns) > DENSE_CELLS:
        return _assign_sparse(row, column, distances, no_edge)
    cost = np.full((len(rows), len(columns)), no_edge)
    cost[row, column] = distances
    edge = np.full(cost.shape, -1)
    edge[row, column] = np.arange(len(edges))
    used: IntArray = edge[linear_sum_assignment(cost)]
    return used[used >= 0]


def _assign_sparse(row: IntArray, column: IntArray, distances: FloatArray, no_edge: float) -> IntArray:
    """The same from the edges alone: each row may have a column of its own that stands for "not matched"."""
    n_rows, n_columns = row.max() + 1, column.max() + 1
    own = np.arange(n_rows)
    # A stored 0 would not count as an edge, and one more on every edge changes no choice: all rows are matched.
    cost = np.concatenate([distances, np.full(n_rows, no_edge)]) + 1
    where = (np.concatenate([row, own]), np.concatenate([column, n_columns + own]))
    used_rows, used_columns = min_weight_full_bipartite_matching(
        csr_array((cost, where), shape=(n_rows, n_columns + n_rows))
    )
    chosen = np.full(n_rows, -1)
    chosen[used_rows] = used_columns
    return np.flatnonzero(chosen[row] == column)


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
