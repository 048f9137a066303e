"""Models that come with the package: found by name, listed from their cards, inside a wheel."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import MPP, busy_network, save_network
from test_cli import expect_error, run

import mitosis.models
from mitosis.checkpoints import ModelCard, load_model, save_model
from mitosis.config import CountConfig, NetworkConfig
from mitosis.cost import network_cost
from mitosis.engines import torch_engine
from mitosis.errors import ModelError
from mitosis.inference import Model, count_slide
from mitosis.models import find_model, shipped_models
from mitosis.slides import open_slide
from mitosis.synthetic import write_phantom

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path):
    """A folder with the models `plain` and `small`."""
    folder = tmp_path / "weights"
    folder.mkdir()
    save_network(busy_network(), folder / "plain", threshold=0.25)
    save_network(busy_network(depth=1), folder / "small")
    return folder


def change_card(folder, **values):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Finding


def test_a_name_is_a_shipped_model_and_wins_over_a_folder_here(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    assert find_model("plain", weights) == weights / "plain"
    assert find_model("./plain", weights) == Path("plain")


def test_what_is_no_name_is_a_path(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert find_model("run", weights) == Path("run")
    assert find_model(weights / "small" / "model.json", weights) == weights / "small" / "model.json"
    assert find_model("elsewhere/run", weights) == Path("elsewhere/run")  # `load_model` says what is missing there


def test_default_is_the_model_of_that_name_or_the_only_one(weights):
    with pytest.raises(ModelError, match=r"^default: no model there\. Shipped: plain, small; or name the folder"):
        find_model("default", weights)
    shutil.rmtree(weights / "small")
    assert find_model("default", weights) == weights / "plain"
    save_network(busy_network(depth=1), weights / "default")
    assert find_model("default", weights) == weights / "default"


@pytest.mark.parametrize("there", [True, False])
def test_without_any_shipped_model_the_sentence_says_so(tmp_path, there):
    if there:
        (tmp_path / "weights").mkdir()
    with pytest.raises(ModelError, match=r"^default: no model there\. No model is shipped with this version; or name"):
        find_model("default", tmp_path / "weights")


# Listing


def test_the_list_says_what_the_cards_say(weights):
    change_card(weights / "plain", validation={"f1": 0.75, "step": 3})
    plain, small = shipped_models(weights)
    learned = sum(parameter.numel() for parameter in busy_network().parameters())
    assert (plain.name, plain.mpp, plain.n_parameters, plain.threshold, plain.f1) == ("plain", MPP, learned, 0.25, 0.75)
    assert (small.name, small.threshold, small.f1) == ("small", 0.5, None)
    assert plain.size_bytes == (weights / "plain" / "model.safetensors").stat().st_size
    cost = network_cost({name: tuple(value.shape) for name, value in busy_network().state_dict().items()})
    assert plain.gflop_per_mm2 == cost.gflop_per_mm2(MPP) > small.gflop_per_mm2 > 0
    assert plain.intended_use == "Research use only; not a medical device."
    assert plain.folder == weights / "plain"


def test_of_a_model_of_two_stages_both_count(weights):
    folder = weights / "plain"
    shutil.copy(weights / "small" / "model.safetensors", folder / "verifier.safetensors")
    one = shipped_models(weights)[0]
    change_card(folder, verifier={"threshold": 0.125, "validation": {"both_stages": {"f1": 0.875}}})
    both, small = shipped_models(weights)
    assert (both.threshold, both.f1) == (0.125, 0.875)
    assert both.n_parameters == one.n_parameters + small.n_parameters
    assert both.size_bytes == one.size_bytes + small.size_bytes
    assert both.gflop_per_mm2 == one.gflop_per_mm2
    shutil.copy(weights / "small" / "model.safetensors", folder / "gate.safetensors")
    change_card(folder, verifier={"threshold": 0.125, "gate_sha256": "ab"})
    assert shipped_models(weights)[0].size_bytes == both.size_bytes + small.size_bytes


@pytest.mark.parametrize("content", ["{", "[]", '{"mpp": 1}'])
def test_a_damaged_shipped_model_is_named(weights, content):
    (weights / "plain" / "model.json").write_text(content)
    with pytest.raises(ModelError, match=r"plain: this shipped model is incomplete or damaged .*Install again"):
        shipped_models(weights)


def test_so_is_one_without_weights(weights):
    (weights / "small" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"small: this shipped model is incomplete"):
        shipped_models(weights)


def test_every_model_that_is_shipped_loads():
    for model in shipped_models():
        _, card = load_model(model.folder)
        assert (card.mpp, card.threshold > 0) == (model.mpp, True)
        assert model.size_bytes <= 4 * 2**20


def test_the_default_model_says_how_good_it_is_where_it_has_not_learned():
    _, card = load_model(find_model("default"))
    assert card.verifier is not None
    both = card.verifier.validation["both_stages"]
    low, high = both["f1_interval"]
    assert low <= both["f1"] <= high
    assert set(both["scanners"]) == {"aperio", "hamamatsu"}
    assert "esearch" in card.description
    assert "esearch" in card.intended_use
    never, dark, own = card.verifier.validation["beside_detectors_that_know_nothing"]
    assert never["pixel_accuracy"] > 0.999 > dark["pixel_accuracy"]
    assert never["detection_f1"] == 0 < dark["detection_f1"] < own["detection_f1"]


def test_the_default_model_has_an_interval_for_a_count_at_either_threshold():
    _, card = load_model(find_model("default"))
    for objective in ("f1", "count"):
        threshold = card.threshold_for(objective, verified=True)
        assert card.calibration_at(threshold, verified=True)


def test_no_place_of_a_machine_is_in_a_shipped_card():
    for model in shipped_models():
        text = (model.folder / "model.json").read_text(encoding="utf-8")
        assert not re.search(r'"(/|~|[A-Za-z]:\\)', text)


def test_the_readme_says_what_the_card_says():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, card = load_model(find_model("default"))
    both = card.verifier.validation["both_stages"]
    assert f"| {both['f1']:.2f} ({both['f1_interval'][0]:.2f}–{both['f1_interval'][1]:.2f}) |" in readme


@pytest.mark.slow
def test_the_default_model_counts_the_same_for_any_tile_size(tmp_path):
    write_phantom(tmp_path / "phantom.tif", 3, (1600, 1200), density_per_mm2=50)
    found = []
    for tile_size in (256, 512):
        config = CountConfig(tile_size=tile_size, engine="torch")
        with open_slide(tmp_path / "phantom.tif") as slide:
            found.append(count_slide(slide, "phantom", Model.load(find_model("default"), config), config).candidates)
    assert len(found[0])
    np.testing.assert_array_equal(found[0].xy, found[1].xy)
    np.testing.assert_allclose(found[0].score, found[1].score, atol=1e-4)


def test_a_card_from_before_there_were_blocks_is_one_of_plain_ones(weights):
    path = weights / "plain" / "model.json"
    card = json.loads(path.read_text())
    for name in ("block", "expansion"):
        del card["network"][name]
    path.write_text(json.dumps(card))
    network, read = load_model(weights / "plain")
    assert (network.block, read.network.block) == ("plain", "plain")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), busy_network().parameters(), strict=True))


@pytest.mark.parametrize("block", ["separable", "inverted"])
def test_a_model_of_other_blocks_loads_as_it_was_saved_and_as_no_other(tmp_path, block):
    network = busy_network(block=block)
    save_network(network, tmp_path / "run")
    loaded, card = load_model(tmp_path / "run")
    assert card.network.block == block
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(image), network(image))
    change_card(tmp_path / "run", network=card.network.model_dump() | {"block": "plain"})
    with pytest.raises(ModelError, match=r"does not hold the network that model\.json describes"):
        load_model(tmp_path / "run")


# The command line


@pytest.fixture
def shipped(weights, monkeypatch):
    """The same folder in the place of the package's own."""
    monkeypatch.setattr(mitosis.models.find_model, "__defaults__", (weights,))
    monkeypatch.setattr(mitosis.models.shipped_models, "__defaults__", (weights,))
    return weights


