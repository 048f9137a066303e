"""MIDOG and MIDOG++ JSON: one file for many images, boxes around figures and look-alikes.

Boxes are ``[x1, y1, x2, y2]`` although the file looks like COCO, whose boxes are ``[x, y, width, height]``: the reading
under which fewer boxes of the file are impossible is taken. Corners are level-0 px from the top-left corner of the
image; a box becomes a point at its centre, nothing is shifted.

An image without any mark is unlabelled (ids 151 to 200 of both releases), never free of figures: the file cannot tell
the two apart.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePath
from statistics import median
from typing import Any, NamedTuple

from mitosis.annotations.annotation import Annotation, AnnotationSet, Label, bare_name, by_class, check_classes
from mitosis.annotations.text import number, read_json
from mitosis.errors import AnnotationError

__all__ = ["PARTS", "lists_slide", "read", "recognises"]

PARTS = ("images", "categories", "annotations")
"""What a file of this format holds, a list each, in any order."""


class _Box(NamedTuple):
    x0: float
    y0: float
    x1: float
    y1: float
    image: dict[str, Any]

    def impossible(self) -> bool:
        """Without an area, or not wholly on the image it belongs to."""
        inside = self.x0 >= 0 and self.y0 >= 0
        inside &= self.x1 <= self.image.get("width", math.inf) and self.y1 <= self.image.get("height", math.inf)
        return not inside or self.x1 <= self.x0 or self.y1 <= self.y0

    def centre(self) -> Annotation:
        """A point; the caller sets its label."""
        return Annotation((self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2, Label.MITOTIC_FIGURE)


def recognises(path: Path, head: str) -> bool:
    """A JSON file that is no GeoJSON."""
    return path.suffix.lower() == ".json" and head.lstrip().startswith("{") and '"Feature' not in head


def lists_slide(path: Path, slide_id: str) -> bool:
    """Whether the file is of this format and has marks for the slide."""
    return _has_parts(path, _stamp(path)) and read(path, slide_id) is not None


@lru_cache(maxsize=4096)
def _has_parts(path: Path, stamp: tuple[int, int]) -> bool:  # noqa: ARG001 (what the cache goes by)
    content = read_json(path)
    return isinstance(content, dict) and all(isinstance(content.get(name), list) for name in PARTS)


def read(path: Path, slide_id: str) -> AnnotationSet | None:
    """The centres of the slide's boxes; None where the file has none for it.

    The slide may be named with or without its suffix.
    """
    try:
        return _of_slide(path, _listing(path, _stamp(path)), slide_id)
    except AnnotationError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AnnotationError(
            f"{path}: not laid out like MIDOG.json ({type(error).__name__}: {error}). "
            "It needs images, categories and annotations with image_id, category_id and bbox."
        ) from error


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when the file does; reading one that is not there says so."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=2)
def _listing(path: Path, stamp: tuple[int, int]) -> list[tuple[dict[str, Any], AnnotationSet]]:  # noqa: ARG001 (what the cache goes by)
    """Every image of the file with its marks: a collection asks for one slide after the other."""
    content = read_json(path)
    images = {image["id"]: image for image in content["images"]}
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    check_classes(names.values(), path)
    marks: dict[Any, list[tuple[str, list[Annotation]]]] = {key: [] for key in images}
    for mark, box in zip(content["annotations"], _boxes(path, content["annotations"], images), strict=True):
        marks[mark["image_id"]].append((names[mark["category_id"]], [box.centre()]))
    return [(image, by_class(marks[key])) for key, image in images.items()]


def _of_slide(
    path: Path, listing: Sequence[tuple[dict[str, Any], AnnotationSet]], slide_id: str
) -> AnnotationSet | None:
    wanted = [(image, marks) for image, marks in listing if _is(image["file_name"], slide_id)]
    if len(wanted) > 1:
        raise AnnotationError(f"{path}: lists {len(wanted)} images named {slide_id}. Name the slide with its suffix.")
    ((image, marks),) = wanted or [({}, AnnotationSet(()))]
    if not marks.annotations and not marks.n_ignored:
        return None
    return replace(marks, dimensions=_dimensions(path, image))


def _is(file_name: str, slide_id: str) -> bool:
    name = PurePath(file_name).name
    return slide_id in {name, bare_name(name)}


def _dimensions(path: Path, image: dict[str, Any]) -> tuple[int, int] | None:
    if "width" not in image or "height" not in image:
        return None
    where = f"{path}, image {image['id']}"
    return int(number(image["width"], where)), int(number(image["height"], where))


def _boxes(path: Path, marks: list[dict[str, Any]], images: dict[Any, dict[str, Any]]) -> list[_Box]:
    """Every box of the file, under the more plausible of the two readings.

    Where both leave as many boxes impossible, smaller boxes are the more plausible ones: a cell is small.
    """
    corners, sizes = [], []
    for mark in marks:
        a, b, c, d = (number(value, f"{path}, annotation {mark.get('id')}") for value in mark["bbox"])
        image = images[mark["image_id"]]
        corners.append(_Box(a, b, c, d, image))
        sizes.append(_Box(a, b, a + c, b + d, image))
    boxes = min(corners, sizes, key=_implausibility)
    if 2 * sum(box.impossible() for box in boxes) > len(boxes):
        raise AnnotationError(
            f"{path}: most boxes lie off their images, read as x1,y1,x2,y2 and as x,y,width,height. "
            "Check that the boxes are in level-0 px of these images."
        )
    return boxes


def _implausibility(boxes: list[_Box]) -> tuple[int, float]:
    return sum(box.impossible() for box in boxes), median([abs(box.x1 - box.x0) for box in boxes] or [0.0])
