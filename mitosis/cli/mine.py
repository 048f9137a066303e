"""``mitosis mine``."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitosis.cli.options import CasePattern, ConfigFile, Domain, Marks, MarksManifest, ModelName, Mpp, Set, Slides
from mitosis.cli.sources import marked_slides

if TYPE_CHECKING:
    from mitosis.cohort import SlideSource
    from mitosis.config import Config
    from mitosis.mining import MiningResult
    from mitosis.patches import PatchIndex

__all__ = ["mine"]


def mine(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", help="Folder for the mined patches.", show_default=False)],
    patches: Annotated[
        Path | None,
        typer.Option("--patches", help="Folder that mitosis extract wrote; its extract settings win over others."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=1, help="So often mine, then train on PATCHES and all mined: OUT/round-1, ..."),
    ] = None,
    review: Annotated[
        Path | None, typer.Option("--review", help="JSON of decisions; only what it calls a look-alike is kept.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Least score of a false positive. Default: the model card's.")
    ] = None,
    max_per_slide: Annotated[
        int, typer.Option("--max-per-slide", min=1, help="Most patches of a slide; the highest scores are kept.")
    ] = 50,
    val_cases: Annotated[
        str | None, typer.Option("--val-cases", help="With --rounds: as in mitosis train.", show_default=False)
    ] = None,
    leave_out: Annotated[
        str, typer.Option("--leave-out", help="With --rounds: as in mitosis train.", show_default=False)
    ] = "",
    fine_tune: Annotated[
        bool,
        typer.Option("--fine-tune", help="With --rounds: each begins with the weights of the last, not random ones."),
    ] = False,
    slides: Slides = None,
    annotations: Marks = None,
    manifest: MarksManifest = None,
    mpp: Mpp = None,
    case_pattern: CasePattern = None,
    domain: Domain = "",
    config: ConfigFile = None,
    settings: Set = None,
) -> None:
    """Cut patches of what a model wrongly takes for mitotic figures, for the next model to learn from.

    Only slides of the model's training cases are mined, and nothing within 15 µm of a mark. The same command goes on
    with the round that was stopped.

    Example: mitosis mine slides --annotations slides --model run --patches patches --out mined
    """
    if rounds is not None and (patches is None or review is not None):
        raise typer.BadParameter("--rounds needs --patches and goes without --review")
    if rounds is None and (val_cases is not None or leave_out or fine_tune):
        raise typer.BadParameter("--val-cases, --leave-out and --fine-tune go with --rounds")
    from mitosis.config import load_config
    from mitosis.models import find_model

    more = () if threshold is None else (f"count.threshold={threshold}",)
    chosen = load_config(config, (*(settings or ()), *more))
    if patches is not None:
        chosen = chosen.model_copy(update={"extract": load_config(patches / "settings.yaml").extract})
    given = {"case_pattern": case_pattern, "domain": domain, "mpp": mpp, "annotations": annotations}
    sources = marked_slides(slides, manifest, **given)
    mine_into = partial(_mine_into, sources, chosen, max_per_slide, review)
    if rounds is None or patches is None:
        mine_into(out, find_model(model), [])
    else:
        choose, start = _chooser(val_cases, leave_out), find_model(model)
        _mine_and_train(mine_into, choose, start, patches, out, chosen, rounds, fine_tune)


def _mine_into(
    sources: "Sequence[SlideSource]",
    config: "Config",
    max_per_slide: int,
    review: Path | None,
    out: Path,
    model: Path,
    earlier: Sequence[Path],
) -> int:
    """Mine with a model and say what came of it; gives the number of patches."""
    from rich.progress import Progress

    from mitosis.checkpoints import load_model
    from mitosis.inference import Model
    from mitosis.mining import mine

    with Progress(transient=True) as progress:
        task = progress.add_task("slide", total=None)
        result = mine(
            sources,
            Model.of(*load_model(model), config.count),
            out,
            config,
            max_per_slide=max_per_slide,
            review=review,
            earlier=earlier,
            on_tiles=lambda name, done, n: progress.update(task, description=name, completed=done, total=n),
        )
    return _tell(result, out)


def _tell(result: "MiningResult", folder: Path) -> int:
    """Say what came of the slides; gives the number of patches."""
    if result.left_out:
        typer.echo(f"Warning: left out, as the model did not learn from them: {', '.join(result.left_out)}.", err=True)
    n = {name: sum(counts[name] for counts in result.slides.values()) for name in next(iter(result.slides.values()))}
    parts = [
        f"{n[name]} {what}"
        for name, what in (
            ("n_on_figures", "on figures"),
            ("n_near_marks", "too near a mark"),
            ("n_over_limit", "over the limit a slide"),
            ("n_judged_figure", "judged figures"),
            ("n_unsure", "judged unsure or not at all"),
            ("n_unreadable", "where the slide file is damaged"),
        )
        if n[name]
    ]
    typer.echo(
        f"{n['n_mined']} patches of {len(result.slides)} slides{' (done before)' if result.reused else ''}: "
        f"of {n['n_found']} detections {', '.join([*parts, 'the others false positives'])}."
    )
    if result.figures_to_add:
        typer.echo("Judged mitotic figures: add these marks (slide, x, y in level-0 px), then extract and mine anew.")
    for figure in result.figures_to_add:
        typer.echo(f"{figure['slide_id']}  {figure['x']:.1f}  {figure['y']:.1f}")
    typer.echo(str(folder / "index.csv"))
    return n["n_mined"]


def _chooser(val_cases: str | None, leave_out: str) -> "Callable[[PatchIndex], PatchIndex]":
    """The function that leaves cases out and chooses those for validation."""

    def choose(index: "PatchIndex") -> "PatchIndex":
        left_out = index.check_cases([case for case in leave_out.split(",") if case])
        index = index.where(lambda patch: patch.case_id not in left_out)
        return index if val_cases is None else index.with_val_cases([case for case in val_cases.split(",") if case])

    return choose


def _mine_and_train(
    mine_into: Callable[[Path, Path, Sequence[Path]], int],
    choose: "Callable[[PatchIndex], PatchIndex]",
    model: Path,
    patches: Path,
    out: Path,
    config: "Config",
    rounds: int,
    fine_tune: bool,
) -> None:
    """Round after round; what an earlier run finished is found finished by mining and training themselves."""
    from mitosis.errors import PatchIndexError
    from mitosis.patches import PatchIndex
    from mitosis.validation import check_patches

    base, mined = PatchIndex.read(patches), list[Path]()
    check_patches(choose(base), config)
    if out.is_dir() and not all(path.name.startswith("round-") for path in out.iterdir()):
        raise PatchIndexError(f"{out}: holds something other than rounds of mining. Choose another --out.")
    for folder in (out / f"round-{number}" for number in range(1, rounds + 1)):
        if not mine_into(folder / "patches", model, mined):
            typer.echo(f"{folder.name}: nothing new to learn from, so the model stays as it is.")
            break
        mined.append(folder / "patches")
        index = choose(PatchIndex.join([base, *(PatchIndex.read(path) for path in mined)]))
        _train(index, folder / "model", config, folder.name, model if fine_tune else None)
        model = folder / "model"
    typer.echo(str(model))


def _train(index: "PatchIndex", out: Path, config: "Config", name: str, start: Path | None) -> None:
    from rich.progress import Progress

    from mitosis.training import train

    with Progress(transient=True) as progress:
        task = progress.add_task("training", total=config.train.steps)
        resume = (out / "settings.yaml").exists()
        card = train(
            index,
            out,
            config,
            resume=resume,
            start=start,
            on_step=lambda step, _: progress.update(task, completed=step),
        )
    typer.echo(f"{name}: F1 {card.validation['f1']:.3f}, threshold {card.threshold:.4f}.")
