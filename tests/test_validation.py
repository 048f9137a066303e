"""Validation: complaints come before the first step, and detections on tiles become scores of slides."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import TINY, busy_network, contents
from torch import nn

from mitosis.errors import ConfigError, LeakageError, PatchIndexError
from mitosis.patches import PatchIndex
from mitosis.validation import check_patches, score_patches


def changed(index, change):
    return PatchIndex(index.folder, tuple(change(patch) for patch in index.patches))


def without_figures(*splits):
    def change(patch):
        return dataclasses.replace(patch, n_mitotic=0) if patch.split in splits else patch

    return change


def with_train(**settings):
    return TINY.model_copy(update={"train": TINY.train.model_copy(update=settings)})


def test_good_patches_pass_with_and_without_validation_cases(index):
    check_patches(index, TINY)
    check_patches(index.with_val_cases([]), TINY)


@pytest.mark.parametrize(("setting", "known"), [("sampler", "balanced, combined"), ("loss", r"ce, dice, dice\+ce")])
def test_an_unknown_name_is_answered_with_the_known_ones(index, setting, known):
    with pytest.raises(ConfigError, match=rf"train\.{setting} = 'focus': unknown\. Known: {known}"):
        check_patches(index, with_train(**{setting: "focus"}))


def test_a_batch_too_small_for_the_sampler_is_refused(index):
    with pytest.raises(ConfigError, match="batch_size = 1 is too small"):
        check_patches(index, with_train(batch_size=1))


def test_patches_without_masks_are_refused_naming_their_slides(index):
    def change(patch):
        return dataclasses.replace(patch, mask="") if patch.slide_id == "A02" else patch

    with pytest.raises(PatchIndexError, match=r"no masks for A02\. Extract with --annotations"):
        check_patches(changed(index, change), TINY)


def test_no_figure_in_training_is_refused(index):
    for split in (("train",), ("train", "val")):
        with pytest.raises(PatchIndexError, match="no mitotic figure in the training cases"):
            check_patches(changed(index, without_figures(*split)), TINY)


def test_no_figure_in_validation_is_refused(index):
    with pytest.raises(PatchIndexError, match="no mitotic figure in the validation cases"):
        check_patches(changed(index, without_figures("val")), TINY)


def test_a_torn_case_is_refused(index):
    def change(patch):
        return dataclasses.replace(patch, split="val" if patch.slide_id == "A02" else "train")

    with pytest.raises(LeakageError, match="A"):
        check_patches(changed(index, change), TINY)


def test_a_crop_larger_than_the_patches_is_refused(index):
    check_patches(index, with_train(crop=64))
    with pytest.raises(PatchIndexError, match=r"patches of 64 px are smaller than train\.crop = 66"):
        check_patches(index, with_train(crop=66))


def test_patches_that_do_not_fit_the_depth_are_refused(index):
    network = TINY.network.model_copy(update={"depth": 4})
    odd = changed(index, lambda patch: dataclasses.replace(patch, size=72))
    with pytest.raises(PatchIndexError, match="patches of 72 px do not fit a network of depth 4"):
        check_patches(odd, TINY.model_copy(update={"network": network}))


class Darkness(nn.Module):
    """Says "figure" where more than `least` of the red light is gone; look-alikes let more of it pass."""

    def __init__(self, least):
        super().__init__()
        self.least = nn.Parameter(torch.tensor(least))

    def forward(self, darkness):
        logit = 60 * (darkness[:, :1] - self.least)
        return torch.cat([-logit / 2, logit / 2], dim=1)


def test_a_perfect_network_finds_all_figures_once_where_they_are(index):
    """A figure on the border of two tiles is seen in two halves, so its place may be off by some px."""
    scores = score_patches(Darkness(0.6), index, 0.05, 7.5, False)
    assert [slide.slide for slide in scores] == ["A01", "A02", "B01"]
    for slide in scores:
        assert slide.slide_mpp == 0.5
        assert len(slide.candidates) == len(slide.figures) == 6
        distance = np.hypot(*(slide.candidates.xy[:, None] - slide.figures[None]).T)
        assert distance.min(axis=0).max() < 3
        assert distance.min(axis=1).max() < 3


def test_only_tiles_of_the_grid_are_looked_at(index):
    gridless = index.where(lambda patch: not patch.on_grid)
    assert score_patches(Darkness(0.6), gridless, 0.05, 7.5, False) == []


def test_looking_changes_neither_files_nor_network(index):
    network = busy_network(depth=1, width=2)
    before, weights = contents(index.folder), {name: value.clone() for name, value in network.state_dict().items()}
    first, second = (score_patches(network, index, 0.05, 7.5, False) for _ in range(2))
    assert contents(index.folder) == before
    assert all((value == weights[name]).all() for name, value in network.state_dict().items())
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.candidates.xy, other.candidates.xy)
        np.testing.assert_array_equal(one.candidates.score, other.candidates.score)


def test_the_area_of_a_slide_is_that_of_its_tiles(index):
    for slide in score_patches(nn.Conv2d(3, 2, 1), index, 0.05, 7.5, False):
        tiles = [patch for patch in index.patches if patch.slide_id == slide.slide and patch.on_grid]
        assert slide.area_mm2 == pytest.approx(len(tiles) * (64 * 0.0005) ** 2)
        assert (slide.case_id, slide.domain) == (tiles[0].case_id, tiles[0].domain)
