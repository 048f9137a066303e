"""The second stage in other engines: the scores that PyTorch gives, for any number of candidates at once."""

import numpy as np
import pytest
import torch

from mitosis.config import VerifierConfig
from mitosis.looks import crop_engine, score_crops
from mitosis.second_engine import SECOND_ENGINES, EngineVerifier, second_in_engine
from mitosis.verifier import Verifier

SETTINGS = VerifierConfig(width=4, crop=16, members=2)


@pytest.fixture(scope="module")
def network():
    """Two members that disagree, as if they had learned: with statistics of their own, and sure of themselves."""
    torch.manual_seed(0)
    network = Verifier.from_config(SETTINGS).train()
    with torch.no_grad():
        for _ in range(30):
            network(torch.rand(16, 3, 16, 16))
        for member in network.members:
            member.last.weight.mul_(8)
    return network.eval()


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(1).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("engine", SECOND_ENGINES)
def test_scores_are_those_of_pytorch_whatever_is_asked_at_once(network, crops, engine):
    expected = score_crops(network, crops, views=4)
    assert np.ptp(expected) > 0.02
    other = second_in_engine(network, engine)
    assert isinstance(other, EngineVerifier)
    np.testing.assert_allclose(score_crops(other, crops, views=4), expected, atol=1e-5)
    at_once = score_crops(other, crops, views=4)
    for batch_size in (1, 4):
        np.testing.assert_array_equal(score_crops(other, crops, 4, batch_size), at_once)
    assert not len(score_crops(other, crops[:0]))


@pytest.mark.parametrize("engine", SECOND_ENGINES)
def test_members_that_are_sure_of_different_classes_give_a_number(crops, engine):
    network = Verifier(width=2, side=16, members=2).eval()
    with torch.no_grad():
        for number, member in enumerate(network.members):
            member.last.bias[number] = 120.0
    expected = score_crops(network, crops)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(score_crops(second_in_engine(network, engine), crops), expected, atol=1e-4)


def test_bfloat16_is_near(network, crops):
    near = score_crops(second_in_engine(network, "openvino", "bfloat16"), crops)
    np.testing.assert_allclose(near, score_crops(network, crops), atol=0.05)


def test_nothing_is_built_before_the_first_candidate(network):
    built = []
    second = EngineVerifier(
        network, lambda verifier: built.append(verifier) or (lambda images: np.ones((len(images), 3)))
    )
    assert not built
    for _ in range(2):
        score_crops(second, np.zeros((2, 16, 16, 3), np.uint8))
    assert [list(one.members) for one in built] == [[member] for member in network.members]  # each by itself, once


def test_weights_stay_where_they_are_as_another_thread_may_be_reading_them():
    """What an engine is built from was laid out anew by the next thread that asked, and what that freed was read."""
    network = Verifier.from_config(SETTINGS)
    second = EngineVerifier(network, lambda _verifier: lambda images: np.ones((len(images), 3)))
    places = [weights.data_ptr() for weights in network.parameters()]
    for one in (second, *second.apart()):
        crop_engine(one)(np.zeros((2, 16, 16, 3), np.uint8))
    assert [weights.data_ptr() for weights in network.parameters()] == places


@pytest.mark.parametrize("engine", SECOND_ENGINES)
def test_members_are_asked_apart_as_together(network, crops, engine):
    other = second_in_engine(network, engine)
    assert other.apart()[0] is other.apart()[0]
    alone = score_crops(network.apart()[0], crops)
    np.testing.assert_allclose(score_crops(other.apart()[0], crops), alone, atol=1e-5)
    assert np.ptp(alone - score_crops(network, crops)) > 0.02


def test_pytorch_and_spatial_transformers_stay_as_they_are(network):
    assert second_in_engine(network, "torch") is network
    turning = Verifier(width=2, side=16, transformer=True)
    assert second_in_engine(turning, "openvino") is turning


@pytest.mark.parametrize(
    ("engine", "threads", "expected"), [("openvino", 1, 1), ("openvino", 3, 3), ("onnxruntime", 3, 1)]
)
def test_no_more_is_asked_at_once_than_there_are_threads(network, monkeypatch, engine, threads, expected):
    """A worker of one thread would else take the cores of others."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    second = second_in_engine(network, engine)
    assert [one.in_flight for one in (second, *second.apart())] == [expected] * 3
