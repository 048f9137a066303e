"""Geometry: cores partition a slide, windows hold them, sizes are exact."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitosis.geometry import Box, area_mm2, grid_dimensions, tile_grid

sides = st.integers(1, 90)


@given(width=sides, height=sides, core=st.integers(1, 40), margin=st.integers(0, 12))
def test_cores_own_each_pixel_of_the_slide_once(width, height, core, margin):
    owners = np.zeros((height, width), dtype=int)
    for tile in tile_grid((width, height), 0.5, core + 2 * margin, margin):
        x0, y0, x1, y1 = tile.core
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        owners[y0:y1, x0:x1] += 1
    assert (owners == 1).all()


@given(width=sides, height=sides, core=st.integers(1, 40), margin=st.integers(0, 12))
def test_windows_have_one_size_and_the_margin_around_their_core(width, height, core, margin):
    size = core + 2 * margin
    for tile in tile_grid((width, height), 0.5, size, margin):
        assert tile.window.size == (size, size)
        assert (tile.core.x0 - tile.window.x0, tile.core.y0 - tile.window.y0) == (margin, margin)
        assert tile.window.x1 - tile.core.x1 >= margin
        assert tile.window.y1 - tile.core.y1 >= margin
        assert tile.window.x0 % core == -margin % core
        assert tile.mpp == 0.5


def test_tiles_come_row_by_row():
    corners = [tile.core[:2] for tile in tile_grid((30, 20), 0.5, 10)]
    assert corners == [(0, 0), (10, 0), (20, 0), (0, 10), (10, 10), (20, 10)]


@pytest.mark.parametrize(("size", "margin"), [(10, 5), (10, 6), (0, 0)])
def test_a_tile_that_is_all_margin_is_refused(size, margin):
    with pytest.raises(ValueError, match=f"tile size {size} px leaves nothing"):
        next(tile_grid((100, 100), 0.5, size, margin))


@given(width=st.integers(1, 10**6), height=st.integers(1, 10**6), slide_mpp=st.floats(0.05, 4), mpp=st.floats(0.05, 4))
def test_the_grid_covers_the_slide_and_not_a_pixel_more(width, height, slide_mpp, mpp):
    ratio = mpp / slide_mpp
    for given_px, n in zip((width, height), grid_dimensions((width, height), slide_mpp, mpp), strict=True):
        assert n >= 1
        assert n * ratio >= given_px - 1e-6 * given_px
        assert (n - 1) * ratio < given_px


@pytest.mark.parametrize(
    ("slide_mpp", "mpp", "expected"),
    [(0.25, 0.25, (1000, 501)), (0.25, 0.5, (500, 251)), (0.5, 0.25, (2000, 1002)), (0.1, 0.3, (334, 167))],
)
def test_grid_dimensions_by_hand(slide_mpp, mpp, expected):
    assert grid_dimensions((1000, 501), slide_mpp, mpp) == expected


def test_a_grid_at_the_slides_own_mpp_has_its_size_whatever_the_rounding():
    for mpp in (0.1, 0.2456, 0.2528, 1 / 3, 0.5037):
        assert grid_dimensions((98_765, 43_210), mpp, mpp) == (98_765, 43_210)
        assert grid_dimensions((3 * 70_001, 3 * 7), mpp / 3, mpp) == (70_001, 7)


def test_box_knows_its_size_and_grows_on_all_sides():
    assert Box(1, 2, 11, 7).size == (10, 5)
    assert Box(1, 2, 11, 7).grown(3) == (-2, -1, 14, 10)


def test_area_in_mm2():
    assert math.isclose(area_mm2(4_000_000, 0.5), 1.0)
