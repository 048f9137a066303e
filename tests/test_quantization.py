"""Networks in whole numbers of 8 bits: near those in float32, and the same for any tiles."""

import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import MPP, ArraySlide, busy_network, save_network
from torch import nn

from mitosis import quantization
from mitosis.checkpoints import ModelCard, load_model, save_model
from mitosis.config import CountConfig, NetworkConfig
from mitosis.engines import build_engine, to_input, torch_engine
from mitosis.errors import ConfigError, ModelError
from mitosis.folding import fold
from mitosis.inference import Model, count_slide
from mitosis.models import find_model
from mitosis.quantization import check_processor, measure_ranges, quantize
from mitosis.synthetic import draw_tissue
from mitosis.unet import BLOCKS
from mitosis.verifier import Verifier

CPU = torch.device("cpu")
ENGINE = "openvino"


@pytest.fixture(scope="module")
def exact():
    """Only where the engine is installed, and exact on this processor."""
    missing = [package for package in ("onnx", "openvino") if find_spec(package) is None]
    if missing:
        pytest.skip(f"int8 needs {', '.join(missing)}, not installed here")
    try:
        check_processor(ENGINE)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tissue():
    """Phantom tissue, uint8 [2, 128, 192, 3]."""
    drawn = (draw_tissue(np.random.default_rng(seed), (192, 128), MPP, n_mitotic=2) for seed in (1, 2))
    return np.stack([some.image for some in drawn])


def both(network, images):
    """What PyTorch says in float32, and in its imitation of int8."""
    ranges = measure_ranges(network, [images])
    return torch_engine(network, CPU)(images), torch_engine(quantize(network, ranges), CPU)(images)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("stem", [1, 4])
def test_whole_numbers_are_near(tissue, block, stem):
    exact, rounded = both(busy_network(depth=1, width=8, block=block, stem=stem), tissue)
    assert np.ptp(exact) > 0.3
    difference = np.abs(exact - rounded)
    assert 1e-4 < difference.mean() < 0.03


def test_ranges_are_what_the_folded_convolutions_are_given_whatever_the_batches(tissue):
    network = busy_network(depth=1)
    ranges = measure_ranges(network, [tissue])
    assert {f"{name}.weight" for name in ranges} == {name for name in fold(network).state_dict() if "weight" in name}
    assert ranges["down.0.0"] == (0.0, 1.0)  # darkness, whatever was seen
    features = fold(network).down[0]
    with torch.inference_mode():
        given = features[:3](to_input(torch.from_numpy(tissue)))
    assert ranges["down.0.3"] == (0.0, round(float(given.max()), 4))
    assert all(low == 0 < high for low, high in ranges.values())  # after a ReLU
    assert measure_ranges(network, [tissue[:1], tissue[1:]]) == ranges


def test_numbers_below_zero_have_steps_too(tissue):
    network = busy_network(depth=1, block="inverted")
    ranges = measure_ranges(network, [tissue])
    name = min(ranges, key=lambda name: ranges[name][0])
    low, high = ranges[name]
    assert low < -0.1  # bottlenecks are linear
    steps = quantize(network, ranges).get_submodule(name)[0]
    numbers = torch.linspace(low, high, 101)
    torch.testing.assert_close(steps(numbers), numbers, atol=(high - low) / 253, rtol=0)
    assert steps(torch.zeros(1)) == 0  # as padding is
    assert len(steps(torch.linspace(low, high, 10_000)).unique()) >= 255


def test_weights_become_255_steps_by_channel(tissue):
    network = busy_network(depth=1)
    rounded = quantize(network, measure_ranges(network, [tissue])).down[0][0][1].weight
    exact = fold(network).down[0][0].weight
    for ours, before in zip(rounded, exact, strict=True):
        steps = ours / (before.abs().max() / 127)
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
        assert steps.abs().max().round() == 127
        torch.testing.assert_close(ours, before, atol=float(before.abs().max()) / 253, rtol=0)


def test_the_network_stays_as_it_was(tissue):
    network = busy_network(depth=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quantize(network, measure_ranges(network, [tissue]))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("stem", [1, 4])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_engine_does_what_pytorch_imitates(tissue, block, stem, classes):
    network = busy_network(depth=1, width=8, stem=stem, block=block, classes=classes)
    ready = quantize(network, measure_ranges(network, [tissue]))
    imitated, found = torch_engine(ready, CPU)(tissue), build_engine(ready, CPU, ENGINE, "int8")(tissue)
    assert np.abs(found - imitated).mean() < 2e-3  # a number half-way between two steps goes up here, down there
    assert np.abs(found - imitated).max() < 0.2


@pytest.mark.usefixtures("exact")
def test_a_pixel_gets_the_same_bits_in_any_tile(tissue):
    network = busy_network(depth=1, width=8)
    run = build_engine(quantize(network, measure_ranges(network, [tissue])), CPU, ENGINE, "int8")
    whole, margin = run(tissue), network.margin
    part = run(np.ascontiguousarray(tissue[1:, 16:112, 32:160]))
    inside = slice(margin, -margin)
    np.testing.assert_array_equal(part[0, inside, inside], whole[1, 16:112, 32:160][inside, inside])


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("tile_size", "batch_size"), [(132, 3), (512, 2)])
def test_a_count_in_int8_is_the_same_for_any_tiles(tile_size, batch_size):
    image = draw_tissue(np.random.default_rng(5), (600, 500), MPP, n_mitotic=6, tumour=1.0).image
    slide, network = ArraySlide(image), busy_network()
    shape = NetworkConfig(width=4, depth=2, normalise_stain=False)
    ranges = measure_ranges(network, [image[np.newaxis, :256, :256]])
    card = ModelCard(
        network=shape, classes=("background", "mitotic figure"), mpp=MPP, threshold=0.5, int8_ranges=ranges
    )
    found = []
    for size, batch in ((256, 1), (tile_size, batch_size)):
        config = CountConfig(engine=ENGINE, precision="int8", workers=0, tile_size=size, batch_size=batch)
        model = Model.of(network, card, config)
        assert model.runs_on.endswith(" int8")
        found.append(count_slide(slide, "s", model, config).candidates)
    assert len(found[0]) > 20
    for name in ("xy", "score", "area_um2"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))


