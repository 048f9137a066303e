"""MITOS-ATYPIA-14: ``NAME_mitosis.csv`` and ``NAME_not_mitosis.csv``, lines ``x,y`` or ``x,y,confidence``.

Pixel indices, x first: the centre of pixel (515, 434) is (515.5, 434.5). An empty file says: none in this field. The
confidence is how sure the experts were that it is a mitotic figure; the file already decides the label.
"""

import math
from pathlib import Path

from mitosis.annotations.annotation import Annotation, AnnotationSet, Label
from mitosis.annotations.text import coordinate, csv_rows, has_header, read_text
from mitosis.errors import AnnotationError

__all__ = ["FIGURES", "LOOK_ALIKES", "read", "recognises"]

FIGURES = "_mitosis.csv"
LOOK_ALIKES = "_not_mitosis.csv"


def recognises(path: Path, head: str) -> bool:
    """One of the two names; or a CSV file without a header whose lines hold one point each."""
    if path.name.lower().endswith(FIGURES):
        return True
    lengths = {len(fields) for _, fields in csv_rows(head)}
    return path.suffix.lower() == ".csv" and bool(lengths) and lengths <= {2, 3} and not has_header(head)


def read(path: Path, slide_id: str) -> AnnotationSet:  # noqa: ARG001 (one signature)
    """Points: look-alikes in a file named so, figures in any other."""
    label = Label.NON_MITOTIC_FIGURE if path.name.lower().endswith(LOOK_ALIKES) else Label.MITOTIC_FIGURE
    points = []
    for number, fields in csv_rows(read_text(path)):
        where = f"{path}, line {number}"
        if len(fields) not in {2, 3}:
            raise AnnotationError(f"{where}: {len(fields)} fields. Write x,y or x,y,confidence.")
        x, y = (coordinate(field, where) + 0.5 for field in fields[:2])
        if len(fields) == 3 and not _is_number(fields[2]):
            raise AnnotationError(f"{where}: {fields[2][:40]!r} is no confidence. Add the header line x,y,label.")
        points.append(Annotation(x, y, label))
    return AnnotationSet(tuple(points))


def _is_number(field: str) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False
