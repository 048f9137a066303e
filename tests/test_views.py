"""Turned and mirrored views: every pixel keeps its place, and the mean turns with the image."""

import numpy as np
import pytest
import torch
from conftest import busy_network, draw_field, random_places

from mitosis.engines import torch_engine
from mitosis.views import add_views, average_views

CPU = torch.device("cpu")


def fields(n):
    return np.stack(
        [draw_field(random_places(4, seed, 64, 64, apart=16), width=64, height=64, seed=seed) for seed in range(n)]
    )


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


@pytest.mark.parametrize("n_views", [1, 4, 8])
def test_the_first_view_can_be_given(n_views):
    engine, images = torch_engine(busy_network(depth=2), CPU), fields(2)
    upright = engine(images)
    before = upright.copy()
    np.testing.assert_array_equal(add_views(engine, images, upright, n_views), average_views(engine, n_views)(images))
    np.testing.assert_array_equal(upright, before)
