"""``mitosis info``."""

from pathlib import Path
from typing import Annotated

import typer

from mitosis.cli.options import Mpp

__all__ = ["info"]


def info(
    slides: Annotated[list[Path], typer.Argument(help="Slide files.", show_default=False)],
    mpp: Mpp = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a slide file is: size, µm/px, levels, format.

    Example: mitosis info slide.svs
    """
    from mitosis.files import dump_json
    from mitosis.slides import Slide, open_slide

    def describe(slide: Slide) -> dict[str, object]:
        width, height = slide.dimensions
        return {
            "file": str(slide.path),
            "dimensions": f"{width} x {height} px",
            "mpp": round(slide.mpp, 6),
            "size": f"{width * slide.mpp / 1000:.2f} x {height * slide.mpp / 1000:.2f} mm",
            "levels": [
                f"{w} x {h} (1:{downsample:g})"
                for (w, h), downsample in zip(slide.level_dimensions, slide.level_downsamples, strict=True)
            ],
            **slide.properties,
        }

    described = []
    for path in slides:
        with open_slide(path, mpp) as slide:
            described.append(describe(slide))
    if as_json:
        typer.echo(dump_json(described), nl=False)
        return
    for entry in described:
        for name, value in entry.items():
            lines = value if isinstance(value, list) else [value]
            for number, line in enumerate(lines):
                typer.echo(f"{'' if number else name:<18} {line}")
        typer.echo()
