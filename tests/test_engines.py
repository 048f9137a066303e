"""Engines: uint8 images in, probabilities of a mitotic figure out, the same for any batch and from any engine."""

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import MPP, ArraySlide, busy_network, draw_field, random_places
from torch import nn

from mitosis.checkpoints import ModelCard
from mitosis.config import CountConfig, NetworkConfig
from mitosis.engines import (
    ENGINES,
    build_engine,
    choose_engine,
    describe_engine,
    to_input,
    torch_engine,
    torch_scorer,
)
from mitosis.errors import ConfigError
from mitosis.inference import Model, count_slide
from mitosis.synthetic import draw_tissue
from mitosis.unet import BLOCKS, UNet

CPU = torch.device("cpu")
GPU = torch.device("cuda")
PACKAGES = {"openvino": ("onnx", "openvino"), "onnxruntime": ("onnx", "onnxruntime"), "torch": ()}


@pytest.fixture(params=ENGINES)
def name(request):
    """Each engine that is installed here."""
    missing = [package for package in PACKAGES[request.param] if find_spec(package) is None]
    if missing:
        pytest.skip(f"the engine {request.param} needs {', '.join(missing)}, not installed here")
    return request.param


def plain(network):
    """The network as it was trained, batch normalisation and all: what engines are compared with."""
    network = copy.deepcopy(network).eval()

    def run(images):
        with torch.no_grad():
            return network(to_input(torch.from_numpy(images))).softmax(1)[:, 1].numpy()

    return run


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
    np.testing.assert_allclose(probability, expected, atol=1e-5)
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


def test_an_engine_has_a_copy_and_leaves_the_network_as_it_was(name):
    network = UNet(2, 1).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    engine = build_engine(network, CPU, name)
    first = engine(fields(2))
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with torch.no_grad():
        network.head.bias[1] += 3.0
    np.testing.assert_array_equal(engine(fields(2)), first)


def test_a_size_that_does_not_fit_the_stride_is_not_run_silently():
    with pytest.raises(RuntimeError):
        torch_engine(busy_network(depth=2), CPU)(fields(1)[:, :62])


# Every engine in ENGINES


def tissue(side=256):
    """Phantom tissue, random bytes and one colour, uint8 [4, side, side, 3]."""
    drawn = [draw_tissue(np.random.default_rng(seed), (side, side), MPP, n_mitotic=2).image for seed in (1, 2)]
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return np.stack([*drawn, noise, np.full_like(noise, 255)])


@pytest.mark.parametrize(
    ("classes", "block", "stem"),
    [(2, "plain", 1), (3, "plain", 1), (2, "separable", 1), (2, "inverted", 1), (2, "plain", 2), (3, "plain", 4)],
)
def test_float32_engines_agree_with_the_network_as_trained(name, classes, block, stem):
    network = busy_network(depth=3 if stem == 1 else 1, width=8, classes=classes, block=block, stem=stem)
    images = tissue()
    expected = plain(network)(images)
    assert np.ptp(expected[:3]) > 0.3
    found = build_engine(network, CPU, name)(images)
    assert (found.shape, found.dtype) == (images.shape[:3], np.float32)
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(found - expected).mean() < 1e-6


def test_only_on_a_processor_enlarging_is_part_of_a_convolution():
    """On a GPU the guard against TF32 knows ordinary convolutions alone."""
    for device, expected in ((CPU, 1), (torch.device("meta"), 0)):
        layers = list(torch_scorer(busy_network(depth=1), device).modules())
        assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in layers) == expected
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)


def test_an_image_gets_the_same_in_any_batch_of_any_size(name):
    engine, images = build_engine(busy_network(depth=2), CPU, name), tissue(128)
    together = engine(images)
    for chosen in ([0, 1, 2], [2, 3], [1], [0, 1, 2, 3]):
        np.testing.assert_allclose(engine(images[chosen]), together[chosen], atol=2e-5)
    part, margin = engine(np.ascontiguousarray(images[:, :96, :64])), 24
    whole = together[:, : 96 - margin, : 64 - margin]
    np.testing.assert_allclose(part[:, :-margin, :-margin], whole, atol=2e-5)
    assert np.abs(part[:, :, -1] - together[:, :96, 63]).max() > 1e-2


