"""Dataset: an item hangs on (seed, epoch, row, repeat) alone, and crops of figures hold figures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import MPP
from PIL import Image

from mitosis.config import NetworkConfig, TrainConfig
from mitosis.dataset import PatchDataset
from mitosis.errors import PatchIndexError
from mitosis.loading import load_batches
from mitosis.masks import save_mask
from mitosis.minority import FigureBank
from mitosis.patches import Patch, PatchIndex
from mitosis.sampling import Draw
from mitosis.stain import StainLevels

CONFIG = TrainConfig(crop=32, batch_size=4, seed=3)
SCANNERS = {"resolution_jitter": 0.2, "fourier_share": 0.8, "colour_jitter": 0.1, "scanner_jitter": 0.8}
RAW = {n: NetworkConfig(classes=n, normalise_stain=False) for n in (2, 3)}


def items(index, draws, workers=0, config=CONFIG, classes=2):
    """(image, mask) arrays of each draw, loaded in batches of three."""
    batches = [draws[start : start + 3] for start in range(0, len(draws), 3)]
    loaded = load_batches(PatchDataset(index, config, RAW[classes]), batches, workers)
    return [pair for images, masks in loaded for pair in zip(images.numpy(), masks.numpy(), strict=True)]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def figure_rows(index):
    return [row for row, patch in enumerate(index.patches) if patch.n_mitotic]


def test_batches_come_in_order_with_the_promised_types(index):
    dataset = PatchDataset(index, CONFIG, RAW[2])
    batches = [[Draw(5, 0, 0), Draw(1, 0, 0)], [Draw(7, 0, 1)], [Draw(5, 0, 0)]]
    loaded = list(load_batches(dataset, batches, 0))
    assert [len(images) for images, _ in loaded] == [2, 1, 1]
    for batch, (images, masks) in zip(batches, loaded, strict=True):
        assert (images.dtype, images.shape[1:]) == (torch.uint8, (32, 32, 3))
        assert (masks.dtype, masks.shape[1:]) == (torch.float32, (32, 32))
        for draw, image, mask in zip(batch, images, masks, strict=True):
            expected = dataset[draw]
            assert torch.equal(image, expected[0])
            assert torch.equal(mask, expected[1])
    assert len(dataset) == len(index.patches)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("settings", [{}, SCANNERS], ids=["default", "scanners"])
def test_items_are_the_same_for_any_number_of_workers_and_never_repeat(index, settings):
    """albumentations 2.0.8 by itself repeats one random stream in each worker and each epoch."""
    config = CONFIG.model_copy(update=settings)
    rows = [*figure_rows(index)[:4], len(index.patches) - 1, len(index.patches) - 2]
    draws = [Draw(row, epoch, repeat) for epoch in (0, 1) for repeat in (0, 1) for row in rows]
    alone, *others = (items(index, draws, workers, config) for workers in (0, 1, 2, 4))
    assert same([image for image, _ in alone], [image for image, _ in items(index, draws, config=config)])
    for loaded in others:
        assert all(same(pair, expected) for pair, expected in zip(loaded, alone, strict=True))
    assert len({image.tobytes() for image, _ in alone}) == len(draws)


def test_another_seed_is_another_item(index):
    draws = [Draw(row, 0, 0) for row in range(6)]
    other = items(index, draws, config=CONFIG.model_copy(update={"seed": 4}))
    assert all(not np.array_equal(a, b) for (a, _), (b, _) in zip(items(index, draws), other, strict=True))


@pytest.fixture
def no_augmentation(monkeypatch):
    monkeypatch.setattr("mitosis.dataset.augment", lambda image, mask, *_: (image, mask))


@pytest.mark.usefixtures("no_augmentation")
def test_crops_of_a_patch_with_a_figure_always_hold_figure_pixels(index):
    rows = [row for row in figure_rows(index) if index.patches[row].px_mitotic]
    draws = [Draw(row, epoch, 0) for row in rows for epoch in range(4)]
    assert len(draws) > 80
    assert all((mask == 1).any() for _, mask in items(index, draws))


def test_nearly_all_still_do_after_augmentation(index):
    rows = [row for row in figure_rows(index) if index.patches[row].px_mitotic > 20]
    held = [(mask == 1).any() for _, mask in items(index, [Draw(row, epoch, 0) for row in rows for epoch in range(2)])]
    assert np.mean(held) > 0.97


@pytest.mark.usefixtures("no_augmentation")
def test_a_crop_is_a_place_of_the_patch_with_the_mask_of_that_place(index):
    row = figure_rows(index)[0]
    whole, mask = index.read_image(index.patches[row]), index.read_mask(index.patches[row])
    places = set()
    for image, crop_mask in items(index, [Draw(row, epoch, 0) for epoch in range(12)], classes=3):
        fits = [
            (top, left)
            for top in range(33)
            for left in range(33)
            if np.array_equal(whole[top : top + 32, left : left + 32], image)
        ]
        assert len(fits) == 1
        top, left = fits[0]
        np.testing.assert_array_equal(mask[top : top + 32, left : left + 32], crop_mask)
        places.add(fits[0])
    assert len(places) > 6


def _index_of_one(folder, mask):
    """An index of a single patch with that mask."""
    size = len(mask)
    Image.fromarray(np.full((size, size, 3), 200, np.uint8)).save(folder / "i.png")
    save_mask(folder / "m.png", mask)
    n = [int((mask == value).sum()) for value in (1, 2, 255)]
    place = {"x": 0.0, "y": 0.0, "size": size, "mpp": MPP, "slide_mpp": MPP, "on_grid": True}
    names = {"patch_id": "p", "slide_id": "s", "case_id": "c", "domain": "", "split": "train", "source_sha256": ""}
    counts = {"n_mitotic": min(n[0], 1), "n_non_mitotic": min(n[1], 1)}
    pixels = {"px_mitotic": n[0], "px_non_mitotic": n[1], "px_ignore": n[2]}
    patch = Patch(kind="mitotic", image="i.png", mask="m.png", **place, **names, **counts, **pixels)
    return PatchIndex(folder, (patch,))


@pytest.mark.usefixtures("no_augmentation")
@pytest.mark.parametrize("corner", [(0, 0), (0, 63), (63, 0), (63, 63), (31, 0)])
def test_a_figure_in_the_very_corner_is_held_too(tmp_path, corner):
    mask = np.zeros((64, 64), np.uint8)
    mask[corner] = 1
    index = _index_of_one(tmp_path, mask)
    assert all((mask == 1).sum() == 1 for _, mask in items(index, [Draw(0, epoch, 0) for epoch in range(8)]))


@pytest.mark.usefixtures("no_augmentation")
def test_with_room_a_figure_does_not_stand_at_the_edge_of_its_crop(tmp_path):
    mask = np.zeros((96, 96), np.uint8)
    mask[40, 50] = 1
    draws = [Draw(0, epoch, 0) for epoch in range(40)]
    places = [np.argwhere(mask == 1)[0] for _, mask in items(_index_of_one(tmp_path, mask), draws)]
    assert np.min(places) >= 8
    assert np.max(places) < 32 - 8 + 1
    assert np.ptp(places, axis=0).min() > 8


@pytest.mark.usefixtures("no_augmentation")
@pytest.mark.parametrize(("classes", "expected"), [(2, {0, 1, 255}), (3, {0, 1, 2, 255})])
def test_with_two_classes_a_look_alike_is_background(tmp_path, classes, expected):
    mask = np.zeros((32, 32), np.uint8)
    mask[:8], mask[8:16], mask[16:20] = 1, 2, 255
    ((_, got),) = items(_index_of_one(tmp_path, mask), [Draw(0, 0, 0)], classes=classes)
    assert set(np.unique(got).tolist()) == expected
    np.testing.assert_array_equal(got, np.where(mask == 2, 0, mask) if classes == 2 else mask)


def strengths(index, draws, monkeypatch, **changes):
    """The strength with which each draw is augmented."""
    chosen = []

    def spy(image, mask, strength, _seed):
        chosen.append(round(strength, 6))
        return image, mask

    monkeypatch.setattr("mitosis.dataset.augment", spy)
    items(index, draws, config=CONFIG.model_copy(update=changes))
    return chosen


@pytest.mark.usefixtures("no_augmentation")
def test_the_network_sees_the_slide_at_the_usual_stain_if_the_settings_say_so(index):
    draw = Draw(figure_rows(index)[0], 0, 0)
    raw = PatchDataset(index, CONFIG, RAW[2]).make(draw)
    normalised = PatchDataset(index, CONFIG, NetworkConfig()).make(draw)
    levels = StainLevels.parse(index.patches[draw.row].stain)
    np.testing.assert_array_equal(normalised.image, levels.normalise(raw.image))
    assert (normalised.image != raw.image).any()
    np.testing.assert_array_equal(normalised.mask, raw.mask)


def test_figures_are_augmented_more_than_others(index, monkeypatch):
    draws = [Draw(row, 0, 0) for row in range(len(index.patches))]
    chosen = strengths(index, draws, monkeypatch, augment_figure=0.7, augment_others=0.2)
    assert chosen == [0.7 if patch.n_mitotic else 0.2 for patch in index.patches]


def test_each_repeat_is_augmented_more_up_to_the_heaviest(index, monkeypatch):
    draws = [Draw(figure_rows(index)[0], 0, repeat) for repeat in range(6)]
    chosen = strengths(index, draws, monkeypatch, augment_figure=0.5, augment_per_repeat=0.15)
    assert chosen == [0.5, 0.65, 0.8, 0.95, 1.0, 1.0]


@pytest.mark.usefixtures("no_augmentation")
def test_an_epoch_never_shows_a_figure_twice_at_one_place(index):
    for row in figure_rows(index)[:3]:
        shown = items(index, [Draw(row, 0, repeat) for repeat in range(30)])
        assert len({image.tobytes() for image, _ in shown}) == 30
        assert all((mask == 1).any() for _, mask in shown)


@pytest.mark.usefixtures("no_augmentation")
def test_a_crop_of_a_patch_without_a_figure_holds_its_look_alike(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[50:54, 8:12] = 2
    index = _index_of_one(tmp_path, mask)
    shown = items(index, [Draw(0, epoch, 0) for epoch in range(8)], classes=3)
    assert all((mask == 2).any() for _, mask in shown)


@pytest.mark.usefixtures("no_augmentation")
@pytest.mark.parametrize(("setting", "kind"), [("paste_share", "pasted"), ("smote_share", "interpolated")])
def test_synthetic_figures_come_in_the_share_asked_for_and_never_where_a_figure_is(index, setting, kind):
    config = CONFIG.model_copy(update={setting: 0.5})
    dataset = PatchDataset(index, config, RAW[2])
    draws = [Draw(row, epoch, 0) for row in range(len(dataset)) for epoch in range(3)]
    made = [(index.patches[draw.row], dataset.make(draw)) for draw in draws]
    others = [item for patch, item in made if not patch.n_mitotic]
    assert {item.kind for patch, item in made if patch.n_mitotic} == {"mitotic"}
    synthetic = [item for item in others if item.kind == kind]
    assert 0.3 < len(synthetic) / len(others) < 0.7
    assert all(((item.mask > 0) & (item.mask <= 1)).any() for item in synthetic)
    fractions = [((item.mask > 0) & (item.mask < 1)).any() for item in synthetic]
    assert any(fractions) if kind == "interpolated" else not any(fractions)


@pytest.mark.parametrize(("setting", "n_figures"), [("paste_share", 0), ("smote_share", 1)])
def test_too_few_figures_to_paste_are_told_before_training(index, monkeypatch, setting, n_figures):
    figures = FigureBank.of(index).figures[:n_figures]
    monkeypatch.setattr("mitosis.dataset.FigureBank.of", lambda _: FigureBank(figures))
    with pytest.raises(PatchIndexError, match=f"{n_figures} figures fit into crops of 64 px"):
        PatchDataset(index, CONFIG.model_copy(update={setting: 0.5}), RAW[2])


def test_pasted_items_are_augmented_as_figures(index, monkeypatch):
    draws = [Draw(row, 0, 0) for row, patch in enumerate(index.patches) if not patch.n_mitotic]
    chosen = strengths(index, draws, monkeypatch, paste_share=1.0, augment_figure=0.9, augment_others=0.1)
    assert 0.9 in chosen


def test_with_its_settings_at_0_no_other_scanner_is_drawn(index, monkeypatch):
    def fail(*_):
        raise AssertionError("called")

    draws = [Draw(row, 0, 0) for row in range(6)]
    before = items(index, draws)
    for name in ("dataset.window_side", "dataset.mix_amplitudes", "domains.vary_colours", "domains.rescan"):
        monkeypatch.setattr(f"mitosis.{name}", fail)
    after = items(index, draws)
    assert all(same(*pairs) for pairs in zip(before, after, strict=True))
    for setting, value in SCANNERS.items():
        with pytest.raises(AssertionError, match="called"):
            items(index, [Draw(row, 0, 0) for row in range(9)], config=CONFIG.model_copy(update={setting: value}))


@pytest.mark.parametrize("setting", ["fourier_share", "colour_jitter", "scanner_jitter"])
def test_another_scanner_changes_the_picture_and_not_the_mask(index, setting):
    draws = [Draw(row, epoch, 0) for row in figure_rows(index)[:5] for epoch in range(3)]
    other = items(index, draws, config=CONFIG.model_copy(update={setting: SCANNERS[setting]}))
    pairs = list(zip(items(index, draws), other, strict=True))
    assert all(np.array_equal(before[1], after[1]) for before, after in pairs)
    assert np.mean([not np.array_equal(before[0], after[0]) for before, after in pairs]) > 0.5


@pytest.mark.usefixtures("no_augmentation")
def test_one_scanner_setting_leaves_the_draws_of_the_others(index):
    draws = [Draw(row, 0, 0) for row in range(8)]
    sizes, both = (
        items(index, draws, config=CONFIG.model_copy(update=update))
        for update in ({"resolution_jitter": 0.2}, {"resolution_jitter": 0.2, "colour_jitter": 0.1})
    )
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(sizes, both, strict=True))
    # A gamma is a table: equal grey levels stay equal, so the crop is the same one at the same resolution.
    for (image, _), (varied, _) in zip(sizes, both, strict=True):
        levels = np.unique(image[..., 0])
        assert all(len(np.unique(varied[..., 0][image[..., 0] == level])) == 1 for level in levels)


@pytest.mark.usefixtures("no_augmentation")
@pytest.mark.parametrize("crop", [48, 64])
def test_a_figure_is_as_large_as_its_resolution_makes_it_and_the_picture_goes_with_it(tmp_path, crop):
    """Also where the coarser scan needs more tissue than the patch has."""
    rows, columns = np.mgrid[:64, :64]
    mask = ((rows - 30) ** 2 + (columns - 34) ** 2 < 9**2).astype(np.uint8)
    index = _index_of_one(tmp_path, mask)
    Image.fromarray(np.where(mask[..., None], 60, 200).repeat(3, axis=2).astype(np.uint8)).save(tmp_path / "i.png")
    config = CONFIG.model_copy(update={"crop": crop, "resolution_jitter": 0.25})
    shown = items(index, [Draw(0, epoch, 0) for epoch in range(60)], config=config)
    areas = [(held == 1).sum() / mask.sum() for _, held in shown if not _at_edge(held)]
    assert 0.75**2 < 1 / max(areas) < 0.7
    assert 1.4 < 1 / min(areas) < 1.3**2
    assert {held.shape for _, held in shown} == {(crop, crop)}
    for image, held in shown:
        dark = image[..., 0] < 130
        assert (dark & (held == 1)).sum() / (dark | (held == 1)).sum() > 0.9


def _at_edge(mask):
    return any(mask[line].any() for line in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]))


@pytest.mark.usefixtures("no_augmentation")
def test_amplitudes_come_from_a_patch_of_another_domain_as_often_as_asked(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    (patch,) = _index_of_one(tmp_path, mask).patches
    for name, value in (("i", 150), ("far", 90)):
        Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    near = [replace(patch, patch_id=str(n), case_id=str(n), domain="X") for n in range(5)]
    index = PatchIndex(tmp_path, (*near, replace(patch, image="far.png", domain="Y")))
    config = CONFIG.model_copy(update={"fourier_share": 0.5})
    means = np.array(
        [image.mean() for image, _ in items(index, [Draw(0, epoch, 0) for epoch in range(200)], 0, config)]
    )
    assert (means <= 150).all()
    assert means.min() > 89
    assert 0.35 < np.mean(means < 150) < 0.65
    assert np.ptp(means[means < 150]) > 40


@pytest.mark.usefixtures("no_augmentation")
def test_a_donor_is_shown_at_the_usual_stain_if_the_patch_is(index, monkeypatch):
    """A patch at the usual stain would be moved away from it by a donor as it was scanned."""
    donors = []

    def spy(image, donor, *_):
        donors.append(donor)
        return image

    monkeypatch.setattr("mitosis.dataset.mix_amplitudes", spy)
    config = CONFIG.model_copy(update={"fourier_share": 1.0})
    for network in (RAW[2], NetworkConfig()):
        PatchDataset(index, config, network).make(Draw(0, 0, 0))
    levels = {patch.stain: StainLevels.parse(patch.stain) for patch in index.patches}
    raw, normalised = donors
    assert any(np.array_equal(each.normalise(raw), normalised) for each in levels.values())
    assert (raw != normalised).any()
