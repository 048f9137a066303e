"""The rectangles of a given size that hold the most of a set of points: exact, for 100,000 of them too."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["densest_rectangles"]

FloatArray = NDArray[np.float64]

TOUCH = 1e-6
"""Windows that overlap by less, px, only touch."""


def densest_rectangles(points: FloatArray, size: FloatArray, last: FloatArray, taken: FloatArray) -> FloatArray:
    """Corners, float64 [M, 2], of all axis-parallel rectangles with the most points, a rectangle a set of points.

    The best rectangle can be slid right until its left edge meets a point (or the right edge a border or a taken
    place), and then down likewise, without losing a point. So a sweep goes over the left edges from right to left and
    holds the count of every top edge; a point that enters or leaves changes those of one stretch, and only there can
    a new maximum lie. Each is then moved so that its points stand in its middle.

    Parameters
    ----------
    points : float64 [N, 2]
        From (0, 0) to `last` + `size`.
    size, last : float64 [2]
        Width and height, and the largest corner allowed; the smallest is (0, 0).
    taken : float64 [K, 4]
        Rectangles (x0, y0, x1, y1) that must not be overlapped.

    Returns
    -------
    float64 [M, 2]
        Empty where no allowed rectangle holds a point.
    """
    points = points[np.lexsort((points[:, 1], -points[:, 0]))]
    rows = _Rows(points, size[1], last[1], taken)
    lefts = np.minimum(points[:, 0], last[0])
    beside = taken[:, 0] - size[0]
    beside = beside[(beside >= 0) & (beside <= last[0])]
    order = np.argsort(-np.concatenate([lefts, beside]), kind="stable")
    most, found, leaving, xs = 1, list[tuple[float, float]](), 0, points[:, 0].tolist()
    for event, left in zip(order.tolist(), np.concatenate([lefts, beside])[order].tolist(), strict=True):
        right = left + size[0] if left < last[0] else np.inf
        while leaving < len(xs) and xs[leaving] > right:
            rows.change(leaving, -1)
            leaving += 1
        rows.block(left, right)
        if event < len(points):
            rows.change(event, 1)
        best, tops = rows.best(event if event < len(points) else None, most)
        if tops and best > most:
            most, found = best, []
        found.extend((left, top) for top in tops)
    corners = [_centred(points, np.array(corner), size, last, taken) for corner in found]
    return np.unique(np.array(corners).reshape(-1, 2), axis=0)


class _Rows:
    """The number of points between the two vertical edges of the sweep, for every top edge worth looking at."""

    def __init__(self, points: FloatArray, height: float, last: float, taken: FloatArray) -> None:
        above = taken[:, 1] - height
        above = above[(above >= 0) & (above <= last)]
        own = np.minimum(points[:, 1], last)
        self.tops = np.unique(np.concatenate([own, above]))
        bottoms = np.where(self.tops < last, self.tops + height, np.inf)
        self.first = np.searchsorted(bottoms, points[:, 1]).tolist()
        self.end = np.searchsorted(self.tops, points[:, 1], side="right").tolist()
        self.own = np.searchsorted(self.tops, own).tolist()
        self.count = np.zeros(len(self.tops), np.int32)
        # A top edge is worth reporting where it meets a point in the window, or the window below it a taken place.
        self.tight = np.zeros(len(self.tops), np.int32)
        self.tight[np.searchsorted(self.tops, above)] = 1
        self.taken = [
            [x0, x1, int(np.searchsorted(bottoms, y0 + TOUCH, "right")), int(np.searchsorted(self.tops, y1 - TOUCH)), 0]
            for x0, y0, x1, y1 in taken.tolist()
        ]
        self.weight = len(points) + 1

    def change(self, point: int, by: int) -> None:
        """Let a point enter (1) or leave (-1)."""
        self.count[self.first[point] : self.end[point]] += by
        self.tight[self.own[point]] += by

    def block(self, left: float, right: float) -> None:
        """Make the counts of the windows that would overlap a taken place negative."""
        for place in self.taken:
            x0, x1, first, end, blocked = place
            now = int(left < x1 - TOUCH and right > x0 + TOUCH)
            if now != blocked:
                self.count[first:end] -= self.weight * (now - blocked)
                place[4] = now

    def best(self, point: int | None, least: int) -> tuple[int, list[float]]:
        """The highest count over the windows that hold `point` (None: over all), and the tops if it is `least`."""
        first, end = (0, len(self.tops)) if point is None else (self.first[point], self.end[point])
        part = self.count[first:end]
        best = int(part.max())
        if best < least:
            return best, []
        rows = np.flatnonzero((part == best) & (self.tight[first:end] > 0))
        return best, self.tops[rows + first].tolist()


def _centred(
    points: FloatArray, corner: FloatArray, size: FloatArray, last: FloatArray, taken: FloatArray
) -> FloatArray:
    """The window at `corner` moved so that its points lie in its middle, as far as border and taken places allow."""
    far = np.where(corner < last, corner + size, np.inf)
    by_x = -points[:, 0]  # the points come with falling x
    near = points[np.searchsorted(by_x, -far[0]) : np.searchsorted(by_x, -corner[0], side="right")]
    near = near[(near[:, 1] >= corner[1]) & (near[:, 1] <= far[1])]
    low, high = near.min(axis=0), near.max(axis=0)
    moved = np.clip((low + high - size) / 2, 0, last)
    reach = np.where(moved < last, moved + size, np.inf)
    fits: FloatArray = np.where((moved <= low) & (high <= reach), moved, corner)
    apart = (fits + size <= taken[:, :2] + TOUCH) | (fits >= taken[:, 2:] - TOUCH)
    return fits if apart.any(axis=1).all() else corner
