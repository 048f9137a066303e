"""``mitosis evaluate``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mitosis.evaluation import Evaluation, SlideEvaluation
    from mitosis.matching import MatchResult

__all__ = ["evaluate"]


def evaluate(
    results: Annotated[Path, typer.Argument(help="Folder that mitosis count wrote.", show_default=False)],
    annotations: Annotated[Path, typer.Argument(help="File or folder of marks.", show_default=False)],
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Least score that counts. Default: as counted.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare detections with expert marks: one-to-one within 7.5 µm; precision, recall, F1.

    All counted slides below RESULTS are scored, each at the threshold it was counted with unless one is given.

    Example: mitosis evaluate results fields/
    """
    from mitosis.errors import ConfigError
    from mitosis.evaluation import evaluate as run
    from mitosis.files import dump_json
    from mitosis.report import read_scores

    folders = sorted(path.parent for path in results.glob("**/count.json"))
    if not folders:
        raise ConfigError(f"{results}: holds no count.json. Name the folder that mitosis count wrote with --out.")
    slides = []
    for folder in folders:
        scores, counted_at, n_outside = read_scores(folder, annotations)
        if n_outside:
            typer.echo(f"Warning: {scores.slide}: {n_outside} marks lie outside the slide and are left out.", err=True)
        counts = scores.candidates.score >= (counted_at if threshold is None else threshold)
        slides.append(replace(scores, candidates=scores.candidates[counts]))
    evaluation = run(slides, threshold=0.0)
    if as_json:
        typer.echo(dump_json(_to_dict(evaluation)), nl=False)
    else:
        _print_table(evaluation)


def _row(result: "MatchResult", on_look_alikes: int) -> dict[str, Any]:
    return {
        "tp": result.tp,
        "fp": result.fp,
        "fn": result.fn,
        "precision": round(result.precision, 4),
        "recall": round(result.recall, 4),
        "f1": round(result.f1, 4),
        "fp_on_look_alikes": on_look_alikes,
    }


def _to_dict(evaluation: "Evaluation") -> dict[str, Any]:
    def of_slide(slide: "SlideEvaluation") -> dict[str, Any]:
        return {"slide": slide.slide, **_row(slide.result, slide.on_look_alikes)}

    return {
        "protocol": "optimal",
        "radius_um": evaluation.radius_um,
        "slides": [of_slide(slide) for slide in evaluation.slides],
        "pooled": _row(evaluation.pooled, evaluation.on_look_alikes),
    }


def _print_table(evaluation: "Evaluation") -> None:
    table = _to_dict(evaluation)
    rows = [*table["slides"], {"slide": "pooled", **table["pooled"]}]
    width = max(len(row["slide"]) for row in rows)
    typer.echo(f"{'slide':<{width}}    TP    FP    FN  precision  recall     F1")
    for row in rows:
        typer.echo(
            f"{row['slide']:<{width}} {row['tp']:>5} {row['fp']:>5} {row['fn']:>5}"
            f"  {row['precision']:>9.3f}  {row['recall']:>6.3f}  {row['f1']:>5.3f}"
        )
    typer.echo(
        f"One to one within {evaluation.radius_um:g} µm; "
        f"{evaluation.on_look_alikes} of {evaluation.pooled.fp} false positives lie on marked look-alikes."
    )
