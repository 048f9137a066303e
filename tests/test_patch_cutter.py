"""Cutting patches: threads change nothing, marks far away neither, and images are kept to the pixel."""

import io
from pathlib import Path

import numpy as np
import shapely
from conftest import EXTRACT, MPP, ArraySlide, add_slide, contents, damage_tiles, draw_field, extract, save_tiff
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mitosis.annotations import Annotation, Label
from mitosis.cohort import SlideSource
from mitosis.geometry import Box
from mitosis.masks import draw_mask
from mitosis.patch_cutter import PatchCutter
from mitosis.slides import read_at_mpp

BOX = Box(64, 80, 128, 144)
FIELD = draw_field([(62.0, 100.0), (100.0, 110.0), (131.0, 90.0), (100.0, 150.0), (20.0, 20.0)])


def test_threads_write_the_same_bytes(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    add_slide(slides, "a", 4)
    one, three = (extract(slides, tmp_path / str(n), workers=n)["a"] for n in (1, 3))
    assert one == three
    assert len(one.patches) > 16
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_threads_leave_out_the_same_damaged_patches(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", FIELD)
    damage_tiles(path, 5, 10)
    one, four = (extract(path, tmp_path / str(n), workers=n, annotations=None)["a"] for n in (1, 4))
    assert one == four
    assert one.n_unreadable == 2
    assert contents(tmp_path / "1") == contents(tmp_path / "4")


points = st.tuples(st.floats(0, 256), st.floats(0, 256))


@given(st.lists(points, max_size=5), st.lists(points, max_size=2), st.sampled_from([0.25, 0.5]))
def test_marks_that_do_not_reach_a_patch_change_nothing(
    places: list[tuple[float, float]], outlined: list[tuple[float, float]], slide_mpp: float
) -> None:
    """The mask is the same as if all marks were drawn on all there is round the patch."""
    slide = ArraySlide(FIELD, mpp=slide_mpp)
    marks = [Annotation(x, y, Label.MITOTIC_FIGURE) for x, y in places]
    for x, y in outlined:
        outline = shapely.Polygon([(x, y), (x + 150, y + 3), (x + 3, y + 60)])
        marks.append(Annotation(x + 40, y + 20, Label.NON_MITOTIC_FIGURE, (outline,)))
    cutter = PatchCutter(slide, SlideSource(Path("a.png"), "a", "a"), Path("out"), EXTRACT, "", tuple(marks))
    ratio = MPP / slide_mpp
    box = Box(*(int(edge / ratio) for edge in BOX[:2]), *(int(edge / ratio) + 64 for edge in BOX[:2]))
    piece = cutter._look_at(("p", box, False))
    assert piece is not None
    around = box.grown(40)
    expected = draw_mask(marks, around, MPP, slide_mpp, read_at_mpp(slide, around, MPP))[40:-40, 40:-40]
    np.testing.assert_array_equal(piece.mask, expected)


def png_of(pixels: NDArray[np.uint8], size: int) -> bytes:
    """What is written of the first patch of a slide."""
    config = EXTRACT.model_copy(update={"size": size, "mpp": MPP})
    cutter = PatchCutter(ArraySlide(pixels), SlideSource(Path("a.png"), "a", "a"), Path("out"), config, "", ())
    piece = cutter._look_at(("p", Box(0, 0, size, size), False))
    assert piece is not None
    return piece.png


@given(st.integers(32, 50), st.integers(0, 5), st.sampled_from([1, 30, 256]))
def test_an_image_is_kept_to_the_pixel(size: int, seed: int, n_values: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, n_values, (60, 70, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(png_of(pixels, size))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(image), pixels[:size, :size])


def test_tissue_is_little_larger_than_others_write_it_and_glass_is_small() -> None:
    usual = io.BytesIO()
    Image.fromarray(FIELD).save(usual, "PNG", compress_level=1)
    assert len(png_of(FIELD, len(FIELD))) < 1.3 * len(usual.getvalue())
    assert len(png_of(np.full((256, 256, 3), 243, np.uint8), 256)) < 2000
