"""Candidates: labelled by the marks, cut from slides that may be used, and gone on with after a stop."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import MPP, TINY, ArraySlide, contents, damage_tiles, draw_field, save_marks, save_slide, save_tiff
from hypothesis import given
from hypothesis import strategies as st

from mitosis.candidates import collect_candidates, label_candidates, split_slides
from mitosis.checkpoints import ModelCard
from mitosis.cohort import find_sources
from mitosis.config import NetworkConfig
from mitosis.crops import FIGURE, LOOK_ALIKE, OTHER, UNCLEAR, CandidateSet, crop_side, read_crops
from mitosis.detections import Detections
from mitosis.errors import AnnotationError, ConfigError, LeakageError, PatchIndexError
from mitosis.files import sha256
from mitosis.inference import Model
from mitosis.matching import MATCH_RADIUS_UM
from mitosis.mining import SAFE_UM
from mitosis.tissue import find_tissue

# A01, px of 0.5 µm: three figures, of which the last is not found, and a look-alike.
FIGURES, LOOK_ALIKES = [(60.0, 60.0), (160.0, 160.0), (220.0, 220.0)], [(220.0, 40.0)]
FOUND = {
    "A01": {
        (62.0, 60.0): (0.9, FIGURE),
        (60.0, 72.0): (0.95, UNCLEAR),  # a second one on the same figure
        (160.0, 160.0): (0.3, FIGURE),
        (160.0, 180.0): (0.8, UNCLEAR),  # 10 µm away
        (221.0, 42.0): (0.7, LOOK_ALIKE),
        (60.0, 120.0): (0.6, OTHER),
        (40.0, 220.0): (0.06, OTHER),
    },
    "A02": {},
    "B01": {(30.0, 30.0): (0.9, OTHER), (200.0, 200.0): (0.8, FIGURE)},
    "C01": {(30.0, 30.0): (0.9, OTHER)},
}
CARD = ModelCard(
    network=NetworkConfig(width=2, depth=1, normalise_stain=False),
    classes=("background", "mitotic figure"),
    mpp=MPP,
    threshold=0.5,
    training={"cases": ["A"]},
    validation={"cases": ["A", "B"]},
    weights_sha256="0123456789abcdef" * 4,
)
SETTINGS = TINY.model_copy(
    update={"verifier": TINY.verifier.model_copy(update={"mpp": MPP, "crop": 32, "score_floor": 0.05})}
)


def never(_images):
    raise AssertionError("the candidates of these tests are given")


MODEL = Model(never, CARD, stride=1, radius=0)


@pytest.fixture
def detected(monkeypatch):
    """What the model finds on each slide, to be changed by a test, and on what it was run."""
    oracle = SimpleNamespace(found={name: dict(places) for name, places in FOUND.items()}, seen=[])

    def count_slide(slide, name, _model, config, **_):
        assert not config.verify
        oracle.seen.append(name)
        found = {place: score for place, (score, _) in oracle.found[name].items() if score >= config.score_floor}
        places = np.array(list(found), dtype=float).reshape(-1, 2)
        candidates = Detections(places, np.array(list(found.values())), np.ones(len(found)))
        return SimpleNamespace(candidates=candidates, tissue=find_tissue(slide))

    monkeypatch.setattr("mitosis.candidates.count_slide", count_slide)
    return oracle


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Slides of the training case A, the validation case B and the unknown case C; read-only by agreement."""
    folder = tmp_path_factory.mktemp("fields")
    for seed, (name, figures, look_alikes) in enumerate(
        (
            ("A01", FIGURES, LOOK_ALIKES),
            ("A02", [(200.0, 200.0)], []),
            ("B01", [(200.0, 200.0)], []),
            ("C01", [(100.0, 100.0)], []),
        )
    ):
        save_slide(folder / f"{name}.png", draw_field(figures, look_alikes, seed=seed))
        save_marks(folder / f"{name}.csv", figures, look_alikes)
    return folder


def sources_of(folder, **options):
    return find_sources([folder], **{"case_pattern": "^[ABCD]", "annotations": folder, **options})


def collect(fields, out, config=SETTINGS, model=MODEL):
    return collect_candidates(sources_of(fields), model, out, config)


def with_settings(**changes):
    return SETTINGS.model_copy(update={"verifier": SETTINGS.verifier.model_copy(update=changes)})


# Labels


@pytest.mark.usefixtures("detected")
def test_each_candidate_is_what_the_marks_say(fields, tmp_path):
    candidates = collect(fields, tmp_path / "out").candidates
    found = {(c.x, c.y): (c.score, c.label) for c in candidates if c.slide_id == "A01" and c.found}
    assert found == FOUND["A01"]


@pytest.mark.usefixtures("detected")
def test_the_domain_of_a_slide_is_noted(fields, tmp_path):
    found = collect_candidates(sources_of(fields, domain="scanner"), MODEL, tmp_path / "out", SETTINGS)
    assert {slide.domain for slide in found.slides.values()} == {"scanner"}


