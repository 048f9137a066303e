"""Which answer to rare figures helps? The same network, steps and seeds under each strategy, on cases left out.

Examples:
  python scripts/compare_strategies.py --out comparison                    (phantom tissue, a small network, minutes)
  python scripts/compare_strategies.py PATCHES --out comparison --folds 00,02 01,03,04 --seeds 3 --set train.steps=600

PATCHES comes from ``mitosis extract``. The cases of a fold are left out of training and predicted; a threshold is
chosen on the predictions of the other folds. The rows after "oversample, heavy augmentation" differ from it in one
thing each. Every run is kept, so a command that was stopped goes on when it is given again, and more seeds or
strategies can be added. Writes comparison.csv, comparison.md and comparison.png.
"""

import argparse
import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mitosis.cohort import find_sources
from mitosis.config import Config, load_config
from mitosis.detections import Detections
from mitosis.evaluation import MaskOverlap, choose_threshold, evaluate
from mitosis.extraction import extract_patches
from mitosis.files import atomic_write, write_json, write_text
from mitosis.geometry import area_mm2
from mitosis.matching import MatchResult
from mitosis.patches import Patch, PatchIndex
from mitosis.ranking import DetectionCurve, SlideScores

PLAIN = ("train.sampler=uniform", "train.loss=ce", "train.class_weighting=none", "train.augment_figure=0")
HEAVY = ("train.augment_figure=0.6", "train.augment_per_repeat=0.1")
STRATEGIES: dict[str, tuple[str, ...]] = {
    "nothing": PLAIN,
    "weighted cross-entropy": (*PLAIN, "train.class_weighting=inverse"),
    "effective number": (*PLAIN, "train.class_weighting=effective"),
    "default: oversample, light augmentation, Dice + CE": (),
    "oversample, heavy augmentation": HEAVY,
    "undersample": (*HEAVY, "train.sampler=undersample"),
    "undersample each epoch": (*HEAVY, "train.sampler=undersample-each-epoch"),
    "combined": (*HEAVY, "train.sampler=combined"),
    "mix figure / look-alike / random": (*HEAVY, "train.sampler=mix"),
    "balanced": (*HEAVY, "train.sampler=balanced"),
    "copy-paste": (*HEAVY, "train.paste_share=0.3"),
    "SMOTE": (*HEAVY, "train.smote_share=0.3"),
    "loss: cross-entropy": (*HEAVY, "train.loss=ce"),
    "loss: Dice": (*HEAVY, "train.loss=dice"),
    "loss: Tversky": (*HEAVY, "train.loss=tversky"),
    "loss: focal": (*HEAVY, "train.loss=focal"),
    "loss: Dice + top-k": (*HEAVY, "train.loss=dice+topk"),
}
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
PHANTOM_CASES, PHANTOM_SIZE = 4, (2048, 1536)


@dataclass(frozen=True)
class Outcome:
    """One strategy with one seed, over all folds; the all-background row has no detections."""

    strategy: str
    seed: int
    pixel_accuracy: float
    dice: float
    f1: float
    average_precision: float
    recall_at_1_fp_mm2: float


def main() -> None:
    """Train what is not there yet, score, write the table and the picture."""
    arguments = _arguments()
    out: Path = arguments.out
    phantom = () if arguments.patches else PHANTOM
    index = PatchIndex.read(arguments.patches or _phantom_patches(out / "phantom", load_config(None, phantom)))
    folds = [fold.split(",") for fold in arguments.folds or _halves(index.cases)]
    for fold in folds:
        index.check_cases(fold)
    outcomes = [_all_background(index, folds)]
    for name in arguments.strategies or STRATEGIES:
        for seed in range(arguments.seeds):
            settings = (*phantom, *arguments.set, *STRATEGIES[name], f"train.seed={seed}")
            runs = [_run(index, fold, load_config(None, settings), out / "runs", name) for fold in folds]
            outcomes.append(_outcome(name, seed, runs))
            print(_line(outcomes[-1]), flush=True)
    _write(out, outcomes)


def _halves(cases: Sequence[str]) -> list[str]:
    return [",".join(cases[0::2]), ",".join(cases[1::2])]


def _phantom_patches(folder: Path, config: Config) -> Path:
    """Patches of drawn tissue, a case a slide."""
    from mitosis.synthetic import write_phantom, write_truth

    slides, truth = folder / "slides", folder / "truth"
    for path in (slides, truth):
        path.mkdir(parents=True, exist_ok=True)
    for case in range(PHANTOM_CASES):
        slide = slides / f"case{case}.tif"
        if not slide.exists():
            write_truth(truth / f"case{case}.csv", write_phantom(slide, case, PHANTOM_SIZE, density_per_mm2=60))
    for record in extract_patches(find_sources([slides], annotations=truth), folder / "patches", config.extract):
        if record.error:
            raise SystemExit(record.error)
    return folder / "patches"


@dataclass(frozen=True)
class Run:
    """What one trained network did on the cases that it had not seen."""

    scores: list[SlideScores]
    pixels: MaskOverlap
    area_mm2: float


