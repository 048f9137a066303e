"""Stain levels: what they measure, and that a slide brought to the usual ones looks like the others."""

import numpy as np
import pytest
from conftest import FIGURE, MPP, ArraySlide, draw_field, random_places
from hypothesis import given
from hypothesis import strategies as st

from mitosis.stain import DENSITY, USUAL, StainLevels, measure_stain
from mitosis.tissue import find_tissue


def stained(image, strength):
    """The image with all densities times `strength`."""
    return np.clip(np.rint(256 * np.exp(-DENSITY[image] * strength) - 1), 0, 255).astype(np.uint8)


def measure(image, mpp=MPP):
    slide = ArraySlide(image)
    return measure_stain(slide, find_tissue(slide), mpp)


def field(strength=1.0, glass=0):
    """Noisy tissue with dark nuclei, of about the usual colours at strength 1."""
    spots = draw_field(random_places(30, seed=1, apart=16))
    image = np.full(spots.shape, (205, 112, 150), np.int16)
    image[(spots == FIGURE).all(axis=2)] = (122, 44, 84)
    image += np.random.default_rng(0).integers(-10, 11, image.shape, dtype=np.int16)
    image[:, :glass] = 246
    return stained(image.astype(np.uint8), strength)


def test_levels_are_percentiles_of_the_density_of_tissue():
    image = field(glass=100)
    density = DENSITY[image.reshape(-1, 3)]
    density = density[density.mean(axis=1) > 0.1]
    levels = measure(image)
    np.testing.assert_allclose(levels.tissue, np.percentile(density, 50, axis=0), atol=0.01)
    np.testing.assert_allclose(levels.nuclei, np.percentile(density, 98, axis=0), atol=0.02)


@pytest.mark.parametrize("strength", [0.7, 1.4])
def test_slides_of_other_strength_look_alike_once_normalised(strength):
    one, other = field(), field(strength)
    before = np.abs(one.astype(int) - other).mean()
    normalised = [measure(image).normalise(image).astype(int) for image in (one, other)]
    assert before > 15
    assert np.abs(normalised[0] - normalised[1]).mean() < 3


def test_normalised_tissue_has_the_usual_levels():
    image = field(1.3)
    again = measure(measure(image).normalise(image))
    np.testing.assert_allclose(again.tissue, USUAL.tissue, atol=0.03)
    np.testing.assert_allclose(again.nuclei, USUAL.nuclei, atol=0.06)


level = st.floats(0, 5)
vectors = st.tuples(level, level, level)


@given(tissue=vectors, nuclei=vectors)
def test_white_stays_white_and_darker_stays_darker(tissue, nuclei):
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)[None]
    changed = StainLevels(tissue, nuclei).normalise(ramp)[0].astype(int)
    assert (changed[255] == 255).all()
    assert (np.diff(changed, axis=0) >= 0).all()


def test_the_usual_levels_change_nothing():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(USUAL.normalise(image), image)


def test_a_slide_with_hardly_a_nucleus_is_not_blown_up():
    levels = StainLevels((0.2, 0.8, 0.5), (0.21, 0.82, 0.51))
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)[None]
    stretched = np.diff(DENSITY[levels.normalise(ramp)[0]], axis=0)[40:] / np.diff(DENSITY)[40:, None]
    assert np.median(stretched) < 2.1


def test_a_slide_without_tissue_has_the_usual_levels():
    assert measure(np.full((256, 256, 3), 250, np.uint8)) == USUAL


@given(tissue=vectors, nuclei=vectors)
def test_what_is_written_reads_back_to_three_decimals(tissue, nuclei):
    levels = StainLevels(tissue, nuclei)
    assert str(StainLevels.parse(str(levels))) == str(levels)


@pytest.mark.parametrize("text", ["", "1 2 3", "a b c d e f", "1 2 3 4 5 nan"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"six numbers|could not convert"):
        StainLevels.parse(text)


def test_measured_levels_are_those_that_are_written():
    levels = measure(field())
    assert StainLevels.parse(str(levels)) == levels


def test_of_a_big_slide_blocks_from_all_over_are_read_and_no_more_than_64(monkeypatch):
    read = []

    def spy(_slide, box, _mpp):
        read.append(box)
        return np.full((*box.size[::-1], 3), 120, np.uint8)

    monkeypatch.setattr("mitosis.stain.read_at_mpp", spy)
    slide = ArraySlide(np.full((3000, 3000, 3), (200, 120, 170), np.uint8))
    measure_stain(slide, find_tissue(slide), MPP)
    assert len(read) == 64
    assert min(box.y0 for box in read) == 0
    assert max(box.y1 for box in read) >= 3000
