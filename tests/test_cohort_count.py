"""Many slides into one folder: a bad one stops no other, what is done is not done again, and no stop leaves a trace."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MPP, contents, draw_field, save_slide

from mitosis.checkpoints import ModelCard
from mitosis.cohort import SlideSource, find_sources
from mitosis.cohort_count import count_slides
from mitosis.config import CountConfig, NetworkConfig
from mitosis.errors import ConfigError, OutputError
from mitosis.files import sha256, sole_writer, write_json
from mitosis.inference import Model, find_in_tiles

CARD = ModelCard(
    network=NetworkConfig(width=4, depth=2, normalise_stain=False),
    classes=("background", "mitotic figure"),
    mpp=MPP,
    threshold=0.5,
)


def by_darkness(images):
    """An engine that sees figures where there is little red light."""
    return ((images[..., 0] < 100) * 0.9).astype(np.float32)


ORACLE = Model(by_darkness, CARD, stride=1, radius=0, runs_on="oracle 1 float32")


def config(**settings):
    return CountConfig(**{"tile_size": 128, "workers": 0, "hotspot_mm2": 0.005, **settings})


@pytest.fixture(autouse=True)
def _quick_picture(monkeypatch):
    """Pictures take most of the time, and test_report.py looks at them."""
    monkeypatch.setattr(
        "mitosis.report.draw_overlay", lambda path, _slide, report, *_: write_json(path, report.to_dict())
    )


def run(slides, out, model=ORACLE, settings=None, **options):
    settings = settings or config()
    return {result.name: result for result in count_slides(find_sources([slides]), model, out, settings, **options)}


def summary(out):
    with (out / "summary.csv").open(newline="") as stream:
        return {row["slide"]: row for row in csv.DictReader(stream)}


def test_each_slide_gets_a_folder_and_a_line(slides_folder, tmp_path):
    told = []
    results = run(slides_folder, tmp_path / "out", on_progress=told.append)
    assert list(results) == ["A01", "A02", "B01"]
    assert {(result.status, result.report.mitotic_count) for result in results.values()} == {("ok", 6)}
    lines = summary(tmp_path / "out")
    assert [lines[name]["mitotic_count"] for name in results] == ["6", "6", "6"]
    for name in results:
        content = json.loads((tmp_path / "out" / name / "count.json").read_text())
        assert (content["slide"], content["mitotic_count"]) == (name, 6)
    assert [(now.slide, now.n_done) for now in told if not now.part] == [("A01", 1), ("A02", 2), ("B01", 3)]
    *parts, done = [now.part for now in told if now.slide == "A02"]
    assert len(parts) >= 9
    assert parts == [n / len(parts) for n in range(1, len(parts) + 1)]
    assert done == 0
    tissue = sum(result.report.tissue_mm2 for result in results.values())
    assert (told[-1].n_slides, told[-1].n_before, told[-1].counted_mm2) == (3, 0, pytest.approx(tissue))


@pytest.mark.parametrize(
    ("training", "seen"),
    [({}, set()), ({"cases": ["A"]}, {"A01", "A02"}), ({"source_sha256": ["{B01}"]}, {"B01"})],
)
def test_each_count_says_its_case_and_whether_the_model_has_seen_it(slides_folder, tmp_path, training, seen):
    """By its case, or by the very file under whatever name."""
    digest = sha256(slides_folder / "B01.png")
    training = {key: [value.replace("{B01}", digest) for value in values] for key, values in training.items()}
    model = replace(ORACLE, card=CARD.model_copy(update={"training": training}))
    sources = find_sources([slides_folder], case_pattern="^[AB]", domain="scanner 1")
    for result in count_slides(sources, model, tmp_path / "out", config()):
        content = json.loads((tmp_path / "out" / result.name / "count.json").read_text())
        assert (content["case_id"], content["domain"]) == (result.name[0], "scanner 1")
        assert content["seen_in_training"] == (result.name in seen)
        assert content["training_cases"] == training.get("cases", [])


def test_the_same_slides_give_the_same_bytes(slides_folder, tmp_path):
    for name in ("one", "two"):
        run(slides_folder / "A01.png", tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_bad_slide_stops_no_other_and_is_named_in_the_summary(slides_copy, tmp_path):
    whole = (slides_copy / "A02.png").read_bytes()
    (slides_copy / "A02.png").write_bytes(whole[: len(whole) // 2])
    results = run(slides_copy, tmp_path / "out")
    assert {name: result.status for name, result in results.items()} == {"A01": "ok", "A02": "failed", "B01": "ok"}
    assert "A02.png: " in results["A02"].error
    lines = summary(tmp_path / "out")
    assert [lines[name]["status"] for name in ("A01", "A02", "B01")] == ["ok", "failed", "ok"]
    assert "A02.png: " in lines["A02"]["error"]
    assert lines["A02"]["mitotic_count"] == ""
    assert not (tmp_path / "out" / "A02").exists()


def counted(results):
    """The slides that were counted now, not before."""
    return [name for name, result in results.items() if result.report]


def test_what_is_finished_is_not_counted_again(slides_folder, tmp_path):
    out, told = tmp_path / "out", []
    first = run(slides_folder, out)
    before = contents(out)
    again = run(slides_folder, out, replace(ORACLE, engine=None), on_progress=told.append)  # there is nothing to run
    assert counted(again) == []
    assert [result.status for result in again.values()] == ["ok"] * 3
    assert [dict(result.to_dict())["mitotic_count"] for result in again.values()] == [6, 6, 6]
    assert [(now.n_done, now.n_before) for now in told] == [(1, 1), (2, 2), (3, 3)]
    assert contents(out) == before
    assert counted(first) == ["A01", "A02", "B01"]


class Killed(BaseException):
    """Nothing that the code under test would catch."""


@pytest.mark.parametrize("n", range(1, 13))
def test_a_run_killed_at_any_write_ends_as_if_nothing_had_happened(slides_folder, tmp_path, monkeypatch, n):
    """Two slides, each with four files and a summary, and the summary at the end."""
    slides, whole, out = slides_folder, tmp_path / "whole", tmp_path / "out"
    settings, sources = config(), find_sources([slides / "A01.png", slides / "B01.png"])
    list(count_slides(sources, ORACLE, whole, settings))
    files, rename = [], Path.replace

    def killed(path, target):
        files.append(target)
        if len(files) == n:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        try:
            list(count_slides(sources, ORACLE, out, settings))
        except Killed:
            assert len(files) == n
        else:
            assert (len(files), n) == (11, 12)
    n_finished = sum(1 for path in files[: n - 1] if path.name == "count.json")
    results = list(count_slides(sources, ORACLE, out, settings))
    assert sum(result.report is None for result in results) == n_finished
    assert contents(out) == contents(whole)


def test_the_summary_is_there_after_every_slide(slides_folder, tmp_path):
    out = tmp_path / "out"
    results = count_slides(find_sources([slides_folder]), ORACLE, out, config())
    for n in (1, 2, 3):
        next(results)
        assert list(summary(out)) == ["A01", "A02", "B01"][:n]


def test_a_stopped_second_run_loses_no_row_of_the_first(slides_copy, tmp_path):
    out = tmp_path / "out"
    run(slides_copy, out)
    save_slide(slides_copy / "A01.png", draw_field([(60.0, 60.0)]))
    results = count_slides(find_sources([slides_copy]), ORACLE, out, config())
    next(results)
    results.close()
    assert {name: row["mitotic_count"] for name, row in summary(out).items()} == {"A01": "1", "A02": "6", "B01": "6"}


def test_another_slide_of_the_same_name_size_and_time_is_counted_again(tmp_path):
    """A file's sha256 tells; its size and time would not."""
    path, out = tmp_path / "a.bmp", tmp_path / "out"
    source, stats = SlideSource(path, "a", "a", mpp=MPP), []
    for figures in (1, 2):
        save_slide(path, draw_field([(60.0, 60.0), (200.0, 200.0)][:figures]), mpp=None)
        os.utime(path, ns=(0, 0))
        stats.append((path.stat().st_size, path.stat().st_mtime_ns))
        (result,) = count_slides([source], ORACLE, out, config())
        assert result.report is not None
        assert result.report.mitotic_count == figures
    assert stats[0] == stats[1]


