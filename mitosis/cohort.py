"""The slides of a run: paths, folders or a manifest become a list of sources."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import has_magic
from itertools import pairwise
from pathlib import Path

from mitosis.errors import AnnotationError, ConfigError, SlideError, SlideNotFoundError
from mitosis.slides import is_slide

__all__ = ["SlideSource", "case_of", "find_sources", "read_manifest"]


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
        `annotations` does not exist.
    ConfigError
        The pattern is no regular expression, or a slide's name does not match it.
    """
    files = [file for path in paths for file in _slides_at(path)]
    _check_marks(annotations)
    sources = [
        SlideSource(file, file.stem, case_of(file.stem, case_pattern), domain, mpp, annotations)
        for file in sorted(files, key=lambda file: file.stem)
    ]
    _check_names(sources)
    return sources


def case_of(slide_id: str, case_pattern: str | None) -> str:
    """The case of a slide: what the pattern finds in its name (its first group, if it has one), or the name itself.

    Raises
    ------
    ConfigError
        The pattern is no regular expression, or the slide's name does not match it.
    """
    if case_pattern is None:
        return slide_id
    try:
        found = re.search(case_pattern, slide_id)
    except re.error as error:
        raise ConfigError(f"--case-pattern {case_pattern}: not a regular expression ({error})") from error
    if not found:
        raise ConfigError(f"--case-pattern {case_pattern}: finds nothing in the slide name {slide_id!r}")
    return found[1] if found.re.groups else found[0]


def read_manifest(path: Path) -> list[SlideSource]:
    """Read a CSV with the column `slide` and, as wanted, `case`, `domain`, `mpp`, `annotations`, `roi`.

    Relative paths start at the manifest's folder. `roi` names a GeoJSON file of a region of interest: only in it is
    anything counted.

    Raises
    ------
    ConfigError
        The manifest has no such column, or a value cannot be read.
    SlideError
        Two slides have one name, or one has none.
    AnnotationError
        A file of marks or of a region does not exist.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not readable as a CSV manifest ({error})") from error
    if not rows or "slide" not in rows[0]:
        raise ConfigError(f"{path}: a manifest needs a header with the column 'slide' and at least one row")
    sources = sorted((_source(path, number, row) for number, row in enumerate(rows, 2)), key=lambda s: s.slide_id)
    _check_names(sources)
    return sources


def _source(manifest: Path, line: int, row: dict[str, str]) -> SlideSource:
    if not row["slide"]:
        raise ConfigError(f"{manifest}, line {line}: no slide in this row. Name one, or delete the row.")
    slide = manifest.parent / row["slide"]
    marks, region = (manifest.parent / row[name] if row.get(name) else None for name in ("annotations", "roi"))
    _check_marks(marks)
    if region is not None and not region.is_file():
        raise AnnotationError(f"{manifest}, line {line}: {region}: no such file of a region of interest.")
    try:
        mpp = float(row["mpp"]) if row.get("mpp") else None
    except ValueError as error:
        raise ConfigError(f"{manifest}, line {line}: mpp {row['mpp']!r} is not a number") from error
    case = row.get("case") or slide.stem
    return SlideSource(slide, slide.stem, case, row.get("domain") or "", mpp, marks, region)


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


def _check_marks(annotations: Path | None) -> None:
    if annotations is not None and not annotations.exists():
        raise AnnotationError(f"{annotations}: no such file or folder of marks. Check the path.")


def _check_names(sources: Sequence[SlideSource]) -> None:
    for source in sources:
        if not source.slide_id.strip("."):  # it names folders of the output, and ".." would lead out of it
            raise SlideError(f"{source.path}: a file of no name but an ending. Rename it.")
    for before, after in pairwise(sources):
        if before.slide_id == after.slide_id:
            raise SlideError(f"{before.path} and {after.path} have the same name. Rename one, or count them apart.")
