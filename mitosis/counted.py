"""What a count left in its files, read back: candidates, and the slide beside an expert's marks."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mitosis.annotations import Label, load_annotations
from mitosis.counting import Hotspot
from mitosis.detections import Detections
from mitosis.errors import AnnotationError
from mitosis.ranking import SlideScores
from mitosis.regions import Region

__all__ = ["ScoredSlide", "failed_slides", "read_detections", "read_scores"]


def read_detections(path: Path) -> Detections:
    """Read the candidates of a ``detections.csv``.

    Raises
    ------
    AnnotationError
        It is not such a table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, strict=True)
            header = next(lines, [])
            columns = [header.index(name) for name in ("x_px", "y_px", "score", "area_um2")]
            values = [[float(line[column]) for column in columns] for line in lines]
        table = np.array(values).reshape(-1, 4)
        return Detections(table[:, :2], table[:, 2], table[:, 3])
    except (OSError, IndexError, ValueError, csv.Error) as error:
        raise AnnotationError(f"{path}: not a table of detections ({error!r}). Run mitosis count again.") from error


class ScoredSlide(NamedTuple):
    """A counted slide beside an expert's marks.

    Attributes
    ----------
    threshold : float
        What it was counted with.
    n_outside : int
        Marks that lie outside the slide, or outside the region of interest that it was counted in, and are left out.
    seen_in_training : bool
        Whether the model learned from this case or file.
    training_cases : tuple of str
        What the model learned from.
    dimensions : (width, height), level-0 px
    hotspot : Hotspot or None
        The window of the count.
    region : Region or None
        Where it was counted, if only in a part: nothing outside is right or wrong.
    """

    scores: SlideScores
    threshold: float
    n_outside: int
    seen_in_training: bool
    training_cases: tuple[str, ...]
    dimensions: tuple[int, int]
    hotspot: Hotspot | None
    region: Region | None = None


def read_scores(folder: Path, annotations: Path) -> ScoredSlide:
    """A counted slide beside an expert's marks.

    Parameters
    ----------
    folder : Path
        Where `mitosis.report.write_report` wrote.
    annotations : Path
        File of marks, or a folder that holds one for this slide.

    Raises
    ------
    AnnotationError
        The slide has no marks there, or a file is not as it should be.
    """
    path = folder / "count.json"
    try:
        count = json.loads(path.read_text(encoding="utf-8"))
        slide, mpp, threshold = str(count["slide"]), float(count["slide_mpp"]), float(count["threshold"])
        width, height = map(int, count["slide_dimensions"])
        known = {"case_id": str(count.get("case_id") or slide), "domain": str(count.get("domain", ""))}
        area = float(count["tissue_mm2"])
        hotspot = Hotspot(**count["hotspot"]) if count["hotspot"] else None
        region = _region(count)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AnnotationError(f"{path}: not as written by mitosis count ({error!r}). Count the slide again.") from error
    loaded = load_annotations(annotations, slide, (width, height), mpp)
    marks = region.holding(loaded.annotations) if region else loaded.annotations
    n_outside = loaded.n_outside + len(loaded.annotations) - len(marks)
    figures, look_alikes = (
        [(mark.x, mark.y) for mark in marks if mark.label is label]
        for label in (Label.MITOTIC_FIGURE, Label.NON_MITOTIC_FIGURE)
    )
    candidates = read_detections(folder / "detections.csv")
    scores = SlideScores(slide, mpp, figures, candidates, look_alikes, **known, area_mm2=area)
    seen, training_cases = bool(count.get("seen_in_training")), tuple(count.get("training_cases", ()))
    return ScoredSlide(scores, threshold, n_outside, seen, training_cases, (width, height), hotspot, region)


def _region(count: Mapping[str, Any]) -> Region | None:
    """The region that a count was made in; raises KeyError if it is not there, as in files of earlier versions."""
    if not count.get("region_sha256"):
        return Region.of_rings([(count["region"],)]) if count.get("region") else None
    return Region.of_rings(count["region_outlines"])


def failed_slides(path: Path) -> list[str]:
    """Names of the slides that a ``summary.csv`` says failed; none where there is no such table."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [row["slide"] for row in csv.DictReader(stream) if row["status"] == "failed"]
    except (OSError, ValueError, KeyError, csv.Error):
        return []
