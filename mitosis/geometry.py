"""Places and sizes: level-0 pixels, the pixel grid at a given µm/px, tiles that partition it.

Coordinates are ``(x, y)``: x to the right, y down, the origin at the top-left corner of the top-left pixel, so the
centre of pixel (row i, column j) is ``(j + 0.5, i + 0.5)``. The *grid at mpp* is the slide resampled to `mpp`: its
pixel (i, j) covers ``[j * r, (j + 1) * r) x [i * r, (i + 1) * r)`` in level-0 pixels, with ``r = mpp / slide mpp``. It
starts at the slide's corner, so that a pixel's value does not depend on the tile through which it was read.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Box", "Tile", "area_mm2", "grid_dimensions", "tile_grid"]


class Box(NamedTuple):
    """A half-open rectangle ``[x0, x1) x [y0, y1)``; the unit is said where one is used."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.x1 - self.x0, self.y1 - self.y0

    def grown(self, margin: int) -> "Box":
        """The box with `margin` more on every side."""
        return Box(self.x0 - margin, self.y0 - margin, self.x1 + margin, self.y1 + margin)


@dataclass(frozen=True, slots=True)
class Tile:
    """A place on the grid that covers a slide.

    Attributes
    ----------
    window : Box
        What is read, px of the grid at `mpp`; may reach over the slide's edge.
    core : Box
        What the tile owns, px of the grid at `mpp`; the cores of a grid partition the slide.
    mpp : float
        µm/px of the grid.
    """

    window: Box
    core: Box
    mpp: float


def grid_dimensions(dimensions: tuple[int, int], slide_mpp: float, mpp: float) -> tuple[int, int]:
    """Width and height in px of the grid at `mpp` that covers `dimensions` (level-0 px) completely."""
    ratio = mpp / slide_mpp
    return math.ceil(dimensions[0] / ratio - 1e-9), math.ceil(dimensions[1] / ratio - 1e-9)


def tile_grid(dimensions: tuple[int, int], mpp: float, size: int, margin: int = 0) -> Iterator[Tile]:
    """Cut a grid of `dimensions` (width, height in px at `mpp`) into tiles, row by row.

    Parameters
    ----------
    size : int
        Side of a tile's window, px. Every window has this size.
    margin : int
        How much of the window on each side only serves as context. Cores have the side ``size - 2 * margin``; at the
        right and bottom edge they are clipped to `dimensions`.

    Raises
    ------
    ValueError
        `size` leaves no core.
    """
    step = size - 2 * margin
    if step <= 0:
        raise ValueError(f"tile size {size} px leaves nothing inside a margin of {margin} px on each side")
    width, height = dimensions
    for y in range(0, height, step):
        for x in range(0, width, step):
            window = Box(x - margin, y - margin, x - margin + size, y - margin + size)
            yield Tile(window, Box(x, y, min(x + step, width), min(y + step, height)), mpp)


def area_mm2(n_pixels: float, mpp: float) -> float:
    """Area of `n_pixels` pixels of side `mpp` µm, in mm²."""
    return n_pixels * (mpp / 1000.0) ** 2
