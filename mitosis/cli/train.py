"""``mitosis train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitosis.cli.options import ConfigFile, Set

if TYPE_CHECKING:
    from mitosis.config import Config
    from mitosis.dry_run import Plan
    from mitosis.patches import PatchIndex

__all__ = ["train"]


def train(
    patches: Annotated[
        list[Path], typer.Argument(help="Folders that mitosis extract or mine wrote.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the run.", show_default=False)],
    val_cases: Annotated[
        str | None, typer.Option("--val-cases", help="Cases to validate on, with commas; wins over the index.")
    ] = None,
    leave_out: Annotated[
        str, typer.Option("--leave-out", help="Cases that are not shown to the network at all, with commas.")
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
    start: Annotated[
        str | None,
        typer.Option("--start", help="Folder or name of a model to begin with, to fine-tune it.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what an epoch will show; writes OUT/dry_run.json.")
    ] = False,
    show_batch: Annotated[
        bool, typer.Option("--show-batch", help="Only draw what the network will see; writes OUT/batch.png.")
    ] = False,
    config: ConfigFile = None,
    settings: Set = None,
) -> None:
    """Train a U-Net on patches; the best model by detection F1 on the validation cases is kept.

    Example: mitosis train patches --out run --val-cases A02 --set train.steps=2000

    On several GPUs or processors: torchrun --nproc-per-node 2 -m mitosis train patches --out run
    """
    from mitosis.config import load_config
    from mitosis.models import find_model
    from mitosis.patches import PatchIndex

    chosen = load_config(config, tuple(settings or ()))
    index = PatchIndex.join([PatchIndex.read(folder) for folder in patches])
    left_out = index.check_cases([case for case in leave_out.split(",") if case])
    index = index.where(lambda patch: patch.case_id not in left_out)
    if val_cases is not None:
        index = index.with_val_cases([case for case in val_cases.split(",") if case])
    if dry_run:
        _tell_plan(index, out, chosen)
    if show_batch:
        _show_batch(index, out, chosen)
    if not (dry_run or show_batch):
        _run(index, out, chosen, resume, find_model(start) if start is not None else None)


def _run(index: "PatchIndex", out: Path, config: "Config", resume: bool, start: Path | None) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from mitosis.distributed import Ranks
    from mitosis.splits import VAL
    from mitosis.training import train
    from mitosis.validation import Metrics

    is_first = Ranks.launched().is_first
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("loss {task.fields[loss]:.3f}  F1 {task.fields[f1]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True, disable=not is_first) as progress:
        task = progress.add_task("training", total=config.train.steps, loss=float("nan"), f1=float("nan"))

        def on_step(step: int, loss: float) -> None:
            progress.update(task, completed=step, loss=loss)

        def on_metrics(metrics: Metrics) -> None:
            progress.update(task, f1=metrics.f1)
            progress.console.print(
                f"step {metrics.step}: loss {metrics.loss:.3f}, F1 {metrics.f1:.3f} "
                f"(precision {metrics.precision:.3f}, recall {metrics.recall:.3f} at {metrics.threshold:.4f})",
                highlight=False,
            )

        card = train(index, out, config, resume=resume, start=start, on_step=on_step, on_metrics=on_metrics)
    if not is_first:
        return
    if not any(patch.split == VAL for patch in index.patches):
        typer.echo("Warning: no validation case, so F1 and threshold are those on training cases.", err=True)
    typer.echo(
        f"Best: F1 {card.validation['f1']:.3f} at step {card.validation['step']}, threshold {card.threshold:.4f}."
    )
    typer.echo(str(out / "model.safetensors"))


def _tell_plan(index: "PatchIndex", out: Path, config: "Config") -> None:
    from dataclasses import asdict

    from mitosis.dry_run import plan_run
    from mitosis.errors import PatchIndexError
    from mitosis.files import make_folder, write_json
    from mitosis.splits import TRAIN

    learned_from = index.where(lambda patch: patch.split == TRAIN)
    if not learned_from.patches:
        raise PatchIndexError(f"{index.folder}: no patch is of a training case. Choose other ones with --val-cases.")
    plan = plan_run(learned_from, config.train)
    write_json(make_folder(out) / "dry_run.json", asdict(plan))
    _print_plan(plan)
    typer.echo(str(out / "dry_run.json"))


def _print_plan(plan: "Plan") -> None:
    typer.echo(
        f"Sampler {plan.sampler}: {plan.steps} steps of {plan.batch_size} patches are {plan.epochs:g} epochs "
        f"of {plan.batches_an_epoch} batches."
    )
    columns = ("class", "domain", "patches", "a batch", "repeats", "at most", "seen in epoch", "seen in run")
    typer.echo("{:<13} {:<12} {:>7} {:>8} {:>8} {:>8} {:>13} {:>11}".format(*columns))
    for row in plan.rows:
        typer.echo(
            f"{row.kind:<13} {row.domain:<12} {row.n_patches:>7} {row.per_batch:>8.2f} {row.repeats:>8.2f} "
            f"{row.most_repeats:>8} {row.seen_in_epoch:>13.1%} {row.seen_in_run:>11.1%}"
        )
    if plan.epochs_until_all_seen:
        typer.echo(f"All patches without a figure have been shown after {plan.epochs_until_all_seen} epochs.")
    else:
        typer.echo("The run ends before all patches without a figure have been shown.")


def _show_batch(index: "PatchIndex", out: Path, config: "Config") -> None:
    import numpy as np

    from mitosis.contact_sheet import draw_contact_sheet
    from mitosis.dataset import PatchDataset
    from mitosis.files import make_folder
    from mitosis.sampling import PatchPool, epochs
    from mitosis.splits import TRAIN
    from mitosis.validation import check_patches

    check_patches(index, config)
    index = index.where(lambda patch: patch.split == TRAIN)
    dataset = PatchDataset(index, config.train, config.network)
    batch = next(epochs(PatchPool.of(index), config.train))[0]
    items = [dataset.make(draw) for draw in batch]
    draw_contact_sheet(
        make_folder(out) / "batch.png",
        np.stack([item.image for item in items]),
        np.stack([item.mask.astype(np.float32) for item in items]),
        [f"{item.kind}, case {index.patches[draw.row].case_id}" for item, draw in zip(items, batch, strict=True)],
        f"The first batch: sampler {config.train.sampler}, {len(items)} patches of {config.train.crop} px",
    )
    typer.echo(str(out / "batch.png"))
