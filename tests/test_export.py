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

from mitosis.checkpoints import load_model
from mitosis.engines import OPSET, torch_engine
from mitosis.errors import OutputError
from mitosis.export import export_onnx
from mitosis.synthetic import draw_tissue
from mitosis.unet import BLOCKS

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

    wrong = export.onnx_model(other, {})
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
