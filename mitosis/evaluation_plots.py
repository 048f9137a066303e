"""The plots of an evaluation, as SVG."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mitosis.matching import MatchResult
from mitosis.ranking import DetectionCurve
from mitosis.scorecard import FP_RATES, CountAgreement, Row, Scorecard

__all__ = ["PLOTS", "draw_plots"]

TRUE, FALSE, INK, QUIET = "#0072B2", "#D55E00", "#1a1a1a", "#8a8a8a"
READERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f")
MOST_BARS = 30
STYLE: Any = {"svg.hashsalt": "mitosis", "svg.fonttype": "path", "font.size": 10, "axes.titlesize": 11}


def draw_plots(card: Scorecard, scores: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Every plot of `PLOTS` that has something to show.

    Parameters
    ----------
    scores : dict
        `true` and `false`: the scores of all candidates that lie on a figure (one to one), and of all others.

    Returns
    -------
    dict
        Name of the plot to an ``<svg>`` element; the same input gives the same text.
    """
    return {name: svg for name, draw in PLOTS.items() if (svg := _svg(draw, card, scores))}


def _svg(
    draw: Callable[[Axes, Scorecard, Mapping[str, Sequence[float]]], bool],
    card: Scorecard,
    scores: Mapping[str, Sequence[float]],
) -> str:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A name may hold letters the font lacks; they become boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(5.4, 4.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        if not draw(axes, card, scores):
            return ""
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"^.*?(?=<svg)", "", stream.getvalue(), flags=re.DOTALL)


def _plain(name: str) -> str:
    """A name as it is: what stands between dollar signs would be set as a formula."""
    return name.replace("$", r"\$")