def test_the_verb_prints_a_table_and_json(shipped):
    code, out, err = run("models")
    assert (code, err) == (0, "")
    head, plain, small = out.splitlines()
    assert head.split() == ["name", "µm/px", "parameters", "MB", "GFLOP/mm²", "threshold", "F1", "intended", "use"]
    assert plain.split()[:2] == ["plain", "0.5"]
    assert plain.split()[4] == f"{shipped_models(shipped)[0].gflop_per_mm2:.0f}"
    assert small.endswith("-          Research use only; not a medical device.") or " - " in small
    rows = json.loads(run("models", "--json")[1])
    assert [(row["name"], row["folder"]) for row in rows] == [(n, str(shipped / n)) for n in ("plain", "small")]


def test_the_verb_says_when_there_is_none(shipped):
    shutil.rmtree(shipped)
    assert run("models") == (
        0,
        "No model is shipped with this version. Train one with mitosis train and name its folder.\n",
        "",
    )


def test_counting_takes_a_name(shipped, slides_folder, tmp_path):
    tiles = ("--set", "count.tile_size=128", "--set", "count.hotspot_mm2=0.005", "--engine", "torch")
    slide = slides_folder / "A01.png"
    assert run("count", slide, "--model", "plain", "--out", tmp_path / "named", *tiles)[0] == 0
    assert run("count", slide, "--model", shipped / "plain", "--out", tmp_path / "path", *tiles)[0] == 0
    named, path = ((tmp_path / how / "A01" / "count.json").read_bytes() for how in ("named", "path"))
    assert named == path
    assert json.loads(named)["versions"]["engine"].startswith("torch ")
    said = expect_error("count", slide, "--model", "default", "--out", tmp_path / "no", *tiles)
    assert said.startswith("default: no model there. Shipped: plain, small")


