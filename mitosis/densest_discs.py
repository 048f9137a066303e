"""The discs of a given radius that hold the most of a set of points: exact, for 100,000 of them too."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = ["DISC_TOLERANCE", "densest_discs"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DISC_TOLERANCE = 1e-9
"""A point this share of the radius outside a disc still lies on its border: circles meet in irrational places."""

MOST_PAIRS = 2_000_000
"""Pairs of a circle and a near point that are held at once; with fewer pairs in all, no circle is left out first."""

CELLS = 64
"""Cells to a radius of the grid on which the count of every disc is bounded."""

MOST_CELLS = 4_000_000
"""The grid has no more cells than about this."""

REFINEMENTS, MOST_REFINED = 4, 100_000
"""How often the cells that are left are cut into four, and how many there may be to do so."""

HALF_DIAGONAL = 0.7072
"""Of a square of side 1, rounded up."""


def densest_discs(points: FloatArray, radius: float, taken: FloatArray) -> FloatArray:
    """Centres, float64 [M, 2], of all discs of one radius with the most points, a disc a set of points.

    The best disc can be moved, without losing a point, until a point lies on its border (or it touches a taken one),
    and then along that until a second does. So each point's circle of that radius is swept: the near points cover arcs
    of it, and where most arcs overlap is the best centre on it [1]_. Where there are many pairs, circles are left out
    first that pass no cell of a grid in which a disc could hold as many points as one that is known.

    Parameters
    ----------
    points : float64 [N, 2]
    taken : float64 [K, 2]
        Centres of discs of the same radius that must not be overlapped.

    Returns
    -------
    float64 [M, 2]
        Empty where no allowed disc holds a point. Each is where its points lie in the middle, if that is allowed.

    References
    ----------
    .. [1] Chazelle, Lee: On a circle placement problem. Computing 1986;36:1-16.
    """
    points = points[np.lexsort((points[:, 0], points[:, 1]))]
    tree = cKDTree(points)
    circles = np.unique(points, axis=0)
    n_pairs = int(tree.query_ball_point(circles[:: max(1, len(circles) // 500)], 2 * radius, return_length=True).mean())
    if n_pairs * len(circles) > MOST_PAIRS:
        circles = circles[_worth_a_sweep(circles, tree, radius, taken)]
    centres = np.concatenate([circles, taken])
    radii = np.concatenate([np.full(len(circles), radius), np.full(len(taken), 2 * radius)])
    most, found = 1, list[FloatArray]()
    for part in _chunks(tree, centres, radii + radius):
        best, places = _sweep(tree, centres[part], radii[part], radius, taken)
        if best > most:
            most, found = best, []
        if best == most:
            found.append(places)
    places = np.concatenate([np.empty((0, 2)), *found])
    seen = {tuple(sorted(tree.query_ball_point(c, radius * (1 + DISC_TOLERANCE)))): c for c in places[::-1]}
    middles = [_middle(points[list(members)], centre, radius, taken) for members, centre in seen.items()]
    return np.unique(np.array(middles).reshape(-1, 2), axis=0)


def _chunks(tree: cKDTree, centres: FloatArray, reach: FloatArray) -> Iterator[slice]:
    """Stretches of the circles with at most `MOST_PAIRS` pairs each, or of one circle."""
    n_near = np.cumsum(tree.query_ball_point(centres, reach * (1 + DISC_TOLERANCE), return_length=True))
    start = 0
    while start < len(centres):
        before = n_near[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(n_near, before + MOST_PAIRS, side="right")))
        yield slice(start, stop)
        start = stop


def _sweep(
    tree: cKDTree, centres: FloatArray, radii: FloatArray, radius: float, taken: FloatArray
) -> tuple[int, FloatArray]:
    """The highest count of a disc whose centre lies on one of these circles, and the places, float64 [M, 2]."""
    reach = (radii + radius) * (1 + DISC_TOLERANCE)
    near = tree.query_ball_point(centres, reach, return_sorted=True)
    circle = np.repeat(np.arange(len(centres)), [len(n) for n in near])
    point = np.concatenate([np.asarray(n, dtype=np.int64) for n in near])
    blocked, blocking = (a.ravel() for a in np.indices((len(centres), len(taken))))
    other = (centres[blocked] != taken[blocking]).any(axis=1) | (radii[blocked] == radius)
    blocked, blocking = blocked[other], blocking[other]
    covers = np.concatenate([tree.data[point], taken[blocking]])
    weight = np.repeat(np.array([1, -len(tree.data) - 1]), [len(point), len(blocking)])
    circle = np.concatenate([circle, blocked])
    cover_radius = np.where(weight > 0, radius, 2 * radius)
    middle, half = _arcs(covers - centres[circle], radii[circle], cover_radius)
    half = half + DISC_TOLERANCE / 4 * np.sign(weight)  # closed discs, open taken places
    kept = half > 0
    value, angle, owner = _overlaps(circle[kept], middle[kept], half[kept], weight[kept], len(centres))
    best = int(value.max())
    top = value == best
    ring = np.stack([np.cos(angle[top]), np.sin(angle[top])], axis=1)
    return best, centres[owner[top]] + radii[owner[top], np.newaxis] * ring


def _arcs(offset: FloatArray, radii: FloatArray, cover: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Middle and half length, radians, of the arc of each circle that a disc of radius `cover` at `offset` covers.

    The half length is pi or more where the disc covers all, -1 where it covers nothing.
    """
    distance = np.hypot(offset[:, 0], offset[:, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = (radii**2 + distance**2 - cover**2) / (2 * radii * distance)
    half = np.arccos(np.clip(cosine, -1, 1))
    half = np.where(cosine > 1 + DISC_TOLERANCE / 4, -1.0, half)
    half = np.where(distance + radii <= cover, 4.0, half)
    return np.arctan2(offset[:, 1], offset[:, 0]), np.nan_to_num(half, nan=4.0)


def _overlaps(
    circle: IntArray, middle: FloatArray, half: FloatArray, weight: IntArray, n_circles: int
) -> tuple[IntArray, FloatArray, IntArray]:
    """Weight of the arcs that overlap at each place where one begins or ends: value, angle and circle of the place."""
    full = half >= np.pi
    start = (middle - half + np.pi) % (2 * np.pi) - np.pi
    end = start + 2 * half
    wraps = full | (end > np.pi)
    everywhere = np.bincount(circle[wraps], weight[wraps], n_circles).astype(np.int64)
    circle, start, end, weight = circle[~full], start[~full], end[~full], weight[~full]
    end = np.where(end > np.pi, end - 2 * np.pi, end)
    owner = np.concatenate([np.arange(n_circles), circle, circle])
    angle = np.concatenate([np.full(n_circles, -np.pi), start, end])
    change = np.concatenate([everywhere, weight, -weight])
    rank = np.where(change > 0, 1, 2)  # at one place what adds comes first: an arc holds its ends
    rank[:n_circles] = 0
    order = np.lexsort((rank, angle, owner))
    owner, angle, change = owner[order], angle[order], change[order]
    total = np.cumsum(change)
    first = np.searchsorted(owner, np.arange(n_circles))
    return total - (total[first] - change[first])[owner], angle, owner


def _worth_a_sweep(circles: FloatArray, tree: cKDTree, radius: float, taken: FloatArray) -> NDArray[np.bool_]:
    """Which circles pass a cell in which the centre of a best disc could lie, bool [N]."""
    cells, bound, side = _bounds(tree.data, radius)
    known = _most_within(tree, cells[np.argsort(-bound, kind="stable")[:500]], radius, taken)
    cells = cells[bound >= known]
    for step in range(REFINEMENTS + 1):
        slack = side * HALF_DIAGONAL
        cells = cells[tree.query_ball_point(cells, radius + slack, return_length=True) >= known]
        if len(cells) > MOST_REFINED:  # then the discs are too much alike to leave circles out
            return np.ones(len(circles), dtype=bool)
        if step == REFINEMENTS:
            break
        quarters = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)]) * side / 4
        cells, side = (cells[:, np.newaxis] + quarters).reshape(-1, 2), side / 2
        known = max(known, _most_within(tree, cells, radius, taken))
    left = cKDTree(cells)
    outer = left.query_ball_point(circles, radius + slack, return_length=True)
    passes: NDArray[np.bool_] = outer > left.query_ball_point(circles, radius - slack, return_length=True)
    return passes


