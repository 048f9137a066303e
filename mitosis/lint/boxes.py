"""Check of box files (MIDOG, COCO): which of the two readings of four numbers was taken, and whether it is sure."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mitosis.annotations.midog import recognises
from mitosis.annotations.text import MAX_COORDINATE, read_head, read_json
from mitosis.errors import AnnotationError
from mitosis.lint.collection import Collection
from mitosis.lint.finding import Finding

__all__ = ["box_reading"]

_LEAVING = 0.05
"""A larger share of boxes that leave their image is told; of MIDOG++'s 26,286 boxes 274 do, about 1 %."""

_CLEARLY_SMALLER = 4.0
"""Where both readings fit, boxes this many times smaller are taken without doubt: a cell is small."""

FloatArray = NDArray[np.float64]


class _Fit(NamedTuple):
    """How a reading fits: share of boxes without an area or not wholly on their image, and the median width in px."""

    words: str
    misfits: float
    width: float


def box_reading(collection: Collection) -> Iterator[Finding]:
    """Boxes that fit their images as x1,y1,x2,y2 and as x,y,width,height, or as neither."""
    for path in _box_files(collection):
        try:
            fits = _fits(read_json(path))
        except (AnnotationError, KeyError, TypeError, AttributeError, ValueError):
            continue  # the reader of marks has said why
        if fits:
            yield _verdict(path, *sorted(fits, key=lambda fit: (fit.misfits, fit.width)))


def _box_files(collection: Collection) -> list[Path]:
    files = {path for slide in collection.slides for path in slide.files}
    if collection.source.is_dir():
        files |= set(collection.source.glob("*.json"))
    return sorted(path for path in files if _may_be_boxes(path))


def _may_be_boxes(path: Path) -> bool:
    try:
        return recognises(path, head := read_head(path)) and '"images"' in head
    except AnnotationError:
        return False


def _fits(content: Any) -> list[_Fit]:
    """Both readings of all boxes of a file; none where it has no boxes."""
    images = {image["id"]: image for image in content["images"]}
    marks = content["annotations"]
    boxes = np.array([mark["bbox"] for mark in marks], dtype=np.float64).reshape(-1, 4)
    owners = [images[mark["image_id"]] for mark in marks]
    limits = np.array([[image.get(side, math.inf) for side in ("width", "height")] for image in owners], dtype=float)
    if not len(boxes) or not np.all(np.abs(boxes) <= MAX_COORDINATE):
        return []
    sizes = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    return [_fit("x1,y1,x2,y2", boxes, limits), _fit("x,y,width,height", sizes, limits)]


def _fit(words: str, corners: FloatArray, limits: FloatArray) -> _Fit:
    first, last = corners[:, :2], corners[:, 2:]
    sound = np.all((first >= 0) & (last <= limits) & (last > first), axis=1)
    return _Fit(words, float(1 - sound.mean()), float(np.median(np.abs(last - first)[:, 0])))


def _verdict(path: Path, taken: _Fit, other: _Fit) -> Finding:
    """What to say of a file; the reading taken is the one that `mitosis.annotations.midog` takes."""
    told = (
        f"{path.name}: boxes are read as {taken.words}; so {taken.misfits:.1%} of them do not fit their image, "
        f"and {other.misfits:.1%} as {other.words}."
    )
    if taken.misfits > 0.5:
        advice = "Check that the boxes are in px of the full resolution of these images."
        return Finding("box_reading", "error", "", f"{told} Neither fits.", advice)
    if taken.misfits == other.misfits and other.width < _CLEARLY_SMALLER * taken.width:
        advice = "Write the width and height of each image into the file, or give the marks as points (x,y,label)."
        return Finding("box_reading", "error", "", f"{told} Both fit as well, so the places may be wrong.", advice)
    if taken.misfits > _LEAVING:
        advice = "Check that the boxes belong to these images, in px of their full resolution."
        return Finding("box_reading", "warning", "", told, advice)
    return Finding("box_reading", "note", "", told, "Nothing to do if that is what the file means.")
