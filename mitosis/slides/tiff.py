"""TIFF slides: SVS, generic pyramids, OME-TIFF, NDPI as far as tifffile indexes it, striped files.

tifffile only reads the index. Tiles are read by position, so threads share one open file without a lock, and nothing
is held beside what is asked for but a tile a thread, those that small regions were cut from last (16 MB), and those
read last at a half, a quarter or an eighth (32 MB each).
"""

import logging
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from mitosis.errors import SlideError
from mitosis.geometry import Box
from mitosis.slides import BadTile, Slide, UnsupportedSlideError, paste, usable_mpp
from mitosis.slides.decode import Decoder, has_plain_rows, is_photograph, refusal, tile_decoder
from mitosis.slides.resample import shrink
from mitosis.slides.tiff_index import check_directories, downsample, measured_mpp, properties, pyramid_pages

__all__ = ["TiffSlide", "open_tiff"]

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PIXELS, MAX_TILE_SIDE, MAX_STRIP_BYTES = 4e10, 8192, 1 << 28
RECENT_BYTES = 1 << 24  # 85 tiles of 256 px: squares round neighbouring candidates share most of theirs
RECENT_REDUCED_BYTES = 1 << 25  # 682 of them at a half: regions side by side share those at their edges
PIECE_BYTES = 1 << 18  # an image stored as one uncompressed strip is read in pieces of about this size


def open_tiff(path: Path, mpp: float | None = None) -> Slide | None:
    """Open `path` if it begins like a TIFF file; see `mitosis.slides.open_slide`."""
    with path.open("rb") as stream:
        if stream.read(4) not in MAGIC:
            return None
    return TiffSlide(path, mpp)


