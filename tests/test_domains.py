"""Other scanners: masks follow to the pixel, places stay, and what is blank stays blank."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from mitosis.config import TrainConfig
from mitosis.domains import Donors, mix_amplitudes, resample, rescan, vary_colours, window_side
from mitosis.patches import BACKGROUND, MITOTIC
from mitosis.sampling import SAMPLERS, PatchPool

Image = NDArray[np.uint8]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def disc(side: int, x: float, y: float, radius: float) -> NDArray[np.uint8]:
    """1 where the centre of a pixel lies in a circle."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    return ((columns - x) ** 2 + (rows - y) ** 2 < radius**2).astype(np.uint8)


def spot(mask: NDArray[np.uint8], seed: int = 0) -> Image:
    """Dark where the mask is 1, on pale noisy tissue."""
    colour = np.where(mask[..., None] == 1, np.array([70, 50, 120]), np.array([205, 150, 190]))
    return np.asarray(colour + rng(seed).integers(-8, 9, colour.shape), np.uint8)


def tissue(colour: tuple[int, int, int], seed: int, side: int = 96) -> Image:
    """Stained all over, with structure, and far enough from black and white that nothing is cut off."""
    blocks = rng(seed).integers(-12, 13, (side // 8, side // 8, 1)).repeat(8, axis=0).repeat(8, axis=1)
    return np.asarray(np.array(colour) + blocks + rng(seed + 1).integers(-5, 6, (side, side, 3)), np.uint8)


def overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float((first & second).sum() / (first | second).sum())


# Resolution


@given(
    width=st.integers(77, 115), side=st.integers(90, 100), x=st.floats(25, 50), y=st.floats(25, 50), r=st.floats(8, 15)
)
@settings(deadline=None)
def test_mask_and_picture_follow_a_change_of_resolution(width: int, side: int, x: float, y: float, r: float) -> None:
    """Against the circle drawn anew at the other resolution."""
    mask = disc(width, x, y, r)
    image, moved = resample(spot(mask), mask, side)
    assert (image.shape, moved.shape) == ((side, side, 3), (side, side))
    scale = side / width
    expected = disc(side, x * scale, y * scale, r * scale)
    assert overlap(moved == 1, expected == 1) > 0.8
    assert np.abs(np.argwhere(moved).mean(axis=0) + 0.5 - np.array([y, x]) * scale).max() < 0.6
    assert overlap(image.mean(axis=2) < 130, moved == 1) > 0.85


@given(width=st.integers(1, 90), side=st.integers(1, 90), seed=st.integers(0, 99))
def test_a_resampled_mask_has_the_value_of_the_nearest_pixel(width: int, side: int, seed: int) -> None:
    mask = rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), (width, width))
    # In whole numbers, because the middle of a pixel may lie on the edge between two; then either is the nearest.
    twice = (2 * np.arange(side) + 1) * width
    nearest = twice // (2 * side)
    clear = twice % (2 * side) > 0
    got = resample(np.zeros((width, width, 3), np.uint8), mask, side)[1]
    np.testing.assert_array_equal(got[np.ix_(clear, clear)], mask[np.ix_(nearest, nearest)][np.ix_(clear, clear)])


def test_a_soft_mask_keeps_its_type_and_values_and_the_same_size_is_the_same_picture() -> None:
    soft = disc(60, 30, 30, 10) * np.float32(0.4)
    image = tissue((200, 140, 180), 0, 64)[:60, :60]
    moved = resample(image, soft, 50)[1]
    assert moved.dtype == np.float32
    assert set(np.unique(moved)) == {np.float32(0), np.float32(0.4)}
    assert all(a is b for a, b in zip(resample(image, soft, 60), (image, soft), strict=True))


