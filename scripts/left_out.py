"""Networks trained alike and scored on cases that they have not seen: what the scripts that compare them share.

Every run is kept in a folder of its own, so a comparison that was stopped goes on when its command is given again.
"""

import argparse
import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from mitosis.cohort import SlideSource, find_sources
from mitosis.config import Config
from mitosis.detections import Detections
from mitosis.evaluation import MaskOverlap, choose_threshold, evaluate
from mitosis.extraction import extract_patches
from mitosis.files import write_json, write_text
from mitosis.geometry import area_mm2
from mitosis.matching import MatchResult
from mitosis.patches import Patch, PatchIndex
from mitosis.ranking import DetectionCurve, SlideScores

__all__ = [
    "PHANTOM",
    "TITLES",
    "Outcome",
    "Run",
    "add_arguments",
    "cell",
    "choose_folds",
    "cut_patches",
    "outcome_of",
    "phantom_slides",
    "run_without",
    "write_csv",
    "write_table",
]

PHANTOM = (
    "extract.size=128",
    "extract.jitter=16",
    "network.width=4",
    "network.depth=2",
    "train.crop=64",
    "train.batch_size=8",
    "train.learning_rate=0.004",
    "train.ema_decay=0.95",
    "train.warmup_steps=5",
    "train.steps=60",
)
"""Settings for a comparison of minutes on phantom tissue."""

PHANTOM_CASES, PHANTOM_SIZE = 4, (2048, 1536)

TITLES = {
    "pixel_accuracy": "pixel accuracy",
    "dice": "Dice",
    "f1": "detection F1",
    "average_precision": "AP",
    "recall_at_1_fp_mm2": "recall at 1 FP/mm²",
}
"""What a table calls the figures of an `Outcome`."""


@dataclass(frozen=True)
class Outcome:
    """What a way to train with one seed gives over all folds."""

    name: str
    seed: int
    pixel_accuracy: float
    dice: float
    f1: float
    average_precision: float
    recall_at_1_fp_mm2: float

    def __str__(self) -> str:
        values = "  ".join(f"{title} {getattr(self, figure):.4f}" for figure, title in TITLES.items())
        return f"{self.name}, seed {self.seed}: {values}"


@dataclass(frozen=True)
class Run:
    """What one trained network did on the cases that it had not seen."""

    scores: list[SlideScores]
    pixels: MaskOverlap
    area_mm2: float


def run_without(fold: list[str], index: PatchIndex, config: Config, folder: Path, name: str) -> Run:
    """Train without the cases of `fold` and predict them; or read what an earlier command found."""
    place = folder / f"{name.replace(' ', '_').replace('/', '-')}_without_{'-'.join(fold)}_seed{config.train.seed}"
    left_out = index.where(lambda patch: patch.case_id in fold and patch.on_grid)
    result = place / "result.json"
    if not result.exists():
        write_json(result, _train_and_predict(index, left_out, fold, config, place))
    found = json.loads(result.read_text(encoding="utf-8"))
    if not _same(found["settings"], config):
        raise SystemExit(f"{place}: holds a run with other settings. Choose another --out.")
    scores = []
    for slide in found["slides"]:
        n = len(slide["score"])
        candidates = Detections(
            np.array(slide["xy"], dtype=np.float64).reshape(n, 2), np.array(slide["score"]), np.array(slide["area_um2"])
        )
        scores.append(SlideScores(slide["slide"], slide["slide_mpp"], index.figures(slide["slide"]), candidates))
    area = sum(area_mm2(patch.size**2, patch.mpp) for patch in left_out.patches)
    return Run(scores, MaskOverlap(**found["pixels"]), area)


def _same(settings: Mapping[str, Any], config: Config) -> bool:
    """A setting that came later than the run has its default there, which changes nothing."""
    try:
        return Config.model_validate(settings) == config
    except ValidationError:
        return False


