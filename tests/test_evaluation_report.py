"""The files of an evaluation: plain JSON, a table that is safe to open, the page."""

import csv
import json

import numpy as np
import pytest

from mitosis.detections import Detections
from mitosis.evaluation_page import EvaluationReport
from mitosis.evaluation_report import CSV_COLUMNS, write_evaluation
from mitosis.hotspot_agreement import HotspotAgreement
from mitosis.ranking import SlideScores
from mitosis.scorecard import score_slides


def report_of(*slides):
    return EvaluationReport(
        score_slides(slides, {one.slide: 0.5 for one in slides}),
        "As counted.",
        {"true": [0.9], "false": []},
        hotspots=[HotspotAgreement("a", float("nan"), 0, 0)],
    )


FOUND = Detections(np.array([(0.0, 0.0), (99.0, 0.0)]), np.array([0.9, 0.7]), np.zeros(2))
SLIDES = [
    SlideScores("=SUM(1)", 1.0, [(0, 0)], FOUND, (), "a", "x"),
    SlideScores("b", 1.0, [], FOUND[:0], (), "b", "x"),
]


def test_json_is_strict_and_undefined_values_are_null(tmp_path):
    paths = write_evaluation(tmp_path / "deep" / "er", report_of(*SLIDES))
    found = json.loads(paths["json"].read_text(), parse_constant=pytest.fail)
    assert found["pooled"]["tp"] == 1
    assert found["pooled"]["area_mm2"] is None
    assert found["froc_area"] is None
    assert found["hotspots"][0]["overlap"] is None
    assert found["cases"][0]["intervals"]["f1"] == [None, None]
    assert set(found["protocols"]) >= {"optimal", "midog", "ccmct"}
    assert "agreement" in found


def test_csv_has_a_row_for_each_thing_and_no_formula(tmp_path):
    paths = write_evaluation(tmp_path, report_of(*SLIDES))
    with paths["csv"].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("all", "all"),
        ("domain", "x"),
        ("case", "a"),
        ("case", "b"),
        ("slide", "'=SUM(1)"),
        ("slide", "b"),
    ]
    assert (rows[0]["tp"], rows[0]["fp"], rows[0]["fn"], rows[0]["area_mm2"]) == ("1", "1", "0", "")


def test_the_same_results_give_the_same_bytes_and_replace_older_ones(tmp_path):
    first = {name: path.read_bytes() for name, path in write_evaluation(tmp_path, report_of(*SLIDES)).items()}
    write_evaluation(tmp_path, report_of(SLIDES[1]))
    again = write_evaluation(tmp_path, report_of(*SLIDES[::-1]))
    assert {name: path.read_bytes() for name, path in again.items()} == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evaluation.csv",
        "evaluation.html",
        "evaluation.json",
    ]


def test_nothing_is_written_without_trouble(tmp_path):
    paths = write_evaluation(tmp_path, report_of())
    assert json.loads(paths["json"].read_text())["pooled"]["f1"] == 1.0
