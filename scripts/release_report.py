"""What the models of ``train_release.py`` say of cases that they have not seen, as tables.

Example: python scripts/release_report.py release

A case is scored at the threshold that is best on all other cases, whose predictions are left-out ones too; of folds
within cases, each at that of the other folds. Intervals are of 95 %, over cases.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from release_folds import CASES, FIELDS, part_of

from mitosis.detections import Detections
from mitosis.evaluation import calibration_rows, candidate_truth, choose_threshold, cross_thresholds, evaluate
from mitosis.matching import MATCH_RADIUS_UM, match
from mitosis.ranking import SlideScores
from mitosis.score_calibration import calibration_error, fit_calibration
from mitosis.scorecard import Row, Scorecard, score_slides
from mitosis.uncertainty import CaseCounts, Coverage, true_count

UNGATED = "both-ungated"
STAGES = {"base": "first stage", "tuned": "after mining", "both": "with second stage", UNGATED: "... and no gate"}


def main() -> None:
    """Print the tables of each stage that has predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path)
    parser.add_argument("--folds", nargs="+", help="others than those of cases left out, such as within-0 to within-4")
    arguments = parser.parse_args()
    for stage, title in STAGES.items():
        slides = read_stage(arguments.release, stage, arguments.folds)
        if slides:
            print(f"\n## {title} ({len(slides)} slides)\n\n{Quality.of(slides, arguments.folds or ()).table()}")
            fields = [slide for slide in slides if slide.domain in FIELDS]
            errors, coverage = calibration_errors(fields), field_coverage(fields)
            print(f"Calibration error {errors['as_scored']:.3f}, of calibrated scores {errors['calibrated']:.3f}.")
            print(
                f"Intervals (95 %) of the true count of a field: {coverage.share:.1%} of {coverage.n} hold it, "
                f"{coverage.n_too_low} are too low, {coverage.n_too_high} too high."
            )
            if stage == UNGATED:
                print(f"Found without the gate, and lost by it: {gate_losses(arguments.release, arguments.folds)}")


def calibration_errors(slides: Sequence[SlideScores]) -> dict[str, float]:
    """Calibration error of the scores as they are, and of those of each case calibrated by the other cases."""
    before, after, truths = [], [], []
    for case in sorted({slide.case_id for slide in slides}):
        score, truth = candidate_truth(slide for slide in slides if slide.case_id == case)
        calibration = fit_calibration(*candidate_truth(slide for slide in slides if slide.case_id != case))
        before.append(score)
        after.append(calibration(score))
        truths.append(truth)
    is_figure = np.concatenate(truths)
    parts = {"as_scored": before, "calibrated": after}
    return {name: _round(calibration_error(np.concatenate(scores), is_figure)) for name, scores in parts.items()}


def gate_losses(release: Path, folds: Sequence[str] | None = None) -> dict[str, int]:
    """How many figures are found without the gate, at the threshold chosen with it, and how many of them it loses."""
    gated, ungated = (read_stage(release, stage, folds) for stage in ("both", UNGATED))
    threshold = choose_threshold([slide for slide in gated if slide.domain in FIELDS])
    figures: Counter[str] = Counter()
    for with_it, without in zip(gated, ungated, strict=True):
        kind = "fields" if with_it.domain in FIELDS else "crops"
        after, before = (_figures_found(slide, threshold) for slide in (with_it, without))
        figures.update({f"{kind}_found": len(before), f"{kind}_lost": len(before - after)})
    return dict(figures)


def _figures_found(slide: SlideScores, threshold: float) -> set[int]:
    """Rows of the figures that a detection from `threshold` on is matched to."""
    xy = slide.candidates.xy[slide.candidates.score >= threshold]
    return set(match(slide.figures, xy, MATCH_RADIUS_UM / slide.slide_mpp).pairs[:, 0].tolist())


def field_coverage(slides: Sequence[SlideScores]) -> Coverage:
    """How often the interval of a field's true count holds what is marked there, calibrated on the other cases.

    Their thresholds are those of an unbiased count."""
    low = high = n = 0
    for case, threshold in cross_thresholds(slides, objective="count").items():
        rows = calibration_rows([slide for slide in slides if slide.case_id != case], (threshold,))
        cases = [CaseCounts(row["tp"], row["fp"], row["fn"], row["area_mm2"], row["case"]) for row in rows]
        for slide in (slide for slide in slides if slide.case_id == case):
            found, truth = int((slide.candidates.score >= threshold).sum()), len(np.asarray(slide.figures))
            interval = true_count(found, slide.area_mm2, cases)
            n, low, high = n + 1, low + (interval.high < truth), high + (interval.low > truth)
    return Coverage(n, n - low - high, low, high)


def read_stage(release: Path, stage: str, folds: Sequence[str] | None = None) -> list[SlideScores]:
    """Predictions of one stage for all slides that some folds left out; by default those of cases never seen."""
    paths = [release / fold / f"{stage}.json" for fold in folds or CASES]
    return [slide for path in paths if path.exists() for slide in read_predictions(path)]