def test_a_slide_that_fails_now_keeps_no_count_of_before(slides_copy, tmp_path):
    """Or `mitosis evaluate` would take the old count for that of this run."""
    path, out = slides_copy / "A02.png", tmp_path / "out"
    run(path, out)
    assert (out / "A02" / "count.json").exists()
    path.write_bytes(b"\x89PNG broken")
    run(path, out, overwrite=True)
    assert not list(out.glob("*/count.json"))


def test_a_place_that_cannot_be_written_to_stops_the_run(slides_folder, tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError, match="out"):
        run(slides_folder, tmp_path / "out")


def test_a_slide_that_vanished_meanwhile_or_knows_no_mpp_has_failed(slides_copy, tmp_path):
    sources = find_sources([slides_copy / f"{name}.png" for name in ("A02", "B01")])
    (slides_copy / "A02.png").unlink()
    save_slide(slides_copy / "B01.png", draw_field([]), mpp=None)
    gone, no_mpp = count_slides(sources, ORACLE, tmp_path / "out", config())
    assert (gone.status, no_mpp.status) == ("failed", "failed")
    assert "no such file" in gone.error
    assert "no µm/px" in no_mpp.error


# Which part decides what


@pytest.mark.parametrize(
    ("settings", "model", "said"),
    [
        ({"threshold": 0.7}, {}, r"count\.threshold None → 0\.7"),
        ({"hotspot_mm2": 0.01}, {}, r"count\.hotspot_mm2 0\.005 → 0\.01"),
        ({}, {"runs_on": "oracle 2 float32"}, "engine oracle 1 float32 → oracle 2 float32"),
        ({}, {"card": CARD.model_copy(update={"weights_sha256": "abc"})}, "model none → abc, model card "),
        ({}, {"card": CARD.model_copy(update={"threshold": 0.6})}, "model card [0-9a-f]{12} → [0-9a-f]{12}"),
    ],
)
def test_results_of_other_settings_are_refused_by_name_and_replaced_if_asked(
    slides_folder, tmp_path, settings, model, said
):
    out, slide = tmp_path / "out", slides_folder / "A01.png"
    run(slide, out)
    before, other = contents(out), replace(ORACLE, **model)
    with pytest.raises(ConfigError, match=rf"out: holds results of other settings: A01 was .*{said}.*--overwrite"):
        run(slide, out, other, config(**settings))
    assert contents(out) == before
    assert counted(run(slide, out, other, config(**settings), overwrite=True)) == ["A01"]
    run(slide, tmp_path / "fresh", other, config(**settings))
    assert contents(out) == contents(tmp_path / "fresh")


