"""``mitosis evaluate`` on results made by hand: thresholds, readers, protocols, what the model has seen, the files."""

import csv
import json
import re

import numpy as np
import pytest
from conftest import save_marks
from PIL import Image
from test_cli import expect_error, files_in, run

from mitosis.report import write_summary

HEADER = "slide,id,x_px,y_px,x_um,y_um,score,class,area_um2,counted"


def counted(folder, name, found, **fields):
    """What ``mitosis count`` leaves of a slide of 300 x 200 px at 0.5 µm/px."""
    place = folder / name
    place.mkdir(parents=True)
    lines = [f"{name},{n},{x},{y},0,0,{score},candidate,1,0" for n, (x, y, score) in enumerate(found)]
    (place / "detections.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    count = {
        "slide": name,
        "slide_mpp": 0.5,
        "threshold": 0.5,
        "slide_dimensions": [300, 200],
        "tissue_mm2": 0.015,
        "hotspot": {
            **{"x0": 0, "y0": 0, "x1": 300, "y1": 200, "area_mm2": 0.015, "window_mm2": 0.015},
            **{"mitotic_count": 2, "interval": [0, 9], "density_per_mm2": 133.3, "shape": "rectangle"},
        },
        **fields,
    }
    (place / "count.json").write_text(json.dumps(count))


@pytest.fixture
def here(tmp_path):
    """Folder with `results` of three slides of two cases, and `truth`."""
    results, truth = tmp_path / "results", tmp_path / "truth"
    truth.mkdir()
    counted(results, "A1", [(50, 50, 0.9), (250, 50, 0.6), (150, 150, 0.3)], case_id="A", domain="x")
    counted(results, "A2", [(60, 60, 0.8)], case_id="A", domain="x")
    counted(results, "B1", [(70, 70, 0.95), (200, 100, 0.7)], case_id="B", domain="y")
    for name, figures in {"A1": [(52, 50), (150, 150)], "A2": [(60, 60)], "B1": [(70, 70)]}.items():
        save_marks(truth / f"{name}.csv", figures)
    return tmp_path


def evaluate(here, *options):
    code, out, err = run("evaluate", here / "results", here / "truth", *options)
    assert (code, err) == (0, "")
    return out


def pooled(here, *options):
    result = json.loads(evaluate(here, "--json", *options))["pooled"]
    return result["tp"], result["fp"], result["fn"]


def test_the_table_has_slides_cases_domains_and_all(here):
    out = evaluate(here)
    names = [line.split()[0] for line in out.splitlines()[1:] if re.match(r"\w+ +\d+ +\d+ +\d+  ", line)]
    assert names == ["A1", "A2", "B1", "A", "B", "x", "y", "all"]
    assert " to " in next(line for line in out.splitlines() if line.startswith("all"))
    assert "F1 under the other protocols: midog 0.667" in out
    assert out.splitlines()[-1] == str(here / "results" / "evaluation.html")


def test_the_files_say_what_the_table_says(here):
    evaluate(here, "--out", here / "out")
    assert files_in(here / "out") == ["evaluation.csv", "evaluation.html", "evaluation.json"]
    found = json.loads((here / "out" / "evaluation.json").read_text())
    assert (found["pooled"]["tp"], found["pooled"]["fp"], found["pooled"]["fn"]) == (3, 2, 1)
    with (here / "out" / "evaluation.csv").open(newline="") as stream:
        first = next(csv.DictReader(stream))
    assert (first["name"], first["tp"], first["fp"], first["fn"]) == ("all", "3", "2", "1")
    assert "<h1>F1 0.667" in (here / "out" / "evaluation.html").read_text()
    assert found["hotspots"][0] == {"slide": "A1", "overlap": 1.0, "n_in_hotspot": 2, "n_in_best": 2}


def test_one_threshold_for_all(here):
    assert pooled(here, "--threshold", 0.85) == (2, 0, 2)
    assert pooled(here, "--threshold", 0.2) == (4, 2, 0)


@pytest.mark.parametrize("objective", ["f1", "count"])
def test_each_case_at_the_threshold_of_the_others(here, objective):
    found = json.loads(evaluate(here, "--choose", objective, "--json"))
    a, b = (found["thresholds"][name] for name in ("A1", "B1"))
    assert found["thresholds"]["A2"] == a
    assert 0.7 < a <= 0.95  # chosen on B: its figure without its false alarm
    assert b <= (0.3 if objective == "f1" else 0.6)
    assert "on all other cases" in found["how"]


def test_a_threshold_cannot_be_chosen_on_the_only_case(here):
    (here / "results" / "B1" / "count.json").unlink()
    sentence = expect_error("evaluate", here / "results", here / "truth", "--choose", "f1")
    assert "there is only one case" in sentence


def test_thresholds_are_chosen_at_the_radius_of_the_protocol(here):
    """Each slide has a figure found 2 µm off at 0.9 and one 6 µm off at 0.6."""
    for case in "CD":
        counted(here / "near", case, [(50, 50, 0.9), (150, 50, 0.6)], case_id=case)
        save_marks(here / "truth" / f"{case}.csv", [(54, 50), (162, 50)])
    words = ("evaluate", here / "near", here / "truth", "--choose", "f1", "--json", "--protocol")
    for protocol, (tp, fp) in {"optimal": (4, 0), "mitos12-5um": (2, 0)}.items():
        found = json.loads(run(*words, protocol)[1])["pooled"]
        assert (found["tp"], found["fp"]) == (tp, fp)


