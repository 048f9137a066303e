"""The densest rectangles and discs against every window worth trying."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitosis import densest_discs as discs
from mitosis.densest_discs import DISC_TOLERANCE, densest_discs
from mitosis.densest_rectangles import densest_rectangles

SLIDE = np.array([40.0, 30.0])
NO_BOXES, NO_DISCS = np.empty((0, 4)), np.empty((0, 2))

# Whole numbers bring points on borders and on each other; fractions bring everything else.
whole = st.tuples(st.integers(0, 40), st.integers(0, 30))
fraction = st.tuples(st.floats(0, 40), st.floats(0, 30))
clouds = st.lists(whole, min_size=1, max_size=11) | st.lists(fraction, min_size=1, max_size=11)
corners = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), max_size=2)


def held_by_rectangle(points, corner, size, slack=1e-9):
    return int(np.all((points >= corner - slack) & (points <= corner + size + slack), axis=1).sum())


def overlap(corner, size, box, slack=1e-6):
    return bool(np.all((corner < box[2:] - slack) & (corner + size > box[:2] + slack)))


def most_in_a_rectangle(points, size, taken):
    """Edges at a point, at a taken place or at the slide's edge, on either side."""
    last = SLIDE - size
    x, y = (
        np.unique(np.clip([0, last[k], *points[:, k], *(points[:, k] - size[k]), *near], 0, last[k]))
        for k, near in ((k, [*taken[:, k + 2], *(taken[:, k] - size[k])]) for k in (0, 1))
    )
    places = [np.array(place) for place in np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)]
    free = [place for place in places if not any(overlap(place, size, box) for box in taken)]
    return max((held_by_rectangle(points, place, size) for place in free), default=0)


@settings(max_examples=80)
@given(clouds, st.sampled_from([(8, 6), (3.7, 21.3), (40, 2), (40, 30)]), corners)
def test_no_rectangle_holds_more(points, size, corners):
    points, size = np.array(points, dtype=float), np.array(size, dtype=float)
    taken = np.array([(*c, *np.minimum(c + size, SLIDE)) for c in corners], dtype=float).reshape(-1, 4)
    found = densest_rectangles(points, size, SLIDE - size, taken)
    most = most_in_a_rectangle(points, size, taken)
    assert {held_by_rectangle(points, corner, size) for corner in found} == ({most} if most else set())
    assert not any(overlap(corner, size, box) for corner in found for box in taken)
    assert np.all((found >= 0) & (found <= SLIDE - size))


def held_by_disc(points, centre, radius, slack):
    return int((np.hypot(*(points - centre).T) <= radius * (1 + slack)).sum())


def most_in_a_disc(points, radius, taken, slack):
    """Centres on a point, on a circle around one, and where two circles meet; taken ones are kept clear of."""
    circles = [*((p, radius) for p in points), *((q, 2 * radius) for q in taken)]
    centres = [*points, *(c + r * np.array([np.cos(a), np.sin(a)]) for c, r in circles for a in range(6))]
    for (a, ra), (b, rb) in combinations(circles, 2):
        distance = np.hypot(*(b - a))
        along = (distance**2 + ra**2 - rb**2) / (2 * distance) if distance > 1e-9 else np.inf
        if along**2 <= ra**2 * (1 + 1e-9):
            across = max(ra**2 - along**2, 0) ** 0.5
            u = (b - a) / distance
            centres += [a + along * u + side * across * np.array([-u[1], u[0]]) for side in (-1, 1)]
    free = [c for c in centres if all(np.hypot(*(c - q)) >= 2 * radius * (1 - slack) for q in taken)]
    return max((held_by_disc(points, c, radius, slack) for c in free), default=0)


@pytest.mark.parametrize("leave_out", [False, True], ids=["all circles", "only those worth it"])
@settings(max_examples=50)
@given(clouds, st.sampled_from([2.5, 5, 7.31, 19]), corners)
def test_no_disc_holds_more(leave_out, points, radius, corners):
    """Up to what rounding may do to a point on a border: the truth lies between slightly smaller and larger discs."""
    points, taken = np.array(points, dtype=float), np.array(corners, dtype=float).reshape(-1, 2)
    if len(taken) == 2 and np.hypot(*(taken[0] - taken[1])) < 2 * radius:
        taken = taken[:1]
    with pytest.MonkeyPatch.context() as patch:
        if leave_out:
            patch.setattr(discs, "MOST_PAIRS", 0)
            patch.setattr(discs, "MOST_CELLS", 3000)
            patch.setattr(discs, "MOST_REFINED", 500)
        found = densest_discs(points, radius, taken)
    counts = {held_by_disc(points, centre, radius, 2 * DISC_TOLERANCE) for centre in found} or {0}
    assert max(counts) <= most_in_a_disc(points, radius, taken, 1e-6)
    assert min(counts) >= most_in_a_disc(points, radius * (1 - 1e-6), taken, -1e-6 if len(taken) else 0)
    for centre in found:
        assert all(np.hypot(*(centre - other)) >= 2 * radius * (1 - 1e-6) for other in taken)


def test_leaving_circles_out_changes_nothing(monkeypatch):
    """Enough points for the grid to leave most circles out, few enough to sweep them all."""
    rng = np.random.default_rng(3)
    points = np.concatenate([rng.uniform(0, 1000, (700, 2)), rng.normal(400, 40, (100, 2))])
    every = densest_discs(points, 60.0, NO_DISCS)
    monkeypatch.setattr(discs, "MOST_PAIRS", 20_000)
    monkeypatch.setattr(discs, "MOST_CELLS", 200_000)
    assert discs._worth_a_sweep(points, discs.cKDTree(points), 60.0, NO_DISCS).sum() < 200
    np.testing.assert_allclose(densest_discs(points, 60.0, NO_DISCS), every)


def test_three_points_on_one_circle_are_one_disc():
    points = 10 + 5 * np.array([(1, 0), (-0.5, 0.75**0.5), (-0.5, -(0.75**0.5))])
    assert densest_discs(points, 5.0, NO_DISCS) == pytest.approx(np.array([[10, 10]]), abs=1e-6)
    assert len(densest_discs(points, 4.99, NO_DISCS)) == 3


def test_a_set_of_points_gives_one_window():
    points = np.array([(5.0, 5.0), (6.0, 5.0), (6.0, 7.0), (30.0, 20.0)])
    assert densest_rectangles(points, np.array([8.0, 6]), SLIDE - (8, 6), NO_BOXES).tolist() == [[1.5, 3.0]]
    assert densest_discs(points, 3.0, NO_DISCS).tolist() == [[5.5, 6.0]]


def test_everything_taken_leaves_nothing():
    points = np.array([(20.0, 15.0)])
    size = np.array([30.0, 20.0])
    assert densest_rectangles(points, size, SLIDE - size, np.array([[5.0, 5, 35, 25]])).shape == (0, 2)
    assert densest_discs(points, 4.0, np.array([[20.0, 18], [20, 10]])).shape == (0, 2)