@pytest.mark.usefixtures("detected")
def test_figures_that_were_missed_are_added(fields, tmp_path):
    candidates = collect(fields, tmp_path / "out").candidates
    missed = [(c.slide_id, c.x, c.y, c.score, c.label) for c in candidates if not c.found]
    assert missed == [("A01", 220.0, 220.0, 0.0, FIGURE), ("A02", 200.0, 200.0, 0.0, FIGURE)]


def test_no_marks_and_no_candidates_have_labels_too():
    labels, missed = label_candidates([], [], [], MPP)
    assert (len(labels), len(missed)) == (0, 0)
    labels, missed = label_candidates([(1, 1)], [], [], MPP)
    assert (labels.tolist(), missed.tolist()) == ([OTHER], [])
    labels, missed = label_candidates([], [(1, 1), (1, 1)], [(1, 1)], MPP)
    assert (labels.tolist(), missed.tolist()) == ([], [0, 1])


def test_of_candidates_on_one_point_one_is_the_figure():
    labels, missed = label_candidates([(5, 5)] * 3, [(5, 5)], [(5, 5)], MPP)
    assert sorted(labels.tolist()) == sorted([FIGURE, UNCLEAR, UNCLEAR])
    assert len(missed) == 0


points = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), max_size=6)


@given(points, points, points)
def test_labels_keep_to_the_radii(found, figures, look_alikes):
    labels, missed = label_candidates(found, figures, look_alikes, MPP)
    assert len(figures) - len(missed) == labels.tolist().count(FIGURE)
    for place, label in zip(found, labels.tolist(), strict=True):
        to_figure, to_look_alike = (
            min((np.hypot(*np.subtract(place, mark)) * MPP for mark in marks), default=np.inf)
            for marks in (figures, look_alikes)
        )
        if label == FIGURE:
            assert to_figure <= MATCH_RADIUS_UM
        elif label == LOOK_ALIKE:
            assert to_look_alike <= MATCH_RADIUS_UM < to_figure
        elif label == OTHER:
            assert to_figure > SAFE_UM
            assert to_look_alike > MATCH_RADIUS_UM
        else:
            assert to_figure <= SAFE_UM


# What is cut


@pytest.mark.usefixtures("detected")
def test_crops_are_those_of_the_slide(fields, tmp_path):
    result = collect(fields, tmp_path / "out")
    slide = ArraySlide(draw_field(FIGURES, LOOK_ALIKES, seed=0))
    for candidate in result.candidates:
        if candidate.slide_id == "A01":
            expected = read_crops(slide, np.array([[candidate.x, candidate.y]]), MPP, crop_side(32), None)[0]
            assert np.array_equal(result.crop(candidate), expected)
    assert {c.source_sha256 for c in result.candidates if c.slide_id == "A01"} == {sha256(fields / "A01.png")}
    assert {c.model_sha256 for c in result.candidates} == {CARD.weights_sha256}


@pytest.mark.usefixtures("detected")
def test_with_normalised_stain_the_crops_have_it(fields, tmp_path):
    plain = collect(fields, tmp_path / "plain")
    network = CARD.network.model_copy(update={"normalise_stain": True})
    stained = collect(
        fields, tmp_path / "stained", model=replace(MODEL, card=CARD.model_copy(update={"network": network}))
    )
    assert plain.candidates == stained.candidates
    assert not np.array_equal(plain.crop(plain.candidates[0]), stained.crop(stained.candidates[0]))


@pytest.mark.usefixtures("detected")
def test_the_floor_and_the_limit_are_kept_on_training_slides(fields, tmp_path):
    low = collect(fields, tmp_path / "low", with_settings(score_floor=0.5)).candidates
    assert min(c.score for c in low if c.found) == 0.6
    assert [(c.x, c.y) for c in low if not c.found and c.slide_id == "A01"] == [(160.0, 160.0), (220.0, 220.0)]
    few = collect(fields, tmp_path / "few", with_settings(max_per_slide=1)).candidates
    # of A01 the best, and figures whatever their score; of B01 all
    everything = collect(fields, tmp_path / "all", with_settings()).candidates
    best = max(c.score for c in everything if c.slide_id == "A01")
    kept = [c for c in everything if c.slide_id != "A01" or c.label == FIGURE or c.score == best]
    assert [(c.slide_id, c.x, c.y) for c in few] == [(c.slide_id, c.x, c.y) for c in kept]
    assert 1 < len(few) < len(everything)


