"""What a U-Net is taught beside the mask: maps of the figures, further heads, and that nothing of it is kept."""

from typing import get_args

import numpy as np
import pytest
import torch
from conftest import TINY, contents
from hypothesis import given
from hypothesis.extra.numpy import arrays

from mitosis.auxiliary import TARGETS, TaughtUNet, centre_map, distance_map, target_maps, taught_loss
from mitosis.checkpoints import load_model, load_state
from mitosis.config import Config, TrainConfig
from mitosis.learner import Learner
from mitosis.losses import LOSSES, cross_entropy
from mitosis.patches import PatchIndex
from mitosis.training import train
from mitosis.unet import UNet

every_target = pytest.mark.parametrize("target", TARGETS)
WEIGHTS = torch.tensor([1.0, 5.0])


def taught(**settings):
    return Config.model_validate({**TINY.model_dump(), "train": {**TINY.train.model_dump(), **settings}})


TAUGHT = taught(deep_supervision=0.5, auxiliary_target="centre")


def test_the_setting_has_a_name_for_every_map():
    assert list(get_args(TrainConfig.model_fields["auxiliary_target"].annotation)) == ["none", *TARGETS]


@every_target
@given(figures=arrays(bool, (12, 17)))
def test_a_map_is_of_the_figures_alone_and_from_0_to_1(target, figures):
    made = TARGETS[target](figures)
    assert made.shape == figures.shape
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1
    assert bool(made.any()) == bool(figures.any())


def test_a_centre_is_a_bump_at_the_middle_of_each_figure():
    figures = np.zeros((40, 60), bool)
    figures[8:13, 10:19] = figures[30:33, 40:43] = True
    bumps = centre_map(figures)
    assert bumps[10, 14] == bumps[31, 41] == 1
    assert bumps[10, 18] == bumps[14, 14] == pytest.approx(np.exp(-0.5))
    assert bumps[10, 2] < 0.012 < bumps[10, 3]  # the standard deviation is the same however long a figure is
    assert np.array_equal(centre_map(figures[::-1]), bumps[::-1])


def test_a_distance_is_a_share_of_the_largest_in_its_figure():
    figures = np.zeros((20, 40), bool)
    figures[4:11, 4:11] = figures[12:15, 20:23] = True
    distance = distance_map(figures)
    assert np.array_equal(distance > 0, figures)
    assert distance[7, 4:11] == pytest.approx([0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25])
    assert distance[13, 20:23] == pytest.approx([0.5, 1, 0.5])


def test_a_figure_that_a_crop_cuts_goes_on_beyond_its_edge():
    figures = np.zeros((9, 9), bool)
    figures[2:7, :4] = True
    assert distance_map(figures)[4, :4] == pytest.approx([1, 1, 2 / 3, 1 / 3])


@every_target
def test_maps_know_what_is_to_be_ignored_and_which_class_is_a_figure(target):
    mask = torch.zeros(2, 24, 24)
    mask[0, 4:9, 4:9], mask[0, 14:19, 4:9], mask[1, 4:9, 4:9], mask[:, :, 20:] = 1, 2, 0.7, 255
    maps = target_maps(mask, target)
    assert maps.dtype == torch.float32
    assert torch.equal(maps == 255, mask == 255)
    assert torch.equal(maps[0], maps[1])  # a look-alike is none, a probable figure is one
    assert maps[0, 6, 6] == 1
    assert maps[0, 16, 6] < 0.1


@pytest.mark.parametrize("stem", [1, 2])
def test_heads_answer_in_training_only_and_at_full_size(stem):
    network = taught(deep_supervision=1, auxiliary_target="distance").network.model_copy(
        update={"stem": stem, "depth": 2, "classes": 3}
    )
    one = TaughtUNet.from_settings(network, taught(deep_supervision=1, auxiliary_target="distance").train)
    images = torch.rand(2, 3, 16, 32)
    answers = one(images)
    assert [answer.shape[1] for answer in answers] == [3, 3, 3, 2]  # itself, two levels, the map
    assert all(answer.shape[2:] == (16, 32) for answer in answers)
    for level, answer in zip((2, 1), answers[1:3], strict=True):
        side = stem << level
        blocks = answer.unfold(2, side, side).unfold(3, side, side)
        assert torch.equal(blocks, blocks[..., :1, :1].expand_as(blocks))
        assert not torch.equal(blocks[..., 1:, 0, 0], blocks[..., :-1, 0, 0])
    plain = UNet.from_config(network)
    plain.load_state_dict(one.kept())
    assert torch.equal(one.eval()(images), plain.eval()(images))


