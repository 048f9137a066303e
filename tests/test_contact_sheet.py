"""The contact sheet: every crop is shown as it is and with the outlines of its mask, for any mask and any caption."""

import numpy as np
import pytest
from conftest import draw_field
from PIL import Image

from mitosis.contact_sheet import CAPTION, CROP, GAP, HEAD, MARGIN, OUTLINES, draw_contact_sheet
from mitosis.errors import OutputError

COLOURS = {name: tuple(bytes.fromhex(colour[1:])) for name, (colour, _) in OUTLINES.items()}
ROW = CROP + CAPTION + MARGIN


def crops(n, side=64):
    return np.stack([draw_field([(side / 2, side / 2)], width=side, height=side, seed=seed) for seed in range(n)])


def masks_of(*values, side=64, dtype=np.uint8):
    """One mask for each value, which fills a square in the middle."""
    masks = np.zeros((len(values), side, side), dtype)
    for mask, value in zip(masks, values, strict=True):
        mask[20:44, 20:44] = value
    return masks


def draw(folder, images, masks, captions=None, title="title"):
    path = folder / "sheet.png"
    draw_contact_sheet(path, images, masks, captions or ["caption"] * len(images), title)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def pair(sheet, column=0, row=0):
    """The plain and the outlined crop at a place of the grid."""
    left, top = MARGIN + column * (2 * CROP + GAP + MARGIN), HEAD + row * ROW
    plain = sheet[top : top + CROP, left : left + CROP]
    return plain, sheet[top : top + CROP, left + CROP + GAP : left + 2 * CROP + GAP]


def n_pixels(picture, name):
    return int((abs(picture - COLOURS[name]).max(axis=2) < 60).sum())


@pytest.mark.parametrize(("value", "name"), [(1, "mitotic figure"), (2, "look-alike"), (255, "ignored")])
def test_each_class_has_a_thin_outline_of_its_own_colour_beside_the_plain_crop(tmp_path, value, name):
    plain, outlined = pair(draw(tmp_path, crops(1), masks_of(value)))
    assert n_pixels(plain, name) == 0
    assert 200 < n_pixels(outlined, name) < 4 * 96 * 3
    others = [other for other in OUTLINES if other != name]
    assert [n_pixels(outlined, other) for other in others] == [0, 0]
    changed = abs(plain - outlined).max(axis=2) > 30
    rows, columns = np.nonzero(changed)
    scale = CROP / 64
    for places in (rows, columns):
        assert abs(places.min() - 20 * scale) <= 3
        assert abs(places.max() - 44 * scale) <= 3
    assert changed.mean() < 0.03


def test_both_crops_show_the_image(tmp_path):
    images = crops(1, CROP)
    plain, outlined = pair(draw(tmp_path, images, np.zeros((1, CROP, CROP), np.uint8)))
    assert np.array_equal(plain, images[0])
    assert np.array_equal(plain, outlined)


@pytest.mark.parametrize(("value", "drawn"), [(0.3, False), (0.49, False), (0.51, True), (0.8, True)])
def test_soft_masks_are_outlined_where_a_figure_is_as_likely_as_not(tmp_path, value, drawn):
    _, outlined = pair(draw(tmp_path, crops(1), masks_of(value, dtype=np.float32)))
    assert bool(n_pixels(outlined, "mitotic figure")) == drawn


def test_a_soft_mask_keeps_its_look_alikes_and_ignored_pixels_apart(tmp_path):
    masks = masks_of(0.7, dtype=np.float32)
    masks[0, 4:14, 4:14], masks[0, 4:14, 50:60] = 2, 255
    plain, outlined = pair(draw(tmp_path, crops(1), masks))
    assert all(n_pixels(outlined, name) > 30 for name in OUTLINES)
    corner = np.s_[: 64 * CROP // 256, : 64 * CROP // 256]
    assert n_pixels(outlined[corner], "mitotic figure") == 0
    assert not any(n_pixels(plain, name) for name in OUTLINES)


def test_the_inner_edge_of_an_ignored_ring_is_left_to_the_nucleus(tmp_path):
    ring = masks_of(255)
    ring[0, 26:38, 26:38] = 1
    _, outlined = pair(draw(tmp_path, crops(1), ring))
    inner = outlined[24 * 4 : 40 * 4, 24 * 4 : 40 * 4]
    assert n_pixels(inner, "mitotic figure") > 60
    assert n_pixels(inner, "ignored") == 0


def test_a_figure_that_the_edge_cuts_has_a_closed_outline(tmp_path):
    masks = np.zeros((1, 64, 64), np.uint8)
    masks[0, 20:44, :16] = 1
    _, outlined = pair(draw(tmp_path, crops(1), masks))
    assert n_pixels(outlined[24 * 4 : 40 * 4, :3], "mitotic figure") > 30


@pytest.mark.parametrize(("n", "size"), [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (4, (3, 2)), (7, (3, 3))])
def test_the_grid_grows_row_by_row_and_every_crop_is_there(tmp_path, n, size):
    sheet = draw(tmp_path, crops(n), masks_of(*[1] * n))
    assert sheet.shape == (HEAD + size[1] * ROW, MARGIN + size[0] * (2 * CROP + GAP + MARGIN), 3)
    for number in range(size[0] * size[1]):
        _, outlined = pair(sheet, number % size[0], number // size[0])
        assert bool(n_pixels(outlined, "mitotic figure")) == (number < n)


def test_the_legend_names_all_colours_on_every_sheet(tmp_path):
    head = draw(tmp_path, crops(1), masks_of(0))[:HEAD]
    assert all(n_pixels(head, name) > 15 for name in OUTLINES if name != "ignored")


def test_captions_stand_under_their_crops(tmp_path):
    with_caption = draw(tmp_path, crops(2), masks_of(1, 1), ["", "pasted"])
    without = draw(tmp_path, crops(2), masks_of(1, 1), ["", " "])
    rows, columns = np.nonzero((with_caption != without).any(axis=2))
    assert rows.min() >= HEAD + CROP
    assert columns.min() >= MARGIN + 2 * CROP + GAP


@pytest.mark.parametrize("text", ["", "$x_1$ 100 % \\frac", "a\nb", "字 🧬", "long " * 60, "mitotic · repeat 2"])
def test_any_caption_and_title_is_drawn_without_a_warning(tmp_path, text):
    assert draw(tmp_path, crops(2), masks_of(1, 2), [text, text], text).std() > 0


def test_crops_need_not_be_square(tmp_path):
    sheet = draw(tmp_path, crops(1)[:, :32], masks_of(1)[:, :32])
    assert sheet.shape[0] == HEAD + CROP // 2 + CAPTION + MARGIN


def test_the_same_crops_give_the_same_bytes_and_other_ones_others(tmp_path):
    for name, value in (("a", 1), ("b", 1), ("c", 2)):
        draw_contact_sheet(tmp_path / f"{name}.png", crops(1), masks_of(value), ["caption"], "title")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(("n_images", "n_masks", "n_captions"), [(0, 0, 0), (2, 1, 2), (2, 2, 1), (1, 1, 2)])
def test_what_does_not_go_together_is_refused_and_nothing_is_written(tmp_path, n_images, n_masks, n_captions):
    images, masks = crops(3)[:n_images], masks_of(1, 1, 1)[:n_masks]
    with pytest.raises(ValueError, match=f"N captions .* got .* and {n_captions}"):
        draw_contact_sheet(tmp_path / "sheet.png", images, masks, ["caption"] * n_captions, "title")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        draw_contact_sheet(tmp_path / "nowhere" / "sheet.png", crops(1), masks_of(1), ["caption"], "title")
