"""The slides that a command is given: named, or in a manifest."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from mitosis.cohort import SlideSource

__all__ = ["marked_slides", "named_slides"]


def named_slides(slides: list[Path] | None, manifest: Path | None, **options: Any) -> "list[SlideSource]":
    """Slides as named, or those of a manifest, with the options of `mitosis.cohort.find_sources`.

    Raises
    ------
    BadParameter
        Both are given, or neither.
    """
    if (manifest is None) == (not slides):
        raise typer.BadParameter("name either SLIDES or a --manifest")
    from mitosis.cohort import find_sources, read_manifest

    return read_manifest(manifest, **options) if manifest else find_sources(slides or [], **options)


def marked_slides(slides: list[Path] | None, manifest: Path | None, **options: Any) -> "list[SlideSource]":
    """The same, each with its marks; raises BadParameter too if a slide has none."""
    sources = named_slides(slides, manifest, **options)
    bare = [source.slide_id for source in sources if source.annotations is None]
    if bare:
        raise typer.BadParameter(f"no marks for {bare[0]}: give --annotations, or fill in that column of the manifest")
    return sources
