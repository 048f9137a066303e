"""A slide at any µm/px: exact areas, and the same pixel whichever box it is read through."""

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mitosis.errors import SlideError
from mitosis.geometry import Box, grid_dimensions

if TYPE_CHECKING:
    from mitosis.slides import Slide

__all__ = ["read_at_mpp", "shrink", "thumbnail"]

MAX_UPSAMPLING = 2.5
LEVEL_TOLERANCE = 0.01  # a level this much coarser than asked still serves
BLOCK = 4096  # px of a level held at a time, each way
PIECE = (1024, 64)  # px of a level weighed at a time, across and down, so that the work stays in the cache
POWERS_OF_TWO = (1, 2, 4, 8, 16, 32, 64, 128)  # Pillow's fast box average is exact for these


def read_at_mpp(slide: "Slide", box: Box, mpp: float) -> NDArray[np.uint8]:
    """Read a box of the grid at `mpp` (see `mitosis.geometry`).

    The best level is averaged over the exact area of every grid pixel, or interpolated linearly where it is coarser
    than asked. Where the reader can give that level at a half, a quarter or an eighth for less, it is read so and
    averaged the rest of the way (Notes). Weights follow from a pixel's place on the grid alone, and sums run in a fixed
    order, so a grid pixel has the same value whichever box it is read through. Memory stays small whatever the box:
    blocks are read in turn.

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

    Notes
    -----
    A reduced pixel is made of the lower frequencies of its JPEG block and is a little sharper than a mean. Difference
    to what decoding in full gives, in levels, mean and largest: at a half 0.4 and 13 on a phantom, 0.1 and 19 on
    Aperio's CMU-1 (RGB components), 0.7 and 22 on other H&E at 4:2:0, 0.9 and 21 at 4:2:2, 0.4 and 10 at 4:4:4; at a
    quarter and an eighth less. Where a grid pixel spans no whole number of reduced ones (0.2456 µm/px at 0.5: 1.018),
    it takes in parts of them that nobody has seen: 0.8 and 13, 1.5 and 80, 1.7 and 34, 1.7 and 34, 1.5 and 34. There
    they are drawn as a smooth curve with the same means (`_share_below`); as even squares they would blur, more and
    less in turn, and the means would be 1.2 to 2.4.
    """
    level, step = _best_level(slide, mpp)
    factor = max((n for n in slide.reductions(level) if n <= step * (1 + LEVEL_TOLERANCE)), default=1)
    source, step = _Source(slide, level, factor), step / factor
    width, height = box.size
    block = max(1, int(BLOCK / step))
    if width and height and max(width, height) <= block:
        pixels = _read_block(source, step, (box.x0, box.y0), (width, height))
        return pixels if pixels.flags.writeable else pixels.copy()
    result = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, block):
        for x in range(0, width, block):
            part = result[y : y + block, x : x + block]
            part[...] = _read_block(source, step, (box.x0 + x, box.y0 + y), (part.shape[1], part.shape[0]))
    return result


def thumbnail(slide: "Slide", mpp: float) -> NDArray[np.uint8]:
    """Read the whole slide on the grid at `mpp`, uint8 [H, W, 3]; no level is ever held whole."""
    return read_at_mpp(slide, Box(0, 0, *grid_dimensions(slide.dimensions, slide.mpp, mpp)), mpp)


