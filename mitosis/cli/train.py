"""``mitosis train``."""

from pathlib import Path
from typing import Annotated

import typer

from mitosis.cli.options import ConfigFile, Set

__all__ = ["train"]


def train(
    patches: Annotated[Path, typer.Argument(help="Folder that mitosis extract wrote.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder for the run.", show_default=False)],
    val_cases: Annotated[
        str | None, typer.Option("--val-cases", help="Cases to validate on, with commas; wins over the index.")
    ] = None,
    leave_out: Annotated[
        str, typer.Option("--leave-out", help="Cases that are not shown to the network at all, with commas.")
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
    config: ConfigFile = None,
    settings: Set = None,
) -> None:
    """Train a U-Net on patches; the best model by detection F1 on the validation cases is kept.

    Example: mitosis train patches --out run --val-cases A02 --set train.steps=2000
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from mitosis.config import load_config
    from mitosis.patches import PatchIndex
    from mitosis.training import Metrics
    from mitosis.training import train as run

    chosen = load_config(config, tuple(settings or ()))
    index = PatchIndex.read(patches)
    left_out = index.check_cases([case for case in leave_out.split(",") if case])
    index = index.where(lambda patch: patch.case_id not in left_out)
    if val_cases is not None:
        index = index.with_val_cases([case for case in val_cases.split(",") if case])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("loss {task.fields[loss]:.3f}  F1 {task.fields[f1]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("training", total=chosen.train.steps, loss=float("nan"), f1=float("nan"))

        def on_step(step: int, loss: float) -> None:
            progress.update(task, completed=step, loss=loss)

        def on_metrics(metrics: Metrics) -> None:
            progress.update(task, f1=metrics.f1)
            progress.console.print(
                f"step {metrics.step}: loss {metrics.loss:.3f}, F1 {metrics.f1:.3f} "
                f"(precision {metrics.precision:.3f}, recall {metrics.recall:.3f} at {metrics.threshold:.4f})",
                highlight=False,
            )

        card = run(index, out, chosen, resume=resume, on_step=on_step, on_metrics=on_metrics)
    typer.echo(
        f"Best: F1 {card.validation['f1']:.3f} at step {card.validation['step']}, threshold {card.threshold:.4f}."
    )
    typer.echo(str(out / "model.safetensors"))
