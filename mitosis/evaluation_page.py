"""The page of an evaluation: one HTML file that needs nothing else."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mitosis.evaluation_plots import draw_plots
from mitosis.gallery import Mistake
from mitosis.hotspot_agreement import HotspotAgreement
from mitosis.matching import PROTOCOLS
from mitosis.scorecard import CountAgreement, Row, Scorecard

__all__ = ["EvaluationReport", "draw_page"]

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; margin: 2em auto; max-width: 1180px; padding: 0 1em; }
h1 { font-size: 1.5em; margin: 0; } h2 { font-size: 1.15em; margin: 2em 0 .5em; }
p { margin: .4em 0; max-width: 62em; } .quiet { color: #666; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 1em; }
.plots svg { width: 100%; height: auto; }
.crops { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: .8em; }
figure { margin: 0; font-size: 12px; }
figure img { width: 100%; display: block; border: 1px solid #ddd; box-sizing: border-box; }
figcaption { overflow-wrap: anywhere; } .none { aspect-ratio: 1; background: #eee; }
"""


@dataclass(frozen=True)
class EvaluationReport:
    """What is written.

    Attributes
    ----------
    how : str
        A sentence on where the thresholds come from.
    scores : dict
        `true` and `false`: scores of the candidates on a figure, and of all others.
    misses, alarms : sequence of Mistake
        The worst ones.
    hotspots : sequence of HotspotAgreement
    notes : sequence of str
        What a reader must know: slides left out, cases that the model had seen.
    """

    card: Scorecard
    how: str
    scores: Mapping[str, Sequence[float]]
    misses: Sequence[Mistake] = ()
    alarms: Sequence[Mistake] = ()
    hotspots: Sequence[HotspotAgreement] = ()
    notes: Sequence[str] = ()


def draw_page(report: EvaluationReport) -> str:
    """The page as HTML; the same input gives the same text."""
    card = report.card
    plots = "\n".join(f"<div>{svg}</div>" for svg in draw_plots(card, report.scores).values())
    parts = [
        _head(report),
        "<h2>Plots</h2>" if plots else "",
        f'<div class="plots">{plots}</div>',
        _section("Domains", _table(card.domains) if len(card.domains) > 1 else ""),
        _section("Readers, scored like detections", _table(card.readers)),
        _section("Cases", _table(card.cases)),
        _section("The same detections under every protocol", _protocols(card)),
        _section("Agreement of counts", _agreements(card.agreement)),
        _section("Hotspots", _hotspots(report.hotspots)),
        _section("Worst false alarms", _crops(report.alarms)),
        _section("Worst misses", _crops(report.misses)),
        _section("Slides", _table(card.slides)),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _head(report: EvaluationReport) -> str:
    card, result = report.card, report.card.pooled.result
    protocol = card.protocol
    sentences = [
        f"{card.pooled.n_figures} marked figures and {card.pooled.n_found} detections on {card.pooled.n_slides} slides "
        f"of {len(card.cases)} cases: {result.tp} true, {result.fp} false, {result.fn} missed. "
        f"{card.pooled.on_look_alikes} of {card.pooled.one_to_one.fp} false positives (one to one) lie on marked "
        "look-alikes.",
        f"Protocol: {protocol.name}, within {protocol.radius_um:g} µm. {protocol.quirks} {report.how}",
        "Intervals of 95 % resample whole cases. Curves and AP are one to one.",
        *report.notes,
    ]
    interval = _interval(card.pooled.intervals["f1"])
    title = f"F1 {result.f1:.3f}{interval}, precision {result.precision:.3f}, recall {result.recall:.3f}"
    lines = "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    use = '<p class="quiet">Mitotic figures: evaluation. Research use only; not a medical device.</p>'
    return f"{use}\n<h1>{title}</h1>\n{lines}"


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def _interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f" ({low:.3f} to {high:.3f})" if math.isfinite(low) else ""


def _html_table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    rows = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{rows}</table></div>' if rows else ""


def _table(rows: Sequence[Row]) -> str:
    header = (
        "",
        "slides",
        "figures",
        "TP",
        "FP",
        "FN",
        "precision",
        "recall",
        "F1",
        "95 % interval",
        "FP on look-alikes",
    )
    return _html_table(
        header,
        (
            (
                row.name or "–", str(row.n_slides), str(row.n_figures),
                str(row.result.tp), str(row.result.fp), str(row.result.fn),
                f"{row.result.precision:.3f}", f"{row.result.recall:.3f}", f"{row.result.f1:.3f}",
                _interval(row.intervals["f1"]).strip(" ()") or "–", str(row.on_look_alikes),
            )
            for row in rows
        ),
    )  # rows as in a table  # fmt: skip


def _protocols(card: Scorecard) -> str:
    return _html_table(
        ("", "within", "TP", "FP", "FN", "precision", "recall", "F1"),
        (
            (
                name, f"{PROTOCOLS[name].radius_um:g} µm", str(result.tp), str(result.fp), str(result.fn),
                f"{result.precision:.3f}", f"{result.recall:.3f}", f"{result.f1:.3f}",
            )
            for name, result in card.protocols.items()
        ),
    )  # rows as in a table  # fmt: skip


def _agreements(agreement: Sequence[CountAgreement]) -> str:
    header = (
        "who, over",
        "n",
        "bias of the total",
        "bias each",
        "limits of agreement",
        "MAPE",
        "ICC(2,1)",
        "Spearman",
        "kappa of scores",
    )
    return _html_table(
        header,
        (
            (
                f"{one.who}, {one.unit}s", str(len(one.names)), _number(100 * one.count_bias, "+.1f", " %"),
                _number(one.bland_altman.bias, "+.2f"),
                f"{_number(one.bland_altman.low, '+.1f')} to {_number(one.bland_altman.high, '+.1f')}",
                _number(one.mape.percent, ".0f", " %"), _number(one.icc.value, ".2f"), _number(one.spearman, ".2f"),
                _number(one.kappa, ".2f"),
            )
            for one in agreement
        ),
    )  # rows as in a table  # fmt: skip


def _number(value: float, form: str, unit: str = "") -> str:
    return f"{value:{form}}{unit}" if math.isfinite(value) else "–"


def _hotspots(hotspots: Sequence[HotspotAgreement]) -> str:
    return _html_table(
        (
            "slide",
            "overlap with the densest window by the marks",
            "marked figures in the hotspot",
            "in the densest window",
        ),
        ((one.slide, f"{one.overlap:.2f}", str(one.n_in_hotspot), str(one.n_in_best)) for one in hotspots),
    )


def _crops(mistakes: Sequence[Mistake]) -> str:
    return f'<div class="crops">{"".join(map(_crop, mistakes))}</div>' if mistakes else ""


def _crop(one: Mistake) -> str:
    picture = f'<img alt="" src="{one.image}">' if one.image else '<div class="none"></div>'
    where = f"{escape(one.slide)} · {one.x:.0f}, {one.y:.0f}"
    remark = " · on a look-alike" if one.on_look_alike else ""
    return (
        f"<figure>{picture}<figcaption>{one.score:.2f}{remark}<br>"
        f'<span class="quiet">{where}</span></figcaption></figure>\n'
    )
