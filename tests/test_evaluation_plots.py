"""The plots of an evaluation: each is drawn where it has something to show, and always the same."""

from xml.etree import ElementTree

import numpy as np
import pytest

from mitosis.detections import Detections
from mitosis.evaluation_plots import PLOTS, draw_plots
from mitosis.ranking import SlideScores
from mitosis.scorecard import score_slides


def slide(name, figures, found, case, domain="", area_mm2=1.0):
    rows = np.array(found, dtype=float).reshape(-1, 3)
    return SlideScores(
        name, 1.0, figures, Detections(rows[:, :2], rows[:, 2], rows[:, 2] * 0), (), case, domain, area_mm2
    )


@pytest.fixture(scope="module")
def card():
    slides = [
        slide("one", [(0, 0), (50, 0)], [(0, 0, 0.9), (99, 0, 0.7), (50, 0, 0.2)], "a", "scanner 1"),
        slide("<b>two</b>", [(0, 0)], [(0, 0, 0.6), (40, 0, 0.5)], "<i>b</i> $x_1$", "scanner 2"),
    ]
    return score_slides(slides, {one.slide: 0.5 for one in slides}, readers={"日本": {"one": [(0, 0)]}})


SCORES = {"true": [0.9, 0.6, 0.2], "false": [0.7, 0.5]}


def test_every_plot_is_an_svg_and_the_same_every_time(card):
    plots = draw_plots(card, SCORES)
    assert list(plots) == list(PLOTS)
    for svg in plots.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert draw_plots(card, SCORES) == plots


@pytest.mark.parametrize("area_mm2", [0.0, float("nan")])
def test_what_there_is_nothing_to_show_of_is_left_out(area_mm2):
    unmarked = score_slides([slide("one", [], [(0, 0, 0.9)], "a", area_mm2=area_mm2)], {"one": 0.5})
    assert set(draw_plots(unmarked, {"true": [], "false": [0.9]})) == {"scores", "cases", "look-alikes"}
    assert draw_plots(score_slides([], {}), {"true": [], "false": []}) == {}


def test_many_cases_are_cut_to_the_worst():
    slides = [slide(f"s{i}", [(0, 0)], [(0, 0, 0.9)], f"case with a long name {i}") for i in range(60)]
    assert "cases" in draw_plots(score_slides(slides, {one.slide: 0.5 for one in slides}), SCORES)