def _precision_recall(axes: Axes, card: Scorecard, _: Mapping[str, Sequence[float]]) -> bool:
    curve = card.curve
    if not curve.n_figures or not len(curve.score):
        return False
    axes.step(curve.recall, curve.precision, where="pre", color=TRUE)
    low, high = card.average_precision_interval
    interval = f" (95 %: {low:.2f} to {high:.2f})" if np.isfinite(low) else ""
    axes.set_title(f"Precision and recall: AP {curve.average_precision:.3f}{interval}")
    for name, result, colour in _operating_points(card):
        axes.plot(result.recall, result.precision, "o", color=colour, label=f"{name}: F1 {result.f1:.2f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    return True


def _operating_points(card: Scorecard) -> list[tuple[str, MatchResult, str]]:
    readers = [
        (_plain(row.name), row.result, READERS[number % len(READERS)]) for number, row in enumerate(card.readers)
    ]
    return [("model", card.pooled.result, INK), *readers]


def _froc(axes: Axes, card: Scorecard, _: Mapping[str, Sequence[float]]) -> bool:
    curve: DetectionCurve = card.curve
    if not curve.n_figures or not curve.area_mm2 > 0 or not len(curve.score):
        return False
    limit = max(FP_RATES)
    best = np.maximum.accumulate(curve.recall)
    axes.step(np.append(curve.fp_per_mm2, np.inf).clip(max=limit), np.append(best, best[-1]), where="post", color=TRUE)
    for row, colour in zip((card.pooled, *card.readers), (INK, *READERS), strict=False):
        if row.area_mm2 > 0:
            axes.plot(row.result.fp / row.area_mm2, row.result.recall, "o", color=colour, label=_plain(row.name))
    axes.set(xlabel="false positives a mm²", ylabel="recall", xlim=(0, limit), ylim=(0, 1.02))
    axes.set_title(f"FROC: mean recall up to {limit:g} a mm² is {curve.froc_area(limit):.3f}")
    return True


def _histogram(axes: Axes, card: Scorecard, scores: Mapping[str, Sequence[float]]) -> bool:
    if not any(map(len, scores.values())):
        return False
    bins = np.linspace(0, 1, 41).tolist()
    axes.hist(
        [list(scores["true"]), list(scores["false"])],
        bins=bins,
        stacked=True,
        color=[TRUE, FALSE],
        label=["on a figure", "on none"],
    )
    thresholds = sorted(set(card.thresholds.values()))
    for threshold in thresholds[:: max(1, len(thresholds) // 8)]:
        axes.axvline(threshold, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yscale("symlog", linthresh=10)
    axes.set(xlabel="score (dotted: threshold)", ylabel="candidates", xlim=(0, 1), ylim=(0, None))
    axes.set_title("Scores by truth")
    axes.legend(frameon=False, fontsize=9, loc="upper center")
    return True


def _of(card: Scorecard, unit: str) -> list[CountAgreement]:
    return [one for one in card.agreement if one.unit == unit and len(one.names) > 1]


def _bland_altman(axes: Axes, card: Scorecard, _: Mapping[str, Sequence[float]]) -> bool:
    model = next((one for one in _of(card, "slide") if one.who == "model"), None)
    if model is None:
        return False
    limits = model.bland_altman
    axes.plot(limits.means, limits.differences, "o", color=TRUE, alpha=0.5, markeredgewidth=0)
    for value, style in ((limits.bias, "-"), (limits.low, "--"), (limits.high, "--")):
        axes.axhline(value, color=INK, linewidth=0.9, linestyle=style)
        axes.annotate(
            f"{value:+.1f}",
            (1, value),
            (-2, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
    axes.set(xlabel="mean of count and truth, a slide", ylabel="count less truth")
    axes.set_title(f"Counts: bias {limits.bias:+.2f} a slide, limits of agreement")
    return True


def _bars(axes: Axes, card: Scorecard, _: Mapping[str, Sequence[float]]) -> bool:
    rows: Sequence[Row] = sorted(card.cases, key=lambda row: row.result.f1)[:MOST_BARS]
    if not rows:
        return False
    place = np.arange(len(rows))
    axes.bar(place, [row.result.f1 for row in rows], color=TRUE, alpha=0.45, label="F1")
    for marker, name in (("^", "precision"), ("v", "recall")):
        values = [getattr(row.result, name) for row in rows]
        axes.plot(place, values, marker, color=INK if name == "precision" else FALSE, label=name, markersize=5)
    names = [_plain(row.name if len(row.name) <= 14 else f"{row.name[:13]}…") for row in rows]
    axes.set_xticks(place, names, rotation=90 if len(rows) > 8 else 0, fontsize=8)
    axes.set(ylim=(0, 1.02), ylabel="F1, precision, recall")
    few = f" (the lowest {MOST_BARS} of {len(card.cases)})" if len(card.cases) > MOST_BARS else ""
    axes.set_title(f"Cases{few}")
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower center")
    return True


def _look_alikes(axes: Axes, card: Scorecard, _: Mapping[str, Sequence[float]]) -> bool:
    """What the detections are, domain by domain."""
    rows = card.domains if len(card.domains) > 1 else (card.pooled,)
    if not any(row.n_found for row in rows):
        return False
    names = [_plain(row.name) or "no domain" for row in rows]
    shares = {
        "on figures": ([row.one_to_one.tp for row in rows], TRUE),
        "on marked look-alikes": ([row.on_look_alikes for row in rows], READERS[1]),
        "elsewhere": ([row.one_to_one.fp - row.on_look_alikes for row in rows], FALSE),
    }
    left = np.zeros(len(rows))
    for name, (counts, colour) in shares.items():
        axes.barh(names, counts, left=left, color=colour, alpha=0.8, label=name, height=0.5)
        left += np.array(counts)
    axes.set(xlabel="detections")
    axes.margins(y=0.4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("What the detections are")
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")
    return True


PLOTS: dict[str, Callable[[Axes, Scorecard, Mapping[str, Sequence[float]]], bool]] = {
    "precision and recall": _precision_recall,
    "FROC": _froc,
    "scores": _histogram,
    "Bland-Altman": _bland_altman,
    "cases": _bars,
    "look-alikes": _look_alikes,
}
"""Every plot; a function says whether it had something to show."""
