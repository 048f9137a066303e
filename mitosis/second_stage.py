"""A model gets a second stage: candidates in, thresholds chosen where the second stage has not learned, model out."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mitosis.checkpoints import ModelCard, VerifierCard, load_model, save_model, save_verifier
from mitosis.config import Config, save_config
from mitosis.crops import CLASSES, Candidate, CandidateSet, CandidateSlide, centre
from mitosis.crowding import discount_crowds
from mitosis.detections import Detections
from mitosis.errors import ConfigError, PatchIndexError
from mitosis.evaluation import calibration_rows, candidate_truth, choose_threshold, evaluate
from mitosis.files import make_folder
from mitosis.gate import Gate
from mitosis.looks import crop_engine, final_scores, in_batches
from mitosis.quantization import measure_ranges
from mitosis.ranking import DetectionCurve, SlideScores
from mitosis.runtime import versions
from mitosis.score_calibration import UNCALIBRATED, ScoreCalibration, fit_calibration
from mitosis.splits import TRAIN, VAL
from mitosis.verification import probabilities, train_verifier
from mitosis.verifier import Verifier, gate_settings

__all__ = ["add_second_stage", "folds_of", "train_gate"]

ON_VALIDATION = "validation cases"
_N_RANGES = 1000  # crops on which the ranges of int8 are measured

OnStep = Callable[[str, int, float], None]


def add_second_stage(
    model: Path,
    candidates: CandidateSet,
    out: Path,
    config: Config,
    *,
    on_step: OnStep = lambda _name, _step, _loss: None,
) -> ModelCard:
    """Train a second stage on the candidates of a model, and write both stages to the folder `out`.

    Thresholds are chosen on the slides of validation cases if there are such with figures. Otherwise by cross-fitting:
    the training cases are dealt into folds, and each fold is scored by a second stage that learned from the others (of
    one case its slides are dealt). The first stage knows all of these cases, so its own scores there are better than on
    new slides, and thresholds from validation cases are to be preferred.

    Parameters
    ----------
    model : Path
        Folder of the first stage.
    candidates : CandidateSet
        What `collect_candidates` gave for it.
    on_step : callable
        Told (what is trained, step, loss) after each step.

    Raises
    ------
    ConfigError
        `out` holds a model already, or there is only one slide and nothing to choose thresholds on.
    PatchIndexError
        The candidates are those of another model or of other settings, or cannot be learned from.
    ModelError
        The model cannot be read, or training diverges.
    AnnotationError
        There is no figure to choose a threshold with.
    """
    if (out / "model.json").exists():
        raise ConfigError(f"{out}: holds a model already. Choose another --out.")
    network, card = load_model(model)
    if any(candidate.model_sha256 != card.weights_sha256 for candidate in candidates.candidates):
        raise PatchIndexError(
            f"{candidates.folder}: holds candidates of another model than {model}. Collect them anew."
        )
    learned = candidates.where(lambda _, slide: slide.split == TRAIN)
    held_out = candidates.where(lambda _, slide: slide.split == VAL)
    if any(slide.figures for slide in held_out.slides.values()):
        trained = _train(learned, config, card.mpp, "second stage", on_step)
        scores, chosen_on = _rescored(held_out, trained, config, card.mpp), ON_VALIDATION
    else:
        scores, chosen_on = _cross_fit(learned, config, card.mpp, on_step)
        trained = _train(learned, config, card.mpp, "second stage", on_step)
    ranges = {"int8_ranges": measure_ranges(trained.second, _some_crops(learned, config.verifier.crop))}
    if trained.gate is not None:
        seen = _some_crops(_at(learned, config, card.mpp), gate_settings(config.verifier, card.mpp).crop)
        ranges["gate_int8_ranges"] = measure_ranges(trained.gate, seen)
    described = _card(learned, scores, chosen_on, config).model_copy(update=ranges)
    verifier = save_verifier(make_folder(out), trained.second, described, gate=trained.gate)
    training = dict(card.training)
    sources = {slide.source_sha256 for slide in learned.slides.values()}
    training["source_sha256"] = sorted({*training.get("source_sha256", []), *sources})
    save_config(out / "settings.yaml", config)
    return save_model(out, network.state_dict(), card.model_copy(update={"verifier": verifier, "training": training}))


def _some_crops(candidates: CandidateSet, side: int) -> Iterator[NDArray[np.uint8]]:
    """At most `_N_RANGES` crops from all over, uint8 [1, side, side, 3] each."""
    rows = candidates.candidates
    for row in rows[:: math.ceil(len(rows) / _N_RANGES)]:
        yield np.ascontiguousarray(centre(candidates.crop(row)[np.newaxis], side))


class _Trained(NamedTuple):
    """A second stage, and its gate if it is to have one."""

    second: Verifier
    gate: Verifier | None


class _Rescored(NamedTuple):
    """A slide with the scores of the first stage, and with those of both, not calibrated yet.

    What a gate drops is not among the latter; `dropped` are its scores by both stages, not discounted in crowds.
    """

    before: SlideScores
    after: SlideScores
    dropped: NDArray[np.float64]


def _train(candidates: CandidateSet, config: Config, mpp: float, name: str, on_step: OnStep) -> _Trained:
    second = train_verifier(candidates, config.verifier, lambda step, loss: on_step(name, step, loss))
    gate = None
    if config.verifier.gate_width:
        gate = train_gate(candidates, second, config, mpp, lambda step, loss: on_step(f"gate of {name}", step, loss))
    return _Trained(second, gate)


def train_gate(
    candidates: CandidateSet,
    second: Verifier,
    config: Config,
    mpp: float,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Verifier:
    """Train a candidate gate, at the first stage's `mpp`, to say what the second stage says."""
    taught = probabilities(second, candidates, config.verifier)
    return train_verifier(_at(candidates, config, mpp), gate_settings(config.verifier, mpp), on_step, taught=taught)


