"""``mitosis lint``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitosis.cli.options import Mpp

if TYPE_CHECKING:
    from mitosis.lint import Finding

__all__ = ["lint"]

_RANK = {"error": 0, "warning": 1, "note": 2}


def lint(
    annotations: Annotated[Path, typer.Argument(help="File or folder of marks.", show_default=False)],
    slides: Annotated[list[Path], typer.Argument(help="Slide files, or folders that hold them.", show_default=False)],
    mpp: Mpp = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find what is wrong with marks before anybody trains on them or scores with them.

    Exit code: 0 no error (there may be warnings), 1 errors, 2 wrong usage.

    Example: mitosis lint marks/ slides/
    """
    from rich.console import Console
    from rich.progress import Progress

    from mitosis.cohort import find_sources
    from mitosis.files import dump_json
    from mitosis.lint import lint as run

    sources = find_sources(slides, mpp=mpp, annotations=annotations)
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("slides", total=len(sources))
        findings = run(annotations, sources, lambda _: progress.advance(task))
    names = [source.slide_id for source in sources]
    if as_json:
        typer.echo(dump_json(_to_dict(findings, names)), nl=False)
    else:
        typer.echo("\n".join([*_lines(findings, names), _summary(findings, len(names))]))
    raise typer.Exit(1 if _n(findings, "error") else 0)


def _n(findings: Iterable["Finding"], severity: str) -> int:
    return sum(finding.severity == severity for finding in findings)


def _to_dict(findings: Sequence["Finding"], names: Sequence[str]) -> dict[str, object]:
    from dataclasses import asdict

    counts = {f"n_{severity}s": _n(findings, severity) for severity in ("error", "warning", "note")}
    return {"slides": list(names), **counts, "findings": [asdict(finding) for finding in findings]}


def _lines(findings: Sequence["Finding"], names: Sequence[str]) -> list[str]:
    """Matters of the whole folder, then those that several slides share, then slide by slide; errors first."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for slides, finding in _shared(findings):
        groups.setdefault(slides, []).append(finding)
    order = {name: number for number, name in enumerate(names)}
    lines = []
    for slides in sorted(groups, key=lambda slides: (slides != ("",), len(slides) == 1, order.get(slides[0], 0))):
        lines.append(_heading(slides))
        for finding in sorted(groups[slides], key=lambda finding: _RANK[finding.severity]):
            lines += [f"  {finding.severity}: {finding.message} [{finding.check}]", f"    {finding.advice}"]
    return lines


def _heading(slides: tuple[str, ...]) -> str:
    from mitosis.lint.finding import listing

    return "All slides" if slides == ("",) else f"{len(slides)} slides: {listing(slides)}" if slides[1:] else slides[0]


def _shared(findings: Sequence["Finding"]) -> list[tuple[tuple[str, ...], "Finding"]]:
    """Each different thing that is said, with the slides of which it is said."""
    said: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        said.setdefault((finding.check, finding.severity, finding.message, finding.advice), []).append(finding)
    return [(tuple(finding.slide for finding in same), same[0]) for same in said.values()]


def _summary(findings: Sequence["Finding"], n_slides: int) -> str:
    counts = ((_n(findings, severity), severity) for severity in ("error", "warning"))
    told = ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for n, severity in counts)
    return f"{told} in {n_slides} slide{'' if n_slides == 1 else 's'}"
