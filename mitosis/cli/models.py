"""``mitosis models``."""

from typing import Annotated

import typer

__all__ = ["models"]


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models that come with the package. Their names go where --model takes a folder.

    Example: mitosis models
    """
    from mitosis.files import dump_json
    from mitosis.models import shipped_models

    found = shipped_models()
    if as_json:
        typer.echo(dump_json([model.to_dict() for model in found]), nl=False)
        return
    if not found:
        typer.echo("No model is shipped with this version. Train one with mitosis train and name its folder.")
        return
    rows = [("name", "µm/px", "parameters", "MB", "GFLOP/mm²", "threshold", "F1", "intended use")]
    for model in found:
        f1 = "-" if model.f1 is None else f"{model.f1:.3f}"
        size = f"{model.size_bytes / 1e6:.2f}"
        cost = f"{model.gflop_per_mm2:.0f}"
        numbers = (f"{model.mpp:g}", f"{model.n_parameters:,}", size, cost, f"{model.threshold:.4f}", f1)
        rows.append((model.name, *numbers, model.intended_use))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
