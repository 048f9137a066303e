"""Whole slides behind one door: `open_slide` gives a `Slide`, whatever the file format.

A reader is a function ``(path, mpp) -> Slide | None`` and one line in `READERS`. `open_slide` asks them in that order,
and the first that knows the file answers: a reader looks at the file's first bytes and returns None where they are not
its kind, and raises `UnsupportedSlideError` where the kind is its own but something in the file is beyond it (the next
reader may know better). Any other `SlideError` is final: the file is damaged. So TIFF comes first, OpenSlide reads what
TIFF does not, and plain images come last because MRXS files begin like a JPEG. Readers are imported on use.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from mitosis.errors import MppError, SlideError, SlideNotFoundError
from mitosis.geometry import Box
from mitosis.slides.resample import read_at_mpp, thumbnail

__all__ = [
    "READERS",
    "SLIDE_SUFFIXES",
    "BadTile",
    "Reader",
    "Slide",
    "UnsupportedSlideError",
    "is_slide",
    "open_slide",
    "paste",
    "read_at_mpp",
    "thumbnail",
    "usable_mpp",
]

MPP_RANGE = (0.05, 4.0)  # µm/px; 72 dpi, which many programs write without knowing, is 353
ANISOTROPY = 0.02


class UnsupportedSlideError(SlideError):
    """A file of the reader's kind with something in it that this reader cannot decode; another one may."""


@dataclass(frozen=True, slots=True)
class BadTile:
    """A part of a slide whose data is damaged; it is white in what is read.

    Attributes
    ----------
    level : int
        The pyramid level that is damaged there.
    box : Box
        What it covers, level-0 px.
    reason : str
        The decoder's words.
    """

    level: int
    box: Box
    reason: str


class Slide(Protocol):
    """An open slide. Reading is thread-safe; a pickled slide reopens its file, with an empty `bad_tiles`.

    Attributes
    ----------
    path : Path
        The file.
    mpp : float
        µm/px at level 0, the mean of x and y.
    dimensions : tuple[int, int]
        (width, height) of level 0, px.
    level_dimensions : tuple[tuple[int, int], ...]
        (width, height) of every level, px.
    level_downsamples : tuple[float, ...]
        How many level-0 pixels a pixel of each level spans; a whole number wherever the dimensions agree with one.
    properties : Mapping[str, str]
        For people to read: format, vendor, compression, tile size, objective power, scanner, where known.
    """

    path: Path
    mpp: float
    dimensions: tuple[int, int]
    level_dimensions: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    properties: Mapping[str, str]

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        """Damaged tiles met so far, in the order they were met."""
        ...

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Read pixels of one level.

        Parameters
        ----------
        location : tuple[int, int]
            (x, y) of the top-left corner in level-0 px; the nearest pixel of the level is taken.
        level : int
            0 is the finest.
        size : tuple[int, int]
            (width, height) in px of that level.

        Returns
        -------
        uint8 [height, width, 3]
            RGB, the caller's own copy; white outside the slide, where a tile was never scanned and where it is damaged.

        Raises
        ------
        SlideError
            The file cannot be read any more.
        """
        ...

    def reductions(self, level: int) -> tuple[int, ...]:  # noqa: ARG002 (readers that can reduce need it)
        """Whole factors by which pixels of a level are read smaller at less cost than in full, from the smallest."""
        return ()

    def read_reduced(self, region: Box, level: int, factor: int) -> NDArray[np.uint8]:
        """Read pixels of one level that each stand for ``factor x factor`` of the level's.

        Parameters
        ----------
        region : Box
            px of the reduced level: its pixel (i, j) covers ``[j * factor, (j + 1) * factor) x [i * factor, (i + 1) *
            factor)`` of the level.
        level : int
            0 is the finest.
        factor : int
            One of ``reductions(level)``.

        Returns
        -------
        uint8 [height, width, 3]
            RGB, close to the means of the level's pixels but not equal to them; white where `read_region` is white.

        Raises
        ------
        SlideError
            The file cannot be read any more.
        ValueError
            No such factor.
        """
        raise ValueError(f"factor {factor} where level {level} has {self.reductions(level)} (asked for {region})")

    def close(self) -> None:
        """Close the file."""
        ...

    def level_box(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Box:
        """Box of a region in px of its level, as `read_region` understands its arguments."""
        if not 0 <= level < len(self.level_downsamples):
            raise ValueError(f"level {level} where the slide has {len(self.level_downsamples)}")
        factor = self.level_downsamples[level]
        x, y = (math.floor(place / factor + 0.5) for place in location)
        return Box(x, y, x + size[0], y + size[1])

    def full_box(self, level: int, box: Box) -> Box:
        """Level-0 px that `box`, px of a level, touches."""
        factor, (width, height) = self.level_downsamples[level], self.dimensions
        right, bottom = min(math.ceil(box.x1 * factor), width), min(math.ceil(box.y1 * factor), height)
        return Box(math.floor(box.x0 * factor), math.floor(box.y0 * factor), right, bottom)

    def __enter__(self) -> Self:
        """Use ``with``, and the file is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def paste(canvas: NDArray[np.uint8], region: Box, piece: NDArray[np.uint8], box: Box) -> None:
    """Copy what of `piece`, the pixels of `box`, falls into `region`, whose pixels are `canvas`; px of one level."""
    x0, y0 = max(region.x0, box.x0), max(region.y0, box.y0)
    x1, y1 = min(region.x1, box.x1), min(region.y1, box.y1)
    if x0 < x1 and y0 < y1:
        part = piece[y0 - box.y0 : y1 - box.y0, x0 - box.x0 : x1 - box.x0]
        canvas[y0 - region.y0 : y1 - region.y0, x0 - region.x0 : x1 - region.x0] = part


