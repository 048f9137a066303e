"""Settings of what learns: the networks of both stages and their training."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "ORIENTATIONS",
    "Count",
    "Fraction",
    "JitterConfig",
    "Mpp",
    "NetworkConfig",
    "Positive",
    "Section",
    "TrainConfig",
    "VerifierConfig",
]

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
HalfWidth = Annotated[float, Field(ge=0, le=0.5)]
Count = Annotated[int, Field(ge=1)]
Mpp = Annotated[float, Field(ge=0.05, le=4)]


class Section(BaseModel):
    """Part of the settings: cannot be changed, and knows no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkConfig(Section):
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
    stem: Literal[1, 2, 4] = 1
    """Side of the squares that the first level sees as one place, px: 2 makes a network of a width four times as cheap.
    """
    normalise_stain: bool = True
    """Bring each slide to usual stain levels; not for images of a few hundred px, whose levels say what is on them."""

    @property
    def stride(self) -> int:
        """Sides of what goes through the network must be multiples of this, px."""
        return self.stem << self.depth


class JitterConfig(Section):
    """Other scanners and laboratories, as `mitosis.domains` draws them, whatever the class; all off."""

    resolution_jitter: HalfWidth = 0.0
    """A crop is resampled as if scanned at its µm/px times 1 ± this: 0.2 makes 0.20 to 0.30 of 0.25."""
    fourier_share: Fraction = 0.0
    """Share of the patches whose slow amplitudes are mixed with those of a patch of another domain (else case)."""
    fourier_beta: Annotated[float, Field(ge=0, le=0.1)] = 0.01
    """Amplitudes are mixed up to this many periods a px; 0 is the mean colour alone. From 0.03 on the waves are as
    short as a nucleus is wide, and colours flicker."""
    colour_jitter: HalfWidth = 0.0
    """Gamma of red, green and blue, each by itself, is 1 ± this, and gain 1 ± half of it."""
    scanner_jitter: Fraction = 0.0
    """Strength of the traces of a scanner, each on half of the patches: blur, noise, sharpening, JPEG; up to 1."""


