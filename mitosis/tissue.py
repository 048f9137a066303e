"""Where there is tissue on a slide, and how many mm²."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from mitosis.geometry import Box, area_mm2, grid_dimensions
from mitosis.slides import Slide, thumbnail

__all__ = ["TISSUE_MPP", "TissueMask", "find_tissue", "touched"]

TISSUE_MPP = 8.0
"""µm/px at which tissue is looked for."""

HOLE_MM2 = 0.02
"""Smaller gaps (vessels, fat cells, glands) belong to the tissue."""

SPECK_MM2 = 0.01
"""Smaller islands are dirt."""

STAIN_OD = 0.05
"""How much more green than red or blue light tissue takes, in optical density. Clean glass stays under 0.02; loose
stroma at 8 µm/px is about 0.08. A fixed value, not one fitted to the slide: then a blank slide has no tissue, and a
field of view without glass is tissue all over."""

_ROWS = 256
_BLUR_REACH = 4  # px: how far the filter that smooths colours looks

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Where tissue is.

    Attributes
    ----------
    mask : bool [H, W], read-only
        On the grid at `mpp` (geometry.py).
    mpp, slide_mpp : float
        µm/px of the mask and of level 0.
    dimensions : (int, int)
        Width and height of the slide, level-0 px. Mask pixels that reach over the slide's edge count with the part
        that lies on the slide.

    Raises
    ------
    ValueError
        The mask does not have the size of the slide's grid.
    """

    mask: BoolArray
    mpp: float
    slide_mpp: float
    dimensions: tuple[int, int]

    def __post_init__(self) -> None:
        mask = np.array(self.mask, dtype=bool)
        width, height = grid_dimensions(self.dimensions, self.slide_mpp, self.mpp)
        if mask.shape != (height, width):
            raise ValueError(f"mask: expected [H, W] = {(height, width)}, but got {mask.shape}")
        mask.setflags(write=False)
        object.__setattr__(self, "mask", mask)

    @cached_property
    def _integral(self) -> NDArray[np.int32]:
        """Tissue pixels above and left of each: four times the mask, so not there before it is asked for."""
        return np.asarray(cv2.integral(self.mask.view(np.uint8), sdepth=cv2.CV_32S), np.int32)

    @cached_property
    def area_mm2(self) -> float:
        """All tissue, mm²; not by `_integral`, which whoever shows progress would keep in memory."""
        sizes = zip(self.dimensions, self.mask.T.shape, strict=True)
        across, down = (np.minimum(1, size * self.slide_mpp / self.mpp - np.arange(n)) for size, n in sizes)
        return area_mm2(round(float(np.einsum("y,yx,x", down, self.mask, across)), 9), self.mpp)

    def area_mm2_in(self, box: Sequence[float]) -> float:
        """Tissue in a box ``(x0, y0, x1, y1)``, level-0 px, fractions allowed; outside the slide there is none."""
        return float(self.areas_mm2_in([box])[0])

    def areas_mm2_in(self, boxes: ArrayLike) -> FloatArray:
        """Tissue in each of `boxes` (float [N, 4], level-0 px), mm² [N]."""
        edges = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        x = np.clip(edges[:, 0::2], 0, self.dimensions[0]) * (self.slide_mpp / self.mpp)
        y = np.clip(edges[:, 1::2], 0, self.dimensions[1]) * (self.slide_mpp / self.mpp)
        corner = [[self._above_left(x[:, i], y[:, j]) for i in (0, 1)] for j in (0, 1)]
        pixels = corner[1][1] - corner[1][0] - corner[0][1] + corner[0][0]
        # Rounding must not leave a trace of tissue in a box without any.
        pixels = np.where((x[:, 1] > x[:, 0]) & (y[:, 1] > y[:, 0]), np.round(np.maximum(pixels, 0), 9), 0)
        return pixels * area_mm2(1, self.mpp)

    def _above_left(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Tissue pixels in ``[0, x) x [0, y)``; the integral of a mask is bilinear within a pixel, so this is exact."""
        column = np.minimum(x.astype(np.int64), self.mask.shape[1] - 1)
        row = np.minimum(y.astype(np.int64), self.mask.shape[0] - 1)
        u, v, total = x - column, y - row, self._integral
        upper = total[row, column] * (1 - u) + total[row, column + 1] * u
        lower = total[row + 1, column] * (1 - u) + total[row + 1, column + 1] * u
        value: FloatArray = upper * (1 - v) + lower * v
        return value

    def covers(self, box: Sequence[float]) -> float:
        """Share of a box (level-0 px) that is tissue, 0..1."""
        size = (box[2] - box[0]) * (box[3] - box[1])
        return min(1.0, self.area_mm2_in(box) / area_mm2(size, self.slide_mpp)) if size > 0 else 0.0

    def contains(self, xy: ArrayLike) -> BoolArray:
        """Which points (float [N, 2], level-0 px) lie on tissue, bool [N]."""
        points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        inside: BoolArray = np.all((points >= 0) & (points < self.dimensions), axis=1)
        column, row = np.floor(points[inside] * (self.slide_mpp / self.mpp)).astype(np.int64).T
        height, width = self.mask.shape
        inside[inside] = self.mask[np.minimum(row, height - 1), np.minimum(column, width - 1)]
        return inside

    def without(self, boxes: Iterable[Box]) -> "TissueMask":
        """The mask less every pixel that one of `boxes` (level-0 px) touches: places that could not be read."""
        lost = touched(self.mask.shape, boxes, self.mpp / self.slide_mpp)
        return replace(self, mask=self.mask & ~lost) if lost.any() else self


def find_tissue(slide: Slide, mpp: float = TISSUE_MPP) -> TissueMask:
    """Tell H&E-stained tissue from glass, dark borders and most pens by its colour.

    H&E takes more green than red or blue out of the light; glass and black take equally much of all three, green and
    blue ink take more red. Small gaps are filled and small islands dropped, "small" being at most a tenth of the slide.
    """
    mask = _is_stained(thumbnail(slide, mpp))
    whole_mm2 = area_mm2(mask.size, mpp)
    mask = ~_without_small(~mask, min(HOLE_MM2, whole_mm2 / 10) / area_mm2(1, mpp))
    mask = _without_small(mask, min(SPECK_MM2, whole_mm2 / 10) / area_mm2(1, mpp))
    # Damaged tiles read as glass; they are kept, so that a count can say how much of the slide it could not see.
    mask |= touched(mask.shape, (bad.box for bad in slide.bad_tiles), mpp / slide.mpp)
    return TissueMask(mask, mpp, slide.mpp, slide.dimensions)


def touched(shape: tuple[int, ...], boxes: Iterable[Box], ratio: float) -> BoolArray:
    """Bool [H, W]: the pixels of a mask, `ratio` level-0 px wide, that one of `boxes` (level-0 px) touches."""
    mask = np.zeros(shape, bool)
    for box in boxes:
        x0, y0 = (max(0, int(np.floor(edge / ratio + 1e-9))) for edge in box[:2])
        x1, y1 = (max(0, int(np.ceil(edge / ratio - 1e-9))) for edge in box[2:])
        mask[y0:y1, x0:x1] = True
    return mask


def _is_stained(image: NDArray[np.uint8]) -> BoolArray:
    """Bool [H, W] of an RGB image [H, W, 3], some rows at a time: as densities a large slide would take 400 MB."""
    stained = np.empty(image.shape[:2], bool)
    for y in range(0, len(image), _ROWS):
        top = max(0, y - _BLUR_REACH)
        stained[y : y + _ROWS] = _stained_rows(image[top : y + _ROWS + _BLUR_REACH])[y - top :][:_ROWS]
    return stained


def _stained_rows(image: NDArray[np.uint8]) -> BoolArray:
    red, green, blue = np.moveaxis(-np.log10(np.maximum(image, 1) / 255.0), 2, 0)
    black = np.minimum(np.minimum(red, green), blue) > 0.9
    ink = red - green > 0.15
    colour = np.where(black | ink, 0, green - np.minimum(red, blue))
    stained: BoolArray = (ndimage.gaussian_filter(colour, 1) > STAIN_OD) & ~black & ~ink
    return stained


def _without_small(mask: BoolArray, n_pixels: float) -> BoolArray:
    """The mask less its connected parts of fewer than `n_pixels` pixels."""
    labels, n_parts = ndimage.label(mask)
    sizes = np.zeros(n_parts + 1, np.int64)
    for start in range(0, len(labels), _ROWS):  # of all rows at once `bincount` makes a copy, twice as large
        sizes += np.bincount(labels[start : start + _ROWS].ravel(), minlength=n_parts + 1)
    kept = sizes >= n_pixels
    kept[0] = False
    large: BoolArray = kept[labels]
    return large
