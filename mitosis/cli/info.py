"""``mitosis info``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitosis.cli.options import Mpp

if TYPE_CHECKING:
    from mitosis.slides import Slide

__all__ = ["info"]


def info(
    slides: Annotated[list[Path], typer.Argument(help="Slide files.", show_default=False)],
    mpp: Mpp = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a slide file is: size, µm/px, levels, format. Exit code 1 if one cannot be opened.

    Example: mitosis info slide.svs
    """
    from mitosis.errors import SlideError
    from mitosis.files import dump_json

    described = []
    for path in slides:
        try:
            described.append(_describe(path, mpp))
        except SlideError as error:
            typer.echo(f"Error: {error}", err=True)
    if as_json:
        typer.echo(dump_json(described), nl=False)
    else:
        typer.echo("\n".join(_lines(entry) for entry in described))
    raise typer.Exit(0 if len(described) == len(slides) else 1)


def _describe(path: Path, mpp: float | None) -> dict[str, object]:
    from mitosis.errors import MppError
    from mitosis.slides import open_slide

    try:
        with open_slide(path, mpp) as slide:
            width, height = (f"{side * slide.mpp / 1000:.2f}" for side in slide.dimensions)
            return _shape(slide) | {"mpp": f"{slide.mpp:.6g}", "size": f"{width} x {height} mm", **slide.properties}
    except MppError as error:
        reason = str(error).removeprefix(f"{path}: ")
        with open_slide(path, mpp=1.0) as slide:
            return _shape(slide) | {"mpp": reason, **slide.properties}


def _shape(slide: "Slide") -> dict[str, object]:
    width, height = slide.dimensions
    levels = zip(slide.level_dimensions, slide.level_downsamples, strict=True)
    return {
        "file": str(slide.path),
        "dimensions": f"{width} x {height} px",
        "levels": [f"{w} x {h} (1:{downsample:g})" for (w, h), downsample in levels],
    }


def _lines(entry: dict[str, object]) -> str:
    lines = []
    for name, value in entry.items():
        for number, text in enumerate(value if isinstance(value, list) else [value]):
            lines.append(f"{'' if number else name:<16} {text}")
    return "\n".join([*lines, ""])
