"""``mitosis evaluate``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitosis.cli.options import CasePattern, Mpp

if TYPE_CHECKING:
    from mitosis.counted import ScoredSlide
    from mitosis.evaluation_page import EvaluationReport
    from mitosis.gallery import Mistake
    from mitosis.scorecard import Row

__all__ = ["evaluate"]


class Choice(StrEnum):
    """What a threshold is chosen for."""

    F1 = "f1"
    COUNT = "count"


def evaluate(
    results: Annotated[Path, typer.Argument(help="Folder that mitosis count wrote.", show_default=False)],
    annotations: Annotated[Path, typer.Argument(help="File or folder of marks.", show_default=False)],
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Least score that counts. Default: as counted.")
    ] = None,
    choose: Annotated[
        Choice | None,
        typer.Option("--choose", help="Score each case at the threshold chosen on all other cases: best F1, or count."),
    ] = None,
    protocol: Annotated[
        str, typer.Option("--protocol", help="Scoring rule of tables and intervals; the others are given beside it.")
    ] = "optimal",
    readers: Annotated[
        list[str] | None,
        typer.Option("--reader", metavar="NAME=PATH", help="Marks of another reader, scored too. May be repeated."),
    ] = None,
    slides: Annotated[
        list[Path] | None,
        typer.Option("--slides", help="Slides, or a folder of them, for pictures of the worst mistakes."),
    ] = None,
    mpp: Mpp = None,
    case_pattern: CasePattern = None,
    allow_seen: Annotated[
        str, typer.Option("--allow-seen", help="Cases, by name and comma, to score though the model learned from them.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the files. Default: RESULTS.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare detections with expert marks: precision, recall, F1 with intervals, curves, agreement of counts.

    All counted slides below RESULTS are scored, one to one within 7.5 µm unless another protocol is chosen. Writes
    evaluation.json, evaluation.csv and evaluation.html.

    Example: mitosis evaluate results fields/ --case-pattern '^A\\d\\d' --slides fields/
    """
    from mitosis.errors import ConfigError
    from mitosis.evaluation_report import to_json, write_evaluation
    from mitosis.matching import PROTOCOLS

    if threshold is not None and choose is not None:
        raise typer.BadParameter("give either --threshold or --choose")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold {threshold:g}: scores lie between 0 and 1.")
    if protocol not in PROTOCOLS:
        raise ConfigError(f"--protocol {protocol}: unknown. Known: {', '.join(PROTOCOLS)}.")
    scored = _read(results, annotations, case_pattern)
    notes = _guard(scored, [case for case in allow_seen.split(",") if case]) + _failed(results)
    thresholds, how = _thresholds(scored, threshold, choose, PROTOCOLS[protocol].radius_um)
    report = _report(scored, thresholds, how, protocol, _read_readers(scored, readers or []), notes)
    report = _with_crops(report, slides, mpp)
    paths = write_evaluation(out or results, report)
    if as_json:
        typer.echo(to_json(report), nl=False)
        return
    _print_table(report)
    typer.echo(str(paths["html"]))


def _read(results: Path, annotations: Path, case_pattern: str | None) -> "list[ScoredSlide]":
    from mitosis.cohort import case_of
    from mitosis.counted import read_scores
    from mitosis.errors import ConfigError

    folders = sorted(path.parent for path in results.glob("**/count.json"))
    if not folders:
        raise ConfigError(f"{results}: holds no count.json. Name the folder that mitosis count wrote with --out.")
    scored = []
    for folder in folders:
        slide = read_scores(folder, annotations)
        if slide.n_outside:
            typer.echo(
                f"Warning: {slide.scores.slide}: {slide.n_outside} marks lie outside the slide, or its region of "
                "interest, and are left out.",
                err=True,
            )
        if case_pattern is not None:
            case_id = case_of(slide.scores.slide, case_pattern)
            slide = slide._replace(scores=replace(slide.scores, case_id=case_id))
        scored.append(slide)
    names = [slide.scores.slide for slide in scored]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{results}: slide {twice[0]} was counted more than once below. Name one of the folders.")
    return scored


def _guard(scored: "Sequence[ScoredSlide]", allowed: Sequence[str]) -> list[str]:
    """Refuse cases that the model learned from, unless they are allowed by name; gives the notes to print."""
    from mitosis.errors import LeakageError

    seen = {
        slide.scores.case_id
        for slide in scored
        if slide.seen_in_training or slide.scores.case_id in slide.training_cases
    }
    refused = sorted(seen - set(allowed))
    if refused:
        raise LeakageError(
            f"The model learned from {', '.join(refused)}, so its score there says nothing about new slides. "
            f"Count others, or add --allow-seen {','.join(refused)} and say so with the figures."
        )
    return [f"The model learned from {', '.join(sorted(seen))}: no measure of new slides."] if seen else []


def _failed(results: Path) -> list[str]:
    """A note on slides whose count failed: nothing is known of them, which the figures do not show."""
    from mitosis.counted import failed_slides

    failed = sorted({name for path in results.glob("**/summary.csv") for name in failed_slides(path)})
    if not failed:
        return []
    note = f"Not scored, as their count failed: {', '.join(failed)}."
    typer.echo(f"Warning: {note}", err=True)
    return [note]


