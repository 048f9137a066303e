"""One slide's count as files: tables, marks for QuPath, and a picture; and one table for many slides."""

import csv
import io
import math
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mitosis.annotations import Label
from mitosis.counting import CountReport, Hotspot, area_text
from mitosis.detections import Detections
from mitosis.files import make_folder, safe_cell, write_json, write_text
from mitosis.overlay import draw_overlay
from mitosis.slides import Slide
from mitosis.tissue import TissueMask

__all__ = [
    "DETECTION_COLUMNS",
    "SUMMARY_COLUMNS",
    "write_report",
    "write_summary",
]

DETECTION_COLUMNS = ("slide", "id", "x_px", "y_px", "x_um", "y_um", "score", "class", "area_um2", "counted")

SUMMARY_COLUMNS = (
    "slide",
    "status",
    "mitotic_count",
    "tissue_mm2",
    "density_per_mm2",
    "hotspot_count",
    "hotspot_mm2",
    "hotspot_density_per_mm2",
    "hotspot_low",
    "hotspot_high",
    "true_low",
    "true_high",
    "grades",
    "n_candidates",
    "threshold",
    "n_bad_tiles",
    "excluded_mm2",
    "error",
)

NOTE = "Research use only; not a medical device."
CANDIDATE = "candidate"
RING_UM = 6.0
COLOURS = {"detection": [200, 0, 0], "hotspot": [0, 60, 200]}


def write_report(
    folder: Path, slide: Slide, report: CountReport, candidates: Detections, tissue: TissueMask
) -> dict[str, Path]:
    """Write all files about one slide into `folder`; the same input gives the same bytes.

    * ``detections.csv``: every candidate, in px and µm; what counts has ``counted`` 1.
    * ``detections.geojson``: what counts, and the hotspot, to be dropped on the open slide in QuPath.
    * ``count.json``: everything `CountReport` holds.
    * ``overlay.png``: for the eye (`mitosis.overlay`).

    Parameters
    ----------
    slide : Slide
        Open; read for the picture.
    report : CountReport
        Its name of the slide is the one written.
    candidates : Detections
        All above the low floor.
    tissue : TissueMask
        Outlined in the picture.

    Returns
    -------
    dict
        File name to path.
    """
    make_folder(folder)
    ordered = candidates.sorted()
    paths = {name: folder / name for name in ("detections.csv", "detections.geojson", "count.json", "overlay.png")}
    write_text(paths["detections.csv"], _detection_table(report, ordered))
    write_json(paths["detections.geojson"], _geojson(report, ordered))
    draw_overlay(paths["overlay.png"], slide, report, ordered, tissue)
    write_json(paths["count.json"], {**report.to_dict(), "note": NOTE})
    return paths


def write_summary(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table with a line a slide, by name.

    Parameters
    ----------
    rows : iterable of dict
        What `CountReport.to_dict` gives, or what ``count.json`` holds; for a slide that failed `slide`, `status` and
        `error` are enough.
    """
    lines = [_summary_line(row) for row in sorted(rows, key=lambda row: str(row["slide"]))]
    write_text(path, _table(SUMMARY_COLUMNS, lines))


def _summary_line(row: Mapping[str, Any]) -> list[str]:
    hotspot = row.get("hotspot") or {}
    low, high = hotspot.get("interval", (None, None))
    true = row.get("true_count") or {}
    values = {
        **row,
        "hotspot_count": hotspot.get("mitotic_count"),
        "hotspot_mm2": hotspot.get("area_mm2"),
        "hotspot_density_per_mm2": hotspot.get("density_per_mm2"),
        "hotspot_low": low,
        "hotspot_high": high,
        "true_low": true.get("low"),
        "true_high": true.get("high"),
        "grades": "; ".join(f"{g['rule']['name']}: {g['score'] or '-'}" for g in row.get("grades", ())),
        "n_bad_tiles": len(row["bad_tiles"]) if "bad_tiles" in row else None,
    }
    return [_cell(values.get(name)) for name in SUMMARY_COLUMNS]


def _cell(value: Any) -> str:
    """Text that no spreadsheet takes for a formula; numbers with at most four decimals, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value) if isinstance(value, int) else safe_cell(str(value))


def _table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return stream.getvalue()


def _detection_table(report: CountReport, candidates: Detections) -> str:
    lines = []
    name = safe_cell(report.slide)
    for number, ((x, y), score, area) in enumerate(
        zip(candidates.xy.tolist(), candidates.score.tolist(), candidates.area_um2.tolist(), strict=True), start=1
    ):
        counted = score >= report.threshold
        place = [_decimals(v, 2) for v in (x, y, x * report.slide_mpp, y * report.slide_mpp)]
        kind = Label.MITOTIC_FIGURE.value if counted else CANDIDATE
        lines.append([name, str(number), *place, f"{score:.4f}", kind, f"{area:.2f}", str(int(counted))])
    return _table(DETECTION_COLUMNS, lines)


def _decimals(value: float, n: int) -> str:
    return f"{round(value, n) + 0.0:.{n}f}"


def _geojson(report: CountReport, candidates: Detections) -> dict[str, Any]:
    """FeatureCollection as QuPath reads it: level-0 px, ids that are UUIDs, classes with a colour."""
    radius = RING_UM / report.slide_mpp
    features = []
    for number, ((x, y), score) in enumerate(
        zip(candidates.xy.tolist(), candidates.score.tolist(), strict=True), start=1
    ):
        if score >= report.threshold:
            angles = [2 * math.pi * k / 12 for k in range(12)]
            ring = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
            feature = _feature(report.slide, str(number), "detection", ring, Label.MITOTIC_FIGURE.value)
            feature["properties"]["measurements"] = {"Probability": score}
            features.append(feature)
    spots = (report.hotspot, *report.more_hotspots) if report.hotspot else ()
    for number, spot in enumerate(spots, start=1):
        features.append(_hotspot_feature(report.slide, "hotspot" if number == 1 else f"hotspot {number}", spot))
    return {"type": "FeatureCollection", "features": features}


def _hotspot_feature(slide: str, name: str, hotspot: Hotspot) -> dict[str, Any]:
    feature = _feature(slide, name, "annotation", hotspot.outline(), "hotspot")
    feature["properties"]["name"] = f"{hotspot.mitotic_count} mitotic figures in {area_text(hotspot.area_mm2)} mm²"
    feature["properties"]["isLocked"] = True
    return feature


def _feature(slide: str, name: str, kind: str, corners: list[tuple[float, float]], label: str) -> dict[str, Any]:
    colour = COLOURS["hotspot" if name.startswith("hotspot") else "detection"]
    ring = [[round(x, 2), round(y, 2)] for x, y in [*corners, corners[0]]]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"mitosis:{slide}:{name}")),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": kind,
            "name": name,
            "classification": {"name": label, "color": colour},
        },
    }
