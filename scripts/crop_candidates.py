"""Pictures of mitotic figures as candidates of a second stage: the figures, and dark nuclei beside them as others."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from crop_mosaics import MPP, pictures_of, read_picture
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from mitosis.cohort import SlideSource
from mitosis.config import VerifierConfig
from mitosis.crops import FIGURE, OTHER, Candidate, CandidateSet, CandidateSlide, crop_side, save_crops, save_table
from mitosis.errors import ConfigError
from mitosis.files import make_folder, sha256
from mitosis.geometry import area_mm2
from mitosis.splits import TRAIN
from mitosis.stain import StainLevels, stain_levels

_APART, _EDGE = 28, 30
"""Least distance of a nucleus from the figure and from the edges of the picture, px: its square is not to show much of
the one, nor of what is mirrored at the other."""
_SIGMA, _DARK = 5, 60
"""Nuclei are the darkest places in red of a picture blurred by so many px, at least so many levels below white."""
_FIGURE = 28
"""Diameter of the middle that is left out where stain is measured, as a slide has few figures; px of half the size."""
_BLACK = 20
"""What is no lighter, in grey levels, is beyond the slide."""


def write_crop_candidates(
    source: Path, slides: Sequence[SlideSource], out: Path, settings: VerifierConfig, model_sha256: str
) -> CandidateSet:
    """Cut figures and other nuclei of some slides out of the pictures of AMi-Br, into the folder `out`.

    A network that learned from figures alone took their scanners for a sign of a figure. Nuclei beside them keep it
    from that. Few of these will be figures: of one picture the collection marks the one in the middle only, but hardly
    any shows the figure of another picture.

    Parameters
    ----------
    source : Path
        Folder of AMi-Br: ``crops.csv`` and pictures of 128 px with a figure in the middle.
    slides : sequence of SlideSource
        The mosaics of `crop_mosaics.write_mosaics`, whose names and files these candidates are noted under. Places are
        those in the picture, and as a slide has several there is no list of its figures.
    model_sha256 : str
        First stage whose candidates these will stand beside; it brings slides to the usual stain levels.

    Raises
    ------
    ConfigError
        `verifier.mpp` is not that of the pictures.
    """
    if settings.mpp != MPP:
        raise ConfigError(f"verifier.mpp = {settings.mpp:g}: the crops of AMi-Br have {MPP:g} µm/px. Ask for that.")
    pictures = pictures_of(source)
    make_folder(out / "crops")
    candidates, done = list[Candidate](), dict[str, CandidateSlide]()
    for slide in slides:
        images = [_without_black(read_picture(file)) for file in pictures[slide.slide_id]]
        places = [(number, x, y, label) for number, image in enumerate(images) for x, y, label in _places(image)]
        levels = _levels(images)
        squares = (_square(images[number], x, y, crop_side(settings.crop)) for number, x, y, _ in places)
        save_crops(out, slide.slide_id, np.stack([levels.normalise(square) for square in squares]))
        source_sha256 = sha256(slide.path)
        candidates += [
            Candidate(slide.slide_id, slide.case_id, source_sha256, model_sha256, row, x, y, 0.0, label, found=False)
            for row, (_, x, y, label) in enumerate(places)
        ]
        area = sum(area_mm2(image.shape[0] * image.shape[1], MPP) for image in images)
        done[slide.slide_id] = CandidateSlide(
            slide.case_id, TRAIN, source_sha256, MPP, [], len(places), area, slide.domain
        )
    save_table(out, candidates, done, {})
    return CandidateSet.read(out)


def stain_beside_figures(source: Path, slide_id: str) -> StainLevels:
    """Stain levels of the slide that these pictures of AMi-Br are of: it has few figures, so theirs are left out."""
    return _levels([_without_black(read_picture(file)) for file in pictures_of(source)[slide_id]])


def _levels(images: Sequence[NDArray[np.uint8]]) -> StainLevels:
    return stain_levels((_half(image) for image in images), _surroundings(len(images[0]) // 2))


def _without_black(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """White instead of black where a picture reaches beyond its slide, as slides are read."""
    return np.where((image.max(axis=2) <= _BLACK)[..., np.newaxis], np.uint8(255), image)


def _half(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At the µm/px at which stain is measured on slides."""
    height, width = image.shape[:2]
    return np.asarray(cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA), np.uint8)


def _surroundings(side: int) -> NDArray[np.bool_]:
    """Where there is no figure, bool [side, side]."""
    away = np.arange(side) - (side - 1) / 2
    return np.asarray(np.hypot(away, away[:, np.newaxis]) > _FIGURE / 2)


def _places(image: NDArray[np.uint8]) -> Iterator[tuple[float, float, str]]:
    """The figure in the middle, and dark nuclei that are neither near to it nor to an edge."""
    height, width = image.shape[:2]
    middle_x, middle_y = width / 2, height / 2
    yield middle_x, middle_y, FIGURE
    darkness = cv2.GaussianBlur(255 - image[..., 0].astype(np.float32), (0, 0), _SIGMA)
    peaks = (darkness == maximum_filter(darkness, 4 * _SIGMA + 1)) & (darkness >= _DARK)
    rows, columns = np.nonzero(peaks[_EDGE : height - _EDGE + 1, _EDGE : width - _EDGE + 1])
    for x, y in zip((columns + _EDGE).tolist(), (rows + _EDGE).tolist(), strict=True):
        if np.hypot(x - middle_x, y - middle_y) >= _APART:
            yield x + 0.5, y + 0.5, OTHER


def _square(image: NDArray[np.uint8], x: float, y: float, side: int) -> NDArray[np.uint8]:
    """The square round a place, uint8 [side, side, 3]; beyond the picture it is mirrored."""
    left, top, half = int(x), int(y), side // 2
    padded = cv2.copyMakeBorder(image, half, half, half, half, cv2.BORDER_REFLECT_101)
    return np.asarray(padded[top : top + side, left : left + side], np.uint8)
