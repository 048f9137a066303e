"""An exported model gives what the model gives, alone with its card in one file."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import MPP, busy_network, save_network
from test_cli import expect_error, run

from mitosis.checkpoints import VerifierCard, load_model, load_verifier, save_model, save_verifier
from mitosis.config import VerifierConfig
from mitosis.crops import CLASSES
from mitosis.engines import OPSET, torch_engine
from mitosis.errors import ConfigError, OutputError
from mitosis.export import export_onnx, export_second
from mitosis.looks import score_crops
from mitosis.synthetic import draw_tissue
from mitosis.unet import BLOCKS
from mitosis.verifier import Verifier

if find_spec("onnx") is None or find_spec("onnxruntime") is None:
    pytest.skip("onnx and onnxruntime are not installed here", allow_module_level=True)

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=BLOCKS)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "run"
    save_network(busy_network(depth=3, width=4, block=request.param), folder, threshold=0.375)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    return export_onnx(*load_model(folder), folder.parent / "model.onnx")


@pytest.fixture(scope="module")
def session(exported):
    import onnxruntime

    return onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])


def tissue(*seeds, side=256):
    drawn = [draw_tissue(np.random.default_rng(seed), (side, side), MPP, n_mitotic=1).image for seed in seeds]
    return np.stack(drawn)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 256, 256), (3, 256, 256), (2, 128, 192), (1, 8, 40)])
def test_any_batch_and_size_gives_what_torch_gives(folder, session, batch, height, width):
    images = np.ascontiguousarray(tissue(*range(batch))[:, :height, :width])
    expected = torch_engine(load_model(folder)[0], CPU)(images)
    (found,) = session.run(["probability"], {"images": images})
    assert (found.shape, found.dtype) == ((batch, height, width), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_the_door_is_bytes_in_and_probabilities_out(session):
    (given,), (got,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", "height", "width", 3])
    assert (got.name, got.type, got.shape) == ("probability", "tensor(float)", ["batch", "height", "width"])


def test_the_card_is_inside(folder, session):
    network, card = load_model(folder)
    inside = session.get_modelmeta().custom_metadata_map
    assert json.loads(inside["card"]) == json.loads((folder / "model.json").read_text())
    assert {name: inside[name] for name in ("mpp", "stride", "margin")} == {
        "mpp": str(card.mpp),
        "stride": str(network.stride),
        "margin": str(network.margin),
    }


def test_opset_and_difference_are_stated(exported):
    import onnx

    model = onnx.load(exported.path)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)] == [("", exported.opset)]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert exported.size_bytes == exported.path.stat().st_size
    assert exported.max_difference < 1e-4


def test_the_stated_difference_would_show_a_wrong_export(folder, tmp_path, monkeypatch):
    other = busy_network(depth=3, width=4, seed=5)
    from mitosis import export

    wrong = export.onnx_model(other)
    monkeypatch.setattr(export, "onnx_model", lambda *_: wrong)
    assert export_onnx(*load_model(folder), tmp_path / "model.onnx").max_difference > 0.1


def test_the_same_model_gives_the_same_bytes_and_stays_as_it_was(folder, exported, tmp_path):
    network, card = load_model(folder)
    again = export_onnx(network.train(), card, tmp_path / "again.onnx")
    assert again.path.read_bytes() == exported.path.read_bytes()
    assert network.training
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), load_model(folder)[0].parameters(), strict=True))


def test_a_place_that_cannot_be_written_to_is_named(folder, tmp_path):
    with pytest.raises(OutputError, match="none"):
        export_onnx(*load_model(folder), tmp_path / "none" / "model.onnx")


def test_without_onnxruntime_no_difference_is_stated(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("mitosis.export.find_spec", lambda _: None)
    assert export_onnx(*load_model(folder), tmp_path / "model.onnx").max_difference is None
    code, out, _ = run("export", folder, "--out", tmp_path / "again.onnx")
    assert code == 0
    assert "Not compared with PyTorch, as onnxruntime is not installed (pip install onnxruntime)." in out


def test_the_verb_says_what_it_wrote(folder, tmp_path):
    out = tmp_path / "model.onnx"
    code, said, err = run("export", folder, "--out", out)
    assert (code, err) == (0, "")
    first, last = said.splitlines()
    assert first.startswith(f"ONNX opset {OPSET}, ")
    assert "Largest difference of a probability from PyTorch: " in first
    assert float(first.rsplit(" ", 1)[1].rstrip(".")) < 1e-4
    assert last == str(out)


def test_the_verb_without_onnx_or_without_a_model(folder, tmp_path, monkeypatch):
    assert expect_error("export", "nothing", "--out", tmp_path / "a.onnx").startswith("nothing: no model there.")
    monkeypatch.setitem(sys.modules, "onnx", None)
    said = expect_error("export", folder, "--out", tmp_path / "a.onnx")
    assert said.startswith("The package onnx is not installed. Run: pip install onnx onnxruntime")
    assert not (tmp_path / "a.onnx").exists()


def test_the_file_runs_in_a_process_without_torch_and_this_package(exported):
    code = (
        "import sys, numpy, onnxruntime; "
        f"session = onnxruntime.InferenceSession({str(exported.path)!r}, providers=['CPUExecutionProvider']); "
        "print(session.run(None, {'images': numpy.zeros((1, 64, 64, 3), 'uint8')})[0].shape, 'torch' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "(1, 64, 64) False\n"


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """A model with a second stage of two members."""
    out = tmp_path_factory.mktemp("two") / "run"
    save_network(busy_network(), out)
    settings = VerifierConfig(width=4, crop=32, members=2)
    second = random_second(settings, 3)
    network, card = load_model(out)
    verifier = VerifierCard(settings=settings, classes=CLASSES, threshold=0.4, count_threshold=0.5)
    save_model(out, network.state_dict(), card.model_copy(update={"verifier": save_verifier(out, second, verifier)}))
    return out


def random_second(settings, seed):
    """One that is sure of itself, so that others differ from it."""
    torch.manual_seed(seed)
    second = Verifier.from_config(settings).eval()
    with torch.no_grad():
        for member in second.members:
            member.last.weight.mul_(20)
    return second


def test_the_second_stage_goes_into_a_file_of_its_own(two_stages, tmp_path):
    import onnxruntime

    code, said, err = run("export", two_stages, "--out", tmp_path / "model.onnx")
    assert (code, err) == (0, "")
    assert said.count("Largest difference of a probability from PyTorch: ") == 2
    _, card = load_model(two_stages)
    second = load_verifier(two_stages, card)
    session = onnxruntime.InferenceSession(tmp_path / "model.second.onnx", providers=["CPUExecutionProvider"])
    inside = session.get_modelmeta().custom_metadata_map
    assert json.loads(inside["card"]) == card.verifier.model_dump(mode="json")
    assert (inside["mpp"], inside["side"]) == ("0.25", "32")
    for number in (1, 5):
        crops = np.ascontiguousarray(tissue(*range(number))[:, :32, :32])
        (found,) = session.run(["probability"], {"images": crops})
        np.testing.assert_allclose(found, score_crops(second, crops), atol=1e-5, rtol=0)
        assert found.shape == (number,)


def test_the_stated_difference_of_the_second_stage_would_show_a_wrong_export(two_stages, tmp_path, monkeypatch):
    from mitosis import export

    _, card = load_model(two_stages)
    second = load_verifier(two_stages, card)
    right = export.export_second(second, card.verifier, tmp_path / "right.onnx")
    assert right.max_difference < 1e-5
    wrong = export.second_onnx(random_second(card.verifier.settings, 8), figure=True)
    monkeypatch.setattr(export, "second_onnx", lambda *_, **__: wrong)
    assert export.export_second(second, card.verifier, tmp_path / "wrong.onnx").max_difference > 0.01


def test_a_spatial_transformer_is_refused(tmp_path):
    settings = VerifierConfig(width=4, crop=32, transformer=True)
    card = VerifierCard(settings=settings, classes=CLASSES, threshold=0.4, count_threshold=0.5)
    with pytest.raises(ConfigError, match="spatial transformer"):
        export_second(Verifier.from_config(settings), card, tmp_path / "second.onnx")
    assert not list(tmp_path.iterdir())