Reader = Callable[[Path, float | None], Slide | None]


def _tiff(path: Path, mpp: float | None) -> Slide | None:
    from mitosis.slides.tiff import open_tiff

    return open_tiff(path, mpp)


def _openslide(path: Path, mpp: float | None) -> Slide | None:
    from mitosis.slides.openslide import open_with_openslide

    return open_with_openslide(path, mpp)


def _image(path: Path, mpp: float | None) -> Slide | None:
    from mitosis.slides.image import open_image

    return open_image(path, mpp)


READERS: dict[str, Reader] = {"tiff": _tiff, "openslide": _openslide, "image": _image}

# DICOM is left out: one slide is many .dcm files there, and a folder would count it many times. Name one file instead.
SLIDE_SUFFIXES = frozenset(
    [".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".bif", ".svslide"]
    + [".mrxs", ".vms", ".vmu", ".czi"]
    + [".png", ".jpg", ".jpeg", ".bmp"]
)


def is_slide(path: Path) -> bool:
    """Whether the name looks like a slide's; the file is not touched."""
    return path.suffix.lower() in SLIDE_SUFFIXES and not path.name.startswith(".")


def open_slide(path: Path | str, mpp: float | None = None) -> Slide:
    """Open a slide with the first of `READERS` that knows the file.

    Parameters
    ----------
    path : Path or str
        The file.
    mpp : float, optional
        µm/px at level 0; wins over what the file says.

    Raises
    ------
    SlideNotFoundError
        There is no such file.
    MppError
        Neither the file nor `mpp` gives a usable pixel size.
    SlideError
        The file is damaged, or of a kind that nothing here reads.
    """
    path = Path(path)
    if not path.exists():
        raise SlideNotFoundError(f"{path}: there is no such file. Check the name.")
    if path.is_dir():
        raise SlideError(f"{path}: this is a folder, not a slide. Name one file in it.")
    if path.stat().st_size == 0:
        raise SlideError(f"{path}: the file is empty (0 bytes). Copy it again.")
    refusals = []
    for reader in READERS.values():
        try:
            if (slide := reader(path, mpp)) is not None:
                return slide
        except UnsupportedSlideError as error:
            refusals.append(error)
        except PermissionError as error:
            raise SlideError(f"{path}: you may not read this file. Change its permissions.") from error
    if refusals:
        raise refusals[0]
    raise SlideError(
        f"{path}: not a slide, or damaged at its beginning ({', '.join(READERS)} do not know it). Copy it again."
    )


def usable_mpp(path: Path, measured: tuple[float, float] | None, given: float | None) -> float:
    """µm/px of level 0: `given` if there is one, otherwise the mean of what the file says, never a guess.

    Parameters
    ----------
    path : Path
        Named in the message.
    measured : tuple[float, float] or None
        (x, y) µm/px in the file.
    given : float or None
        The user's ``--mpp``.

    Raises
    ------
    MppError
        Nothing usable: missing, outside 0.05 to 4 µm/px, or x and y differ by more than 2 %.
    """
    lowest, highest = MPP_RANGE
    if given is not None:
        if not lowest <= given <= highest:
            raise MppError(
                f"{path}: --mpp {given:g} is outside {lowest:g} to {highest:g} µm/px. 40x is about 0.25, 20x about 0.5."
            )
        return float(given)
    advice = "Pass --mpp 0.25 (40x is about 0.25, 20x about 0.5)."
    if measured is None:
        raise MppError(f"{path}: no µm/px in the file. {advice}")
    x, y = measured
    if not (lowest <= x <= highest and lowest <= y <= highest):
        raise MppError(f"{path}: the file says {x:.4g} µm/px, which no scan has. {advice}")
    if abs(x / y - 1) > ANISOTROPY:
        raise MppError(f"{path}: pixels of {x:.4g} x {y:.4g} µm are not square. If the file is wrong, pass --mpp.")
    return (x + y) / 2
