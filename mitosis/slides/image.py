"""PNG, JPEG and BMP as slides of one level, decoded when opened; meant for fields of a few thousand pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin

from mitosis.errors import SlideError
from mitosis.geometry import Box
from mitosis.slides import MPP_RANGE, BadTile, Slide, UnsupportedSlideError, paste, usable_mpp
from mitosis.slides.decode import on_white, to_8_bit

__all__ = ["ImageSlide", "open_image"]

# Pillow's classes are called directly: they know no other format, and Image.open warns from 90 Mpx on
KINDS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\x89PNG": PngImagePlugin.PngImageFile,
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
}
MAX_PIXELS = 400_000_000  # 1.2 GB


def open_image(path: Path, mpp: float | None = None) -> Slide | None:
    """Open `path` if it begins like a PNG, JPEG or BMP file; see `mitosis.slides.open_slide`.

    Raises
    ------
    SlideError
        It is damaged, or the small picture at the beginning of a MIRAX slide.
    """
    if path.suffix.lower() == ".mrxs":  # OpenSlide was asked before
        raise SlideError(
            f"{path}: a MIRAX slide without its data, which OpenSlide looks for in the folder {path.stem} beside it. "
            "Copy that folder too."
        )
    return ImageSlide(path, mpp) if _kind(path) else None


def _kind(path: Path) -> type[ImageFile.ImageFile] | None:
    with path.open("rb") as stream:
        head = stream.read(4)
    return next((kind for magic, kind in KINDS.items() if head.startswith(magic)), None)


class ImageSlide(Slide):
    """A plain image as a slide with one level, held in memory.

    Notes
    -----
    µm/px come from PNG's pHYs or JPEG's density only where they are those of a microscope: 72 dpi counts as missing.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self.path, self._given_mpp = Path(path), mpp
        if (kind := _kind(self.path)) is None:
            raise SlideError(f"{path}: neither PNG, JPEG nor BMP. Export it as one of these.")
        try:
            with kind(self.path) as image:
                self._check(image)
                dpi = image.info.get("dpi")
                self._pixels = _strict_jpeg(self.path) if image.format == "JPEG" else _to_rgb(image)
                self.properties = {"format": str(image.format), "colours": image.mode}
        except SlideError:
            raise
        except Exception as error:  # a damaged file ends in whatever error its decoder runs into
            raise SlideError(f"{self.path}: damaged image ({error}). Copy it again from its source.") from error
        height, width = self._pixels.shape[:2]
        self.dimensions = (width, height)
        self.level_dimensions, self.level_downsamples = (self.dimensions,), (1.0,)
        self.mpp = usable_mpp(self.path, _measured_mpp(dpi), mpp)

    def _check(self, image: Image.Image) -> None:
        if image.width * image.height > MAX_PIXELS:
            raise SlideError(f"{self.path}: {image.width} x {image.height} px are too many. Export it as a tiled TIFF.")
        if image.mode in ("CMYK", "LAB", "HSV", "F", "YCCK"):
            raise UnsupportedSlideError(f"{self.path}: colours of the kind {image.mode}. Export it as RGB.")

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        return ()

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        region = self.level_box(location, level, size)
        pixels = np.full((size[1], size[0], 3), 255, np.uint8)
        paste(pixels, region, self._pixels, Box(0, 0, *self.dimensions))
        return pixels

    def close(self) -> None:
        """Nothing is open."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageSlide, (self.path, self._given_mpp)


def _strict_jpeg(path: Path) -> NDArray[np.uint8]:
    """Decode with simplejpeg, which raises where Pillow paints damaged parts grey."""
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(path.read_bytes(), "RGB", strict=True)
    return pixels


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        return np.repeat(to_8_bit(np.asarray(image), 16)[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        return on_white(rgba[..., :3], rgba[..., 3:])
    return np.asarray(image.convert("RGB"))


def _measured_mpp(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    if not dpi or min(dpi) <= 0:
        return None
    x, y = (25400 / float(value) for value in dpi)
    return (x, y) if MPP_RANGE[0] <= x <= MPP_RANGE[1] else None
