"""Train the model that ships, and measure it on cases that it has not seen.

Example: python scripts/train_release.py DATA --out release

DATA holds `mitos12` (MITOS 2012, Aperio), `atypia14` (MITOS-ATYPIA-14, Hamamatsu) and `amibr` (AMi-Br, crops round
figures of four scanners). The first stage does not learn from the crops, unless ``--crops`` is given: they hold next to
nothing but figures, so a network learns to tell crops from fields. The second stage learns from some crops too, and
from dark nuclei beside their figures (`crop_candidates`), but as from auxiliary domains: what is a figure there is told
by a last layer of their own, as those who marked them went by other rules; each scanner of fields has one too.
The settings are those of release.yaml beside this file. For each fold (`release_folds`), and once for all cases
together, a first stage is trained. A second stage, and its gate, learn from the candidates of a scout, a first stage
twice as wide, which does not ship: it finds no more figures, for four times the multiplications. With ``--mine`` both
go on learning with their false positives before. What is left out of a fold is then predicted, and all that is
reported, thresholds included, comes from such predictions. The model of all cases is the one that ships.

Every step that is done is kept, so the same command goes on where it was stopped; with ``--folds`` several commands can
share the work. A recipe that was changed needs a new ``--out``.
"""

import argparse
import csv
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from crop_candidates import stain_beside_figures, write_crop_candidates
from crop_mosaics import write_mosaics
from embarrassment import blind_rows, model_pixels, model_row
from release_folds import CASES, FIELDS, FOLDS, FROM, WITHIN, Use, use_of
from release_report import UNGATED, Quality, calibration_errors, gate_losses, read_stage

from mitosis.annotations import Label
from mitosis.candidates import collect_candidates
from mitosis.checkpoints import load_gate, load_model, load_verifier, save_model, save_verifier
from mitosis.cohort import SlideSource, find_sources, read_manifest
from mitosis.config import Config, load_config
from mitosis.crops import CandidateSet
from mitosis.evaluation import MaskOverlap, calibration_rows, candidate_truth, evaluate
from mitosis.extraction import extract_patches
from mitosis.files import atomic_write, make_folder, sole_writer, write_json, write_text
from mitosis.inference import Model, count_slide
from mitosis.mining import mine, read_marks
from mitosis.patches import Patch, PatchIndex
from mitosis.ranking import SlideScores
from mitosis.score_calibration import ScoreCalibration, fit_calibration
from mitosis.second_stage import add_second_stage
from mitosis.slides import open_slide
from mitosis.training import train

RECIPE = Path(__file__).with_name("release.yaml")

VALIDATION = ("MIDOG21_014", "MIDOG21_064", "MIDOG21_114", "TUPAC16_16")
"""Training wants to validate on something that nothing is chosen by; crops are the least loss."""

CROPS_EVERY = 2
"""The second stage is shown the crops of every so manieth slide; all of them gained nothing, auxiliary or not."""

TUNE = (
    "train.steps=1500",
    "train.validate_every=1500",
    "train.learning_rate=0.001",
    "train.warmup_steps=30",
    "count.threshold=0.5",
)
"""How false positives are mined, and how the first stage goes on learning with them as look-alikes."""

ON = "cases left out of the folds {} of scripts/train_release.py; each case at the threshold of the others"
DATA = (
    "MITOS 2012 (ICPR contest, Aperio), MITOS-ATYPIA-14 (Hamamatsu) and AMi-Br (crops of MIDOG 2021 and TUPAC16): "
    "research-only or contest data, none of which is part of this package."
)
LIMITS = (
    "Two stages for H&E slides at 0.5 and 0.25 µm/px. From breast cancer alone: fields of ten cases, the second "
    "stage also crops of half of 198 slides. The fields were chosen where figures are many, so precision on whole "
    "slides is not known. On scanners other than those of the fields it finds fewer figures; so it may on slides "
    "scanned at 0.5 µm/px (20x), which show less than the second stage learned from. Candidates among many look-alikes "
    "score less; in a picture much smaller than a field of view each scores as if it stood alone. Other tumours, "
    "species, and stains are untried. Its count is not a diagnosis; research use only."
)


def main() -> None:
    """Prepare the data, train each fold, predict what it left out."""
    arguments = _arguments()
    config = load_config(RECIPE, tuple(arguments.set))
    data = Data(arguments.data, arguments.out / "data", config)
    for name in arguments.folds:
        Fold(name, data, arguments).run()
    done = [name for name in (*CASES, "all") if (arguments.out / name / "both.json").exists()]
    if len(done) > 1 and "all" in done:
        print(ship(arguments.out, data.patches, config, done[:-1]))


