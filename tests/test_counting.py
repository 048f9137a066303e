"""Counting: the densest window is really the densest, and the area is the tissue in it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitosis.counting import CountReport, area_text, find_hotspot, mitotic_count, poisson_interval
from mitosis.detections import Detections
from mitosis.errors import ConfigError
from mitosis.files import dump_json
from mitosis.geometry import Box
from mitosis.hotspots import find_hotspots, within_region
from mitosis.slides import BadTile
from mitosis.tissue import TissueMask
from mitosis.uncertainty import CaseCounts

SLIDE = (2000, 1500)  # px of 1 µm: 2 x 1.5 mm


def tissue_of(dimensions=SLIDE, mask=None):
    height, width = -(-dimensions[1] // 8), -(-dimensions[0] // 8)
    return TissueMask(np.ones((height, width), dtype=bool) if mask is None else mask, 8.0, 1.0, dimensions)


def count_in(points, x0, y0, size):
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    return int(np.all((points >= (x0, y0)) & (points <= (x0 + size[0], y0 + size[1])), axis=1).sum())


def detections_at(xy, score=0.9):
    xy = np.asarray(xy, dtype=float).reshape(-1, 2)
    return Detections(xy, np.full(len(xy), score), np.full(len(xy), 50.0))


point = st.tuples(st.integers(0, SLIDE[0]), st.integers(0, SLIDE[1]))


@settings(max_examples=80)
@given(st.lists(point, min_size=1, max_size=12), st.sampled_from([0.03, 0.12, 0.48, 1.2]))
def test_no_window_holds_more(points, hotspot_mm2):
    """Against every window with an edge at a point or the slide's edge, left or right, and on a grid."""
    hotspot = find_hotspot(points, tissue_of(), hotspot_mm2)
    size = np.array([hotspot.x1 - hotspot.x0, hotspot.y1 - hotspot.y0])
    assert size[0] / size[1] == pytest.approx(4 / 3)
    assert np.prod(size) / 1e6 == pytest.approx(hotspot_mm2)
    assert hotspot.x0 >= 0 <= hotspot.y0
    assert hotspot.x1 <= SLIDE[0]
    assert hotspot.y1 <= SLIDE[1]
    assert hotspot.mitotic_count == hotspot.contains(points).sum()
    xs, ys = (
        np.unique(
            np.clip(
                [*(v for p in points for v in (p[k], p[k] - size[k])), *range(0, SLIDE[k], 150)], 0, SLIDE[k] - size[k]
            )
        )
        for k in (0, 1)
    )
    assert hotspot.mitotic_count == max(count_in(points, x, y, size) for x in xs for y in ys)


@settings(max_examples=30)
@given(st.lists(point, min_size=1, max_size=12))
def test_mirrored_slide_has_the_same_hotspot(points):
    a = find_hotspot(points, tissue_of(), 0.12)
    b = find_hotspot([(SLIDE[0] - x, SLIDE[1] - y) for x, y in points], tissue_of(), 0.12)
    assert a.mitotic_count == b.mitotic_count
    assert a.area_mm2 == pytest.approx(b.area_mm2)


@given(st.lists(point, max_size=10), st.randoms(use_true_random=False))
def test_order_of_the_points_does_not_matter(points, random):
    assert find_hotspot(points, tissue_of(), 0.12) == find_hotspot(
        random.sample(points, len(points)), tissue_of(), 0.12
    )


def test_points_stand_in_the_middle_of_the_window():
    hotspot = find_hotspot([(1000, 700), (1040, 730)], tissue_of(), 0.12)
    assert ((hotspot.x0 + hotspot.x1) / 2, (hotspot.y0 + hotspot.y1) / 2) == pytest.approx((1020, 715))


def test_window_stays_within_the_slide():
    hotspot = find_hotspot([(2000, 1500), (1995, 1500), (3, 3)], tissue_of(), 0.48)
    assert (hotspot.x1, hotspot.y1) == pytest.approx(SLIDE)
    assert hotspot.mitotic_count == 2


def test_of_equal_windows_the_one_with_most_tissue_wins_then_the_upper_left():
    points = [(300, 300), (300, 1200), (1700, 300), (1700, 1200)]
    everywhere = find_hotspot(points, tissue_of(), 0.12)
    assert everywhere.contains(points).tolist() == [True, False, False, False]
    mask = np.ones((188, 250), dtype=bool)
    mask[:80] = False
    mask[:, 180:] = False
    lower_left = find_hotspot(points, tissue_of(mask=mask), 0.12)
    assert lower_left.contains(points).tolist() == [False, True, False, False]


def test_area_and_density_count_tissue_only():
    mask = np.zeros((188, 250), dtype=bool)
    mask[:, :125] = True
    hotspot = find_hotspot([(1000, 700), (1000, 710)], tissue_of(mask=mask), 0.12)
    assert hotspot.window_mm2 == pytest.approx(0.12)
    assert hotspot.area_mm2 == pytest.approx(0.06)
    assert hotspot.density_per_mm2 == pytest.approx(2 / 0.06)
    off_tissue = find_hotspot([(1900, 700)], tissue_of(mask=mask), 0.12)
    assert (off_tissue.area_mm2, off_tissue.density_per_mm2) == (0, None)