def _thresholds(
    scored: "Sequence[ScoredSlide]", threshold: float | None, choose: Choice | None, radius_um: float
) -> tuple[dict[str, float], str]:
    """The threshold of each slide, and where it comes from."""
    from mitosis.evaluation import cross_thresholds

    if choose is not None:
        of_case = cross_thresholds([slide.scores for slide in scored], radius_um, choose.value)
        what = "best F1" if choose is Choice.F1 else "count without bias"
        how = f"Each case is scored at the threshold of {what} on all other cases."
        return {slide.scores.slide: of_case[slide.scores.case_id] for slide in scored}, how
    if threshold is not None:
        return {slide.scores.slide: threshold for slide in scored}, f"The threshold {threshold:g} was given."
    return {slide.scores.slide: slide.threshold for slide in scored}, "Each slide is scored as it was counted."


def _read_readers(
    scored: "Sequence[ScoredSlide]", readers: Sequence[str]
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Marked figures of each reader, slide by slide; slides that a reader did not look at are absent."""
    from mitosis.annotations import Label, load_annotations
    from mitosis.errors import AnnotationError, ConfigError

    found = dict[str, dict[str, list[tuple[float, float]]]]()
    for reader in readers:
        name, equals, path = reader.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--reader {reader}: write NAME=PATH, for instance --reader 'pathologist 2=marks2'.")
        if name == "model" or name in found:
            raise ConfigError(f"--reader {reader}: the name {name!r} is taken. Choose another.")
        found[name] = {}
        for slide in scored:
            scores = slide.scores
            marks = load_annotations(Path(path), scores.slide, slide.dimensions, scores.slide_mpp, missing_ok=True)
            if marks is not None:
                seen = slide.region.holding(marks.annotations) if slide.region else marks.annotations
                figures = [(mark.x, mark.y) for mark in seen if mark.label is Label.MITOTIC_FIGURE]
                found[name][scores.slide] = figures
        if not found[name]:
            raise AnnotationError(f"--reader {reader}: no marks for any of the counted slides. Check the path.")
    return found


def _report(
    scored: "Sequence[ScoredSlide]",
    thresholds: Mapping[str, float],
    how: str,
    protocol: str,
    readers: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    notes: Sequence[str],
) -> "EvaluationReport":
    from mitosis.evaluation_page import EvaluationReport
    from mitosis.gallery import worst_mistakes
    from mitosis.hotspot_agreement import compare_hotspots
    from mitosis.matching import PROTOCOLS
    from mitosis.ranking import RankedCandidates
    from mitosis.scorecard import score_slides

    scores, rule = [slide.scores for slide in scored], PROTOCOLS[protocol]
    ranked = RankedCandidates.of(scores, rule.radius_um)
    misses, alarms = worst_mistakes(scores, thresholds, radius_um=rule.radius_um)
    return EvaluationReport(
        score_slides(scores, thresholds, rule, readers),
        how,
        {"true": ranked.score[ranked.gained].tolist(), "false": ranked.score[~ranked.gained].tolist()},
        misses,
        alarms,
        [compare_hotspots(s.scores, s.dimensions, s.hotspot) for s in scored if s.hotspot],
        notes,
    )


def _with_crops(report: "EvaluationReport", slides: list[Path] | None, mpp: float | None) -> "EvaluationReport":
    from mitosis.cohort import find_sources
    from mitosis.gallery import crop

    if not slides:
        return replace(report, notes=[*report.notes, "Name the slides with --slides to see the mistakes."])
    sources = {source.slide_id: source for source in find_sources(slides, mpp=mpp)}
    cropped: list[Sequence[Mistake]] = [crop(mistakes, sources) for mistakes in (report.misses, report.alarms)]
    return replace(report, misses=cropped[0], alarms=cropped[1])


def _print_table(report: "EvaluationReport") -> None:
    card = report.card
    groups = [card.slides, card.cases if len(card.cases) < len(card.slides) else ()]
    groups += [card.domains if len(card.domains) > 1 else (), (card.pooled,), card.readers]
    rows = [row for group in groups for row in group]
    width = max(len(row.name) for row in rows)
    typer.echo(f"{'':<{width}}    TP    FP    FN  precision  recall     F1  95 % interval")
    for group in groups:
        for row in group:
            typer.echo(_line(row, width))
        if group and group is not groups[-1]:
            typer.echo("")
    curve, protocol, plain = card.curve, card.protocol, card.pooled.one_to_one
    precision = f"{curve.average_precision:.3f}" if curve.n_figures else "–"
    typer.echo(f"Average precision {precision}. {report.how}")
    others = ", ".join(f"{name} {result.f1:.3f}" for name, result in card.protocols.items() if name != protocol.name)
    typer.echo(f"F1 under the other protocols: {others}.")
    typer.echo(
        f"Protocol {protocol.name}, within {protocol.radius_um:g} µm; "
        f"{card.pooled.on_look_alikes} of {plain.fp} false positives (one to one) lie on marked look-alikes."
    )
    for note in report.notes:
        typer.echo(note)


def _line(row: "Row", width: int) -> str:
    result, (low, high) = row.result, row.intervals["f1"]
    interval = f"  {low:.3f} to {high:.3f}" if low == low else ""  # NaN for a single case
    return (
        f"{row.name:<{width}} {result.tp:>5} {result.fp:>5} {result.fn:>5}"
        f"  {result.precision:>9.3f}  {result.recall:>6.3f}  {result.f1:>5.3f}{interval}"
    )
