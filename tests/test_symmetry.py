"""Weights that treat all orientations of a picture alike."""

import copy

import pytest
import torch

from mitosis.config import load_config
from mitosis.errors import ConfigError
from mitosis.sections import ORIENTATIONS
from mitosis.symmetry import tie_orientations, untie_orientations
from mitosis.verifier import Classifier

WIDTH, SIDE = 16, 32
TIED = [name for name, n in ORIENTATIONS.items() if n > 1]


def _tied(symmetry: str) -> Classifier:
    torch.manual_seed(3)
    network = tie_orientations(Classifier(WIDTH, SIDE), symmetry)
    for _ in range(3):  # statistics of batch normalisation that say something
        network(torch.rand(8, 3, SIDE, SIDE))
    return network.eval()


def _plain(network: Classifier, symmetry: str) -> Classifier:
    return untie_orientations(network, Classifier(WIDTH, SIDE), symmetry)


def _oriented(images: torch.Tensor, number: int) -> torch.Tensor:
    mirrored = images.flip(3) if number >= 4 else images
    return torch.rot90(mirrored, number % 4, (2, 3))


@pytest.mark.parametrize("symmetry", TIED)
def test_channels_of_a_set_show_the_same_of_each_orientation(symmetry):
    """What a set shows of an oriented picture is what it shows of the upright one, oriented, in another order; the
    order is looked for here, not taken from the module."""
    network, n = _plain(_tied(symmetry), symmetry), ORIENTATIONS[symmetry]
    image = torch.rand(1, 3, SIDE, SIDE)
    layers = torch.nn.Sequential(network.stem, network.blocks[0].second)
    with torch.no_grad():
        upright = layers(image)[0].unflatten(0, (-1, n))
        for number in range(n):
            seen = layers(_oriented(image, number))[0].unflatten(0, (-1, n))
            expected = _oriented(upright, number)
            orders = [
                [k for k in range(n) if torch.allclose(seen[:, place], expected[:, k], atol=1e-5)] for place in range(n)
            ]
            assert sorted(orders) == [[k] for k in range(n)]


@pytest.mark.parametrize("symmetry", ORIENTATIONS)
def test_a_plain_network_gets_the_same_answers(symmetry):
    network, images = _tied(symmetry), torch.rand(4, 3, SIDE, SIDE)
    plain = _plain(network, symmetry)
    assert plain.state_dict().keys() == Classifier(WIDTH, SIDE).state_dict().keys()
    with torch.no_grad():  # statistics of a set are almost the same before they are made so
        torch.testing.assert_close(plain(images), network(images), rtol=0, atol=0.01)


@pytest.mark.parametrize("symmetry", TIED)
def test_fewer_weights_are_learned(symmetry):
    tied, plain = (
        sum(weights.numel() for weights in each.parameters()) for each in (_tied(symmetry), Classifier(WIDTH))
    )
    assert plain / ORIENTATIONS[symmetry] <= tied < 1.01 * plain / ORIENTATIONS[symmetry]


@pytest.mark.parametrize("symmetry", TIED)
def test_weights_stay_tied_while_they_are_learned(symmetry):
    network = _tied(symmetry).train()
    before = copy.deepcopy(network)
    descent = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.rand(8, 3, SIDE, SIDE)).square().sum().backward()
    descent.step()
    filters = network.stem[0].weight.detach().unflatten(0, (-1, ORIENTATIONS[symmetry]))
    assert not torch.equal(network.stem[0].weight, before.stem[0].weight)
    for number in range(ORIENTATIONS[symmetry]):
        assert torch.equal(filters[:, number], _oriented(filters[:, 0], number))


@pytest.mark.parametrize("symmetry", TIED)
def test_a_feature_is_dropped_in_all_orientations_or_in_none(symmetry):
    network = tie_orientations(Classifier(WIDTH, SIDE), symmetry).train()
    kept = network.dropout(torch.ones(64, 4 * WIDTH)).unflatten(1, (-1, ORIENTATIONS[symmetry])).count_nonzero(dim=2)
    assert set(kept.flatten().tolist()) == {0, ORIENTATIONS[symmetry]}
    assert 0.7 < float(kept.bool().float().mean()) < 0.9


def test_a_width_that_holds_no_whole_sets_is_refused():
    with pytest.raises(ConfigError, match=r"width \(6\) must be a multiple of 4"):
        load_config(None, ("verifier.symmetry=p4", "verifier.width=6"))
    with pytest.raises(ConfigError, match=r"gate_width \(6\) must be a multiple of 4"):
        load_config(None, ("verifier.gate_symmetry=p4", "verifier.gate_width=6"))
