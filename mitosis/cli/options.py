"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "CasePattern",
    "ConfigFile",
    "Domain",
    "Marks",
    "MarksManifest",
    "ModelName",
    "Mpp",
    "Set",
    "Slides",
    "Workers",
]

Mpp = Annotated[
    float | None,
    typer.Option("--mpp", help="µm/px of the slides at full size; wins over the files (40x is about 0.25, 20x 0.5)."),
]
CasePattern = Annotated[
    str | None,
    typer.Option(
        "--case-pattern",
        help="Regular expression that finds the case in a slide's name, e.g. '^A\\d\\d'. Default: a slide is a case.",
    ),
]
Slides = Annotated[
    list[Path] | None, typer.Argument(help="Slide files, or folders that hold them.", show_default=False)
]
Marks = Annotated[Path | None, typer.Option("--annotations", help="File or folder of marks.", show_default=False)]
MarksManifest = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        help="CSV with the columns slide, case, domain, mpp, annotations, roi instead of SLIDES; options serve rows "
        "that say nothing.",
    ),
]
Domain = Annotated[str, typer.Option("--domain", help="Scanner, laboratory or tumour, noted with each slide.")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model", help="Folder of a model, or the name of one that mitosis models lists.", show_default=False
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="One setting, e.g. --set train.steps=500. May be repeated."
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="How many work side by side.")]