def test_a_finer_or_coarser_picture_keeps_its_mean() -> None:
    image = tissue((200, 140, 180), 0)
    for side in (80, 88, 110, 120):
        changed = resample(image, np.zeros((96, 96), np.uint8), side)[0]
        assert np.abs(changed.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() < 1


def test_a_coarser_pixel_is_the_mean_of_its_area_and_finer_ones_lie_between_their_neighbours() -> None:
    image, mask = tissue((200, 140, 180), 0), np.zeros((96, 96), np.uint8)
    means = image.reshape(48, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(resample(image, mask, 48)[0] - means).max() <= 0.5
    ramp = np.broadcast_to(np.arange(0, 192, 4, np.uint8)[:, None, None], (48, 48, 3))
    finer = resample(np.ascontiguousarray(ramp), mask[:48, :48], 96)[0].astype(int)
    assert (np.diff(finer[1:-1], axis=0) == 2).all()


def test_what_is_cut_out_is_within_the_jitter_and_spread_over_it() -> None:
    stream = rng()
    sides = [window_side(192, 0.2, stream) for _ in range(2000)]
    assert (min(sides), max(sides)) == (154, 230)
    assert chisquare(np.histogram(sides, bins=7, range=(153.5, 230.5))[0]).pvalue > 1e-6
    assert {window_side(192, 0.0, stream) for _ in range(20)} == {192}
    assert window_side(1, 0.5, rng()) >= 1


# Donors


def test_donors_come_from_each_other_domain_equally_often_whatever_its_size() -> None:
    domains = ("A",) * 5 + ("B",) * 50 + ("C",) * 2
    donors, stream = Donors(domains, ("case",) * 57), rng()
    chosen = [donors.choose(0, stream) for _ in range(1000)]
    found = Counter(domains[row] for row in chosen)
    assert set(found) == {"B", "C"}
    assert chisquare([found["B"], found["C"]]).pvalue > 1e-3
    assert set(chosen) == set(range(5, 57))


def test_with_one_domain_a_donor_is_of_another_case_and_with_one_case_it_is_the_patch_itself() -> None:
    donors = Donors(("",) * 6, ("1", "1", "2", "2", "3", "3"))
    assert {donors.choose(2, rng(seed)) for seed in range(60)} == {0, 1, 4, 5}
    alone = Donors(("",) * 3, ("1",) * 3)
    assert [alone.choose(row, rng()) for row in range(3)] == [0, 1, 2]


# Amplitudes


@given(seed=st.integers(0, 99), share=st.floats(0, 1), beta=st.floats(0, 0.5), side=st.sampled_from([31, 32, 50]))
@settings(deadline=None)
def test_a_patch_that_is_its_own_donor_stays_as_it_is(seed: int, share: float, beta: float, side: int) -> None:
    image = rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    np.testing.assert_array_equal(mix_amplitudes(image, image.copy(), share, beta), image)
    other = rng(seed + 1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    np.testing.assert_array_equal(mix_amplitudes(image, other, 0.0, beta), image)


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.05])
def test_mean_colours_move_towards_those_of_the_donor_by_the_share(beta: float) -> None:
    image, donor = tissue((150, 100, 140), 0), tissue((120, 125, 110), 5)
    own, aim = image.mean(axis=(0, 1)), donor.mean(axis=(0, 1))
    for share in (0.25, 0.5, 1.0):
        mean = mix_amplitudes(image, donor, share, beta).mean(axis=(0, 1))
        np.testing.assert_allclose(mean, own + share * (aim - own), atol=0.51)


def test_slow_waves_take_amplitudes_and_keep_phases_and_the_others_keep_both() -> None:
    image, donor = tissue((150, 100, 140), 0), tissue((130, 115, 120), 5)
    mixed = mix_amplitudes(image, donor, 1.0, 0.05)
    before, after, aim = (np.fft.fft2(each.astype(float), axes=(0, 1)) for each in (image, mixed, donor))
    slow = np.abs(np.fft.fftfreq(96) * 96) <= int(0.05 * 96)
    block = slow[:, None] & slow
    strong = block[..., None] & (np.abs(before) > 2000)
    assert strong.sum() > 50
    assert np.abs(np.angle(after / before)[strong]).max() < 0.1
    limits = np.abs(before) / 2, np.abs(before) * 2
    expected = np.clip(np.abs(aim), *limits)
    expected[0, 0] = np.abs(aim[0, 0])
    np.testing.assert_allclose(np.abs(after)[strong], expected[strong], rtol=0.1)
    # What is left is the rounding to whole grey levels: white noise of 1/sqrt(12) a pixel.
    rest = np.abs(after - before)[~block]
    assert np.sqrt((rest**2).mean()) < 1.2 * 96 / np.sqrt(12)


def test_more_beta_changes_more() -> None:
    image, donor = tissue((150, 100, 140), 0), tissue((150, 100, 140), 5)
    changes = [np.abs(mix_amplitudes(image, donor, 1.0, beta) - image.astype(int)).mean() for beta in (0.01, 0.05, 0.1)]
    assert changes[0] < changes[1] < changes[2]


def test_glass_stays_glass_and_flat_tissue_stays_flat_whatever_the_donor() -> None:
    donor = spot(disc(64, 20, 40, 15))
    white, black = np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64, 3), np.uint8)
    for blank in (white, black):
        np.testing.assert_array_equal(mix_amplitudes(blank, donor, 1.0, 0.1), blank)
    flat = np.full((64, 64, 3), (200, 120, 170), np.uint8)
    assert mix_amplitudes(flat, donor, 1.0, 0.1).std(axis=(0, 1)).max() == 0
    half = flat.copy()
    half[:, :32] = 255
    mixed = mix_amplitudes(half, donor, 1.0, 0.0)
    assert (mixed[:, :32] == 255).all()
    assert (mixed[:, 32:] != half[:, 32:]).any()


