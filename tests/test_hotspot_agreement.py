"""The hotspot of a count beside the densest window by the marks."""

import numpy as np
import pytest

from mitosis.detections import Detections
from mitosis.hotspot_agreement import compare_hotspots
from mitosis.ranking import SlideScores

DIMENSIONS = (4000, 3000)
CLUSTER = [(1000, 1000), (1100, 1000), (1050, 1100)]


def marked(figures):
    return SlideScores("a", 0.5, figures, Detections.empty())


def test_a_hotspot_on_the_cluster_holds_as_many_as_the_best():
    found = compare_hotspots(marked([*CLUSTER, (3000, 2000)]), DIMENSIONS, (800, 850, 1300, 1225))
    assert (found.slide, found.n_in_hotspot, found.n_in_best) == ("a", 3, 3)
    assert found.overlap > 0.8


def test_a_hotspot_elsewhere_holds_fewer_and_does_not_overlap():
    found = compare_hotspots(marked([*CLUSTER, (3000, 2000)]), DIMENSIONS, (2800, 1800, 3300, 2175))
    assert (found.n_in_hotspot, found.n_in_best, found.overlap) == (1, 3, 0)


def test_a_hotspot_that_is_the_whole_slide_overlaps_wholly():
    found = compare_hotspots(marked(CLUSTER), DIMENSIONS, (0, 0, *DIMENSIONS))
    assert (found.n_in_hotspot, found.n_in_best, found.overlap) == (3, 3, pytest.approx(1))


def test_without_marks_there_is_no_figure_anywhere():
    found = compare_hotspots(marked([]), DIMENSIONS, (0, 0, 500, 375))
    assert (found.n_in_hotspot, found.n_in_best) == (0, 0)
    assert np.isfinite(found.overlap)
