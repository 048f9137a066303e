"""Which answer to rare figures helps? The same network, steps and seeds under each strategy, on cases left out.

Examples:
  python scripts/compare_strategies.py --out comparison                    (phantom tissue, a small network, minutes)
  python scripts/compare_strategies.py PATCHES --out comparison --folds 00,02 01,03,04 --seeds 3 --set train.steps=600

  python scripts/compare_strategies.py PATCHES --out ablation --config scripts/release.yaml --folds 00,03,10 01,05,11

PATCHES comes from ``mitosis extract``. The cases of a fold are left out of training and predicted; a threshold is
chosen on the predictions of the other folds. The rows after "oversample, heavy augmentation" differ from it in one
thing each; with ``--config`` there are other rows, which differ from the settings of that file in one thing each. Every
run is kept, so a command that was stopped goes on when it is given again, and more seeds or strategies can be added.
Writes comparison.csv, comparison.md and comparison.png.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from left_out import (
    PHANTOM,
    TITLES,
    Outcome,
    add_arguments,
    cell,
    choose_folds,
    cut_patches,
    outcome_of,
    phantom_slides,
    run_without,
    write_csv,
    write_table,
)

from mitosis.config import load_config
from mitosis.evaluation import MaskOverlap
from mitosis.files import atomic_write
from mitosis.patches import PatchIndex

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

ABLATIONS: dict[str, tuple[str, ...]] = {
    "as given": (),
    "sampler: uniform": ("train.sampler=uniform",),
    "sampler: oversample": ("train.sampler=oversample",),
    "augmentation: heavy for figures": HEAVY,
    "augmentation: 0.3 for all": ("train.augment_figure=0.3", "train.augment_others=0.3"),
    "augmentation: 0.6 for all": ("train.augment_figure=0.6", "train.augment_others=0.6"),
    "other scanners": (
        "train.resolution_jitter=0.1",
        "train.colour_jitter=0.1",
        "train.scanner_jitter=0.3",
        "train.fourier_share=0.2",
    ),
    "other scanners, twice as far": (
        "train.resolution_jitter=0.2",
        "train.colour_jitter=0.2",
        "train.scanner_jitter=0.6",
        "train.fourier_share=0.4",
    ),
    "loss: cross-entropy": ("train.loss=ce",),
    "loss: Dice": ("train.loss=dice",),
    "deep supervision": ("train.deep_supervision=0.5",),
    "map of centres": ("train.auxiliary_target=centre",),
    "map of distances": ("train.auxiliary_target=distance",),
    "deep supervision, map of centres": ("train.deep_supervision=0.5", "train.auxiliary_target=centre"),
    "class weights: none": ("train.class_weighting=none",),
    "look-alikes as a class": ("network.classes=3",),
    "stains as scanned": ("network.normalise_stain=false",),
}


def main() -> None:
    """Train what is not there yet, score, write the table and the picture."""
    arguments = _arguments()
    out: Path = arguments.out
    phantom = () if arguments.patches else PHANTOM
    index = PatchIndex.read(arguments.patches) if arguments.patches else _phantom_patches(out / "phantom")
    folds = choose_folds(index, arguments.folds)
    outcomes = [_all_background(index, folds)]
    strategies = ABLATIONS if arguments.config else STRATEGIES
    for name in arguments.strategies or strategies:
        for seed in range(arguments.seeds):
            sets = (*phantom, *arguments.set, *strategies[name], f"train.seed={seed}")
            config = load_config(arguments.config, sets)
            runs = [run_without(fold, index, config, out / "runs", name) for fold in folds]
            outcomes.append(outcome_of(name, seed, runs))
            print(outcomes[-1], flush=True)
    _write(out, outcomes)


def _phantom_patches(folder: Path) -> PatchIndex:
    return cut_patches(phantom_slides(folder), folder / "patches", load_config(None, PHANTOM))


def _all_background(index: PatchIndex, folds: list[list[str]]) -> Outcome:
    """The row that shows what pixel accuracy is worth: a network that never fires."""
    cases = [case for fold in folds for case in fold]
    nothing = MaskOverlap()
    for patch in index.where(lambda patch: patch.case_id in cases and patch.on_grid).patches:
        nothing += MaskOverlap.of(index.read_mask(patch), np.zeros((patch.size, patch.size), dtype=bool))
    return Outcome("all background", 0, nothing.accuracy, nothing.dice, 0.0, 0.0, 0.0)


def _write(out: Path, outcomes: Sequence[Outcome]) -> None:
    rows = {outcome.name: [other for other in outcomes if other.name == outcome.name] for outcome in outcomes}
    write_csv(out / "comparison.csv", [{"strategy": outcome.name, **_figures(outcome)} for outcome in outcomes])
    cells = ((name, str(len(of)), *(cell(of, figure) for figure in TITLES)) for name, of in rows.items())
    write_table(out / "comparison.md", ("strategy", "seeds", *TITLES.values()), cells)
    _draw(out / "comparison.png", rows)
    print(out / "comparison.png")


def _figures(outcome: Outcome) -> dict[str, float]:
    return {key: value for key, value in asdict(outcome).items() if key != "name"}


def _draw(path: Path, rows: dict[str, list[Outcome]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 1.2 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(TITLES), sharey=True)
    names = list(rows)[::-1]
    for panel, (attribute, title) in zip(panels, TITLES.items(), strict=True):
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
    parser.add_argument("--strategies", nargs="+", metavar="NAME")
    add_arguments(parser)
    arguments = parser.parse_args()
    known = ABLATIONS if arguments.config else STRATEGIES
    if strangers := set(arguments.strategies or ()) - set(known):
        parser.error(f"{', '.join(sorted(strangers))}: unknown here. Choose from: {', '.join(known)}")
    return arguments


if __name__ == "__main__":
    main()
