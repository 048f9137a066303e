"""Mining: only what is wrong on training slides becomes a look-alike, and every step can be followed and redone."""

import csv
import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from conftest import (
    MPP,
    TINY,
    add_slide,
    contents,
    damage_tiles,
    draw_field,
    extract,
    save_marks,
    save_slide,
    save_tiff,
)

from mitosis.checkpoints import ModelCard, load_model, save_model
from mitosis.cli import main
from mitosis.cohort import find_sources
from mitosis.config import NetworkConfig
from mitosis.detections import Detections
from mitosis.errors import AnnotationError, ConfigError, OutputError, PatchIndexError, SlideError
from mitosis.files import sha256
from mitosis.inference import Model
from mitosis.masks import IGNORE, MITOTIC_FIGURE, NON_MITOTIC_FIGURE
from mitosis.mining import SAFE_UM, mine, read_marks, read_review
from mitosis.patches import PatchIndex
from mitosis.validation import check_patches

# A01, px of 0.5 µm: two figures, a look-alike, and four dark nuclei without a mark that a model finds.
FIGURES, LOOK_ALIKES = [(60.0, 60.0), (160.0, 160.0)], [(220.0, 40.0)]
WRONG = {(60.0, 120.0): 0.9, (200.0, 160.0): 0.8, (120.0, 220.0): 0.7, (40.0, 220.0): 0.6}
OTHERS = {(62.0, 60.0): 0.99, (60.0, 72.0): 0.95, (160.0, 171.0): 0.97, (220.0, 60.0): 0.93}  # on marks or near them
FOUND = {"A01": WRONG | OTHERS, "A02": {}, "B01": {(30.0, 30.0): 0.9}}
DIGEST = "0123456789abcdef" * 4
CARD = ModelCard(
    network=NetworkConfig(width=2, depth=1),
    classes=("background", "mitotic figure"),
    mpp=MPP,
    threshold=0.5,
    training={"cases": ["A"]},
    weights_sha256=DIGEST,
)


def never(_images):
    raise AssertionError("the detections of these tests are given")


MODEL = Model(never, CARD, stride=1, radius=0)


def name_of(x, y, slide="A01", digest=DIGEST):
    return f"{slide}/mined-{digest[:8]}_x{int(x):06d}_y{int(y):06d}"