def shrink(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means of ``factor x factor`` pixels, rounded; `factor` is a power of two that divides both sides."""
    return np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels


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


class _Source(NamedTuple):
    """A level of a slide, in full (`factor` 1) or reduced by its reader."""

    slide: "Slide"
    level: int
    factor: int

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Pixels from (x, y) on, in px of the source."""
        if self.factor > 1:
            return self.slide.read_reduced(Box(x, y, x + width, y + height), self.level, self.factor)
        downsample = self.slide.level_downsamples[self.level]
        return self.slide.read_region((round(x * downsample), round(y * downsample)), self.level, (width, height))


def _read_block(source: _Source, step: float, corner: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
    if step in POWERS_OF_TWO:
        n = int(step)
        return shrink(source.read(*(n * value for value in (*corner, *size))), n)
    smooth = source.factor > 1
    x, y = (_Taps.at(start, n, step, smooth) for start, n in zip(corner, size, strict=True))
    pixels = source.read(x.start, y.start, x.length, y.length)
    result = np.empty((size[1], size[0], 3), np.uint8)
    for across, down in itertools.product(x.parts(int(PIECE[0] / step)), y.parts(int(PIECE[1] / step))):
        piece = pixels[down.source, across.source]
        result[down.place, across.place] = _weigh(piece, across.weights, down.weights)
    return result


class _Taps(NamedTuple):
    """Which source pixels make each grid pixel, along one axis: ``start + first[j] + i`` with the weight ``[j, i]``."""

    start: int
    first: NDArray[np.intp]
    weights: NDArray[np.float32]

    @classmethod
    def at(cls, start: int, n: int, step: float, smooth: bool = False) -> Self:
        left = np.arange(start, start + n) * step
        if smooth and step != int(step):
            first = np.floor(left) - 1
            pixel = first[:, None] + np.arange(math.ceil(step) + 3)
            weights = (_share_below(left[:, None] + step - pixel) - _share_below(left[:, None] - pixel)) / step
        elif step < 1:  # grid pixels lie between the centres of two source pixels
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

    def parts(self, n: int) -> Iterator["_Part"]:
        """Runs of `n` grid pixels (at least one), the last one shorter."""
        n = max(1, n)
        for begin in range(0, len(self.first), n):
            first = self.first[begin : begin + n]
            start = int(first[0])
            taps = _Taps(start, first - start, self.weights[begin : begin + n])
            yield _Part(slice(begin, begin + n), slice(start, start + taps.length), taps._matrix())

    def _matrix(self) -> Any:
        """Weights as compressed rows, [n, length].

        These are multiplied tap after tap, each number by itself. BLAS sums in another order for another shape, and
        then a pixel would depend on the box it is read through.
        """
        from scipy.sparse import csr_array  # slow to import

        used = self.weights != 0
        column = (self.first[:, None] + np.arange(self.weights.shape[1])).astype(np.int32)
        ends = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int32)
        return csr_array((self.weights[used], column[used], ends), shape=(len(self.first), self.length))


class _Part(NamedTuple):
    """Some of the grid pixels of a block along one axis: where they lie in it, their source pixels, and the weights."""

    place: slice
    source: slice
    weights: Any


def _share_below(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the pixel ``[0, 1)`` in the sum of a row of pixels up to `u`, where the row is drawn as a smooth curve.

    Sums up to the borders of pixels are known exactly; between them runs the cubic spline of Catmull and Rom (1974).
    """
    t = u - np.floor(u)
    rise, fall = t * (t - 1) ** 2 / 2, t**2 * (t - 1) / 2
    inside = t**2 * (3 - 2 * t) + rise + fall
    return np.select([u < -1, u < 0, u < 1, u < 2], [np.zeros_like(u), fall, inside, 1 + rise], 1.0)


def _weigh(pixels: NDArray[np.uint8], x: Any, y: Any) -> NDArray[np.uint8]:
    """Weighted sums of uint8 [height, width, 3] along both axes, with sparse [n, width] and [m, height]: [m, n, 3]."""
    height, width = pixels.shape[:2]
    down = (y @ pixels.reshape(height, -1).astype(np.float32)).reshape(-1, width, 3)
    # channel after channel: numpy turns a plane several times faster than a picture
    turned = np.empty((width, 3, len(down)), np.float32)
    for channel in range(3):
        turned[:, channel] = down[..., channel].T
    across = x @ turned.reshape(width, -1)
    np.clip(np.rint(across, out=across), 0, 255, out=across)
    levels = across.astype(np.uint8).reshape(-1, 3, len(down))
    result = np.empty((len(down), len(levels), 3), np.uint8)
    for channel in range(3):
        result[..., channel] = levels[:, channel].T
    return result
