"""Regions of interest: which areas of a file make one, and which tissue lies in it."""

import gzip

import numpy as np
import pytest
from shapely.geometry import Polygon, box

from mitosis.annotations import Annotation, Label
from mitosis.errors import AnnotationError
from mitosis.files import dump_json, sha256
from mitosis.geometry import Box
from mitosis.regions import Region, read_region, region_at
from mitosis.tissue import TissueMask

WHOLE = TissueMask(np.ones((8, 10), bool), 8.0, 0.5, (160, 128))
"""Pixels of 16 level-0 px."""


def ring(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(kind, coordinates, **properties):
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def save(path, *features):
    path.write_text(dump_json({"type": "FeatureCollection", "features": features}))
    return path


def test_every_area_of_a_file_belongs_whatever_its_class(tmp_path):
    path = save(
        tmp_path / "roi.geojson",
        feature("Polygon", [ring(0, 0, 32, 32)], classification={"name": "Tumor"}),
        feature("MultiPolygon", [[ring(64, 0, 96, 32)], [ring(64, 64, 160, 128)]]),
        feature("Point", [5, 5]),
        feature("LineString", [[0, 0], [5, 5]]),
        {"type": "Feature", "geometry": None, "properties": {}},
    )
    region = read_region(path)
    assert [outline.area for outline in region.outlines] == [32 * 32, 32 * 32, 96 * 64]
    assert region.sha256 == sha256(path)
    expected = np.zeros((8, 10), bool)
    expected[:2, :2] = expected[:2, 4:6] = expected[4:, 4:] = True
    assert np.array_equal(region.tissue_in(WHOLE).mask, expected)


def test_holes_are_left_out_unless_another_area_fills_them():
    holed = Polygon(ring(0, 0, 96, 96), [ring(32, 32, 64, 64)])
    expected = np.zeros((8, 10), bool)
    expected[:6, :6] = True
    expected[2:4, 2:4] = False
    assert np.array_equal(Region((holed,)).tissue_in(WHOLE).mask, expected)
    expected[2:4, 2:4] = True
    assert np.array_equal(Region((holed, box(32, 32, 64, 64))).tissue_in(WHOLE).mask, expected)


def test_a_region_makes_no_tissue_and_may_reach_over_the_slide():
    mask = np.zeros((8, 10), bool)
    mask[3, 4] = True
    tissue = TissueMask(mask, 8.0, 0.5, (160, 128))
    assert np.array_equal(Region((box(-500, -500, 900, 900),)).tissue_in(tissue).mask, mask)
    assert Region((box(500, 500, 900, 900),)).tissue_in(tissue).area_mm2 == 0


def test_a_window_sees_its_part_of_the_region():
    region = Region((Polygon(ring(20, 10, 60, 50), [ring(30, 20, 40, 30)]),))
    whole = region.pixels_in(Box(0, 0, 40, 32), 2.0)
    assert whole.sum() == 20 * 20 - 5 * 5
    assert np.array_equal(region.pixels_in(Box(8, 3, 31, 20), 2.0), whole[3:20, 8:31])
    beyond = region.pixels_in(Box(-4, -4, 12, 12), 2.0)
    assert not beyond[:4].any()
    assert np.array_equal(beyond[4:, 4:], whole[:12, :12])


def test_marks_are_held_where_they_lie_inside():
    region = Region((box(0, 0, 10, 10), box(20, 0, 30, 10)))
    marks = [Annotation(x, 5.0, Label.MITOTIC_FIGURE) for x in (5.0, 15.0, 25.0)]
    assert region.holding(marks) == (marks[0], marks[2])
    assert region_at(None) is None


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        ([], "holds no area"),
        ([feature("Point", [5, 5])], "holds no area"),
        ([feature("Polygon", [[[0, 0], [1, 1]]])], "feature 1: an outline of fewer than three points"),
        ([feature("Polygon", [ring(0, 0, 9, "wide")])], "feature 1: 'wide' is no pixel coordinate"),
        ([3], "feature 1: is no GeoJSON Feature"),
    ],
)
def test_what_is_no_region_is_refused_by_file_and_feature(tmp_path, features, complaint):
    with pytest.raises(AnnotationError, match=rf"roi\.geojson.*{complaint}"):
        read_region(save(tmp_path / "roi.geojson", *features))


def test_files_that_are_missing_or_packed(tmp_path):
    with pytest.raises(AnnotationError, match="no such file"):
        read_region(tmp_path / "none.geojson")
    packed = tmp_path / "roi.geojson.gz"
    packed.write_bytes(gzip.compress(dump_json(feature("Polygon", [ring(0, 0, 32, 32)])).encode()))
    assert len(read_region(packed).outlines) == 1
