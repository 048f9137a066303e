"""Checks of the files: unreadable, missing, belonging to no slide, empty, boxes that can be read in two ways."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from mitosis.annotations import Label
from mitosis.annotations.annotation import bare_name
from mitosis.annotations.label_mask import SUFFIXES
from mitosis.errors import AnnotationError
from mitosis.lint.collection import Collection, SlideMarks, read_file
from mitosis.lint.finding import Finding, listing

__all__ = ["empty", "ignored", "orphans", "same_marks", "unlabelled", "unreadable"]

_ENDINGS = (".csv", ".tsv", ".geojson", ".geojson.gz", ".json", ".json.gz")
_PARTS = ("_not_mitosis", "_mitosis", "_mask")


def unreadable(collection: Collection) -> Iterator[Finding]:
    """Slides and marks that could not be read; the other checks leave them out."""
    for slide in collection.slides:
        if slide.marks_error:
            advice = "Until then these marks are not checked."
            yield Finding("unreadable", "error", slide.slide, f"Marks: {slide.marks_error}", advice)
        if slide.slide_error:
            advice = "Until then the places of the marks are not checked."
            yield Finding("unreadable", "error", slide.slide, f"Slide: {slide.slide_error}", advice)


def unlabelled(collection: Collection) -> Iterator[Finding]:
    """Slides without any marks: not the same as slides without figures."""
    missing = [slide.slide for slide in collection.slides if _is_unlabelled(slide)]
    advice = "Leave the slide out, or add an empty NAME.csv if somebody looked and found none."
    if missing and len(missing) == len(collection.slides):
        message = f"{collection.source} has no marks for any of the slides."
        yield Finding("unlabelled", "error", "", message, "Check the path, and that marks are named like their slides.")
        return
    for name in missing:
        message = "No marks, so it is unlabelled, which is not the same as free of figures."
        yield Finding("unlabelled", "warning", name, message, advice)


def _is_unlabelled(slide: SlideMarks) -> bool:
    return slide.marks is None and not slide.marks_error


def orphans(collection: Collection) -> Iterator[Finding]:
    """Files of marks in the folder that belong to none of the slides."""
    slides = {slide.slide for slide in collection.slides}
    used = {path for slide in collection.slides for path in slide.files}
    lost = [path for path in _candidates(collection.source) if path not in used and _owner(path) not in slides]
    lost = [path for path in lost if _has_marks(path)]
    if lost:
        missing = [slide.slide for slide in collection.slides if _is_unlabelled(slide)]
        names = listing([_guess(path, missing) for path in lost])
        message = f"Files of marks that belong to no slide given ({len(lost)}): {names}."
        advice = "If one is misnamed, give it the name of its slide; else leave it, it is not used."
        yield Finding("orphans", "warning", "", message, advice)


def _candidates(source: Path) -> list[Path]:
    """Files that may hold marks, by their names."""
    if not source.is_dir():
        return []
    masks = source if source.name.lower() == "masks" else source / "masks"
    found = [path for path in source.iterdir() if path.name.lower().endswith(_ENDINGS)]
    found += [path for path in source.iterdir() if path.stem.endswith("_mask") and path.suffix.lower() in SUFFIXES]
    found += [path for path in masks.glob("*") if path.suffix.lower() in SUFFIXES]
    return sorted({path for path in found if path.is_file() and not path.name.startswith(".")})


def _owner(path: Path) -> str:
    """The slide that a file of marks is for, by its name."""
    name = next((path.name[: -len(ending)] for ending in _ENDINGS if path.name.lower().endswith(ending)), path.stem)
    return bare_name(next((name.removesuffix(part) for part in _PARTS if name.endswith(part)), name))


def _has_marks(path: Path) -> bool:
    """Whether it is a file of marks at all, and not a table or a picture of something else."""
    try:
        read_file(path, _owner(path))
    except AnnotationError:
        return False
    return True


def _guess(path: Path, missing: list[str]) -> str:
    """The name of an orphan, with the unlabelled slide whose name is most like it."""
    like = get_close_matches(_owner(path), missing, n=1, cutoff=0.8)
    return f"{path.name} (for {like[0]}?)" if like else path.name


def empty(collection: Collection) -> Iterator[Finding]:
    """Slides whose file has no mark at all."""
    for slide in collection.slides:
        if slide.marks is not None and not slide.annotations:
            message = "Marked as free of figures: the file of marks is empty."
            advice = "Fine if somebody looked and found none; delete the file if nobody has looked yet."
            yield Finding("empty", "warning", slide.slide, message, advice)


def same_marks(collection: Collection) -> Iterator[Finding]:
    """Several marks at exactly the same places on two slides: a file copied, or one file read for every slide."""
    groups: dict[tuple[tuple[float, float, Label], ...], list[str]] = {}
    for slide in collection.slides:
        places = tuple((mark.x, mark.y, mark.label) for mark in slide.annotations)
        if len(places) >= 2:
            groups.setdefault(places, []).append(slide.slide)
    for places, slides in groups.items():
        if len(slides) >= 2:
            message = f"Exactly the same {len(places)} marks on {len(slides)} slides: {listing(slides)}."
            advice = "Give each slide its own file of marks, or add a column slide to a file of many slides."
            yield Finding("same_marks", "error", "", message, advice)


def ignored(collection: Collection) -> Iterator[Finding]:
    """Marks of other classes, which nothing here reads."""
    for slide in collection.slides:
        if slide.marks is not None and slide.marks.n_ignored:
            message = f"Marks of another class, and lines, are left out ({slide.marks.n_ignored})."
            figure, look_alike = Label
            advice = f"If they are figures or look-alikes, call the class {figure.value!r} or {look_alike.value!r}."
            yield Finding("ignored", "note", slide.slide, message, advice)
