"""``mitosis evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["evaluate"]


def evaluate(
    results: Annotated[Path, typer.Argument(help="Folder that mitosis count wrote.", show_default=False)],
    annotations: Annotated[Path, typer.Argument(help="File or folder of marks.", show_default=False)],
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Least score that counts. Default: as counted.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare detections with expert marks: one-to-one within 7.5 µm; precision, recall, F1.

    Example: mitosis evaluate results fields/
    """
    raise NotImplementedError
