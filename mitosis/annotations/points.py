"""Point CSV with a header: ``x,y,label``, the form `write_points` writes.

Level-0 px, x right, y down, from the slide's top-left corner: the house convention, nothing is shifted. The columns may
also be called ``x_px, y_px`` and ``class``; without a label column every point is a mitotic figure. With a ``slide``
column one file may hold many slides. With ``;`` between the fields a decimal comma is understood. A header with
nothing below it says: none on this slide.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from mitosis.annotations.annotation import Annotation, AnnotationSet, Label, bare_name, by_class, check_classes
from mitosis.annotations.text import coordinate, csv_rows, has_header, read_text
from mitosis.errors import AnnotationError
from mitosis.files import write_text

__all__ = ["has_slides", "read", "recognises", "write_points"]

_COLUMNS = {
    "x": ("x", "x_px"),
    "y": ("y", "y_px"),
    "label": ("label", "class", "category", "classification"),
    "slide": ("slide", "slide_id", "file_name", "filename"),
}


def recognises(path: Path, head: str) -> bool:
    """A CSV file whose first line is words."""
    return path.suffix.lower() in {".csv", ".tsv", ".txt"} and has_header(head)


def has_slides(head: str) -> bool:
    """Whether a file that begins so has a slide column."""
    return not set(_COLUMNS["slide"]).isdisjoint(_names(next(csv_rows(head), (0, []))[1]))


def read(path: Path, slide_id: str) -> AnnotationSet | None:
    """The points of a slide; None where the file has a slide column that does not name it."""
    lines = csv_rows(read_text(path))
    header = next(lines, None)
    if header is None:
        return AnnotationSet()
    columns = _columns(header[1], path)
    marks = list(_marks(lines, columns, slide_id, path))
    if "slide" in columns and not marks:
        return None
    check_classes((name for name, _ in marks), path)
    return by_class(marks)


def _marks(
    lines: Iterator[tuple[int, list[str]]], columns: dict[str, int], slide_id: str, path: Path
) -> Iterator[tuple[str, list[Annotation]]]:
    for number, fields in lines:
        where = f"{path}, line {number}"
        row = fields + [""] * (max(columns.values()) + 1 - len(fields))
        if "slide" in columns and bare_name(row[columns["slide"]]) != bare_name(slide_id):
            continue
        x, y = (coordinate(row[columns[axis]].replace(",", "."), where) for axis in "xy")
        name = row[columns["label"]] if "label" in columns else Label.MITOTIC_FIGURE
        yield name, [Annotation(x, y, Label.MITOTIC_FIGURE)]


def _columns(header: list[str], path: Path) -> dict[str, int]:
    names = _names(header)
    columns = {}
    for column, spellings in _COLUMNS.items():
        places = [names.index(spelling) for spelling in spellings if spelling in names]
        if places:
            columns[column] = places[0]
    if not {"x", "y"} <= columns.keys():
        raise AnnotationError(f"{path}, line 1: no columns x and y. Write the header line x,y,label.")
    return columns


def _names(header: list[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def write_points(path: Path, annotations: Iterable[Annotation]) -> None:
    """Write `annotations` as point CSV with the header ``x,y,label``, level-0 px to a thousandth; outlines are lost."""
    lines = [f"{annotation.x:.3f},{annotation.y:.3f},{annotation.label}\n" for annotation in annotations]
    write_text(path, "".join(["x,y,label\n", *lines]))
