"""``mitosis export``."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    model: Annotated[
        str, typer.Argument(help="Folder of a model, or the name of one that mitosis models lists.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="The ONNX file.", show_default=False)],
) -> None:
    """Write a model as one ONNX file that takes images as they are and gives probabilities.

    Input: uint8 [batch, height, width, 3], RGB. Output: float32 [batch, height, width]. All sizes are free. The model
    card is inside.

    Example: mitosis export run --out model.onnx
    """
    from mitosis.checkpoints import load_model
    from mitosis.export import export_onnx
    from mitosis.models import find_model

    network, card = load_model(find_model(model))
    written = export_onnx(network, card, out)
    if written.max_difference is None:
        exactness = "Not compared with PyTorch, as onnxruntime is not installed (pip install onnxruntime)."
    else:
        exactness = f"Largest difference of a probability from PyTorch: {written.max_difference:.1e}."
    typer.echo(f"ONNX opset {written.opset}, {written.size_bytes / 1e6:.2f} MB. {exactness}")
    if card.network.normalise_stain:
        typer.echo(
            "This model wants slides brought to the usual stain first (mitosis.stain); the file does not do that."
        )
    if card.verifier:
        typer.echo("Warning: the second stage of this model is not exported, so its thresholds do not hold.", err=True)
    typer.echo(str(out))
