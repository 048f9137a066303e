"""Hard-negative mining: what a model wrongly takes for figures becomes look-alikes for the next one to learn from.

A folder of mined patches has the layout that ``mitosis extract`` writes, and ``mined.csv`` (a row a patch: where it
comes from) and ``mining.json`` (settings, versions, what was left out and why). It appears when all of it is done.

A review is a JSON file ``{"decisions": {patch_id: decision}}``; a decision is ``look-alike`` (the patch is kept),
``mitotic figure`` (a mark to add by hand) or ``unsure``, which also holds where there is none. Masks ignore the nuclei
that were not found look-alikes. A patch is called after slide, weights and place, so decisions hold for a second run.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from mitosis.annotations import Annotation, Label, find_annotations, load_annotations
from mitosis.checkpoints import ModelCard
from mitosis.cohort import SlideSource
from mitosis.config import Config, save_config
from mitosis.errors import AnnotationError, ConfigError, PatchIndexError
from mitosis.extraction import PatchCutter
from mitosis.files import appearing_folder, sha256, write_json, write_text
from mitosis.inference import Model, count_slide
from mitosis.matching import MATCH_RADIUS_UM, match
from mitosis.patches import Patch, PatchIndex
from mitosis.regions import read_region, region_at
from mitosis.runtime import versions
from mitosis.slides import Slide, open_slide
from mitosis.splits import TRAIN

__all__ = ["DECISIONS", "SAFE_UM", "MiningResult", "mine", "read_marks", "read_review"]

SAFE_UM = 2 * MATCH_RADIUS_UM
"""A false positive no further than this, in µm, from any mark is not mined. Up to one radius it would count for the
mark; the second is for marks set beside their nucleus and for second detections on one figure."""

LOOK_ALIKE, FIGURE, UNSURE = DECISIONS = ("look-alike", "mitotic figure", "unsure")
"""What a reviewer may say of a patch."""

Marks = tuple[Annotation, ...]


@dataclass(frozen=True)
class MiningResult:
    """What came of mining.

    Attributes
    ----------
    slides : dict
        For each slide how many detections reached the threshold (`n_found`) and what came of them: `n_on_figures`,
        `n_near_marks`, `n_over_limit`, `n_judged_figure`, `n_unsure`, `n_unreadable` (the file is damaged there) and
        `n_mined`, which add up to it.
    left_out : list of str
        Slides of cases that the model did not learn from.
    figures_to_add : list of dict
        `patch_id`, `slide_id`, `x`, `y` (level-0 px) of what the reviewer judged a mitotic figure.
    reused : bool
        Whether an earlier run had done it already.
    """

    slides: dict[str, dict[str, int]]
    left_out: list[str]
    figures_to_add: list[dict[str, Any]]
    reused: bool = False


@dataclass(frozen=True)
class _Place:
    """A false positive; a row of ``mined.csv``."""

    patch_id: str
    slide_id: str
    x: float
    y: float
    score: float
    threshold: float
    model_sha256: str
    nearest_mark_um: float | None


def mine(
    sources: Sequence[SlideSource],
    model: Model,
    out: Path,
    config: Config,
    *,
    max_per_slide: int = 50,
    review: Path | None = None,
    earlier: Sequence[Path] = (),
    on_tiles: Callable[[str, int, int], None] = lambda _name, _done, _all: None,
) -> MiningResult:
    """Cut patches of the model's false positives on slides of its training cases into the new folder `out`.

    Parameters
    ----------
    config : Config
        `config.extract` says how to cut; `config.count.threshold` wins over the model card's.
    max_per_slide : int
        Of each slide those with the highest scores are kept.
    review : Path, optional
        Decisions on what is mined without them.
    earlier : sequence of Path
        Folders mined before; their places count as marks.
    on_tiles : callable
        Told (slide, tiles done, tiles in all) after each batch.

    Raises
    ------
    ConfigError
        No slide is of a training case.
    AnnotationError, SlideError
        A slide has no marks or cannot be read; the review cannot be understood, or names a patch not mined here.
    PatchIndexError, OutputError
        `out` holds something else, or cannot be written.
    """
    slides, left_out = _of_training_cases(sources, model.card)
    read = {source.slide_id: read_marks(source, earlier) for source in slides}
    settings = {
        "model_sha256": model.card.weights_sha256,
        "threshold": model.card.threshold if config.count.threshold is None else config.count.threshold,
        "max_per_slide": max_per_slide,
        "safe_um": SAFE_UM,
        "decisions": read_review(review) if review else None,
        "count": config.count.model_dump(include={"merge_um", "max_bad_fraction", "views", "engine", "precision"}),
        "extract": config.extract.model_dump(),
        "slides": {slide_id: key for slide_id, (_, key) in read.items()},
        "earlier": [sha256(folder / "mined.csv") for folder in earlier],
    }
    if done := _finished(out, settings):
        return done
    with appearing_folder(out) as folder:
        miner = _Miner(model, config, settings, folder)
        for source in slides:
            miner.mine(source, read[source.slide_id][0], partial(on_tiles, source.slide_id))
        return miner.finish(left_out)


def read_review(path: Path) -> dict[str, str]:
    """The decisions of a review by patch_id.

    Raises
    ------
    AnnotationError
        The file cannot be understood, or holds something that is no decision.
    """
    try:
        decisions = dict(json.loads(path.read_text(encoding="utf-8"))["decisions"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AnnotationError(f'{path}: not a review, {{"decisions": {{patch_id: decision}}}} ({error!r}).') from error
    for patch_id, decision in decisions.items():
        if decision not in DECISIONS:
            raise AnnotationError(f"{path}: {patch_id}: {decision!r} is none of {', '.join(DECISIONS)}.")
    return decisions


def _of_training_cases(sources: Sequence[SlideSource], card: ModelCard) -> tuple[list[SlideSource], list[str]]:
    """The slides of the model's training cases, and the names of the others, whose mining would spoil validation."""
    cases = card.training.get("cases", [])
    chosen = [source for source in sources if source.case_id in cases]
    if not chosen:
        raise ConfigError(
            f"No slide is of a case that the model learned from ({', '.join(cases) or 'its card lists none'}), but of "
            f"{', '.join(sorted({source.case_id for source in sources}))}. Name others, or check --case-pattern."
        )
    return chosen, [source.slide_id for source in sources if source not in chosen]


