"""Crops lie where they should, and a folder of them is read as it was written or not at all."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import MPP, ArraySlide, draw_field
from hypothesis import given
from hypothesis import strategies as st

from mitosis.crops import (
    FIGURE,
    OTHER,
    Candidate,
    CandidateSet,
    CandidateSlide,
    centre,
    crop_side,
    read_crops,
    save_crops,
    save_table,
)
from mitosis.errors import PatchIndexError
from mitosis.files import make_folder
from mitosis.stain import StainLevels

PLACES = np.array([[60.0, 60.0], [128.3, 40.6], [2.0, 250.0]])
SLIDE = ArraySlide(draw_field([tuple(place) for place in PLACES]))


@pytest.mark.parametrize(("mpp", "side"), [(MPP, 32), (MPP / 2, 64), (MPP, 64)])
def test_the_candidate_is_in_the_middle_and_beyond_the_slide_it_is_white(mpp, side):
    crops = read_crops(SLIDE, PLACES, mpp, side, None)
    assert (crops.shape, crops.dtype) == ((3, side, side, 3), np.uint8)
    dark = crops[..., 0] < 100
    for number in (0, 1):
        rows, columns = np.nonzero(dark[number])
        assert (rows.mean() + 0.5, columns.mean() + 0.5) == pytest.approx((side / 2, side / 2), abs=1.0)
    assert (crops[2][:, : int(side / 2 - 2 * MPP / mpp) - 1] == 255).all()


@given(st.floats(-50, 300), st.floats(-50, 300), st.sampled_from([16, 24, 64]))
def test_the_middle_of_a_large_crop_is_the_small_one(x, y, side):
    place = np.array([[x, y]])
    large = read_crops(SLIDE, place, MPP, crop_side(side), None)
    assert crop_side(side) >= 1.5 * side
    assert np.array_equal(centre(large, side), read_crops(SLIDE, place, MPP, side, None))


def test_no_places_give_no_crops():
    assert read_crops(SLIDE, np.empty((0, 2)), MPP, 16, None).shape == (0, 16, 16, 3)


def test_stain_is_brought_to_the_usual_levels():
    stain = StainLevels((0.3, 0.5, 0.4), (0.9, 1.2, 1.0))
    plain = read_crops(SLIDE, PLACES, MPP, 32, None)
    assert np.array_equal(read_crops(SLIDE, PLACES, MPP, 32, stain), stain.normalise(plain))


CANDIDATES = tuple(
    Candidate("=A", "'case", "s" * 4, "m" * 4, row, 10.125 * row, 3.5, 0.25 * row, label, bool(row))
    for row, label in enumerate((FIGURE, OTHER))
)
SLIDES = {
    "=A": CandidateSlide("'case", "train", "s" * 4, 0.25, [[0.0, 3.5]], 2, 1.5),
    "B": CandidateSlide("b", "val", "t" * 4, 0.25, [], 0, 0.25),
}


@pytest.fixture
def folder(tmp_path):
    make_folder(tmp_path / "crops")
    save_crops(tmp_path, "=A", np.stack([np.full((8, 8, 3), row, np.uint8) for row in range(2)]))
    save_table(tmp_path, CANDIDATES, SLIDES, {"settings": {}})
    return tmp_path


def test_what_was_written_is_read(folder):
    read = CandidateSet.read(folder)
    assert (read.candidates, read.slides) == (CANDIDATES, SLIDES)
    assert [int(read.crop(candidate)[0, 0, 0]) for candidate in read.candidates] == [0, 1]
    assert read.cases == ["'case", "b"]


def test_a_selection_has_only_its_own(folder):
    read = CandidateSet.read(folder)
    assert read.where(lambda _, slide: slide.split == "val").candidates == ()
    assert list(read.where(lambda name, _: name == "=A").slides) == ["=A"]


def test_crops_are_shrunk_by_the_area_of_a_pixel_and_have_the_same_middle(folder):
    fine = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    save_crops(folder, "=A", fine)
    half = replace(CandidateSet.read(folder), scale=0.5)
    for candidate, crop in zip(half.candidates, fine, strict=True):
        means = crop.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(half.crop(candidate), means, atol=0.51)
    double = replace(half, scale=2.0).where(lambda name, _: name == "=A")
    assert double.crop(double.candidates[0]).shape == (16, 16, 3)


def test_two_folders_are_read_as_one(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    make_folder(other / "crops")
    save_crops(other, "C", np.full((1, 8, 8, 3), 7, np.uint8))
    candidate = replace(CANDIDATES[0], slide_id="C", case_id="c")
    save_table(other, [candidate], {"C": CandidateSlide("c", "train", "u" * 4, 0.25, [], 1, 0.5, "scanner")}, {})
    first, second = CandidateSet.read(folder), CandidateSet.read(other)
    joined = CandidateSet.join(first, second)
    assert joined.candidates == (*CANDIDATES, candidate)
    for some in (joined, joined.where(lambda _, slide: slide.split == "train"), CandidateSet.join(second, first)):
        assert sorted(int(some.crop(each)[0, 0, 0]) for each in some.candidates) == [0, 1, 7]
    assert joined.slides["C"].domain == "scanner"
    with pytest.raises(PatchIndexError, match="both hold the slide =A"):
        CandidateSet.join(joined, first)


def test_what_a_stopped_run_left_over_is_not_read(folder):
    slides = {"B": SLIDES["B"]}
    save_table(folder, CANDIDATES, slides, {})
    assert CandidateSet.read(folder).candidates == ()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"slides": {"=A": {}}}', '{"slides": []}'])
def test_a_damaged_note_is_refused(folder, text):
    (folder / "candidates.json").write_text(text)
    with pytest.raises(PatchIndexError, match="not a folder of candidates"):
        CandidateSet.read(folder)


@pytest.mark.parametrize(("old", "new"), [("mitotic figure", "nonsense"), ("10.125", "x"), ("label", "lable")])
def test_a_damaged_index_is_refused(folder, old, new):
    table = folder / "index.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(PatchIndexError, match="not a folder of candidates"):
        CandidateSet.read(folder)


def test_damaged_crops_are_refused(folder):
    path = folder / "crops" / "=A.npy"
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(PatchIndexError, match=r"=A\.npy: missing or damaged"):
            CandidateSet.read(folder).crop(CANDIDATES[0])
    np.save(path, np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(PatchIndexError, match="not the 2 crops"):
        CandidateSet.read(folder).crop(CANDIDATES[0])
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(PatchIndexError, match="missing or damaged"):
        CandidateSet.read(folder).crop(CANDIDATES[0])


def test_the_note_is_plain_json(folder):
    note = json.loads((folder / "candidates.json").read_text())
    assert note["settings"] == {}
    assert note["slides"]["=A"]["n_crops"] == 2
