"""Whole slides that never existed: pyramidal TIFF files of any size, with every mitotic figure known."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from mitosis.annotations import Annotation, write_points
from mitosis.files import atomic_write
from mitosis.geometry import Box
from mitosis.synthetic.drawing import draw_region
from mitosis.synthetic.scene import Scene
from mitosis.synthetic.stain import Stain, random_stain
from mitosis.synthetic.texture import make_textures
from mitosis.synthetic.tissue import make_zones

__all__ = ["make_scene", "write_phantom", "write_truth"]

Pixels = NDArray[np.uint8]
_TILE = 256
_STEP = 4  # from level to level
_SMALLEST = 1024
_CLASSIC_LIMIT = 4e9  # bytes that a TIFF file can hold without 64-bit offsets


def make_scene(
    seed: int, size_um: tuple[float, float], density_per_mm2: float, lookalikes_per_mm2: float
) -> tuple[Scene, Stain]:
    """The tissue of the phantom `seed`, on a glass of `size_um` (width, height), and its stain."""
    rng = np.random.default_rng(seed)
    stain = random_stain(rng)
    zones = make_zones(rng, size_um=size_um)
    return Scene(seed, zones, (density_per_mm2, lookalikes_per_mm2, 6.0)), stain


def write_phantom(
    path: Path,
    seed: int,
    dimensions: tuple[int, int],
    mpp: float = 0.25,
    density_per_mm2: float = 30.0,
    *,
    lookalikes_per_mm2: float = 40.0,
    stain: Stain | None = None,
    compression: str | None = "jpeg",
) -> tuple[Annotation, ...]:
    """Write a slide as a tiled pyramid, drawn piece by piece: islands of tissue with tumour, stroma and lymphocytes.

    Parameters
    ----------
    path : Path
        The TIFF file. While it is written, a temporary file holds a sixteenth of the slide, uncompressed.
    dimensions : (width, height)
        Level-0 px.
    mpp : float
        µm/px; the same seed gives the same scene at any.
    density_per_mm2, lookalikes_per_mm2 : float
        Mitotic figures and annotated look-alikes in a mm² of tumour (not of stroma).
    stain : Stain or None
        None for the one that belongs to the seed.
    compression : {"jpeg", "deflate", None}
        JPEG has quality 90.

    Returns
    -------
    tuple of Annotation
        The truth: every figure and look-alike on the slide, ordered by y, then x; see `write_truth`.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    width, height = dimensions
    scene, usual = make_scene(seed, (width * mpp, height * mpp), density_per_mm2, lookalikes_per_mm2)
    truth: list[Annotation] = []
    small_shape = (math.ceil(height / _STEP), math.ceil(width / _STEP), 3)
    bigtiff = 3.3 * width * height > _CLASSIC_LIMIT
    with atomic_write(path) as stream, tempfile.TemporaryFile(dir=path.parent) as spill:
        small = np.memmap(spill, np.uint8, "w+", shape=small_shape)
        with tifffile.TiffWriter(tifffile.FileHandle(stream, "wb", name=path.name), bigtiff=bigtiff) as tiff:
            tiles = _first_level(scene, stain or usual, dimensions, mpp, small, truth)
            _write_level(tiff, tiles, (height, width), mpp, compression, f"mitosis phantom|seed = {seed}|MPP = {mpp:g}")
            level: Pixels = small
            while max(level.shape) * _STEP > _SMALLEST:
                mpp *= _STEP
                _write_level(tiff, _cut(level), level.shape[:2], mpp, compression, None)
                level = _shrink(level)
    return tuple(sorted(truth, key=lambda mark: (mark.y, mark.x)))


def _write_level(
    tiff: tifffile.TiffWriter,
    tiles: Iterator[Pixels],
    shape: tuple[int, ...],
    mpp: float,
    compression: str | None,
    description: str | None,
) -> None:
    """Write one level; the first one carries the description."""
    jpeg = compression == "jpeg"
    tiff.write(
        tiles,
        shape=(*shape, 3),
        dtype=np.uint8,
        tile=(_TILE, _TILE),
        photometric="rgb",
        compression=compression,
        compressionargs={"level": 90} if jpeg else None,
        subfiletype=0 if description else 1,
        description=description,
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
        metadata=None,
        software=False,
    )


def _first_level(
    scene: Scene, stain: Stain, dimensions: tuple[int, int], mpp: float, small: Pixels, truth: list[Annotation]
) -> Iterator[Pixels]:
    """Tiles of level 0, row by row; fills `small` (level 1) and `truth` on the way."""
    textures = make_textures(mpp)
    width, height = dimensions
    side = _TILE * _STEP
    for y in range(0, height, side):
        band = np.empty((min(side, height - y), width, 3), np.uint8)
        for x in range(0, width, side):
            box = Box(x, y, min(x + side, width), min(y + side, height))
            drawing = draw_region(scene, box, stain, textures)
            band[:, x : box.x1] = drawing.image
            truth.extend(drawing.annotations)
        reduced = _shrink(band)
        small[y // _STEP : y // _STEP + len(reduced)] = reduced
        yield from _cut(band)


def _cut(level: Pixels) -> Iterator[Pixels]:
    """Tiles, row by row, those at the edge filled up with their last row and column."""
    height, width = level.shape[:2]
    for y in range(0, height, _TILE):
        for x in range(0, width, _TILE):
            tile = np.asarray(level[y : y + _TILE, x : x + _TILE])
            yield np.pad(tile, ((0, _TILE - tile.shape[0]), (0, _TILE - tile.shape[1]), (0, 0)), mode="edge")


def _shrink(level: Pixels) -> Pixels:
    """Mean of every `_STEP` x `_STEP` pixels, strip by strip; the last ones are means of what there is."""
    height, width = level.shape[:2]
    shape = (math.ceil(height / _STEP), math.ceil(width / _STEP), 3)
    result = np.empty(shape, np.uint8)
    for row in range(0, shape[0], _TILE):
        strip = np.asarray(level[row * _STEP : (row + _TILE) * _STEP])
        strip = np.pad(strip, ((0, -strip.shape[0] % _STEP), (0, -width % _STEP), (0, 0)), mode="edge")
        blocks = strip.reshape(strip.shape[0] // _STEP, _STEP, shape[1], _STEP, 3)
        sums = blocks.sum(axis=1, dtype=np.uint16).sum(axis=2, dtype=np.uint16)
        result[row : row + len(sums)] = (sums + _STEP**2 // 2) // _STEP**2
    return result


def write_truth(path: Path, annotations: tuple[Annotation, ...]) -> None:
    """Write annotations as CSV `x,y,label`, level-0 px; by its usual name, the slide's, the toolkit finds it.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    write_points(path, annotations)
