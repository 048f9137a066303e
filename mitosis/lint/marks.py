"""Checks of the places of marks: two on one spot, off the image, off the tissue, axes swapped, another level."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mitosis.annotations import Annotation, Label
from mitosis.lint.collection import Collection, SlideMarks, SlideView
from mitosis.lint.finding import Finding, Place, listing, places
from mitosis.matching import MATCH_RADIUS_UM

__all__ = ["contradictions", "duplicates", "off_tissue", "other_level", "outside", "swapped_axes"]

_FEW = 5
"""Fewer marks than this on a slide prove nothing about how their coordinates were written."""

_FEW_OF_ALL = 20
"""The same for all slides together, where each shows less."""

_WRONG, _RIGHT = 0.5, 0.9
"""Another reading is told where at most half of the marks fit as they are and nearly all fit under it."""

_FIELD = 0.9
"""An image with a larger share of tissue is a field of view: marks can be anywhere on it."""

_ACCIDENT = 0.01
"""A reading is not told if marks would fit another as well with a larger chance than this."""

_Pair = tuple[Place, Place]


def duplicates(collection: Collection) -> Iterator[Finding]:
    """Two marks of one label that are one cell to every scorer, or an outline drawn twice."""
    for slide in collection.slides:
        joined = slide.joined
        near = [pair for label in Label for pair in _near(joined, label, label, _reach(slide))]
        if pairs := near + _drawn_twice(slide.annotations):
            message = f"Marks of one label on one spot, closer than {MATCH_RADIUS_UM:g} µm, {_told(pairs)}."
            advice = "If a pair is one cell, delete one of its marks; each would count as a figure."
            yield Finding("duplicates", "warning", slide.slide, message, advice, _flat(pairs))


def contradictions(collection: Collection) -> Iterator[Finding]:
    """A mitotic figure and a look-alike on one spot: one of the two is wrong."""
    figure, look_alike = Label
    for slide in collection.slides:
        if pairs := _near(slide.joined, figure, look_alike, _reach(slide)):
            message = f"Figure and look-alike on one spot, closer than {MATCH_RADIUS_UM:g} µm, {_told(pairs)}."
            advice = "Decide for each which mark is right, and delete the other."
            yield Finding("contradictions", "error", slide.slide, message, advice, _flat(pairs))


def _reach(slide: SlideMarks) -> float:
    return MATCH_RADIUS_UM / slide.view.mpp if slide.view else 0.0


def _near(marks: Sequence[Annotation], one: Label, other: Label, reach: float) -> list[_Pair]:
    """Each mark of a label with the nearest of the other label if that is closer than `reach` px; a pair once."""
    first, second = ([(mark.x, mark.y) for mark in marks if mark.label == label] for label in (one, other))
    n_wanted = 2 if one == other else 1
    if not first or len(second) < n_wanted:
        return []
    distances, nearest = cKDTree(second).query(first, k=[1, 2][:n_wanted])
    found: dict[tuple[int, ...], _Pair] = {}
    for i, (away, indices) in enumerate(zip(distances.tolist(), nearest.tolist(), strict=True)):
        # With several marks on one spot a mark need not be its own nearest one.
        rank = 1 if one == other and indices[0] == i else 0
        j = indices[rank]
        if away[rank] < reach:
            found.setdefault(tuple(sorted((i, j))) if one == other else (i, j), (first[i], second[j]))
    return list(found.values())


def _drawn_twice(marks: Sequence[Annotation]) -> list[_Pair]:
    """Outlines of one label of which one covers more than half of the other; loading makes one figure of them."""
    outlined = [mark for mark in marks if mark.outlines]
    shapes = np.array([shapely.union_all(mark.outlines) for mark in outlined], dtype=object)
    pairs = shapely.STRtree(shapes).query(shapes, predicate="intersects").T.tolist()
    return [
        ((outlined[i].x, outlined[i].y), (outlined[j].x, outlined[j].y))
        for i, j in pairs
        if i < j
        and outlined[i].label == outlined[j].label
        and shapes[i].intersection(shapes[j]).area > 0.5 * min(shapes[i].area, shapes[j].area)
    ]


def _told(pairs: Sequence[_Pair]) -> str:
    words = listing([" with ".join(places([place]) for place in pair) for pair in pairs])
    return f"{len(pairs)} pair{'' if len(pairs) == 1 else 's'}: {words}"


def _flat(pairs: Sequence[_Pair]) -> tuple[Place, ...]:
    return tuple(place for pair in pairs for place in pair)


def outside(collection: Collection) -> Iterator[Finding]:
    """Marks that lie off the image; loading drops them."""
    for slide, view in _seen(collection):
        if off := _chosen(slide, ~view.as_read.inside):
            width, height = view.dimensions
            message = (
                f"Marks off the image, which has {width} x {height} px "
                f"({len(off)} of {len(slide.annotations)}): {places(off)}."
            )
            advice = "Check that the file belongs to this slide and is in px of its full resolution, x before y."
            yield Finding("outside", "error", slide.slide, message, advice, off)


def off_tissue(collection: Collection) -> Iterator[Finding]:
    """Marks on glass, as far as tissue can be told by its colour."""
    for slide, view in _seen(collection):
        off = _chosen(slide, view.as_read.inside & ~view.as_read.on_tissue)
        if off and not view.tissue_share:
            message = f"No H&E-stained tissue was found on this slide, which has marks ({len(off)})."
            advice = "Look at the slide: another stain, very pale, or the wrong file? Nothing would be counted on it."
            yield Finding("off_tissue", "warning", slide.slide, message, advice, off)
        elif off:
            share = f"{len(off)} of {len(slide.annotations)}, {len(off) / len(slide.annotations):.0%}"
            message = f"Marks off the tissue ({share}): {places(off)}."
            advice = "Look at these places; a shift, or the marks of another slide, would look like this."
            yield Finding("off_tissue", "warning", slide.slide, message, advice, off)


def swapped_axes(collection: Collection) -> Iterator[Finding]:
    """Marks that fit the slide clearly better when x and y change places."""
    advice = "Write x (to the right) before y (down) in the file of marks."
    doubtful = []
    for slide, view in _seen(collection):
        if _fits_better(view, view.swapped.on_tissue) or _only_off_as_read([view]):
            message = (
                f"x and y look swapped: {_share(view.as_read.on_tissue)} of the {len(slide.annotations)} marks are on "
                f"tissue as x,y, but {_share(view.swapped.on_tissue)} as y,x."
            )
            yield Finding("swapped_axes", "error", slide.slide, message, advice)
        elif len(view.as_read.inside):
            doubtful.append(view)
    if _only_off_as_read(doubtful):
        n_off = sum(int((~view.as_read.inside).sum()) for view in doubtful)
        message = f"x and y look swapped: {n_off} marks lie off their images as x,y, and none as y,x."
        yield Finding("swapped_axes", "error", "", message, advice)


def _fits_better(view: SlideView, other: NDArray[np.bool_]) -> bool:
    """Whether another reading is clearly better for the marks of a slide."""
    return len(other) >= _FEW and view.as_read.on_tissue.mean() <= _WRONG and bool(other.mean() >= _RIGHT)


def _only_off_as_read(views: Sequence[SlideView]) -> bool:
    """Whether a good part of the marks is off the image as read, and none of them when swapped, which is no accident.

    Of marks that are read rightly, each would stay on the image when swapped by the ratio of its sides at best.
    """
    n_off = sum(int((~view.as_read.inside).sum()) for view in views)
    n_swapped = sum(int((~view.swapped.inside).sum()) for view in views)
    n_marks = sum(len(view.as_read.inside) for view in views)
    by_accident = math.prod((min(view.dimensions) / max(view.dimensions)) ** len(view.as_read.inside) for view in views)
    return n_swapped == 0 and n_off >= 3 and n_off >= 0.05 * n_marks and by_accident <= _ACCIDENT


def other_level(collection: Collection) -> Iterator[Finding]:
    """Marks that fit the slide clearly better when they are scaled: made on another level of the pyramid."""
    for slide, view in _seen(collection):
        # Of equally good factors the one nearest to 1 changes least.
        factor = max(view.scaled, key=lambda k: (view.scaled[k].on_tissue.sum(), -abs(math.log(k))))
        fits = view.scaled[factor].on_tissue
        better = _fits_better(view, fits) or (factor > 1 and _fits_alone(view, fits))
        if better and fits.sum() > view.swapped.on_tissue.sum():
            message = (
                f"Made at another level? {_share(view.as_read.on_tissue)} of the {len(fits)} marks are on tissue as "
                f"they are, but {_share(fits)} when multiplied by {factor:g}."
            )
            yield Finding("other_level", "warning", slide.slide, message, _scaling(factor))
    yield from _all_in_one_corner(collection)


def _fits_alone(view: SlideView, enlarged: NDArray[np.bool_]) -> bool:
    """Whether many marks all stay on tissue when spread over a larger part of the slide, and some are off as read.

    On a slide that is mostly tissue most marks are on some as read, too.
    """
    n_off = int((~view.as_read.on_tissue).sum())
    return len(enlarged) >= _FEW_OF_ALL and bool(enlarged.all()) and n_off >= max(2, 0.05 * len(enlarged))


def _all_in_one_corner(collection: Collection) -> Iterator[Finding]:
    """On fields of view there is no glass to tell by, but marks of many fields fill more than a corner of each."""
    fields = [(slide, view) for slide, view in _seen(collection) if view.tissue_share > _FIELD]
    reaches = [
        max(mark.x / view.dimensions[0], mark.y / view.dimensions[1])
        for slide, view in fields
        for mark in slide.annotations
    ]
    if len(fields) >= 3 and len(reaches) >= _FEW_OF_ALL and 0 < max(reaches) <= 0.5:
        factor = 2.0 ** math.floor(-math.log2(max(reaches)))
        message = (
            f"Made at another level? All {len(reaches)} marks of {len(fields)} images lie in the top-left corner of "
            f"their image, within 1/{factor:g} of its width and height."
        )
        yield Finding("other_level", "warning", "", message, _scaling(factor))


def _scaling(factor: float) -> str:
    return (
        f"Open the marks on the slide. If they are off by a factor of {factor:g}, multiply x and y by it, "
        "or export them again in px of the full resolution."
    )


def _seen(collection: Collection) -> Iterator[tuple[SlideMarks, SlideView]]:
    """The slides that are marked and could be opened."""
    return ((slide, slide.view) for slide in collection.slides if slide.view and slide.annotations)


def _chosen(slide: SlideMarks, which: NDArray[np.bool_]) -> tuple[Place, ...]:
    return tuple((mark.x, mark.y) for mark, chosen in zip(slide.annotations, which, strict=True) if chosen)


def _share(which: NDArray[np.bool_]) -> str:
    return f"{which.mean():.0%}"