def test_places_on_damaged_tiles_are_left_out(detected, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    damage_tiles(save_tiff(slides / "A01.tif", draw_field([(90.0, 90.0), (200.0, 200.0)])), 5)
    save_marks(slides / "A01.csv", [(100.0, 100.0)])
    detected.found = {"A01": {(80.0, 120.0): (0.9, OTHER), (220.0, 220.0): (0.8, OTHER)}}
    result = collect(slides, tmp_path / "out")
    assert [(c.x, c.y) for c in result.candidates] == [(220.0, 220.0)]
    assert result.slides["A01"].n_crops == 1


# Which slides


def test_slides_of_training_cases_teach_those_of_validation_cases_judge_and_others_are_left_alone(
    fields, detected, tmp_path
):
    result = collect(fields, tmp_path / "out")
    assert {name: slide.split for name, slide in result.slides.items()} == {
        "A01": "train",
        "A02": "train",
        "B01": "val",
    }
    assert detected.seen == ["A01", "A02", "B01"]


def test_a_case_that_was_learned_from_is_no_validation_case(fields):
    card = CARD.model_copy(update={"training": {"cases": ["A", "B"]}})
    assert split_slides(sources_of(fields), card) == {"A01": "train", "A02": "train", "B01": "train"}


def test_without_a_slide_of_a_training_case_there_is_nothing_to_do(fields, detected, tmp_path):
    card = CARD.model_copy(update={"training": {"cases": ["D"]}})
    with pytest.raises(ConfigError, match=r"No slide is of a case that the model learned from \(D\), but of A, B, C"):
        collect(fields, tmp_path / "out", model=replace(MODEL, card=card))
    assert detected.seen == []


def test_a_validation_slide_under_another_name_is_refused(fields, detected, tmp_path):
    card = CARD.model_copy(update={"training": {"cases": ["A"], "source_sha256": [sha256(fields / "B01.png")]}})
    with pytest.raises(LeakageError, match="learned from the files of B01"):
        collect(fields, tmp_path / "out", model=replace(MODEL, card=card))
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("A01", "B01"):
        (copies / f"{name}.png").write_bytes((fields / "A01.png").read_bytes())
        save_marks(copies / f"{name}.csv", FIGURES)
    with pytest.raises(LeakageError, match="A and B hold the same image"):
        collect(copies, tmp_path / "out")
    assert detected.seen == []


def test_slides_without_marks_are_refused(fields, detected, tmp_path):
    with pytest.raises(AnnotationError, match="no marks"):
        collect_candidates(sources_of(fields, annotations=None), MODEL, tmp_path / "out", SETTINGS)
    assert detected.seen == []


# Again


def test_a_finished_run_is_not_done_again(fields, detected, tmp_path):
    first = collect(fields, tmp_path / "out")
    before = contents(tmp_path / "out")
    detected.seen.clear()
    again = collect(fields, tmp_path / "out")
    assert (again.candidates, detected.seen, contents(tmp_path / "out")) == (first.candidates, [], before)


@pytest.mark.parametrize("stop", ["A01", "A02", "B01"])
@pytest.mark.parametrize("where", ["save_crops", "save_table"])
def test_a_stopped_run_goes_on_to_the_same_bytes(fields, detected, tmp_path, monkeypatch, stop, where):
    collect(fields, tmp_path / "whole")
    import mitosis.candidates as room

    write = getattr(room, where)

    def stopping(*words):
        write(*words)
        if detected.seen[-1] == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, where, stopping)
        detected.seen.clear()
        with pytest.raises(KeyboardInterrupt):
            collect(fields, tmp_path / "out")
    detected.seen.clear()
    collect(fields, tmp_path / "out")
    names = ["A01", "A02", "B01"]
    assert detected.seen == names[names.index(stop) + (where == "save_table") :]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("changes", [{"score_floor": 0.2}, {"crop": 64}, {"mpp": 0.25}, {"max_per_slide": 2}])
@pytest.mark.usefixtures("detected")
def test_candidates_of_other_settings_are_not_mixed(fields, tmp_path, changes):
    collect(fields, tmp_path / "out")
    with pytest.raises(PatchIndexError, match="holds candidates of other verifier"):
        collect(fields, tmp_path / "out", with_settings(**changes))


@pytest.mark.usefixtures("detected")
def test_how_it_learns_is_no_reason_to_collect_anew(fields, tmp_path):
    collect(fields, tmp_path / "out")
    collect(fields, tmp_path / "out", with_settings(steps=7, combine="replace"))


@pytest.mark.usefixtures("detected")
def test_something_else_in_the_folder_is_left_alone(fields, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PatchIndexError, match="something other than candidates"):
        collect(fields, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(PatchIndexError, match="something other than candidates"):
        collect(fields, tmp_path / "notes.txt")


@pytest.mark.usefixtures("detected")
def test_the_note_says_with_what_it_was_made(fields, tmp_path):
    collect(fields, tmp_path / "out")
    note = json.loads((tmp_path / "out" / "candidates.json").read_text())
    assert note["settings"]["model_sha256"] == CARD.weights_sha256
    assert note["settings"]["slides"]["B01"]["split"] == "val"
    assert "torch" in note["versions"]
    assert CandidateSet.read(tmp_path / "out").slides["A01"].figures == [list(place) for place in FIGURES]
