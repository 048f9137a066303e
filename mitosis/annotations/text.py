"""Text of a file of marks, with every way it can be broken told as an AnnotationError."""

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mitosis.errors import AnnotationError

__all__ = [
    "MAX_BYTES",
    "MAX_COORDINATE",
    "coordinate",
    "csv_rows",
    "has_header",
    "number",
    "read_head",
    "read_json",
    "read_text",
]

MAX_BYTES = 512 * 2**20
"""Size limit of one file of marks, after unpacking; a hundred times the largest public one."""

MAX_COORDINATE = 2.0**31
"""No slide is that wide, px; a larger number is damage."""

_HEAD_BYTES = 1 << 16


def read_head(path: Path) -> str:
    """The first 64 KiB of a file as text, for recognising its format; unreadable characters are replaced.

    Of a longer file whole lines only, if there are any: a line that is cut has fewer fields than it should.
    """
    data = _read(path, _HEAD_BYTES)
    if len(data) == _HEAD_BYTES:
        data = data[: data.rfind(b"\n") + 1] or data
    return data.decode("utf-8-sig", errors="replace")


def read_text(path: Path) -> str:
    """The whole file as text: UTF-8 with or without byte order mark, gzip if the name ends in ``.gz``.

    Raises
    ------
    AnnotationError
        It is missing, unreadable, too large, or in another encoding.
    """
    data = _read(path, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise AnnotationError(f"{path}: larger than {MAX_BYTES // 2**20} MB. Split it by slide.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AnnotationError(f"{path}, line {line}: not UTF-8 text. Save it again as UTF-8.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise AnnotationError(f"{path}, line {line}: holds zero bytes, as UTF-16 does. Save it again as UTF-8.")
    return text


def _read(path: Path, n_bytes: int) -> bytes:
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            return stream.read(n_bytes)
    except FileNotFoundError as error:
        raise AnnotationError(f"{path}: there is no such file. Check the path.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise AnnotationError(f"{path}: the gzip data is damaged ({error}). Copy or export it again.") from error
    except (OSError, ValueError) as error:
        raise AnnotationError(f"{path}: cannot be read ({error}). Check the file and its permissions.") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file; a key that stands twice in one object is an error, not a silent loss.

    Raises
    ------
    AnnotationError
        It is not JSON.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path}, line {error.lineno}: not JSON ({error.msg}). Export the file again.") from error
    except RecursionError as error:
        raise AnnotationError(f"{path}: nested too deep to be a file of marks. Export it again.") from error
    except AnnotationError:
        raise
    except ValueError as error:
        raise AnnotationError(f"{path}: {error}. Export the file again.") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} stands twice in one object")
    return found


def csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every line that is not blank; commas, semicolons or tabs between the fields.

    Empty fields at the end of a line are dropped: some writers end each line with a comma.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((mark for mark in ";\t" if mark in first), ",")
    for number, line in enumerate(lines, start=1):
        fields = _fields(line, delimiter)
        if fields:
            yield number, fields


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        fields = [field.strip() for row in csv.reader([line], delimiter=delimiter) for field in row]
    except csv.Error:
        fields = [line]
    while fields and not fields[-1]:
        fields.pop()
    return fields


def has_header(text: str) -> bool:
    """Whether the first line that is not blank starts with something else than a number."""
    first = next(csv_rows(text), (0, ["0"]))[1][0]
    try:
        float(first.replace(",", "."))
    except ValueError:
        return True
    return False


def coordinate(field: str, where: str) -> float:
    """A finite number out of a CSV field; `where` names file and line in the error."""
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_COORDINATE:
        raise AnnotationError(f"{where}: {field[:40]!r} is no pixel coordinate. Correct the line or remove it.")
    return value


def number(value: object, where: str) -> float:
    """A finite number out of JSON; `where` names file and place in the error."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_COORDINATE:
        raise AnnotationError(f"{where}: {str(value)[:40]!r} is no pixel coordinate. Correct it or remove the mark.")
    return float(value)
