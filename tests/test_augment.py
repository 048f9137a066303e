"""Augmentation: aligned, repeatable, safe on blank patches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mitosis.augment import augment, stain_jitter

ONE, NONE = np.ones(3), np.zeros(3)


def _spot(side: int = 96) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A dark disc off the middle on pale tissue, and its mask."""
    rows, columns = np.mgrid[:side, :side]
    mask = ((rows - 40) ** 2 + (columns - 56) ** 2 < 12**2).astype(np.uint8)
    image = np.where(mask[..., None] == 1, np.array([60, 40, 110]), np.array([230, 190, 215])).astype(np.uint8)
    return image, mask


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), strength=st.floats(0, 1))
def test_the_mask_stays_on_its_nucleus(seed: int, strength: float) -> None:
    image, mask = augment(*_spot(), strength=strength, seed=seed)
    assert image.shape == (96, 96, 3)
    assert set(np.unique(mask)) <= {0, 1}
    grey = image.mean(axis=2)
    dark = grey < (grey.min() + grey.max()) / 2
    overlap = (dark & (mask == 1)).sum() / (dark | (mask == 1)).sum()
    assert overlap > 0.8


@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_same_seed_same_bytes_other_seed_other_bytes(strength: float) -> None:
    first, again, other = (augment(*_spot(), strength=strength, seed=seed)[0] for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("value", [0, 127, 255])
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_a_constant_patch_stays_nearly_constant(value: int, strength: float) -> None:
    constant = np.full((64, 64, 3), value, dtype=np.uint8)
    for seed in range(30):
        image, mask = augment(constant, np.zeros((64, 64), dtype=np.uint8), strength=strength, seed=seed)
        assert image.std(axis=(0, 1)).max() < 14
        assert not mask.any()


def test_glass_stays_glass_under_stain_jitter() -> None:
    white = np.full((8, 8, 3), 255, dtype=np.uint8)
    assert (stain_jitter(white, np.full(3, 1.4), np.full(3, 0.1)) == 255).all()


def test_no_change_of_stain_is_no_change_of_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.abs(stain_jitter(image, ONE, NONE).astype(int) - image).max() <= 1


def test_more_haematoxylin_makes_nuclei_darker() -> None:
    image, mask = _spot()
    changed = stain_jitter(image, np.array([1.5, 1, 1]), NONE)
    assert changed[mask == 1].mean() < image[mask == 1].mean() - 5


def _change(strength: float) -> float:
    """Mean change of the grey levels of the spot's picture, beyond turns and mirrors, over 60 seeds."""
    image, mask = _spot()
    levels = np.sort(image.mean(axis=2), axis=None)
    changed = (augment(image, mask, strength, seed)[0].mean(axis=2) for seed in range(60))
    return float(np.mean([np.abs(np.sort(each, axis=None) - levels).mean() for each in changed]))


def test_strength_rises_with_the_number() -> None:
    light, middling, heavy = (_change(strength) for strength in (0.0, 0.5, 1.0))
    assert light < middling < heavy


def test_turns_and_mirrors_keep_every_pixel_of_the_mask() -> None:
    """The light pipeline moves pixels without a change of shape: the area stays to the pixel."""
    image, mask = _spot()
    assert {int(augment(image, mask, 0.0, seed)[1].sum()) for seed in range(40)} == {int(mask.sum())}


def test_the_centre_of_a_figure_moves_with_its_picture() -> None:
    image, mask = _spot()
    for seed in range(60):
        turned, moved = augment(image, mask, 1.0, seed)
        grey = turned.mean(axis=2)
        dark = grey < (grey.min() + grey.max()) / 2
        if dark.any() and moved.any():
            shift = np.argwhere(dark).mean(axis=0) - np.argwhere(moved == 1).mean(axis=0)
            assert np.abs(shift).max() <= 1.5


def test_soft_masks_stay_soft_between_their_bounds() -> None:
    image, mask = _spot()
    soft = mask.astype(np.float32) * 0.4
    for seed in range(20):
        moved = augment(image, soft, 1.0, seed)[1]
        assert moved.dtype == np.float32
        assert set(np.unique(moved)) <= {np.float32(0), np.float32(0.4)}
