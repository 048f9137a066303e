"""The slides of a run: paths, folders or a manifest become a list of sources."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from glob import has_magic
from itertools import pairwise
from pathlib import Path
from typing import Any

from mitosis.annotations import names_its_slides
from mitosis.annotations.text import csv_rows, read_text
from mitosis.errors import AnnotationError, ConfigError, SlideError, SlideNotFoundError
from mitosis.slides import is_slide

__all__ = ["SlideSource", "case_of", "find_sources", "read_manifest"]

_COLUMNS = ("slide", "case", "domain", "mpp", "annotations", "roi")


@dataclass(frozen=True, slots=True)
class SlideSource:
    """A slide file and what is known of it before it is opened.

    Attributes
    ----------
    slide_id : str
        The file's name without its suffix; unique in a run.
    case_id : str
        The patient, or the block: what must never stand on both sides of a split.
    domain : str
        Scanner, laboratory or tumour; free text.
    mpp : float or None
        µm/px that overrides the file's.
    annotations : Path or None
        File or folder of marks.
    region : Path or None
        GeoJSON file of the region of interest.
    """

    path: Path
    slide_id: str
    case_id: str
    domain: str = ""
    mpp: float | None = None
    annotations: Path | None = None
    region: Path | None = None


def find_sources(
    paths: Sequence[Path],
    *,
    case_pattern: str | None = None,
    domain: str = "",
    mpp: float | None = None,
    annotations: Path | None = None,
) -> list[SlideSource]:
    """List the slides that `paths` name, sorted by slide_id.

    Parameters
    ----------
    paths : sequence of Path
        Slide files; folders whose slides are taken (not those of folders inside); or patterns such as ``fields/*.svs``
        and ``fields/**/*.svs``, of which the slides that match are taken.
    case_pattern : str, optional
        Regular expression; what it finds in a slide's name (its first group, if it has one) is the case. Without it
        each slide is a case of its own.

    Raises
    ------
    SlideNotFoundError
        A path does not exist, or no slide is in a folder or matches a pattern.
    SlideError
        Two slides have one name, or one has none.
    AnnotationError
        `annotations` does not exist, or is one file of one slide's marks for several slides.
    ConfigError
        The pattern is no regular expression, or a slide's name does not match it.
    """
    files = [file for path in paths for file in _slides_at(path)]
    sources = [
        SlideSource(file, file.stem, case_of(file.stem, case_pattern), domain, mpp, annotations) for file in files
    ]
    return _checked(sources)


def case_of(slide_id: str, case_pattern: str | None) -> str:
    """The case of a slide: what the pattern finds in its name (its first group, if it has one), or the name itself.

    Raises
    ------
    ConfigError
        The pattern is no regular expression, or finds nothing in the slide's name.
    """
    if case_pattern is None:
        return slide_id
    try:
        found = re.search(case_pattern, slide_id)
    except re.error as error:
        raise ConfigError(f"--case-pattern {case_pattern}: not a regular expression ({error})") from error
    # of alternatives, (A..)|(B..), only one group takes part
    case = "" if found is None else next(filter(None, found.groups()), "") if found.re.groups else found[0]
    if not case:
        raise ConfigError(f"--case-pattern {case_pattern}: finds nothing in the slide name {slide_id!r}")
    return case


def read_manifest(
    path: Path,
    *,
    case_pattern: str | None = None,
    domain: str = "",
    mpp: float | None = None,
    annotations: Path | None = None,
) -> list[SlideSource]:
    """Read a CSV with the column `slide` and, as wanted, `case`, `domain`, `mpp`, `annotations`, `roi`.

    Relative paths start at the manifest's folder. `roi` names a GeoJSON file of a region of interest: only in it is
    anything counted. The options, those of `find_sources`, hold for rows that do not say it themselves. Capitals and
    blanks round names and values do not matter, and other columns may be there.

    Raises
    ------
    ConfigError
        The manifest has no such column, or one that is spelled almost like one of these; or a value cannot be read.
    SlideError
        Two slides have one name, or one has none.
    AnnotationError
        A file of marks or of a region does not exist, or holds marks of one slide for several slides.
    """
    try:
        lines = list(csv_rows(read_text(path)))
    except AnnotationError as error:
        raise ConfigError(str(error)) from error
    header = [name.lower() for name in lines[0][1]] if lines else []
    if "slide" not in header or len(lines) < 2:
        raise ConfigError(f"{path}: a manifest needs a header with the column 'slide' and at least one row")
    _check_columns(path, header)
    given = {"annotations": annotations, "mpp": mpp, "domain": domain}
    sources = []
    for number, fields in lines[1:]:
        if len(fields) > len(header):
            raise ConfigError(f"{path}, line {number}: more fields than columns. Put names with commas in quotes.")
        row = dict(zip(header, fields, strict=False))
        sources.append(_source(path, number, row, case_pattern, given))
    return _checked(sources)


def _check_columns(manifest: Path, header: list[str]) -> None:
    """A column that is not read because of its spelling would change what is learned or counted without a word."""
    for name in header:
        missing = [column for column in _COLUMNS if column not in header]
        if name not in _COLUMNS and (meant := get_close_matches(name, missing, 1, 0.7)):
            raise ConfigError(f"{manifest}: unknown column {name!r}. Write {meant[0]!r}, or delete it.")


def _source(
    manifest: Path, line: int, row: dict[str, str], case_pattern: str | None, given: dict[str, Any]
) -> SlideSource:
    if not row.get("slide"):
        raise ConfigError(f"{manifest}, line {line}: no slide in this row. Name one, or delete the row.")
    slide = manifest.parent / row["slide"]
    marks, region = (manifest.parent / row[name] if row.get(name) else None for name in ("annotations", "roi"))
    if region is not None and not region.is_file():
        raise AnnotationError(f"{manifest}, line {line}: {region}: no such file of a region of interest.")
    try:
        mpp = float(row["mpp"]) if row.get("mpp") else given["mpp"]
    except ValueError as error:
        raise ConfigError(f"{manifest}, line {line}: mpp {row['mpp']!r} is not a number") from error
    case, domain = row.get("case") or case_of(slide.stem, case_pattern), row.get("domain") or given["domain"]
    return SlideSource(slide, slide.stem, case, domain, mpp, marks or given["annotations"], region)


def _slides_at(path: Path) -> list[Path]:
    if not path.exists():
        if has_magic(str(path)):
            return _matching(path)
        raise SlideNotFoundError(f"{path}: no such file or folder")
    if path.is_file() or is_slide(path):
        return [path]
    files = [file for file in sorted(path.iterdir()) if is_slide(file) and not file.stem.endswith("_mask")]
    if not files:
        raise SlideNotFoundError(f"{path}: no slide in this folder. Name the slides, or the folder that holds them.")
    return files


def _matching(pattern: Path) -> list[Path]:
    try:
        found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except ValueError as error:
        raise SlideNotFoundError(f"{pattern}: not a pattern ({error}). Write ** between slashes only.") from error
    files = [file for file in found if file.is_file() and is_slide(file) and not file.stem.endswith("_mask")]
    if not files:
        raise SlideNotFoundError(f"{pattern}: no slide matches this pattern. Check the folder and the ending.")
    return files


def _checked(sources: Sequence[SlideSource]) -> list[SlideSource]:
    """Sorted by name; each name once, and each file of marks for as many slides as it tells apart."""
    for source in sources:
        if not source.slide_id.strip("."):  # it names folders of the output, and ".." would lead out of it
            raise SlideError(f"{source.path}: a file of no name but an ending. Rename it.")
        if not _is_utf8(source.slide_id):
            raise SlideError(f"{str(source.path)!a}: the bytes of this name are no UTF-8. Rename it.")
    ordered = sorted(sources, key=lambda source: source.slide_id)
    for before, after in pairwise(ordered):
        if before.slide_id == after.slide_id:
            raise SlideError(f"{before.path} and {after.path} have the same name. Rename one, or count them apart.")
    for marks, n in Counter(source.annotations for source in ordered if source.annotations).items():
        if not marks.exists():
            raise AnnotationError(f"{marks}: no such file or folder of marks. Check the path.")
        if n > 1 and marks.is_file() and not names_its_slides(marks):
            raise AnnotationError(
                f"{marks}: holds the marks of one slide, but {n} slides are given. Give a folder of such files, or add "
                "a column slide."
            )
    return ordered


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
