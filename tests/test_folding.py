"""Networks as they are run: the same answers for less work."""

import pytest
import torch
from conftest import busy_network
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mitosis.folding import fold, fold_batch_norm
from mitosis.unet import BLOCKS, UNet
from mitosis.verifier import Verifier


def unsettled(network):
    """The network with normalisations and biases that do something: scale 1 and shift 0 would hide what is left out."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.weight, 2, 4), (module.running_var, 0.5, 1.5), (module.bias, -1, 1)):
                nn.init.uniform_(values, low, high)
            nn.init.uniform_(module.running_mean, -1, 1)
    return network.eval()


def n_norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("stem", [1, 2, 4])
@pytest.mark.parametrize("block", BLOCKS)
@torch.inference_mode()
def test_a_folded_unet_says_the_same_to_the_edge(block, stem, classes):
    network = unsettled(UNet(4, 2, classes, block, stem=stem)).double()
    images = torch.rand(2, 3, 8 * stem, 12 * stem).double()
    expected, found = network(images), fold(network)(images)
    if classes == 2:
        expected = expected[:, 1:] - expected[:, :1]
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)
    assert n_norms(network) > 0 == n_norms(fold(network))


def test_folding_saves_five_of_nine_multiplications_with_what_comes_from_below():
    network, images = UNet(8, 1, block="plain").eval(), torch.rand(1, 3, 32, 32)
    spent = []
    for one in (network, fold(network)):
        with FlopCounterMode(display=False) as flops, torch.inference_mode():
            one(images)
        spent.append(flops.get_total_flops())
    n_pixels, below, out = 32 * 32, 16, 8
    logits = out  # of two classes one is left
    assert spent[0] - spent[1] == 2 * n_pixels * (5 * below * out + logits)


def test_to_fold_twice_changes_nothing():
    network, images = fold(unsettled(UNet(4, 2))), torch.rand(1, 3, 16, 16)
    assert torch.equal(fold(network)(images), network(images))


def test_a_second_stage_says_the_same_without_normalisation():
    network, images = unsettled(Verifier(8, 32, members=2)), torch.rand(3, 3, 32, 32)
    folded = fold(network)
    assert n_norms(network) == 14
    assert n_norms(folded) == 0
    torch.testing.assert_close(folded(images), network(images), atol=1e-5, rtol=1e-5)


def test_folding_leaves_the_network_as_it_was():
    network = busy_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fold(network)
    assert network.training == busy_network().training
    assert n_norms(network) == 10
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_what_does_not_follow_a_convolution_in_a_sequence_is_not_folded():
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    network(torch.randn(8, 3, 16, 16))
    image = torch.randn(1, 3, 8, 8)
    folded = fold_batch_norm(network)
    assert n_norms(folded) == 2
    assert torch.equal(folded(image), network.eval()(image))