def _at(candidates: CandidateSet, config: Config, mpp: float) -> CandidateSet:
    """The candidates, their crops at `mpp`."""
    return replace(candidates, scale=config.verifier.mpp / mpp)


def _cross_fit(candidates: CandidateSet, config: Config, mpp: float, on_step: OnStep) -> tuple[list[_Rescored], str]:
    """Slides scored by second stages that did not learn from them, and what was left out each time."""
    folds, unit = folds_of(candidates, config.verifier.folds)
    scores = []
    for number, fold in enumerate(folds, 1):
        others = candidates.where(lambda name, _, fold=fold: name not in fold)  # type: ignore[misc]  # bound now
        trained = _train(others, config, mpp, f"fold {number} of {len(folds)}", on_step)
        scores += _rescored(candidates.where(lambda name, _, fold=fold: name in fold), trained, config, mpp)  # type: ignore[misc]  # bound now
    return scores, f"left-out training {unit}"


def folds_of(candidates: CandidateSet, n_folds: int) -> tuple[list[set[str]], str]:
    """Names of the slides of each fold, and what was dealt: `cases`, or the `slides` of the only case.

    Those with the most figures are dealt first, so that each fold has its share.

    Raises
    ------
    ConfigError
        There is only one slide.
    """
    by_case = len(candidates.cases) > 1
    units: dict[str, list[tuple[str, CandidateSlide]]] = {}
    for name, slide in candidates.slides.items():
        units.setdefault(slide.case_id if by_case else name, []).append((name, slide))
    if len(units) < 2:
        raise ConfigError("One slide is not enough to train a second stage and choose its threshold. Add slides.")
    order = sorted(units, key=lambda unit: (-sum(len(slide.figures) for _, slide in units[unit]), unit))
    folds: list[set[str]] = [set() for _ in range(min(n_folds, len(units)))]
    for number, unit in enumerate(order):
        folds[number % len(folds)] |= {name for name, _ in units[unit]}
    return folds, "cases" if by_case else "slides"


def _rescored(candidates: CandidateSet, trained: _Trained, config: Config, mpp: float) -> list[_Rescored]:
    by_slide: dict[str, list[Candidate]] = {name: [] for name in candidates.slides}
    for candidate in candidates.candidates:
        if candidate.found:
            by_slide[candidate.slide_id].append(candidate)
    scores = []
    for name, found in by_slide.items():
        slide = candidates.slides[name]
        first = np.array([candidate.score for candidate in found])
        xy = np.array([(candidate.x, candidate.y) for candidate in found]).reshape(-1, 2)
        both = Detections(xy, _scores_of_both(candidates, found, trained.second, config), np.zeros(len(xy)))
        around_mm2 = np.array([candidate.around_mm2 for candidate in found])
        passed = _passes(candidates, found, trained.gate, config, mpp)
        crowding = config.verifier.crowding, config.verifier.crowding_from
        final = discount_crowds(both[passed], around_mm2[passed], slide.mpp, *crowding)
        before, after = (
            SlideScores(name, slide.mpp, slide.figures, detections, case_id=slide.case_id, area_mm2=slide.area_mm2)
            for detections in (replace(both, score=first), final)
        )
        scores.append(_Rescored(before, after, both.score[~passed]))
    return scores


