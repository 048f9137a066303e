"""The network: its receptive radius, and that tiles fit together without a seam."""

import pytest
import torch

from mitosis.config import NetworkConfig
from mitosis.unet import UNet


def _trained_looking(width: int, depth: int) -> UNet:
    """A network whose batch norms have seen data, so that nothing is trivially 0."""
    torch.manual_seed(0)
    network = UNet(width, depth)
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(2, 3, 64, 64))
    return network.eval()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_margin_is_the_receptive_radius_rounded_up(depth: int) -> None:
    network = _trained_looking(2, depth).double()
    side = 4 * network.margin
    middle = side // 2
    reach = 0
    for offset in range(network.stride):
        image = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
        network(image)[0, 1, middle + offset, middle].backward()
        assert image.grad is not None
        rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()
        reach = max(reach, int((rows - middle - offset).abs().max()))
    assert network.margin - network.stride < reach <= network.margin


def test_a_tile_with_its_margin_gives_what_the_whole_image_gives() -> None:
    network = _trained_looking(4, 2)
    image = torch.rand(1, 3, 256, 256)
    m = network.margin
    with torch.inference_mode():
        whole = network(image)
        tile = network(image[:, :, 64 - m : 128 + m, 96 - m : 160 + m])
    torch.testing.assert_close(tile[:, :, m:-m, m:-m], whole[:, :, 64:128, 96:160], atol=1e-5, rtol=0)


def test_a_tile_off_the_stride_does_not_fit() -> None:
    """Why tile starts are multiples of the stride."""
    network = _trained_looking(4, 2)
    image = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        shifted = network(image[:, :, 1:, 1:][:, :, :124, :124])
        whole = network(image)
    assert (shifted[:, :, 40:80, 40:80] - whole[:, :, 41:81, 41:81]).abs().max() > 1e-4


def test_the_settings_decide_the_shape() -> None:
    network = UNet.from_config(NetworkConfig(width=3, depth=2, classes=3))
    assert network(torch.zeros(1, 3, 32, 16)).shape == (1, 3, 32, 16)
    assert (network.stride, network.margin) == (4, 24)