def read_predictions(path: Path) -> list[SlideScores]:
    """One file of predictions."""
    return [
        SlideScores(
            row["slide"],
            row["slide_mpp"],
            np.array(row["figures"]).reshape(-1, 2),
            Detections(np.array(row["xy"]).reshape(-1, 2), np.array(row["score"]), np.zeros(len(row["score"]))),
            np.array(row["look_alikes"]).reshape(-1, 2),
            row["case"],
            row["domain"],
            row["area_mm2"],
        )
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


@dataclass(frozen=True)
class Quality:
    """Everything that is said of a set of predictions.

    Attributes
    ----------
    threshold, count_threshold : float
        Chosen on all fields together: what the model that ships gets.
    scores : dict of Scorecard
        Of the fields of each scanner, each case at the threshold of the others.
    counts : Scorecard
        All fields, at the count thresholds of the other cases.
    recall : dict
        Domain of the crops to the share of figures found at `threshold`, and their number.
    fp_per_mm2 : dict
        Scanner to false positives a mm² at `threshold`.
    """

    threshold: float
    count_threshold: float
    scores: Mapping[str, Scorecard]
    counts: Scorecard
    recall: Mapping[str, tuple[float, int]]
    fp_per_mm2: Mapping[str, float]

    @classmethod
    def of(cls, slides: Sequence[SlideScores], folds: Sequence[str] = ()) -> "Quality":
        """The quality of predictions that some folds left out; by default of cases."""
        fields = [slide for slide in slides if slide.domain in FIELDS]
        threshold = choose_threshold(fields)
        parts = {slide.slide: part_of(slide.slide, slide.case_id, slide.domain, folds) for slide in fields}
        by_part = [replace(slide, case_id=parts[slide.slide]) for slide in fields]
        chosen, for_counts = (cross_thresholds(by_part, objective=objective) for objective in ("f1", "count"))
        domains = {domain: [slide for slide in slides if slide.domain == domain] for domain in _domains(slides)}
        results = {domain: evaluate(some, threshold).pooled for domain, some in domains.items()}
        return cls(
            threshold,
            choose_threshold(fields, objective="count"),
            {
                name: score_slides(some, {slide.slide: chosen[parts[slide.slide]] for slide in some})
                for name, some in (
                    *((domain, domains[domain]) for domain in FIELDS if domain in domains),
                    ("all", fields),
                )
            },
            score_slides(fields, {name: for_counts[part] for name, part in parts.items()}),
            {domain: (result.recall, result.tp + result.fn) for domain, result in results.items()},
            {
                domain: results[domain].fp / sum(slide.area_mm2 for slide in domains[domain])
                for domain in FIELDS
                if domain in domains
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """For the card of the model."""
        by_slide, by_case = (
            {"bias": round(unit.count_bias, 4), "mape_percent": round(unit.mape.percent, 2)}
            for unit in self.counts.agreement
        )
        return {
            **_numbers(self.scores["all"]),
            "scanners": {name: _numbers(card) for name, card in self.scores.items() if name != "all"},
            "cases": {
                row.name: {"figures": row.n_figures, "f1": _round(row.result.f1)} for row in self.scores["all"].cases
            },
            "false_positives_per_mm2": {name: _round(value) for name, value in self.fp_per_mm2.items()},
            "recall_on_crops": {
                name: {"recall": _round(share), "figures": n}
                for name, (share, n) in self.recall.items()
                if name not in FIELDS
            },
            "counts_of_a_field": by_slide,
            "counts_of_a_case": by_case,
        }

    def table(self) -> str:
        """Markdown."""
        lines = ["| fields of | figures | F1 (95 %) | precision | recall | AP (95 %) |", "|---|---|---|---|---|---|"]
        for name, card in self.scores.items():
            lines.append(_line(name, card.pooled, card))
        lines += ["", "| case | figures | found | F1 |", "|---|---|---|---|"]
        for row in self.scores["all"].cases:
            lines.append(f"| {row.name} | {row.n_figures} | {row.n_found} | {row.result.f1:.3f} |")
        lines += ["", f"Threshold {self.threshold:.4f}, for counts {self.count_threshold:.4f}."]
        lines += [f"Recall on {name}: {share:.3f} of {n}." for name, (share, n) in sorted(self.recall.items())]
        lines += [f"False positives on {name}: {value:.2f} a mm²." for name, value in self.fp_per_mm2.items()]
        lines += [
            f"Counts of a {unit.unit}: bias {unit.count_bias:+.1%}, MAPE {unit.mape.percent:.1f} %."
            for unit in self.counts.agreement
        ]
        return "\n".join(lines)


def _numbers(card: Scorecard) -> dict[str, Any]:
    result = card.pooled.result
    return {
        "figures": card.pooled.n_figures,
        "f1": _round(result.f1),
        "f1_interval": [_round(end) for end in card.pooled.intervals["f1"]],
        "precision": _round(result.precision),
        "recall": _round(result.recall),
        "average_precision": _round(card.curve.average_precision),
    }


def _round(value: float) -> float:
    return round(value, 4)


def _domains(slides: Sequence[SlideScores]) -> list[str]:
    return sorted({slide.domain for slide in slides})


def _line(name: str, row: Row, card: Scorecard) -> str:
    result, (low, high), (least, most) = row.result, row.intervals["f1"], card.average_precision_interval
    return (
        f"| {name} | {row.n_figures} | {result.f1:.3f} ({low:.3f}–{high:.3f}) | {result.precision:.3f} | "
        f"{result.recall:.3f} | {card.curve.average_precision:.3f} ({least:.3f}–{most:.3f}) |"
    )


if __name__ == "__main__":
    main()