def test_settings_that_change_no_count_do_not_count_again(slides_folder, tmp_path):
    run(slides_folder, tmp_path / "out")
    assert counted(run(slides_folder, tmp_path / "out", settings=config(tile_size=256, batch_size=1, workers=1))) == []


def test_what_is_known_of_a_slide_is_part_of_its_count(slides_folder, tmp_path):
    out, sources = tmp_path / "out", find_sources([slides_folder])
    list(count_slides(sources, ORACLE, out, config()))
    changed = [replace(sources[0], case_id="A"), replace(sources[1], domain="lab"), replace(sources[2], mpp=0.25)]
    results = list(count_slides(changed, ORACLE, out, config()))
    assert all(result.report for result in results)
    assert counted({result.name: result for result in count_slides(changed, ORACLE, out, config())}) == []


@pytest.mark.parametrize("damage", ["count.json", "overlay.png"])
def test_a_count_that_is_damaged_or_not_whole_is_made_anew(slides_folder, tmp_path, damage):
    out = tmp_path / "out"
    run(slides_folder, out)
    before = contents(out)
    if damage == "count.json":
        (out / "A02" / damage).write_text("{")
    else:
        (out / "A02" / damage).unlink()
    assert counted(run(slides_folder, out)) == ["A02"]
    assert contents(out) == before


@pytest.mark.parametrize("content", [{}, {"settings": [], "versions": 3}])
def test_a_count_of_something_else_is_refused(slides_folder, tmp_path, content):
    out = tmp_path / "out"
    run(slides_folder, out)
    write_json(out / "A02" / "count.json", content)
    with pytest.raises(ConfigError, match="A02 was counted with"):
        run(slides_folder, out)


def test_a_folder_that_was_copied_is_no_second_slide(slides_folder, tmp_path):
    out = tmp_path / "out"
    run(slides_folder / "A01.png", out)
    shutil.copytree(out / "A01", out / "copy of A01")
    run(slides_folder / "A02.png", out)
    assert [line.split(",")[0] for line in (out / "summary.csv").read_text().splitlines()[1:]] == ["A01", "A02"]


@pytest.mark.parametrize("settings", [{"threshold": 0.01}, {"score_floor": 0.6}])
def test_a_threshold_below_the_floor_is_refused_before_anything_is_written(slides_folder, tmp_path, settings):
    with pytest.raises(ConfigError, match=r"count.score_floor = .* is above the threshold, .* Set count.score_floor"):
        run(slides_folder, tmp_path / "out", settings=config(**settings))
    assert not (tmp_path / "out").exists()


