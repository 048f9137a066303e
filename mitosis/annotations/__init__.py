"""What experts marked on a slide: one file a format, one door.

A new format is a module with two functions and a line in `FORMATS`: ``recognises(path, head)`` says by the name and the
first 64 KiB whether a file is of the format, ``read(path, slide_id)`` gives the marks in level-0 px under the house
convention (``mitosis.geometry``), or None where the file says nothing about that slide.

No marks for a slide and no figures on a slide are different things. An empty file says that an expert looked and found
none; a slide without a file, or in a file of many slides without a mark, is unlabelled and must not be learned from.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, overload

from mitosis.annotations import atypia, geojson, label_mask, midog, pixel_list, points
from mitosis.annotations.annotation import Annotation, AnnotationSet, Label, bare_name
from mitosis.annotations.find import find_annotations
from mitosis.annotations.geojson import read_region_outlines
from mitosis.annotations.points import write_points
from mitosis.annotations.segments import TELOPHASE_UM, join_segments
from mitosis.annotations.text import read_head
from mitosis.errors import AnnotationError

__all__ = [
    "FORMATS",
    "TELOPHASE_UM",
    "Annotation",
    "AnnotationSet",
    "Label",
    "Reader",
    "find_annotations",
    "load_annotations",
    "names_its_slides",
    "read_annotations",
    "read_region_outlines",
    "write_points",
]


class Reader(NamedTuple):
    """A format: how to recognise a file of it, and how to read what a file says about a slide."""

    recognises: Callable[[Path, str], bool]
    read: Callable[[Path, str], AnnotationSet | None]


FORMATS: dict[str, Reader] = {
    "label_mask": Reader(label_mask.recognises, label_mask.read),
    "geojson": Reader(geojson.recognises, geojson.read),
    "midog": Reader(midog.recognises, midog.read),
    "points": Reader(points.recognises, points.read),
    "atypia": Reader(atypia.recognises, atypia.read),
    "pixel_list": Reader(pixel_list.recognises, pixel_list.read),
}
"""Every format that is read; the first that recognises a file reads it."""


def read_annotations(source: Path | Sequence[Path], slide_id: str, format: str | None = None) -> AnnotationSet:
    """Read the file or files of a slide as they are: nothing joined, nothing dropped.

    Parameters
    ----------
    source : Path or sequence of Path
        One file; several where a format keeps figures and look-alikes apart.
    slide_id : str
        Which slide, for files that hold many.
    format : str or None
        A key of `FORMATS`; by default it is recognised by name and content.

    Raises
    ------
    AnnotationError
        A file is missing, damaged or of no known format, or none says anything about this slide.
    """
    paths = (source,) if isinstance(source, Path) else tuple(source)
    found = _read(paths, slide_id, format)
    if found is None:
        raise _unlabelled(" and ".join(map(str, paths)) or "No file", slide_id)
    return found


def _read(paths: tuple[Path, ...], slide_id: str, format: str | None) -> AnnotationSet | None:
    read = [_reader(path, format).read(path, slide_id) for path in paths]
    found = [marks for marks in read if marks is not None]
    if not found:
        return None
    return AnnotationSet(
        tuple(annotation for marks in found for annotation in marks.annotations),
        n_ignored=sum(marks.n_ignored for marks in found),
        dimensions=next((marks.dimensions for marks in found if marks.dimensions), None),
    )


def names_its_slides(path: Path) -> bool:
    """Whether the marks of a file say which slide they are on; those of other files are all of one slide."""
    head = read_head(path)
    return midog.recognises(path, head) or (points.recognises(path, head) and points.has_slides(head))


def _unlabelled(source: str, slide_id: str) -> AnnotationError:
    return AnnotationError(
        f"{source}: no marks for slide {slide_id}, so it is unlabelled, which is not the same as free of figures. "
        f"Leave the slide out, or add an empty {bare_name(slide_id)}.csv if somebody looked and found none."
    )


def _reader(path: Path, format: str | None) -> Reader:
    if format is not None:
        if format not in FORMATS:
            raise AnnotationError(f"{format!r} is no format of marks. Choose from {', '.join(FORMATS)}.")
        return FORMATS[format]
    head = read_head(path)
    for reader in FORMATS.values():
        if reader.recognises(path, head):
            return reader
    raise AnnotationError(f"{path}: of no known format. Name one of {', '.join(FORMATS)}.")


@overload
def load_annotations(
    source: Path,
    slide_id: str,
    dimensions: tuple[int, int],
    mpp: float,
    *,
    telophase_um: float = ...,
    format: str | None = ...,
    missing_ok: Literal[False] = ...,
) -> AnnotationSet: ...


@overload
def load_annotations(
    source: Path,
    slide_id: str,
    dimensions: tuple[int, int],
    mpp: float,
    *,
    telophase_um: float = ...,
    format: str | None = ...,
    missing_ok: bool,
) -> AnnotationSet | None: ...


def load_annotations(
    source: Path,
    slide_id: str,
    dimensions: tuple[int, int],
    mpp: float,
    *,
    telophase_um: float = TELOPHASE_UM,
    format: str | None = None,
    missing_ok: bool = False,
) -> AnnotationSet | None:
    """The figures and look-alikes of a slide, ready to use: off-slide marks dropped and counted, segments joined.

    Parameters
    ----------
    source : Path
        A file, or a folder in which `find_annotations` looks.
    slide_id : str
        The slide's name, with or without its suffix.
    dimensions : (width, height), level-0 px
    mpp : float
        µm/px at level 0.
    telophase_um : float
        Outlined segments of one label with a smaller gap are one figure; 0 keeps every segment.
    format : str or None
        A key of `FORMATS`; by default it is recognised.
    missing_ok : bool
        Return None for an unlabelled slide instead of raising.

    Raises
    ------
    AnnotationError
        There are no marks for this slide, or they cannot be understood, or they belong to an image of another size.
    """
    found = _read(find_annotations(source, slide_id), slide_id, format)
    if found is None:
        if missing_ok:
            return None
        raise _unlabelled(str(source), slide_id)
    if found.dimensions not in {None, dimensions}:
        raise AnnotationError(
            f"{source}: made for an image of {found.dimensions} px, but slide {slide_id} has {dimensions} px. "
            "Give the slide these marks were made on, in its full resolution."
        )
    return _on_slide(found, dimensions, telophase_um / mpp)


def _on_slide(found: AnnotationSet, dimensions: tuple[int, int], telophase: float) -> AnnotationSet:
    width, height = dimensions
    inside = [mark for mark in found.annotations if 0 <= mark.x < width and 0 <= mark.y < height]
    n_outside = len(found.annotations) - len(inside)
    return replace(found, annotations=join_segments(inside, telophase), n_outside=n_outside, dimensions=dimensions)
