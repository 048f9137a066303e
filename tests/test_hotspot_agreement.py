"""The hotspot of a count beside the densest window by the marks."""

import math

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from mitosis.counting import Hotspot
from mitosis.detections import Detections
from mitosis.hotspot_agreement import _overlap, compare_hotspots
from mitosis.ranking import SlideScores

DIMENSIONS = (4000, 3000)
CLUSTER = [(1000, 1000), (1100, 1000), (1050, 1100)]


def marked(figures):
    return SlideScores("a", 0.5, figures, Detections.empty())


def window(x0, y0, x1, y1, shape="rectangle"):
    area = (x1 - x0) * (y1 - y0) * 0.0005**2 * (math.pi / 4 if shape == "disc" else 1)
    return Hotspot(x0, y0, x1, y1, area, area, 0, (0.0, 0.0), 0.0, shape)


def test_a_hotspot_on_the_cluster_holds_as_many_as_the_best():
    found = compare_hotspots(marked([*CLUSTER, (3000, 2000)]), DIMENSIONS, window(800, 850, 1300, 1225))
    assert (found.slide, found.n_in_hotspot, found.n_in_best) == ("a", 3, 3)
    assert found.overlap > 0.8


def test_a_hotspot_elsewhere_holds_fewer_and_does_not_overlap():
    found = compare_hotspots(marked([*CLUSTER, (3000, 2000)]), DIMENSIONS, window(2800, 1800, 3300, 2175))
    assert (found.n_in_hotspot, found.n_in_best, found.overlap) == (1, 3, 0)


def test_a_hotspot_that_is_the_whole_slide_overlaps_wholly():
    found = compare_hotspots(marked(CLUSTER), DIMENSIONS, window(0, 0, *DIMENSIONS))
    assert (found.n_in_hotspot, found.n_in_best, found.overlap) == (3, 3, pytest.approx(1))


def test_without_marks_there_is_no_figure_anywhere():
    found = compare_hotspots(marked([]), DIMENSIONS, window(0, 0, 500, 375))
    assert (found.n_in_hotspot, found.n_in_best) == (0, 0)
    assert np.isfinite(found.overlap)


def test_a_disc_is_compared_as_a_disc():
    """A figure in the corner of its box is not in it."""
    corner = (805, 805)
    found = compare_hotspots(marked([*CLUSTER, corner]), DIMENSIONS, window(800, 800, 1300, 1300, "disc"))
    assert (found.n_in_hotspot, found.n_in_best) == (3, 4)
    again = window(*(x + 0.0 for x in (800, 800, 1300, 1300)), "disc")
    assert _overlap(again, again) == 1


@given(st.floats(0, 3), st.floats(0, 6.3))
def test_the_overlap_of_discs_is_that_of_their_areas(apart, angle):
    x, y = 100 * apart * math.cos(angle), 100 * apart * math.sin(angle)
    a, b = window(0, 0, 200, 200, "disc"), window(x, y, x + 200, y + 200, "disc")
    first, second = (shapely.Point((w.x0 + w.x1) / 2, (w.y0 + w.y1) / 2).buffer(100, 256) for w in (a, b))
    expected = first.intersection(second).area / first.union(second).area
    assert _overlap(a, b) == pytest.approx(expected, abs=1e-3)