@pytest.mark.parametrize(
    ("dimensions", "area", "expected"),
    [
        ((1000, 3000), 1.5, (1000, 1500)),
        ((3000, 600), 1.5, (2500, 600)),
        ((1000, 1000), 1.2, (1000, 1000)),
        ((2000, 300), 1.0, (2000, 300)),
    ],
)
def test_small_slide_changes_the_shape_before_the_area(dimensions, area, expected):
    hotspot = find_hotspot([(5, 5)], tissue_of(dimensions), area)
    assert (hotspot.x1 - hotspot.x0, hotspot.y1 - hotspot.y0) == pytest.approx(expected)
    assert hotspot.area_mm2 == pytest.approx(np.prod(expected) / 1e6)


def test_without_figures_the_window_goes_to_the_tissue():
    mask = np.zeros((188, 250), dtype=bool)
    mask[100:170, 120:230] = True
    hotspot = find_hotspot([], tissue_of(mask=mask), 0.12)
    assert (hotspot.mitotic_count, hotspot.density_per_mm2) == (0, 0)
    assert hotspot.area_mm2 == pytest.approx(0.12)


def test_ten_thousand_detections_are_searched():
    points = np.random.default_rng(0).random((10_000, 2)) * SLIDE
    hotspot = find_hotspot(points, tissue_of(), 0.03)
    assert hotspot.mitotic_count == hotspot.contains(points).sum() > 100


def test_poisson_interval_is_garwoods():
    """Table of the exact limits, e.g. Ulm, Am J Epidemiol 1990;131:373-375."""
    assert poisson_interval(0) == pytest.approx((0, 3.689), abs=1e-3)
    assert poisson_interval(10) == pytest.approx((4.795, 18.390), abs=1e-3)
    assert poisson_interval(100) == pytest.approx((81.364, 121.627), abs=1e-3)


def report_of(detections, tissue, **more):
    return mitotic_count(detections, tissue, slide="a", threshold=0.5, mpp=0.25, **more)


def test_report_counts_what_reaches_the_threshold():
    detections = Detections([[10, 10], [900, 900], [20, 20]], [0.5, 0.9, 0.4999], [1, 1, 1])
    report = report_of(detections, tissue_of(), hotspot_mm2=0.12, model_sha256="abc", settings={"a": 1})
    assert (report.status, report.mitotic_count, report.n_candidates) == ("ok", 2, 3)
    assert report.tissue_mm2 == pytest.approx(3.0)
    assert report.density_per_mm2 == pytest.approx(2 / 3)
    assert report.hotspot.mitotic_count == 1
    assert (report.model_sha256, report.settings, report.excluded_mm2) == ("abc", {"a": 1}, 0)


def test_blank_slide_has_no_density_rather_than_zero_over_zero():
    report = report_of(Detections.empty(), tissue_of(mask=np.zeros((188, 250), dtype=bool)))
    assert (report.status, report.mitotic_count, report.density_per_mm2, report.hotspot) == ("no_tissue", 0, None, None)


def test_bad_tiles_are_taken_from_the_area_and_named():
    bad = (BadTile(0, Box(0, 0, 800, 1500), "premature end"), BadTile(1, Box(400, 0, 1000, 1500), "premature end"))
    report = report_of(detections_at([(1500, 700)]), tissue_of(), bad_tiles=bad)
    assert report.status == "degraded"
    assert report.tissue_mm2 == pytest.approx(1.5)
    assert report.excluded_mm2 == pytest.approx(1.5)
    assert report.hotspot.area_mm2 < report.hotspot.window_mm2
    everything = report_of(Detections.empty(), tissue_of(), bad_tiles=[BadTile(0, Box(0, 0, 2000, 1500), "zeros")])
    assert (everything.status, everything.density_per_mm2, everything.hotspot) == ("degraded", None, None)


def test_report_is_plain_json():
    bad = (BadTile(0, Box(0, 0, 80, 80), "premature end"),)
    report = report_of(detections_at([(1500, 700)]), tissue_of(), bad_tiles=bad)
    plain = json.loads(dump_json(report.to_dict()))
    assert set(plain) == set(CountReport.__dataclass_fields__)
    assert plain["bad_tiles"] == [{"level": 0, "box": [0, 0, 80, 80], "reason": "premature end"}]
    assert plain["hotspot"]["mitotic_count"] == 1


