"""Boxes over a mask: all of it, nothing twice, and not more than a plain grid would need."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitosis.covering import cover

masks = st.builds(
    lambda seed, share, shape: np.random.default_rng(seed).random(shape) < share,
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)


def cost(boxes, halo):
    return sum((box.x1 - box.x0 + 2 * halo) * (box.y1 - box.y0 + 2 * halo) for box in boxes)


@given(mask=masks, largest=st.integers(1, 50), halo=st.sampled_from([0.0, 0.5, 3.0]))
def test_every_pixel_that_is_set_is_in_one_box(mask, largest, halo):
    times = np.zeros(mask.shape, int)
    for box in cover(mask, largest, halo):
        assert 0 < max(box.size) <= largest
        part = mask[box.y0 : box.y1, box.x0 : box.x1]
        assert part.shape == box.size[::-1]
        for edge in (part[0], part[-1], part[:, 0], part[:, -1]):  # it is no larger than it must be
            assert edge.any()
        times[box.y0 : box.y1, box.x0 : box.x1] += 1
    assert times.max() <= 1
    assert times[mask].all()


@given(mask=masks, largest=st.integers(1, 50), halo=st.sampled_from([0.5, 3.0]))
def test_it_costs_no_more_than_a_grid_over_all(mask, largest, halo):
    """Each cut makes it cheaper or is one of a grid, which costs what the uncut box does."""
    height, width = mask.shape
    grid = [size + 2 * halo * -(-size // largest) for size in (width, height)]
    assert cost(cover(mask, largest, halo), halo) <= grid[0] * grid[1] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("halo", "boxes"),
    [
        (0.0, [(0, 0, 8, 2), (0, 2, 2, 8)]),  # the bay of an L is left out
        (2.0, [(0, 0, 8, 2), (0, 2, 2, 8)]),  # 12 * 6 + 6 * 10 against 12 * 12
        (20.0, [(0, 0, 8, 8)]),  # two halos would cost more than the bay
    ],
)
def test_a_bay_is_cut_out_where_that_is_cheaper(halo, boxes):
    mask = np.zeros((9, 9), bool)
    mask[:2, :8] = mask[:8, :2] = True
    assert sorted(cover(mask, 100, halo)) == sorted(boxes)


def test_two_islands_are_two_boxes_and_nothing_is_none():
    mask = np.zeros((30, 30), bool)
    assert not list(cover(mask, 10, 1.0))
    mask[2:4, 3:5] = mask[25, 20:28] = True
    assert list(cover(mask, 30, 1.0)) == [(3, 2, 5, 4), (20, 25, 28, 26)]


def test_what_is_too_large_is_cut_as_a_grid_would():
    assert sorted(box.size for box in cover(np.ones((10, 25), bool), 10, 4.0)) == [(5, 10), (10, 10), (10, 10)]
