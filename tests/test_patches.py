"""Patches: the index keeps what it is told, and says what is wrong with a folder."""

import dataclasses

import numpy as np
import pytest
from conftest import MPP, SIDE
from PIL import Image

from mitosis.errors import LeakageError, PatchIndexError
from mitosis.geometry import Box
from mitosis.patches import Patch, PatchIndex


def test_the_index_is_read_as_it_was_written(index):
    assert index.to_csv() == (index.folder / "index.csv").read_text(encoding="utf-8")
    again = PatchIndex.read(index.folder)
    assert again == index


def test_odd_text_in_a_row_survives(index, tmp_path):
    patch = dataclasses.replace(index.patches[0], domain='a "b", c\nd', case_id="µ;\t", on_grid=False, x=-12.3456789)
    (tmp_path / "index.csv").write_text(PatchIndex(tmp_path, (patch,)).to_csv(), encoding="utf-8")
    assert PatchIndex.read(tmp_path).patches == (patch,)


@pytest.mark.parametrize("slide_mpp", [0.2456, 0.25, 0.5, 0.2207, 1 / 3])
@pytest.mark.parametrize("corner", [(0, 0), (-31, 64), (81_920, 65_537)])
def test_the_box_on_the_grid_is_got_back_from_level_0_px(index, slide_mpp, corner, tmp_path):
    ratio = MPP / slide_mpp
    x, y = (place * ratio for place in corner)
    patch = dataclasses.replace(index.patches[0], x=x, y=y, mpp=MPP, slide_mpp=slide_mpp, size=64)
    (tmp_path / "index.csv").write_text(PatchIndex(tmp_path, (patch,)).to_csv())
    expected = Box(*corner, corner[0] + 64, corner[1] + 64)
    assert patch.box == PatchIndex.read(tmp_path).patches[0].box == expected


def test_images_and_masks_have_the_size_the_row_says(index):
    for patch in index.patches[:5]:
        assert index.read_image(patch).shape == (64, 64, 3)
        assert index.read_mask(patch).shape == (64, 64)


def test_figures_of_a_slide_are_mitotic_figures_only(index):
    figures = index.figures("A01")
    assert figures.shape == (6, 2)
    assert ((figures >= 0) & (figures < SIDE)).all()


def test_pixels_are_counted_by_class_without_the_ignored_ones(index):
    masks = np.stack([index.read_mask(patch) for patch in index.patches])
    counts = [int((masks == value).sum()) for value in (0, 1, 2)]
    assert index.n_pixels(3) == counts
    assert index.n_pixels(2) == [counts[0] + counts[2], counts[1]]
    assert min(counts) > 0


def test_validation_cases_can_be_chosen(index):
    chosen = index.with_val_cases(["A"])
    assert {(patch.case_id, patch.split) for patch in chosen.patches} == {("A", "val"), ("B", "train")}
    assert {patch.split for patch in index.with_val_cases([]).patches} == {"train"}
    with pytest.raises(PatchIndexError, match=r"no patches of case C, D\. Cases here: A, B\."):
        index.with_val_cases(["D", "A", "C"])


def test_a_torn_case_is_refused(index):
    first, *others = index.patches
    other_side = "val" if first.split == "train" else "train"
    torn = PatchIndex(index.folder, (dataclasses.replace(first, split=other_side), *others))
    index.check_splits()
    with pytest.raises(LeakageError, match="A"):
        torn.check_splits()


def test_one_image_under_two_names_on_both_sides_is_refused(index):
    first, *others = index.with_val_cases(["B"]).patches
    copy = dataclasses.replace(others[0], case_id="C", split="val", source_sha256=first.source_sha256)
    with pytest.raises(LeakageError, match="the same image"):
        PatchIndex(index.folder, (first, copy)).check_splits()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, r"no such file\. Cut patches first"),
        ("", "lists no patch"),
        ("{header}\n", "lists no patch"),
        ("patch_id,slide_id\na,b\n", "line 2: not as written by mitosis extract"),
        ("{header}\n{row}\na,b\n", "line 3: not as written by mitosis extract"),
        ("{header}\n" + "x," * 19 + "x\n", "line 2: not as written"),
        ("{header}\na,b\0\n", "index.csv"),
    ],
)
def test_a_damaged_index_is_refused_with_its_line(index, tmp_path, text, complaint):
    header, row = index.to_csv().splitlines()[:2]
    if text is not None:
        (tmp_path / "index.csv").write_text(text.replace("{header}", header).replace("{row}", row))
    with pytest.raises(PatchIndexError, match=complaint):
        PatchIndex.read(tmp_path)


def test_an_index_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "index.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PatchIndexError, match="not readable"):
        PatchIndex.read(tmp_path)


def test_a_missing_damaged_or_resized_image_is_refused_by_name(patches_copy):
    index = PatchIndex.read(patches_copy)
    gone, damaged, small, bad_mask = index.patches[:4]
    (patches_copy / gone.image).unlink()
    whole = (patches_copy / damaged.image).read_bytes()
    (patches_copy / damaged.image).write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (32, 64)).save(patches_copy / small.image)
    Image.new("L", (64, 32)).save(patches_copy / bad_mask.mask)
    for patch, reason in ((gone, "not readable"), (damaged, "not readable"), (small, "is 32x64 px, the index says 64")):
        with pytest.raises(PatchIndexError, match=rf"{patch.image}: {reason}"):
            index.read_image(patch)
    with pytest.raises(PatchIndexError, match=bad_mask.mask):
        index.read_mask(bad_mask)


def test_rows_are_frozen(index):
    with pytest.raises(dataclasses.FrozenInstanceError):
        index.patches[0].split = "val"
    assert isinstance(index.patches[0], Patch)
