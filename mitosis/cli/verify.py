"""``mitosis verify``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitosis.cli.options import CasePattern, ConfigFile, Domain, Marks, MarksManifest, ModelName, Mpp, Set, Slides
from mitosis.cli.sources import marked_slides

if TYPE_CHECKING:
    from mitosis.checkpoints import VerifierCard
    from mitosis.cohort import SlideSource
    from mitosis.config import Config
    from mitosis.crops import CandidateSet

__all__ = ["verify"]


def verify(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", help="Folder for the model of both stages.", show_default=False)],
    slides: Slides = None,
    annotations: Marks = None,
    manifest: MarksManifest = None,
    mpp: Mpp = None,
    case_pattern: CasePattern = None,
    domain: Domain = "",
    config: ConfigFile = None,
    settings: Set = None,
) -> None:
    """Give a model a second stage: a classifier that looks again at each candidate and gives it its final score.

    It learns from the candidates on slides of the model's training cases; slides of its validation cases choose the
    threshold, others are left out. The same command goes on with what was stopped.

    Example: mitosis verify slides --annotations slides --model run --out run2
    """
    from mitosis.config import load_config
    from mitosis.errors import ConfigError
    from mitosis.models import find_model
    from mitosis.second_stage import add_second_stage

    chosen = load_config(config, tuple(settings or ()))
    if (out / "model.json").exists():
        raise ConfigError(f"{out}: holds a model already. Choose another --out.")
    given = {"case_pattern": case_pattern, "domain": domain, "mpp": mpp, "annotations": annotations}
    sources = marked_slides(slides, manifest, **given)
    first = find_model(model)
    candidates = _collect(sources, first, out / "candidates", chosen)

    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task("second stage", total=chosen.verifier.steps * chosen.verifier.members)
        card = add_second_stage(
            first,
            candidates,
            out,
            chosen,
            on_step=lambda name, step, _: progress.update(task, description=name, completed=step),
        )
    if card.verifier is not None:
        _tell(card.verifier)
    typer.echo(str(out / "model.json"))


def _collect(sources: "list[SlideSource]", model: Path, out: Path, config: "Config") -> "CandidateSet":
    from collections import Counter

    from rich.progress import Progress

    from mitosis.candidates import collect_candidates
    from mitosis.checkpoints import load_model
    from mitosis.inference import Model

    with Progress(transient=True) as progress:
        task = progress.add_task("slide", total=None)
        candidates = collect_candidates(
            sources,
            Model.of(*load_model(model), config.count),
            out,
            config,
            on_tiles=lambda name, done, n: progress.update(task, description=name, completed=done, total=n),
        )
    left_out = [source.slide_id for source in sources if source.slide_id not in candidates.slides]
    if left_out:
        typer.echo(f"Warning: left out, as they are of no case of the model: {', '.join(left_out)}.", err=True)
    n = Counter(candidate.label for candidate in candidates.candidates)
    n_missed = sum(not candidate.found for candidate in candidates.candidates)
    parts = ", ".join(f"{number} {label}" for label, number in sorted(n.items()))
    typer.echo(f"Candidates on {len(candidates.slides)} slides: {parts} ({n_missed} figures were not found).")
    return candidates


def _tell(card: "VerifierCard") -> None:
    before, after = (card.validation[name] for name in ("first_stage", "both_stages"))
    typer.echo(
        f"On {card.validation['on']} ({', '.join(card.validation['cases'])}): F1 {before['f1']:.3f} of the first stage "
        f"alone, {after['f1']:.3f} of both; average precision {before['average_precision']:.3f} and "
        f"{after['average_precision']:.3f}; threshold {card.threshold:.4f}."
    )
    if "gate" in card.validation:
        shares = card.validation["gate"]
        typer.echo(
            f"The gate lets {shares['passed']:.1%} of the candidates through, {shares['counted_passed']:.1%} of those "
            "that would count."
        )
    if card.validation["on"] != "validation cases":
        typer.echo(
            "The first stage has learned from these cases, so alone it looks better here than on new slides: judge the "
            "second stage by slides of validation cases."
        )
    elif after["f1"] <= before["f1"]:
        typer.echo("Warning: the second stage does not pay here. Count with --set count.verify=false.", err=True)
