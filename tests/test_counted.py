"""What a count wrote is read back, beside marks: only those where somebody counted."""

import json

import numpy as np
import pytest
from conftest import save_marks
from shapely.geometry import Polygon, box
from test_report import CANDIDATES, report_on

from mitosis.counted import failed_slides, read_detections, read_scores
from mitosis.errors import AnnotationError
from mitosis.regions import Region
from mitosis.report import write_summary


def test_table_is_read_back(tmp_path):
    paths, _ = report_on(tmp_path)
    found = read_detections(paths["detections.csv"])
    np.testing.assert_array_equal(found.score, CANDIDATES.sorted().score)
    np.testing.assert_allclose(found.xy, CANDIDATES.sorted().xy, atol=0.005)
    np.testing.assert_allclose(found.area_um2, CANDIDATES.sorted().area_um2, atol=0.005)


@pytest.mark.parametrize(
    "text", ["", "a,b\n", "a,b\n1,2\n", "x_px,y_px,score,area_um2\n1,2,nan,4\n", "x_px,y_px,score,area_um2\n1\n"]
)
def test_what_is_no_table_of_detections_is_refused(tmp_path, text):
    path = tmp_path / "detections.csv"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=r"detections\.csv: not a table of detections"):
        read_detections(path)


MARKS = [(100, 80), (300, 300), (500, 400)]


def scored(tmp_path, **changes):
    """The slide of `report_on` beside `MARKS`, with changes to its count.json."""
    paths, report = report_on(tmp_path)
    save_marks(tmp_path / "field.csv", MARKS)
    paths["count.json"].write_text(json.dumps(report.to_dict() | changes))
    return read_scores(tmp_path / "out", tmp_path), report


def test_a_count_is_read_back_with_its_hotspot(tmp_path):
    found, report = scored(tmp_path)
    assert found.scores.figures == MARKS
    assert (found.threshold, found.dimensions, found.n_outside, found.region) == (0.5, (640, 480), 0, None)
    assert found.hotspot.outline() == report.hotspot.outline()
    assert found.hotspot.contains(found.scores.candidates.xy).sum() == report.hotspot.mitotic_count


def test_only_marks_in_the_region_that_was_counted_are_right_or_wrong(tmp_path):
    hole = Polygon(box(0, 0, 400, 400).exterior, [box(250, 250, 350, 350).exterior])
    region = Region((hole, box(600, 0, 640, 480)))
    found, _ = scored(tmp_path, region_sha256="ab", region_outlines=region.rings)
    assert (found.scores.figures, found.n_outside) == (MARKS[:1], 2)
    assert [area.equals(other) for area, other in zip(found.region.outlines, region.outlines, strict=True)] == [
        True
    ] * 2


def test_the_region_of_a_single_polygon_holds_too(tmp_path):
    found, _ = scored(tmp_path, region=[(0, 0), (400, 0), (400, 400), (0, 400)])
    assert (found.scores.figures, found.n_outside) == (MARKS[:2], 1)


def test_a_count_in_a_region_that_it_does_not_tell_must_be_made_again(tmp_path):
    paths, report = report_on(tmp_path)
    save_marks(tmp_path / "field.csv", MARKS)
    count = report.to_dict() | {"region_sha256": "ab"}
    del count["region_outlines"]
    paths["count.json"].write_text(json.dumps(count))
    with pytest.raises(AnnotationError, match=r"count\.json: not as written by mitosis count.*region_outlines"):
        read_scores(tmp_path / "out", tmp_path)


def test_slides_that_failed_are_named_by_the_summary(tmp_path):
    rows = [{"slide": "b", "status": "failed", "error": "broken"}, {"slide": "a", "status": "ok"}]
    write_summary(tmp_path / "summary.csv", rows)
    assert failed_slides(tmp_path / "summary.csv") == ["b"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert failed_slides(tmp_path / "other.csv") == failed_slides(tmp_path / "none.csv") == []
