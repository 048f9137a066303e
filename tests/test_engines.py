"""Engines: uint8 images in, probabilities of a mitotic figure out, the same for any batch."""

import numpy as np
import pytest
import torch
from conftest import busy_network, draw_field, random_places

from mitosis.engines import average_views, to_input, torch_engine
from mitosis.unet import UNet

CPU = torch.device("cpu")


def fields(n):
    return np.stack(
        [draw_field(random_places(4, seed, 64, 64, apart=16), width=64, height=64, seed=seed) for seed in range(n)]
    )


def test_input_is_darkness_with_channels_first():
    images = torch.tensor([[[[255, 0, 51]]]], dtype=torch.uint8)
    expected = torch.tensor([0.0, 1.0, 0.8]).view(1, 3, 1, 1)
    assert torch.allclose(to_input(images), expected)
    assert to_input(images).dtype is torch.float32
    assert to_input(torch.zeros(2, 8, 16, 3, dtype=torch.uint8)).shape == (2, 3, 8, 16)


def test_result_is_the_softmax_of_class_1():
    network = busy_network(depth=1)
    images = fields(2)
    probability = torch_engine(network, CPU)(images)
    with torch.no_grad():
        logits = network(to_input(torch.from_numpy(images))).numpy()
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    assert (probability.shape, probability.dtype) == ((2, 64, 64), np.float32)
    np.testing.assert_allclose(probability, expected, atol=1e-6)
    assert np.ptp(probability) > 0.5


def test_with_three_classes_the_figure_is_still_class_1():
    torch.manual_seed(1)
    network = UNet(2, 1, classes=3).eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    expected = np.exp(1) / (1 + np.exp(1) + np.exp(2))
    np.testing.assert_allclose(torch_engine(network, CPU)(fields(1)), expected, atol=1e-6)


def test_an_image_gets_the_same_in_any_batch():
    engine, images = torch_engine(busy_network(depth=2), CPU), fields(5)
    together = engine(images)
    for number, image in enumerate(images):
        np.testing.assert_allclose(engine(image[np.newaxis])[0], together[number], atol=1e-5)


def test_running_leaves_training_mode_and_changes_no_statistics():
    network = UNet(2, 1).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch_engine(network, CPU)(fields(2))
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_size_that_does_not_fit_the_stride_is_not_run_silently():
    with pytest.raises(RuntimeError):
        torch_engine(busy_network(depth=2), CPU)(fields(1)[:, :62])


@pytest.mark.parametrize("n_views", [1, 4, 8])
def test_views_are_turned_back_so_that_each_pixel_keeps_its_place(n_views):
    """An engine without a network: what a pixel gets must not depend on the views."""
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    found = average_views(lambda views: views[..., 0] / np.float32(255), n_views)(images)
    np.testing.assert_allclose(found, images[..., 0] / 255, atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize(("n_views", "mirror"), [(4, False), (8, True)])
def test_the_mean_of_all_views_turns_with_the_image(n_views, mirror):
    engine = torch_engine(busy_network(depth=2), CPU)
    image = fields(1)
    turned = image[:, ::-1] if mirror else np.rot90(image, axes=(1, 2))
    expected = average_views(engine, n_views)(image)
    expected = expected[:, ::-1] if mirror else np.rot90(expected, axes=(1, 2))
    np.testing.assert_allclose(average_views(engine, n_views)(np.ascontiguousarray(turned)), expected, atol=1e-5)
    single = engine(image)[:, ::-1] if mirror else np.rot90(engine(image), axes=(1, 2))
    assert np.abs(engine(np.ascontiguousarray(turned)) - single).max() > 1e-3


def test_views_are_asked_for_one_by_one():
    asked = []

    def engine(images):
        asked.append(images.tobytes())
        return np.zeros(images.shape[:3], np.float32)

    for n_views in (1, 4, 8):
        asked.clear()
        average_views(engine, n_views)(fields(1))
        assert len(set(asked)) == len(asked) == n_views
