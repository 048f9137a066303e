"""A model on disk: safetensors weights and a JSON card; the state of a training run. Nothing here unpickles objects."""

import hashlib
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mitosis.config import NetworkConfig, VerifierConfig
from mitosis.errors import ModelError
from mitosis.files import atomic_write, write_json
from mitosis.quantization import Ranges
from mitosis.score_calibration import UNCALIBRATED, ScoreCalibration
from mitosis.uncertainty import CaseCounts
from mitosis.unet import UNet
from mitosis.verifier import Verifier, gate_settings

__all__ = [
    "ModelCard",
    "VerifierCard",
    "load_gate",
    "load_model",
    "load_state",
    "load_verifier",
    "save_model",
    "save_state",
    "save_verifier",
]

WEIGHTS, CARD, VERIFIER, GATE = "model.safetensors", "model.json", "verifier.safetensors", "gate.safetensors"
STATE, PREVIOUS_STATE = "state.pt", "state.previous.pt"


class VerifierCard(BaseModel):
    """What must be known of a second stage to use it, and what should be.

    Attributes
    ----------
    weights_sha256 : str
        Of ``verifier.safetensors``.
    settings : VerifierConfig
        Shape of the network, µm/px, how scores are combined, and how it learned.
    threshold, count_threshold : float
        As in `ModelCard`, for final scores.
    score_calibration : ScoreCalibration
        What makes probabilities of both stages' scores; they are the final ones.
    validation : dict
        What the thresholds were chosen on, and what the first stage alone and both together reach there.
    training : dict
        Cases, sha256 of the slide files, and the number of candidates of each class.
    gate_sha256 : str
        Of ``gate.safetensors``, the candidate gate; empty if there is none.
    int8_ranges, gate_int8_ranges : dict
        `mitosis.quantization.Ranges`, for counts in int8; empty in models of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights_sha256: str = ""
    settings: VerifierConfig
    classes: tuple[str, ...]
    threshold: float
    count_threshold: float
    score_calibration: ScoreCalibration = UNCALIBRATED
    validation: dict[str, Any] = {}
    training: dict[str, Any] = {}
    versions: dict[str, str] = {}
    int8_ranges: Ranges = {}
    gate_sha256: str = ""
    gate_int8_ranges: Ranges = {}


class ModelCard(BaseModel):
    """What must be known of a model to use it, and what should be.

    Attributes
    ----------
    weights_sha256 : str
        Of ``model.safetensors``.
    mpp : float
        µm/px the model sees.
    input : str
        How an image becomes the network's input.
    threshold : float
        Score from which on a candidate counts; chosen on the validation cases for the best F1.
    count_threshold : float or None
        The same for a count without bias: as many detections as figures.
    training : dict
        Cases, sha256 of the slide files, settings and the sha256 of the index it learned from.
    int8_ranges : dict
        As in `VerifierCard`, of the first stage.
    verifier : VerifierCard or None
        The second stage, if there is one. What it learned from is in `training` too.
    description : str
        What it is and where its limits are; may be empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = Field(default=1, le=1)
    weights_sha256: str = ""
    network: NetworkConfig
    classes: tuple[str, ...]
    mpp: float
    input: str = "1 - value / 255, RGB"
    threshold: float
    count_threshold: float | None = None
    validation: dict[str, Any] = {}
    training: dict[str, Any] = {}
    versions: dict[str, str] = {}
    int8_ranges: Ranges = {}
    verifier: VerifierCard | None = None
    description: str = ""
    intended_use: str = "Research use only; not a medical device."

    @property
    def sha256(self) -> str:
        """Of all that the card says, the hashes of the weights among it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def has_seen(self, case_id: str, source_sha256: str) -> bool:
        """Whether the model learned from this case, or from this very slide file under another name."""
        return case_id in self.training.get("cases", []) or source_sha256 in self.training.get("source_sha256", [])

    def calibration_at(self, threshold: float, *, verified: bool = False) -> tuple[CaseCounts, ...]:
        """What the model did on each case left out at this threshold; nothing if that was not noted.

        With `verified` both stages together, otherwise the first alone.
        """
        of = self.verifier.validation if verified and self.verifier is not None else self.validation
        rows = [row for row in of.get("calibration", []) if row["threshold"] == threshold]
        keys = ("tp", "fp", "fn", "area_mm2", "case")
        return tuple(CaseCounts(**{key: row[key] for key in keys}) for row in rows)

    def threshold_for(self, objective: Literal["f1", "count"], *, verified: bool = False) -> float:
        """The threshold chosen for the best F1, or for a count without bias; with `verified` for final scores.

        Raises
        ------
        ModelError
            The card has no threshold for counting.
        """
        if verified and self.verifier is not None:
            return self.verifier.threshold if objective == "f1" else self.verifier.count_threshold
        if objective == "f1":
            return self.threshold
        if self.count_threshold is None:
            raise ModelError(
                "The model's card has no threshold for a count without bias (it was trained by an earlier version). "
                "Train it again, or give count.threshold."
            )
        return self.count_threshold


def save_model(folder: Path, weights: dict[str, torch.Tensor], card: ModelCard, *, half: bool = False) -> ModelCard:
    """Write ``model.safetensors`` and ``model.json`` into `folder`; gives the card with the hash of the weights.

    With `half` the learned numbers are kept in float16, which halves the file; `load_model` gives float32 back. The
    statistics of batch normalisation stay float32: a small variance would lose too much.
    """
    card = card.model_copy(update={"weights_sha256": _save_weights(folder / WEIGHTS, weights, half)})
    write_json(folder / CARD, card.model_dump(mode="json"))
    return card


def _halved(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype is not torch.float32 or name.endswith(("running_mean", "running_var")):
        return tensor
    halved = tensor.to(torch.float16)
    if not bool(halved.isfinite().all()):
        raise ModelError(f"{name}: holds numbers beyond float16 (over 65504). Save the model without half.")
    return halved


def load_model(path: Path) -> tuple[UNet, ModelCard]:
    """Read a model from its folder, or from either of its two files.

    Raises
    ------
    ModelError
        A file is missing or damaged, is of a newer format, or the two do not belong together.
    """
    folder = path.parent if path.name in (CARD, WEIGHTS) else path
    card = _read_card(folder / CARD)
    network = UNet.from_config(card.network).eval()
    _load_weights(folder / WEIGHTS, card.weights_sha256, network)
    return network, card


def save_verifier(
    folder: Path, network: Verifier, card: VerifierCard, *, gate: Verifier | None = None, half: bool = False
) -> VerifierCard:
    """Write ``verifier.safetensors``, and ``gate.safetensors``, into `folder`; gives the card with their hashes.

    They become part of the model there with a `ModelCard` that holds the card; `half` is that of `save_model`.
    """
    hashes = {"weights_sha256": _save_weights(folder / VERIFIER, network.state_dict(), half)}
    hashes["gate_sha256"] = _save_weights(folder / GATE, gate.state_dict(), half) if gate else ""
    return card.model_copy(update=hashes)


def _save_weights(path: Path, weights: dict[str, torch.Tensor], half: bool) -> str:
    """Write the file; gives its sha256."""
    kept = {name: _halved(name, tensor) if half else tensor for name, tensor in weights.items()}
    content = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in kept.items()})
    with atomic_write(path) as stream:
        stream.write(content)
    return hashlib.sha256(content).hexdigest()


def load_verifier(path: Path, card: ModelCard) -> Verifier | None:
    """Read the second stage of the model at `path`, which has this card; None if it has none.

    Raises
    ------
    ModelError
        The file is missing or damaged, or does not belong to the card.
    """
    if card.verifier is None:
        return None
    return _load_classifier(path, VERIFIER, card.verifier.weights_sha256, card.verifier.settings)


def load_gate(path: Path, card: ModelCard) -> Verifier | None:
    """Read the candidate gate of the model at `path`, or None; card and errors are those of `load_verifier`."""
    if card.verifier is None or not card.verifier.gate_sha256:
        return None
    return _load_classifier(path, GATE, card.verifier.gate_sha256, gate_settings(card.verifier.settings, card.mpp))


def _load_classifier(path: Path, name: str, digest: str, settings: VerifierConfig) -> Verifier:
    network = Verifier.from_config(settings).eval()
    _load_weights((path.parent if path.name in (CARD, WEIGHTS) else path) / name, digest, network)
    return network


def _load_weights(path: Path, digest: str, network: torch.nn.Module) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: no weights there. Name the folder of a finished training run.") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ModelError(
            f"{path}: damaged, or not the weights that {CARD} describes (sha256 differs). Copy both files anew."
        )
    try:
        network.load_state_dict(safetensors.torch.load(content))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: does not hold the network that {CARD} describes ({error}).") from error


def _read_card(path: Path) -> ModelCard:
    try:
        return ModelCard.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ModelError(f"{path}: no model card there. Name the folder of a finished training run.") from error
    except (ValidationError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: not a model card this version can read ({reason}).") from error


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the training state, its sha256 first to notice damage; ``state.previous.pt`` is the one before."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    path = folder / STATE
    if path.exists():
        path.replace(folder / PREVIOUS_STATE)
    with atomic_write(path) as stream:
        stream.write(hashlib.sha256(payload).digest() + payload)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest undamaged training state in `folder`; None if none was saved yet.

    Raises
    ------
    ModelError
        States are there, but all are damaged.
    """
    paths = [path for path in (folder / STATE, folder / PREVIOUS_STATE) if path.exists()]
    for path in paths:
        content = path.read_bytes()
        digest, payload = content[:32], content[32:]
        if hashlib.sha256(payload).digest() != digest:
            continue
        with suppress(Exception):  # a file made to look right ends in any of torch's and pickle's errors
            # What a GPU saved is read where there is none, too; networks and optimisers take it to where they are.
            state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)  # noqa: TID251 (the one place)
            return state
    if paths:
        raise ModelError(f"{paths[0]}: the saved training state is damaged. Train anew into another folder.")
    return None
