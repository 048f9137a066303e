"""Every setting, as frozen models: YAML in and out, ``--set section.key=value`` on the command line."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mitosis.complaints import first_complaint
from mitosis.errors import ConfigError
from mitosis.files import write_text
from mitosis.sections import (
    Count,
    Fraction,
    JitterConfig,
    Mpp,
    NetworkConfig,
    Positive,
    Section,
    Seed,
    TrainConfig,
    VerifierConfig,
)

__all__ = [
    "Config",
    "CountConfig",
    "ExtractConfig",
    "JitterConfig",
    "NetworkConfig",
    "TrainConfig",
    "VerifierConfig",
    "load_config",
    "save_config",
]


class ExtractConfig(Section):
    """How patches are cut.

    Lengths in px are px at `mpp`.
    """

    mpp: Mpp = 0.5
    """µm/px of the patches, whatever the slide's own."""
    size: Annotated[int, Field(ge=32, le=4096)] = 256
    """Side of a patch, px."""
    jitter: Annotated[int, Field(ge=0)] = 24
    """A centred patch is moved by up to this many px in x and in y, so that the centre gives nothing away."""
    min_tissue: Fraction = 0.2
    """A tile without marks is kept if at least this fraction of it is tissue."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Fraction of the cases set aside for validation."""
    seed: Seed = 0


class CountConfig(Section):
    """How a slide is counted."""

    tile_size: Annotated[int, Field(ge=128, le=8192)] = 1280
    """Longest side of a tile's window, px at the model's µm/px. The detections do not depend on it."""
    batch_size: Count = 1
    workers: Annotated[int, Field(ge=0)] = 1
    """Threads that read tiles, and crops for the second stage, ahead of the network."""
    engine: str = "auto"
    """What runs the networks: a key of `mitosis.engines.ENGINES`, or `auto`, the fastest that is installed here."""
    precision: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Of 3,685 candidates that models of the shipped recipe count in float32, on left-out cases and crops, 3,672 stay
    in bfloat16 and 24 come, for two thirds of the time; in int8 3,644 and 29, for three fifths. float16 is for GPUs
    only, int8 for OpenVINO on processors with VNNI instructions."""
    views: Literal[1, 4, 8] = 1
    """Turned (4) and mirrored (8) views of each tile whose mean is taken; each costs a run of the network."""
    score_floor: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Candidates with a lower score are not reported."""
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Counts candidates with at least this score; None takes the model card's."""
    objective: Literal["f1", "count"] = "f1"
    """Which of the card's thresholds: the one with the best F1, or the one whose false positives make up for misses."""
    verify: bool = True
    """Let the second stage of the model, if it has one, give each candidate its final score."""
    gate: bool = True
    """Let the candidate gate of the model, if it has one, drop what is surely no figure before its second stage looks:
    less work, hardly another result."""
    verify_floor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Least score of the first stage to be looked at again (and reported); None takes `ask_floor` of the second stage,
    or the floor that it learned from. `score_floor` is then one of final scores."""
    merge_um: Positive = 13.0
    """Of two candidates closer than this one is kept: the plates of a telophase are up to 12.2 µm apart (the joined
    segments of MITOS 2012), and 16 of 2,538 marked figures (0.6 %) of three data sets have a neighbour so close."""
    hotspot_mm2: Positive = 2.37
    """Area of the hotspot; 2.37 mm² is ten high-power fields of field number 22 (Meuten et al. 2016)."""
    hotspot_shape: Literal["rectangle", "disc"] = "rectangle"
    hotspots: Annotated[int, Field(ge=1, le=100)] = 1
    """How many windows: the best, then the best that does not overlap it, and so on."""
    rules: tuple[str, ...] = ()
    """Grading rules to apply to the first hotspot, keys of `mitosis.grading.RULES`; none is applied unasked."""
    max_bad_fraction: Fraction = 0.01
    """A slide with more of its tissue in unreadable tiles has failed."""

    def window(self) -> dict[str, Any]:
        """What `mitosis.counting.mitotic_count` must know of the settings."""
        names = {"hotspot_mm2": "hotspot_mm2", "shape": "hotspot_shape", "n_hotspots": "hotspots", "rules": "rules"}
        return {argument: getattr(self, name) for argument, name in names.items()}


class Config(Section):
    """All settings of a run."""

    extract: ExtractConfig = ExtractConfig()
    network: NetworkConfig = NetworkConfig()
    train: TrainConfig = TrainConfig()
    verifier: VerifierConfig = VerifierConfig()
    count: CountConfig = CountConfig()

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.train.crop % self.network.stride:
            raise ValueError(
                f"train.crop ({self.train.crop}) must be a multiple of network.stem * 2 ** network.depth "
                f"({self.network.stride})"
            )
        return self


def load_config(path: Path | None = None, assignments: tuple[str, ...] = ()) -> Config:
    """Read settings from a YAML file, then apply ``section.key=value`` assignments in their order.

    Raises
    ------
    ConfigError
        The file or an assignment cannot be understood; a key is unknown; a value is out of its range.
    """
    values = _read_yaml(path) if path else {}
    for assignment in assignments:
        section, key, value = _parse(assignment)
        if not isinstance(values.setdefault(section, {}), dict):
            raise ConfigError(f"{path}: section {section!r} must hold 'key: value' lines")
        values[section][key] = value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_complaint(error, str(path) if path else "settings", Config())) from error


def save_config(path: Path, config: Config) -> None:
    """Write all settings as YAML; `load_config` gives an equal object back."""
    write_text(path, yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such settings file") from error
    except (OSError, UnicodeDecodeError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: settings are 'section:' lines with 'key: value' lines below")
    return values


def _parse(assignment: str) -> tuple[str, str, Any]:
    name, equals, text = assignment.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        raise ConfigError(f"--set {assignment}: write section.key=value, for instance train.steps=500")
    try:
        return section, key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {assignment}: {text!r} is not a value") from error
