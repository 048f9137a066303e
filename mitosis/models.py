"""The models that the package brings along: a folder each in ``mitosis/weights/``, known from its card alone."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors

from mitosis.cost import count_parameters, network_cost
from mitosis.errors import ModelError

__all__ = ["WEIGHTS", "ShippedModel", "find_model", "shipped_models"]

WEIGHTS = Path(__file__).parent / "weights"
"""Where shipped models lie: ``NAME/model.safetensors`` and ``NAME/model.json``."""

_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class ShippedModel:
    """What the card and the files of a shipped model say.

    Attributes
    ----------
    name : str
        What ``--model`` calls it.
    mpp : float
        µm/px it sees.
    n_parameters : int
        Learned numbers of both stages and a gate; statistics of batch normalisation are not counted.
    size_bytes : int
        Of their weights.
    gflop_per_mm2 : float
        Of the first stage, without what tiles need around them; the second looks at candidates only.
    threshold : float
        Score from which on a candidate counts, of the second stage if there is one.
    f1 : float or None
        Detection F1 on its validation cases, with the second stage if there is one; None if the card does not say.
    intended_use : str
        What it is for.
    folder : Path
        Where it lies.
    """

    name: str
    mpp: float
    n_parameters: int
    size_bytes: int
    gflop_per_mm2: float
    threshold: float
    f1: float | None
    intended_use: str
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"folder": str(self.folder)}


def find_model(name_or_path: str | Path, weights: Path = WEIGHTS) -> Path:
    """The place of a model that was named by a user.

    Parameters
    ----------
    name_or_path : str or Path
        The name of a shipped model, ``default``, or the path of a model's folder or of a file in it. A name wins over a
        folder that is called the same here; write ``./NAME`` for that. ``default`` is the shipped model of that name
        or, if there is none, the only one that is shipped.
    weights : Path
        Where shipped models lie.

    Raises
    ------
    ModelError
        It is a bare name, and there is neither such a shipped model nor such a folder.
    """
    names = _names(weights)
    wanted = str(name_or_path)
    if wanted in names:
        return weights / wanted
    if wanted == _DEFAULT and len(names) == 1:
        return weights / names[0]
    path = Path(name_or_path)
    if (
        path.exists() or wanted != path.name
    ):  # what is no bare name was meant as a path; who reads it says what is wrong
        return path
    known = f"Shipped: {', '.join(names)}" if names else "No model is shipped with this version"
    raise ModelError(f"{wanted}: no model there. {known}; or name the folder of a finished training run.")


def shipped_models(weights: Path = WEIGHTS) -> list[ShippedModel]:
    """The shipped models by name. No weights are read, only the head of their file.

    Raises
    ------
    ModelError
        A shipped model is incomplete or damaged.
    """
    return [_describe(weights / name) for name in _names(weights)]


def _names(weights: Path) -> list[str]:
    return sorted(path.parent.name for path in weights.glob("*/model.json"))


def _describe(folder: Path) -> ShippedModel:
    try:
        card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        final = card.get("verifier") or card
        names = [
            "model",
            *(["verifier"] if card.get("verifier") else []),
            *(["gate"] if final.get("gate_sha256") else []),
        ]
        stages = [folder / f"{name}.safetensors" for name in names]
        shapes = [_shapes(stage) for stage in stages]
        validation = final.get("validation", {})
        return ShippedModel(
            name=folder.name,
            mpp=card["mpp"],
            n_parameters=sum(map(count_parameters, shapes)),
            size_bytes=sum(stage.stat().st_size for stage in stages),
            gflop_per_mm2=network_cost(shapes[0]).gflop_per_mm2(card["mpp"]),
            threshold=final["threshold"],
            f1=validation.get("both_stages", validation).get("f1"),
            intended_use=card["intended_use"],
            folder=folder,
        )
    except (OSError, ValueError, KeyError, AttributeError, safetensors.SafetensorError) as error:
        raise ModelError(f"{folder}: this shipped model is incomplete or damaged ({error}). Install again.") from error


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with safetensors.safe_open(file, framework="np") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (not a mapping)
