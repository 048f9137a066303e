"""A model as one ONNX file, for programs without PyTorch."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mitosis.checkpoints import ModelCard, VerifierCard
from mitosis.engines import OPSET, onnx_engine, onnx_model, to_input
from mitosis.errors import ConfigError
from mitosis.files import atomic_write, dump_json
from mitosis.looks import score_crops
from mitosis.second_engine import second_onnx
from mitosis.synthetic import draw_tissue
from mitosis.verifier import Verifier

__all__ = ["Exported", "export_onnx", "export_second"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes
    ----------
    path : Path
        The ONNX file.
    opset : int
        Version of its operators.
    size_bytes : int
        Of the file.
    max_difference : float or None
        Largest difference of a probability from PyTorch in float32 on phantom tissue and random bytes; None if ONNX
        Runtime is not installed.
    """

    path: Path
    opset: int
    size_bytes: int
    max_difference: float | None


def export_onnx(network: nn.Module, card: ModelCard, path: Path) -> Exported:
    """Write `network` and its card as one ONNX file, and measure how exact it is.

    The file takes images as they are read and gives probabilities (see `mitosis.engines.onnx_model`), so that a program
    that runs it cannot prepare them wrongly; only what `network.normalise_stain` asks for is left to it. Its
    ``metadata_props`` hold `card` (the model card as JSON), `mpp` (µm/px of the images), `stride` (height and width are
    multiples of it, px) and `margin` (context that a pixel needs on each side, px).

    Raises
    ------
    ConfigError
        The package `onnx` is not installed.
    OutputError
        `path` cannot be written to.
    """
    metadata = {"card": dump_json(card.model_dump(mode="json")), "mpp": str(card.mpp)}
    metadata |= {name: str(getattr(network, name)) for name in ("stride", "margin") if hasattr(network, name)}
    content = _with_metadata(onnx_model(network), metadata)
    with atomic_write(path) as stream:
        stream.write(content)
    difference = _max_difference(network, content, card.mpp) if find_spec("onnxruntime") else None
    return Exported(path, OPSET, len(content), difference)


def export_second(network: Verifier, card: VerifierCard, path: Path) -> Exported:
    """Write the second stage of a model and its card as one ONNX file, and measure how exact it is.

    It takes squares round candidates, uint8 [batch, side, side, 3] as read, and gives the probability of a mitotic
    figure, float32 [batch]. Its ``metadata_props`` hold `card` (JSON: how the two stages' scores are combined, lowered
    among look-alikes (`mitosis.crowding`) and calibrated, how many turned views are averaged, and from which scores
    on), `mpp` (µm/px of the squares) and `side` (px). All members are asked about each square; a count asks them only
    from `members_from` on.

    Raises
    ------
    ConfigError
        The package `onnx` is not installed, or the network has a spatial transformer, for which ONNX has no words.
    OutputError
        `path` cannot be written to.
    """
    if card.settings.transformer:
        raise ConfigError(
            "This second stage has a spatial transformer (verifier.transformer), which ONNX cannot hold. "
            "Export one that was trained without it."
        )
    mpp, side = card.settings.mpp, card.settings.crop
    metadata = {"card": dump_json(card.model_dump(mode="json")), "mpp": str(mpp), "side": str(side)}
    content = _with_metadata(second_onnx(network, figure=True), metadata)
    with atomic_write(path) as stream:
        stream.write(content)
    difference = None
    if find_spec("onnxruntime"):
        images = _probes(mpp)[:, :side, :side]
        difference = float(np.abs(onnx_engine(content)(images) - score_crops(network, images)).max())
    return Exported(path, OPSET, len(content), difference)


def _with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """An ONNX model that was checked and has these words in its ``metadata_props``."""
    onnx = import_module("onnx")
    model = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    checked: bytes = model.SerializeToString(deterministic=True)
    return checked


@torch.inference_mode()
def _max_difference(network: nn.Module, content: bytes, mpp: float) -> float:
    """Between ONNX Runtime and the network as it was trained, batch normalisation not folded."""
    images = _probes(mpp)
    device = next(network.parameters()).device
    was_training = network.training
    expected = network.eval()(to_input(torch.from_numpy(images).to(device))).softmax(dim=1)[:, 1].cpu().numpy()
    network.train(was_training)
    return float(np.abs(onnx_engine(content)(images) - expected).max())


def _probes(mpp: float) -> NDArray[np.uint8]:
    """Phantom tissue of three stains and random bytes, uint8 [4, 256, 256, 3]."""
    tissue = [draw_tissue(np.random.default_rng(seed), (256, 256), mpp, n_mitotic=1).image for seed in range(3)]
    return np.stack([*tissue, np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)])
