"""The network: its receptive radius, and that tiles fit together without a seam."""

from typing import get_args

import pytest
import torch
from torch import nn

from mitosis.config import NetworkConfig
from mitosis.folding import fold_batch_norm
from mitosis.unet import BLOCKS, UNet

every_block = pytest.mark.parametrize("block", BLOCKS)


every_stem = pytest.mark.parametrize("stem", [1, 2, 4])


def _trained_looking(width: int, depth: int, block: str = "plain", stem: int = 1) -> UNet:
    """A network whose batch norms have seen data, so that nothing is trivially 0."""
    torch.manual_seed(0)
    network = UNet(width, depth, block=block, stem=stem)
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(2, 3, 64, 64))
    return network.eval()


@every_block
@pytest.mark.parametrize(("depth", "stem"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 4)])
def test_the_radius_is_what_logits_depend_on_and_the_margin_is_it_rounded_up(depth: int, block: str, stem: int) -> None:
    network = _trained_looking(4, depth, block, stem).double()  # in fewer channels nothing may get through a ReLU
    side = 2 * (network.margin + network.stride)
    middle = side // 2
    reach = 0
    for offset in range(network.stride):
        image = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
        network(image)[0, 1, middle + offset, middle].backward()
        assert image.grad is not None
        rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()
        reach = max(reach, int((rows - middle - offset).abs().max()))
    assert reach == network.radius
    assert network.radius <= network.margin < network.radius + network.stride
    assert network.margin % network.stride == 0


@every_block
@every_stem
def test_a_tile_with_its_margin_gives_what_the_whole_image_gives(block: str, stem: int) -> None:
    network = _trained_looking(4, 2 if stem == 1 else 1, block, stem)
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


def test_the_setting_has_a_name_for_every_block_and_plain_is_what_there_was() -> None:
    assert list(get_args(NetworkConfig.model_fields["block"].annotation)) == list(BLOCKS)
    assert NetworkConfig().block == "plain"
    assert UNet.from_config(NetworkConfig(block="inverted", expansion=2)).block == "inverted"


def test_the_weights_of_plain_blocks_have_their_names_and_first_values() -> None:
    """Models on disk know them by these names, and runs to resume by these values."""
    torch.manual_seed(0)
    weights = UNet(2, 1).state_dict()
    torch.manual_seed(0)
    first = nn.Conv2d(3, 2, 3, padding=1, bias=False).weight
    assert torch.equal(weights["down.0.0.weight"], first)
    learned = {name.rsplit(".", 1)[0] for name in weights}
    blocks = {f"{way}.{level}" for way, level in (("down", 0), ("down", 1), ("up", 0))}
    assert learned == {f"{block}.{place}" for block in blocks for place in (0, 1, 3, 4)} | {"head"}


@every_block
def test_all_normalisation_folds_and_nothing_changes(block: str) -> None:
    network = _trained_looking(4, 2, block)
    with torch.no_grad():
        for name, value in network.named_parameters():  # or scale 1 and shift 0 would hide what is left out
            if value.ndim == 1:
                value.uniform_(0.5, 1.5) if name.endswith("weight") else value.uniform_(-0.5, 0.5)
    folded = fold_batch_norm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    image = torch.rand(2, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(folded(image), network(image), atol=1e-4, rtol=1e-4)


def test_an_inverted_block_adds_what_came_in_where_it_fits() -> None:
    network = UNet(3, 1, block="inverted").eval()
    first, second = network.down[1]
    with torch.no_grad():
        for block in (first, second):
            block.layers[-1].weight.zero_()  # of the last normalisation: nothing but its shift is left
            block.layers[-1].bias.fill_(2.0)
        x = torch.rand(1, 3, 8, 8)
        assert torch.equal(first(x), torch.full((1, 6, 8, 8), 2.0))  # 3 channels in, 6 out
        assert torch.equal(second(first(x)), torch.full((1, 6, 8, 8), 4.0))
    assert first.layers[0].out_channels == 4 * 6
    assert first.layers[3].groups == 4 * 6


@every_block
def test_the_first_convolution_sees_all_colours_together(block: str) -> None:
    first = UNet(3, 1, block=block).down[0][0]
    assert (first.kernel_size, first.groups) == ((3, 3), 1)