class TrainConfig(JitterConfig):
    """How the network learns."""

    steps: Count = 3000
    batch_size: Count = 16
    crop: Annotated[int, Field(ge=16, le=4096)] = 192
    """Side of the square cut out of a patch for a batch, px; a multiple of the network's stride."""
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
    paste_share: Fraction = 0.0
    """Share of the patches without a figure into which one from another patch is pasted."""
    smote_share: Fraction = 0.0
    """Share of the patches without a figure into which a figure between two others is pasted (SMOTE)."""
    loss: str = "dice+ce"
    class_weighting: Literal["inverse", "effective", "none"] = "inverse"
    """Weight of a class: the inverse of its frequency or of its effective number of nuclei, or 1."""
    max_class_weight: Positive = 20.0
    """Cap of a class weight, as a multiple of the background's."""
    deep_supervision: Fraction = 0.0
    """Weight of the mean loss of the levels below the first, each of which has a head in training; 0 is off."""
    auxiliary_target: Literal["none", "centre", "distance"] = "none"
    """A map that is learned beside the mask, a key of `mitosis.auxiliary.TARGETS`."""
    auxiliary_weight: Fraction = 0.5
    """Weight of its cross-entropy."""
    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the moving average of the weights, a step."""
    validate_every: Count = 250
    """Steps between two looks at the validation cases; the training state is saved then."""
    save_every: Count | None = None
    """Steps between two more saves of the training state, where looks are rare."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` takes bfloat16 where the processor multiplies in it."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load patches; 0 takes a thread of the training process. The result does not depend on it."""
    cache_mb: Annotated[int, Field(ge=0)] = 1024
    """Patches that each of them keeps in memory, MB. The result does not depend on it."""
    seed: Seed = 0

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


ORIENTATIONS = {"none": 1, "p4": 4, "p4m": 8}
"""Groups of symmetries of a picture, and how many orientations each has: quarter turns, and these mirrored."""


class VerifierConfig(JitterConfig):
    """The second stage: a classifier that looks again at each candidate, and how it learns.

    Lengths in px are px at `mpp`.
    """

    width: Annotated[int, Field(ge=1, le=128)] = 24
    """Channels of the first stage of blocks; the next two double them."""
    symmetry: Literal["none", "p4", "p4m"] = "none"
    """Filters come in all quarter turns (p4), or in these and mirrored (p4m), as many of them as there are channels; so
    fewer weights are learned (`mitosis.symmetry`). What is learned runs as any other."""
    transformer: bool = False
    """Let the network turn, move and scale the crop before it looks (spatial transformer)."""
    mpp: Mpp = 0.25
    crop: Annotated[int, Field(ge=16, le=256, multiple_of=8)] = 64
    """Side of the square round a candidate, px; 64 px of 0.25 µm are 16 µm, a cell and a little around it."""
    score_floor: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Least score of the first stage of a candidate to learn from."""
    max_per_slide: Count = 4000
    """Of each training slide those with the highest scores are kept."""
    members: Annotated[int, Field(ge=1, le=9)] = 1
    """Networks that learn by themselves, from `seed` on; the mean of the logarithms of their probabilities counts."""
    members_from: Fraction = 0.0
    """Score by the first member, combined and not calibrated, from which on a candidate is shown to the others and in
    further views; 0: each is."""
    gate_width: Annotated[int, Field(ge=0, le=128)] = 0
    """Channels of a candidate gate (`mitosis.gate`), which learns what the second stage says; 0: there is none."""
    gate_symmetry: Literal["none", "p4", "p4m"] = "none"
    """`symmetry` of the gate."""
    gate_from: Fraction = 0.05
    """Probability of a figure by the gate from which on a candidate is shown to the second stage."""
    steps: Count = 600
    batch_size: Annotated[int, Field(ge=2)] = 64
    figure_share: Annotated[float, Field(gt=0, lt=1)] = 0.34
    """Share of a batch that is mitotic figures."""
    look_alike_share: Annotated[float, Field(ge=0, lt=1)] = 0.33
    """Share of a batch that is marked look-alikes, where there are any; the rest is other candidates."""
    balance_domains: bool = False
    """Show others, and look-alikes, of each domain as often as its figures, as far as there are such, so that the look
    of a scanner tells little; what is of a domain without figures is not shown beside others of its class."""
    auxiliary_domains: tuple[str, ...] = ()
    """Domains whose figures are marked by other rules, or chosen by others, than those of the slides to count. All that
    is learned from them is what nuclei look like: of several last layers one learns from these domains, one from each
    other domain that has figures, and one from all; the mean of all but the first counts."""
    auxiliary_share: Annotated[float, Field(gt=0, lt=1)] = 0.33
    """Share of a batch that is of these domains."""
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
    views_from: Fraction = 0.0
    """Score after the first view, combined and not calibrated, from which on a candidate is given the others."""
    ask_floor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Least score of the first stage of a candidate that a count asks the second stage about; None is `score_floor`."""
    combine: Literal["replace", "geometric", "log_odds"] = "log_odds"
    """Final score: the probability of a mitotic figure, its geometric mean with the score of the first stage, or the
    weighted mean of both log-odds."""
    first_weight: Fraction = 0.2
    """Weight of the first stage in `log_odds`. On scanners that it has not seen it is unsure of figures, which an equal
    weight loses; logistic regressions on nine of ten cases at a time gave 0.15 to 0.28."""
    crowding: Annotated[float, Field(ge=0, le=4)] = 0.0
    """By how much the log-odds of a candidate fall where look-alikes are many: so many times the logarithm of how many
    times more of them are around it than `crowding_from` (`mitosis.crowding`); 0: not at all."""
    crowding_from: Positive = 15.0
    """Look-alikes per mm² from which on they are many, by the scores of both stages."""
    calibrate: bool = True
    """Make probabilities of final scores (temperature and offset), by what thresholds are chosen on."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Without validation slides thresholds come from so many parts of the training cases, each scored by the rest."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that make what is shown; 0 takes a thread, which a GPU waits for most of the time. The result does not
    depend on it."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _channels_stand_in_sets(self) -> Self:
        for of in ("", "gate_"):
            width, symmetry = getattr(self, f"{of}width"), getattr(self, f"{of}symmetry")
            if width % (n := ORIENTATIONS[symmetry]):
                raise ValueError(f"{of}width ({width}) must be a multiple of {n} for {of}symmetry {symmetry}")
        return self

    @model_validator(mode="after")
    def _shares_leave_room(self) -> Self:
        if self.figure_share + self.look_alike_share > 1:
            raise ValueError(
                f"figure_share + look_alike_share ({self.figure_share + self.look_alike_share:g}) must not exceed 1"
            )
        for n in self.batch_parts:
            if not 1 <= round(self.figure_share * n) < n:
                of_auxiliary = f" and an auxiliary_share of {self.auxiliary_share:g}" if self.auxiliary_domains else ""
                raise ValueError(
                    f"batch_size ({self.batch_size}) leaves no room for figures and others with a figure_share of "
                    f"{self.figure_share:g}{of_auxiliary}"
                )
        return self

    @property
    def batch_parts(self) -> tuple[int, ...]:
        """How many candidates of a batch are of other domains than the auxiliary ones and, with such, of these."""
        if not self.auxiliary_domains:
            return (self.batch_size,)
        auxiliary = round(self.auxiliary_share * self.batch_size)
        return self.batch_size - auxiliary, auxiliary
