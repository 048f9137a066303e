"""``mitosis count``."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mitosis.cli.options import CasePattern, ConfigFile, Domain, Mpp, Set, Workers
from mitosis.cli.sources import named_slides

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitosis.cohort_count import Progress, SlideResult
    from mitosis.config import CountConfig
    from mitosis.counting import CountReport

__all__ = ["count"]


def count(
    slides: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Slide files, folders that hold them, or patterns such as 'slides/*.svs'.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Folder of a model, or the name of one that mitosis models lists.")
    ] = "default",
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("results"),
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            help="CSV with the columns slide, case, domain, mpp, roi instead of SLIDES; options serve rows that say "
            "nothing.",
        ),
    ] = None,
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace counts that other settings or another model made.")
    ] = False,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler", help="Address or scheduler file of a dask.distributed cluster whose workers do the work."
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Start so many worker processes here to do the work.")
    ] = None,
    config: ConfigFile = None,
    settings: Set = None,
    workers: Workers = None,
) -> None:
    """Count mitotic figures on slides.

    The same command given again goes on where it was stopped: slides that are done are not counted again.

    Exit code: 0 all well, 1 a slide failed, 3 finished but parts of a slide could not be read, 2 wrong usage.

    Example: mitosis count slide.svs
    """
    if scheduler is not None and processes is not None:
        raise typer.BadParameter("--scheduler and --processes: choose one")
    from mitosis.cohort_count import count_slides
    from mitosis.inference import Model
    from mitosis.models import find_model
    from mitosis.threads import share_heap

    given: dict[str, object] = {
        "hotspot_mm2": hotspot_mm2,
        "threshold": threshold,
        "engine": engine,
        "workers": workers,
        "rules": json.dumps(rule) if rule else None,
    }
    chosen = _settings(config, settings or [], given)
    sources = named_slides(slides, manifest, case_pattern=case_pattern, domain=domain, mpp=mpp)
    share_heap()
    loaded = Model.load(find_model(model), chosen)
    results = []
    with _workers(scheduler, processes) as who, _display() as (tell, show):
        for result in count_slides(sources, loaded, out, chosen, overwrite=overwrite, on_progress=show, **who):
            results.append(result)
            tell(result)
    typer.echo(str(out / "summary.csv"))
    statuses = {result.status for result in results}
    raise typer.Exit(1 if "failed" in statuses else 3 if "degraded" in statuses else 0)


def _settings(path: Path | None, assignments: list[str], given: dict[str, object]) -> "CountConfig":
    """Settings of the file, then those of ``--set``, then those of other options."""
    from mitosis.config import load_config
    from mitosis.grading import find_rule

    extra = tuple(f"count.{key}={value}" for key, value in given.items() if value is not None)
    chosen = load_config(path, (*assignments, *extra)).count
    for name in chosen.rules:
        find_rule(name)  # before a slide is read
    return chosen


@contextmanager
def _workers(scheduler: str | None, processes: int | None) -> Iterator[dict[str, Any]]:
    """Who looks at the tiles, as arguments of `count_slides`."""
    if scheduler is None and processes is None:
        yield {}
        return
    from mitosis.cluster import AHEAD, open_cluster

    with open_cluster(scheduler, processes or 1) as cluster:
        if not cluster.n_workers:
            typer.echo(f"No worker at {scheduler} yet; waiting for the first.", err=True)
        yield {"find": cluster.find, "judge": cluster.judge, "ahead": AHEAD}


@contextmanager
def _display() -> "Iterator[tuple[Callable[[SlideResult], None], Callable[[Progress], None]]]":
    """A bar of slides with mm²/s and the time left: what says how a slide ended, and what moves the bar."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    with Bar(*columns, transient=True) as bar:
        task, speed = bar.add_task("slides", total=None, state=""), _Speed()

        def tell(result: "SlideResult") -> None:
            if result.error:
                typer.echo(f"Error: {result.error}", err=True)
            else:
                bar.console.print(_outcome(result), highlight=False, markup=False, soft_wrap=True)

        def show(now: "Progress") -> None:
            bar.update(
                task, description=now.slide, total=now.n_slides, completed=now.n_done + now.part, state=speed.state(now)
            )

        yield tell, show


class _Speed:
    """mm²/s and time left; only slides that this run counts have a say."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def state(self, now: "Progress") -> str:
        """Slides done of all, mm²/s, time left."""
        counted = now.n_done - now.n_before + now.part
        if not counted:
            self.start = time.monotonic()
        passed = time.monotonic() - self.start
        text = f"{now.n_done}/{now.n_slides} slides"
        if not counted or not passed:
            return text
        left = round(passed / counted * (now.n_slides - now.n_done - now.part))
        return f"{text}, {now.counted_mm2 / passed:.2f} mm²/s, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"


def _outcome(result: "SlideResult") -> str:
    if result.report:
        return _sentence(result.report)
    n = result.to_dict()["mitotic_count"]
    return f"{result.name}: counted before, {n} mitotic figures in all."


def _sentence(report: "CountReport") -> str:
    if report.hotspot is None:
        return f"{report.slide}: no tissue found, nothing counted."
    from mitosis.counting import area_text

    hotspot = report.hotspot
    low, high = hotspot.interval
    damaged = f", {area_text(report.excluded_mm2)} mm² unreadable" if report.status == "degraded" else ""
    true = f"; true count {report.true_count.low} to {report.true_count.high} with 95 %" if report.true_count else ""
    where = " in the region of interest" if report.region_sha256 else ""
    grades = "".join(f" {grade}. [{grade.rule.citation}]" for grade in report.grades)
    return (
        f"{report.slide}: {hotspot.mitotic_count} mitotic figures in the hotspot of {area_text(hotspot.area_mm2)} mm² "
        f"(95 % interval {low:.0f} to {high:.0f}{true}); "
        f"{report.mitotic_count} in {area_text(report.tissue_mm2)} mm² of tissue{where}{damaged}.{grades}"
    )