class Data:
    """Slides, marks and patches of the three collections; of several commands one makes them, and the others wait."""

    def __init__(self, source: Path, out: Path, config: Config) -> None:
        self.source, self.out, self.config = source, out, config

    @cached_property
    def slides(self) -> dict[str, list[SlideSource]]:
        """The slides of each collection; the crops of AMi-Br as a mosaic a slide."""
        manifest = self.out / "mosaics" / "manifest.csv"
        with sole_writer(self.out, wait=True):
            if not manifest.exists():
                write_mosaics(self.source / "amibr", manifest.parent)
        fields = {
            "mitos12": find_sources([self.source / "mitos12"], **_contest(self.source / "mitos12", "aperio", 0.2456)),
            "atypia14": find_sources(
                [self.source / "atypia14"], **_contest(self.source / "atypia14", "hamamatsu", 0.2273)
            ),
        }
        return {**fields, "amibr": read_manifest(manifest)}

    @property
    def all_slides(self) -> list[SlideSource]:
        """Of all collections."""
        return [slide for some in self.slides.values() for slide in some]

    @cached_property
    def patches(self) -> PatchIndex:
        """Patches of all slides."""
        slides = self.slides
        with sole_writer(self.out, wait=True):
            for name, some in slides.items():
                for record in extract_patches(some, self.out / name, self.config.extract, os.cpu_count() or 1):
                    if record.error:
                        raise SystemExit(record.error)
        return PatchIndex.join([PatchIndex.read(self.out / name) for name in slides])

    def crops_left_out(self, fold: str) -> set[str]:
        """The slides of crops that the models of a fold do not see: each fold of cases leaves out a part of them."""
        crops = [slide.case_id for slide in self.slides["amibr"] if slide.case_id not in VALIDATION]
        return set(crops[list(CASES).index(fold) :: len(CASES)]) if fold in CASES else set()


def _contest(folder: Path, domain: str, mpp: float) -> dict[str, Any]:
    """A03_01 is a field of case 03, and so is H03_01."""
    return {"case_pattern": r"^[AH](\d\d)", "domain": domain, "mpp": mpp, "annotations": folder}


