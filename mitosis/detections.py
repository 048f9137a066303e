"""Probability map -> detections, by rules so local that the set does not depend on how the slide was tiled.

A detection is a peak of the smoothed map. A tile reports the peaks whose peak pixel lies in its core, and the cores
partition the slide, so none is doubled and none is lost. What a tile needs is its core grown by `reach_px`. Values
are compared as whole multiples of 1e-4 and sums are made of whole numbers: the last bits of a network's output, which
change with the number of threads, hardly ever show.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mitosis.geometry import Box

__all__ = ["MERGE_RADIUS_UM", "Detections", "PeakRule", "concatenate", "find_peaks", "merge", "reach_px"]

MERGE_RADIUS_UM = 13.0
"""Of two peaks closer than this, in µm, the lower one is dropped, so that a telophase is one figure; `CountConfig`
says where the value comes from."""

SCORE_STEPS = 10_000
"""Steps a score is rounded to."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Found figures as read-only arrays of one length; ``d[keep]`` selects with a mask, an index array or a slice.

    Attributes
    ----------
    xy : float64 [N, 2]
        Centres, level-0 px.
    score : float64 [N]
        0..1, rounded to 1e-4.
    area_um2 : float64 [N]
        Size of the spot in the probability map, µm².

    Raises
    ------
    ValueError
        The arrays do not fit together, or hold something that is not finite.
    """

    xy: FloatArray
    score: FloatArray
    area_um2: FloatArray

    def __post_init__(self) -> None:
        n = len(self.score)
        for name, shape in (("xy", (n, 2)), ("score", (n,)), ("area_um2", (n,))):
            array = np.array(getattr(self, name), dtype=np.float64)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name}: expected finite numbers of shape {shape}, but got shape {array.shape}")
            if name == "score":
                array = np.round(array, 4)
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, keep: Any) -> "Detections":
        return Detections(self.xy[keep], self.score[keep], self.area_um2[keep])

    @classmethod
    def empty(cls) -> "Detections":
        """No detections."""
        return cls(np.empty((0, 2)), np.empty(0), np.empty(0))

    def sorted(self) -> "Detections":
        """In the one order of this project: score down, then y, then x (then area down) up."""
        return self[np.lexsort((-self.area_um2, self.xy[:, 0], self.xy[:, 1], -self.score))]


def concatenate(parts: Iterable[Detections]) -> Detections:
    """All detections of `parts`, in their order."""
    parts = [Detections.empty(), *parts]
    return Detections(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("xy", "score", "area_um2")))


@dataclass(frozen=True, slots=True)
class PeakRule:
    """What a peak is.

    Attributes
    ----------
    smooth_um : float
        Radius of the smoothing kernel, µm: a Gaussian, cut there, of half that as sigma.
    peak_um : float
        A peak is the highest pixel within this radius, µm.
    extent_um : float
        The spot of a peak, from which centre and area are taken: the pixels within this radius that are at least half
        as high, µm. A metaphase plate is about 10 µm long.
    """

    smooth_um: float = 2.5
    peak_um: float = 3.0
    extent_um: float = 6.0


DEFAULT_RULE = PeakRule()


def reach_px(mpp: float, rule: PeakRule = DEFAULT_RULE) -> int:
    """How far beyond its core, in px at `mpp`, a tile must know the map for its peaks to be final."""
    return math.floor(rule.smooth_um / mpp) + math.floor(max(rule.peak_um, rule.extent_um) / mpp)


def find_peaks(
    probability: NDArray[np.floating],
    window: Box,
    core: Box,
    mpp: float,
    slide_mpp: float,
    floor: float,
    rule: PeakRule = DEFAULT_RULE,
) -> Detections:
    """Detections whose peak pixel lies in `core`.

    Parameters
    ----------
    probability : float [h, w]
        Probability of a mitotic figure in the pixels of `window`; beyond the window it is taken as 0.
    window, core : Box
        px of the grid at `mpp`. For a result that does not depend on the tiling the window holds the core grown by
        `reach_px`, as far as that lies on the slide.
    mpp, slide_mpp : float
        µm/px of the map and of level 0.
    floor : float
        Least score of a detection.

    Returns
    -------
    Detections
        Sorted. The score is the smoothed probability at the peak; ties between pixels go to the smaller y, then x.

    Raises
    ------
    ValueError
        The map does not have the size of the window, or the core is not inside it.
    """
    if probability.shape != window.size[::-1]:
        raise ValueError(f"probability: expected [h, w] = {window.size[::-1]}, but got {probability.shape}")
    if core.x0 < window.x0 or core.y0 < window.y0 or core.x1 > window.x1 or core.y1 > window.y1:
        raise ValueError(f"core {tuple(core)} is not inside window {tuple(window)}")
    highest = probability.max(initial=0.0)
    if not np.isfinite(highest):
        raise ValueError("probability: expected finite numbers, but some are not (did training diverge?)")
    least = max(1, math.ceil(floor * SCORE_STEPS - 1e-6))
    if highest * SCORE_STEPS < least - 1:
        return Detections.empty()
    reach = reach_px(mpp, rule)
    padded, x0, y0 = np.pad(probability, reach), window.x0 - reach, window.y0 - reach
    inside = Box(core.x0 - x0, core.y0 - y0, core.x1 - x0, core.y1 - y0)
    # A smoothed value is a mean, so where no pixel that it is of comes up to the least score there is no peak.
    parts = _around(padded * SCORE_STEPS >= least - 1, inside, math.floor(rule.smooth_um / mpp), reach)
    steps = _smooth_parts(padded, parts, reach, rule.smooth_um / mpp)
    rows, columns = _peaks(steps, parts, rule.peak_um / mpp, least)
    mean_xy, n_pixels = _spots(steps, rows, columns, rule.extent_um / mpp)
    xy = np.stack([columns + x0, rows + y0], axis=1) + 0.5 + mean_xy
    return Detections(xy * (mpp / slide_mpp), steps[rows, columns] / SCORE_STEPS, n_pixels * mpp**2).sorted()


def merge(detections: Detections, slide_mpp: float, radius_um: float = MERGE_RADIUS_UM) -> Detections:
    """Keep the best of those that are closer to each other than `radius_um`.

    In the order of `Detections.sorted`, each detection that is kept drops all later ones strictly closer than the
    radius. The result does not depend on the order of the input, and a threshold may be applied before or after.
    """
    ordered = detections.sorted()
    radius = radius_um / slide_mpp
    if not radius > 0:
        return ordered
    cells: dict[tuple[int, int], list[tuple[float, float]]] = {}
    keep = []
    # A dense crowd would have a quadratic number of pairs; no cell ever holds more than a few that were kept.
    for index, (x, y) in enumerate(ordered.xy.tolist()):
        column, row = math.floor(x / radius), math.floor(y / radius)
        around = ((column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
        if any((x - u) ** 2 + (y - v) ** 2 < radius**2 for cell in around for u, v in cells.get(cell, ())):
            continue
        cells.setdefault((column, row), []).append((x, y))
        keep.append(index)
    return ordered[np.array(keep, dtype=np.int64)]


def _around(hot: NDArray[np.bool_], inside: Box, near: int, reach: int) -> list[Box]:
    """Boxes that hold all of `inside` that lies within `near` px of what is hot; most of a map is far from any.

    One box where these, with the `reach` that is looked at around each, would be no fewer pixels.
    """
    side = max(8, near)
    whole = np.pad(hot, [(0, -n % side) for n in hot.shape])
    rows, columns = whole.shape[0] // side, whole.shape[1] // side
    # One axis after the other: five times as fast as both at once, or as reduceat.
    cells = whole.reshape(rows, side, -1).any(axis=1).reshape(rows, columns, side).any(axis=2)
    square = np.ones((3, 3), dtype=bool)
    labels, _ = ndimage.label(ndimage.binary_dilation(cells, square), square)
    boxes = [
        Box(
            *np.maximum((columns.start * side, rows.start * side), inside[:2]).tolist(),
            *np.minimum((columns.stop * side, rows.stop * side), inside[2:]).tolist(),
        )
        for rows, columns in ndimage.find_objects(labels)
    ]
    boxes = [box for box in boxes if min(box.size) > 0]
    return boxes if sum(math.prod(box.grown(reach).size) for box in boxes) < hot.size else [inside]


def _smooth_parts(
    probability: NDArray[np.floating], parts: Sequence[Box], reach: int, radius: float
) -> NDArray[np.int32]:
    """The smoothed map where peaks in these parts need it, and 0 elsewhere."""
    steps, margin = np.zeros(probability.shape, np.int32), math.floor(radius)
    for x0, y0, x1, y1 in (part.grown(reach) for part in parts):
        inner = slice(margin, y1 - y0 - margin), slice(margin, x1 - x0 - margin)
        steps[y0:y1, x0:x1][inner] = _smooth(probability[y0:y1, x0:x1], radius)[inner]
    return steps


def _smooth(probability: NDArray[np.floating], radius: float) -> NDArray[np.int32]:
    """The smoothed map in whole steps of 1e-4."""
    reach = math.floor(radius)
    offset = np.arange(-reach, reach + 1)
    kernel = np.exp(-2.0 * (offset / max(radius, 1e-9)) ** 2)
    kernel /= kernel.sum()
    smooth = probability.astype(np.float32)
    for axis in (0, 1):
        smooth = ndimage.correlate1d(smooth, kernel, axis=axis, mode="constant")
    return np.rint(smooth * SCORE_STEPS).astype(np.int32)


@lru_cache(maxsize=32)
def _disc(radius: float) -> tuple[IntArray, IntArray]:
    """Row and column offsets no further than `radius` px from the centre, row by row."""
    reach = math.floor(radius)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    near = rows**2 + columns**2 <= radius**2 + 1e-9
    return rows[near], columns[near]


def _peaks(steps: NDArray[np.int32], parts: Sequence[Box], radius: float, least: int) -> tuple[IntArray, IntArray]:
    """Rows and columns of the pixels in `parts` that come first, by value, y and x, within `radius` px."""
    side, margin = 2 * math.floor(radius / math.sqrt(2)) + 1, math.floor(radius)
    square, chosen = np.ones((side, side), np.uint8), [np.empty(0, np.int64)]
    for part in parts:
        x0, y0, x1, y1 = part.grown(margin)
        inner = slice(margin, y1 - y0 - margin), slice(margin, x1 - x0 - margin)
        around = steps[y0:y1, x0:x1].astype(np.float32)  # exact, and OpenCV's filter is five times as fast as SciPy's
        highest = cv2.dilate(around, square)
        rows, columns = np.nonzero((around[inner] == highest[inner]) & (around[inner] >= least))
        chosen.append((rows + part.y0) * steps.shape[1] + columns + part.x0)
    rows, columns = np.divmod(np.unique(np.concatenate(chosen)), steps.shape[1])  # boxes may overlap
    # Eight neighbours first: they thin out plateaus before the whole disc is looked at.
    for reach in (min(radius, 1.5), radius):
        first = _comes_first(steps, rows, columns, *_disc(reach))
        rows, columns = rows[first], columns[first]
    return rows, columns


def _comes_first(
    steps: NDArray[np.int32], rows: IntArray, columns: IntArray, row_offsets: IntArray, column_offsets: IntArray
) -> NDArray[np.bool_]:
    first = np.ones(len(rows), dtype=bool)
    value = steps[rows, columns]
    for i, j in zip(row_offsets.tolist(), column_offsets.tolist(), strict=True):
        other = steps[rows + i, columns + j]
        first &= (other < value) if (i, j) < (0, 0) else (other <= value)
    return first


def _spots(steps: NDArray[np.int32], rows: IntArray, columns: IntArray, radius: float) -> tuple[FloatArray, FloatArray]:
    """Centre of each peak's spot as (x, y) from the peak pixel's centre, float64 [N, 2], and its size in px [N]."""
    row_offsets, column_offsets = _disc(radius)
    around = steps[rows[:, None] + row_offsets, columns[:, None] + column_offsets].astype(np.int64)
    weight = np.where(2 * around >= steps[rows, columns][:, None], around, 0)
    moments = np.stack([weight @ column_offsets, weight @ row_offsets], axis=1)
    return moments / weight.sum(axis=1, keepdims=True), np.count_nonzero(weight, axis=1).astype(np.float64)
