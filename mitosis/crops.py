"""Squares round candidates, and the folder of those that a second stage learns from.

The folder holds ``crops/SLIDE.npy`` (uint8 [N, side, side, 3], stain levels already brought to the usual ones),
``index.csv`` (a row a crop) and ``candidates.json`` (settings, and what is known of each slide). A slide is done when
``candidates.json`` says so; it is written last, so a run that was stopped goes on after the last slide that is done.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mitosis.errors import PatchIndexError
from mitosis.files import atomic_write, safe_cell, write_json, write_text
from mitosis.geometry import Box
from mitosis.slides import Slide, read_at_mpp
from mitosis.stain import StainLevels

__all__ = [
    "CLASSES",
    "FIGURE",
    "LOOK_ALIKE",
    "OTHER",
    "UNCLEAR",
    "Candidate",
    "CandidateSet",
    "CandidateSlide",
    "centre",
    "corners",
    "crop_side",
    "read_crops",
    "save_crops",
    "save_table",
]

OTHER, FIGURE, LOOK_ALIKE = CLASSES = ("other", "mitotic figure", "non-mitotic figure")
"""What a second stage tells apart, in the order of its outputs."""

UNCLEAR = "unclear"
"""A candidate beside a marked figure: nothing is learned from it, but it counts when thresholds are chosen."""

INDEX, NOTE, CROPS = "index.csv", "candidates.json", "crops"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A crop; a row of ``index.csv``.

    Attributes
    ----------
    slide_id, case_id, source_sha256, model_sha256 : str
        Where it comes from, and which first stage found it.
    row : int
        Its place in ``crops/SLIDE.npy``.
    x, y : float
        Centre, level-0 px.
    score : float
        What the first stage gave it; 0 for a marked figure that it missed.
    label : str
        One of `CLASSES`, or `UNCLEAR`.
    found : bool
        Whether the first stage found it.
    around_mm2 : float
        Tissue around it, as `mitosis.crowding.tissue_around` tells it; 0 of what is not on a slide.
    """

    slide_id: str
    case_id: str
    source_sha256: str
    model_sha256: str
    row: int
    x: float
    y: float
    score: float
    label: str
    found: bool
    around_mm2: float = 0.0


@dataclass(frozen=True, slots=True)
class CandidateSlide:
    """What is known of a slide once its candidates are cut.

    Attributes
    ----------
    case_id, split, source_sha256 : str
        `split` is "train", or "val" for a slide that only serves to choose thresholds.
    mpp : float
        µm/px of level 0.
    figures : list of [x, y]
        Every marked mitotic figure, level-0 px.
    n_crops : int
        Rows of its array.
    area_mm2 : float
        Tissue that was looked at.
    domain : str
        Scanner or laboratory; "" if unknown.
    """

    case_id: str
    split: str
    source_sha256: str
    mpp: float
    figures: list[list[float]]
    n_crops: int
    area_mm2: float
    domain: str = ""