def _bounds(points: FloatArray, radius: float) -> tuple[FloatArray, IntArray, float]:
    """Centres [M, 2] of the cells of a grid, no disc centred in each of which holds more than [M] points; their side.

    The bound is the number of points in all cells that such a disc can touch.
    """
    extent = np.ptp(points, axis=0) + 4 * radius
    side = max(radius / CELLS, float(extent.prod() / MOST_CELLS) ** 0.5)
    reach = int(radius / side) + 2
    low = points.min(axis=0) - (2 * reach + 1) * side
    width, height = (int(n) for n in np.ptp(points, axis=0) // side + 4 * reach + 4)
    column, row = ((points - low) // side).astype(np.int64).T
    counts = np.bincount(row * width + column, minlength=width * height).reshape(height, width)
    left_of = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0)))
    bound = np.zeros((height - 2 * reach, width - 2 * reach), np.int64)
    for dy in range(-reach, reach + 1):
        gap = max(abs(dy) - 1, 0) * side
        if gap <= radius:
            dx = min(int((radius**2 - gap**2) ** 0.5 / side) + 1, reach)
            rows = left_of[reach + dy : reach + dy + len(bound)]
            bound += rows[:, reach + dx + 1 : reach + dx + 1 + bound.shape[1]]
            bound -= rows[:, reach - dx : reach - dx + bound.shape[1]]
    y, x = np.indices(bound.shape).reshape(2, -1)
    return low + (np.stack([x, y], axis=1) + reach + 0.5) * side, bound.ravel(), side


def _most_within(tree: cKDTree, places: FloatArray, radius: float, taken: FloatArray) -> int:
    if len(taken):
        places = places[cKDTree(taken).query(places)[0] >= 2 * radius]
    return int(tree.query_ball_point(places, radius, return_length=True).max(initial=1))


def _middle(members: FloatArray, centre: FloatArray, radius: float, taken: FloatArray) -> FloatArray:
    """A centre that holds the same points as `centre` with room on all sides, if there is one that is allowed."""

    def fits(place: FloatArray) -> bool:
        held = np.hypot(*(members - place).T).max() <= radius
        return bool(held and (np.hypot(*(taken - place).T) >= 2 * radius).all())

    middle: FloatArray = (members.min(axis=0) + members.max(axis=0)) / 2
    if fits(middle):
        return middle
    for step in range(2, 200):  # towards the farthest point by less and less: the smallest circle around them (Badoiu)
        middle = middle + (members[np.hypot(*(members - middle).T).argmax()] - middle) / step
    return middle if fits(middle) else centre
