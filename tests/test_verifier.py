"""The second network: its size, its indifference to the batch, and a transformer that begins with doing nothing."""

import math

import numpy as np
import pytest
import torch
from conftest import draw_field

from mitosis.config import VerifierConfig
from mitosis.engines import to_input
from mitosis.verifier import Classifier, SpatialTransformer, Verifier


def crops(n=4, side=64):
    rng = np.random.default_rng(0)
    fields = [
        draw_field([rng.uniform(side / 3, 2 * side / 3, 2)], width=side, height=side, seed=seed) for seed in range(n)
    ]
    return to_input(torch.from_numpy(np.stack(fields)))


def n_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_it_is_small_and_gives_a_logit_a_class():
    network = Verifier.from_config(VerifierConfig()).eval()
    assert 100_000 < n_parameters(network) < 300_000
    assert network(crops()).shape == (4, 3)
    with_transformer = Verifier.from_config(VerifierConfig(transformer=True))
    assert n_parameters(network) < n_parameters(with_transformer) < 300_000


@pytest.mark.parametrize("side", [16, 32, 64, 72])
@pytest.mark.parametrize("transformer", [False, True])
def test_crops_of_other_sizes_fit(side, transformer):
    network = Classifier(2, side, transformer).eval()
    assert torch.isfinite(network(crops(2, side))).all()


def test_the_transformer_begins_as_the_identity():
    images = crops()
    turned = SpatialTransformer(64)(images)
    assert torch.allclose(turned, images, atol=1e-5)
    torch.manual_seed(0)
    plain, moved = Classifier(4).eval(), Classifier(4, transformer=True).eval()
    moved.load_state_dict(plain.state_dict(), strict=False)
    assert torch.allclose(moved(images), plain(images), atol=1e-4)


def set_places(transformer, turn=0.0, scale=0.0, x=0.0, y=0.0):
    with torch.no_grad():
        transformer.head.bias.copy_(torch.atanh(torch.tensor([turn, scale, x, y])))
    return transformer


def test_a_quarter_turn_is_one():
    images = crops()
    turned = set_places(SpatialTransformer(64), turn=0.5)(images)
    assert torch.allclose(turned, torch.rot90(images, 1, dims=(2, 3)), atol=1e-4)


def test_a_move_is_one_in_each_direction_and_brings_in_glass():
    images = crops()
    moved = set_places(SpatialTransformer(64, max_shift=0.5), x=0.25, y=-0.125)(images)  # 8 px right, 4 px up
    assert torch.allclose(moved[:, :, 4:, :-8], images[:, :, :-4, 8:], atol=1e-4)
    assert not moved[:, :, :, -7:].any()
    assert not moved[:, :, :3].any()


def test_scaling_looks_at_more_or_less():
    places = set_places(SpatialTransformer(64, max_scale=2.0), scale=0.5).places(crops(1))[0]
    factor = math.sqrt(2)
    assert torch.allclose(places, torch.tensor([[factor, 0.0, 0.0], [0.0, factor, 0.0]]), atol=1e-5)


def test_the_transformer_learns():
    network = Classifier(2, transformer=True).train()
    network(crops()).sum().backward()
    assert network.transformer.head.bias.grad.abs().max() > 0


@pytest.mark.parametrize("transformer", [False, True])
def test_bfloat16_leaves_the_places_exact(transformer):
    network = Verifier(2, transformer=transformer).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(crops()).float()
    assert torch.allclose(low, network(crops()), atol=0.05)


@pytest.mark.parametrize("transformer", [False, True])
def test_a_crop_gets_the_same_in_any_batch(transformer):
    torch.manual_seed(1)
    network = Verifier(4, transformer=transformer)
    images = crops(6)
    for _ in range(30):  # the statistics of batch normalisation come near those of the crops
        network(images)
    network.eval()
    together = network(images)
    alone = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.std(dim=0).max() > 2e-3


def test_several_are_asked_for_the_geometric_mean_of_their_probabilities():
    torch.manual_seed(0)
    together = Verifier(4, members=3).eval()
    images = crops(2)
    each = torch.stack([member(images).softmax(dim=1) for member in together.members])
    expected = each.prod(dim=0) ** (1 / 3)
    assert torch.allclose(together(images).softmax(dim=1), expected / expected.sum(dim=1, keepdim=True), atol=1e-6)
    assert each.std(dim=0).max() > 1e-3  # they are different networks
    assert n_parameters(together) == 3 * n_parameters(Verifier(4))
