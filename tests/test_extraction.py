"""Extraction: what lies in the folder agrees with the slides, and a second run does only what is missing."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import (
    EXTRACT,
    MPP,
    SIDE,
    ArraySlide,
    add_slide,
    contents,
    damage_tiles,
    draw_field,
    extract,
    random_places,
    save_marks,
    save_slide,
    save_tiff,
)
from PIL import Image

from mitosis.annotations import Annotation, Label
from mitosis.cohort import SlideSource, find_sources
from mitosis.config import ExtractConfig
from mitosis.errors import OutputError, PatchIndexError
from mitosis.extraction import PatchCutter, extract_patches
from mitosis.files import make_folder, sha256, sole_writer
from mitosis.geometry import Box
from mitosis.masks import IGNORE, MITOTIC_FIGURE, NON_MITOTIC_FIGURE
from mitosis.patches import PatchIndex
from mitosis.slides import open_slide, read_at_mpp

CASES = {"case_pattern": "^[AB]"}


def read_image(path):
    with Image.open(path) as image:
        return np.array(image)


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def marks_in(slides, patch):
    """(mitotic figures, look-alikes) of the marks file that lie in a patch of a slide at `MPP`."""
    counts = {"mitotic figure": 0, "non-mitotic figure": 0}
    for line in (slides / f"{patch.slide_id}.csv").read_text().splitlines()[1:]:
        x, y, label = line.split(",")
        counts[label] += patch.box.x0 <= float(x) < patch.box.x1 and patch.box.y0 <= float(y) < patch.box.y1
    return tuple(counts.values())


def test_each_row_has_its_files_and_each_file_its_row(index):
    files = {name for name in contents(index.folder) if name.startswith(("images/", "masks/"))}
    assert files == {name for patch in index.patches for name in (patch.image, patch.mask)}
    assert len({patch.patch_id for patch in index.patches}) == len(index.patches)
    assert [patch.patch_id for patch in index.patches] == sorted(patch.patch_id for patch in index.patches)


def test_an_image_is_the_slide_at_its_box(index, slides_folder):
    for slide_id in ("A01", "B01"):
        with open_slide(slides_folder / f"{slide_id}.png") as slide:
            for patch in (patch for patch in index.patches if patch.slide_id == slide_id):
                np.testing.assert_array_equal(index.read_image(patch), read_at_mpp(slide, patch.box, MPP))


def test_marks_and_mask_pixels_are_those_the_row_counts(index, slides_folder):
    for patch in index.patches:
        assert (patch.n_mitotic, patch.n_non_mitotic) == marks_in(slides_folder, patch)
        mask = index.read_mask(patch)
        counted = tuple(int((mask == value).sum()) for value in (MITOTIC_FIGURE, NON_MITOTIC_FIGURE, IGNORE))
        assert counted == (patch.px_mitotic, patch.px_non_mitotic, patch.px_ignore)
        kind = "mitotic" if patch.n_mitotic else "hard negative" if patch.n_non_mitotic else "background"
        assert patch.kind == kind
    assert {patch.kind for patch in index.patches} == {"mitotic", "hard negative", "background"}


def test_a_mask_covers_the_dark_figure_and_not_the_tissue(index):
    for patch in index.patches:
        image, mask = index.read_image(patch), index.read_mask(patch)
        for value in (MITOTIC_FIGURE, NON_MITOTIC_FIGURE):
            assert not (mask == value).any() or (image[mask == value][:, 1] < 110).mean() > 0.9
        assert (image[mask == 0][:, 1] < 110).mean() < 0.01
        if patch.n_mitotic == 1 and "/figure" in patch.patch_id:
            assert patch.px_mitotic == pytest.approx(np.pi * 5**2, abs=5)


def test_tiles_of_the_grid_cover_the_tissue_once(tmp_path):
    """130 of 300 columns are glass, so three of five columns of tiles have tissue; of the last row a third is slide."""
    slides = tmp_path / "slides"
    slides.mkdir()
    figures = [(200.0, 100.0), (290.0, 180.0)]
    save_slide(slides / "a.png", draw_field(figures, width=300, height=216, glass=130))
    save_marks(slides / "a.csv", figures)
    record = extract(slides, tmp_path / "out")["a"]
    corners = [(patch.box.x0, patch.box.y0) for patch in record.patches if patch.on_grid]
    assert corners == [(x, y) for y in (0, 64, 128, 192) for x in (128, 192, 256)]


def test_a_tile_of_glass_is_kept_if_a_mark_lies_in_it(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    save_slide(slides / "a.png", draw_field([(200.0, 100.0)], glass=128))
    save_marks(slides / "a.csv", [(200.0, 100.0), (10.0, 10.0)])
    tiles = [patch.box[:2] for patch in extract(slides, tmp_path / "out")["a"].patches if patch.on_grid]
    assert (0, 0) in tiles
    assert len(tiles) == 9


def test_every_mark_has_a_patch_moved_no_further_than_the_jitter(index, slides_folder):
    moves = []
    for slide_id in ("A01", "A02", "B01"):
        lines = (slides_folder / f"{slide_id}.csv").read_text().splitlines()[1:]
        centred = [patch for patch in index.patches if patch.slide_id == slide_id and not patch.on_grid]
        assert len(centred) == len(lines)
        by_number = {int(patch.patch_id[-5:]): patch for patch in centred}
        for number, line in enumerate(lines):
            x, y, label = line.split(",")
            box = by_number[number].box
            move = (float(x) - box.x0 - 32, float(y) - box.y0 - 32)
            assert max(map(abs, move)) <= EXTRACT.jitter + 1
            assert ("figure" if label == "mitotic figure" else "lookalike") in by_number[number].patch_id
            moves.append(move)
    assert np.std(moves, axis=0).min() > 3


def test_patches_come_at_the_asked_for_mpp_and_know_their_place(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    figures = random_places(4, 5, width=512, height=512, border=40, apart=60)
    save_slide(slides / "a.png", draw_field(figures, width=512, height=512, radius=10), mpp=0.25)
    save_marks(slides / "a.csv", figures)
    patches = extract(slides, tmp_path / "out")["a"].patches
    tiles = [patch for patch in patches if patch.on_grid]
    assert sorted(patch.box[:2] for patch in tiles) == [(x, y) for x in range(0, 256, 64) for y in range(0, 256, 64)]
    assert sum(patch.n_mitotic for patch in tiles) == 4
    for patch in patches:
        assert (patch.x, patch.y) == (patch.box.x0 * 2, patch.box.y0 * 2)
        assert (patch.mpp, patch.slide_mpp) == (0.5, 0.25)


def test_cases_are_kept_together_and_split(index):
    sides = {patch.case_id: patch.split for patch in index.patches}
    assert sorted(sides) == ["A", "B"]
    assert sorted(sides.values()) == ["train", "val"]
    index.check_splits()


def test_marks_outside_the_slide_are_left_out_and_counted(slides_copy, tmp_path):
    with (slides_copy / "A01.csv").open("a") as stream:
        stream.write(f"{SIDE + 3},5,mitotic figure\n-1,5,non-mitotic figure\n")
    records = extract(slides_copy, tmp_path / "out")
    assert {name: record.n_outside for name, record in records.items()} == {"A01": 2, "A02": 0, "B01": 0}
    assert len(PatchIndex.read(tmp_path / "out").figures("A01")) == 6


def test_marks_of_other_classes_are_left_out_and_counted(slides_copy, tmp_path):
    with (slides_copy / "A01.csv").open("a") as stream:
        stream.write("50,50,lymphocyte\n60,60,lymphocyte\n")
    records = extract(slides_copy / "A01.png", tmp_path / "out", annotations=slides_copy)
    assert records["A01"].n_ignored == 2
    assert len(PatchIndex.read(tmp_path / "out").figures("A01")) == 6
    again = extract(slides_copy / "A01.png", tmp_path / "out", annotations=slides_copy)
    assert (again["A01"].reused, again["A01"].n_ignored) == (True, 2)


@pytest.mark.slow
def test_the_folder_has_the_same_bytes_for_one_worker_and_two(patches_folder, slides_folder, tmp_path):
    records = extract(slides_folder, tmp_path / "out", workers=2, **CASES)
    assert sorted(records) == ["A01", "A02", "B01"]
    assert contents(tmp_path / "out") == contents(patches_folder)


def test_a_second_run_writes_nothing_and_says_so(patches_copy, slides_folder):
    before = contents(patches_copy), times(patches_copy)
    records = extract(slides_folder, patches_copy, **CASES)
    assert all(record.reused for record in records.values())
    assert (contents(patches_copy), times(patches_copy)) == before
    assert {p.patch_id for r in records.values() for p in r.patches} == {
        p.patch_id for p in PatchIndex.read(patches_copy).patches
    }


@pytest.mark.parametrize(
    "lost", ["slides/A02.json", "images/A02/figure_00001.png", "masks/A02/tile_x000064_y000000.png", "half a journal"]
)
def test_an_interrupted_run_is_completed_to_the_same_bytes(patches_copy, slides_folder, lost):
    expected = contents(patches_copy)
    (patches_copy / "index.csv").unlink()
    if lost == "half a journal":
        journal = patches_copy / "slides" / "A02.json"
        journal.write_text(journal.read_text()[:500])
    else:
        (patches_copy / lost).unlink()
    shutil.copy(patches_copy / "images/B01/tile_x000000_y000000.png", patches_copy / "images/A02/left_over.png")
    records = extract(slides_folder, patches_copy, **CASES)
    assert {name: record.reused for name, record in records.items()} == {"A01": True, "A02": False, "B01": True}
    assert contents(patches_copy) == expected


def test_a_bad_slide_stops_no_other_but_there_is_no_index(slides_copy, slides_folder, patches_folder, tmp_path):
    out = tmp_path / "out"
    whole = (slides_copy / "A02.png").read_bytes()
    (slides_copy / "A02.png").write_bytes(whole[: len(whole) // 2])
    records = extract(slides_copy, out, **CASES)
    assert {name: bool(record.error) for name, record in records.items()} == {"A01": False, "A02": True, "B01": False}
    assert "A02.png: " in records["A02"].error
    assert not (out / "index.csv").exists()
    records = extract(slides_folder, out, **CASES)
    assert {name: record.reused for name, record in records.items()} == {"A01": True, "A02": False, "B01": True}
    assert contents(out) == contents(patches_folder)


def test_an_index_of_before_does_not_outlive_what_it_lists(patches_copy, slides_copy):
    """One slide has new marks, another one is damaged: the old index fits neither."""
    save_marks(slides_copy / "A01.csv", [(50.0, 50.0)])
    (slides_copy / "B01.png").write_bytes(b"\x89PNG broken")
    records = extract(slides_copy, patches_copy, **CASES)
    assert records["B01"].error
    assert not (patches_copy / "index.csv").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("mpp", 0.25), ("size", 128), ("jitter", 3), ("seed", 1), ("val_fraction", 0.5)]
)
def test_other_settings_are_refused_naming_the_changed_one(patches_copy, slides_folder, name, value):
    before = contents(patches_copy)
    with pytest.raises(PatchIndexError, match=rf"other settings \({name} .* → {value}\)"):
        extract(slides_folder, patches_copy, EXTRACT.model_copy(update={name: value}), **CASES)
    assert contents(patches_copy) == before


def test_settings_under_which_every_slide_failed_do_not_bind(slides_folder, tmp_path):
    failed = extract(slides_folder, tmp_path / "out", EXTRACT.model_copy(update={"mpp": 0.1}), **CASES)
    assert all(record.error for record in failed.values())
    extract(slides_folder, tmp_path / "out", **CASES)
    extract(slides_folder, tmp_path / "apart", **CASES)
    assert contents(tmp_path / "out") == contents(tmp_path / "apart")


class _Deadly:
    """A source that ends the worker that it is given to."""

    slide_id = "deadly"

    def __reduce__(self):
        return os._exit, (1,)


def test_a_worker_that_is_ended_from_outside_is_told(slides_folder, tmp_path):
    sources = [_Deadly(), *find_sources([slides_folder])]
    with pytest.raises(OutputError, match=r"out: a worker was ended from outside.*Run again with fewer --workers"):
        list(extract_patches(sources, tmp_path / "out", EXTRACT, workers=2))


@pytest.mark.parametrize("what", ["marks", "pixels", "mpp"])
def test_only_the_slide_that_changed_is_cut_again(patches_copy, slides_copy, tmp_path, what):
    options = dict(CASES)
    if what == "marks":
        save_marks(slides_copy / "A02.csv", [(40.0, 40.0)])
    elif what == "pixels":
        image = read_image(slides_copy / "A02.png")
        image[:20, :20] = 200
        save_slide(slides_copy / "A02.png", image)
    else:
        save_slide(slides_copy / "A02.png", read_image(slides_copy / "A02.png"), mpp=0.4)
    records = extract(slides_copy, patches_copy, **options)
    assert {name: record.reused for name, record in records.items()} == {"A01": True, "A02": False, "B01": True}
    extract(slides_copy, tmp_path / "fresh", **options)
    assert contents(patches_copy) == contents(tmp_path / "fresh")


def test_marks_changed_there_and_back_are_not_mixed_up(patches_copy, slides_copy, slides_folder, monkeypatch):
    """The run with other marks is stopped before it has noted the slide; the old note must not vouch for its masks."""
    expected = contents(patches_copy)
    (slides_copy / "A02.csv").write_text((slides_copy / "A02.csv").read_text().replace(".", "4."))

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mitosis.extraction.dump_json", stopped)
        with pytest.raises(KeyboardInterrupt):
            extract(slides_copy, patches_copy, **CASES)
    extract(slides_folder, patches_copy, **CASES)
    assert contents(patches_copy) == expected


def test_the_source_is_known_by_its_content(index, slides_folder):
    assert {patch.slide_id: patch.source_sha256 for patch in index.patches} == {
        name: sha256(slides_folder / f"{name}.png") for name in ("A01", "A02", "B01")
    }


def test_a_slide_without_its_file_of_marks_is_an_error_not_free_of_figures(slides_copy, tmp_path):
    (slides_copy / "A02.csv").unlink()
    records = extract(slides_copy, tmp_path / "out")
    assert [name for name, record in records.items() if record.error] == ["A02"]
    assert "unlabelled" in records["A02"].error
    assert not (tmp_path / "out" / "index.csv").exists()


def test_a_file_of_marks_that_vanished_is_an_error_of_its_slide(slides_copy, tmp_path, monkeypatch):
    monkeypatch.setattr("mitosis.extraction.find_annotations", lambda _source, name: (slides_copy / f"{name}.gone",))
    records = extract(slides_copy, tmp_path / "out")
    assert all(f"{name}.gone: " in record.error for name, record in records.items())


def test_an_empty_file_of_marks_says_there_are_none(slides_copy, tmp_path):
    (slides_copy / "A02.csv").write_text("")
    assert extract(slides_copy, tmp_path / "out")["A02"].error == ""
    patches = [patch for patch in PatchIndex.read(tmp_path / "out").patches if patch.slide_id == "A02"]
    assert {patch.kind for patch in patches} == {"background"}
    assert all(patch.mask and patch.px_mitotic == 0 for patch in patches)


def test_without_marks_there_are_no_masks(slides_folder, tmp_path):
    extract(slides_folder, tmp_path / "out", annotations=None)
    index = PatchIndex.read(tmp_path / "out")
    assert {patch.mask for patch in index.patches} == {""}
    assert {patch.kind for patch in index.patches} == {"background"}
    assert not list((tmp_path / "out" / "masks").rglob("*.png"))


def test_a_blank_slide_gives_no_patches(slides_copy, tmp_path):
    save_slide(slides_copy / "A02.png", np.full((SIDE, SIDE, 3), 247, np.uint8))
    (slides_copy / "A02.csv").write_text("")
    records = extract(slides_copy, tmp_path / "out")
    assert (records["A02"].error, records["A02"].patches) == ("", ())


def test_patches_on_a_damaged_tile_are_left_out_and_counted(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    figures = [(90.0, 90.0), (220.0, 220.0)]
    damage_tiles(save_tiff(slides / "a.tif", draw_field(figures)), 5)
    save_marks(slides / "a.csv", figures)
    record = extract(slides, tmp_path / "out", ExtractConfig(size=48, jitter=0))["a"]
    assert record.error == ""
    hit = [p for p in record.patches if p.box.x0 < 128 and p.box.x1 > 64 and p.box.y0 < 128 and p.box.y1 > 64]
    assert hit == []
    # 48-px tiles 1 and 2 in x and y touch the damage, and so does the patch of the first figure
    assert record.n_unreadable == 5


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_a_place_that_cannot_be_written_to_is_named(slides_folder, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=place):
        extract(slides_folder, tmp_path / place)
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_unclear_nucleus_is_ignored_and_takes_nothing_from_the_marks(tmp_path):
    """Of the two unclear ones one lies half over a marked figure. Slide px are 0.25 µm, patch px 0.5 µm."""
    figure, beside, alone = (100.0, 100.0), (112.0, 100.0), (40.0, 60.0)
    slide = ArraySlide(draw_field([figure], radius=10.0), mpp=0.25)
    source = SlideSource(tmp_path / "a.png", "a", "a", annotations=tmp_path)
    marks = (Annotation(*figure, Label.MITOTIC_FIGURE),)
    plain, unclear = tmp_path / "plain", tmp_path / "unclear"
    for folder, places in ((plain, ()), (unclear, (beside, alone))):
        (patch,) = PatchCutter(slide, source, folder, EXTRACT, "", marks, places).cut(
            [("p", Box(10, 0, 74, 64), False)]
        )
    before, mask = (PatchIndex(folder, ()).read_mask(patch) for folder in (plain, unclear))
    rows, columns = np.mgrid[:64, :64] + 0.5
    near = np.zeros((64, 64), bool)
    for x, y in (beside, alone):
        near |= np.hypot(columns - (x / 2 - 10), rows - y / 2) * 0.5 <= 8.0
    assert (before[near] == MITOTIC_FIGURE).sum() > 20
    np.testing.assert_array_equal(mask, np.where(near & (before == 0), IGNORE, before))
    assert patch.px_ignore == (mask == IGNORE).sum()
    assert (unclear / "images/a/p.png").read_bytes() == (plain / "images/a/p.png").read_bytes()
    assert (unclear / "marks/a.csv").read_text() == "x,y,label\n100.000,100.000,mitotic figure\n"


def test_outside_a_region_of_interest_nothing_is_cut_and_masks_ignore(slides_folder, tmp_path):
    """The left part of a slide: its figures alone, its tiles alone, and what a patch has of the other half is 255."""
    half, edge = tmp_path / "half.geojson", 150
    ring = [[0, 0], [edge, 0], [edge, SIDE], [0, SIDE], [0, 0]]
    half.write_text(json.dumps({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}))
    source = SlideSource(slides_folder / "A01.png", "A01", "A", "", MPP, slides_folder)
    (whole,) = extract_patches([source], tmp_path / "whole", EXTRACT)
    (part,) = extract_patches([replace(source, region=half)], tmp_path / "part", EXTRACT)
    places = np.loadtxt(slides_folder / "A01.csv", delimiter=",", skiprows=1, usecols=(0, 1))
    n_beyond = int((places[:, 0] > edge).sum())
    assert n_beyond
    assert part.n_outside == n_beyond
    assert (
        sum(not patch.on_grid for patch in whole.patches) - sum(not patch.on_grid for patch in part.patches) == n_beyond
    )
    assert {patch.x < edge for patch in part.patches} == {True}
    index = PatchIndex.read(tmp_path / "part")
    crossing = [patch for patch in index.patches if patch.box.x1 > edge]
    assert crossing
    for patch in crossing:
        mask = index.read_mask(patch)
        column = edge - patch.box.x0
        assert (mask[:, column:] == IGNORE).all()
        assert not (mask[:, :column] == IGNORE).all()


def test_the_stain_of_a_slide_does_not_depend_on_its_region(slides_folder, tmp_path, monkeypatch):
    areas = []
    monkeypatch.setattr("mitosis.patch_cutter.measure_stain", lambda _, tissue, __: areas.append(tissue.area_mm2))
    ring = [[0, 0], [150, 0], [150, SIDE], [0, SIDE], [0, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (tmp_path / "half.geojson").write_text(json.dumps(feature))
    source = SlideSource(slides_folder / "A01.png", "A01", "A", "", MPP, slides_folder)
    for name, region in (("whole", None), ("part", tmp_path / "half.geojson")):
        (record,) = extract_patches([replace(source, region=region)], tmp_path / name, EXTRACT)
        assert not record.error
    assert areas[0] == areas[1]


def test_a_region_that_changed_cuts_a_slide_anew(slides_folder, tmp_path):
    region = tmp_path / "roi.geojson"
    source = SlideSource(slides_folder / "A01.png", "A01", "A", "", MPP, slides_folder, region)
    for edge, reused in ((100, False), (100, True), (200, False)):
        ring = [[0, 0], [edge, 0], [edge, SIDE], [0, SIDE], [0, 0]]
        region.write_text(json.dumps({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}))
        (record,) = extract_patches([source], tmp_path / "out", EXTRACT)
        assert (record.error, record.reused) == ("", reused)


def test_two_commands_that_cut_into_one_folder_are_refused(tmp_path):
    add_slide(make_folder(tmp_path / "slides"), "a", 4)
    with sole_writer(tmp_path / "out"), pytest.raises(OutputError, match="out: another command is writing there"):
        extract(tmp_path / "slides", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