def read_marks(source: SlideSource, earlier: Sequence[Path] = ()) -> tuple[Marks, dict[str, Any]]:
    """The marks of a slide, in its region of interest, with what was mined before, and what its patches depend on."""
    if source.annotations is None:
        raise AnnotationError(f"{source.path}: no marks to tell a false positive by. Name some with --annotations.")
    with open_slide(source.path, source.mpp) as slide:
        marks = load_annotations(source.annotations, source.slide_id, slide.dimensions, slide.mpp).annotations
        key = {"case_id": source.case_id, "domain": source.domain, "mpp": slide.mpp}
    if source.region:
        marks, key["roi_sha256"] = read_region(source.region).holding(marks), sha256(source.region)
    key["source_sha256"] = sha256(source.path)
    key["marks_sha256"] = [sha256(path) for path in find_annotations(source.annotations, source.slide_id)]
    tables = [(folder / "mined.csv").read_text(encoding="utf-8") for folder in earlier]
    rows = (row for table in tables for row in csv.DictReader(io.StringIO(table)))
    mined = [(float(row["x"]), float(row["y"])) for row in rows if row["slide_id"] == source.slide_id]
    return (*marks, *(Annotation(x, y, Label.NON_MITOTIC_FIGURE) for x, y in mined)), key


def _finished(out: Path, settings: dict[str, Any]) -> MiningResult | None:
    """What an earlier run with the same settings left in `out`; None where there is nothing yet."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        note = json.loads((out / "mining.json").read_text(encoding="utf-8"))
        before, result = dict(note["settings"]), MiningResult(**note["result"] | {"reused": True})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PatchIndexError(f"{out}: holds something other than mined patches. Choose another --out.") from error
    changed = [name for name, value in settings.items() if before.get(name) != value]
    if changed:
        raise PatchIndexError(f"{out}: holds patches mined with other {', '.join(changed)}. Choose another --out.")
    return result


class _Miner:
    """What one run of mining holds while it goes."""

    def __init__(self, model: Model, config: Config, settings: dict[str, Any], folder: Path) -> None:
        self.model, self.config, self.settings, self.folder = model, config, settings, folder
        self.places, self.patches, self.counts = dict[str, _Place](), list[Patch](), dict[str, dict[str, int]]()

    def decision(self, place: _Place) -> str:
        decisions = self.settings["decisions"]
        return LOOK_ALIKE if decisions is None else str(decisions.get(place.patch_id, UNSURE))

    def mine(self, source: SlideSource, marks: Marks, on_tiles: Callable[[int, int], None]) -> None:
        """Find and cut the false positives of a slide."""
        with open_slide(source.path, source.mpp) as slide:
            places, counts = self._find(slide, source, marks, on_tiles)
            patches = self._cut(slide, source, marks, places)
        judged = Counter(self.decision(place) for place in places)
        counts |= {"n_judged_figure": judged[FIGURE], "n_unsure": judged[UNSURE]}
        counts |= {"n_unreadable": judged[LOOK_ALIKE] - len(patches), "n_mined": len(patches)}
        self.counts[source.slide_id] = counts
        self.places |= {place.patch_id: place for place in places}
        self.patches += patches

    def _find(
        self, slide: Slide, source: SlideSource, marks: Marks, on_tiles: Callable[[int, int], None]
    ) -> tuple[list[_Place], dict[str, int]]:
        """The false positives that may be mined, best first, and how many detections are something else."""
        threshold, digest, limit = (self.settings[key] for key in ("threshold", "model_sha256", "max_per_slide"))
        count = self.config.count.model_copy(update={"score_floor": threshold})
        region, slide_id = region_at(source.region), source.slide_id
        counted = count_slide(slide, slide_id, self.model, count, on_tiles=on_tiles, region=region)
        found = counted.candidates.sorted()
        figures = [(mark.x, mark.y) for mark in marks if mark.label is Label.MITOTIC_FIGURE]
        wrong = found[match(figures, found.xy, MATCH_RADIUS_UM / slide.mpp).unmatched_found]
        away_um = np.full(len(wrong), np.inf)
        if marks and len(wrong):
            away_um = cKDTree([(mark.x, mark.y) for mark in marks]).query(wrong.xy)[0] * slide.mpp
        safe = away_um > SAFE_UM
        places = []
        for (x, y), score, away in zip(wrong.xy[safe].tolist(), wrong.score[safe], away_um[safe], strict=True):
            name = f"{slide_id}/mined-{digest[:8]}_x{int(x):06d}_y{int(y):06d}"
            nearest = round(float(away), 2) if marks else None
            places.append(_Place(name, slide_id, round(x, 3), round(y, 3), float(score), threshold, digest, nearest))
        counts = {"n_found": len(found), "n_on_figures": len(found) - len(wrong)}
        counts |= {"n_near_marks": int((~safe).sum()), "n_over_limit": len(places[limit:])}
        return places[:limit], counts

    def _cut(self, slide: Slide, source: SlideSource, marks: Marks, places: Sequence[_Place]) -> tuple[Patch, ...]:
        chosen = [place for place in places if self.decision(place) == LOOK_ALIKE]
        marks += tuple(Annotation(place.x, place.y, Label.NON_MITOTIC_FIGURE) for place in chosen)
        unclear = tuple((place.x, place.y) for place in places if place not in chosen)
        config, digest = self.config.extract, self.settings["slides"][source.slide_id]["source_sha256"]
        cutter = PatchCutter(slide, source, self.folder, config, digest, marks, unclear)
        boxes = []
        for place in chosen:
            # A stream of its own: whatever else is mined, the patch that is cut is the one that was reviewed.
            rng = np.random.default_rng([config.seed, *place.patch_id.encode()])
            boxes.append((place.patch_id.partition("/")[2], cutter.box_around(place.x, place.y, rng), False))
        return cutter.cut(boxes) if boxes else ()

    def finish(self, left_out: list[str]) -> MiningResult:
        """Write the tables."""
        unknown = sorted(set(self.settings["decisions"] or ()) - set(self.places))
        if unknown:
            raise AnnotationError(
                f"The review judges {unknown[0]} ({len(unknown)} such in all), which is not among what is mined here. "
                "Give the slides, model, threshold and limit with which the reviewed patches were mined."
            )
        patches = sorted((replace(patch, split=TRAIN) for patch in self.patches), key=lambda patch: patch.patch_id)
        save_config(self.folder / "settings.yaml", Config(extract=self.config.extract))
        write_text(self.folder / "index.csv", PatchIndex(self.folder, tuple(patches)).to_csv())
        table = io.StringIO()
        writer = csv.DictWriter(table, [field.name for field in fields(_Place)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(self.places[patch.patch_id]) for patch in patches)
        write_text(self.folder / "mined.csv", table.getvalue())
        judged = [place for place in self.places.values() if self.decision(place) == FIGURE]
        to_add = [{key: getattr(place, key) for key in ("patch_id", "slide_id", "x", "y")} for place in judged]
        result = MiningResult(self.counts, left_out, to_add)
        content = {"settings": self.settings, "result": asdict(result), "versions": versions()}
        write_json(self.folder / "mining.json", content)
        return result
