"""Masks: which pixels an outline covers, how a point becomes a nucleus, and what a mask file keeps."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry import Polygon, box

from mitosis.annotations import Annotation, Label, load_annotations
from mitosis.annotations.segments import from_outlines, pixel_outlines
from mitosis.errors import PatchIndexError
from mitosis.geometry import Box
from mitosis.masks import (
    BACKGROUND,
    IGNORE,
    MITOTIC_FIGURE,
    NON_MITOTIC_FIGURE,
    draw_mask,
    find_nucleus,
    load_mask,
    save_mask,
)

FIGURE, LOOK_ALIKE = Label.MITOTIC_FIGURE, Label.NON_MITOTIC_FIGURE
MPP = 0.25
STROMA, CHROMATIN = (225, 160, 200), (60, 30, 110)


def disc(x: float, y: float, radius: float, size: int = 120) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:size, :size] + 0.5
    return np.asarray(np.hypot(columns - x, rows - y) <= radius)


def tissue(*nuclei: NDArray[np.bool_], size: int = 120, seed: int = 0) -> NDArray[np.uint8]:
    """Stroma with a little noise, and dark nuclei."""
    image = np.full((size, size, 3), STROMA, float)
    for nucleus in nuclei:
        image[nucleus] = CHROMATIN
    image += np.random.default_rng(seed).normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def overlap(a: NDArray[np.bool_] | None, b: NDArray[np.bool_]) -> float:
    assert a is not None
    return float((a & b).sum() / (a | b).sum())


WHOLE = Box(0, 0, 120, 120)

# ---- outlines


@given(st.sets(st.tuples(st.integers(0, 19), st.integers(0, 19)), min_size=1, max_size=80))
@settings(deadline=None)
def test_pixel_list_drawn_at_native_size_gives_back_exactly_its_pixels(pixels: set[tuple[int, int]]) -> None:
    columns, rows = np.array(list(pixels)).T
    mask = draw_mask([from_outlines(pixel_outlines(columns, rows), FIGURE)], Box(0, 0, 20, 20), MPP, MPP)
    expected = np.zeros((20, 20), np.uint8)
    expected[rows, columns] = MITOTIC_FIGURE
    assert (mask == expected).all()


def test_real_pixel_lists_come_back_pixel_by_pixel(real_data: Path) -> None:
    for name in ("A00_03", "A03_02", "A01_02"):
        expected = np.zeros((2084, 2084), np.uint8)
        for line in (real_data / "mitos12" / f"{name}.csv").read_text().split():
            x, y = np.array(line.strip(",").split(","), dtype=int).reshape(-1, 2).T
            expected[y, x] = MITOTIC_FIGURE
        marks = load_annotations(real_data / "mitos12", name, (2084, 2084), 0.2456).annotations
        assert (draw_mask(marks, Box(0, 0, 2084, 2084), 0.2456, 0.2456) == expected).all()


@given(x=st.integers(0, 40), y=st.integers(0, 40), mpp=st.floats(0.1, 1.0))
@settings(max_examples=40, deadline=None)
def test_part_of_a_box_has_the_pixels_of_the_box(x: int, y: int, mpp: float) -> None:
    outline = shapely.Point(40.3, 37.9).buffer(17.1).difference(box(35, 35, 42, 42))
    marks = [from_outlines((outline,), FIGURE), Annotation(61, 59, LOOK_ALIKE)]
    whole = draw_mask(marks, Box(0, 0, 80, 80), mpp, MPP)
    part = draw_mask(marks, Box(x, y, x + 30, y + 25), mpp, MPP)
    assert (part == whole[y : y + 25, x : x + 30]).all()


@pytest.mark.parametrize("factor", [2, 4])
def test_outline_on_pixel_edges_keeps_its_area_and_place_at_a_coarser_grid(factor: int) -> None:
    squares = Polygon([(8, 8), (24, 8), (24, 16), (16, 16), (16, 32), (8, 32)])
    size = 40 // factor
    mask = draw_mask([from_outlines((squares,), FIGURE)], Box(0, 0, size, size), MPP * factor, MPP)
    assert mask.sum() * factor**2 == squares.area
    rows, columns = np.nonzero(mask)
    centre = (columns.mean() + 0.5) * factor, (rows.mean() + 0.5) * factor
    assert centre == pytest.approx((squares.centroid.x, squares.centroid.y))


def test_outline_whose_edge_runs_through_pixel_centres_loses_no_area() -> None:
    shifted = box(10.5, 10.5, 20.5, 20.5)
    assert draw_mask([from_outlines((shifted,), FIGURE)], Box(0, 0, 40, 40), MPP, MPP).sum() == 100


def test_all_outlines_of_a_joined_figure_are_drawn_and_holes_stay_open() -> None:
    ring = box(10, 10, 20, 20).difference(box(13, 13, 17, 17))
    mask = draw_mask([from_outlines((ring, box(30, 10, 40, 20)), FIGURE)], Box(0, 0, 50, 30), MPP, MPP)
    assert mask.sum() == 100 - 16 + 100
    assert mask[15, 15] == BACKGROUND


def test_outlines_have_no_ignored_ring_unless_asked_for() -> None:
    mark = from_outlines((box(10, 10, 20, 20),), FIGURE)
    plain = draw_mask([mark], Box(0, 0, 30, 30), MPP, MPP)
    ringed = draw_mask([mark], Box(0, 0, 30, 30), MPP, MPP, outline_ignore_um=0.5)
    assert set(np.unique(plain)) == {BACKGROUND, MITOTIC_FIGURE}
    assert (ringed[15, 6:12] == [0, 0, IGNORE, IGNORE, 1, 1]).all()
    assert ((ringed == 1) == (plain == 1)).all()


def test_figures_win_over_look_alikes_and_both_over_ignored_pixels() -> None:
    marks = [
        from_outlines((box(10, 10, 20, 20),), FIGURE),
        from_outlines((box(15, 10, 30, 20),), LOOK_ALIKE),
    ]
    for order in (marks, marks[::-1]):
        mask = draw_mask(order, Box(0, 0, 40, 30), MPP, MPP, outline_ignore_um=1.0)
        assert (mask[15, 5:35] == [0] + [255] * 4 + [1] * 10 + [2] * 10 + [255] * 4 + [0]).all()


# ---- points


def test_point_on_a_dark_disc_becomes_that_disc_with_a_ring() -> None:
    nucleus = disc(60, 55, 14)  # 3.5 µm
    mask = draw_mask([Annotation(63, 51, FIGURE)], WHOLE, MPP, MPP, tissue(nucleus))
    assert overlap(mask == MITOTIC_FIGURE, nucleus) > 0.95
    assert not (mask[disc(60, 55, 16.5)] == BACKGROUND).any()
    assert (mask[~disc(60, 55, 20)] == BACKGROUND).all()


@pytest.mark.parametrize("mpp", [0.125, 0.25, 0.5])
def test_nucleus_has_the_same_area_at_every_pixel_size(mpp: float) -> None:
    nucleus = disc(30 / mpp / 2, 30 / mpp / 2, 3.5 / mpp, size=round(30 / mpp))
    found = find_nucleus(tissue(nucleus, size=round(30 / mpp)), 15.5 / mpp, 14 / mpp, mpp)
    assert found is not None
    assert found.sum() * mpp**2 == pytest.approx(np.pi * 3.5**2, rel=0.06)


def test_neighbouring_nucleus_is_left_alone() -> None:
    own, neighbour = disc(60, 60, 12), disc(60, 90, 11)
    assert overlap(find_nucleus(tissue(own, neighbour), 60, 57, MPP), own) > 0.95


def test_point_between_two_plates_takes_both() -> None:
    upper, lower = disc(60, 45, 9), disc(60, 75, 8)
    assert overlap(find_nucleus(tissue(upper, lower), 61, 60, MPP), upper | lower) > 0.9


def test_point_between_unequal_pieces_takes_the_nearest() -> None:
    small, large = disc(60, 52, 7), disc(60, 76, 13)
    assert overlap(find_nucleus(tissue(small, large), 60, 60, MPP), small) > 0.8


def test_hole_in_a_nucleus_belongs_to_it() -> None:
    ring = disc(60, 60, 14) & ~disc(60, 60, 5)
    assert overlap(find_nucleus(tissue(ring), 60, 60, MPP), disc(60, 60, 14)) > 0.95


@pytest.mark.parametrize(
    "image",
    [
        np.full((120, 120, 3), 255, np.uint8),
        np.zeros((120, 120, 3), np.uint8),
        tissue(),
        tissue(disc(60, 60, 4)),  # a speck
        tissue(disc(60, 88, 8)),  # too far away
        tissue(disc(60, 60, 31) & ~disc(60, 60, 2)),  # larger than any nucleus
    ],
)
def test_unclear_nucleus_becomes_a_plain_disc_inside_an_ignored_one(image: NDArray[np.uint8]) -> None:
    mask = draw_mask([Annotation(60, 60, LOOK_ALIKE)], WHOLE, MPP, MPP, image)
    assert ((mask == NON_MITOTIC_FIGURE) == disc(60, 60, 12)).all()
    assert ((mask == IGNORE) == (disc(60, 60, 32) & ~disc(60, 60, 12))).all()
    assert (mask == draw_mask([Annotation(60, 60, LOOK_ALIKE)], WHOLE, MPP, MPP)).all()


def test_point_off_the_box_reaches_into_it_and_a_far_one_does_not() -> None:
    image = tissue()
    near = draw_mask([Annotation(-4, 60, FIGURE)], WHOLE, MPP, MPP, image)
    assert (near[60, [0, 20, 40]] == [MITOTIC_FIGURE, IGNORE, BACKGROUND]).all()
    assert not draw_mask([Annotation(-40, 60, FIGURE), Annotation(60, 500, FIGURE)], WHOLE, MPP, MPP, image).any()


def test_nucleus_in_a_corner_of_the_image_is_found() -> None:
    nucleus = disc(6, 7, 12)
    assert overlap(find_nucleus(tissue(nucleus), 5, 5, MPP), nucleus) > 0.9


@given(x=st.floats(-60, 180), y=st.floats(-60, 180), seed=st.integers(0, 99), mpp=st.floats(0.2, 2.0))
@settings(max_examples=60, deadline=None)
def test_a_point_always_labels_or_leaves_alone_and_never_fails(x: float, y: float, seed: int, mpp: float) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (60, 60, 3)).astype(np.uint8)
    mask = draw_mask([Annotation(x, y, FIGURE)], Box(0, 0, 60, 60), mpp, mpp, image)
    assert set(np.unique(mask)) <= {BACKGROUND, MITOTIC_FIGURE, IGNORE}
    if 0 <= x < 60 and 0 <= y < 60 and mpp < 1:
        assert (mask == MITOTIC_FIGURE).any()


def test_real_nuclei_are_recovered_from_their_centres(real_data: Path) -> None:
    scores = []
    for name in ("A00_01", "A01_02", "A03_02", "A04_04"):
        with Image.open(real_data / "mitos12" / f"{name}.jpg") as picture:
            image = np.array(picture.convert("RGB"))
        for mark in load_annotations(real_data / "mitos12", name, (2084, 2084), 0.2456).annotations:
            x, y = max(0, int(mark.x) - 60), max(0, int(mark.y) - 60)
            window = image[y : y + 120, x : x + 120]
            place = Box(x, y, x + window.shape[1], y + window.shape[0])
            traced = draw_mask([mark], place, 0.2456, 0.2456) == MITOTIC_FIGURE
            found = find_nucleus(window, mark.x - x, mark.y - y, 0.2456)
            scores.append(0.0 if found is None else overlap(found, traced))
    assert np.median(scores) > 0.8
    assert np.mean(np.array(scores) < 0.5) < 0.1


# ---- files


@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.sampled_from([0, 1, 2, 255])))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_saved_mask_is_loaded_unchanged(tmp_path: Path, mask: NDArray[np.uint8]) -> None:
    save_mask(tmp_path / "m.png", mask)
    back = load_mask(tmp_path / "m.png", (mask.shape[1], mask.shape[0]))
    assert back.dtype == np.uint8
    assert (back == mask).all()


def test_mask_file_shows_colours_in_any_viewer(tmp_path: Path) -> None:
    save_mask(tmp_path / "m.png", np.array([[0, 1, 2, 255]], np.uint8))
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        black, red, blue, grey = np.array(image.convert("RGB"))[0].tolist()
    assert black == [0, 0, 0]
    assert red[0] > 2 * max(red[1:])
    assert blue[2] > 2 * max(blue[:2])
    assert len(set(grey)) == 1
    assert 0 < grey[0] < 255


def test_mask_of_other_size_mode_or_values_is_refused(tmp_path: Path) -> None:
    save_mask(tmp_path / "m.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(PatchIndexError, match=r"6 x 4 px, but its patch has 6 x 6 px"):
        load_mask(tmp_path / "m.png", (6, 6))
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    Image.new("L", (4, 4), 3).save(tmp_path / "three.png")
    (tmp_path / "text.png").write_text("no image")
    for name, message in (
        ("rgb", "not a mask"),
        ("three", "not a mask"),
        ("text", "damaged"),
        ("none", "no such mask"),
    ):
        with pytest.raises(PatchIndexError, match=rf"{name}\.png: .*{message}"):
            load_mask(tmp_path / f"{name}.png")