# Colours and optics


def test_each_channel_changes_by_itself_and_keeps_its_order() -> None:
    levels = np.arange(256, dtype=np.uint8)
    grey = np.stack([levels] * 3, axis=-1)[np.newaxis]
    for seed in range(20):
        curves = vary_colours(grey, 0.3, rng(seed))[0].astype(int)
        assert (np.diff(curves, axis=0) >= 0).all()
        assert len({curve.tobytes() for curve in curves.T}) == 3
        image = rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        changed = vary_colours(image, 0.3, rng(seed))
        for channel in range(3):
            np.testing.assert_array_equal(changed[..., channel], curves[image[..., channel], channel])


def test_no_jitter_and_no_strength_are_no_change() -> None:
    image = tissue((200, 140, 180), 0)
    for seed in range(10):
        np.testing.assert_array_equal(vary_colours(image, 0.0, rng(seed)), image)
        np.testing.assert_array_equal(rescan(image, 0.0, rng(seed)), image)


@pytest.mark.parametrize("change", [vary_colours, rescan])
def test_more_is_more_and_the_same_draw_the_same_bytes(
    change: Callable[[Image, float, np.random.Generator], Image],
) -> None:
    image = spot(disc(96, 40, 50, 12))
    for seed in range(5):
        np.testing.assert_array_equal(change(image, 0.4, rng(seed)), change(image, 0.4, rng(seed)))
    means = [
        np.mean([np.abs(change(image, amount, rng(seed)) - image.astype(int)).mean() for seed in range(40)])
        for amount in (0.1, 0.25, 0.5)
    ]
    assert means[0] < means[1] < means[2]
    assert len({change(image, 0.5, rng(seed)).tobytes() for seed in range(40)}) > 30


def test_optics_leave_everything_in_its_place() -> None:
    mask = disc(96, 40, 50, 12)
    for seed in range(60):
        changed = rescan(spot(mask), 1.0, rng(seed))
        assert overlap(changed.mean(axis=2) < 130, mask == 1) > 0.9


def test_optics_blur_as_often_as_they_sharpen() -> None:
    """About a quarter of the scans is blurred and nothing else, and a quarter of those is not compressed either."""
    image = spot(disc(96, 40, 50, 12))
    contrast = image.astype(float).std(axis=(0, 1)).mean()
    ratios = [rescan(image, 1.0, rng(seed)).astype(float).std(axis=(0, 1)).mean() / contrast for seed in range(200)]
    assert np.mean(np.array(ratios) < 0.98) > 0.15
    assert np.mean(np.array(ratios) > 1.02) > 0.15


@pytest.mark.parametrize("value", [0, 127, 255])
def test_a_constant_patch_stays_nearly_constant(value: int) -> None:
    constant = np.full((64, 64, 3), value, np.uint8)
    for seed in range(30):
        assert rescan(constant, 1.0, rng(seed)).std(axis=(0, 1)).max() < 14
        assert vary_colours(constant, 0.5, rng(seed)).std(axis=(0, 1)).max() == 0


# Batches


def test_balanced_batches_show_three_domains_of_different_size_equally_often() -> None:
    sizes = {"A": 200, "B": 30, "C": 6}
    domains = tuple(name for name, n in sizes.items() for _ in range(n))
    pool = PatchPool(tuple(MITOTIC if row % 3 == 0 else BACKGROUND for row in range(236)), domains)
    config = TrainConfig(batch_size=12, sampler="balanced")
    shown: Counter[str] = Counter()
    for epoch in range(3):
        for batch in SAMPLERS["balanced"](pool, config, epoch):
            counts = Counter(domains[draw.row] for draw in batch)
            assert max(counts.values()) - min(counts.values()) <= 2
            shown += counts
    assert max(shown.values()) - min(shown.values()) <= 2
    assert sum(shown.values()) == 3 * 19 * 12