@pytest.mark.usefixtures("shipped")
def test_an_unknown_engine_is_refused_by_the_verb(slides_folder, tmp_path):
    words = ("count", slides_folder, "--model", "plain", "--out", tmp_path / "out")
    assert "count.engine = tensorrt: unknown. Known: auto," in expect_error(*words, "--engine", "tensorrt")


@pytest.mark.usefixtures("shipped")
def test_mining_and_training_take_a_name_too(slides_folder, patches_folder, tmp_path):
    said = expect_error(
        *("mine", slides_folder, "--annotations", slides_folder, "--model", "default", "--out", tmp_path / "mined")
    )
    assert said.startswith("default: no model there. Shipped: plain, small")
    said = expect_error("train", patches_folder, "--out", tmp_path / "run", "--val-cases", "B", "--start", "other")
    assert said.startswith("other: no model there. Shipped: plain, small")


def test_listing_models_needs_no_torch():
    code = "import sys; from mitosis.models import shipped_models; shipped_models(); print('torch' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "False\n"


# float16


def save(folder, network, half):
    shape = NetworkConfig(width=network.width, depth=network.depth, normalise_stain=False)
    card = ModelCard(network=shape, classes=("background", "mitotic figure"), mpp=MPP, threshold=0.5)
    folder.mkdir()
    return save_model(folder, network.state_dict(), card, half=half)


def test_half_keeps_the_statistics_whole_and_loads_as_float32(tmp_path):
    network = busy_network(depth=3, width=8)
    for half in (False, True):
        save(tmp_path / str(half), network, half)
    whole, halved = (tmp_path / str(half) / "model.safetensors" for half in (False, True))
    assert halved.stat().st_size < 0.55 * whole.stat().st_size
    kept = safetensors.torch.load(halved.read_bytes())
    for name, tensor in kept.items():
        statistic = name.endswith(("running_mean", "running_var"))
        assert tensor.dtype is (torch.float32 if statistic else torch.int64 if "num_batches" in name else torch.float16)
    loaded, _ = load_model(tmp_path / "True")
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype is network.state_dict()[name].dtype
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=2**-11, atol=1e-7)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    difference = np.abs(torch_engine(loaded, CPU)(image) - torch_engine(network, CPU)(image))
    assert 0 < difference.max() < 0.05


def test_what_float16_cannot_hold_is_refused(tmp_path):
    network = busy_network(depth=1)
    with torch.no_grad():
        network.head.bias[0] = 70_000.0
    with pytest.raises(ModelError, match=r"head\.bias: holds numbers beyond float16"):
        save(tmp_path / "run", network, True)
    assert not list((tmp_path / "run").iterdir())


# The wheel


@pytest.mark.slow
def test_a_wheel_holds_the_models_that_lie_in_the_tree(tmp_path):
    tree = tmp_path / "tree"
    leave = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(ROOT / "mitosis", tree / "mitosis", ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    (tree / "mitosis" / "weights").mkdir()
    save_network(busy_network(), tree / "mitosis" / "weights" / "tiny")
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tree, capture_output=True, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        for name in ("model.json", "model.safetensors"):
            inside = f"mitosis/weights/tiny/{name}"
            assert wheel.read(inside) == (tree / inside).read_bytes()
    assert {"mitosis/py.typed", "mitosis/models.py", "mitosis/cli/models.py"} <= names
