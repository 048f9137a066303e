"""The picture of one slide's count: the slide, its hotspot, and the detections one by one."""

import io
import math
import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke

from mitosis.counting import CountReport, Hotspot, area_text
from mitosis.detections import Detections
from mitosis.files import atomic_write
from mitosis.geometry import Box, grid_dimensions
from mitosis.slides import Slide, read_at_mpp, thumbnail
from mitosis.tissue import TissueMask

__all__ = ["draw_overlay"]

WIDTH, HEIGHT, DPI = 1800, 1140, 100
MARGIN = 20
LONGEST = 94
"""Letters of the headline that fit."""
PANEL = (870, 560)
CROP, GALLERY = 158, (2, 10)
CROP_UM, CROP_MPP = 40.0, 0.25
INK, QUIET, FAINT, ALARM = "#1a1a1a", "#666666", "#aaaaaa", "#b00020"
TISSUE, RING, HOTSPOT = "#00695c", "#ffd600", "#0039cb"
WHITE_HALO: list[AbstractPathEffect] = [withStroke(linewidth=4.5, foreground="white")]


def draw_overlay(path: Path, slide: Slide, report: CountReport, candidates: Detections, tissue: TissueMask) -> None:
    """Write a PNG that shows what was counted and where.

    Left the whole slide with the outline of the tissue, a ring a counted figure and the hotspot; right the hotspot
    enlarged; below the candidates with the highest scores, those that did not reach the threshold in grey.

    Parameters
    ----------
    candidates : Detections
        Sorted; numbered as in ``detections.csv``.
    """
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    counted = candidates[candidates.score >= report.threshold]
    _draw_header(figure, report)
    _draw_overview(_axes(figure, MARGIN, 158, *PANEL), slide, report, counted, tissue)
    if report.hotspot:
        _draw_hotspot(_axes(figure, MARGIN + 890, 158, *PANEL), slide, report.hotspot, counted)
    _draw_gallery(figure, slide, report, candidates)
    _save(figure, path)


def _axes(figure: Figure, x: int, y: int, width: int, height: int) -> Axes:
    """Axes at a place given in px from the top-left corner."""
    axes = figure.add_axes((x / WIDTH, 1 - (y + height) / HEIGHT, width / WIDTH, height / HEIGHT), anchor="NW")
    axes.set(xticks=[], yticks=[])
    return axes


def _write(figure: Figure, y: int, text: str, size: int, colour: str = INK, right: bool = False) -> None:
    x, side = (WIDTH - MARGIN, "right") if right else (MARGIN, "left")
    weight = "bold" if size > 20 else "normal"
    artist = figure.text(x / WIDTH, 1 - y / HEIGHT, text, size=size, color=colour, weight=weight, parse_math=False)
    artist.set(ha=side, va="center")


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A slide's name may hold letters the font lacks; they become boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", metadata={"Software": None})
    with atomic_write(path) as stream:
        stream.write(buffer.getvalue())


def _draw_header(figure: Figure, report: CountReport) -> None:
    name = " ".join(report.slide.split())
    _write(figure, 26, name if len(name) <= 90 else f"{name[:60]}…{name[-29:]}", 13, QUIET)
    _write(figure, 26, "research use only", 13, QUIET, right=True)
    _write(figure, 68, _headline(report), 21)
    _write(figure, 112, _whole_slide(report), 13)
    if report.bad_tiles:
        damage = f"damaged tiles: {len(report.bad_tiles)}, {report.excluded_mm2:.3f} mm² of the slide left out"
        _write(figure, 112, damage, 13, ALARM, right=True)


def _headline(report: CountReport) -> str:
    hotspot = report.hotspot
    if hotspot is None:
        return "No tissue found" if report.status == "no_tissue" else "No readable tissue"
    figures = "figure" if hotspot.mitotic_count == 1 else "figures"
    low, high = hotspot.interval
    chance = f"95 % Poisson interval {low:.1f}–{high:.1f}"
    if report.true_count:
        chance = f"true count {report.true_count.low}–{report.true_count.high} (95 %)"
    line = f"{hotspot.mitotic_count} mitotic {figures} in {area_text(hotspot.area_mm2)} mm² (hotspot)   {chance}"
    for given in (f"   {g.rule.name}: {g.score}" for g in report.grades if g.score):
        if len(line) + len(given) > LONGEST:  # the others are in count.json
            return f"{line}   …"
        line += given
    return line


def _whole_slide(report: CountReport) -> str:
    where = "region of interest" if report.region_sha256 or report.region else "whole slide"
    density = "" if report.density_per_mm2 is None else f" = {report.density_per_mm2:.2f} per mm²"
    return (
        f"{where}: {report.mitotic_count} in {area_text(report.tissue_mm2)} mm² of tissue{density}   ·   "
        f"threshold {report.threshold:.4g}   ·   candidates below it: {report.n_candidates - report.mitotic_count}"
    )


