"""Checkpoints: what comes back is what was saved, and nothing damaged or hostile is loaded."""

import hashlib
import io
import json
import os
import pickle  # noqa: TID251 (to make the bombs that must not go off)
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import MPP, save_network, save_two_stages

from mitosis.checkpoints import ModelCard, load_gate, load_model, load_state, load_verifier, save_state
from mitosis.config import NetworkConfig
from mitosis.errors import ModelError, OutputError
from mitosis.inference import Model
from mitosis.unet import UNet

STATE = {
    "step": 7,
    "network": {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)},
    "history": [{"f1": 0.5, "step": 7}],
    "data_sha256": "ab",
}


def network(seed=0):
    torch.manual_seed(seed)
    return UNet(width=2, depth=1)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def folder(tmp_path):
    save_network(network(), tmp_path / "run")
    return tmp_path / "run"


def test_a_model_comes_back_with_the_same_bits(folder):
    loaded, card = load_model(folder)
    saved = network().state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    assert (card.mpp, card.threshold, card.network) == (
        MPP,
        0.5,
        NetworkConfig(width=2, depth=1, normalise_stain=False),
    )
    assert card.classes == ("background", "mitotic figure")
    assert not loaded.training


def test_it_may_be_named_by_its_folder_or_either_file(folder):
    cards = [load_model(path)[1] for path in (folder, folder / "model.json", folder / "model.safetensors")]
    assert cards[0] == cards[1] == cards[2]


def test_a_folder_that_is_not_there_is_not_the_one_above_it(folder):
    with pytest.raises(ModelError, match="epoch9"):
        load_model(folder / "epoch9")


def test_the_card_knows_the_hash_of_the_weights_and_saving_twice_gives_the_same_bytes(folder, tmp_path):
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((folder / "model.json").read_text())["weights_sha256"] == digest
    save_network(network(), tmp_path / "again")
    for name in ("model.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("where", [0, 9, 0.5, -1])
def test_one_changed_byte_in_the_weights_is_noticed(folder, where):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[int(len(content) * where) if isinstance(where, float) else where] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged, or not the weights"):
        load_model(folder)


def test_cut_off_weights_are_noticed(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="damaged"):
            load_model(folder)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("model.json", r"model\.json: no model card"), ("model.safetensors", r"model\.safetensors: no weights")],
)
def test_a_missing_file_is_named(folder, name, complaint):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=complaint):
        load_model(folder)
    with pytest.raises(ModelError, match=r"nowhere/model\.json: no model card"):
        load_model(folder / "nowhere" / "model.json")


