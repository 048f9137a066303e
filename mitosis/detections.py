"""Probability map -> detections, by rules so local that the set does not depend on how the slide was tiled.

A detection is a peak of the smoothed map. A tile reports the peaks whose peak pixel lies in its core, and the cores
partition the slide, so none is doubled and none is lost. What a tile needs is its core grown by `reach_px`. Values
are compared as whole multiples of 1e-4 and sums are made of whole numbers: the last bits of a network's output, which
change with the number of threads, hardly ever show.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

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
    if not probability.size or highest * SCORE_STEPS < least - 1:
        return Detections.empty()
    reach = reach_px(mpp, rule)
    x0, y0 = window.x0 - reach, window.y0 - reach
    steps = _smooth(probability, rule.smooth_um / mpp, reach)
    inside = Box(core.x0 - x0, core.y0 - y0, core.x1 - x0, core.y1 - y0)
    rows, columns = _peaks(steps, inside, rule.peak_um / mpp, least)
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


def _smooth(probability: NDArray[np.floating], radius: float, margin: int) -> NDArray[np.uint16]:
    """The smoothed map in whole steps of 1e-4, with so many px of nothing around it."""
    steps = cv2.addWeighted(probability, SCORE_STEPS, probability, 0, 0, dtype=cv2.CV_16U)  # rounds in one go
    steps = cv2.copyMakeBorder(steps, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    side = 2 * math.floor(radius) + 1
    # Of whole numbers OpenCV makes sums in whole numbers too, so a pixel does not hang on where it lies in the array.
    return np.asarray(cv2.GaussianBlur(steps, (side, side), radius / 2, borderType=cv2.BORDER_CONSTANT), np.uint16)


@lru_cache(maxsize=32)
def _disc(radius: float) -> tuple[IntArray, IntArray]:
    """Row and column offsets no further than `radius` px from the centre, row by row."""
    reach = math.floor(radius)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    near = rows**2 + columns**2 <= radius**2 + 1e-9
    return rows[near], columns[near]


def _peaks(steps: NDArray[np.uint16], inside: Box, radius: float, least: int) -> tuple[IntArray, IntArray]:
    """Rows and columns of the pixels in `inside` that come first, by value, y and x, within `radius` px."""
    side = 2 * math.floor(radius / math.sqrt(2)) + 1
    highest = cv2.dilate(steps, np.ones((side, side), np.uint8))
    inner = slice(inside.y0, inside.y1), slice(inside.x0, inside.x1)
    chosen = np.flatnonzero((steps[inner] == highest[inner]) & (steps[inner] >= least))
    rows, columns = np.divmod(chosen, inside.size[0]) + np.array([[inside.y0], [inside.x0]])
    # Eight neighbours first: they thin out plateaus before the whole disc is looked at.
    for reach in (min(radius, 1.5), radius):
        first = _comes_first(steps, rows, columns, *_disc(reach))
        rows, columns = rows[first], columns[first]
    return rows, columns


def _comes_first(
    steps: NDArray[np.uint16], rows: IntArray, columns: IntArray, row_offsets: IntArray, column_offsets: IntArray
) -> NDArray[np.bool_]:
    first = np.ones(len(rows), dtype=bool)
    value = steps[rows, columns]
    for i, j in zip(row_offsets.tolist(), column_offsets.tolist(), strict=True):
        other = steps[rows + i, columns + j]
        first &= (other < value) if (i, j) < (0, 0) else (other <= value)
    return first


def _spots(
    steps: NDArray[np.uint16], rows: IntArray, columns: IntArray, radius: float
) -> tuple[FloatArray, FloatArray]:
    """Centre of each peak's spot as (x, y) from the peak pixel's centre, float64 [N, 2], and its size in px [N]."""
    row_offsets, column_offsets = _disc(radius)
    around = steps[rows[:, None] + row_offsets, columns[:, None] + column_offsets].astype(np.int64)
    weight = np.where(2 * around >= steps[rows, columns][:, None], around, 0)
    moments = np.stack([weight @ column_offsets, weight @ row_offsets], axis=1)
    return moments / weight.sum(axis=1, keepdims=True), np.count_nonzero(weight, axis=1).astype(np.float64)