def _draw_overview(axes: Axes, slide: Slide, report: CountReport, counted: Detections, tissue: TissueMask) -> None:
    width, height = slide.dimensions
    mpp = max(slide.mpp, slide.mpp * max(width / PANEL[0], height / PANEL[1]))
    grid_width, grid_height = (n * mpp / slide.mpp for n in grid_dimensions(slide.dimensions, slide.mpp, mpp))
    axes.imshow(thumbnail(slide, mpp), extent=(0, grid_width, grid_height, 0), interpolation="antialiased")
    if tissue.mask.any():
        ratio = tissue.mpp / tissue.slide_mpp
        x, y = ((np.arange(-1, n + 1) + 0.5) * ratio for n in tissue.mask.shape[::-1])
        axes.contour(x, y, np.pad(tissue.mask, 1), levels=[0.5], colors=TISSUE, linewidths=1.2)
    for bad in report.bad_tiles:
        axes.add_patch(Rectangle(bad.box[:2], *bad.box.size, facecolor="#d50000", alpha=0.5, linewidth=0))
    _draw_rings(axes, counted, 7)
    if report.hotspot:
        _draw_frame(axes, report.hotspot)
    _finish(axes, (0, width), (0, height), slide.mpp, "whole slide, outline: tissue, rings: counted figures")


def _draw_hotspot(axes: Axes, slide: Slide, hotspot: Hotspot, counted: Detections) -> None:
    width, height = hotspot.x1 - hotspot.x0, hotspot.y1 - hotspot.y0
    mpp = max(slide.mpp, slide.mpp * max(width / PANEL[0], height / PANEL[1]))
    ratio = mpp / slide.mpp
    x0, y0 = math.floor(hotspot.x0 / ratio), math.floor(hotspot.y0 / ratio)
    box = Box(x0, y0, math.ceil(hotspot.x1 / ratio), math.ceil(hotspot.y1 / ratio))
    extent = (box.x0 * ratio, box.x1 * ratio, box.y1 * ratio, box.y0 * ratio)
    axes.imshow(read_at_mpp(slide, box, mpp), extent=extent, interpolation="antialiased")
    inside = hotspot.contains(counted.xy)
    _draw_rings(axes, counted[inside], 15)
    for index in np.flatnonzero(inside[: GALLERY[0] * GALLERY[1]]):
        text = axes.annotate(str(index + 1), counted.xy[index], (9, 5), textcoords="offset points", size=11)
        text.set_path_effects(WHITE_HALO)
    caption = f"hotspot: {hotspot.mitotic_count} in {area_text(hotspot.area_mm2)} mm² of tissue, numbers as below"
    _finish(axes, (hotspot.x0, hotspot.x1), (hotspot.y0, hotspot.y1), slide.mpp, caption, HOTSPOT)


def _draw_rings(axes: Axes, detections: Detections, size: float) -> None:
    x, y = detections.xy.T
    axes.plot(x, y, "o", markersize=size, markerfacecolor="none", markeredgecolor="black", markeredgewidth=2.8)
    axes.plot(x, y, "o", markersize=size, markerfacecolor="none", markeredgecolor=RING, markeredgewidth=1.5)


def _draw_frame(axes: Axes, hotspot: Hotspot) -> None:
    frame = Polygon(hotspot.outline(), fill=False, edgecolor=HOTSPOT, linewidth=2.2)
    frame.set_path_effects(WHITE_HALO)
    axes.add_patch(frame)


def _finish(
    axes: Axes, x: tuple[float, float], y: tuple[float, float], mpp: float, caption: str, colour: str = QUIET
) -> None:
    """Limits, caption, border and scale bar."""
    axes.set(xlim=x, ylim=y[::-1])
    axes.set_title(caption, size=12, color=colour, loc="left", pad=5)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1.2 if colour == QUIET else 2.2)
    length_um = _round_length((x[1] - x[0]) * mpp / 4)
    left, bottom = x[0] + (x[1] - x[0]) * 0.03, y[1] - (y[1] - y[0]) * 0.04
    bar = axes.plot([left, left + length_um / mpp], [bottom, bottom], color="black", linewidth=4, solid_capstyle="butt")
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    text = axes.annotate(label, (left, bottom), (0, 7), textcoords="offset points", size=12)
    for artist in (*bar, text):
        artist.set_path_effects(WHITE_HALO)


def _round_length(longest: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that is not above `longest`."""
    unit = 10.0 ** math.floor(math.log10(longest))
    return max(step * unit for step in (1, 2, 5) if step * unit <= longest)


def _draw_gallery(figure: Figure, slide: Slide, report: CountReport, candidates: Detections) -> None:
    """The first candidates, enlarged, with number and score."""
    rows, columns = GALLERY
    mpp = max(slide.mpp, CROP_MPP)
    side = round(CROP_UM / mpp)
    if len(candidates):
        _write(figure, 748, f"highest scores, {CROP_UM:g} µm each, numbers as in detections.csv", 12, QUIET)
    for index, ((x, y), score) in enumerate(
        zip(candidates.xy[: rows * columns].tolist(), candidates.score.tolist(), strict=False)
    ):
        row, column = divmod(index, columns)
        axes = _axes(figure, MARGIN + column * 178, 782 + row * 182, CROP, CROP)
        x0, y0 = (round(v * slide.mpp / mpp - side / 2) for v in (x, y))
        axes.imshow(read_at_mpp(slide, Box(x0, y0, x0 + side, y0 + side), mpp), interpolation="antialiased")
        colour = INK if score >= report.threshold else FAINT
        axes.set_title(f"{index + 1}:  {score:.2f}", size=10, color=colour, pad=3)
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=1.5)