def test_the_card_of_another_model_is_noticed(folder, tmp_path):
    save_network(network(seed=9), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.json", folder / "model.json")
    with pytest.raises(ModelError, match=r"sha256 differs"):
        load_model(folder)


@pytest.mark.parametrize("name", ["verifier", "gate"])
def test_a_second_stage_or_a_gate_of_another_model_is_noticed(tmp_path, name):
    save_two_stages(tmp_path / "run")
    _, card = load_model(tmp_path / "run")
    load = {"verifier": load_verifier, "gate": load_gate}[name]
    assert load(tmp_path / "run", card) is not None
    path = tmp_path / "run" / f"{name}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match=rf"{name}\.safetensors: damaged, or not the weights"):
        load(tmp_path / "run", card)
    path.unlink()
    with pytest.raises(ModelError, match=rf"{name}\.safetensors: no weights there"):
        Model.load(tmp_path / "run")


def change_card(folder, **values):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_card_that_describes_another_network_is_noticed(folder):
    change_card(folder, network={"width": 8, "depth": 1, "classes": 2})
    with pytest.raises(ModelError, match="does not hold the network"):
        load_model(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"format_version": 2},
        {"surprise": 1},
        {"mpp": "wide"},
        {"network": {"width": 10**9, "depth": 1, "classes": 2}},
        {"classes": None},
    ],
)
def test_a_card_of_a_newer_format_or_with_nonsense_is_refused(folder, values):
    change_card(folder, **values)
    with pytest.raises(ModelError, match=r"model\.json: not a model card this version can read"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_card_that_is_no_json_object_is_refused(folder, content):
    (folder / "model.json").write_bytes(content)
    with pytest.raises(ModelError, match="not a model card"):
        load_model(folder)


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_pickle_in_place_of_the_weights_is_refused_and_does_not_run(folder, tmp_path, as_zip):
    """Even with a card that vouches for it."""
    marker = tmp_path / "it ran"
    buffer = io.BytesIO()
    (torch.save if as_zip else pickle.dump)(Bomb(marker), buffer)
    (folder / "model.safetensors").write_bytes(buffer.getvalue())
    for vouched in (False, True):
        if vouched:
            change_card(folder, weights_sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            load_model(folder)
    assert not marker.exists()


def test_weights_of_another_kind_with_a_card_that_vouches_are_refused(folder):
    content = safetensors.torch.save({"other": torch.zeros(3)})
    (folder / "model.safetensors").write_bytes(content)
    change_card(folder, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(ModelError, match="does not hold the network"):
        load_model(folder)


def test_a_card_is_frozen():
    card = ModelCard(network=NetworkConfig(), classes=("a", "b"), mpp=0.5, threshold=0.5)
    with pytest.raises(ValueError, match="frozen"):
        card.threshold = 0.1


def test_a_state_comes_back_and_there_is_none_at_first(tmp_path):
    assert load_state(tmp_path) is None
    save_state(tmp_path, STATE)
    loaded = load_state(tmp_path)
    assert torch.equal(loaded["network"].pop("a"), STATE["network"]["a"])
    assert loaded["network"] == {"n": torch.tensor(3)}
    assert {**loaded, "network": 0} == {**STATE, "network": 0}


def save_two(folder):
    for step in (1, 2):
        save_state(folder, {**STATE, "step": step})
    return folder / "state.pt", folder / "state.previous.pt"


def test_the_newest_state_is_loaded_and_the_one_before_kept(tmp_path):
    save_two(tmp_path)
    assert load_state(tmp_path)["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.previous.pt", "state.pt"]
    (tmp_path / "state.pt").unlink()
    assert load_state(tmp_path)["step"] == 1


@pytest.mark.parametrize("length", [0, 10, 32, 400, -1])
def test_a_cut_off_state_gives_way_to_the_one_before(tmp_path, length):
    newest, _ = save_two(tmp_path)
    newest.write_bytes(newest.read_bytes()[:length])
    assert load_state(tmp_path)["step"] == 1


@pytest.mark.parametrize("place", [0.01, 0.5, 0.99])
def test_one_changed_byte_in_a_state_is_noticed(tmp_path, place):
    for path, step in zip(save_two(tmp_path), (1, None), strict=True):
        content = bytearray(path.read_bytes())
        content[int(len(content) * place)] ^= 1
        path.write_bytes(content)
        if step:
            assert load_state(tmp_path)["step"] == step
    with pytest.raises(ModelError, match=r"state\.pt: the saved training state is damaged"):
        load_state(tmp_path)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("as_zip", [False, True])
def test_a_pickle_in_place_of_the_state_is_refused_and_does_not_run(tmp_path, as_zip, signed):
    """Even behind a right checksum."""
    marker = tmp_path / "it ran"
    buffer = io.BytesIO()
    (torch.save if as_zip else pickle.dump)(Bomb(marker), buffer)
    payload = buffer.getvalue()
    newest, previous = save_two(tmp_path)
    newest.write_bytes((hashlib.sha256(payload).digest() if signed else b"") + payload)
    assert load_state(tmp_path)["step"] == 1
    previous.unlink()
    with pytest.raises(ModelError, match=r"state\.pt: "):
        load_state(tmp_path)
    assert not marker.exists()


def test_the_bomb_of_these_tests_is_one(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "it ran")))
    assert (tmp_path / "it ran").exists()


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    save_state(tmp_path, STATE)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mitosis.files.os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        save_state(tmp_path, {**STATE, "step": 8})
    assert load_state(tmp_path)["step"] == 7
    assert all(path.suffix == ".pt" for path in Path(tmp_path).iterdir())
