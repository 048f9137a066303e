"""Label mask: an image as large as the slide, 0 background, 1 mitotic figure, 2 non-mitotic figure, 255 ignore.

Also a black and white (1-bit) image, white for figures. Pixel (row i, column j) covers ``[j, j + 1) x [i, i + 1)``;
pixels of one value that touch, also at a corner, are one outline. Ignored pixels are no marks.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, ImageFile, PngImagePlugin, TiffImagePlugin
from scipy import ndimage

from mitosis.annotations.annotation import Annotation, AnnotationSet, Label
from mitosis.annotations.segments import from_outlines, pixel_outlines
from mitosis.errors import AnnotationError

__all__ = ["SUFFIXES", "read", "recognises"]

SUFFIXES = (".png", ".tif", ".tiff", ".bmp")

MAX_PIXELS = 400_000_000
"""As many as a plain image may have that is opened as a slide."""

_KINDS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\x89PNG": PngImagePlugin.PngImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
}
_LABELS = {1: Label.MITOTIC_FIGURE, 2: Label.NON_MITOTIC_FIGURE}
_IGNORE = 255


def recognises(path: Path, head: str) -> bool:  # noqa: ARG001 (one signature)
    """An image, by its name."""
    return path.suffix.lower() in SUFFIXES


def read(path: Path, slide_id: str) -> AnnotationSet:  # noqa: ARG001 (one signature)
    """Every connected area of a label as an annotation with its exact outline."""
    mask = _load(path)
    _check_values(mask, path)
    found = tuple(annotation for value, label in _LABELS.items() for annotation in _areas(mask == value, label))
    return AnnotationSet(found, dimensions=(mask.shape[1], mask.shape[0]))


def _load(path: Path) -> NDArray[np.uint8]:
    try:
        with _kind(path)(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise AnnotationError(
                    f"{path}: {image.width} x {image.height} px are too many. Give the marks as GeoJSON outlines."
                )
            if image.mode not in {"1", "L", "P"}:
                raise AnnotationError(
                    f"{path}: an image of mode {image.mode} is no label mask. Save it as 8-bit greyscale."
                )
            return np.array(image, dtype=np.uint8)
    except AnnotationError:
        raise
    except FileNotFoundError as error:
        raise AnnotationError(f"{path}: there is no such file. Check the path.") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise AnnotationError(f"{path}: cannot be read as an image ({error}). Save it again as PNG.") from error


def _kind(path: Path) -> type[ImageFile.ImageFile]:
    """Pillow's class for the file, called directly: `Image.open` refuses what is larger than 179 megapixels."""
    with path.open("rb") as stream:
        head = stream.read(4)
    return next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), TiffImagePlugin.TiffImageFile)


def _check_values(mask: NDArray[np.uint8], path: Path) -> None:
    present = set(np.unique(mask).tolist())
    if present == {0, _IGNORE} or present == {_IGNORE}:
        raise AnnotationError(f"{path}: holds only 255, which means ignore. Write figures as 1, look-alikes as 2.")
    if unknown := present - {0, *_LABELS, _IGNORE}:
        raise AnnotationError(
            f"{path}: the value {min(unknown)} has no meaning. Write 1 mitotic figure, 2 look-alike, 255 ignore."
        )


def _areas(mask: NDArray[np.bool_], label: Label) -> list[Annotation]:
    numbers, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    found = []
    for number, place in enumerate(ndimage.find_objects(numbers), start=1):
        rows, columns = np.nonzero(numbers[place] == number)
        outlines = pixel_outlines(columns + place[1].start, rows + place[0].start)
        found.append(from_outlines(outlines, label))
    return found