def _passes(
    candidates: CandidateSet, found: Sequence[Candidate], gate: Verifier | None, config: Config, mpp: float
) -> NDArray[np.bool_]:
    """Which candidates a gate lets through, [N]; all where there is none."""
    if gate is None or not found:
        return np.ones(len(found), dtype=bool)
    side, shrunk = gate_settings(config.verifier, mpp).crop, _at(candidates, config, mpp)
    crops = np.stack([centre(shrunk.crop(candidate), side) for candidate in found])
    engine = crop_engine(gate)
    return Gate(engine, side, config.verifier.gate_from).lets_through(in_batches(engine, crops))


def _scores_of_both(
    candidates: CandidateSet, found: Sequence[Candidate], second: Verifier, config: Config
) -> NDArray[np.float64]:
    """Scores of both stages of some candidates, [N]; a few crops are in memory at once."""
    settings, parts = config.verifier, [np.empty(0)]
    views = max(config.count.views, settings.views)
    for some in (found[start : start + 256] for start in range(0, len(found), 256)):
        crops = centre(np.stack([candidates.crop(candidate) for candidate in some]), settings.crop)
        first = np.array([candidate.score for candidate in some])
        parts.append(final_scores(second, np.ascontiguousarray(crops), first, settings, views))
    return np.concatenate(parts)


def _final(slide: SlideScores, calibration: ScoreCalibration, floor: float) -> SlideScores:
    """A slide with calibrated scores, without those below the floor."""
    found = replace(slide.candidates, score=calibration(slide.candidates.score))
    return replace(slide, candidates=found[found.score >= floor])


def _card(learned: CandidateSet, scores: Sequence[_Rescored], chosen_on: str, config: Config) -> VerifierCard:
    before, after = [some.before for some in scores], [some.after for some in scores]
    scaled = fit_calibration(*candidate_truth(after)) if config.verifier.calibrate else UNCALIBRATED
    after = [_final(slide, scaled, config.count.score_floor) for slide in after]
    n = Counter(candidate.label for candidate in learned.candidates)
    thresholds = choose_threshold(after), choose_threshold(after, objective="count")
    # The first stage knows its training cases: what it finds and misses there says nothing of other cases.
    calibration = calibration_rows(after, thresholds) if chosen_on == ON_VALIDATION else []
    return VerifierCard(
        settings=config.verifier.model_copy(update={"workers": 0}),  # of the machine, not of the model
        classes=CLASSES,
        threshold=thresholds[0],
        count_threshold=thresholds[1],
        score_calibration=scaled,
        validation={
            "calibration": calibration,
            "on": chosen_on,
            "cases": sorted({slide.case_id for slide in after}),
            "first_stage": _quality(before),
            "both_stages": _quality(after),
            **(_gate_quality(scores, after, scaled, thresholds[0]) if config.verifier.gate_width else {}),
        },
        training={
            "cases": learned.cases,
            "source_sha256": sorted({slide.source_sha256 for slide in learned.slides.values()}),
            "n_candidates": dict(sorted(n.items())),
        },
        versions=versions(),
    )


def _gate_quality(
    scores: Sequence[_Rescored], final: Sequence[SlideScores], scaled: ScoreCalibration, threshold: float
) -> dict[str, dict[str, float]]:
    """Share of the candidates that a gate lets through, and share of those that would count."""
    dropped = np.concatenate([some.dropped for some in scores])
    n_all = sum(len(some.before.candidates) for some in scores)
    n_counted = sum(int((slide.candidates.score >= threshold).sum()) for slide in final)
    n_lost = int((scaled(dropped) >= threshold).sum())
    shares = {"passed": 1 - len(dropped) / max(n_all, 1), "counted_passed": 1 - n_lost / max(n_counted + n_lost, 1)}
    return {"gate": {name: round(share, 4) for name, share in shares.items()}}


def _quality(scores: Sequence[SlideScores]) -> dict[str, Any]:
    """What the best threshold gives on the slides it was chosen on, and what all of them give."""
    threshold = choose_threshold(scores)
    result = evaluate(scores, threshold).pooled
    numbers = {"f1": result.f1, "precision": result.precision, "recall": result.recall}
    numbers["average_precision"] = DetectionCurve.of(scores).average_precision
    return {"threshold": threshold, **{name: round(number, 4) for name, number in numbers.items()}}
