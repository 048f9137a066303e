"""Detections: the same set for every tiling, each figure once, merged the same way in every order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mitosis.detections import Detections, PeakRule, concatenate, find_peaks, merge, reach_px
from mitosis.geometry import Box, tile_grid

MPP = 0.5


def draw_map(height, width, blobs):
    """Probability map with a smooth blob (x, y, radius, value) each."""
    y, x = np.mgrid[:height, :width] + 0.5
    layers = [v * np.exp(-((((x - bx) ** 2 + (y - by) ** 2) / (2 * r * r)) ** 2)) for bx, by, r, v in blobs]
    return np.max([np.zeros((height, width)), *layers], axis=0).astype(np.float32)


def whole(probability, floor=0.05, mpp=MPP, rule=PeakRule()):  # noqa: B008  (frozen)
    box = Box(0, 0, probability.shape[1], probability.shape[0])
    return find_peaks(probability, box, box, mpp, 0.25, floor, rule)


def tiled(probability, size, floor=0.05, mpp=MPP):
    """Through tiles of `size` px that see no more of the map than they need."""
    height, width = probability.shape
    margin = reach_px(mpp)
    padded = np.pad(probability, ((margin, margin + size), (margin, margin + size)))
    parts = []
    for tile in tile_grid((width, height), mpp, size + 2 * margin, margin):
        x, y = tile.window.x0 + margin, tile.window.y0 + margin
        window = padded[y : y + size + 2 * margin, x : x + size + 2 * margin]
        parts.append(find_peaks(window, tile.window, tile.core, mpp, 0.25, floor))
    return concatenate(parts).sorted()


def assert_same(a, b):
    np.testing.assert_array_equal(a.xy, b.xy)
    np.testing.assert_array_equal(a.score, b.score)
    np.testing.assert_array_equal(a.area_um2, b.area_um2)


blob = st.tuples(
    st.floats(-3, 100), st.floats(-3, 80), st.floats(1.0, 12.0), st.sampled_from([0.1, 0.3, 0.3001, 0.8, 0.99, 1.0])
)


@settings(max_examples=40)
@given(st.lists(blob, max_size=12), st.sampled_from([16, 17, 32, 45, 64, 200]), st.integers(0, 2**32 - 1))
def test_tiles_of_any_size_give_what_the_whole_map_gives(blobs, size, seed):
    probability = draw_map(77, 97, blobs)
    probability += np.random.default_rng(seed).random((77, 97), dtype=np.float32) * np.float32(0.2)
    assert_same(tiled(probability, size), whole(probability))


@settings(max_examples=30)
@given(st.lists(blob, min_size=1, max_size=6), st.sampled_from([0.2, 0.25, 0.4, 0.5, 1.0, 3.0]))
def test_a_score_is_the_mean_under_a_gaussian(blobs, mpp):
    probability, rule = draw_map(77, 97, blobs), PeakRule()
    offset = np.arange(-int(rule.smooth_um / mpp), int(rule.smooth_um / mpp) + 1)
    kernel = np.exp(-2.0 * (offset * mpp / rule.smooth_um) ** 2)
    smooth = probability.astype(np.float64)
    for axis in (0, 1):
        smooth = ndimage.correlate1d(smooth, kernel / kernel.sum(), axis=axis, mode="constant")
    found = whole(probability, 0.01, mpp)
    assert found.score.max(initial=0.01) == pytest.approx(max(smooth.max(), 0.01), abs=2e-4)


@settings(max_examples=20)
@given(st.lists(blob, max_size=4), st.sampled_from([16, 33, 64]))
def test_flat_maps_are_tiled_alike_too(blobs, size):
    """Saturated spots and plateaus: ties everywhere."""
    probability = (draw_map(77, 97, blobs) > 0.2).astype(np.float32)
    assert_same(tiled(probability, size), whole(probability))
    assert_same(merge(tiled(probability, size), 0.25), merge(whole(probability), 0.25))


@pytest.mark.parametrize("corner", [(0, 0), (0.5, 0.5), (0.3, 0.8)])
def test_a_figure_at_every_offset_of_a_tile_corner_is_found_once(corner):
    size, margin = 32, reach_px(MPP)
    for dx in range(-16, 16, 3):
        for dy in range(-16, 16, 3):
            x, y = 64 + dx + corner[0], 64 + dy + corner[1]
            found = tiled(draw_map(128, 128, [(x, y, 5, 0.9)]), size)
            assert len(found) == 1
            np.testing.assert_allclose(found.xy, [[2 * x, 2 * y]], atol=0.2)
    assert margin < size


def test_noise_of_a_network_does_not_change_the_set():
    probability = draw_map(
        200, 200, [(20 + 40 * i, 20 + 40 * j, 4 + i, 0.3 + 0.1 * j) for i in range(5) for j in range(5)]
    )
    noise = np.random.default_rng(0).normal(0, 1e-6, probability.shape).astype(np.float32)
    a, b = whole(probability), whole(probability + noise)
    assert len(a) == len(b) == 25
    order_a, order_b = np.lexsort(np.round(a.xy / 20).T), np.lexsort(np.round(b.xy / 20).T)
    np.testing.assert_allclose(a.xy[order_a], b.xy[order_b], atol=0.05)
    np.testing.assert_allclose(a.score[order_a], b.score[order_b], atol=2e-4)


def test_position_score_and_size_are_right():
    """A flat disc of radius 5 µm about a known point, at two scales."""
    for mpp in (0.25, 0.5):
        y, x = (np.mgrid[: int(50 / mpp), : int(60 / mpp)] + 0.5) * mpp
        found = whole(((x - 31) ** 2 + (y - 22) ** 2 <= 25).astype(np.float32) * np.float32(0.8), mpp=mpp)
        best = merge(found, 0.25)
        assert len(best) == 1
        np.testing.assert_allclose(best.score, [0.8])
        assert np.hypot(*(best.xy[0] - [31 * 4, 22 * 4])) < 8
        assert 0.6 * np.pi * 25 < best.area_um2[0] < 1.2 * np.pi * 25


def test_peak_pixel_of_a_window_that_does_not_start_at_zero():
    probability = draw_map(60, 60, [(30.5, 20.5, 3, 0.9)])
    window = Box(1000, 2000, 1060, 2060)
    found = find_peaks(probability, window, window, 0.5, 0.25, 0.1)
    np.testing.assert_allclose(found.xy, [[2 * 1030.5, 2 * 2020.5]], atol=1e-6)


def test_floor_is_inclusive_and_in_rounded_scores():
    probability = np.full((64, 64), 0.49996, dtype=np.float32)
    box = Box(0, 0, 64, 64)
    assert len(find_peaks(probability, box, box, 2.0, 0.25, 0.5)) > 0
    assert len(find_peaks(probability - np.float32(1e-4), box, box, 2.0, 0.25, 0.5)) == 0


def test_empty_map_and_empty_window_give_nothing():
    assert len(whole(np.zeros((40, 40), dtype=np.float32))) == 0
    assert len(whole(np.zeros((0, 0), dtype=np.float32))) == 0


def test_wrong_sizes_and_values_are_refused():
    box = Box(0, 0, 8, 8)
    with pytest.raises(ValueError, match=r"expected \[h, w\] = \(8, 8\)"):
        find_peaks(np.zeros((8, 9), dtype=np.float32), box, box, 1, 1, 0.1)
    with pytest.raises(ValueError, match="is not inside window"):
        find_peaks(np.zeros((8, 8), dtype=np.float32), box, Box(0, 0, 9, 8), 1, 1, 0.1)
    with pytest.raises(ValueError, match="finite"):
        find_peaks(np.full((8, 8), np.nan, dtype=np.float32), box, box, 1, 1, 0.1)


coordinate = st.integers(0, 40).map(float)
found_points = st.lists(st.tuples(coordinate, coordinate, st.integers(0, 5).map(lambda s: s / 5)), max_size=25)


def make(rows):
    rows = np.array(rows, dtype=float).reshape(-1, 3)
    return Detections(rows[:, :2], rows[:, 2], rows[:, 2] * 0 + 50)


@given(found_points, st.randoms(use_true_random=False))
def test_merge_is_greedy_by_score_in_any_order(rows, random):
    merged = merge(make(rows), slide_mpp=1.0, radius_um=6.0)
    assert_same(merged, merge(make(random.sample(rows, len(rows))), 1.0, 6.0))
    expected = []
    for x, y, score in sorted(rows, key=lambda r: (-r[2], r[1], r[0])):
        if all((x - u) ** 2 + (y - v) ** 2 >= 36 for u, v, _ in expected):
            expected.append((x, y, score))
    assert_same(merged, make(expected))
    assert_same(merged, merge(merged, 1.0, 6.0))


@given(found_points, st.sampled_from([0.2, 0.4, 0.8]))
def test_a_threshold_may_come_before_or_after_the_merge(rows, threshold):
    merged, raw = merge(make(rows), 1.0, 6.0), make(rows)
    assert_same(merged[merged.score >= threshold], merge(raw[raw.score >= threshold], 1.0, 6.0))


def test_merge_radius_is_exclusive_and_in_um():
    pair = make([(0, 0, 0.9), (30, 0, 0.8)])
    assert len(merge(pair, slide_mpp=0.25, radius_um=7.5)) == 2
    assert len(merge(pair, slide_mpp=0.2499, radius_um=7.5)) == 1
    assert len(merge(make([(5, 5, 0.5)] * 7), 0.25)) == 1
    assert len(merge(make([(5, 5, 0.5)] * 7), 0.25, radius_um=0)) == 7


def test_merge_of_a_dense_crowd_stays_linear():
    """100,000 candidates in one spot would be 5 * 10^9 pairs."""
    rng = np.random.default_rng(0)
    crowd = Detections(rng.random((100_000, 2)) * 20, rng.random(100_000), np.ones(100_000))
    merged = merge(crowd, 0.25)
    assert len(merged) == 1
    assert merged.score[0] == crowd.score.max()


def test_detections_are_read_only_rounded_and_sorted():
    detections = Detections([[2, 1], [1, 1], [5, 5]], [0.50004, 0.5, 0.9], [1, 1, 1]).sorted()
    assert detections.score.tolist() == [0.9, 0.5, 0.5]
    assert detections.xy.tolist() == [[5, 5], [1, 1], [2, 1]]
    with pytest.raises(ValueError, match="read-only"):
        detections.xy[0, 0] = 3
    assert len(detections[detections.score > 0.6]) == 1
    assert len(detections[:0]) == len(Detections.empty()) == len(concatenate([])) == 0


def test_detections_copy_their_arrays():
    xy = np.zeros((1, 2))
    detections = Detections(xy, np.ones(1), np.ones(1))
    xy[0, 0] = 7
    assert detections.xy[0, 0] == 0


@pytest.mark.parametrize(
    ("xy", "score", "area", "name"),
    [
        ([[0, 0]], [0.5, 0.5], [1, 1], "xy"),
        ([[0, 0, 0]], [0.5], [1], "xy"),
        ([[0, np.inf]], [0.5], [1], "xy"),
        ([[0, 0]], [np.nan], [1], "score"),
        ([[0, 0]], [0.5], [1, 2], "area_um2"),
    ],
)
def test_detections_that_do_not_fit_together_are_refused(xy, score, area, name):
    with pytest.raises(ValueError, match=f"{name}: expected finite"):
        Detections(np.array(xy), np.array(score), np.array(area))
