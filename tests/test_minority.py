"""Synthetic figures: where they may lie, what they change, and that they lie between real ones."""

from dataclasses import replace
from itertools import combinations, pairwise, product
from multiprocessing.reduction import ForkingPickler

import cv2
import numpy as np
import pytest
from conftest import FIGURE, MPP, TISSUE, draw_field, random_places
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from mitosis.errors import PatchIndexError
from mitosis.masks import save_mask
from mitosis.minority import SIDE, Figure, FigureBank, _features, _stain_levels, interpolate, paste, upright
from mitosis.patches import PatchIndex
from mitosis.stain import DENSITY, STAINS

REACH = 3.5 / MPP
PALE, EOSIN_RICH, DARK = (235, 190, 215), (226, 90, 150), (170, 110, 165)
# Of TISSUE in the middle and FIGURE at the top, roughly; what exactly does not matter where only places are tested.
STAIN = np.array([0.2, 0.3])


def ellipse(long=7.0, short=4.0, angle=0.0, side=SIDE, row=32.0, column=32.0):
    """Bool [side, side]; `angle` in degrees from the vertical, half axes in px."""
    rows, columns = np.mgrid[:side, :side] - np.array([row, column])[:, None, None]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return ((rows * c + columns * s) / long) ** 2 + ((columns * c - rows * s) / short) ** 2 <= 1


