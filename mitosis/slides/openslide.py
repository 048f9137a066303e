"""What OpenSlide reads and TIFF does not: MRXS, Hamamatsu VMS, Philips, Ventana, Leica SCN, Sakura, Zeiss, DICOM."""

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from mitosis.errors import SlideError
from mitosis.geometry import Box
from mitosis.slides import BadTile, Slide, paste, usable_mpp
from mitosis.slides.decode import on_white
from mitosis.slides.tiff_index import downsample

__all__ = ["OpenSlideSlide", "open_with_openslide"]

CELL = 512  # px; side of the pieces read alone where the tile size is unknown
PROPERTIES = {
    "vendor": "openslide.vendor",
    "objective power": "openslide.objective-power",
    "scanner": "openslide.scanner-model",
}


def open_with_openslide(path: Path, mpp: float | None = None) -> Slide | None:
    """Open `path` if OpenSlide knows its kind; see `mitosis.slides.open_slide`."""
    return OpenSlideSlide(path, mpp) if openslide.OpenSlide.detect_format(path) else None


class OpenSlideSlide(Slide):
    """A slide read by OpenSlide.

    Notes
    -----
    Where a file states the bounds of the scanned area (MRXS does), coordinates start at the bounds' top-left corner
    and `dimensions` are the bounds' size: add ``openslide.bounds-x`` and ``-y`` to come to OpenSlide's own coordinates.
    What lies outside the bounds, and transparent pixels, are white. An ICC profile is not applied.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self.path, self._given_mpp = Path(path), mpp
        self._bad: dict[tuple[int, Box], BadTile] = {}
        self._lock = threading.Lock()
        try:
            self._handle: openslide.OpenSlide | None = openslide.OpenSlide(self.path)
        except openslide.OpenSlideError as error:
            raise SlideError(f"{self.path}: damaged slide ({error}). Copy it again from its source.") from error
        try:
            self._describe(self._handle)
        except BaseException:
            self.close()
            raise

    def _describe(self, handle: openslide.OpenSlide) -> None:
        said = dict(handle.properties)
        x, y, width, height = _bounds(said) or (0, 0, *handle.dimensions)
        self._corner, self.dimensions = (x, y), (width, height)
        self._factors = handle.level_downsamples
        self.level_downsamples = tuple(downsample(handle.dimensions, size) for size in handle.level_dimensions)
        self.level_dimensions = tuple(
            size if self.dimensions == handle.dimensions else (math.ceil(width / factor), math.ceil(height / factor))
            for size, factor in zip(handle.level_dimensions, self.level_downsamples, strict=True)
        )
        self._cells = [_cell_size(said, level) for level in range(handle.level_count)]
        shown = {name: said[key] for name, key in PROPERTIES.items() if said.get(key)}
        self.properties = {"format": f"{shown.get('vendor', '')} (OpenSlide)".strip(), **shown}
        self.mpp = usable_mpp(self.path, _measured_mpp(said), self._given_mpp)

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        with self._lock:
            return tuple(self._bad.values())

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        region = self.level_box(location, level, size)
        inside = _common(region, Box(0, 0, *self.level_dimensions[level]))
        pixels = np.full((size[1], size[0], 3), 255, np.uint8)
        # OpenSlide interpolates between pixels where the location is no multiple of its factor; fixed cells keep a
        # pixel the same whichever region it is read through
        if min(inside.size) > 0 and self._factors[level] == int(self._factors[level]):
            try:
                paste(pixels, region, self._read(level, inside), inside)
            except openslide.OpenSlideError:
                self._read_cells(level, inside, region, pixels)
        elif min(inside.size) > 0:
            self._read_cells(level, inside, region, pixels)
        return pixels

    def _read_cells(self, level: int, inside: Box, region: Box, pixels: NDArray[np.uint8]) -> None:
        """Read every cell of a fixed grid that `inside` touches by itself, so that damage stays in its cell."""
        width, height = self._cells[level]
        for y in range(inside.y0 // height * height, inside.y1, height):
            for x in range(inside.x0 // width * width, inside.x1, width):
                cell = _common(Box(x, y, x + width, y + height), Box(0, 0, *self.level_dimensions[level]))
                if (level, cell) in self._bad:
                    continue
                try:
                    paste(pixels, region, self._read(level, cell), cell)
                except openslide.OpenSlideError as error:
                    with self._lock:
                        self._bad.setdefault((level, cell), BadTile(level, self.full_box(level, cell), str(error)))

    def _read(self, level: int, box: Box) -> NDArray[np.uint8]:
        if self._handle is None:
            raise SlideError(f"{self.path}: this slide was closed. Open it again.")
        factor = self._factors[level]
        location = (self._corner[0] + round(box.x0 * factor), self._corner[1] + round(box.y0 * factor))
        try:
            image = self._handle.read_region(location, level, box.size)
        except openslide.OpenSlideError:
            # after any error, also another thread's, a handle fails for ever; a fresh one tells whether this place is
            # damaged. The old one closes itself when the last thread lets go of it.
            fresh = openslide.OpenSlide(self.path)
            image = fresh.read_region(location, level, box.size)
            self._handle = fresh
        rgba = np.asarray(image)
        return on_white(rgba[..., :3], rgba[..., 3:])

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenSlideSlide, (self.path, self._given_mpp)


def _common(one: Box, other: Box) -> Box:
    return Box(max(one.x0, other.x0), max(one.y0, other.y0), min(one.x1, other.x1), min(one.y1, other.y1))


def _bounds(said: dict[str, str]) -> tuple[int, int, int, int] | None:
    x, y, width, height = (int(said.get(f"openslide.bounds-{name}", -1)) for name in ("x", "y", "width", "height"))
    return (x, y, width, height) if width > 0 and height > 0 else None


def _cell_size(said: dict[str, str], level: int) -> tuple[int, int]:
    width, height = (int(said.get(f"openslide.level[{level}].tile-{name}", CELL)) for name in ("width", "height"))
    return (width, height) if min(width, height) >= 64 and max(width, height) <= 2 * CELL else (CELL, CELL)


def _measured_mpp(said: dict[str, str]) -> tuple[float, float] | None:
    try:
        return float(said["openslide.mpp-x"]), float(said["openslide.mpp-y"])
    except (KeyError, ValueError):
        return None