def _run(index: PatchIndex, fold: list[str], config: Config, folder: Path, name: str) -> Run:
    """Train without the cases of `fold` and predict them; or read what an earlier command found."""
    place = folder / f"{name.replace(' ', '_').replace('/', '-')}_without_{'-'.join(fold)}_seed{config.train.seed}"
    left_out = index.where(lambda patch: patch.case_id in fold and patch.on_grid)
    result = place / "result.json"
    if not result.exists():
        write_json(result, _train_and_predict(index, left_out, fold, config, place))
    found = json.loads(result.read_text(encoding="utf-8"))
    if found["settings"] != config.model_dump(mode="json"):
        raise SystemExit(f"{place}: holds a run with other settings. Choose another --out.")
    scores = []
    for slide in found["slides"]:
        n = len(slide["score"])
        candidates = Detections(
            np.array(slide["xy"], dtype=np.float64).reshape(n, 2), np.array(slide["score"]), np.array(slide["area_um2"])
        )
        scores.append(SlideScores(slide["slide"], slide["slide_mpp"], index.figures(slide["slide"]), candidates))
    return Run(scores, MaskOverlap(**found["pixels"]), _area(left_out))


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


def _area(index: PatchIndex) -> float:
    return sum(area_mm2(patch.size**2, patch.mpp) for patch in index.patches)


def _outcome(name: str, seed: int, runs: Sequence[Run]) -> Outcome:
    pooled = MatchResult()
    for run in runs:
        others = [scores for other in runs if other is not run for scores in other.scores]
        pooled += evaluate(run.scores, choose_threshold(others or run.scores)).pooled
    curve = replace(
        DetectionCurve.of(scores for run in runs for scores in run.scores), area_mm2=sum(run.area_mm2 for run in runs)
    )
    pixels = sum((run.pixels for run in runs), MaskOverlap())
    return Outcome(name, seed, pixels.accuracy, pixels.dice, pooled.f1, curve.average_precision, curve.recall_at(1.0))


def _all_background(index: PatchIndex, folds: list[list[str]]) -> Outcome:
    """The row that shows what pixel accuracy is worth: a network that never fires."""
    cases = [case for fold in folds for case in fold]
    nothing = MaskOverlap()
    for patch in index.where(lambda patch: patch.case_id in cases and patch.on_grid).patches:
        nothing += MaskOverlap.of(index.read_mask(patch), np.zeros((patch.size, patch.size), dtype=bool))
    return Outcome("all background", 0, nothing.accuracy, nothing.dice, 0.0, 0.0, 0.0)


FIGURES = ("pixel_accuracy", "dice", "f1", "average_precision", "recall_at_1_fp_mm2")
TITLES = ("pixel accuracy", "Dice", "detection F1", "AP", "recall at 1 FP/mm²")


def _line(outcome: Outcome) -> str:
    values = "  ".join(f"{title} {getattr(outcome, figure):.4f}" for title, figure in zip(TITLES, FIGURES, strict=True))
    return f"{outcome.strategy}, seed {outcome.seed}: {values}"


def _write(out: Path, outcomes: Sequence[Outcome]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(Outcome.__dataclass_fields__)
    writer.writerows(asdict(outcome).values() for outcome in outcomes)
    write_text(out / "comparison.csv", stream.getvalue())
    names = list(dict.fromkeys(outcome.strategy for outcome in outcomes))
    rows = {name: [outcome for outcome in outcomes if outcome.strategy == name] for name in names}
    lines = [f"| strategy | seeds | {' | '.join(TITLES)} |", "|---|---|" + "---|" * len(TITLES)]
    lines += [
        f"| {name} | {len(of)} | {' | '.join(_cell(of, figure) for figure in FIGURES)} |" for name, of in rows.items()
    ]
    write_text(out / "comparison.md", "\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))
    _draw(out / "comparison.png", rows)
    print(out / "comparison.png")


def _cell(outcomes: Sequence[Outcome], figure: str) -> str:
    """Mean over seeds, and their range."""
    values = [getattr(outcome, figure) for outcome in outcomes]
    digits = 5 if figure == "pixel_accuracy" else 3
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def _draw(path: Path, rows: dict[str, list[Outcome]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 1.2 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(FIGURES), sharey=True)
    names = list(rows)[::-1]
    for panel, attribute, title in zip(panels, FIGURES, TITLES, strict=True):
        for height, name in enumerate(names):
            values = [getattr(outcome, attribute) for outcome in rows[name]]
            colour = "#D55E00" if name == "all background" else "#0072B2"
            panel.barh(height, statistics.mean(values), color=colour, alpha=0.35)
            panel.plot(values, [height] * len(values), "o", color=colour, markersize=4)
        panel.set_xlim(0, 1.02)
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    figure.suptitle("Cases left out; bars are means over seeds, dots are seeds", fontsize=11)
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=130)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patches", type=Path, nargs="?", help="a folder of patches; phantom tissue if left out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--folds", nargs="+", metavar="CASES", help="cases to leave out together; two halves if left out"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
