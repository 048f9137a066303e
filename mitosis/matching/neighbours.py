"""Points, and which of them are no further apart than a radius: what every rule of matching is made of.

All rules use one formula for "no further", ``hypot(dx, dy) <= radius``, so that a pair at exactly the radius is
inside for all of them.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

__all__ = ["as_points", "edges_within", "is_near"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

SLACK = 1 + 1e-9  # trees compare squared distances; a little more leaves the last word to the one formula


def as_points(xy: ArrayLike, name: str) -> FloatArray:
    """Points as float64 [N, 2]; anything without elements is no points.

    Raises
    ------
    ValueError
        They are not finite [N, 2].
    """
    points = np.asarray(xy, dtype=np.float64)
    if points.size == 0:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"{name}: expected finite points [N, 2], but got an array of shape {points.shape}")
    return points


def edges_within(truth: FloatArray, found: FloatArray, radius: float) -> tuple[IntArray, FloatArray]:
    """Pairs no further apart than `radius`.

    Parameters
    ----------
    truth, found : float64 [N, 2] and [M, 2]

    Returns
    -------
    edges : int64 [E, 2]
        (index of the true point, index of the found point), sorted.
    distances : float64 [E]

    Raises
    ------
    ValueError
        The radius is negative or NaN.
    """
    _check(radius)
    if not len(truth) or not len(found):
        return np.empty((0, 2), dtype=np.int64), np.empty(0)
    # Far fewer points than detections lie near a mark, and a tree of the marks is small: it sorts out the others.
    close = np.flatnonzero(is_near(found, truth, radius * SLACK))
    near = cKDTree(truth).sparse_distance_matrix(cKDTree(found[close]), radius * SLACK, output_type="ndarray")
    first, second = near["i"].astype(np.int64), close[near["j"]]
    distances = _distance(truth[first], found[second])
    inside = distances <= radius
    order = np.lexsort((second[inside], first[inside]))
    edges = np.stack([first[inside], second[inside]], axis=1)
    return edges[order], distances[inside][order]


def is_near(points: FloatArray, others: FloatArray, radius: float) -> NDArray[np.bool_]:
    """Which of `points` have one of `others` no further away than `radius`, bool [N].

    Raises
    ------
    ValueError
        The radius is negative or NaN.
    """
    _check(radius)
    if not len(points) or not len(others):
        return np.zeros(len(points), dtype=bool)
    _, nearest = cKDTree(others).query(points, distance_upper_bound=_beyond(radius))
    within = nearest < len(others)
    within[within] = _distance(points[within], others[nearest[within]]) <= radius
    return np.asarray(within)


def _beyond(radius: float) -> float:
    """A bound that a tree, which wants distances below it, does not exclude the radius with."""
    return max(radius * SLACK, 1e-150)  # the square of less is 0, and nothing lies below it


def _distance(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(np.hypot(*(a - b).T), dtype=np.float64)


def _check(radius: float) -> None:
    if not radius >= 0:
        raise ValueError(f"radius: expected a number of at least 0, but got {radius}")