@dataclass(frozen=True, slots=True)
class _Level:
    """One level of the pyramid; a strip is a wide tile."""

    dimensions: tuple[int, int]
    tile_size: tuple[int, int]
    sparse: NDArray[np.bool_]  # tiles that were never scanned
    decoder: Decoder

    @property
    def across(self) -> int:
        return -(-self.dimensions[0] // self.tile_size[0])

    def box(self, index: int, factor: int = 1) -> Box:
        """Where a tile lies, px of this level or `factor` times larger ones; clipped at the level's edge."""
        row, column = divmod(index, self.across)
        x, y = column * self.tile_size[0], row * self.tile_size[1]
        right, bottom = min(x + self.tile_size[0], self.dimensions[0]), min(y + self.tile_size[1], self.dimensions[1])
        return Box(x // factor, y // factor, -(-right // factor), -(-bottom // factor))

    def pixels(self, index: int, factor: int = 1) -> NDArray[np.uint8]:
        """RGB of a tile, at least as much as is visible of it; raises some error where the data is damaged."""
        width, height = self.box(index).size
        if factor > 1:
            # what fills up a tile beyond the slide's edge is the writer's affair, and mixed into the last blocks
            if (width, height) == self.tile_size and (small := self.decoder.reduced(index, factor)) is not None:
                return small
            tile = np.pad(self.pixels(index)[:height, :width], _up_to(height, width, factor), constant_values=255)
            return shrink(tile, factor)
        tile = self.decoder.full(index)
        if tile.ndim != 3 or tile.shape[2] != 3 or tile.shape[0] < height or tile.shape[1] < width:
            raise ValueError(f"its data has the shape {tile.shape}, where {height} x {width} pixels are visible")
        return tile

    def touched(self, region: Box) -> Iterator[int]:
        """Tiles that a region of this level touches."""
        (width, height), (tile_width, tile_height) = self.dimensions, self.tile_size
        first, last = max(region.x0, 0) // tile_width, (min(region.x1, width) - 1) // tile_width
        for row in range(max(region.y0, 0) // tile_height, (min(region.y1, height) - 1) // tile_height + 1):
            yield from range(row * self.across + first, row * self.across + last + 1)


class TiffSlide(Slide):
    """A TIFF file as a slide.

    Notes
    -----
    Colours are what the samples say; an ICC profile is not applied. 16-bit samples are scaled to 8 bits, grey is
    repeated, transparency laid on white. Label, macro and thumbnail images are no levels.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self.path, self._given_mpp = Path(path), mpp
        self._bad: dict[tuple[int, int], BadTile] = {}
        self._lock = threading.Lock()
        self._file = self.path.open("rb", buffering=0)
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise
        tile_bytes = 3 * math.prod(self._levels[0].tile_size)
        self._recent = {1: lru_cache(RECENT_BYTES // tile_bytes)(self._decode)}
        for factor in {factor for level in self._levels for factor in level.decoder.reductions}:
            self._recent[factor] = lru_cache(RECENT_REDUCED_BYTES * factor**2 // tile_bytes)(self._decode)

    def _open(self) -> None:
        n_pages = check_directories(self.path, self._file.fileno())
        try:
            with _quiet_tifffile(), tifffile.TiffFile(self.path) as file:
                pages = pyramid_pages(self.path, file, n_pages)
                self._levels = [self._level(page) for page in pages]
                self._check_codec(self._levels[0])
                self.properties = properties(pages, file)
                measured = measured_mpp(pages[0], file.ome_metadata or "")
        except SlideError:
            raise
        except Exception as error:  # a damaged index ends in whatever error the parser runs into
            raise self._damaged(f"its index makes no sense ({error!r:.100})") from error
        self.level_dimensions = tuple(level.dimensions for level in self._levels)
        self.dimensions = self.level_dimensions[0]
        self.level_downsamples = tuple(downsample(self.dimensions, size) for size in self.level_dimensions)
        self.mpp = usable_mpp(self.path, measured, self._given_mpp)

    def _damaged(self, reason: str) -> SlideError:
        return SlideError(f"{self.path}: damaged TIFF file, {reason}. Copy it again from its source.")

    def _level(self, page: Any) -> _Level:
        if not is_photograph(page):
            what = f"{page.bitspersample} bits, sample format {int(page.sampleformat)}"
            raise SlideError(f"{self.path}: pixels are measurements ({what}), not colours. Export an 8-bit RGB TIFF.")
        if reason := refusal(page):
            raise UnsupportedSlideError(f"{self.path}: {reason}. Export it as an 8-bit RGB TIFF with JPEG tiles.")
        dimensions = (page.imagewidth, page.imagelength)
        if not 0 < math.prod(dimensions) <= MAX_PIXELS:
            raise self._damaged(f"it claims {dimensions[0]} x {dimensions[1]} px")
        tile_size, offsets, counts = self._segments(page)
        n_tiles = math.prod(-(-whole // part) for whole, part in zip(dimensions, tile_size, strict=True))
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        if not len(offsets) == len(counts) == n_tiles * planes:
            raise self._damaged(
                f"{len(offsets)} tiles where {dimensions[0]} x {dimensions[1]} px need {n_tiles * planes}"
            )
        size = os.fstat(self._file.fileno()).st_size
        if (offsets < 0).any() or (counts < 0).any() or (offsets > size - counts).any():
            raise self._damaged(f"it ends after {size} bytes, before the last of its tiles")
        sparse = ((offsets == 0) | (counts == 0)).reshape(planes, -1).any(axis=0)
        read = partial(self._bytes, offsets, counts)
        return _Level(dimensions, tile_size, sparse, tile_decoder(page, read, _probes(sparse)))

    def _segments(self, page: Any) -> tuple[tuple[int, int], NDArray[np.int64], NDArray[np.int64]]:
        """Size of a page's tiles, their offsets and byte counts in the file."""
        offsets, counts = np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64)
        if page.is_tiled:
            if not (0 < page.tilewidth <= MAX_TILE_SIDE and 0 < page.tilelength <= MAX_TILE_SIDE):
                raise self._damaged(f"it claims tiles of {page.tilewidth} x {page.tilelength} px")
            return (page.tilewidth, page.tilelength), offsets, counts
        width, height, rows = page.imagewidth, page.imagelength, page.rowsperstrip
        row_bytes = width * page.samplesperpixel * page.dtype.itemsize
        if has_plain_rows(page) and len(offsets) == 1 and counts[0] == height * row_bytes:
            rows = max(1, PIECE_BYTES // row_bytes)
            starts = np.arange(0, height, rows)
            offsets, counts = offsets + starts * row_bytes, np.minimum(rows, height - starts) * row_bytes
        if rows * row_bytes > MAX_STRIP_BYTES:
            raise UnsupportedSlideError(
                f"{self.path}: strips of {rows * row_bytes / 1e6:.0f} MB. Export it with tiles."
            )
        return (width, rows), offsets, counts

    def _check_codec(self, level: _Level) -> None:
        """Refuse a slide of which nothing can be decoded; single bad tiles come to light when they are read."""
        reasons = []
        for index in _probes(level.sparse):
            try:
                level.pixels(index)
                return
            except SlideError:
                raise
            except Exception as error:  # every codec has errors of its own
                reasons.append(str(error) or repr(error))
        if reasons:
            raise UnsupportedSlideError(
                f"{self.path}: tiles that cannot be decoded ({reasons[0]:.100}). Copy it again."
            )

    def _bytes(self, offsets: NDArray[np.int64], counts: NDArray[np.int64], index: int) -> bytes:
        count = int(counts[index])
        try:
            data = os.pread(self._file.fileno(), count, int(offsets[index]))
        except OSError as error:
            raise SlideError(f"{self.path}: reading failed ({error.strerror}). Check the disk or network.") from error
        if len(data) < count:
            raise ValueError("the file ends inside it")
        return data

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        with self._lock:
            return tuple(self._bad.values())

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        return self._read(self.level_box(location, level, size), level)

    def reductions(self, level: int) -> tuple[int, ...]:
        return self._levels[level].decoder.reductions

    def read_reduced(self, region: Box, level: int, factor: int) -> NDArray[np.uint8]:
        if factor not in self.reductions(level):
            raise ValueError(f"factor {factor} where level {level} has {self.reductions(level)}")
        return self._read(region, level, factor)

    def _read(self, region: Box, level: int, factor: int = 1) -> NDArray[np.uint8]:
        if self._file.closed:
            raise SlideError(f"{self.path}: this slide was closed. Open it again.")
        plane, shape = self._levels[level], (*region.size[::-1], 3)
        pixels: NDArray[np.uint8] | None = None
        # In full, regions smaller than a tile share those of their neighbours; to keep those of others is 20 % slower.
        sides = zip(region.size, plane.tile_size, self._levels[0].tile_size, strict=True)
        keep = all(own == first and (factor > 1 or side < own) for side, own, first in sides)
        for index in plane.touched(Box(*(edge * factor for edge in region))):
            tile, box = self._tile(level, index, factor, keep), plane.box(index, factor)
            if tile is None:
                continue
            if box == region and tile.shape == shape:
                return tile if tile.flags.writeable else tile.copy()
            if pixels is None:
                pixels = np.full(shape, 255, np.uint8)
            paste(pixels, region, tile, box)
        return np.full(shape, 255, np.uint8) if pixels is None else pixels

    def _tile(self, level: int, index: int, factor: int, keep: bool) -> NDArray[np.uint8] | None:
        """Pixels of a tile, as large or reduced, or None where it was never scanned or is damaged."""
        plane = self._levels[level]
        if plane.sparse[index] or (level, index) in self._bad:
            return None
        try:
            return self._recent[factor](level, index, factor) if keep else plane.pixels(index, factor)
        except SlideError:
            raise
        except Exception as error:  # every codec has errors of its own
            bad = BadTile(level, self.full_box(level, plane.box(index)), str(error) or repr(error))
            with self._lock:
                self._bad.setdefault((level, index), bad)
            return None

    def _decode(self, level: int, index: int, factor: int) -> NDArray[np.uint8]:
        tile = self._levels[level].pixels(index, factor)
        tile.flags.writeable = False  # it is kept, and others get it too
        return tile

    def close(self) -> None:
        for recent in self._recent.values():
            recent.cache_clear()
        self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return TiffSlide, (self.path, self._given_mpp)


def _up_to(height: int, width: int, factor: int) -> tuple[tuple[int, int], ...]:
    """How much to add to pixels [height, width, 3] so that `factor` divides their sides."""
    return (0, -height % factor), (0, -width % factor), (0, 0)


def _probes(sparse: NDArray[np.bool_]) -> list[int]:
    """A first, a middle and a last tile that hold data."""
    filled = np.flatnonzero(~sparse)
    return [int(filled[i]) for i in (0, len(filled) // 2, -1)] if len(filled) else []


@contextmanager
def _quiet_tifffile() -> Iterator[None]:
    """Keep tifffile's log lines of this thread back: what matters in them is checked here and raised."""
    here = threading.get_ident()
    logger = logging.getLogger("tifffile")

    def is_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here

    logger.addFilter(is_elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(is_elsewhere)
