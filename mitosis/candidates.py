"""What a model takes for figures on slides with marks, labelled and cut, for a second stage to learn from.

Slides of the model's training cases are learned from; slides of its validation cases only serve to choose thresholds;
all others are left alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from mitosis.annotations import Annotation, Label
from mitosis.checkpoints import ModelCard
from mitosis.cohort import SlideSource
from mitosis.config import Config
from mitosis.crops import (
    FIGURE,
    LOOK_ALIKE,
    OTHER,
    UNCLEAR,
    Candidate,
    CandidateSet,
    CandidateSlide,
    crop_side,
    read_crops,
    save_crops,
    save_table,
)
from mitosis.crowding import tissue_around
from mitosis.errors import ConfigError, LeakageError, PatchIndexError
from mitosis.files import make_folder
from mitosis.inference import Model, count_slide
from mitosis.matching import MATCH_RADIUS_UM, match
from mitosis.mining import SAFE_UM, read_marks
from mitosis.regions import region_at
from mitosis.runtime import versions
from mitosis.slides import Slide, open_slide
from mitosis.splits import TRAIN, VAL, check_leakage
from mitosis.stain import measure_stain
from mitosis.tissue import find_tissue

__all__ = ["collect_candidates", "label_candidates", "split_slides"]


def collect_candidates(
    sources: Sequence[SlideSource],
    model: Model,
    out: Path,
    config: Config,
    *,
    on_tiles: Callable[[str, int, int], None] = lambda _name, _done, _all: None,
) -> CandidateSet:
    """Run the first stage of `model` on marked slides and cut its candidates into the folder `out`.

    Slides that an earlier run with the same settings has done are not done again.

    Parameters
    ----------
    config : Config
        `config.verifier` says how low to look and how to cut.
    on_tiles : callable
        Told (slide, tiles done, tiles in all) after each batch.

    Raises
    ------
    ConfigError
        No slide is of a training case.
    LeakageError
        A slide of a validation case is a file that the model learned from, or stands among the training slides too.
    AnnotationError, SlideError
        A slide has no marks or cannot be read.
    PatchIndexError, OutputError
        `out` holds candidates of other settings or something else, or cannot be written.
    """
    splits = split_slides(sources, model.card)
    chosen = [source for source in sources if source.slide_id in splits]
    read = {source.slide_id: read_marks(source) for source in chosen}
    _check_files(splits, {name: key for name, (_, key) in read.items()}, model.card)
    settings = {
        "model_sha256": model.card.weights_sha256,
        "verifier": config.verifier.model_dump(include={"mpp", "crop", "score_floor", "max_per_slide"}),
        "count": config.count.model_dump(include={"merge_um", "max_bad_fraction", "views"}),
        "slides": {name: {**key, "split": splits[name]} for name, (_, key) in read.items()},
    }
    done = _begun(out, settings)
    make_folder(out / "crops")
    candidates, slides = (list(done.candidates), dict(done.slides)) if done else ([], {})
    note = {"settings": settings, "versions": versions()}
    cutter = _Cutter(model, config, out)
    for source in chosen:
        if source.slide_id not in slides:
            marks, key = read[source.slide_id]
            cut, slide = cutter.cut(source, marks, key, splits[source.slide_id], partial(on_tiles, source.slide_id))
            candidates += cut
            slides[source.slide_id] = slide
            save_table(out, candidates, slides, note)
    return CandidateSet.read(out)


def split_slides(sources: Sequence[SlideSource], card: ModelCard) -> dict[str, str]:
    """For each slide that may be used, whether to learn from it (`TRAIN`) or to choose thresholds on it (`VAL`).

    Raises
    ------
    ConfigError
        No slide is of a training case.
    """
    train = set(card.training.get("cases", []))
    val = set(card.validation.get("cases", [])) - train
    splits = {source.slide_id: TRAIN for source in sources if source.case_id in train}
    if not splits:
        raise ConfigError(
            f"No slide is of a case that the model learned from ({', '.join(sorted(train)) or 'its card lists none'}), "
            f"but of {', '.join(sorted({source.case_id for source in sources}))}. Name others, or check --case-pattern."
        )
    return splits | {source.slide_id: VAL for source in sources if source.case_id in val}


def _check_files(splits: Mapping[str, str], keys: Mapping[str, Mapping[str, Any]], card: ModelCard) -> None:
    """Refuse a slide on both sides, under whatever name."""
    check_leakage([(splits[name], key["case_id"], key["source_sha256"]) for name, key in keys.items()])
    seen = card.training.get("source_sha256", [])
    leaked = [name for name, key in keys.items() if splits[name] == VAL and key["source_sha256"] in seen]
    if leaked:
        raise LeakageError(
            f"The model learned from the files of {', '.join(leaked)}, which its card calls validation cases. "
            "Leave them out, or correct --case-pattern."
        )


def _begun(out: Path, settings: Mapping[str, Any]) -> CandidateSet | None:
    """What an earlier run with the same settings has done; None where there is nothing yet."""
    if not (out / "candidates.json").exists():
        if out.exists() and (
            not out.is_dir() or any(path.name not in ("crops", "index.csv") for path in out.iterdir())
        ):
            raise PatchIndexError(f"{out}: holds something other than candidates. Choose another --out.")
        return None
    done = CandidateSet.read(out)
    before = json.loads((out / "candidates.json").read_text(encoding="utf-8")).get("settings", {})
    changed = [name for name, value in settings.items() if before.get(name) != value]
    if changed:
        raise PatchIndexError(f"{out}: holds candidates of other {', '.join(changed)}. Choose another --out.")
    return done


def label_candidates(
    found_xy: ArrayLike, figures: ArrayLike, look_alikes: ArrayLike, slide_mpp: float
) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """What each candidate is, and which figures have none.

    Figures and candidates are matched one to one within 7.5 µm. Of the other candidates one within 7.5 µm of a figure
    is unclear (a second one on it), one within 7.5 µm of a marked look-alike is a look-alike, one within 15 µm of a
    figure is unclear again (the mark may lie beside its nucleus), and the rest are other things.

    Parameters
    ----------
    found_xy, figures, look_alikes : float [N, 2], [F, 2] and [L, 2]
        Level-0 px.
    slide_mpp : float
        µm/px of level 0.

    Returns
    -------
    labels : str [N]
    missed : int64 [M]
        Rows of `figures` without a candidate.
    """
    found = np.asarray(found_xy, dtype=np.float64).reshape(-1, 2)
    matching = match(figures, found, MATCH_RADIUS_UM / slide_mpp)
    to_figure, to_look_alike = (_away(found, marks) * slide_mpp for marks in (figures, look_alikes))
    labels = np.where(to_figure <= SAFE_UM, UNCLEAR, OTHER)
    labels = np.where(to_look_alike <= MATCH_RADIUS_UM, LOOK_ALIKE, labels)
    labels = np.where(to_figure <= MATCH_RADIUS_UM, UNCLEAR, labels)
    labels[matching.pairs[:, 1]] = FIGURE
    return labels, matching.unmatched_truth


def _away(places: NDArray[np.float64], marks: ArrayLike) -> NDArray[np.float64]:
    """How far each place is from the nearest mark; infinitely far where there is none."""
    points = np.asarray(marks, dtype=np.float64).reshape(-1, 2)
    if not len(points) or not len(places):
        return np.full(len(places), np.inf)
    return np.asarray(cKDTree(points).query(places)[0], dtype=np.float64)


@dataclass(frozen=True)
class _Cutter:
    """What cutting goes by."""

    model: Model
    config: Config
    out: Path

    def cut(
        self,
        source: SlideSource,
        marks: Sequence[Annotation],
        key: Mapping[str, Any],
        split: str,
        on_tiles: Callable[[int, int], None],
    ) -> tuple[list[Candidate], CandidateSlide]:
        """Find, label and cut the candidates of a slide; its crops are written."""
        figures, look_alikes = (_places(marks, label) for label in (Label.MITOTIC_FIGURE, Label.NON_MITOTIC_FIGURE))
        settings, card = self.config.verifier, self.model.card
        count = self.config.count.model_copy(update={"score_floor": settings.score_floor, "verify": False})
        with open_slide(source.path, source.mpp) as slide:
            region = region_at(source.region)
            counted = count_slide(slide, source.slide_id, self.model, count, on_tiles=on_tiles, region=region)
            found, mpp = counted.candidates.sorted(), slide.mpp
            labels, missed = label_candidates(found.xy, figures, look_alikes, slide.mpp)
            if split == TRAIN:  # on validation slides every candidate has a say in the threshold
                kept = (np.arange(len(found)) < settings.max_per_slide) | (labels == FIGURE)
                found, labels = found[kept], labels[kept]
            xy = np.concatenate([found.xy, figures[missed]])
            stain = None
            if card.network.normalise_stain:  # by all of the slide, as in a count
                stain = measure_stain(slide, find_tissue(slide) if region else counted.tissue, card.mpp)
            crops = read_crops(slide, xy, settings.mpp, crop_side(settings.crop), stain)
            keep = np.flatnonzero(_readable(slide, xy))
        save_crops(self.out, source.slide_id, crops[keep])
        score, around_mm2 = np.concatenate([found.score, np.zeros(len(missed))]), tissue_around(xy, counted.tissue)
        labels = np.concatenate([labels, np.full(len(missed), FIGURE)])
        candidates = [
            Candidate(
                slide_id=source.slide_id,
                case_id=source.case_id,
                source_sha256=key["source_sha256"],
                model_sha256=card.weights_sha256,
                row=row,
                x=round(float(xy[place, 0]), 3),
                y=round(float(xy[place, 1]), 3),
                score=float(score[place]),
                label=str(labels[place]),
                found=place < len(found),
                around_mm2=round(float(around_mm2[place]), 9),
            )
            for row, place in enumerate(keep.tolist())
        ]
        sha256, area_mm2 = key["source_sha256"], counted.tissue.area_mm2
        return candidates, CandidateSlide(
            source.case_id, split, sha256, mpp, figures.tolist(), len(keep), area_mm2, source.domain
        )


def _places(marks: Sequence[Annotation], label: Label) -> NDArray[np.float64]:
    return np.array([(mark.x, mark.y) for mark in marks if mark.label is label], dtype=np.float64).reshape(-1, 2)


def _readable(slide: Slide, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which places do not lie in a damaged part of the slide, bool [N]; cutting may have found more of them."""
    good = np.ones(len(xy), dtype=bool)
    for x0, y0, x1, y1 in (bad.box for bad in slide.bad_tiles):
        good &= ~np.all((xy >= (x0, y0)) & (xy < (x1, y1)), axis=1)
    return good
