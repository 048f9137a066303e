"""Reports: safe tables, marks that QuPath reads, the same bytes every time."""

import csv
import dataclasses
import json
import uuid

import numpy as np
import pytest
from PIL import Image

from mitosis.annotations import Label
from mitosis.annotations.geojson import read as read_geojson
from mitosis.counting import mitotic_count
from mitosis.detections import Detections
from mitosis.geometry import Box
from mitosis.overlay import _whole_slide
from mitosis.report import DETECTION_COLUMNS, SUMMARY_COLUMNS, write_report, write_summary
from mitosis.slides import BadTile, open_slide
from mitosis.tissue import find_tissue


def draw_slide(path, size=(640, 480), background=(225, 160, 195)):
    """A field of pink with dark spots at three places, 0.5 µm/px."""
    y, x = np.mgrid[: size[1], : size[0]]
    image = np.empty((size[1], size[0], 3), np.uint8)
    image[:] = background
    for spot_x, spot_y in ((100, 80), (130, 90), (500, 400)):
        image[(x - spot_x) ** 2 + (y - spot_y) ** 2 < 60] = (70, 30, 110)
    Image.fromarray(image).save(path)
    return path


CANDIDATES = Detections(
    [[100.5, 80.5], [130.5, 90.5], [500.125, 400.5], [300, 300]], [0.95, 0.7, 0.7, 0.2], [40, 30.125, 20, 10]
)


def report_on(folder, name="field", background=(225, 160, 195), candidates=CANDIDATES, bad_tiles=()):
    folder.mkdir(exist_ok=True)
    slide = open_slide(draw_slide(folder / "slide.png", background=background), mpp=0.5)
    tissue = find_tissue(slide)
    report = mitotic_count(
        candidates, tissue, slide=name, threshold=0.5, mpp=0.5, hotspot_mm2=0.01, bad_tiles=bad_tiles
    )
    return write_report(folder / "out", slide, report, candidates, tissue), report


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_table_holds_every_candidate_in_order(tmp_path):
    paths, _ = report_on(tmp_path)
    text = paths["detections.csv"].read_bytes().decode()
    assert text.splitlines()[:2] == [
        "slide,id,x_px,y_px,x_um,y_um,score,class,area_um2,counted",
        "field,1,100.50,80.50,50.25,40.25,0.9500,mitotic figure,40.00,1",
    ]
    rows = rows_of(paths["detections.csv"])
    assert tuple(rows[0]) == DETECTION_COLUMNS
    assert [row["y_px"] for row in rows] == ["80.50", "90.50", "400.50", "300.00"]
    assert [(row["counted"], row["class"]) for row in rows[2:]] == [("1", "mitotic figure"), ("0", "candidate")]


