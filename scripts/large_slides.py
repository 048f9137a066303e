"""Slides as large as whole ones, of drawn tissue, in seconds: one field of tissue is laid side by side as JPEG tiles.

`mitosis.synthetic.write_phantom` draws every piece anew, which takes a CPU second a megapixel. Here only `FIELD_PX`
squared are drawn, and tiles of level 0 are encoded once and copied, so what is on the slide repeats; neither the work
of reading it nor that of a network hangs on that.
"""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from mitosis.errors import ConfigError
from mitosis.files import atomic_write, make_folder
from mitosis.geometry import area_mm2
from mitosis.synthetic import draw_tissue

__all__ = ["FIELD_PX", "MPP", "TILE", "TISSUE_SHARE", "write_large_slide"]

FIELD_PX = 2048
"""Side of the field that is drawn, px."""
TILE, MPP = 256, 0.25
TISSUE_SHARE = 0.35
"""Share of the slide that is tissue."""
_STEP, _SMALLEST = 4, 1024
_GLASS = (243, 241, 243)
_FIGURES_PER_MM2 = 30
_MOST_ACROSS = 5  # pictures
_CLASSIC_LIMIT = 4e9  # bytes that a TIFF file can hold without 64-bit offsets

Pixels = NDArray[np.uint8]


def write_large_slide(folder: Path, side: int, seed: int = 0, tissue: Path | None = None) -> Path:
    """Write ``folder/SIDE.tif`` unless it is there: a square pyramid at 0.25 µm/px of 256 px JPEG tiles (q80, 4:2:0).

    `TISSUE_SHARE` of it is tissue in islands that grow with the slide, whose borders are those of tiles. No more of it
    is in memory than the field that is repeated and a tile.

    Parameters
    ----------
    tissue : Path or None
        A folder of pictures of tissue, about 0.25 µm/px, that are the field instead of a drawn one; the slide is then
        ``folder/SIDE-NAME.tif``.

    Raises
    ------
    OutputError
        The file cannot be written.
    ConfigError
        There are no pictures, or one is smaller than a tile.
    """
    path = make_folder(folder) / (f"{side}-{tissue.resolve().name}.tif" if tissue else f"{side}.tif")
    if path.exists():
        return path
    field = _join_pictures(tissue) if tissue else _draw_field(seed)
    islands, factor = _islands(-(-side // TILE), seed), 1
    with atomic_write(path) as stream:
        handle = tifffile.FileHandle(stream, "wb", name=path.name)
        with tifffile.TiffWriter(handle, bigtiff=0.4 * side**2 > _CLASSIC_LIMIT) as tiff:
            while True:
                _write_level(tiff, _Level(side, field, islands, factor))
                if side / factor <= _SMALLEST:
                    return path
                field, factor = _shrink(field), factor * _STEP


class _Level(NamedTuple):
    """A level of the pyramid: the field at `factor` px of level 0 a px, and which tiles of level 0 are tissue."""

    side: int
    field: Pixels
    islands: NDArray[np.bool_]
    factor: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and colours, px of the level."""
        n = -(-self.side // self.factor)
        return n, n, 3

    def streams(self) -> Iterator[bytes]:
        """Encoded tiles, row by row."""
        copied = cache(lambda row, column, tissue: _encode(self.pixels(row, column) if tissue else _glass()))
        n, period = -(-self.shape[0] // TILE), max(1, len(self.field) // TILE)
        for row, column in np.ndindex(n, n):
            if self.factor == 1:
                yield copied(row % period, column % period, bool(self.islands[row, column]))
            else:
                yield _encode(np.where(self._is_tissue(row, column)[..., None], self.pixels(row, column), _glass()))

    def pixels(self, row: int, column: int) -> Pixels:
        """A tile as if there were tissue all over, [256, 256, 3]."""
        rows, columns = ((place * TILE + np.arange(TILE)) % len(self.field) for place in (row, column))
        return self.field[rows[:, None], columns]

    def _is_tissue(self, row: int, column: int) -> NDArray[np.bool_]:
        last = len(self.islands) - 1
        rows, columns = (
            np.minimum((place * TILE + np.arange(TILE)) * self.factor // TILE, last) for place in (row, column)
        )
        return self.islands[rows[:, None], columns]


def _write_level(tiff: tifffile.TiffWriter, level: _Level) -> None:
    per_cm = 1e4 / (MPP * level.factor)
    tiff.write(
        level.streams(),
        shape=level.shape,
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="ycbcr",
        subsampling=(2, 2),
        compression="jpeg",
        subfiletype=int(level.factor > 1),
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


def _draw_field(seed: int) -> Pixels:
    n = round(_FIGURES_PER_MM2 * area_mm2(FIELD_PX**2, MPP))
    rng = np.random.default_rng(seed)
    return draw_tissue(rng, (FIELD_PX, FIELD_PX), MPP, n_mitotic=n, n_lookalike=n).image


def _join_pictures(folder: Path) -> Pixels:
    """A square of at most 25 pictures, evenly from the first to the last by name, cut to whole tiles of one size."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    n = min(math.isqrt(len(paths)), _MOST_ACROSS)
    if not n:
        raise ConfigError(f"{folder}: there are no JPEG or PNG pictures of tissue in it. Name another folder.")
    chosen = [paths[number] for number in np.linspace(0, len(paths) - 1, n * n).round().astype(int)]
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in chosen]
    side = min(min(picture.shape[:2]) for picture in pictures) // TILE * TILE
    if not side:
        raise ConfigError(f"{folder}: a picture is smaller than {TILE} px. Leave it out.")
    cut = [picture[:side, :side] for picture in pictures]
    return np.concatenate([np.concatenate(cut[row : row + n], axis=1) for row in range(0, n * n, n)])


def _islands(n: int, seed: int) -> NDArray[np.bool_]:
    """Which of [n, n] tiles are tissue: the highest of slow noise."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal((n, n)), n / 12, mode="constant")
    islands: NDArray[np.bool_] = noise >= np.quantile(noise, 1 - TISSUE_SHARE)
    return islands


def _encode(tile: Pixels) -> bytes:
    stream: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(tile), 80, "RGB", "420")
    return stream


def _glass() -> Pixels:
    return np.full((TILE, TILE, 3), _GLASS, np.uint8)


def _shrink(field: Pixels) -> Pixels:
    n = len(field) // _STEP
    means: Pixels = field.reshape(n, _STEP, n, _STEP, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    return means
