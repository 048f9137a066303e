"""``mitosis count``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitosis.cli.options import CasePattern, ConfigFile, Domain, ModelName, Mpp, Set, Workers

if TYPE_CHECKING:
    from mitosis.counting import CountReport

__all__ = ["count"]


def count(
    slides: Annotated[list[Path], typer.Argument(help="Slide files, or folders that hold them.", show_default=False)],
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.", show_default=False)],
    mpp: Mpp = None,
    case_pattern: CasePattern = None,
    domain: Domain = "",
    hotspot_mm2: Annotated[
        float | None, typer.Option("--hotspot-mm2", help="Area of the hotspot, mm². Default: 2.37.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Least score that counts. Default: the model card's.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="auto, openvino, onnxruntime or torch. Default: auto, the fastest.")
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="Grading rule, e.g. nottingham-density. May be repeated. Default: no grade."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
    config: ConfigFile = None,
    settings: Set = None,
    workers: Workers = None,
) -> None:
    """Count mitotic figures on slides.

    Exit code: 0 all well, 1 a slide failed, 3 finished but parts of a slide could not be read, 2 wrong usage.

    Example: mitosis count slide.svs --model run --out results
    """
    from rich.progress import Progress

    from mitosis.cohort import find_sources
    from mitosis.config import load_config
    from mitosis.grading import find_rule
    from mitosis.inference import Model, count_slides
    from mitosis.models import find_model

    given: dict[str, object] = {
        "hotspot_mm2": hotspot_mm2,
        "threshold": threshold,
        "engine": engine,
        "workers": workers,
    }
    if rule:
        given["rules"] = json.dumps(rule)
    extra = tuple(f"count.{key}={value}" for key, value in given.items() if value is not None)
    chosen = load_config(config, (*(settings or ()), *extra)).count
    for name in chosen.rules:
        find_rule(name)  # before a slide is read
    sources = find_sources(slides, case_pattern=case_pattern, domain=domain, mpp=mpp)
    loaded = Model.load(find_model(model), chosen)
    with Progress(transient=True) as progress:
        task = progress.add_task("slide", total=None)

        def on_tiles(name: str, done: int, total: int) -> None:
            progress.update(task, description=name, completed=done, total=total)

        rows = []
        for row in count_slides(sources, loaded, out, chosen, overwrite=overwrite, on_tiles=on_tiles):
            rows.append(row)
            if row.report is None:
                typer.echo(f"Error: {row.error}", err=True)
            else:
                progress.console.print(_sentence(row.report), highlight=False, markup=False, soft_wrap=True)
    typer.echo(str(out / "summary.csv"))
    statuses = {row.status for row in rows}
    raise typer.Exit(1 if "failed" in statuses else 3 if "degraded" in statuses else 0)


def _sentence(report: "CountReport") -> str:
    if report.hotspot is None:
        return f"{report.slide}: no tissue found, nothing counted."
    hotspot = report.hotspot
    low, high = hotspot.interval
    damaged = f", {report.excluded_mm2:.2f} mm² unreadable" if report.status == "degraded" else ""
    true = f"; true count {report.true_count.low} to {report.true_count.high} with 95 %" if report.true_count else ""
    grades = "".join(f" {grade}. [{grade.rule.citation}]" for grade in report.grades)
    return (
        f"{report.slide}: {hotspot.mitotic_count} mitotic figures in the hotspot of {hotspot.area_mm2:.2f} mm² "
        f"(95 % interval {low:.0f} to {high:.0f}{true}); "
        f"{report.mitotic_count} in {report.tissue_mm2:.2f} mm² of tissue{damaged}.{grades}"
    )