def test_a_disc_has_its_area_and_counts_its_points():
    hotspot = find_hotspot([(1000, 700), (1040, 730), (1000, 1100)], tissue_of(), 0.12, shape="disc")
    assert hotspot.shape == "disc"
    assert (hotspot.mitotic_count, hotspot.window_mm2, hotspot.area_mm2) == (2, 0.12, pytest.approx(0.12))
    assert ((hotspot.x0 + hotspot.x1) / 2, (hotspot.y0 + hotspot.y1) / 2) == pytest.approx((1020, 715))
    assert np.pi * ((hotspot.x1 - hotspot.x0) / 2000) ** 2 == pytest.approx(0.12)
    outline = np.array(hotspot.outline())
    assert np.hypot(*(outline - (1020, 715)).T) == pytest.approx((hotspot.x1 - hotspot.x0) / 2)
    half = find_hotspot([(0, 700)], tissue_of(), 0.12, shape="disc")
    assert half.area_mm2 == pytest.approx(0.06, rel=1e-3)


@pytest.mark.parametrize("shape", ["rectangle", "disc"])
@settings(max_examples=25)
@given(st.lists(point, min_size=1, max_size=12))
def test_several_windows_do_not_overlap_and_share_no_point(shape, points):
    found = find_hotspots(points, tissue_of(), 0.12, shape=shape, n=4)
    counts = [spot.mitotic_count for spot in found]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) <= len(points)
    assert min(counts) > 0
    for i, a in enumerate(found):
        for b in found[:i]:
            if shape == "rectangle":
                assert a.x0 > b.x1 - 1e-5 or b.x0 > a.x1 - 1e-5 or a.y0 > b.y1 - 1e-5 or b.y0 > a.y1 - 1e-5
            else:
                assert np.hypot(a.x0 - b.x0, a.y0 - b.y0) >= (a.x1 - a.x0) * (1 - 1e-6)


def test_only_the_region_counts():
    points = [(300, 300), (310, 300), (320, 300), (1500, 1000), (1510, 1000)]
    box = find_hotspot(points, tissue_of(), 0.12, region=(1400, 900, 2000, 1500))
    assert box.contains(points).tolist() == [False, False, False, True, True]
    triangle = [(1000, 1500), (2000, 1500), (2000, 500)]
    assert within_region(tissue_of(), triangle).area_mm2 == pytest.approx(0.5, rel=0.02)
    report = report_of(detections_at(points), tissue_of(), hotspot_mm2=0.12, region=triangle)
    assert (report.mitotic_count, report.n_candidates, report.region) == (2, 2, tuple(triangle))
    assert report.tissue_mm2 == pytest.approx(0.5, rel=0.02)
    for wrong in ([(0, 0), (10, 10)], [(0, 0), (10, 10), (10, 0), (0, 10)], [(0, 0), (1, np.nan), (3, 3)]):
        with pytest.raises(ConfigError, match="region"):
            find_hotspot(points, tissue_of(), region=wrong)


def test_an_unknown_shape_is_refused():
    with pytest.raises(ConfigError, match="Known: disc, rectangle"):
        find_hotspot([(3, 3)], tissue_of(), shape="hexagon")


def test_grades_and_the_true_count_come_only_when_asked_for():
    detections = detections_at([(1500, 700 + 10 * k) for k in range(9)])
    plain = report_of(detections, tissue_of(), hotspot_mm2=1.0)
    assert (plain.grades, plain.true_count) == ((), None)
    cases = [CaseCounts(8 * k, 5, 2 * k, 5.0) for k in (1, 2, 4, 8)]
    asked = report_of(detections, tissue_of(), hotspot_mm2=1.0, rules=["nottingham-density", "net"], calibration=cases)
    assert [(g.rule.name, g.score) for g in asked.grades] == [("nottingham-density", "3"), ("net", "G2")]
    assert asked.true_count.low <= 10 <= asked.true_count.high
    few = report_of(detections, tissue_of(), hotspot_mm2=1.0, rules=["net"], calibration=cases[:3])
    assert few.true_count is None
    assert few.grades == report_of(detections, tissue_of(), hotspot_mm2=1.0, rules=["net"]).grades
    written = json.loads(dump_json(asked.to_dict()))["grades"][0]
    assert "HL7" in written["rule"]["citation"]
    assert set(written["probabilities"]) == {"1", "2", "3"}
    blank = tissue_of(mask=np.zeros((188, 250), dtype=bool))
    assert report_of(Detections.empty(), blank, rules=["net"], calibration=cases).grades == ()
    with pytest.raises(ConfigError, match="--rule nett"):
        report_of(detections, tissue_of(), rules=["nett"])


@pytest.mark.parametrize(
    ("mm2", "text"),
    [(0, "0.00"), (0.00441, "0.0044"), (0.0999, "0.1"), (0.1, "0.10"), (2.366, "2.37"), (141, "141.00")],
)
def test_an_area_is_told_with_two_digits_at_least(mm2, text):
    assert area_text(mm2) == text


@pytest.mark.parametrize("shape", ["rectangle", "disc"])
def test_a_hotspot_all_of_tissue_has_the_area_asked_for_to_the_last_digit(shape):
    everywhere = TissueMask(np.ones((94, 125), dtype=bool), 16.0, 0.25, (8000, 6016))
    for x in (3000.0, 3333.3, 4100.7):
        assert find_hotspot([(x, 3000.0)], everywhere, 0.2, shape=shape).area_mm2 == 0.2