def _train_and_predict(
    index: PatchIndex, left_out: PatchIndex, fold: list[str], config: Config, place: Path
) -> dict[str, Any]:
    from mitosis.checkpoints import load_model
    from mitosis.training import train
    from mitosis.validation import score_patches

    # The last network is taken, not the best: no case is spent on choosing one.
    last = config.model_copy(update={"train": config.train.model_copy(update={"validate_every": config.train.steps})})
    training = index.where(lambda patch: patch.case_id not in fold).with_val_cases([])
    train(training, place / "model", last, resume=(place / "model" / "settings.yaml").exists())
    network, _ = load_model(place / "model")
    pixels = MaskOverlap()

    def on_patch(patch: Patch, probability: NDArray[np.float32]) -> None:
        nonlocal pixels
        pixels += MaskOverlap.of(index.read_mask(patch), probability >= 0.5)

    slides = score_patches(network, left_out, 0.01, config.count.merge_um, config.network.normalise_stain, on_patch)
    return {
        "settings": config.model_dump(mode="json"),
        "pixels": asdict(pixels),
        "slides": [
            {
                "slide": slide.slide,
                "slide_mpp": slide.slide_mpp,
                "xy": slide.candidates.xy.tolist(),
                "score": slide.candidates.score.tolist(),
                "area_um2": slide.candidates.area_um2.tolist(),
            }
            for slide in slides
        ],
    }


def outcome_of(name: str, seed: int, runs: Sequence[Run]) -> Outcome:
    """The figures of all folds together, each at the threshold that is best for the others."""
    pooled = MatchResult()
    for run in runs:
        others = [scores for other in runs if other is not run for scores in other.scores]
        pooled += evaluate(run.scores, choose_threshold(others or run.scores)).pooled
    curve = replace(
        DetectionCurve.of(scores for run in runs for scores in run.scores), area_mm2=sum(run.area_mm2 for run in runs)
    )
    pixels = sum((run.pixels for run in runs), MaskOverlap())
    return Outcome(name, seed, pixels.accuracy, pixels.dice, pooled.f1, curve.average_precision, curve.recall_at(1.0))


def choose_folds(index: PatchIndex, given: Sequence[str] | None) -> list[list[str]]:
    """The cases to leave out together: as given, or two halves."""
    folds = [fold.split(",") for fold in given] if given else [index.cases[0::2], index.cases[1::2]]
    for fold in folds:
        index.check_cases(fold)
    return folds


def phantom_slides(folder: Path) -> list[SlideSource]:
    """Slides of drawn tissue, a case each, and where their figures are."""
    from mitosis.synthetic import write_phantom, write_truth

    slides, truth = folder / "slides", folder / "truth"
    for path in (slides, truth):
        path.mkdir(parents=True, exist_ok=True)
    for case in range(PHANTOM_CASES):
        slide = slides / f"case{case}.tif"
        if not slide.exists():
            write_truth(truth / f"case{case}.csv", write_phantom(slide, case, PHANTOM_SIZE, density_per_mm2=60))
    return find_sources([slides], annotations=truth)


def cut_patches(sources: Sequence[SlideSource], folder: Path, config: Config) -> PatchIndex:
    """The patches of these slides, cut where they are not there yet."""
    for record in extract_patches(sources, folder, config.extract):
        if record.error:
            raise SystemExit(record.error)
    return PatchIndex.read(folder)


def cell(outcomes: Sequence[Outcome], figure: str) -> str:
    """Mean over seeds, and their range."""
    values = [getattr(outcome, figure) for outcome in outcomes]
    digits = 5 if figure == "pixel_accuracy" else 3
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each row, under the names of the first one."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, stream.getvalue())


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a Markdown table, and print it."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    write_text(path, "\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every comparison asks for."""
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--folds", nargs="+", metavar="CASES", help="cases to leave out together; two halves if left out"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--config", type=Path, help="settings that all of them share, a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