class Fold:
    """One set of cases left out: the models that did not see them, and what these say of them."""

    def __init__(self, name: str, data: Data, options: argparse.Namespace) -> None:
        self.name, self.data, self.options = name, data, options
        self.out: Path = options.out / name
        self.config = load_config(RECIPE, tuple(options.set))
        self.crops = data.crops_left_out(name)

    def _is_learned_from(self, one: SlideSource | Patch) -> bool:
        if one.domain in FIELDS:
            return use_of(self.name, one.slide_id, one.case_id, one.domain) is Use.LEARN
        return one.case_id in VALIDATION or (self.options.crops and one.case_id not in self.crops)

    def _is_predicted(self, one: SlideSource) -> bool:
        if one.domain in FIELDS:
            return use_of(self.name, one.slide_id, one.case_id, one.domain) is Use.PREDICT
        return one.case_id in (self.crops or VALIDATION)

    def run(self) -> None:
        """All stages, each only if it is not there yet."""
        seen = [slide for slide in self.data.all_slides if self._is_learned_from(slide)]
        width, scouted, both = self.config.network.width, self.out / "scout-both", self.out / "both"
        first = self._train_first("", width, seen)
        if not (both / "model.json").exists():
            if not (scouted / "model.json").exists():
                self._train_second(self._train_first("scout-", 2 * width, seen), seen, scouted)
            with_first_stage(scouted, first, both)
        self._predict(first)
        self._predict(both, gate=False)
        self._predict(both)  # the last: by this file other commands know that the fold is done

    def _train_first(self, prefix: str, width: int, seen: Sequence[SlideSource]) -> Path:
        """A first stage, which goes on learning with its false positives if it is to be so."""
        changes = (*self.options.set, f"network.width={width}")
        config, tune = (load_config(RECIPE, (*some, *changes)) for some in ((), TUNE))
        first = self._train(f"{prefix}base", config)
        if not self.options.mine:
            return first
        mined = self.out / f"{prefix}mined"
        mine([slide for slide in seen if slide.domain in FIELDS], self._model(first), mined, tune)
        self._predict(first)
        return self._train(f"{prefix}tuned", tune, start=first, more=[PatchIndex.read(mined)])

    def _train_second(self, first: Path, seen: Sequence[SlideSource], out: Path) -> None:
        """A second stage that learns from candidates of fields, and from pictures of figures."""
        model, folder = self._model(first), self.out / "crop-candidates"
        marked = [slide for slide in seen if slide.domain in FIELDS or slide.case_id in VALIDATION]
        fields = collect_candidates(marked, model, self.out / "candidates", self.config)
        crops = write_crop_candidates(
            self.data.source / "amibr", self._some_crops(), folder, self.config.verifier, model.card.weights_sha256
        )
        add_second_stage(first, CandidateSet.join(fields, crops), out, self.config, on_step=self._report)

    def _some_crops(self) -> list[SlideSource]:
        """Slides of crops for the second stage, none that is left out."""
        crops = [slide for slide in self.data.slides["amibr"] if slide.case_id not in {*self.crops, *VALIDATION}]
        return crops[::CROPS_EVERY]

    def _train(self, name: str, config: Config, start: Path | None = None, more: Sequence[PatchIndex] = ()) -> Path:
        out = self.out / name
        if not (out / "done").exists():
            patches = PatchIndex.join([self.data.patches.where(self._is_learned_from), *more])
            index = patches.with_val_cases(list(VALIDATION))
            resume = (out / "settings.yaml").exists()
            train(index, out, config, resume=resume, start=start, on_step=lambda s, loss: self._report(name, s, loss))
            write_text(out / "done", "")
        return out

    def _model(self, folder: Path) -> Model:
        return Model.load(folder, self.config.count)

    def _report(self, name: str, step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"{self.name} {name}: step {step}, loss {loss:.3f}", flush=True)

    def _predict(self, model: Path, *, gate: bool = True) -> None:
        """Candidates of the slides that the models of this fold have not seen, and their marks.

        Without the gate only if there is one, so that it is known what it loses.
        """
        path = self.out / f"{model.name if gate else UNGATED}.json"
        ready, rows, amibr = self._model(model), list[dict[str, Any]](), self.data.source / "amibr"
        if path.exists() or not (gate or ready.gate):
            return
        apart, count = _without_crowding(ready), self.config.count.model_copy(update={"gate": gate})
        for source in filter(self._is_predicted, self.data.all_slides):
            with open_slide(source.path, source.mpp) as slide:
                if source.domain in FIELDS:
                    counted = count_slide(slide, source.slide_id, ready, count)
                else:
                    stain = stain_beside_figures(amibr, source.slide_id)
                    counted = count_slide(slide, source.slide_id, apart, count, stain=stain)
                marks, _ = read_marks(source)
                rows.append(
                    {
                        "slide": source.slide_id,
                        "case": source.case_id,
                        "domain": source.domain,
                        "slide_mpp": slide.mpp,
                        "area_mm2": counted.tissue.area_mm2,
                        "figures": _places(marks, Label.MITOTIC_FIGURE),
                        "look_alikes": _places(marks, Label.NON_MITOTIC_FIGURE),
                        "xy": counted.candidates.xy.tolist(),
                        "score": counted.candidates.score.tolist(),
                    }
                )
        write_json(path, rows)


def with_first_stage(stages: Path, first: Path, out: Path) -> None:
    """Write to `out` the second stage of the model at `stages`, and its gate, behind the first stage at `first`."""
    _, card = load_model(stages)
    second, (network, own) = load_verifier(stages, card), load_model(first)
    if second is None or card.verifier is None:
        raise SystemExit(f"{stages}: has no second stage. Delete it and run again.")
    verifier = save_verifier(make_folder(out), second, card.verifier, gate=load_gate(stages, card))
    files = sorted({*own.training["source_sha256"], *card.training["source_sha256"]})
    training = own.training | {"source_sha256": files}
    save_model(out, network.state_dict(), own.model_copy(update={"verifier": verifier, "training": training}))


def _without_crowding(model: Model) -> Model:
    """The model for crops, which stand close in a mosaic; that says nothing of how close candidates are on a slide."""
    second = model.card.verifier
    if second is None:
        return model
    settings = second.settings.model_copy(update={"crowding": 0.0})
    card = model.card.model_copy(update={"verifier": second.model_copy(update={"settings": settings})})
    return replace(model, card=card)