def test_slides_whose_count_failed_are_named(here):
    write_summary(here / "results" / "summary.csv", [{"slide": "Z9", "status": "failed", "error": "broken"}])
    code, out, err = run("evaluate", here / "results", here / "truth")
    assert code == 0
    assert err == "Warning: Not scored, as their count failed: Z9.\n"
    assert "their count failed: Z9" in out
    assert "their count failed: Z9" in (here / "results" / "evaluation.html").read_text()


@pytest.mark.parametrize("readers", [["model"], ["x", "x"]])
def test_a_name_of_a_reader_that_is_taken_is_refused(here, readers):
    words = [word for name in readers for word in ("--reader", f"{name}={here / 'truth'}")]
    assert f"the name '{readers[-1]}' is taken" in expect_error("evaluate", here / "results", here / "truth", *words)


@pytest.mark.parametrize("threshold", ["nan", "-3", "1.5"])
def test_a_threshold_that_is_no_score_is_refused(here, threshold):
    sentence = expect_error("evaluate", here / "results", here / "truth", f"--threshold={threshold}")
    assert "scores lie between 0 and 1" in sentence


def test_names_with_dollar_signs_and_slides_without_any_figure(here):
    counted(here / "none", "C", [(50, 50, 0.9)], case_id="a$^$", domain="$x")
    save_marks(here / "truth" / "C.csv", [])
    code, out, err = run("evaluate", here / "none", here / "truth")
    assert (code, err) == (0, "")
    assert "Average precision –." in out


def test_another_protocol_is_scored(here):
    counted(here / "results", "C1", [(50, 50, 0.9), (52, 52, 0.9)], case_id="C")
    save_marks(here / "truth" / "C1.csv", [(50, 50)])
    assert pooled(here) == (4, 3, 1)
    assert pooled(here, "--protocol", "amida-tupac") == (4, 2, 1)
    assert "Known: " in expect_error("evaluate", here / "results", here / "truth", "--protocol", "pascal")


def test_readers_stand_beside_the_model(here):
    other = here / "other"
    other.mkdir()
    save_marks(other / "A1.csv", [(50, 50), (10, 10)])
    save_marks(other / "B1.csv", [])
    out = evaluate(here, "--reader", f"Dr. Other={other}")
    row = next(line for line in out.splitlines() if line.startswith("Dr. Other"))
    assert row.split()[2:5] == ["1", "1", "2"]
    found = json.loads((here / "results" / "evaluation.json").read_text())
    assert found["readers"][0]["n_slides"] == 2
    assert {one["who"] for one in found["agreement"]} == {"model", "Dr. Other"}
    assert "write NAME=PATH" in expect_error("evaluate", here / "results", here / "truth", "--reader", other)
    empty = here / "empty"
    empty.mkdir()
    sentence = expect_error("evaluate", here / "results", here / "truth", "--reader", f"x={empty}")
    assert "no marks for any" in sentence


def test_cases_that_the_model_learned_from_are_refused_unless_named(here):
    counted(here / "results", "C1", [(50, 50, 0.9)], case_id="C", seen_in_training=True)
    counted(here / "results", "D1", [], case_id="D", training_cases=["D", "E"])
    for name in ("C1", "D1"):
        save_marks(here / "truth" / f"{name}.csv", [(50, 50)])
    sentence = expect_error("evaluate", here / "results", here / "truth")
    assert "learned from C, D, so" in sentence
    assert "--allow-seen C,D" in sentence
    assert "learned from D, so" in expect_error("evaluate", here / "results", here / "truth", "--allow-seen", "C")
    out = evaluate(here, "--allow-seen", "C,D")
    assert "The model learned from C, D: no measure of new slides." in out
    assert files_in(here / "truth") == [f"{name}.csv" for name in ("A1", "A2", "B1", "C1", "D1")]


def test_case_pattern_names_the_cases_anew(here):
    out = evaluate(here, "--case-pattern", r"\d")
    assert {line.split()[0] for line in out.splitlines() if line.strip()} >= {"1", "2"}
    assert "finds nothing" in expect_error("evaluate", here / "results", here / "truth", "--case-pattern", "^Z")


def test_slides_at_hand_give_pictures_of_the_mistakes(here):
    slides = here / "slides"
    slides.mkdir()
    for name in ("A1", "A2", "B1"):
        Image.fromarray(np.full((200, 300, 3), 200, np.uint8)).save(slides / f"{name}.png")
    out = evaluate(here, "--slides", slides, "--mpp", 0.5)
    assert "--slides" not in out
    page = (here / "results" / "evaluation.html").read_text()
    assert page.count("data:image/png") == 3
    out = evaluate(here)
    assert "Name the slides with --slides to see the mistakes." in out
    assert "data:image/png" not in (here / "results" / "evaluation.html").read_text()


def test_a_slide_counted_twice_is_refused(here):
    counted(here / "results" / "again", "A1", [])
    assert "slide A1 was counted more than once" in expect_error("evaluate", here / "results", here / "truth")


def test_threshold_and_choice_do_not_go_together(here):
    assert run("evaluate", here / "results", here / "truth", "--threshold", 0.5, "--choose", "f1")[0] == 2
