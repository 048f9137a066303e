"""What the checks look at: each slide with its marks as they are, and where the marks stand under several readings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mitosis.annotations import (
    FORMATS,
    TELOPHASE_UM,
    Annotation,
    AnnotationSet,
    find_annotations,
    read_annotations,
)
from mitosis.annotations.segments import join_segments
from mitosis.annotations.text import read_head
from mitosis.cohort import SlideSource
from mitosis.errors import AnnotationError, MppError, SlideError
from mitosis.slides import Slide, open_slide
from mitosis.tissue import TissueMask, find_tissue

__all__ = [
    "FACTORS",
    "Collection",
    "SlideMarks",
    "SlideView",
    "Standing",
    "collect",
    "look",
    "read_file",
    "stand",
    "view",
]

FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)
"""By what coordinates are multiplied to try whether they were made on another level of the pyramid."""

REACH_UM = 10.0
"""A mark is on tissue if there is some this near, µm: tissue is looked for at 8 µm/px, and cells lie at edges."""

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """Where the marks of a slide stand under one reading of their coordinates.

    Attributes
    ----------
    inside, on_tissue : bool [N]
        On the image; on the image and on tissue or beside it.
    """

    inside: BoolArray
    on_tissue: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class SlideView:
    """What is known of an open slide.

    Attributes
    ----------
    dimensions : (width, height), level-0 px
    mpp : float
        µm/px as used.
    file_mpp : float or None
        µm/px that the file itself says.
    tissue_share : float
        How much of the slide is tissue, 0..1.
    as_read, swapped : Standing
        Of the coordinates as x,y and as y,x.
    scaled : mapping of float to Standing
        Of the coordinates times each of `FACTORS`.
    properties : mapping of str
        As `Slide.properties`.
    """

    dimensions: tuple[int, int]
    mpp: float
    file_mpp: float | None
    tissue_share: float
    as_read: Standing
    swapped: Standing
    scaled: Mapping[float, Standing]
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class SlideMarks:
    """A slide and its marks.

    Attributes
    ----------
    slide : str
        Its name without suffix.
    files : tuple of Path
        Where its marks are from.
    marks : AnnotationSet or None
        As the file has them; None: unlabelled, or unreadable.
    view : SlideView or None
        None: the slide cannot be read.
    marks_error, slide_error : str
        Why the marks or the slide could not be read; empty if they could.
    """

    slide: str
    files: tuple[Path, ...] = ()
    marks: AnnotationSet | None = None
    view: SlideView | None = None
    marks_error: str = ""
    slide_error: str = ""

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """Every mark as the file has it."""
        return self.marks.annotations if self.marks else ()

    @property
    def joined(self) -> tuple[Annotation, ...]:
        """The marks with segments joined as `load_annotations` joins them; empty where µm/px are not known."""
        return join_segments(self.annotations, TELOPHASE_UM / self.view.mpp) if self.view else ()


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """All slides, and the file or folder that their marks are from."""

    source: Path
    slides: tuple[SlideMarks, ...]


def collect(source: Path, sources: Sequence[SlideSource], on_slide: Callable[[str], None] | None = None) -> Collection:
    """Look at every slide; one that cannot be read does not stop the others.

    Parameters
    ----------
    source : Path
        File or folder of marks.
    sources : sequence of SlideSource
        The slides; their own `annotations` are not used.
    on_slide : callable, optional
        Told the name of each slide that is done.
    """
    slides = []
    for slide in sources:
        slides.append(look(source, slide))
        if on_slide:
            on_slide(slide.slide_id)
    return Collection(source, tuple(slides))


def look(source: Path, slide: SlideSource) -> SlideMarks:
    """One slide and its marks; why one of them cannot be read is told."""
    files: tuple[Path, ...] = ()
    marks, seen, marks_error, slide_error = None, None, "", ""
    try:
        files = find_annotations(source, slide.slide_id)
        marks = _marks(files, slide.slide_id)
    except AnnotationError as error:
        marks_error = str(error)
    try:
        seen = _open(slide, marks.annotations if marks else ())
    except SlideError as error:
        slide_error = str(error).removeprefix(f"{slide.path}: ")
    return SlideMarks(slide.slide_id, files, marks, seen, marks_error, slide_error)


def _marks(files: tuple[Path, ...], slide_id: str) -> AnnotationSet | None:
    """The marks of a slide, or None where no file says anything about it."""
    if not files:
        return None
    try:
        return read_annotations(files, slide_id)
    except AnnotationError:
        if all(read_file(path, slide_id) is None for path in files):
            return None
        raise


def read_file(path: Path, slide_id: str) -> AnnotationSet | None:
    """What one file says about a slide; None where that is nothing.

    Raises
    ------
    AnnotationError
        It is no file of marks, or a damaged one.
    """
    head = read_head(path)
    for reader in FORMATS.values():
        if reader.recognises(path, head):
            return reader.read(path, slide_id)
    raise AnnotationError(f"{path}: of no known format. Use one of {', '.join(FORMATS)}.")


def _open(slide: SlideSource, annotations: Iterable[Annotation]) -> SlideView:
    with open_slide(slide.path, slide.mpp) as opened:
        return view(opened, annotations, _file_mpp(slide.path) if slide.mpp else opened.mpp)


def _file_mpp(path: Path) -> float | None:
    try:
        with open_slide(path) as slide:
            return slide.mpp
    except MppError:
        return None


def view(slide: Slide, annotations: Iterable[Annotation], file_mpp: float | None = None) -> SlideView:
    """Where the marks stand on an open slide.

    Raises
    ------
    SlideError
        The slide cannot be read.
    """
    tissue = find_tissue(slide)
    xy = np.array([(mark.x, mark.y) for mark in annotations], dtype=np.float64).reshape(-1, 2)
    return SlideView(
        dimensions=slide.dimensions,
        mpp=slide.mpp,
        file_mpp=file_mpp,
        tissue_share=tissue.covers((0, 0, *slide.dimensions)),
        as_read=stand(xy, tissue),
        swapped=stand(xy[:, ::-1], tissue),
        scaled={factor: stand(xy * factor, tissue) for factor in FACTORS},
        properties=dict(slide.properties),
    )


def stand(xy: FloatArray, tissue: TissueMask) -> Standing:
    """Where points (float [N, 2], level-0 px) stand on a slide."""
    inside: BoolArray = np.all((xy >= 0) & (xy < tissue.dimensions), axis=1)
    reach = REACH_UM / tissue.slide_mpp
    near = tissue.areas_mm2_in(np.hstack([xy - reach, xy + reach])) > 0
    return Standing(inside, inside & near)