def ship(release: Path, patches: PatchIndex, config: Config, folds: Sequence[str]) -> Path:
    """The model of all cases with the thresholds and the figures of those that `folds` left out, in float16."""
    source, out = release / "all" / "both", make_folder(release / "default")
    network, card = load_model(source)
    second = load_verifier(source, card)
    if second is None or card.verifier is None:
        raise SystemExit(f"{source}: has no second stage. Delete it and run again.")
    scores = read_stage(release, "both")
    fields = [slide for slide in scores if slide.domain in FIELDS]
    calibration = fit_calibration(*candidate_truth(fields))
    alone = _left_out(read_stage(release, _first_stage(release)))
    both = _left_out([calibrated(slide, calibration) for slide in scores])
    rows = [
        *blind_rows(patches.where(lambda patch: patch.domain == "aperio"), config),
        _model_row(release, patches, config, folds, both),
    ]
    verifier = card.verifier.model_copy(
        update={
            "threshold": both["threshold"],
            "count_threshold": both["count_threshold"],
            "score_calibration": calibration,
            "validation": {
                "both_stages": both["quality"],
                "calibration": both["calibration"],
                "calibration_error": calibration_errors(fields),
                "beside_detectors_that_know_nothing": rows,
                **({"gate": gate_losses(release)} if card.verifier.gate_sha256 else {}),
                **_further(release),
            },
        }
    )
    # Digits for cases would be taken for those of a user's slides.
    learned = sorted({*card.training["cases"], *card.verifier.training["cases"]})
    cases = [f"MITOS {case}" if case.isdigit() else case for case in learned]
    changes = {
        "threshold": alone["threshold"],
        "count_threshold": alone["count_threshold"],
        "validation": {
            "on": ON.format(", ".join(folds)),
            "f1": alone["quality"]["f1"],
            "first_stage": alone["quality"],
            "calibration": alone["calibration"],
        },
        "training": card.training | {"cases": cases, "data": DATA},
        "verifier": save_verifier(out, second, verifier, gate=load_gate(source, card), half=True),
        "description": LIMITS,
    }
    save_model(out, network.state_dict(), card.model_copy(update=changes), half=True)
    picture = release / "networks" / "networks.png"
    if picture.exists():
        with atomic_write(out / picture.name) as stream:
            stream.write(picture.read_bytes())
    return out


def _further(release: Path) -> dict[str, Any]:
    """What else was asked of the recipe, as far as it was: other folds, other networks, and what each part is worth."""
    asked = {"fields_of_known_cases": WITHIN, **{f"learned_from_{name}_alone": (fold,) for name, fold in FROM.items()}}
    folds = {name: some for name, some in asked.items() if all((release / one / "both.json").exists() for one in some)}
    tables = {
        "networks_tried": release / "networks" / "networks.csv",
        "first_stage_ablation": release / "ablation" / "comparison.csv",
    }
    return {name: Quality.of(read_stage(release, "both", some), some).to_dict() for name, some in folds.items()} | {
        name: _rows(path) for name, path in tables.items() if path.exists()
    }


def _rows(path: Path) -> list[dict[str, str | float]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(stream)]


def _value(text: str) -> str | float:
    try:
        return round(float(text), 4)
    except ValueError:
        return text


def calibrated(slide: SlideScores, calibration: ScoreCalibration) -> SlideScores:
    """The slide with its scores as probabilities."""
    return replace(slide, candidates=replace(slide.candidates, score=calibration(slide.candidates.score)))


def _first_stage(release: Path) -> str:
    return "tuned" if (release / "all" / "tuned").exists() else "base"


def _left_out(slides: Sequence[SlideScores]) -> dict[str, Any]:
    """Thresholds, figures, and counts of each case, of left-out predictions."""
    quality = Quality.of(slides)
    thresholds = quality.threshold, quality.count_threshold
    fields = [slide for slide in slides if slide.domain in FIELDS]
    return {
        "threshold": thresholds[0],
        "count_threshold": thresholds[1],
        "quality": quality.to_dict(),
        "calibration": calibration_rows(fields, thresholds),
        "slides": fields,
    }


def _model_row(
    release: Path, patches: PatchIndex, config: Config, folds: Sequence[str], both: dict[str, Any]
) -> dict[str, Any]:
    """The row of the model in the table of embarrassment: every fold's on the Aperio fields that it left out."""
    threshold, pixels = both["threshold"], MaskOverlap()
    aperio = [slide for slide in both["slides"] if slide.domain == "aperio"]
    counted = {slide.slide: slide.candidates.xy[slide.candidates.score >= threshold] for slide in aperio}
    for fold in folds:
        left_out = _aperio_of(patches, CASES[fold])
        if left_out.patches:
            network, _ = load_model(release / fold / _first_stage(release))
            pixels += model_pixels(network, left_out, config, counted)
    return model_row(pixels, evaluate(aperio, threshold).pooled)


def _aperio_of(patches: PatchIndex, cases: Sequence[str]) -> PatchIndex:
    return patches.where(lambda patch: patch.domain == "aperio" and patch.case_id in cases)


def _places(marks: Sequence[Any], label: Label) -> list[tuple[float, float]]:
    return [(mark.x, mark.y) for mark in marks if mark.label is label]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", nargs="+", choices=FOLDS, default=[*CASES, "all"], metavar="FOLD")
    parser.add_argument(
        "--crops", action="store_true", help="let the first stage learn from the crops too, which did not pay"
    )
    parser.add_argument("--mine", action="store_true", help="mine false positives first, which did not pay either")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
