"""``mitosis export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mitosis.export import Exported

__all__ = ["export"]


def export(
    model: Annotated[
        str, typer.Argument(help="Folder of a model, or the name of one that mitosis models lists.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="The ONNX file.", show_default=False)],
) -> None:
    """Write a model as an ONNX file that takes images as they are and gives probabilities.

    Input: uint8 [batch, height, width, 3], RGB. Output: float32 [batch, height, width]. All sizes are free. The model
    card is inside. The second stage, if there is one, goes into a file of its own (NAME.second.onnx), which takes
    squares round candidates; a gate, which only saves work, is left out.

    Example: mitosis export run --out model.onnx
    """
    from mitosis.checkpoints import load_model, load_verifier
    from mitosis.export import export_onnx, export_second
    from mitosis.models import find_model

    folder = find_model(model)
    network, card = load_model(folder)
    second = load_verifier(folder, card)
    _tell(export_onnx(network, card, out))
    if second is not None and card.verifier is not None:
        _tell(export_second(second, card.verifier, out.with_suffix(".second.onnx")))
        typer.echo(f"Final scores take both: verifier.combine is {card.verifier.settings.combine}; see the card.")
    if card.network.normalise_stain:
        typer.echo(
            "This model wants slides brought to the usual stain first (mitosis.stain); the file does not do that."
        )


def _tell(written: "Exported") -> None:
    if written.max_difference is None:
        exactness = "Not compared with PyTorch, as onnxruntime is not installed (pip install onnxruntime)."
    else:
        exactness = f"Largest difference of a probability from PyTorch: {written.max_difference:.1e}."
    typer.echo(f"ONNX opset {written.opset}, {written.size_bytes / 1e6:.2f} MB. {exactness}")
    typer.echo(str(written.path))
