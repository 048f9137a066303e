"""A slide at any µm/px: exact areas, and the same pixel whichever box it is read through."""

import math
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mitosis.errors import SlideError
from mitosis.geometry import Box, grid_dimensions

if TYPE_CHECKING:
    from mitosis.slides import Slide

__all__ = ["read_at_mpp", "thumbnail"]

MAX_UPSAMPLING = 2.5
LEVEL_TOLERANCE = 0.01  # a level this much coarser than asked still serves
BLOCK = 4096  # px of a level held at a time, each way
BAND = 64  # grid rows resampled at a time, so that the work stays in the processor's cache
POWERS_OF_TWO = (2, 4, 8, 16, 32, 64, 128)  # Pillow's fast box average is exact for these


def read_at_mpp(slide: "Slide", box: Box, mpp: float) -> NDArray[np.uint8]:
    """Read a box of the grid at `mpp` (see `mitosis.geometry`).

    The best level is averaged over the exact area of every grid pixel, or interpolated linearly where it is coarser
    than asked. Weights follow from a pixel's place on the grid alone, and sums run in a fixed order, so a grid pixel
    has the same value whichever box it is read through. Memory stays small whatever the box: blocks are read in turn.

    Parameters
    ----------
    slide : Slide
        Open slide.
    box : Box
        px of the grid at `mpp`; may reach over the slide's edges, where it is white.
    mpp : float
        µm/px asked for.

    Returns
    -------
    uint8 [height, width, 3]
        RGB.

    Raises
    ------
    SlideError
        The slide is more than 2.5 times coarser than asked.
    """
    level, step = _best_level(slide, mpp)
    width, height = box.size
    result = np.empty((height, width, 3), np.uint8)
    block = max(1, int(BLOCK / step))
    for y in range(0, height, block):
        for x in range(0, width, block):
            part = result[y : y + block, x : x + block]
            part[...] = _read_block(slide, level, step, (box.x0 + x, box.y0 + y), (part.shape[1], part.shape[0]))
    return result


def thumbnail(slide: "Slide", mpp: float) -> NDArray[np.uint8]:
    """Read the whole slide on the grid at `mpp`, uint8 [H, W, 3]; no level is ever held whole."""
    return read_at_mpp(slide, Box(0, 0, *grid_dimensions(slide.dimensions, slide.mpp, mpp)), mpp)


def _best_level(slide: "Slide", mpp: float) -> tuple[int, float]:
    """Coarsest level that is as fine as `mpp`, and how many of its pixels a grid pixel spans."""
    ratio = mpp / slide.mpp
    if not ratio * MAX_UPSAMPLING >= 1 - 1e-9:
        raise SlideError(
            f"{slide.path}: has {slide.mpp:.4g} µm/px, too coarse for the {mpp:.4g} µm/px asked "
            f"(at most {MAX_UPSAMPLING:g} times finer). Take a finer scan or ask for more µm/px."
        )
    fine = [i for i, d in enumerate(slide.level_downsamples) if d <= ratio * (1 + LEVEL_TOLERANCE)]
    level = max(fine, key=slide.level_downsamples.__getitem__, default=0)
    step = ratio / slide.level_downsamples[level]
    whole = round(step)
    return level, whole if abs(step - whole) < 1e-9 * step else step


def _read_block(
    slide: "Slide", level: int, step: float, corner: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.uint8]:
    x, y = (_Taps.at(start, n, step) for start, n in zip(corner, size, strict=True))
    downsample = slide.level_downsamples[level]
    location = (round(x.start * downsample), round(y.start * downsample))
    pixels = slide.read_region(location, level, (x.length, y.length))
    if step == 1:
        return pixels
    bands = [_weigh(pixels, x, y.part(top), step) for top in range(0, size[1], BAND)]
    return np.concatenate(bands)


class _Taps(NamedTuple):
    """Which level pixels make each grid pixel, along one axis: ``start + first[j] + i`` with the weight ``[j, i]``."""

    start: int
    first: NDArray[np.intp]
    weights: NDArray[np.float32]

    @classmethod
    def at(cls, start: int, n: int, step: float) -> Self:
        left = np.arange(start, start + n) * step
        if step < 1:  # grid pixels lie between the centres of two level pixels
            left = left + (step - 1) / 2
            first = np.floor(left)
            weights = np.stack([1 - (left - first), left - first], axis=1)
        else:
            first = np.floor(left)
            pixel = first[:, None] + np.arange(math.ceil(step) + (step != int(step)))
            overlap = np.minimum(left[:, None] + step, pixel + 1) - np.maximum(left[:, None], pixel)
            weights = overlap.clip(min=0) / step
        return cls(int(first[0]), (first - first[0]).astype(np.intp), weights.astype(np.float32))

    @property
    def length(self) -> int:
        return int(self.first[-1]) + int(self.weights.shape[1])

    def part(self, begin: int) -> Self:
        return self._replace(first=self.first[begin : begin + BAND], weights=self.weights[begin : begin + BAND])


def _weigh(pixels: NDArray[np.uint8], x: _Taps, y: _Taps, step: float) -> NDArray[np.uint8]:
    if step in POWERS_OF_TWO:
        rows = pixels[int(y.first[0]) : y.length]
        return np.asarray(Image.fromarray(rows).reduce(int(step)))
    # tap after tap, not as a matrix product: BLAS sums in another order for another shape, and then a pixel would
    # depend on the box it is read through
    down = pixels[y.first] * y.weights[:, 0, None, None]
    for i in range(1, y.weights.shape[1]):
        down += pixels[y.first + i] * y.weights[:, i, None, None]
    across = np.take(down, x.first, axis=1) * x.weights[:, 0, None]
    for i in range(1, x.weights.shape[1]):
        across += np.take(down, x.first + i, axis=1) * x.weights[:, i, None]
    return np.rint(across).astype(np.uint8)