def test_openvino_gives_an_image_the_same_bits_in_any_batch():
    if any(find_spec(package) is None for package in PACKAGES["openvino"]):
        pytest.skip("the engine openvino is not installed here")
    engine, images = build_engine(busy_network(depth=2), CPU, "openvino"), tissue(128)
    together = engine(images)
    for number, image in enumerate(images):
        np.testing.assert_array_equal(engine(image[np.newaxis])[0], together[number])


def test_a_result_is_not_overwritten_by_the_next(name):
    engine = build_engine(busy_network(depth=1), CPU, name)
    first = engine(fields(2)[:1])
    before = first.copy()
    engine(fields(2)[1:])
    np.testing.assert_array_equal(first, before)


def test_no_engine_runs_a_size_that_does_not_fit_the_stride(name):
    """Each has an error of its own, and goes on with what does fit."""
    engine = build_engine(busy_network(depth=2), CPU, name)
    expected = engine(fields(3))
    with pytest.raises(Exception, match=r"(?i)dimension|shape|size"):
        engine(fields(3)[:, :62])
    np.testing.assert_allclose(engine(fields(3)), expected, atol=2e-5)


@pytest.fixture(scope="module")
def slide():
    """600 x 500 px of phantom tissue."""
    return ArraySlide(draw_tissue(np.random.default_rng(5), (600, 500), MPP, n_mitotic=6, tumour=1.0).image)


def count(slide, name, **settings):
    shape = NetworkConfig(width=4, depth=2, normalise_stain=False)
    card = ModelCard(network=shape, classes=("background", "mitotic figure"), mpp=MPP, threshold=0.5)
    config = CountConfig(**{"engine": name, "workers": 0, "tile_size": 256, **settings})
    return count_slide(slide, "s", Model.of(busy_network(), card, config), config)


def by_place(counted):
    found = counted.candidates
    return found[np.lexsort(found.xy.round().T)]


@pytest.mark.parametrize(("tile_size", "batch_size"), [(256, 1), (132, 3), (512, 2)])
def test_every_float32_engine_finds_the_same_whatever_the_tiles(slide, name, tile_size, batch_size):
    """Scores are rounded to 1e-4, so one may be a step off; that they are few is said by `mitosis.engines`."""
    expected = by_place(count(slide, "torch"))
    found = by_place(count(slide, name, tile_size=tile_size, batch_size=batch_size))
    assert len(found) == len(expected) > 30
    np.testing.assert_allclose(found.xy, expected.xy, atol=0.01)
    off = np.abs(found.score - expected.score)
    assert off.max() < 1.5e-4
    assert (off > 0.5e-4).mean() < 0.1


# bfloat16


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_bfloat16_is_near_but_not_equal(name, block):
    if any(find_spec(package) is None for package in PACKAGES[name]):
        pytest.skip(f"the engine {name} is not installed here")
    network, images = busy_network(depth=2, block=block), tissue()
    exact, rough = (build_engine(network, CPU, name, precision)(images) for precision in ("float32", "bfloat16"))
    assert rough.dtype == np.float32
    assert np.abs(rough - exact).mean() < 0.05  # this network makes much of little
    if name == "torch":  # OpenVINO takes bfloat16 only where the processor has it
        assert np.abs(rough - exact).max() > 1e-4


