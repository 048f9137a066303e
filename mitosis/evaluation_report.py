"""An evaluation as files: ``evaluation.json``, ``evaluation.csv`` and the page ``evaluation.html``."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mitosis.evaluation_page import EvaluationReport, draw_page
from mitosis.files import dump_json, make_folder, safe_cell, write_text
from mitosis.matching import MatchResult
from mitosis.scorecard import FP_RATES, CountAgreement, Row, Scorecard

__all__ = ["CSV_COLUMNS", "to_json", "write_evaluation"]

CSV_COLUMNS = (
    "kind", "name", "n_slides", "n_figures", "n_found", "tp", "fp", "fn", "precision", "recall", "f1",
    "f1_low", "f1_high", "fp_on_look_alikes", "area_mm2",
)  # rows as in a table  # fmt: skip


def to_json(report: EvaluationReport) -> str:
    """What ``evaluation.json`` holds."""
    return dump_json(_to_dict(report))


def write_evaluation(folder: Path, report: EvaluationReport) -> dict[str, Path]:
    """Write the three files into `folder`, in place of earlier ones; the same input gives the same bytes."""
    texts = {"json": to_json(report), "csv": _csv(report.card), "html": draw_page(report)}
    make_folder(folder)
    paths = {ending: folder / f"evaluation.{ending}" for ending in ("json", "csv", "html")}
    for ending, text in texts.items():
        write_text(paths[ending], text)
    return paths


def _to_dict(report: EvaluationReport) -> dict[str, Any]:
    card, curve = report.card, report.card.curve
    return _plain(  # type: ignore[no-any-return]  # a mapping comes back as one
        {
            "protocol": card.protocol.name,
            "radius_um": card.protocol.radius_um,
            "how": report.how,
            "notes": list(report.notes),
            "thresholds": dict(card.thresholds),
            "pooled": _row(card.pooled),
            "average_precision": curve.average_precision,
            "average_precision_interval": card.average_precision_interval,
            "froc_area": curve.froc_area(max(FP_RATES)),
            "recall_at_fp_per_mm2": {f"{rate:g}": curve.recall_at(rate) for rate in FP_RATES},
            "protocols": {name: _shares(result) for name, result in card.protocols.items()},
            "domains": [_row(row) for row in card.domains],
            "cases": [_row(row) for row in card.cases],
            "slides": [_row(row) for row in card.slides],
            "readers": [_row(row) for row in card.readers],
            "agreement": [_agreement(one) for one in card.agreement],
            "hotspots": [asdict(one) for one in report.hotspots],
        }
    )


def _shares(result: MatchResult) -> dict[str, float]:
    return {**asdict(result), "precision": result.precision, "recall": result.recall, "f1": result.f1}


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "n_slides": row.n_slides,
        "n_figures": row.n_figures,
        "n_found": row.n_found,
        **_shares(row.result),
        "fp_on_look_alikes": row.on_look_alikes,
        "area_mm2": row.area_mm2,
        "intervals": dict(row.intervals),
    }


def _agreement(one: CountAgreement) -> dict[str, Any]:
    limits = one.bland_altman
    return {
        "who": one.who,
        "unit": one.unit,
        "n": len(one.names),
        "count_bias": one.count_bias,
        "mape_percent": one.mape.percent,
        "n_without_figures": one.mape.n_left_out,
        "bland_altman": {key: getattr(limits, key) for key in ("bias", "low", "high", "sd", "bias_interval")},
        "icc": asdict(one.icc),
        "spearman": one.spearman,
        "kappa_of_scores": one.kappa,
    }


def _plain(value: Any) -> Any:
    """Numbers with at most six decimals; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 6) if math.isfinite(value) else None
    return value


def _kinds(card: Scorecard) -> list[tuple[str, Row]]:
    kinds = {"domain": card.domains, "case": card.cases, "slide": card.slides, "reader": card.readers}
    return [("all", card.pooled), *((kind, row) for kind, rows in kinds.items() for row in rows)]


def _csv(card: Scorecard) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for kind, row in _kinds(card):
        values = _plain(_row(row))
        low, high = values.pop("intervals")["f1"]
        cells = [{**values, "kind": kind, "f1_low": low, "f1_high": high}[column] for column in CSV_COLUMNS]
        writer.writerow(["" if cell is None else safe_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    return stream.getvalue()