def test_geojson_holds_what_counts_and_the_hotspot(tmp_path):
    paths, report = report_on(tmp_path)
    content = json.loads(paths["detections.geojson"].read_text(encoding="utf-8"))
    features = content["features"]
    assert content["type"] == "FeatureCollection"
    assert len({uuid.UUID(feature["id"]) for feature in features}) == 4
    for feature in features:
        ring = feature["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1]
        assert set(feature["properties"]["classification"]) == {"name", "color"}
    assert [f["properties"]["objectType"] for f in features] == ["detection"] * 3 + ["annotation"]
    assert [f["properties"]["measurements"] for f in features[:3]] == [{"Probability": p} for p in (0.95, 0.7, 0.7)]
    assert features[3]["geometry"]["coordinates"][0][0] == pytest.approx(
        [report.hotspot.x0, report.hotspot.y0], abs=0.01
    )


def test_geojson_is_read_back_as_annotations(tmp_path):
    """What we write for QuPath, we read from QuPath: a corrected file can be trained with."""
    paths, _ = report_on(tmp_path)
    marks = read_geojson(paths["detections.geojson"], "field").annotations
    assert {mark.label for mark in marks} == {Label.MITOTIC_FIGURE}
    np.testing.assert_allclose([(m.x, m.y) for m in marks], CANDIDATES.sorted().xy[:3], atol=0.01)


def test_names_that_look_like_formulas_become_text(tmp_path):
    for name in ("=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "'quoted"):
        paths, _ = report_on(tmp_path, name=name)
        assert rows_of(paths["detections.csv"])[0]["slide"] == f"'{name}"
    write_summary(tmp_path / "s.csv", [{"slide": "-a", "status": "failed", "error": "=cmd"}])
    row = rows_of(tmp_path / "s.csv")[0]
    assert (row["slide"], row["error"]) == ("'-a", "'=cmd")


def test_count_json_is_the_report(tmp_path):
    paths, report = report_on(tmp_path)
    content = json.loads(paths["count.json"].read_text(encoding="utf-8"))
    assert content["mitotic_count"] == 3
    assert content["hotspot"]["mitotic_count"] == 2
    assert content["note"].startswith("Research use only")
    assert set(content) == {*(field.name for field in dataclasses.fields(report)), "note"}


@pytest.mark.parametrize("name", ["field", "<img src=x onerror=alert(1)>", "$a$ \\frac{", "日本\nx", "a" * 200])
def test_same_input_gives_the_same_bytes(tmp_path, name):
    first, _ = report_on(tmp_path / "a", name=name)
    second, _ = report_on(tmp_path / "b", name=name)
    for file in first:
        assert first[file].read_bytes() == second[file].read_bytes(), file


def test_picture_shows_detections_and_hotspot(tmp_path):
    paths, _ = report_on(tmp_path)
    picture = np.asarray(Image.open(paths["overlay.png"]).convert("RGB")).astype(int)
    assert picture.shape == (1140, 1800, 3)

    def n_pixels(colour, part):
        return int((abs(part - colour).max(axis=2) < 40).sum())

    left, right, gallery = picture[158:718, :900], picture[158:718, 900:], picture[760:]
    assert n_pixels((255, 214, 0), left) > 40 < n_pixels((255, 214, 0), right)
    assert n_pixels((0, 57, 203), left) > 200
    assert n_pixels((70, 30, 110), gallery) > 1000


def test_blank_and_damaged_slides_are_reported(tmp_path):
    paths, report = report_on(tmp_path / "blank", background=(240, 240, 240), candidates=Detections.empty())
    assert report.status == "no_tissue"
    assert json.loads(paths["count.json"].read_text())["density_per_mm2"] is None
    assert json.loads(paths["detections.geojson"].read_text())["features"] == []
    assert paths["detections.csv"].read_text() == ",".join(DETECTION_COLUMNS) + "\n"
    bad = (BadTile(0, Box(256, 0, 512, 256), "premature end"),)
    paths, report = report_on(tmp_path / "damaged", bad_tiles=bad)
    assert report.status == "degraded"
    picture = np.asarray(Image.open(paths["overlay.png"]).convert("RGB")).astype(int)
    assert (abs(picture[:140, 900:] - (176, 0, 32)).max(axis=2) < 40).sum() > 100


def test_summary_has_a_line_a_slide_by_name(tmp_path):
    _, report = report_on(tmp_path, name="b")
    rows = [report.to_dict(), {"slide": "a", "status": "failed", "error": "a.svs: truncated, copy it again"}]
    write_summary(tmp_path / "summary.csv", rows)
    failed, counted = rows_of(tmp_path / "summary.csv")
    assert tuple(failed) == SUMMARY_COLUMNS
    assert (failed["slide"], failed["mitotic_count"], failed["error"]) == ("a", "", "a.svs: truncated, copy it again")
    assert (counted["mitotic_count"], counted["hotspot_count"], counted["n_candidates"]) == ("3", "2", "4")
    assert (counted["tissue_mm2"], counted["hotspot_low"], counted["n_bad_tiles"]) == ("0.0768", "0.2422", "0")
    from_json = json.loads((tmp_path / "out" / "count.json").read_text())
    write_summary(tmp_path / "again.csv", [from_json, rows[1]])
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "summary.csv").read_bytes()


def test_the_picture_says_whether_all_of_the_slide_was_counted(tmp_path):
    _, report = report_on(tmp_path)
    part = dataclasses.replace(report, region_sha256="ab")
    assert [_whole_slide(one).split(":")[0] for one in (report, part)] == ["whole slide", "region of interest"]
