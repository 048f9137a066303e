"""Tissue: found by its colour, measured exactly."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mitosis.geometry import Box
from mitosis.slides import Slide
from mitosis.tissue import TissueMask, find_tissue

PINK, WHITE, GLASS = (215, 150, 190), (255, 255, 255), (240, 241, 238)


class ArraySlide(Slide):
    """A slide with one level, from an array uint8 [H, W, 3]."""

    path, properties, bad_tiles = Path("array"), {}, ()
    level_downsamples = (1.0,)

    def __init__(self, image, mpp):
        self.image, self.mpp = np.asarray(image, dtype=np.uint8), mpp
        self.dimensions = self.image.shape[1::-1]
        self.level_dimensions = (self.dimensions,)

    def read_region(self, location, level, size):  # noqa: ARG002  (signature of Slide)
        (x, y), (width, height) = location, size
        out = np.full((height, width, 3), 255, np.uint8)
        part = self.image[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)]
        out[max(0, -y) : max(0, -y) + part.shape[0], max(0, -x) : max(0, -x) + part.shape[1]] = part
        return out


def paint(size, *patches, background=GLASS):
    """Image of `size` (width, height) with (box, colour) patches."""
    image = np.empty((size[1], size[0], 3), np.uint8)
    image[:] = background
    for (x0, y0, x1, y1), colour in patches:
        image[y0:y1, x0:x1] = colour
    return image


def mask_of(array, mpp=8.0, slide_mpp=0.5, dimensions=None):
    array = np.asarray(array, dtype=bool)
    ratio = mpp / slide_mpp
    return TissueMask(array, mpp, slide_mpp, dimensions or (int(array.shape[1] * ratio), int(array.shape[0] * ratio)))


@pytest.mark.parametrize("colour", [WHITE, GLASS, (200, 200, 200), (0, 0, 0), (245, 240, 225)])
def test_blank_slide_has_no_tissue(colour):
    tissue = find_tissue(ArraySlide(paint((400, 300), background=colour), 4.0))
    assert tissue.area_mm2 == 0
    assert not tissue.mask.any()


def test_noisy_glass_has_no_tissue():
    noise = np.random.default_rng(0).normal(240, 6, (300, 400, 3)).clip(0, 255)
    assert find_tissue(ArraySlide(noise, 8.0)).area_mm2 == 0


def test_field_without_glass_is_all_tissue():
    rng = np.random.default_rng(0)
    field = np.clip(np.array(PINK) + rng.normal(0, 30, (300, 400, 1)), 0, 255)
    tissue = find_tissue(ArraySlide(field, 1.0))
    assert tissue.mask.all()
    assert tissue.area_mm2 == pytest.approx(0.4 * 0.3)


def test_piece_on_glass_is_found_with_its_gaps_and_without_dirt_pen_and_border():
    image = paint(
        (400, 300),
        ((100, 100, 200, 200), PINK),
        ((140, 140, 150, 150), GLASS),
        ((20, 20, 24, 24), PINK),
        ((300, 50, 350, 250), (20, 40, 170)),
        ((250, 50, 280, 250), (20, 150, 60)),
        ((0, 290, 400, 300), (3, 4, 2)),
    )
    tissue = find_tissue(ArraySlide(image, 8.0))
    assert tissue.area_mm2 == pytest.approx(0.8**2, rel=0.05)
    assert tissue.contains([(145, 145), (22, 22), (325, 150), (265, 150), (200, 295)]).tolist() == [True] + [False] * 4


def test_tiny_crop_of_tissue_is_tissue():
    assert find_tissue(ArraySlide(paint((128, 128), background=PINK), 0.25)).mask.all()


@pytest.mark.parametrize(("folder", "slide_mpp", "step"), [("mitos12", 0.2456, 6), ("atypia14", 0.2273, 40)])
def test_real_fields_are_tissue_all_over(real_data, folder, slide_mpp, step):
    for path in sorted((real_data / folder).glob("*.jpg"))[::step]:
        slide = ArraySlide(np.asarray(Image.open(path).convert("RGB")), slide_mpp)
        tissue = find_tissue(slide)
        assert tissue.covers((0, 0, *slide.dimensions)) > 0.98, path.name


def test_area_counts_only_what_lies_on_the_slide():
    """A slide of 100 x 60 px of 0.5 µm is 50 x 30 µm; its grid of 8 µm reaches over both edges."""
    tissue = mask_of(np.ones((4, 7)), dimensions=(100, 60))
    assert tissue.area_mm2 == pytest.approx(0.05 * 0.03)
    assert tissue.area_mm2_in((-50, -50, 5000, 5000)) == pytest.approx(0.05 * 0.03)


corner = st.floats(-20, 120, allow_nan=False)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.tuples(corner, corner, corner, corner), st.sampled_from([0.5, 1.0, 0.37]))
def test_area_in_a_box_is_exact(seed, box, slide_mpp):
    """Against the sum over pixels of the part of each that lies in the box."""
    mpp, dimensions = 8.0, (100, 90)
    height, width = (int(np.ceil(n * slide_mpp / mpp - 1e-9)) for n in dimensions[::-1])
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    tissue = TissueMask(mask, mpp, slide_mpp, dimensions)
    ratio = mpp / slide_mpp
    x0, y0, x1, y1 = np.clip(box, 0, [*dimensions, *dimensions])
    columns = np.clip(
        np.minimum(x1, (np.arange(width) + 1) * ratio) - np.maximum(x0, np.arange(width) * ratio), 0, None
    )
    rows = np.clip(np.minimum(y1, (np.arange(height) + 1) * ratio) - np.maximum(y0, np.arange(height) * ratio), 0, None)
    expected = rows @ mask @ columns * (slide_mpp / 1000) ** 2
    assert tissue.area_mm2_in(box) == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(tissue.areas_mm2_in([box, box]), expected, atol=1e-12)
    assert tissue.area_mm2 == pytest.approx(tissue.area_mm2_in((0, 0, *dimensions)), abs=1e-12)


def test_covers_is_the_share_of_the_box():
    tissue = mask_of([[1, 0], [0, 0]])
    assert tissue.covers((0, 0, 16, 16)) == pytest.approx(1)
    assert tissue.covers((8, 8, 24, 24)) == pytest.approx(0.25)
    assert tissue.covers((-16, 0, 16, 16)) == pytest.approx(0.5)
    assert tissue.covers((5, 5, 5, 9)) == 0


def test_contains_looks_up_points_and_says_no_outside():
    tissue = mask_of([[1, 0], [0, 1]])
    points = [(0, 0), (15.9, 15.9), (16, 0), (31.9, 31.9), (32, 32), (-0.1, 0)]
    assert tissue.contains(points).tolist() == [True, True, False, True, False, False]
    assert tissue.contains(np.empty((0, 2))).shape == (0,)


def test_without_takes_every_touched_pixel_away():
    tissue = mask_of(np.ones((4, 4)))
    assert tissue.without([Box(16, 16, 33, 32)]).mask.sum() == 14
    assert tissue.without([Box(-100, -100, 1, 1), Box(60, 60, 900, 900)]).mask.sum() == 14
    assert tissue.without([Box(-100, 0, -50, 10)]).mask.all()
    assert tissue.without([]).area_mm2 == tissue.area_mm2
    assert tissue.mask.all()


def test_mask_is_read_only_and_must_fit_the_slide():
    tissue = mask_of([[1]])
    with pytest.raises(ValueError, match="read-only"):
        tissue.mask[0, 0] = False
    with pytest.raises(ValueError, match=r"expected \[H, W\] = \(4, 7\)"):
        TissueMask(np.ones((4, 6), dtype=bool), 8.0, 0.5, (100, 60))


def test_rows_at_a_time_change_nothing(monkeypatch):
    noise = np.random.default_rng(0).integers(120, 255, (150, 90, 3), dtype=np.uint8)
    slide = ArraySlide(np.kron(noise, np.ones((4, 4, 1), np.uint8)), 4.0)
    whole = find_tissue(slide).mask
    assert 0.05 < whole.mean() < 0.95
    monkeypatch.setattr("mitosis.tissue._ROWS", 7)
    np.testing.assert_array_equal(find_tissue(slide).mask, whole)


def test_nothing_is_copied_where_nothing_is_lost():
    tissue = mask_of(np.ones((4, 4)))
    assert tissue.without([]) is tissue
    assert tissue.without([Box(0, 0, 1, 1)]).area_mm2 < tissue.area_mm2
