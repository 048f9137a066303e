"""ICPR 2012 (MITOS): one line a segment, ``x,y,x,y,...`` for every pixel of it.

Pixel indices, x first: the centre of pixel (606, 299) is (606.5, 299.5). An empty file says: no figure in this field.
"""

from pathlib import Path

import numpy as np

from mitosis.annotations.annotation import Annotation, AnnotationSet, Label
from mitosis.annotations.segments import from_outlines, pixel_outlines
from mitosis.annotations.text import coordinate, csv_rows, has_header, read_text
from mitosis.errors import AnnotationError

__all__ = ["read", "recognises"]


def recognises(path: Path, head: str) -> bool:
    """A CSV file that starts with a number, or is empty."""
    return path.suffix.lower() in {".csv", ".txt"} and not has_header(head)


def read(path: Path, slide_id: str) -> AnnotationSet:  # noqa: ARG001 (one signature)
    """Every line as a mitotic figure with an outline that covers exactly its pixels."""
    rows = csv_rows(read_text(path))
    return AnnotationSet(tuple(_segment(fields, f"{path}, line {number}") for number, fields in rows))


def _segment(fields: list[str], where: str) -> Annotation:
    if len(fields) % 2:
        raise AnnotationError(
            f"{where}: {len(fields)} numbers are no list of x,y pairs. "
            "Complete the line; points with a confidence belong in NAME_mitosis.csv."
        )
    values = np.array([coordinate(field, where) for field in fields])
    if (values != np.floor(values)).any():
        raise AnnotationError(f"{where}: a pixel list needs whole numbers. For points, add the header line x,y,label.")
    columns, rows = values.astype(np.int64).reshape(-1, 2).T
    return from_outlines(pixel_outlines(columns, rows), Label.MITOTIC_FIGURE)