@pytest.fixture
def detected(monkeypatch):
    """What the model finds on each slide, {name: {(x, y): score}}, to be changed by a test, and on what it was run."""
    oracle = SimpleNamespace(found={name: dict(places) for name, places in FOUND.items()}, seen=[], regions=[])

    def count_slide(_slide, name, model, config, region=None, **_):
        oracle.regions.append(region)
        oracle.seen.append((name, model.card.weights_sha256))
        found = {place: score for place, score in oracle.found[name].items() if score >= config.score_floor}
        places = np.array(list(found), dtype=float).reshape(-1, 2)
        return SimpleNamespace(candidates=Detections(places, np.array(list(found.values())), np.ones(len(found))))

    monkeypatch.setattr("mitosis.mining.count_slide", count_slide)
    return oracle


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Slides A01 and A02 of case A and B01 of case B, with marks; read-only by agreement."""
    folder = tmp_path_factory.mktemp("fields")
    save_slide(folder / "A01.png", draw_field([*FIGURES, *WRONG], LOOK_ALIKES))
    save_marks(folder / "A01.csv", FIGURES, LOOK_ALIKES)
    save_slide(folder / "A02.png", draw_field([(200.0, 200.0)], seed=2))
    save_marks(folder / "A02.csv", [(200.0, 200.0)])
    add_slide(folder, "B01", 3)
    return folder


@pytest.fixture(scope="module")
def base(fields, tmp_path_factory):
    """The patches that were extracted from `fields`; read-only by agreement."""
    out = tmp_path_factory.mktemp("base") / "patches"
    extract(fields, out, case_pattern="^[AB]")
    return out


def sources_of(folder, **options):
    return find_sources([folder], **{"case_pattern": "^[AB]", "annotations": folder, **options})


def run(fields, out, config=TINY, model=MODEL, **options):
    return mine(sources_of(fields), model, out, config, **options)


def rows_of(folder):
    with (folder / "mined.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def mined_places(folder):
    return {(float(row["x"]), float(row["y"])) for row in rows_of(folder)}


def with_threshold(threshold):
    return TINY.model_copy(update={"count": TINY.count.model_copy(update={"threshold": threshold})})


def save_review(path, decisions):
    path.write_text(json.dumps({"decisions": decisions}))
    return path


# What is mined


def test_false_positives_are_mined_and_marks_are_left_alone(fields, detected, tmp_path):
    result = run(fields, tmp_path / "mined")
    assert mined_places(tmp_path / "mined") == set(WRONG)
    assert result.left_out == ["B01"]
    assert {name for name, _ in detected.seen} == {"A01", "A02"}
    assert result.slides["A01"] == {
        **{"n_found": 8, "n_on_figures": 2, "n_near_marks": 2, "n_over_limit": 0, "n_judged_figure": 0},
        **{"n_unsure": 0, "n_unreadable": 0, "n_mined": 4},
    }
    assert set(result.slides["A02"].values()) == {0}
    assert not result.reused


@pytest.mark.parametrize("mark", ["figure", "look-alike"])
@pytest.mark.parametrize(("away_um", "is_mined"), [(8.0, False), (15.0, False), (15.1, True)])
def test_nothing_is_mined_within_a_safe_distance_of_any_mark(detected, tmp_path, mark, away_um, is_mined):
    """The figure or look-alike is at (100, 100); where it is a figure, another detection lies on it."""
    assert SAFE_UM == 15.0
    slides = tmp_path / "slides"
    slides.mkdir()
    save_slide(slides / "A01.png", draw_field([(100.0, 100.0)]))
    save_marks(slides / "A01.csv", *(([(100.0, 100.0)],) if mark == "figure" else ([], [(100.0, 100.0)])))
    place = (100.0, 100.0 + away_um / MPP)
    detected.found = {"A01": {place: 0.9} | ({(100.0, 100.0): 0.8} if mark == "figure" else {})}
    run(slides, tmp_path / "mined")
    assert mined_places(tmp_path / "mined") == ({place} if is_mined else set())
    assert [float(row["nearest_mark_um"]) for row in rows_of(tmp_path / "mined")] == ([away_um] if is_mined else [])


def test_of_each_slide_the_highest_scores_are_kept(fields, detected, tmp_path):
    detected.found["A02"] = {(20.0, 200.0): 0.55}
    result = run(fields, tmp_path / "mined", max_per_slide=2)
    of_a01 = {(float(row["x"]), float(row["y"])) for row in rows_of(tmp_path / "mined") if row["slide_id"] == "A01"}
    assert of_a01 == {(60.0, 120.0), (200.0, 160.0)}
    assert result.slides["A01"]["n_over_limit"] == 2
    assert result.slides["A02"]["n_mined"] == 1


def test_the_threshold_is_the_card_s_unless_one_is_given(fields, detected, tmp_path):
    detected.found["A01"][30.0, 170.0] = 0.45
    run(fields, tmp_path / "card")
    run(fields, tmp_path / "low", with_threshold(0.45))
    run(fields, tmp_path / "high", with_threshold(0.8))
    assert mined_places(tmp_path / "card") == set(WRONG)
    assert mined_places(tmp_path / "low") == {*WRONG, (30.0, 170.0)}
    assert mined_places(tmp_path / "high") == {(60.0, 120.0), (200.0, 160.0)}
    assert {row["threshold"] for row in rows_of(tmp_path / "low")} == {"0.45"}


@pytest.mark.parametrize(
    ("training", "named"), [({"cases": ["C", "D"]}, r"\(C, D\), but of A, B\."), ({}, "lists none")]
)
def test_without_a_slide_of_a_training_case_nothing_is_mined(fields, detected, tmp_path, training, named):
    model = replace(MODEL, card=CARD.model_copy(update={"training": training}))
    with pytest.raises(ConfigError, match=named):
        run(fields, tmp_path / "mined", model=model)
    assert not detected.seen
    assert list(tmp_path.iterdir()) == []


def test_without_marks_nothing_tells_what_is_wrong(fields, tmp_path):
    with pytest.raises(AnnotationError, match="--annotations"):
        mine(sources_of(fields, annotations=None), MODEL, tmp_path / "mined", TINY)


def test_a_slide_on_which_nothing_is_marked_can_be_mined(detected, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    save_slide(slides / "A01.png", draw_field([(100.0, 100.0)]))
    (slides / "A01.csv").write_text("")
    detected.found = {"A01": {(100.0, 100.0): 0.9}}
    run(slides, tmp_path / "mined")
    assert [row["nearest_mark_um"] for row in rows_of(tmp_path / "mined")] == [""]


def test_where_nothing_is_wrong_the_tables_are_empty(fields, detected, tmp_path):
    detected.found["A01"] = OTHERS
    assert run(fields, tmp_path / "mined").slides["A01"]["n_mined"] == 0
    assert rows_of(tmp_path / "mined") == []
    with pytest.raises(PatchIndexError, match="lists no patch"):
        PatchIndex.read(tmp_path / "mined")


@pytest.mark.usefixtures("detected")
def test_what_was_mined_before_is_not_mined_again_and_stays_a_look_alike(fields, tmp_path):
    run(fields, tmp_path / "first", max_per_slide=2)
    later = replace(MODEL, card=CARD.model_copy(update={"weights_sha256": "f" * 64}))
    result = run(fields, tmp_path / "second", model=later, earlier=[tmp_path / "first"])
    assert mined_places(tmp_path / "second") == {(120.0, 220.0), (40.0, 220.0)}
    assert result.slides["A01"]["n_near_marks"] == 4
    with pytest.raises(PatchIndexError, match="mined with other earlier"):
        run(fields, tmp_path / "second", model=later, earlier=[])
    lines = (tmp_path / "second" / "marks" / "A01.csv").read_text().splitlines()
    assert {"60.000,120.000,non-mitotic figure", "120.000,220.000,non-mitotic figure"} <= set(lines)


def test_the_places_on_damaged_tiles_are_counted_and_left_out(detected, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    damage_tiles(save_tiff(slides / "A01.tif", draw_field([(90.0, 90.0), (200.0, 200.0)])), 5)
    save_marks(slides / "A01.csv", [])
    detected.found = {"A01": {(90.0, 90.0): 0.9, (220.0, 220.0): 0.8}}
    counts = run(slides, tmp_path / "mined").slides["A01"]
    assert (counts["n_found"], counts["n_unreadable"], counts["n_mined"]) == (2, 1, 1)
    assert mined_places(tmp_path / "mined") == {(220.0, 220.0)}


# What is written


@pytest.mark.usefixtures("detected")
def test_the_folder_goes_with_that_of_extract(fields, base, tmp_path):
    run(fields, tmp_path / "mined")
    mined = PatchIndex.read(tmp_path / "mined")
    assert (tmp_path / "mined" / "settings.yaml").read_bytes() == (base / "settings.yaml").read_bytes()
    assert {(p.case_id, p.on_grid, p.split, p.domain) for p in mined.patches} == {("A", False, "train", "")}
    assert {p.source_sha256 for p in mined.patches} == {sha256(fields / "A01.png")}
    assert [p.patch_id for p in mined.patches] == sorted(name_of(*place) for place in WRONG)
    joined = PatchIndex.join([PatchIndex.read(base), mined]).with_val_cases(["B"])
    check_patches(joined, TINY)
    assert len(joined.patches) == len(PatchIndex.read(base).patches) + 4
    for patch in mined.patches:
        np.testing.assert_array_equal(joined.read_image(joined.patches[-1]), mined.read_image(mined.patches[-1]))
        assert mined.read_image(patch).shape == (64, 64, 3)
    assert mined.figures("A01").tolist() == [list(place) for place in FIGURES]


@pytest.mark.usefixtures("detected")
def test_mined_patches_follow_their_case_to_the_other_side(fields, base, tmp_path):
    run(fields, tmp_path / "mined")
    index = PatchIndex.read(base).with_val_cases(["A"])
    joined = PatchIndex.join([index, PatchIndex.read(tmp_path / "mined")])
    assert {patch.split for patch in joined.patches if "/mined-" in patch.patch_id} == {"val"}
    joined.check_splits()


@pytest.mark.usefixtures("detected")
def test_masks_hold_what_was_mined(fields, tmp_path):
    run(fields, tmp_path / "mined")
    mined = PatchIndex.read(tmp_path / "mined")
    moves = set()
    for patch, row in zip(mined.patches, rows_of(tmp_path / "mined"), strict=True):
        assert patch.patch_id == row["patch_id"]
        x, y = (int(float(row[axis])) - corner for axis, corner in zip("xy", patch.box[:2], strict=True))
        assert max(abs(x - 32), abs(y - 32)) <= TINY.extract.jitter + 1
        moves.add((x, y))
        mask = mined.read_mask(patch)
        assert mask[y, x] == NON_MITOTIC_FIGURE
        nucleus = mined.read_image(patch)[mask == NON_MITOTIC_FIGURE]
        assert (nucleus[:, 0] < 100).mean() > 0.9
        assert patch.px_non_mitotic == len(nucleus)
    assert [patch.kind for patch in mined.patches if patch.patch_id == name_of(40, 220)] == ["hard negative"]
    assert len(moves) == 4  # each has a jitter of its own


def test_a_figure_beside_what_was_mined_makes_the_patch_a_mitotic_one(detected, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    save_slide(slides / "A01.png", draw_field([(100.0, 100.0), (100.0, 131.0)]))
    save_marks(slides / "A01.csv", [(100.0, 100.0)])
    detected.found = {"A01": {(100.0, 131.0): 0.9}}
    config = TINY.model_copy(update={"extract": TINY.extract.model_copy(update={"size": 96})})
    run(slides, tmp_path / "mined", config)
    (patch,) = PatchIndex.read(tmp_path / "mined").patches
    assert (patch.kind, patch.n_mitotic, patch.n_non_mitotic) == ("mitotic", 1, 1)
    mask = PatchIndex.read(tmp_path / "mined").read_mask(patch)
    assert mask[100 - patch.box.y0, 100 - patch.box.x0] == MITOTIC_FIGURE
    assert mask[131 - patch.box.y0, 100 - patch.box.x0] == NON_MITOTIC_FIGURE


@pytest.mark.usefixtures("detected")
def test_the_tables_say_where_each_patch_comes_from(fields, tmp_path):
    run(fields, tmp_path / "mined", max_per_slide=3)
    rows = rows_of(tmp_path / "mined")
    assert list(rows[0]) == [
        *("patch_id", "slide_id", "x", "y", "score", "threshold", "model_sha256", "nearest_mark_um"),
    ]
    best = next(row for row in rows if row["score"] == "0.9")
    assert best == {
        **{"patch_id": name_of(60, 120), "slide_id": "A01", "x": "60.0", "y": "120.0", "score": "0.9"},
        **{"threshold": "0.5", "model_sha256": DIGEST, "nearest_mark_um": "30.0"},
    }
    note = json.loads((tmp_path / "mined" / "mining.json").read_text())
    assert note["settings"]["model_sha256"] == DIGEST
    assert (note["settings"]["threshold"], note["settings"]["max_per_slide"]) == (0.5, 3)
    assert note["settings"]["extract"] == TINY.extract.model_dump()
    assert note["settings"]["slides"]["A01"]["source_sha256"] == sha256(fields / "A01.png")
    assert note["result"]["slides"]["A01"]["n_over_limit"] == 1
    assert note["result"]["left_out"] == ["B01"]
    assert {"python", "torch", "mitosis-toolkit"} <= set(note["versions"])


# Review


@pytest.fixture
def decisions():
    """A figure, a look-alike, one that nobody is sure of; the fourth is not judged."""
    said = ("mitotic figure", "look-alike", "unsure")
    return dict(zip((name_of(*place) for place in WRONG), said, strict=False))


@pytest.mark.usefixtures("detected")
def test_only_what_was_judged_a_look_alike_is_kept(fields, decisions, tmp_path):
    result = run(fields, tmp_path / "mined", review=save_review(tmp_path / "review.json", decisions))
    assert mined_places(tmp_path / "mined") == {(200.0, 160.0)}
    assert result.figures_to_add == [{"patch_id": name_of(60, 120), "slide_id": "A01", "x": 60.0, "y": 120.0}]
    counts = result.slides["A01"]
    assert (counts["n_mined"], counts["n_judged_figure"], counts["n_unsure"]) == (1, 1, 2)
    again = run(fields, tmp_path / "mined", review=tmp_path / "review.json")
    assert replace(again, reused=False) == result


def test_a_patch_has_the_same_name_and_pixels_before_and_after_the_review(fields, detected, decisions, tmp_path):
    """Even where the second run has another limit and finds one place more, with the highest score."""
    run(fields, tmp_path / "all")
    detected.found["A01"][30.0, 170.0] = 0.99
    review = save_review(tmp_path / "review.json", decisions)
    run(fields, tmp_path / "reviewed", review=review, max_per_slide=9)
    (kept,) = PatchIndex.read(tmp_path / "reviewed").patches
    before = next(p for p in PatchIndex.read(tmp_path / "all").patches if p.patch_id == kept.patch_id)
    assert (kept.x, kept.y) == (before.x, before.y)
    assert (tmp_path / "all" / before.image).read_bytes() == (tmp_path / "reviewed" / kept.image).read_bytes()


def test_masks_ignore_a_nucleus_that_was_judged_otherwise(detected, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    places = [(100.0, 100.0), (100.0, 128.0), (128.0, 100.0)]
    save_slide(slides / "A01.png", draw_field(places))
    save_marks(slides / "A01.csv", [])
    detected.found = {"A01": dict.fromkeys(places, 0.9)}
    config = TINY.model_copy(update={"extract": TINY.extract.model_copy(update={"size": 128, "jitter": 0})})
    judged = dict(zip((name_of(*place) for place in places), ("look-alike", "mitotic figure", "unsure"), strict=True))
    run(slides, tmp_path / "mined", config, review=save_review(tmp_path / "review.json", judged))
    mined = PatchIndex.read(tmp_path / "mined")
    (patch,) = mined.patches
    mask = mined.read_mask(patch)
    values = [mask[int(y) - patch.box.y0, int(x) - patch.box.x0] for x, y in places]
    assert values == [NON_MITOTIC_FIGURE, IGNORE, IGNORE]
    assert patch.px_ignore == (mask == IGNORE).sum() > 2 * np.pi * 5**2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "review.json: not a review"),
        ("{", "not a review"),
        ("[]", "not a review"),
        ('{"judgements": {}}', "not a review"),
        ('{"decisions": ["look-alike"]}', "not a review"),
        (
            json.dumps({"decisions": {"A01/x": "figure"}}),
            "A01/x: 'figure' is none of look-alike, mitotic figure, unsure",
        ),
        (json.dumps({"decisions": {"A01/x": ["unsure"]}}), "is none of"),
        (
            json.dumps({"decisions": {name_of(1, 2): "unsure", "Z": "unsure"}}),
            r"judges A01/mined-\w+ \(2 such in all\)",
        ),
        (json.dumps({"decisions": {name_of(60, 120, digest="f" * 64): "look-alike"}}), "not among what is mined here"),
    ],
)
@pytest.mark.usefixtures("detected")
def test_a_review_that_cannot_be_followed_is_refused_and_nothing_is_left(fields, tmp_path, text, complaint):
    if text is not None:
        (tmp_path / "review.json").write_text(text)
    with pytest.raises(AnnotationError, match=complaint):
        run(fields, tmp_path / "mined", review=tmp_path / "review.json")
    assert [path.name for path in tmp_path.iterdir()] == (["review.json"] if text is not None else [])


@pytest.mark.usefixtures("detected")
def test_an_empty_review_keeps_nothing(fields, tmp_path):
    assert read_review(save_review(tmp_path / "review.json", {})) == {}
    result = run(fields, tmp_path / "mined", review=tmp_path / "review.json")
    assert (result.slides["A01"]["n_mined"], result.slides["A01"]["n_unsure"]) == (0, 4)


# Again, and when something goes wrong


def test_a_second_run_looks_at_nothing_and_writes_nothing(fields, detected, tmp_path):
    first = run(fields, tmp_path / "mined")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    detected.seen.clear()
    second = run(fields, tmp_path / "mined")
    assert second == replace(first, reused=True)
    assert detected.seen == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.usefixtures("detected")
def test_two_runs_give_the_same_bytes(fields, tmp_path):
    run(fields, tmp_path / "a")
    run(fields, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"max_per_slide": 7}, "max_per_slide"),
        ({"config": with_threshold(0.8)}, "threshold"),
        ({"model": replace(MODEL, card=CARD.model_copy(update={"weights_sha256": "f" * 64}))}, "model_sha256"),
        ({"config": TINY.model_copy(update={"extract": TINY.extract.model_copy(update={"jitter": 3})})}, "extract"),
        ({"review": True}, "decisions"),
        ({"config": TINY.model_copy(update={"count": TINY.count.model_copy(update={"views": 4})})}, "count"),
    ],
)
@pytest.mark.usefixtures("detected")
def test_a_folder_mined_otherwise_is_refused_naming_what_changed(fields, tmp_path, options, changed):
    run(fields, tmp_path / "mined")
    before = contents(tmp_path / "mined")
    if "review" in options:
        options = {"review": save_review(tmp_path / "review.json", {})}
    with pytest.raises(PatchIndexError, match=f"mined with other {changed}. Choose another --out"):
        run(fields, tmp_path / "mined", **options)
    assert contents(tmp_path / "mined") == before


def test_other_marks_are_other_patches(slides_copy, detected, tmp_path):
    detected.found = {"A01": {}, "A02": {}}
    run(slides_copy, tmp_path / "mined")
    save_marks(slides_copy / "A02.csv", [(50.0, 50.0)])
    with pytest.raises(PatchIndexError, match="mined with other slides"):
        run(slides_copy, tmp_path / "mined")


@pytest.mark.parametrize("what", ["other files", "damaged note", "file"])
def test_a_place_that_is_taken_is_refused_and_not_touched(fields, detected, tmp_path, what):
    out = tmp_path / "mined"
    if what == "file":
        out.write_text("in the way")
    else:
        out.mkdir()
        (out / ("mining.json" if what == "damaged note" else "index.csv")).write_text("{")
    before = contents(tmp_path)
    with pytest.raises(PatchIndexError, match="mined: holds something other than mined patches"):
        run(fields, out)
    assert contents(tmp_path) == before
    assert detected.seen == []


@pytest.mark.usefixtures("detected")
def test_an_empty_folder_is_as_good_as_none(fields, tmp_path):
    (tmp_path / "mined").mkdir()
    run(fields, tmp_path / "mined")
    assert len(PatchIndex.read(tmp_path / "mined").patches) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["mined"]


def test_a_place_that_cannot_be_made_is_named(fields, detected, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        run(fields, tmp_path / "file" / "mined")
    assert detected.seen == []


@pytest.mark.parametrize("error", [SlideError, KeyboardInterrupt])
@pytest.mark.usefixtures("detected")
def test_a_run_that_stops_leaves_nothing_and_the_next_one_is_whole(fields, tmp_path, monkeypatch, error):
    run(fields, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("mitosis.mining.write_json", mock.Mock(side_effect=error("stop")))
        with pytest.raises(error):
            run(fields, tmp_path / "mined")
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    (tmp_path / ".mined.part").mkdir()  # what a run that was killed outright leaves
    (tmp_path / ".mined.part" / "left_over.csv").write_text("x")
    run(fields, tmp_path / "mined")
    assert contents(tmp_path / "mined") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mined", "whole"]


# The verb


def cli(*arguments):
    """(exit code, standard output, standard error) of ``mitosis mine`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    words = ["mitosis", "mine", *map(str, arguments)]
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", words):
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def model(model_folder, tmp_path_factory):
    """The model that finds all dark nuclei, as if it had learned from case A."""
    folder = tmp_path_factory.mktemp("mining_model") / "run"
    folder.mkdir()
    network, card = load_model(model_folder)
    save_model(folder, network.state_dict(), card.model_copy(update={"training": {"cases": ["A"]}}))
    return folder


@pytest.fixture
def words(fields, base, model):
    return (fields, "--annotations", fields, "--model", model, "--patches", base, "--case-pattern", "^[AB]")


QUICK = ("network.width=2", "network.depth=1", "train.crop=32", "train.batch_size=4", "train.steps=4")
QUICK = tuple(w for s in (*QUICK, "train.warmup_steps=1", "train.validate_every=2") for w in ("--set", s))
ROUNDS = (*QUICK, "--val-cases", "B", "--rounds", 2)


def test_the_verb_finds_the_nuclei_without_a_mark(words, model, tmp_path):
    """A model of its own looks at the slide; its patches are cut as those of --patches, not as by default."""
    code, out, err = cli(*words, "--out", tmp_path / "mined", "--set", "count.tile_size=128")
    assert code == 0, err
    assert err == "Warning: left out, as the model did not learn from them: B01.\n"
    index = PatchIndex.read(tmp_path / "mined")
    assert {patch.size for patch in index.patches} == {64}
    places = sorted(mined_places(tmp_path / "mined"))
    np.testing.assert_allclose(places, sorted(WRONG), atol=1.0)
    digest = load_model(model)[1].weights_sha256
    assert all(patch.patch_id.startswith(f"A01/mined-{digest[:8]}_x") for patch in index.patches)
    lines = [line for line in out.splitlines() if line]
    assert lines[0].startswith("4 patches of 2 slides: of ")
    assert " 3 on figures, " in lines[0]
    assert lines[-1] == str(tmp_path / "mined" / "index.csv")
    code, out, _ = cli(*words, "--out", tmp_path / "mined", "--set", "count.tile_size=128")
    assert (code, "(done before)" in out) == (0, True)


def test_a_manifest_tells_domains_and_where_somebody_looked(fields, base, model, tmp_path):
    ring = [[0, 0], [100, 0], [100, 256], [0, 256], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    (tmp_path / "roi.geojson").write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    (tmp_path / "m.csv").write_text(f"slide,case,domain,roi\n{fields / 'A01'}.png,A,lab,roi.geojson\n")
    words = ("--manifest", tmp_path / "m.csv", "--model", model, "--patches", base, "--out", tmp_path / "mined")
    assert cli(*words)[0] == 2  # no marks
    code, _, err = cli(*words, "--annotations", fields, "--set", "count.tile_size=128")
    assert code == 0, err
    inside = [place for place in WRONG if place[0] < 100]
    assert 0 < len(inside) < len(WRONG)
    assert len(mined_places(tmp_path / "mined")) == len(inside)
    assert {patch.domain for patch in PatchIndex.read(tmp_path / "mined").patches} == {"lab"}


@pytest.mark.usefixtures("detected")
def test_the_verb_lists_the_figures_to_add(words, model, tmp_path):
    digest = load_model(model)[1].weights_sha256
    judged = {name_of(200, 160, digest=digest): "mitotic figure", name_of(60, 120, digest=digest): "look-alike"}
    review = save_review(tmp_path / "review.json", judged)
    code, out, _ = cli(*words, "--out", tmp_path / "mined", "--review", review, "--max-per-slide", 3)
    assert code == 0
    assert out.splitlines()[-2] == "A01  200.0  160.0"
    assert "1 over the limit a slide, 1 judged figures, 1 judged unsure or not at all" in out
    assert mined_places(tmp_path / "mined") == {(60.0, 120.0)}


@pytest.mark.usefixtures("detected")
def test_the_verb_takes_a_threshold(words, tmp_path):
    assert cli(*words, "--out", tmp_path / "mined", "--threshold", 0.8)[0] == 0
    assert mined_places(tmp_path / "mined") == {(60.0, 120.0), (200.0, 160.0)}
    code, _, err = cli(*words, "--out", tmp_path / "other", "--threshold", 7)
    assert code == 1
    assert "count.threshold = 7" in err


@pytest.mark.parametrize(
    "options",
    [
        ("--rounds", 1, "--review", "r.json"),
        ("--val-cases", "B"),
        ("--leave-out", "B"),
        ("--fine-tune",),
        ("--rounds", 0),
        ("--max-per-slide", 0),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(words, tmp_path, options):
    code, _, err = cli(*words, "--out", tmp_path / "mined", *options)
    assert code == 2
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_rounds_need_patches(fields, model, tmp_path):
    words = (fields, "--annotations", fields, "--model", model, "--out", tmp_path / "mined", "--rounds", 1)
    assert cli(*words)[0] == 2


def test_the_help_does_not_load_torch():
    code = "import sys; from mitosis.cli import app; sys.argv = ['mitosis', 'mine', '--help']\ntry: app()\n"
    code += "except SystemExit: print([name for name in ('torch', 'numpy') if name in sys.modules])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Example: mitosis mine" in child.stdout
    assert child.stdout.endswith("[]\n")


# Rounds


@pytest.fixture
def by_round(detected, monkeypatch):
    """Each round's model finds other places on A01: 1 two of them, 2 the other two and again one of before."""
    wrong = list(WRONG)
    plan = [dict.fromkeys(wrong[:2], 0.9), dict.fromkeys(wrong[1:], 0.9), {}]
    digests = []
    original = sys.modules["mitosis.mining"].count_slide

    def count_slide(slide, name, model, config, **options):
        digest = model.card.weights_sha256
        if digest not in digests:
            digests.append(digest)
        detected.found["A01"] = plan[digests.index(digest)]
        config = config.model_copy(update={"score_floor": 0.5})
        return original(slide, name, model, config, **options)

    monkeypatch.setattr("mitosis.mining.count_slide", count_slide)
    return detected


@pytest.mark.usefixtures("by_round")
def test_two_rounds_mine_and_train_in_turn_on_all_that_was_mined(words, base, tmp_path):
    code, out, err = cli(*words, "--out", tmp_path / "out", *ROUNDS)
    assert code == 0, err
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["round-1", "round-2"]
    first, second = (tmp_path / "out" / f"round-{number}" for number in (1, 2))
    wrong = list(WRONG)
    assert mined_places(first / "patches") == set(wrong[:2])
    assert mined_places(second / "patches") == set(wrong[2:])
    cards = [load_model(folder / "model")[1] for folder in (first, second)]
    assert {row["model_sha256"] for row in rows_of(second / "patches")} == {cards[0].weights_sha256}
    indexes = [PatchIndex.read(folder) for folder in (base, first / "patches", second / "patches")]
    for number, card in enumerate(cards, start=2):
        csv_text = PatchIndex.join(indexes[:number]).with_val_cases(["B"]).to_csv()
        (tmp_path / "index.csv").write_text(csv_text)
        assert card.training["index_sha256"] == sha256(tmp_path / "index.csv")
        assert (card.training["cases"], card.validation["cases"]) == (["A"], ["B"])
        assert card.training["settings"]["extract"] == TINY.extract.model_dump()
    lines = [line for line in out.splitlines() if line]
    assert [line.split(":")[0] for line in lines if line.startswith("round-")] == ["round-1", "round-2"]
    assert lines[-1] == str(second / "model")


@pytest.mark.usefixtures("by_round")
def test_rounds_can_begin_with_the_weights_of_the_last(words, model, tmp_path):
    start = load_model(model)[1]
    network = start.network.model_dump(mode="json")
    same = [word for key, value in network.items() for word in ("--set", f"network.{key}={value}")]
    code, _, err = cli(*words, "--out", tmp_path / "out", *ROUNDS, *same, "--fine-tune")
    assert code == 0, err
    cards = [load_model(tmp_path / "out" / f"round-{number}" / "model")[1] for number in (1, 2)]
    assert cards[0].training["start_sha256"] == start.weights_sha256
    assert cards[1].training["start_sha256"] == cards[0].weights_sha256


def test_rounds_go_on_where_they_were_stopped(words, by_round, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert cli(*words, "--out", out, *ROUNDS)[0] == 0
    expected = contents(out)
    shutil.rmtree(out)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # in the training of the first round, after the patches were mined
        patched.setattr("mitosis.training.save_state", stopped)
        assert cli(*words, "--out", out, *ROUNDS)[0] == 130
    assert not (out / "round-2").exists()
    by_round.seen.clear()
    with monkeypatch.context() as patched:  # in the mining of the second round
        patched.setattr("mitosis.patch_cutter.save_mask", stopped)
        assert cli(*words, "--out", out, *ROUNDS)[0] == 130
    assert len({digest for _, digest in by_round.seen}) == 1  # the first round was not mined again
    assert list((out / "round-2").iterdir()) == []
    finished = contents(out / "round-1" / "patches")
    by_round.seen.clear()
    assert cli(*words, "--out", out, *ROUNDS)[0] == 0
    assert contents(out / "round-1" / "patches") == finished
    assert contents(out) == expected
    by_round.seen.clear()
    assert cli(*words, "--out", out, *ROUNDS)[0] == 0
    assert by_round.seen == []
    assert contents(out) == expected


@pytest.mark.usefixtures("by_round")
def test_rounds_end_when_nothing_is_wrong_any_more(words, tmp_path):
    code, out, _ = cli(*words, "--out", tmp_path / "out", *ROUNDS[:-1], 5)
    assert code == 0
    assert "round-3: nothing new to learn from" in out
    assert out.splitlines()[-1] == str(tmp_path / "out" / "round-2" / "model")
    assert not (tmp_path / "out" / "round-3" / "model").exists()


def test_what_training_would_refuse_is_refused_before_mining(words, detected, tmp_path):
    code, _, err = cli(*words, "--out", tmp_path / "out", "--rounds", 1, "--val-cases", "B")
    assert code == 1
    assert "smaller than train.crop = 192" in err
    code, _, err = cli(*words, "--out", tmp_path / "out", *ROUNDS, "--leave-out", "Z")
    assert "no patches of case Z" in err
    assert detected.seen == []
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("detected")
def test_rounds_do_not_mix_with_other_content(words, tmp_path):
    assert cli(*words, "--out", tmp_path / "out")[0] == 0
    before = contents(tmp_path)
    code, _, err = cli(*words, "--out", tmp_path / "out", *ROUNDS)
    assert code == 1
    assert "holds something other than rounds of mining" in err
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("by_round")
def test_rounds_with_other_settings_are_refused(words, tmp_path):
    assert cli(*words, "--out", tmp_path / "out", *ROUNDS)[0] == 0
    code, _, err = cli(*words, "--out", tmp_path / "out", *ROUNDS, "--set", "train.steps=5")
    assert code == 1
    assert "other settings" in err
    code, _, err = cli(*words, "--out", tmp_path / "out", *ROUNDS, "--max-per-slide", 1)
    assert "mined with other max_per_slide" in err


def test_a_region_of_interest_is_handed_on_and_only_its_marks_are_known(fields, detected, tmp_path):
    """Outside nobody looked: neither a mark nor a false positive."""
    roi = tmp_path / "roi.geojson"
    ring = [[0, 0], [100, 0], [100, 256], [0, 256], [0, 0]]
    roi.write_text(json.dumps({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}))
    source = replace(sources_of(fields)[0], region=roi)
    marks, key = read_marks(source)
    assert [(mark.x, mark.y) for mark in marks] == [FIGURES[0]]
    assert key["roi_sha256"] == sha256(roi)
    assert "roi_sha256" not in read_marks(sources_of(fields)[0])[1]
    mine([source], MODEL, tmp_path / "mined", TINY)
    assert [region.outlines[0].bounds for region in detected.regions] == [(0, 0, 100, 256)]