def test_a_folder_takes_further_slides_and_keeps_the_others(slides_folder, tmp_path):
    for name in ("B01", "A01", "A02"):
        assert counted(run(slides_folder / f"{name}.png", tmp_path / "out")) == [name]
    run(slides_folder, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_failed_slide_is_tried_again(slides_copy, tmp_path):
    whole = (slides_copy / "A02.png").read_bytes()
    (slides_copy / "A02.png").write_bytes(whole[: len(whole) // 2])
    assert run(slides_copy, tmp_path / "out")["A02"].status == "failed"
    (slides_copy / "A02.png").write_bytes(whole)
    assert counted(run(slides_copy, tmp_path / "out")) == ["A02"]
    run(slides_copy, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_slide_that_breaks_in_a_new_way_stops_no_other(slides_folder, tmp_path):
    def find(slide, *others):
        if slide.path.stem == "A02":
            raise ZeroDivisionError("nobody thought of it")
        return find_in_tiles(slide, *others)

    results = run(slides_folder, tmp_path / "out", find=find)
    assert [result.status for result in results.values()] == ["ok", "failed", "ok"]
    assert results["A02"].error == f"{slides_folder / 'A02.png'}: ZeroDivisionError: nobody thought of it"
    assert summary(tmp_path / "out")["A02"]["error"] == results["A02"].error


@pytest.mark.parametrize("ahead", [1, 5])
def test_slides_may_be_started_before_others_are_done(slides_folder, tmp_path, ahead):
    started = []

    def find(slide, *others):
        started.append(slide.path.stem)
        return find_in_tiles(slide, *others)

    results = count_slides(find_sources([slides_folder]), ORACLE, tmp_path / "out", config(), find=find, ahead=ahead)
    assert next(results).name == "A01"
    assert started == ["A01", "A02", "B01"][: ahead + 1]
    assert [result.name for result in results] == ["A02", "B01"]
    run(slides_folder, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_tile_size_that_does_not_fit_is_refused_before_anything_is_written(slides_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"count\.tile_size"):
        run(slides_folder, tmp_path / "out", replace(ORACLE, stride=3))
    assert not (tmp_path / "out").exists()


# Regions of interest


def save_region(path, *rings):
    write_json(path, {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": {}})
    return path


def test_only_a_region_of_interest_is_counted_and_looked_at(tmp_path):
    figures = [(40.0, 40.0), (200.0, 60.0), (220.0, 220.0)]
    path = save_slide(tmp_path / "a.png", draw_field(figures))
    region = save_region(tmp_path / "roi.geojson", [(0, 0), (128, 0), (128, 256), (0, 256), (0, 0)])
    (result,) = count_slides([SlideSource(path, "a", "a", region=region)], ORACLE, tmp_path / "out", config())
    report = result.report
    assert (report.mitotic_count, report.n_candidates, report.region_sha256) == (1, 1, sha256(region))
    assert report.tissue_mm2 == pytest.approx(0.064 * 0.128)


def test_another_region_means_another_count(tmp_path):
    path = save_slide(tmp_path / "a.png", draw_field([(40.0, 40.0), (200.0, 60.0)]))
    sources = [SlideSource(path, "a", "a", region=tmp_path / "roi.geojson")]
    counts = []
    for width in (128, 256, 256):
        save_region(tmp_path / "roi.geojson", [(0, 0), (width, 0), (width, 256), (0, 256)])
        (result,) = count_slides(sources, ORACLE, tmp_path / "out", config())
        counts.append((result.to_dict()["mitotic_count"], result.report is None))
    assert counts == [(1, False), (2, False), (2, True)]


def test_a_broken_region_fails_its_slide_only(slides_folder, tmp_path):
    (tmp_path / "roi.geojson").write_text("[]")
    first, *others = find_sources([slides_folder])
    sources = [replace(first, region=tmp_path / "roi.geojson"), *others]
    results = list(count_slides(sources, ORACLE, tmp_path / "out", config()))
    assert [result.status for result in results] == ["failed", "ok", "ok"]
    assert "roi.geojson: holds no area" in results[0].error


def test_two_runs_into_one_folder_are_refused(slides_folder, tmp_path):
    with sole_writer(tmp_path / "out"), pytest.raises(OutputError, match="out: another command is writing there"):
        run(slides_folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert run(slides_folder, tmp_path / "out")