def test_onnxruntime_refuses_bfloat16_in_one_sentence():
    with pytest.raises(ConfigError, match=r"onnxruntime does not run in it\. Choose the engine openvino or torch\."):
        build_engine(busy_network(), CPU, "onnxruntime", "bfloat16")


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_float16_is_refused_without_a_gpu_whatever_the_engine(engine):
    with pytest.raises(ConfigError, match=r"^count\.precision = float16: only torch on a GPU runs in it\. Choose"):
        build_engine(busy_network(), CPU, engine, "float16")


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_float16_is_refused_by_engines_of_the_processor_beside_a_gpu_too(engine):
    with pytest.raises(ConfigError, match=r"count\.precision = float16"):
        build_engine(busy_network(), GPU, engine, "float16")


# On a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("precision", "most", "mean"), [("float32", 1e-4, 1e-5), ("float16", 1, 0.02), ("bfloat16", 1, 0.05)]
)
def test_a_gpu_gives_what_the_network_as_trained_does(block, precision, most, mean):
    network, images = busy_network(depth=3, width=8, block=block), tissue()
    found = build_engine(network, GPU, "auto", precision)(images)
    assert (found.shape, found.dtype) == (images.shape[:3], np.float32)
    off = np.abs(found - plain(network)(images))
    assert off.max() < most
    assert off.mean() < mean


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_threads_may_ask_a_gpu_at_once(precision):
    engine, images = torch_engine(busy_network(depth=2), GPU, precision), tissue(128)
    expected = [engine(image[np.newaxis]) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(
            pool.map(lambda n: engine(images[n % 4][np.newaxis]), range(40)), expected * 10, strict=True
        ):
            np.testing.assert_allclose(found, alone, atol=1e-5)


# Choosing


@pytest.fixture
def only(monkeypatch):
    """Pretend that only these packages are installed."""

    def install(*packages):
        monkeypatch.setattr("mitosis.engines.find_spec", lambda name: object() if name in packages else None)

    return install


def test_auto_is_the_fastest_whose_packages_are_installed(only):
    for packages, precision, expected in (
        (("onnx", "onnxruntime", "openvino"), "float32", "openvino"),
        (("onnx", "onnxruntime"), "float32", "onnxruntime"),
        (("onnx", "onnxruntime"), "bfloat16", "torch"),
        (("onnx", "onnxruntime"), "int8", "torch"),  # which then says that it cannot, and what can
        (("onnxruntime", "openvino"), "float32", "torch"),
        ((), "float32", "torch"),
    ):
        only(*packages)
        assert choose_engine("auto", CPU, precision) == expected


def test_on_a_gpu_auto_is_torch_and_a_name_is_what_it_says(only):
    only("onnx", "onnxruntime", "openvino")
    assert choose_engine("auto", GPU) == "torch"
    assert [choose_engine(name, GPU) for name in ENGINES] == list(ENGINES)


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"count\.engine = tensorrt: unknown\. Known: auto, openvino, onnxruntime, torch"
    ):
        choose_engine("tensorrt", CPU)


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        ("onnxruntime", "onnx", "pip install onnx onnxruntime"),
        ("onnxruntime", "onnxruntime", "pip install onnx onnxruntime"),
        ("openvino", "openvino", "pip install onnx openvino"),
        ("openvino", "onnx", "pip install onnx"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch, name, package, command):
    monkeypatch.setitem(sys.modules, package, None)
    if package != "onnx" and find_spec("onnx") is None:
        pytest.skip("onnx is not installed here, so it is missed first")
    with pytest.raises(ConfigError, match=rf"^The package \w+ is not installed\. Run: {command}"):
        build_engine(busy_network(), CPU, name)


def test_the_report_says_which_engine_ran(slide, name):
    assert count(slide, name).report.versions["engine"] == describe_engine(name, "float32")
    assert describe_engine("torch", "bfloat16") == f"torch {version('torch')} bfloat16"


def test_a_package_is_loaded_only_when_its_engine_is_chosen():
    code = "import sys, mitosis.inference; print([n for n in ('onnx', 'onnxruntime', 'openvino') if n in sys.modules])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "[]\n"
