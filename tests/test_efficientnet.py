"""EfficientNet-Lite0: what it gives, and what it begins with."""

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional

from mitosis.config import VerifierConfig
from mitosis.engines import to_input
from mitosis.errors import ModelError
from mitosis.folding import fold
from mitosis.looks import score_crops
from mitosis.quantization import measure_ranges
from mitosis.second_engine import SECOND_ENGINES, EngineVerifier, second_in_engine
from mitosis.verifier import Pretrained, Residual, Verifier, gate_settings, new_classifier

SETTINGS = VerifierConfig(networks=["efficientnet"], enlarge=1.25, members=2)
STAGES = [(1, 32, 16, 3, 1, 1), (2, 16, 24, 3, 2, 6), (2, 24, 40, 5, 2, 6), (3, 40, 80, 3, 2, 6), (3, 80, 112, 5, 1, 6)]
"""Blocks, channels in and out, kernel, stride and expansion, as table 1 of arXiv 1905.11946 has them."""


def blocks():
    """Each as timm has it: what it is called, (weights, stride) of its convolutions, and whether it is residual."""
    for number, (n, n_in, n_out, kernel, stride, expansion) in enumerate(STAGES):
        for block in range(n):
            first, hidden = block == 0, (n_in if block == 0 else n_out) * expansion
            depthwise = ((hidden, 1, kernel, kernel), stride if first else 1)
            project = ((n_out, hidden, 1, 1), 1)
            if expansion == 1:
                convolutions = {"conv_dw": depthwise, "conv_pw": project}
            else:
                expand = ((hidden, n_in if first else n_out, 1, 1), 1)
                convolutions = {"conv_pw": expand, "conv_dw": depthwise, "conv_pwl": project}
            yield f"blocks.{number}.{block}.", convolutions, not first


def photographer(seed=0):
    """Random weights with the names that timm gives them; of layers that are not taken, too."""
    generator = torch.Generator().manual_seed(seed)

    def norm(name, n):
        low = {"weight": 0.8, "bias": -0.2, "running_mean": -0.1, "running_var": 0.5}
        return {f"{name}.{part}": least + 0.4 * torch.rand(n, generator=generator) for part, least in low.items()}

    def convolution(*shape):
        return torch.randn(*shape, generator=generator) * (2 / np.prod(shape[1:])) ** 0.5

    weights = {"conv_stem.weight": convolution(32, 3, 3, 3), **norm("bn1", 32)}
    for name, convolutions, _ in blocks():
        for place, (layer, (shape, _)) in enumerate(convolutions.items(), 1):
            weights[f"{name}{layer}.weight"] = convolution(*shape)
            weights |= norm(f"{name}bn{place}", shape[0])
    return weights | {"blocks.6.0.conv_pwl.weight": torch.zeros(1), "classifier.weight": torch.zeros(1000, 1280)}