@pytest.mark.usefixtures("exact")
def test_the_shipped_model_says_nearly_the_same_in_int8():
    image = draw_tissue(np.random.default_rng(3), (512, 512), 0.5, n_mitotic=8).image[np.newaxis]
    network, card = load_model(find_model("default"))
    exact = torch_engine(network, CPU)(image)
    rounded = build_engine(quantize(network, card.int8_ranges), CPU, ENGINE, "int8")(image)
    assert exact.max() > 0.5
    assert 0 < np.abs(exact - rounded)[exact > 0.01].mean() < 0.02
    second = Model.load(find_model("default"), CountConfig(engine=ENGINE, precision="int8")).second
    crops = torch.rand(8, 3, 64, 64)
    plain = Model.load(find_model("default"), CountConfig(engine="torch")).second
    with torch.inference_mode():
        difference = (second(crops).exp() - plain(crops).exp()).abs()
    assert 0 < difference.max() < 0.1


def test_the_members_of_a_second_stage_are_rounded_each_by_itself():
    torch.manual_seed(0)
    second = Verifier(4, 16, members=2).eval()
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    ranges = measure_ranges(second, [images])
    assert {name.split(".")[1] for name in ranges} == {"0", "1"}
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in quantize(second, ranges).modules())


def test_what_a_block_of_the_second_stage_is_given_is_rounded_once_for_both_ways():
    second = Verifier(4, 16).eval()
    ready = quantize(second, measure_ranges(second, [np.zeros((1, 16, 16, 3), np.uint8)]))
    for block in ready.members[0].blocks:
        seen: list[torch.Tensor] = []
        for layer in (block.first, block.shortcut[0]):
            layer.register_forward_pre_hook(lambda _layer, given, seen=seen: seen.append(given[0]))
        images = torch.rand(1, block.first.in_channels, 8, 8)
        block(images)
        assert isinstance(block.first, nn.Conv2d)  # nothing is rounded before it a second time
        rounded = block.given(images)
        assert torch.equal(seen[0], rounded)
        assert torch.equal(seen[1], nn.functional.avg_pool2d(rounded, 2))
        assert not torch.equal(rounded, images)


# What is said where it cannot be done


def test_a_card_without_ranges_is_named_with_what_helps():
    card = ModelCard(network=NetworkConfig(width=4, depth=2), classes=("a", "b"), mpp=MPP, threshold=0.5)
    with pytest.raises(ModelError, match=r"^count\.precision = int8: .* \(int8_ranges\).* Train the model again"):
        Model.of(busy_network(), card, CountConfig(precision="int8", engine=ENGINE))


def test_a_model_of_before_is_named_by_its_path(tmp_path):
    save_network(busy_network(), tmp_path / "old")
    with pytest.raises(ModelError, match=r"old: count\.precision = int8: the card does not say"):
        Model.load(tmp_path / "old", CountConfig(precision="int8", engine=ENGINE))


@pytest.mark.usefixtures("exact")
def test_a_count_by_the_first_stage_asks_nothing_of_the_second(tmp_path):
    """That of the model that ships, here without the ranges of its second stage, as if of an earlier version."""
    shutil.copytree(find_model("default"), tmp_path / "old")
    network, card = load_model(tmp_path / "old")
    assert card.verifier is not None
    second = card.verifier.model_copy(update={"int8_ranges": {}})
    save_model(tmp_path / "old", network.state_dict(), card.model_copy(update={"verifier": second}))
    with pytest.raises(ModelError, match=r"the card does not say what numbers members\.0"):
        Model.load(tmp_path / "old", CountConfig(precision="int8", engine=ENGINE))
    assert Model.load(tmp_path / "old", CountConfig(precision="int8", engine=ENGINE, verify=False)).second is None


def test_pytorch_does_not_run_in_int8():
    with pytest.raises(ConfigError, match=r"torch does not run in it\. Choose the engine openvino\.$"):
        build_engine(busy_network(), CPU, "torch", "int8")


def test_a_processor_with_the_instructions_is_exact():
    if not torch.cpu.get_capabilities().get("avx512_vnni") or not find_spec("openvino"):
        pytest.skip("no VNNI instructions on this processor, or no OpenVINO")
    check_processor.cache_clear()
    check_processor(ENGINE)


def test_a_processor_that_saturates_is_refused(monkeypatch):
    """As one without VNNI does: a product of two pairs that is half as large as it should be."""

    def saturating(network, device, _name, _precision):
        for layer in [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]:
            layer.register_forward_hook(lambda _layer, _given, result: result * 0.506)
        return torch_engine(network, device)

    monkeypatch.setattr(quantization, "build_engine", saturating)
    check_processor.cache_clear()
    with pytest.raises(ConfigError, match=r"not exact on the processor of .* Choose bfloat16 or float32\.$"):
        check_processor(ENGINE)
    check_processor.cache_clear()
