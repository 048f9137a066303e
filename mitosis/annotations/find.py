"""Which files in a folder belong to a slide."""

from pathlib import Path

from mitosis.annotations import atypia, label_mask, midog
from mitosis.annotations.annotation import bare_name
from mitosis.annotations.text import read_head
from mitosis.errors import AnnotationError

__all__ = ["find_annotations"]

_ENDINGS = (".csv", ".tsv", ".geojson", ".geojson.gz", ".json", ".json.gz")


def find_annotations(source: Path, slide_id: str) -> tuple[Path, ...]:
    """The files of marks of a slide in a folder; empty where there are none, which means unlabelled.

    Looked for are ``NAME.csv``, the pair ``NAME_mitosis.csv`` and ``NAME_not_mitosis.csv``, ``NAME.geojson``,
    ``NAME.json``, ``NAME_mask.png``, ``NAME.png`` in a folder called ``masks``, and a MIDOG JSON with marks for NAME.
    A file given in place of a folder is the answer.

    Raises
    ------
    AnnotationError
        Several claim the slide, or look-alikes come without figures.
    """
    if not source.is_dir():
        return (source,)
    name = bare_name(slide_id)
    found = [*_by_name(source, name), *_midog_files(source, slide_id, name)]
    if len(found) > 1:
        listing = " and ".join(paths[0].name for paths in found)
        raise AnnotationError(f"{source}: both {listing} belong to slide {slide_id}. Keep one, or name the file.")
    return found[0] if found else ()


def _by_name(folder: Path, name: str) -> list[tuple[Path, ...]]:
    masks = folder if folder.name.lower() == "masks" else folder / "masks"
    single = [_file(folder / name, ending) for ending in _ENDINGS]
    single += [_file(folder / f"{name}_mask", suffix) for suffix in label_mask.SUFFIXES]
    single += [_file(masks / name, suffix) for suffix in label_mask.SUFFIXES]
    found: list[tuple[Path, ...]] = [(path,) for path in single if path]
    figures, look_alikes = (_file(folder / name, ending) for ending in (atypia.FIGURES, atypia.LOOK_ALIKES))
    if look_alikes and not figures:
        raise AnnotationError(
            f"{look_alikes}: look-alikes without {name}{atypia.FIGURES}. Add it, empty if there are no figures."
        )
    pair = tuple(path for path in (figures, look_alikes) if path)
    return [*found, pair] if pair else found


def _midog_files(folder: Path, slide_id: str, name: str) -> list[tuple[Path, ...]]:
    files = [path for path in sorted(folder.glob("*.json")) if _is_file(path) and path.stem != name]
    return [(path,) for path in files if _may_be_midog(path) and midog.lists_slide(path, slide_id)]


def _may_be_midog(path: Path) -> bool:
    return midog.recognises(path, head := read_head(path)) and any(f'"{name}"' in head for name in midog.PARTS)


def _file(start: Path, ending: str) -> Path | None:
    """The file of that name, its suffix in small or in capital letters."""
    name, _, suffix = ending.rpartition(".")
    spellings = (
        start.with_name(f"{start.name}{name}.{suffix}"),
        start.with_name(f"{start.name}{name}.{suffix.upper()}"),
    )
    return next(filter(_is_file, spellings), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a slide's name so long that its name with an ending is none
        return False