@dataclass(frozen=True)
class CandidateSet:
    """Candidates and the slides they are on.

    Attributes
    ----------
    folder : Path
        Where their crops lie.
    elsewhere : mapping of str to Path
        Slides whose crops lie in other folders.
    scale : float
        Crops are given with so many times the px a side that they are kept with.
    """

    folder: Path
    candidates: tuple[Candidate, ...]
    slides: Mapping[str, CandidateSlide]
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    scale: float = 1.0

    @classmethod
    def read(cls, folder: Path) -> "CandidateSet":
        """Read a folder of candidates, as far as it is done.

        Raises
        ------
        PatchIndexError
            It is missing or damaged.
        """
        try:
            note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
            slides = {name: CandidateSlide(**slide) for name, slide in note["slides"].items()}
            table = io.StringIO((folder / INDEX).read_text(encoding="utf-8"))
            candidates = tuple(
                _candidate(row) for row in csv.DictReader(table) if row["slide_id"].removeprefix("'") in slides
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PatchIndexError(f"{folder}: not a folder of candidates ({error!r}). Collect them anew.") from error
        return cls(folder, candidates, slides)

    @classmethod
    def join(cls, first: "CandidateSet", other: "CandidateSet") -> "CandidateSet":
        """The candidates of two folders; with the name of the first.

        Raises
        ------
        PatchIndexError
            Both have a slide of the same name.
        """
        if both := sorted(first.slides.keys() & other.slides.keys()):
            raise PatchIndexError(f"{first.folder} and {other.folder} both hold the slide {both[0]}. Leave one out.")
        elsewhere = dict(first.elsewhere) | {name: other.elsewhere.get(name, other.folder) for name in other.slides}
        return cls(first.folder, first.candidates + other.candidates, {**first.slides, **other.slides}, elsewhere)

    @property
    def cases(self) -> list[str]:
        """Every case, sorted."""
        return sorted({slide.case_id for slide in self.slides.values()})

    def where(self, keep: Callable[[str, CandidateSlide], bool]) -> "CandidateSet":
        """Only the slides, and their candidates, for which `keep(slide_id, slide)` is true."""
        slides = {name: slide for name, slide in self.slides.items() if keep(name, slide)}
        chosen = tuple(candidate for candidate in self.candidates if candidate.slide_id in slides)
        return replace(self, candidates=chosen, slides=slides)

    def crop(self, candidate: Candidate) -> NDArray[np.uint8]:
        """Its crop, uint8 [side, side, 3]; shrunk, a pixel is the mean over its area.

        Raises
        ------
        PatchIndexError
            The array is missing, or is not what the index says.
        """
        # Opened anew each time: a thousand slides would be more open files than most systems allow.
        slide = self.slides[candidate.slide_id]
        folder = self.elsewhere.get(candidate.slide_id, self.folder)
        crop = np.array(_load(folder, candidate.slide_id, slide.n_crops)[candidate.row])
        side = round(len(crop) * self.scale)
        way = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
        return crop if self.scale == 1 else np.asarray(cv2.resize(crop, (side, side), interpolation=way), np.uint8)


def _candidate(row: Mapping[str, str]) -> Candidate:
    if row["label"] not in (*CLASSES, UNCLEAR):
        raise ValueError(f"label {row['label']!r}")
    # An apostrophe at the start is that of `safe_cell`.
    slide_id, case_id = (row[name].removeprefix("'") for name in ("slide_id", "case_id"))
    return Candidate(
        slide_id=slide_id,
        case_id=case_id,
        source_sha256=row["source_sha256"],
        model_sha256=row["model_sha256"],
        row=int(row["row"]),
        x=float(row["x"]),
        y=float(row["y"]),
        score=float(row["score"]),
        label=row["label"],
        found=row["found"] == "1",
        around_mm2=float(row["around_mm2"]),
    )


def _load(folder: Path, slide_id: str, n_crops: int) -> NDArray[np.uint8]:
    path = folder / CROPS / f"{slide_id}.npy"
    try:
        pixels: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PatchIndexError(f"{path}: missing or damaged ({error}). Collect the candidates anew.") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[0] != n_crops or pixels.shape[3] != 3:
        raise PatchIndexError(f"{path}: not the {n_crops} crops of the index. Collect the candidates anew.")
    return pixels


def save_crops(folder: Path, slide_id: str, pixels: NDArray[np.uint8]) -> None:
    """Write the crops of a slide, uint8 [N, side, side, 3], into the existing ``folder/crops``."""
    with atomic_write(folder / CROPS / f"{slide_id}.npy") as stream:
        np.save(stream, pixels, allow_pickle=False)


def save_table(
    folder: Path, candidates: Iterable[Candidate], slides: Mapping[str, CandidateSlide], note: Mapping[str, Any]
) -> None:
    """Write ``index.csv``, and then ``candidates.json`` with `note` and the slides that are done."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([column.name for column in fields(Candidate)])
    for candidate in candidates:
        values = asdict(candidate) | {"found": int(candidate.found)}
        writer.writerow([safe_cell(value) if isinstance(value, str) else value for value in values.values()])
    write_text(folder / INDEX, table.getvalue())
    write_json(folder / NOTE, {**note, "slides": {name: asdict(slide) for name, slide in slides.items()}})


def crop_side(side: int) -> int:
    """Side of the square kept for crops of `side` px: half as large again, so that it can be turned and moved."""
    return side + 2 * (-(-side // 4))


def centre(crops: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle of crops [..., H, H, 3], [..., side, side, 3]: what `read_crops` gives for that side."""
    start = (crops.shape[-2] - side) // 2
    return crops[..., start : start + side, start : start + side, :]


def corners(xy: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    """Upper left corners [N, 2] of the squares of `side` px (even) round some places, px of the same grid."""
    return np.floor(xy + 0.5).astype(np.int64) - side // 2


def read_crops(
    slide: Slide, xy: NDArray[np.float64], mpp: float, side: int, stain: StainLevels | None
) -> NDArray[np.uint8]:
    """Squares of the grid at `mpp` round some places.

    Parameters
    ----------
    xy : float64 [N, 2]
        Level-0 px.
    side : int
        px at `mpp`, even. The middle of a square lies at most half a px from its place.
    stain : StainLevels or None
        The slide's, to bring it to the usual ones.

    Returns
    -------
    uint8 [N, side, side, 3], white beyond the slide.
    """
    crops = np.empty((len(xy), side, side, 3), dtype=np.uint8)
    for crop, (x, y) in zip(crops, corners(xy * (slide.mpp / mpp), side).tolist(), strict=True):
        crop[...] = read_at_mpp(slide, Box(x, y, x + side, y + side), mpp)
    return stain.normalise(crops) if stain else crops
