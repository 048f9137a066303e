"""A slide like an Aperio scan, of stained noise, for benchmarks of reading."""

from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

__all__ = ["stained_noise", "write_example_slide"]

TILE = 256


def write_example_slide(path: Path, side: int = 8192) -> Path:
    """Write a pyramid like an Aperio scan: JPEG tiles of 256 px, quality 80, 4:2:0, three levels, stained noise."""
    field = stained_noise(2048)
    repeats = -(-side // len(field))
    image = np.tile(field, (repeats, repeats, 1))[:side, :side]
    description = f"Aperio Image Library\n{side}x{side} ({TILE}x{TILE}) JPEG/YCC Q=80|AppMag = 40|MPP = 0.25"
    with tifffile.TiffWriter(path) as writer:
        for factor in (1, 4, 16):
            level = np.ascontiguousarray(image[::factor, ::factor])
            _write_tiles(writer, level, description)
            if factor == 1:  # where an SVS has its thumbnail
                writer.write(image[::32, ::32], photometric="rgb", compression="jpeg", metadata=None)
    return path


def _write_tiles(writer: tifffile.TiffWriter, image: NDArray[np.uint8], description: str) -> None:
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % TILE), (0, -width % TILE), (0, 0)), mode="edge")
    tiles = (
        simplejpeg.encode_jpeg(np.ascontiguousarray(padded[y : y + TILE, x : x + TILE]), 80, "RGB", "420")
        for y in range(0, height, TILE)
        for x in range(0, width, TILE)
    )
    writer.write(
        tiles,
        shape=image.shape,
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="ycbcr",
        subsampling=(2, 2),
        compression="jpeg",
        description=description,
        metadata=None,
    )


def stained_noise(side: int) -> NDArray[np.uint8]:
    """Dark round blots on pink, [side, side, 3]: compresses about like H&E at 0.25 µm/px."""
    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.standard_normal((side, side)).astype(np.float32), 1.2, mode="wrap") * 3.5
    nuclei = gaussian_filter(rng.standard_normal((side, side)).astype(np.float32), 8, mode="wrap") * 30
    stain = np.clip(nuclei - 0.5, 0, 1) + 0.12 * texture
    pink, purple = np.array([232, 188, 214], np.float32), np.array([96, 62, 140], np.float32)
    image = pink + stain[..., None] * (purple - pink)
    rounded: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return rounded
