"""``mitosis extract``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitosis.cli.options import CasePattern, ConfigFile, Domain, MarksManifest, Mpp, Set, Slides, Workers
from mitosis.cli.sources import named_slides

if TYPE_CHECKING:
    from mitosis.extraction import SlideRecord

__all__ = ["extract"]


def extract(
    slides: Slides = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the patches.", show_default=False)] = ...,  # type: ignore[assignment]  # typer: required
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", help="File or folder of marks. Without it patches have no masks."),
    ] = None,
    manifest: MarksManifest = None,
    mpp: Mpp = None,
    case_pattern: CasePattern = None,
    domain: Domain = "",
    config: ConfigFile = None,
    settings: Set = None,
    workers: Workers = None,
) -> None:
    """Cut patches and masks for training from slides and expert marks.

    Example: mitosis extract fields/ --annotations fields/ --case-pattern '^A\\d\\d' --mpp 0.2456 --out patches
    """
    import os
    import sys

    from rich.progress import track

    from mitosis.config import load_config
    from mitosis.extraction import extract_patches

    chosen = load_config(config, tuple(settings or ())).extract
    given = {"case_pattern": case_pattern, "domain": domain, "mpp": mpp, "annotations": annotations}
    sources = named_slides(slides, manifest, **given)
    records = extract_patches(sources, out, chosen, (os.cpu_count() or 1) if workers is None else workers)
    done = list(track(records, "slides", total=len(sources), disable=not sys.stderr.isatty()))
    raise typer.Exit(_tell(done, out))


def _tell(done: "list[SlideRecord]", out: Path) -> int:
    """Say what came of the slides; gives the exit code."""
    failed = [record for record in done if record.error]
    for record in failed:
        typer.echo(f"Error: {record.error}", err=True)
    for what, number in (
        ("marks outside their slide or its region of interest were left out", sum(record.n_outside for record in done)),
        ("marks of other classes were left out", sum(record.n_ignored for record in done)),
        ("patches were left out because the slide file is damaged there", sum(record.n_unreadable for record in done)),
    ):
        if number:
            typer.echo(f"Warning: {number} {what}.", err=True)
    if failed:
        typer.echo(
            f"{len(failed)} of {len(done)} slides failed, so no index was written. Run again to go on.", err=True
        )
        return 1
    patches = [patch for record in done for patch in record.patches]
    tiles = [patch for patch in patches if patch.on_grid]
    reused = sum(record.reused for record in done)
    typer.echo(
        f"{len(patches)} patches of {len(done)} slides ({reused} done before): {len(tiles)} tiles, "
        f"{sum(p.n_mitotic for p in tiles)} mitotic figures, {sum(p.n_non_mitotic for p in tiles)} look-alikes."
    )
    typer.echo(str(out / "index.csv"))
    return 3 if any(record.n_unreadable for record in done) else 0
