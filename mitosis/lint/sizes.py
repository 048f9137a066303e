"""Checks of sizes: outlines no cell has, µm/px that do not go with the objective, marks made on another image."""

import math
from collections.abc import Iterator, Mapping
from statistics import median

from mitosis.lint.collection import Collection, SlideMarks
from mitosis.lint.finding import Finding

__all__ = ["figure_size", "image_size", "pixel_size"]

_DIAMETER_UM = (3.0, 30.0)
"""Equivalent diameters between which an outlined figure is plausible; the ICPR 2012 figures have a median of 8.6 µm."""

_FEW_OUTLINES = 3
"""Of fewer outlines than this on a slide the median says little; those of such slides are taken together."""

_OBJECTIVE = 10.0
"""µm/px times objective power, about the same for every scanner (0.25 at 40x, 0.5 at 20x)."""

_OBJECTIVE_RANGE = (0.6, 1.6)
"""Scanners stray this far from it: 0.22 to 0.29 µm/px at 40x, 0.44 to 0.55 at 20x."""


def figure_size(collection: Collection) -> Iterator[Finding]:
    """Outlined marks whose median size is not that of a nucleus."""
    few: list[float] = []
    for slide in collection.slides:
        diameters = _diameters_um(slide)
        if len(diameters) >= _FEW_OUTLINES:
            yield from _implausible(slide.slide, diameters)
        else:
            few += diameters
    if len(few) >= _FEW_OUTLINES:
        yield from _implausible("", few)


def _diameters_um(slide: SlideMarks) -> list[float]:
    """Diameter of the circle that has the area of an outlined mark, µm, for each."""
    areas = [sum(outline.area for outline in mark.outlines) for mark in slide.annotations if mark.outlines]
    return [2 * math.sqrt(area / math.pi) * slide.view.mpp for area in areas] if slide.view else []


def _implausible(slide: str, diameters: list[float]) -> Iterator[Finding]:
    middle, (low, high) = median(diameters), _DIAMETER_UM
    if not low <= middle <= high:
        message = (
            f"The {len(diameters)} outlined marks have a median diameter of {middle:.1f} µm; "
            f"mitotic figures have {low:g} to {high:g} µm."
        )
        advice = "Check the µm/px of the slide (--mpp), and that the outlines are in px of its full resolution."
        yield Finding("figure_size", "error", slide, message, advice)


def pixel_size(collection: Collection) -> Iterator[Finding]:
    """µm/px that are far from what the file says, or from what its objective gives."""
    for slide in collection.slides:
        if (view := slide.view) is None:
            continue
        if view.file_mpp and abs(view.mpp / view.file_mpp - 1) > 0.1:
            message = f"{view.mpp:g} µm/px were given, but the file says {view.file_mpp:g}."
            advice = "Leave out --mpp if the file is right."
            yield Finding("pixel_size", "warning", slide.slide, message, advice)
        power = _power(view.properties)
        low, high = _OBJECTIVE_RANGE
        if power and not low <= view.mpp * power / _OBJECTIVE <= high:
            message = (
                f"{view.mpp:g} µm/px do not go with the objective of {power:g}x that the file names; "
                f"about {_OBJECTIVE / power:.2g} would."
            )
            advice = "Check the µm/px of the slide; give the right one with --mpp."
            yield Finding("pixel_size", "warning", slide.slide, message, advice)


def _power(properties: Mapping[str, str]) -> float | None:
    """Power of the objective, where the file names it and no adapter changes it, as in 3DHISTECH's scanners."""
    if "mirax" in properties.get("vendor", "").lower():
        return None
    try:
        power = float(properties["objective power"].lower().removesuffix("x"))
    except (KeyError, ValueError):
        return None
    return power if 1 <= power <= 200 else None


def image_size(collection: Collection) -> Iterator[Finding]:
    """Marks whose file says that they were made on an image of another size."""
    for slide in collection.slides:
        made_on = slide.marks.dimensions if slide.marks else None
        if slide.view and made_on and made_on != slide.view.dimensions:
            size = _size(slide.view.dimensions)
            message = f"The marks were made on an image of {_size(made_on)} px, but the slide has {size} px."
            advice = "Give the image these marks were made on, in its full resolution."
            yield Finding("image_size", "error", slide.slide, message, advice)


def _size(dimensions: tuple[int, int]) -> str:
    return f"{dimensions[0]} x {dimensions[1]}"
