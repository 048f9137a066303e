"""The mark itself, and what the words in a file mean."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from shapely.geometry import Polygon

from mitosis.errors import AnnotationError

__all__ = ["Annotation", "AnnotationSet", "Label", "bare_name", "by_class", "check_classes", "label_of"]

_IMAGE_SUFFIX = re.compile(
    r"\.(bif|bmp|btf|czi|dcm|jpe?g|mrxs|ndpi|png|qptiff|scn|svs|svslide|tiff?|vms|vmu|zarr)$", re.IGNORECASE
)


class Label(StrEnum):
    """What a mark stands for."""

    MITOTIC_FIGURE = "mitotic figure"
    NON_MITOTIC_FIGURE = "non-mitotic figure"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One marked cell.

    Attributes
    ----------
    x, y : float
        Centre, level-0 px (the centre of pixel (row i, column j) is ``(j + 0.5, i + 0.5)``).
    label : Label
        Mitotic figure or look-alike.
    outlines : tuple of shapely Polygon, level-0 px
        The cell's segments where the expert drew them; empty for a point or a box.
    """

    x: float
    y: float
    label: Label
    outlines: tuple[Polygon, ...] = ()


@dataclass(frozen=True, slots=True)
class AnnotationSet:
    """What is marked on one slide. Empty means: looked at, nothing found.

    Attributes
    ----------
    annotations : tuple of Annotation
    n_outside : int
        Marks dropped because their centre lies off the slide.
    n_ignored : int
        Marks left out because they are neither figure nor look-alike: another class, a line.
    dimensions : (width, height) or None
        Size of the image the marks were made on, level-0 px, where the file says it.
    """

    annotations: tuple[Annotation, ...] = ()
    n_outside: int = 0
    n_ignored: int = 0
    dimensions: tuple[int, int] | None = None


_FIGURE = "mitotic figure|mitotic figures|mitotic|mitotic cell|mitosis|mitoses|mf"
_LOOK_ALIKE = (
    "hard negative|imposter|impostor|look alike|lookalike|mitotic figure look alike|mitosis like|nmf|non mf"
    "|mitotic like figure|nonmitosis|nonmitotic|nonmitotic figure"
)
_NAMES = dict.fromkeys(_FIGURE.split("|"), Label.MITOTIC_FIGURE)
_NAMES |= dict.fromkeys(_LOOK_ALIKE.split("|"), Label.NON_MITOTIC_FIGURE)
_NAMES |= {f"{no} {name}": Label.NON_MITOTIC_FIGURE for name in _FIGURE.split("|") for no in ("non", "not", "no")}


def label_of(name: str) -> Label | None:
    """What a class name of some data set or viewer stands for; None for any other class.

    Capitals, hyphens, underscores and a plural s do not matter; of a derived QuPath class (``Tumor: Mitosis``) the last
    part counts.
    """
    words = re.sub(r"[\s_-]+", " ", name.rpartition(":")[2]).strip().casefold()
    return _NAMES.get(words) or _NAMES.get(words.removesuffix("s"))


def bare_name(slide_id: str) -> str:
    """A slide's name without its image suffix: ``001`` for ``001.tiff``."""
    return _IMAGE_SUFFIX.sub("", slide_id) or slide_id


def by_class(marks: Iterable[tuple[str, list[Annotation]]]) -> AnnotationSet:
    """Label annotations by the class name they bear; those of other classes, or without a place, are counted."""
    found: list[Annotation] = []
    n_ignored = 0
    for name, annotations in marks:
        label = label_of(name)
        if label is None or not annotations:
            n_ignored += max(1, len(annotations))
        else:
            found += [replace(annotation, label=label) for annotation in annotations]
    return AnnotationSet(tuple(found), n_ignored=n_ignored)


def check_classes(names: Iterable[str], path: Path) -> None:
    """See that, if there are classes, at least one of them stands for figures or look-alikes.

    Raises
    ------
    AnnotationError
        Every mark would be ignored, which looks like a slide without figures and is not.
    """
    found = sorted(set(names))
    if found and not any(map(label_of, found)):
        listing = ", ".join(repr(name[:40]) for name in found[:5])
        raise AnnotationError(
            f"{path}: no class is a mitotic figure (found {listing}). "
            f"Name the classes {Label.MITOTIC_FIGURE.value!r} and {Label.NON_MITOTIC_FIGURE.value!r}; "
            "if no figure was found, delete these marks: an empty file says so."
        )