def hook():
    """Bool [64, 64] that no turn and no mirror brings back onto itself."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[26:39, 30:34] = mask[36:39, 30:40] = True
    return mask


def noisy(shape, colour, seed=0):
    noise = np.random.default_rng(seed).integers(-8, 9, (*shape, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def make_figure(mask, tissue=TISSUE, stain=STAIN, seed=0, source=""):
    image = noisy((SIDE, SIDE), tissue, seed)
    image[mask > 0] = FIGURE
    return Figure(image, mask, MPP, stain, source)


def softened(mask):
    return np.clip(ndimage.gaussian_filter(mask.astype(np.float32), 1.5), 0, 1) * (ndimage.binary_dilation(mask))


def bounding(array):
    rows, columns = np.nonzero(array)
    return array[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def turned(array):
    """All eight turned and mirrored forms."""
    return [np.rot90(form, turns) for form in (array, array[::-1]) for turns in range(4)]


@st.composite
def scenes(draw):
    """Tissue with glass on the left, marks of all kinds, and a figure; most leave room, some do not."""
    height, width, glass = draw(st.integers(30, 110)), draw(st.integers(30, 110)), draw(st.just(0) | st.integers(4, 50))
    image = draw_field([], width=width, height=height, glass=glass, seed=draw(st.integers(0, 99)))
    mask = np.zeros((height, width), np.uint8)
    for value in draw(st.lists(st.sampled_from([1, 2, 255]), max_size=4)):
        row, column = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        mask[row : row + 5, column : column + 7] = value
    shape = ellipse(draw(st.floats(2, 14)), draw(st.floats(2, 6)), draw(st.floats(0, 180)))
    return image, mask, shape, glass


# ---- where a figure may lie, and what it changes


@given(scenes(), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_figure_lies_whole_on_unmarked_tissue_and_changes_nothing_else(scene, soft, seed):
    image, mask, shape, glass = scene
    figure = make_figure(softened(shape) if soft else shape)
    pasted = paste(image, mask, figure, np.random.default_rng(seed))
    if pasted is None:
        return
    new_image, new_mask = pasted
    changed = new_mask != mask
    assert any(np.array_equal(bounding(new_mask * changed), form) for form in turned(bounding(figure.mask)))
    assert np.isclose((new_mask * changed).sum(dtype=float), figure.mask.sum(dtype=float))
    assert new_mask.dtype == (np.float32 if soft else np.uint8)
    assert new_image.dtype == np.uint8
    reach = ndimage.distance_transform_edt(~changed) <= REACH + 1e-6
    assert not mask[reach].any()
    assert not reach[:, :glass].any()
    assert np.array_equal(new_image[~reach], image[~reach])
    assert (new_image[changed] != image[changed]).any()


def test_what_was_given_stays_as_it_was():
    image, mask = noisy((80, 80), TISSUE), np.zeros((80, 80), np.uint8)
    before = image.copy()
    paste(image, mask, make_figure(hook()), np.random.default_rng(0))
    assert np.array_equal(image, before)
    assert not mask.any()


def test_a_place_just_large_enough_is_found_and_one_that_is_a_pixel_too_small_is_none():
    figure = make_figure(ellipse(5, 5))
    side = 11 + 2 * int(REACH)
    field, rng = noisy((60, 60), TISSUE), np.random.default_rng(0)
    mask = np.full((60, 60), 255, np.uint8)
    mask[20 : 20 + side, 10 : 10 + side] = 0
    _, pasted = paste(field, mask, figure, rng)
    assert ndimage.center_of_mass(pasted == 1) == (20 + side // 2, 10 + side // 2)
    mask[20 + side - 1] = 2
    assert paste(field, mask, figure, rng) is None
    assert paste(field[:side, :side], np.zeros((side, side), np.uint8), figure, rng) is not None
    for height, width in ((side - 1, side), (side, side - 1), (3, 60), (60, 3)):
        assert paste(field[:height, :width], np.zeros((height, width), np.uint8), figure, rng) is None


@pytest.mark.parametrize("glass", [(255, 255, 255), (243, 241, 243), (0, 0, 0)])
def test_there_is_no_room_on_glass_nor_on_a_black_border(glass):
    field = np.full((80, 80, 3), glass, np.uint8)
    assert paste(field, np.zeros((80, 80), np.uint8), make_figure(hook()), np.random.default_rng(0)) is None


def test_every_turn_and_mirror_and_all_parts_of_the_tissue_come_up():
    field, mask, figure = noisy((100, 100), TISSUE), np.zeros((100, 100), np.uint8), make_figure(hook())
    masks = [paste(field, mask, figure, np.random.default_rng(seed))[1] for seed in range(120)]
    assert len({bounding(mask).tobytes() + bytes(bounding(mask).shape) for mask in masks}) == 8
    corners = {tuple(np.array(ndimage.center_of_mass(mask)) // 50) for mask in masks}
    assert corners == set(product((0, 1), repeat=2))


@pytest.mark.parametrize("soft", [False, True])
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(soft):
    field, mask = noisy((100, 100), TISSUE), np.zeros((100, 100), np.uint8)
    figure = make_figure(softened(hook()) if soft else hook())
    first, again, other = (paste(field, mask, figure, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert [part.tobytes() for part in first] == [part.tobytes() for part in again]
    assert first[1].tobytes() != other[1].tobytes()


def test_two_figures_can_follow_each_other_and_soft_values_stay():
    field, mask = noisy((120, 120), TISSUE), np.zeros((120, 120), np.uint8)
    mask[:4], mask[4:8] = 2, 255
    rng = np.random.default_rng(3)
    image, once = paste(field, mask, make_figure(softened(ellipse())), rng)
    _, twice = paste(image, once, make_figure(ellipse()), rng)
    assert twice.dtype == np.float32
    assert np.array_equal(twice[once > 0], once[once > 0])
    assert (twice == 1).sum() == (once == 1).sum() + ellipse().sum()


# ---- how it looks there


def paste_onto(colour, figure=None, seed=0):
    """The field before and after, the nucleus, and the cytoplasm that comes along whole."""
    field = noisy((90, 90), colour, seed=9)
    figure = figure or figure_of()
    image, mask = paste(field, np.zeros((90, 90), np.uint8), figure, np.random.default_rng(seed))
    away = ndimage.distance_transform_edt(mask == 0) * MPP
    return field, image, mask == 1, (away > 0) & (away <= 1)


def figure_of(tissue=TISSUE):
    """A figure whose stain is that of plain tissue, measured as the bank does."""
    return make_figure(
        ellipse(), tissue, _stain_levels(DENSITY[noisy((SIDE, SIDE), tissue)], np.ones((SIDE, SIDE), bool))
    )


def test_on_tissue_like_its_own_it_keeps_its_colours():
    _, image, nucleus, cytoplasm = paste_onto(TISSUE)
    assert np.abs(image[nucleus].mean(axis=0) - FIGURE).max() < 4
    assert np.abs(image[cytoplasm].mean(axis=0) - TISSUE).max() < 6


def stained(haematoxylin, eosin):
    """What such concentrations look like."""
    density = haematoxylin[..., None] * STAINS[0] + eosin[..., None] * STAINS[1]
    return np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8)


def amounts(pixels):
    """Mean concentrations of haematoxylin and eosin."""
    density = -np.log((np.asarray(pixels, float) + 1) / 256).reshape(-1, 3)
    return np.linalg.lstsq(STAINS.T, density.T, rcond=None)[0][:2].mean(axis=1)


def nucleated(side, haematoxylin=1.0, eosin=1.0):
    """Tissue with pale nuclei all over, stained so many times as strongly as usual."""
    rows, columns = np.mgrid[:side, :side] % 24
    nuclei = np.hypot(rows - 4, columns - 4) < 4
    return stained(np.where(nuclei, 0.5, 0.1) * haematoxylin, np.full((side, side), 0.4) * eosin)


@pytest.mark.parametrize(
    ("haematoxylin", "eosin", "factors"),
    [
        (1, 1, (1, 1)),
        (1, 2.25, (1, 1.5)),
        (1, 0.49, (1, 0.7)),
        (1.44, 1, (1.2, 1)),
        (0.64, 1.44, (0.8, 1.2)),
        (0.01, 1, (0.5, 1)),
        (1, 6, (1, 2)),
    ],
)
def test_each_stain_goes_half_way_to_that_of_the_tissue_and_is_at_most_doubled(haematoxylin, eosin, factors):
    crop, nucleus = nucleated(SIDE), ellipse()
    crop[nucleus] = stained(np.full(nucleus.sum(), 0.8), np.full(nucleus.sum(), 0.4))
    figure = Figure(crop, nucleus, MPP, _stain_levels(DENSITY[crop], ~nucleus))
    field = nucleated(96, haematoxylin, eosin)
    image, mask = paste(field, np.zeros((96, 96), np.uint8), figure, np.random.default_rng(0))
    assert np.allclose(amounts(image[mask == 1]) / (0.8, 0.4), factors, rtol=0.05)


def test_the_seam_is_a_soft_one():
    """From the nucleus outwards the tissue takes over bit by bit."""
    field = noisy((90, 90), EOSIN_RICH)
    image, mask = paste(field, np.zeros((90, 90), np.uint8), figure_of(PALE), np.random.default_rng(0))
    away = ndimage.distance_transform_edt(mask == 0) * MPP
    rings = [(away > low) & (away <= low + 0.75) for low in (0.25, 1.0, 1.75, 2.5, 3.25)]
    off = [np.abs(image[ring].astype(float) - EOSIN_RICH).mean() for ring in rings]
    assert all(inner > outer - 0.5 for inner, outer in pairwise(off))
    assert off[0] > off[2] + 5 > off[-1] + 5


def test_glass_beside_a_figure_does_not_come_along():
    figure = figure_of()
    image = figure.image.copy()
    image[~ndimage.binary_dilation(figure.mask, iterations=2)] = 246
    field, pasted, nucleus, _ = paste_onto(TISSUE, replace(figure, image=image))
    bright = pasted.min(axis=2).astype(int) - field.min(axis=2) > 40
    assert not (bright & (ndimage.distance_transform_edt(~nucleus) > 4)).any()


def test_it_comes_to_where_the_seam_shows_least():
    """Tissue like its own takes up a third of the field; far more than a third of the figures come there."""
    field = noisy((90, 210), DARK)
    field[:, 70:140] = noisy((90, 70), TISSUE)
    figure, mask = figure_of(), np.zeros((90, 210), np.uint8)
    columns = [
        ndimage.center_of_mass(paste(field, mask, figure, np.random.default_rng(seed))[1])[1] for seed in range(40)
    ]
    assert np.mean([75 < column < 135 for column in columns]) > 0.7


# ---- the bank


def index_of(index, folder, *patches):
    """An index of (mask, x in level-0 px, slide) on noisy tissue, or a given image instead of a mask."""
    rows = []
    for number, (mask, x, slide_id) in enumerate(patches):
        image = noisy(mask.shape, TISSUE, number)
        image[mask == 1] = FIGURE
        Image.fromarray(image).save(folder / f"{number}.png")
        save_mask(folder / f"{number}_mask.png", mask.astype(np.uint8))
        row = replace(index.patches[0], patch_id=str(number), slide_id=slide_id, x=float(x), y=0.0, on_grid=False)
        files = {"image": f"{number}.png", "mask": f"{number}_mask.png"}
        rows.append(replace(row, size=len(mask), px_mitotic=int((mask == 1).sum()), **files))
    return PatchIndex(folder, tuple(rows))


def discs(side, *places, radius=4.0):
    mask = np.zeros((side, side), np.uint8)
    for row, column in places:
        mask[ellipse(radius, radius, side=side, row=row, column=column)] = 1
    return mask


def where_cut(index, figure):
    """The patch that a figure was cut from, and its pixels there, bool [H, W]."""
    patch = next(patch for patch in index.patches if patch.patch_id == figure.source)
    image, mask = index.read_image(patch), index.read_mask(patch)
    pieces, n_pieces = ndimage.label(mask == 1)
    shown = [pieces == piece for piece in range(1, n_pieces + 1)]
    return patch, next(piece for piece in shown if np.array_equal(image[piece], figure.image[figure.mask]))


def test_every_figure_of_the_slides_is_in_the_bank_once(index):
    found = {}
    for figure in FigureBank.of(index).figures:
        patch, piece = where_cut(index, figure)
        assert not patch.on_grid
        centre = np.argwhere(piece).mean(axis=0)[::-1] + 0.5
        found.setdefault(patch.slide_id, []).append(centre * patch.mpp / patch.slide_mpp + (patch.x, patch.y))
    for slide_id in {patch.slide_id for patch in index.patches}:
        marks, centres = index.figures(slide_id), np.array(found[slide_id])
        assert len(marks) == len(centres)
        gaps = np.hypot(*(marks[:, None] - centres[None]).transpose(2, 0, 1)).min(axis=1)
        assert (gaps < 2).all()


def test_a_figure_of_the_bank_is_what_the_patch_shows_at_its_mark(index):
    for figure in FigureBank.of(index).figures:
        patch, piece = where_cut(index, figure)
        assert (figure.image.shape, figure.mask.shape, figure.mpp) == ((SIDE, SIDE, 3), (SIDE, SIDE), MPP)
        assert np.hypot(*(np.argwhere(figure.mask).mean(axis=0) - SIDE // 2)) < 1
        assert np.array_equal(bounding(piece), bounding(figure.mask))
        row, column = (np.argwhere(piece)[0] - np.argwhere(figure.mask)[0]).tolist()
        here = [slice(max(0, start), start + SIDE) for start in (row, column)]
        there = [slice(max(0, -start), patch.size - start) for start in (row, column)]
        assert np.array_equal(index.read_image(patch)[tuple(here)], figure.image[tuple(there)])


def test_the_stain_of_a_figure_is_that_of_its_tissue_not_its_own(index, tmp_path):
    with_figure = index_of(index, tmp_path, (discs(64, (32, 32), radius=6), 0, "A"))
    (figure,) = FigureBank.of(with_figure).figures
    assert np.allclose(figure.stain, figure_of(TISSUE).stain, atol=0.03)


def test_the_bank_is_read_only_and_goes_to_another_process(index):
    bank = FigureBank.of(index)
    for array in (bank.neighbours, *(getattr(bank.figures[0], name) for name in ("image", "mask", "stain"))):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    copy = ForkingPickler.loads(ForkingPickler.dumps(bank))
    assert len(copy) == len(bank) > 0
    assert np.array_equal(copy.neighbours, bank.neighbours)
    for mine, theirs in zip(bank.figures, copy.figures, strict=True):
        assert (mine.source, mine.mpp) == (theirs.source, theirs.mpp)
        assert all(np.array_equal(getattr(mine, name), getattr(theirs, name)) for name in ("image", "mask", "stain"))


def test_the_same_patches_give_the_same_bank(index):
    first, again = FigureBank.of(index), FigureBank.of(index)
    assert [figure.image.tobytes() for figure in first.figures] == [figure.image.tobytes() for figure in again.figures]
    assert np.array_equal(first.neighbours, again.neighbours)


def test_only_the_patches_passed_in_are_cut_and_tiles_of_the_grid_only_where_there_is_nothing_else(index):
    one_case = index.where(lambda patch: patch.case_id == "B")
    assert {figure.source.split("/")[0] for figure in FigureBank.of(one_case).figures} == {"B01"}
    tiles = index.where(lambda patch: patch.on_grid)
    on_grid = {patch.patch_id for patch in tiles.patches}
    assert {figure.source for figure in FigureBank.of(tiles).figures} <= on_grid
    assert 0 < len(FigureBank.of(tiles)) <= len(FigureBank.of(index))
    assert len(FigureBank.of(index.where(lambda patch: not patch.px_mitotic))) == 0


@pytest.mark.parametrize(("gap_um", "n_figures"), [(2, 1), (5, 1), (7.5, 2), (12, 2)])
def test_plates_within_a_telophase_distance_are_one_figure(index, tmp_path, gap_um, n_figures):
    mask = discs(128, (64, 40), (64, 40 + 8 + 1 + gap_um / MPP))
    bank = FigureBank.of(index_of(index, tmp_path, (mask, 0, "A")))
    assert len(bank) == n_figures
    assert sum(int(figure.mask.sum()) for figure in bank.figures) == (mask == 1).sum()


def test_overlapping_patches_give_a_figure_once_and_other_slides_another(index, tmp_path):
    ratio = index.patches[0].mpp / index.patches[0].slide_mpp
    here, shifted = discs(96, (48, 48)), discs(96, (48, 38))
    patches = [(here, 0, "A"), (shifted, 10 * ratio, "A"), (here, 0, "B"), (here, 40 * ratio, "A")]
    bank = FigureBank.of(index_of(index, tmp_path, *patches))
    assert sorted(figure.source for figure in bank.figures) == ["0", "2", "3"]


@pytest.mark.parametrize(("column", "kept"), [(0, False), (3, False), (12, False), (17, True), (92, False)])
def test_a_figure_that_may_reach_over_the_border_is_left_out(index, tmp_path, column, kept):
    assert len(FigureBank.of(index_of(index, tmp_path, (discs(96, (48, column)), 0, "A")))) == kept


def test_a_figure_too_large_for_the_crop_and_one_of_an_unclear_nucleus_are_left_out(index, tmp_path):
    large, unclear, ringed = discs(128, (64, 64), radius=26), discs(128, (64, 64)), discs(128, (64, 64))
    away = ndimage.distance_transform_edt(unclear == 0) * MPP
    unclear[(away > 0) & (away <= 5)] = 255
    ringed[(away > 0) & (away <= 1)] = 255
    index = index_of(index, tmp_path, (large, 0, "A"), (unclear, 0, "B"), (ringed, 0, "C"))
    assert [figure.source for figure in FigureBank.of(index).figures] == ["2"]


# ---- between two figures


def many_figures(n=12, seed=0):
    """Figures of different length, breadth and direction, and of different tissue."""
    rng = np.random.default_rng(seed)
    shapes = [ellipse(rng.uniform(6, 12), rng.uniform(3, 5.5), rng.uniform(0, 180)) for _ in range(n)]
    tissues = rng.integers((200, 140, 170), (240, 190, 215), (n, 3))
    return tuple(
        make_figure(shape, tissue, rng.uniform(0.2, 0.4, 2), k, str(k))
        for k, (shape, tissue) in enumerate(zip(shapes, tissues, strict=True))
    )


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_interpolated_figure_lies_between_its_parents(seed):
    figures = many_figures()
    bank = FigureBank(figures)
    between = interpolate(bank, np.random.default_rng(seed))
    first, second = map(int, between.source.split(" + "))
    assert second in bank.neighbours[first]
    a, b = upright(figures[first]), upright(figures[second])
    assert between.mask.dtype == np.float32
    assert (between.mask >= np.minimum(a.mask, b.mask)).all()
    assert (between.mask <= np.maximum(a.mask, b.mask)).all()
    assert len(np.unique(between.mask.round(5))) <= 4
    assert (between.image >= np.minimum(a.image, b.image)).all()
    assert (between.image <= np.maximum(a.image, b.image)).all()
    assert (between.stain >= np.minimum(a.stain, b.stain)).all()
    assert (between.stain <= np.maximum(a.stain, b.stain)).all()


def test_the_share_of_the_parents_is_one_and_takes_all_values():
    figures = many_figures()
    bank, shares = FigureBank(figures), []
    for seed in range(60):
        between = interpolate(bank, np.random.default_rng(seed))
        a, b = (upright(figures[int(name)]) for name in between.source.split(" + "))
        only_b = b.mask & ~a.mask
        if not only_b.any():
            continue
        share = float(between.mask[only_b].mean())
        shares.append(share)
        of_a, of_b = (-np.log((part.image.astype(float) + 1) / 256) for part in (a, b))
        expected = 256 * np.exp(-(1 - share) * of_a - share * of_b) - 1
        assert np.abs(between.image - expected).max() < 0.51
    assert min(shares) < 0.15
    assert max(shares) > 0.85


def test_interpolation_is_repeatable_and_varied():
    bank = FigureBank(many_figures())
    made = [interpolate(bank, np.random.default_rng(seed)).image.tobytes() for seed in (*range(20), *range(20))]
    assert made[:20] == made[20:]
    assert len(set(made)) == 20


@pytest.mark.parametrize("n", [2, 3, 5, 6, 7, 40])
def test_neighbours_are_the_nearest_of_all(n):
    figures = many_figures(n)
    features, bank = _features(figures), FigureBank(figures)
    distance = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    k = min(5, n - 1)
    assert bank.neighbours.shape == (n, k)
    assert np.allclose(np.take_along_axis(distance, bank.neighbours, axis=1), np.sort(distance, axis=1)[:, :k])
    assert all(len({number, *row}) == k + 1 for number, row in enumerate(bank.neighbours.tolist()))


def test_a_figure_is_never_its_own_neighbour_even_among_copies():
    bank = FigureBank(many_figures(1) * 9)
    assert all(len({number, *row}) == 6 for number, row in enumerate(bank.neighbours.tolist()))


def test_a_turned_figure_is_nearer_to_itself_than_to_others():
    figures = many_figures(8)
    copies = [replace(f, image=np.rot90(f.image[::-1]), mask=np.rot90(f.mask[::-1])) for f in figures]
    bank = FigureBank((*figures, *copies))
    assert np.mean(bank.neighbours[:8, 0] == np.arange(8, 16)) > 0.7


@pytest.mark.parametrize("n", [0, 1])
def test_interpolation_between_fewer_than_two_figures_is_refused_in_a_sentence(n):
    with pytest.raises(PatchIndexError, match=rf"two whole figures.* not {n}\."):
        interpolate(FigureBank(many_figures(n)), np.random.default_rng(0))


@given(angle=st.floats(0, 180), long=st.floats(9, 14), short=st.floats(4, 5), row=st.floats(29, 35))
@settings(max_examples=40, deadline=None)
def test_upright_turns_the_long_axis_up_and_keeps_the_area(angle, long, short, row):
    mask = ellipse(long, short, angle, row=row)
    result = upright(make_figure(mask))
    assert result.mask.dtype == bool
    assert abs(int(result.mask.sum()) - int(mask.sum())) < 0.12 * mask.sum()
    places = np.argwhere(result.mask)
    assert np.abs(places.mean(axis=0) - SIDE // 2).max() < 0.5
    axis = np.linalg.eigh(np.cov(places.T))[1][:, 1]
    assert abs(axis[0]) > np.cos(np.radians(8))
    assert (ellipse(long, short) & result.mask).sum() > 0.8 * mask.sum()
    dark = result.image[..., 0] < (TISSUE[0] + FIGURE[0]) / 2
    assert (dark & result.mask).sum() > 0.9 * (dark | result.mask).sum()


def test_every_turned_and_mirrored_form_of_a_figure_stands_the_same_way():
    shape = cv2.dilate(hook().astype(np.uint8), np.ones((2, 2), np.uint8)) > 0
    forms = [upright(make_figure(np.ascontiguousarray(form))).mask for form in turned(shape)]
    for one, other in combinations(forms, 2):
        assert (one & other).sum() > 0.85 * (one | other).sum()


def test_a_soft_figure_can_be_turned_upright_and_stays_soft():
    soft = softened(ellipse(10, 4, 30))
    result = upright(make_figure(soft)).mask
    assert result.dtype == np.float32
    assert 0 <= result.min() < 0.3 < 0.9 < result.max() <= 1
    assert abs(float(result.sum() - soft.sum())) < 0.05 * soft.sum()


def test_what_was_interpolated_can_be_pasted(index):
    bank, rng = FigureBank.of(index), np.random.default_rng(1)
    field = draw_field(random_places(3, 4, 128, 128), width=128, height=128)
    for _ in range(10):
        between = interpolate(bank, rng)
        image, mask = paste(field, np.zeros((128, 128), np.uint8), between, rng)
        assert mask.dtype == np.float32
        assert np.isclose(mask.sum(), between.mask.sum(), rtol=1e-5)
        assert (image != field).any()
