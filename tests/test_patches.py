"""Patches: the index keeps what it is told, and says what is wrong with a folder."""

import dataclasses

import numpy as np
import pytest
from conftest import EXTRACT, MPP, SIDE, add_slide, extract
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


# Several folders as one


@pytest.fixture
def other(tmp_path):
    """The patches of another slide, C01 of case C, in a folder of their own."""
    slides = tmp_path / "other_slides"
    slides.mkdir()
    add_slide(slides, "C01", 7)
    extract(slides, tmp_path / "other", case_pattern="^C")
    return PatchIndex.read(tmp_path / "other")


def test_one_folder_joined_is_itself(index):
    assert PatchIndex.join([index]) == index


def test_folders_joined_read_as_each_of_them(index, other):
    joined = PatchIndex.join([index, other])
    assert joined.folder == index.folder
    assert joined.patches[: len(index.patches)] == index.patches
    assert [p.patch_id for p in joined.patches] == [p.patch_id for i in (index, other) for p in i.patches]
    for patch, before in zip(joined.patches[len(index.patches) :], other.patches, strict=True):
        np.testing.assert_array_equal(joined.read_image(patch), other.read_image(before))
        np.testing.assert_array_equal(joined.read_mask(patch), other.read_mask(before))
        assert dataclasses.replace(patch, image=before.image, mask=before.mask) == before
    assert joined.n_pixels(3) == [sum(pair) for pair in zip(index.n_pixels(3), other.n_pixels(3), strict=True)]
    for slide_id, owner in (("A01", index), ("C01", other)):
        np.testing.assert_array_equal(joined.figures(slide_id), owner.figures(slide_id))
    chosen = joined.where(lambda patch: patch.case_id == "C").with_val_cases(["C"])
    np.testing.assert_array_equal(chosen.figures("C01"), other.figures("C01"))


def test_marks_are_those_of_the_first_folder_that_has_the_slide(patches_copy, index):
    (patches_copy / "marks" / "A01.csv").write_text("x,y,label\n1,1,mitotic figure\n")
    copy = PatchIndex.read(patches_copy)
    renamed = PatchIndex(copy.folder, tuple(dataclasses.replace(p, patch_id=f"{p.patch_id}_2") for p in copy.patches))
    assert len(PatchIndex.join([index, renamed]).figures("A01")) == 6
    assert len(PatchIndex.join([renamed, index]).figures("A01")) == 1


def test_a_folder_behind_a_link_is_found(index, other, tmp_path):
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    link = tmp_path / "deep" / "deeper" / "link"
    link.symlink_to(index.folder)
    joined = PatchIndex.join([PatchIndex.read(link), other])
    assert joined.read_image(joined.patches[-1]).shape == (64, 64, 3)
    assert joined.figures("C01").shape == (6, 2)


def test_a_case_stays_on_its_side_in_all_folders(index, other):
    first = index.with_val_cases(["B"])
    second, third = (
        PatchIndex(index.folder, tuple(dataclasses.replace(p, patch_id=f"{p.patch_id}_{case}") for p in copy.patches))
        for case, copy in (("A", index.with_val_cases(["A"])), ("none", index.with_val_cases([])))
    )
    joined = PatchIndex.join([first, second, third, other])
    assert {(p.case_id, p.split) for p in joined.patches} == {
        ("A", "train"),
        ("B", "val"),
        ("C", other.patches[0].split),
    }
    joined.check_splits()


def test_joining_does_not_hide_a_torn_case(index, other):
    first, *others = index.patches
    torn = PatchIndex(
        index.folder, (dataclasses.replace(first, split="val" if first.split == "train" else "train"), *others)
    )
    with pytest.raises(LeakageError, match="A"):
        PatchIndex.join([torn, other]).check_splits()


@pytest.mark.parametrize(("name", "value", "kind"), [("size", 96, "96 px at 0.5"), ("mpp", 0.4, "64 px at 0.4")])
def test_patches_of_other_size_or_mpp_do_not_go_together(index, slides_folder, tmp_path, name, value, kind):
    extract(slides_folder, tmp_path / "other", EXTRACT.model_copy(update={name: value}))
    with pytest.raises(PatchIndexError, match=rf"64 px at 0.5 µm/px and {kind} µm/px do not go together") as caught:
        PatchIndex.join([index, PatchIndex.read(tmp_path / "other")])
    assert all(str(folder) in str(caught.value) for folder in (index.folder, tmp_path / "other"))


def test_a_patch_that_two_folders_hold_is_refused(index, other, patches_copy):
    copy = PatchIndex.read(patches_copy)
    with pytest.raises(PatchIndexError, match=rf"both hold the patch A01/\w+ \({len(copy.patches)} in all\)") as caught:
        PatchIndex.join([index, other, copy])
    assert all(str(folder) in str(caught.value) for folder in (index.folder, patches_copy))
    with pytest.raises(PatchIndexError, match="Name each folder once"):
        PatchIndex.join([index, index])