def reference(weights, photographs):
    """What such a network gives of values from -1 to 1, written out."""

    def layer(x, convolution, norm, stride, rectify):
        kernel = weights[f"{convolution}.weight"]
        if stride > 1:  # as TensorFlow pads
            n = kernel.shape[-1] - stride
            x, padding = functional.pad(x, (n // 2, n - n // 2) * 2), 0
        else:
            padding = kernel.shape[-1] // 2
        x = functional.conv2d(x, kernel, None, stride, padding, groups=x.shape[1] // kernel.shape[1])
        mean, var, weight, bias = (
            weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = functional.batch_norm(x, mean, var, weight, bias, eps=1e-3)
        return x.clamp(0, 6) if rectify else x

    x = layer(photographs, "conv_stem", "bn1", 2, True)
    for name, convolutions, residual in blocks():
        given = x
        for place, (convolution, (_, stride)) in enumerate(convolutions.items(), 1):
            x = layer(x, name + convolution, f"{name}bn{place}", stride, place < len(convolutions))
        x = x + given if residual else x
    return x


@pytest.fixture
def start(tmp_path):
    safetensors.torch.save_file(photographer(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def network(start):
    """Two members; what comes last is as it was made."""
    torch.manual_seed(3)
    members = [Pretrained(1.0, start), Pretrained(1.5, start)]
    for member in members:
        torch.nn.init.normal_(member.last.weight, std=0.03)
    return Verifier(members).eval()


@pytest.fixture
def crops():
    return np.random.default_rng(1).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)


def test_it_begins_as_what_knew_photographs(start):
    weights = {name: values.double() for name, values in photographer().items()}
    body = Pretrained(start=start).eval().double().body
    darkness = torch.rand(1, 3, 512, 512, dtype=torch.float64)
    with torch.no_grad():
        given, expected = body(darkness), reference(weights, 1 - 2 * darkness)
    assert given.shape == expected.shape == (1, 112, 32, 32)
    assert expected.std() > 0.1
    # At the edge they differ: beyond it is glass for the one, and grey for the other.
    torch.testing.assert_close(given[..., :14, :14], expected[..., :14, :14], atol=3e-4, rtol=0)


def test_every_member_begins_with_the_same_and_the_last_layer_with_nothing(start):
    one, other = (new_classifier(SETTINGS, start) for _ in range(2))
    for (name, weights), same in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(weights, same) is not name.startswith("last."), name
    fresh = new_classifier(SETTINGS)
    assert not torch.equal(fresh.body.stem.weight, one.body.stem.weight)


@pytest.mark.parametrize("side", [16, 32, 64, 72])
def test_crops_of_other_sizes_fit(side):
    network = Verifier.from_config(SETTINGS).eval()
    assert network(torch.rand(2, 3, side, side)).shape == (2, 3)


def test_a_crop_gets_the_same_in_any_batch(network, crops):
    images = to_input(torch.from_numpy(crops))
    together, alone = network(images), torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert together.std(dim=0).max() > 0.01


def test_folded_it_says_the_same_without_normalisation(network, crops):
    folded, images = fold(network), to_input(torch.from_numpy(crops))
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded.modules())
    torch.testing.assert_close(folded(images), network(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", SECOND_ENGINES)
def test_engines_say_what_pytorch_says(network, crops, engine):
    expected, other = score_crops(network, crops, views=4), second_in_engine(network, engine)
    assert isinstance(other, EngineVerifier)
    assert np.ptp(expected) > 0.02
    np.testing.assert_allclose(score_crops(other, crops, views=4), expected, atol=1e-5)


def test_in_whole_numbers_it_says_nearly_the_same(network, crops):
    ranges = measure_ranges(network, [crops])
    assert len(ranges) == 2 * (1 + 2 + 3 * 10)  # every convolution of both
    expected = score_crops(network, crops)
    rounded = score_crops(second_in_engine(network, "openvino", "int8", ranges), crops)
    assert 0 < np.abs(rounded - expected).max() < 0.1


def missing(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def without_a_layer(path):
    weights = photographer()
    del weights["blocks.3.1.bn2.bias"]
    safetensors.torch.save_file(weights, path)


def wider(path):
    safetensors.torch.save_file(photographer() | {"conv_stem.weight": torch.zeros(40, 3, 3, 3)}, path)


@pytest.mark.parametrize("damage", [missing, cut, without_a_layer, wider])
def test_other_weights_are_refused_by_name(start, damage):
    damage(start)
    with pytest.raises(ModelError, match=r"model\.safetensors: not the weights of EfficientNet-Lite0 .* Give the file"):
        new_classifier(SETTINGS, start)


def test_members_are_of_the_networks_in_turn_and_learn_as_these_do():
    config = VerifierConfig(networks=["residual", "efficientnet"], members=3, steps=30, efficientnet_steps=20, seed=5)
    kinds = [type(member) for member in Verifier.from_config(config).members]
    assert kinds == [Residual, Pretrained, Residual]
    each = [config.of_member(number) for number in range(3)]
    assert [(one.steps, one.learning_rate, one.seed) for one in each] == [(30, 2e-3, 5), (20, 1e-3, 6), (30, 2e-3, 7)]
    assert config.all_steps == 80
    assert gate_settings(config, 0.5).networks == ("residual",)


def test_it_has_no_spatial_transformer():
    with pytest.raises(ValueError, match="transformer is for networks that are residual, not for efficientnet"):
        VerifierConfig(networks=["residual", "efficientnet"], transformer=True)
