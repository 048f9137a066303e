"""Every setting, as frozen models: YAML in and out, ``--set section.key=value`` on the command line."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mitosis.complaints import first_complaint
from mitosis.errors import ConfigError
from mitosis.files import write_text

__all__ = [
    "Config",
    "CountConfig",
    "ExtractConfig",
    "NetworkConfig",
    "TrainConfig",
    "VerifierConfig",
    "load_config",
    "save_config",
]

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
HalfWidth = Annotated[float, Field(ge=0, le=0.5)]
Count = Annotated[int, Field(ge=1)]
Mpp = Annotated[float, Field(ge=0.05, le=4)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ExtractConfig(_Section):
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
    seed: int = 0


class NetworkConfig(_Section):
    """The U-Net."""

    width: Annotated[int, Field(ge=1, le=256)] = 16
    """Channels of the first level; each level down doubles them."""
    depth: Annotated[int, Field(ge=1, le=6)] = 3
    """How often the picture is halved."""
    classes: Literal[2, 3] = 2
    """2: background, mitotic figure. 3: non-mitotic figure as a class of its own."""
    block: Literal["plain", "separable", "inverted"] = "plain"
    """Two a level: 3x3 convolutions, depthwise and pointwise ones (MobileNet) or inverted residuals (MobileNetV2)."""
    expansion: Annotated[int, Field(ge=1, le=8)] = 4
    """Hidden channels of an inverted block for each that goes out; MobileNetV2 has 6, fewer where it is small."""
    normalise_stain: bool = True
    """Bring each slide to usual stain levels; not for images of a few hundred px, whose levels say what is on them."""


class TrainConfig(_Section):
    """How the network learns."""

    steps: Count = 3000
    batch_size: Count = 16
    crop: Annotated[int, Field(ge=16, le=4096)] = 192
    """Side of the square cut out of a patch for a batch, px; a multiple of 2 ** network depth."""
    sampler: str = "oversample"
    figure_share: Fraction = 0.5
    """Share of a batch that holds a mitotic figure (samplers `oversample`, `undersample…`, `combined`)."""
    mix: tuple[Fraction, Fraction, Fraction] = (0.5, 0.25, 0.25)
    """Shares of a batch with a figure, with a look-alike only, and with neither (sampler `mix`); their sum is 1."""
    augment_figure: Fraction = 0.0
    """Strength of augmentation of a patch with a figure the first time an epoch shows it; 0 light, 1 heaviest."""
    augment_others: Fraction = 0.0
    """Strength of augmentation of all other patches."""
    augment_per_repeat: Fraction = 0.0
    """How much the strength rises with each further time an epoch shows a patch, up to 1."""
    resolution_jitter: HalfWidth = 0.0
    """A crop is resampled as if scanned at the patch's µm/px times 1 ± this: 0.2 makes 0.20 to 0.30 of 0.25."""
    fourier_share: Fraction = 0.0
    """Share of the patches whose slow amplitudes are mixed with those of a patch of another domain (else case)."""
    fourier_beta: Annotated[float, Field(ge=0, le=0.1)] = 0.01
    """Amplitudes are mixed up to this many periods a px; 0 is the mean colour alone. From 0.03 on the waves are as
    short as a nucleus is wide, and colours flicker."""
    colour_jitter: HalfWidth = 0.0
    """Gamma of red, green and blue, each by itself, is 1 ± this, and gain 1 ± half of it."""
    scanner_jitter: Fraction = 0.0
    """Strength of the traces of a scanner, each on half of the patches: blur, noise, sharpening, JPEG; up to 1."""
    paste_share: Fraction = 0.0
    """Share of the patches without a figure into which one from another patch is pasted."""
    smote_share: Fraction = 0.0
    """Share of the patches without a figure into which a figure between two others is pasted (SMOTE)."""
    loss: str = "dice+ce"
    class_weighting: Literal["inverse", "effective", "none"] = "inverse"
    """Weight of a class: the inverse of its frequency or of its effective number of nuclei, or 1."""
    max_class_weight: Positive = 20.0
    """Cap of a class weight, as a multiple of the background's."""
    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the moving average of the weights, a step."""
    validate_every: Count = 250
    """Steps between two looks at the validation cases; the training state is saved then."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` takes bfloat16 where the processor multiplies in it."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load patches; 0 takes a thread of the training process. The result does not depend on it."""
    seed: int = 0

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be fewer than steps ({self.steps})")
        return self

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if abs(sum(self.mix) - 1) > 1e-6 or not self.mix[0]:
            raise ValueError(f"mix ({', '.join(map(str, self.mix))}) must begin with more than 0 and add up to 1")
        if self.paste_share + self.smote_share > 1:
            raise ValueError(f"paste_share + smote_share ({self.paste_share + self.smote_share:g}) must not exceed 1")
        return self


class VerifierConfig(_Section):
    """The second stage: a classifier that looks again at each candidate, and how it learns.

    Lengths in px are px at `mpp`.
    """

    width: Annotated[int, Field(ge=1, le=128)] = 24
    """Channels of the first stage of blocks; the next two double them."""
    transformer: bool = False
    """Let the network turn, move and scale the crop before it looks (spatial transformer)."""
    mpp: Mpp = 0.25
    crop: Annotated[int, Field(ge=16, le=256, multiple_of=8)] = 64
    """Side of the square round a candidate, px; 64 px of 0.25 µm are 16 µm, a cell and a little around it."""
    score_floor: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Least score of the first stage of a candidate to learn from."""
    max_per_slide: Count = 4000
    """Of each training slide those with the highest scores are kept."""
    steps: Count = 600
    batch_size: Annotated[int, Field(ge=2)] = 64
    figure_share: Annotated[float, Field(gt=0, lt=1)] = 0.34
    """Share of a batch that is mitotic figures."""
    look_alike_share: Annotated[float, Field(ge=0, lt=1)] = 0.33
    """Share of a batch that is marked look-alikes, where there are any; the rest is other candidates."""
    augment: Fraction = 0.3
    """Strength of augmentation, the same for all: were it heavier for figures, blur and noise would tell them."""
    shift: Annotated[int, Field(ge=0, le=32)] = 5
    """A crop is moved by up to this many px in x and in y, as a candidate may lie beside its nucleus."""
    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the moving average of the weights, a step."""
    smote: bool = False
    """Learn the last layer anew on the features of all candidates, the rarer classes filled up by SMOTE."""
    views: Literal[1, 4, 8] = 1
    """Turned (4) and mirrored (8) views of each candidate whose mean is taken; `count.views` may ask for more."""
    combine: Literal["replace", "geometric"] = "geometric"
    """Final score: the probability of a mitotic figure, or its geometric mean with the score of the first stage."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Without validation slides thresholds come from so many parts of the training cases, each scored by the rest."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0

    @model_validator(mode="after")
    def _shares_leave_room(self) -> Self:
        if self.figure_share + self.look_alike_share > 1:
            raise ValueError(
                f"figure_share + look_alike_share ({self.figure_share + self.look_alike_share:g}) must not exceed 1"
            )
        if not 1 <= round(self.figure_share * self.batch_size) < self.batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) leaves no room for figures and others with a figure_share of "
                f"{self.figure_share:g}"
            )
        return self


class CountConfig(_Section):
    """How a slide is counted."""

    tile_size: Annotated[int, Field(ge=128, le=8192)] = 1024
    """Side of a tile's window, px at the model's µm/px. The detections do not depend on it."""
    batch_size: Count = 1
    workers: Annotated[int, Field(ge=0)] = 1
    """Threads that read tiles ahead of the network."""
    engine: str = "auto"
    """What runs the network: a key of `mitosis.engines.ENGINES`, or `auto`, the fastest that is installed here."""
    precision: Literal["float32", "bfloat16"] = "float32"
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
    verify_floor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Least score of the first stage to be looked at again (and reported); None takes the floor of training the second
    stage. `score_floor` is then one of final scores."""
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


class Config(_Section):
    """All settings of a run."""

    extract: ExtractConfig = ExtractConfig()
    network: NetworkConfig = NetworkConfig()
    train: TrainConfig = TrainConfig()
    verifier: VerifierConfig = VerifierConfig()
    count: CountConfig = CountConfig()

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        stride = 2**self.network.depth
        if self.train.crop % stride:
            raise ValueError(f"train.crop ({self.train.crop}) must be a multiple of 2 ** network.depth ({stride})")
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