def test_without_further_questions_it_is_the_u_net_of_before():
    torch.manual_seed(3)
    plain = UNet.from_config(TINY.network)
    torch.manual_seed(3)
    one = TaughtUNet.from_settings(TINY.network, TINY.train)
    assert list(one.state_dict()) == list(plain.state_dict())
    images, mask = torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32)
    mask[:, 8:16, 8:16] = 1
    answers = one(images)
    assert len(answers) == len(TaughtUNet.from_config(TINY.network)(images)) == 1
    assert torch.equal(answers[0], plain(images))
    assert torch.equal(
        taught_loss(answers, mask, None, WEIGHTS, TINY.train), LOSSES[TINY.train.loss](answers[0], mask, WEIGHTS)
    )


def test_the_loss_is_the_weighted_sum_of_what_is_asked():
    torch.manual_seed(0)
    answers = [torch.randn(1, 2, 16, 16) for _ in range(4)]
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:9, 4:9] = 1
    maps = target_maps(mask, "centre")
    config = taught(deep_supervision=0.3, auxiliary_target="centre", auxiliary_weight=0.7).train
    loss = LOSSES[config.loss]
    parts = [loss(answer, mask, WEIGHTS) for answer in answers[:3]]
    expected = parts[0] + 0.3 * (parts[1] + parts[2]) / 2 + 0.7 * cross_entropy(answers[3], maps, WEIGHTS)
    torch.testing.assert_close(taught_loss(answers, mask, maps, WEIGHTS, config), expected)


def test_every_head_learns():
    """From few steps on one batch; the map and the level too come nearer to the truth."""
    learner = Learner(taught(deep_supervision=1, auxiliary_target="distance", learning_rate=0.02), [900, 100], None)
    images = torch.full((4, 64, 64, 3), 230, dtype=torch.uint8)
    mask = torch.zeros(4, 64, 64)
    mask[:, 20:36, 24:40] = 1
    images[mask == 1] = 60
    maps = target_maps(mask, "distance")

    def losses():
        with torch.no_grad():
            network, level, map_ = learner.network.train()(images.permute(0, 3, 1, 2).float() / 255)
        return [
            float(cross_entropy(one, truth, WEIGHTS)) for one, truth in ((network, mask), (level, mask), (map_, maps))
        ]

    before = losses()
    for step in range(1, 31):
        learner.step(step, images, mask)
    assert all(later < 0.8 * earlier for earlier, later in zip(before, losses(), strict=True))


def test_a_model_is_kept_without_heads_and_resumes_to_the_same_bits(patches_folder, tmp_path):
    index = PatchIndex.read(patches_folder)

    class StoppedError(Exception): ...

    def stop(step, _loss):
        if step == TAUGHT.train.validate_every + 1:
            raise StoppedError

    card = train(index, tmp_path / "whole", TAUGHT)
    with pytest.raises(StoppedError):
        train(index, tmp_path / "parts", TAUGHT, on_step=stop)
    train(index, tmp_path / "parts", TAUGHT, resume=True)
    assert contents(tmp_path / "whole")["model.safetensors"] == contents(tmp_path / "parts")["model.safetensors"]
    network, _ = load_model(tmp_path / "whole")
    assert type(network) is UNet
    assert card.training["settings"]["train"]["auxiliary_target"] == "centre"
    assert any(name.startswith("map_head") for name in load_state(tmp_path / "whole")["network"])
    begun = Learner(TAUGHT, [900, 100], tmp_path, start=network)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in begun.network.kept().items())


@pytest.mark.parametrize("value", [0, 1, 255])
@every_target
def test_crops_of_one_value_cost_a_finite_amount(target, value):
    config = taught(deep_supervision=0.5, auxiliary_target=target)
    network = TaughtUNet.from_settings(config.network, config.train)
    mask = torch.full((2, 32, 32), float(value))
    loss = taught_loss(network(torch.rand(2, 3, 32, 32)), mask, target_maps(mask, target), WEIGHTS, config.train)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters())
