"""GeoJSON as QuPath exports it: points, polygons and rectangles with a class.

Level-0 px, x right, y down, from the slide's top-left corner: the house convention, nothing is shifted. A
FeatureCollection, a bare list of Features and a single Feature are read, gzipped or not. The class is
``properties.classification``, a name or an object with one. A polygon is an outline, of a cell that of its nucleus; all
parts of a MultiPolygon or collection are one figure, every point of a MultiPoint is one figure. An upright rectangle is
a box around a cell, so it becomes a point. Lines and other classes are ignored and counted. No features: none on this
slide.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry import Polygon

from mitosis.annotations.annotation import Annotation, AnnotationSet, Label, by_class, check_classes, label_of
from mitosis.annotations.segments import from_outlines, polygons_in
from mitosis.annotations.text import number, read_json
from mitosis.errors import AnnotationError

__all__ = ["read", "read_region_outlines", "recognises"]

_SHAPES = ("Polygon", "MultiPolygon")


def recognises(path: Path, head: str) -> bool:
    """By its name, or a JSON file that holds a list or Features."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(".geojson") or (name.endswith(".json") and ('"Feature' in head or head.lstrip()[:1] == "["))


def read(path: Path, slide_id: str) -> AnnotationSet:  # noqa: ARG001 (one signature)
    """Every feature whose class is a figure or a look-alike."""
    features = _features(read_json(path), path)
    marks = [_mark(feature, f"{path}, feature {number}") for number, feature in enumerate(features, start=1)]
    check_classes((name for name, _ in marks), path)
    return by_class(marks)


def read_region_outlines(path: Path) -> tuple[Polygon, ...]:
    """The areas of every feature, whatever its class, level-0 px; points and lines have none.

    Raises
    ------
    AnnotationError
        The file is missing, is not GeoJSON, or an outline in it is broken.
    """
    features = _features(read_json(path), path)
    return tuple(
        outline for number, feature in enumerate(features, 1) for outline in _area(feature, f"{path}, feature {number}")
    )


def _area(feature: Any, where: str) -> tuple[Polygon, ...]:
    if not isinstance(feature, dict):
        raise AnnotationError(f"{where}: is no GeoJSON Feature. Export the annotations from QuPath again.")
    geometry = feature.get("geometry")
    return _outlines(geometry, where) if isinstance(geometry, dict) else ()


def _features(content: Any, path: Path) -> list[Any]:
    kind = content.get("type") if isinstance(content, dict) else None
    found = content.get("features") if kind == "FeatureCollection" else [content] if kind == "Feature" else content
    if not isinstance(found, list):
        raise AnnotationError(f"{path}: no GeoJSON features. Export the annotations from QuPath as FeatureCollection.")
    return found


def _mark(feature: Any, where: str) -> tuple[str, list[Annotation]]:
    """Class name and annotations of a feature; no annotations where it is of another class or no such shape."""
    if not isinstance(feature, dict):
        raise AnnotationError(f"{where}: is no GeoJSON Feature. Export the annotations from QuPath again.")
    name = _class_name(feature.get("properties"))
    geometry = feature.get("nucleusGeometry") or feature.get("geometry")
    if label_of(name) is None or not isinstance(geometry, dict):
        return name, []
    return name, _annotations(geometry, where)


def _class_name(properties: Any) -> str:
    found = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(found, dict):
        found = found.get("name") or found.get("names")
    if isinstance(found, list):
        found = ": ".join(map(str, found))
    return found if isinstance(found, str) else "unclassified"


def _annotations(geometry: dict[str, Any], where: str) -> list[Annotation]:
    outlines = _outlines(geometry, where)
    if outlines:
        figure = from_outlines(outlines, Label.MITOTIC_FIGURE)
        return [replace(figure, outlines=()) if _is_upright_rectangle(outlines) else figure]
    return [Annotation(x, y, Label.MITOTIC_FIGURE) for x, y in _points(geometry, where)]


def _points(geometry: dict[str, Any], where: str) -> list[tuple[float, float]]:
    match geometry.get("type"):
        case "Point":
            return [_position(geometry.get("coordinates"), where)]
        case "MultiPoint":
            return [_position(point, where) for point in _list(geometry.get("coordinates"), where)]
    return []


def _outlines(geometry: dict[str, Any], where: str) -> tuple[Polygon, ...]:
    match geometry.get("type"):
        case "Polygon":
            return _polygon(geometry.get("coordinates"), where)
        case "MultiPolygon":
            polygons = _list(geometry.get("coordinates"), where)
            return tuple(part for polygon in polygons for part in _polygon(polygon, where))
        case "GeometryCollection":
            members = _list(geometry.get("geometries"), where)
            shapes = [member for member in members if isinstance(member, dict) and member.get("type") in _SHAPES]
            return tuple(part for shape in shapes for part in _outlines(shape, where))
    return ()


def _polygon(coordinates: Any, where: str) -> tuple[Polygon, ...]:
    rings = [[_position(point, where) for point in _list(ring, where)] for ring in _list(coordinates, where)]
    if not rings or min(map(len, rings)) < 3:
        raise AnnotationError(f"{where}: an outline of fewer than three points. Draw it again or delete it.")
    # Points that lie apart by the last bits of a number make outlines that stay invalid.
    outer, *holes = (np.round(ring, 6) for ring in rings)
    parts = tuple(part for part in polygons_in(shapely.make_valid(Polygon(outer, holes))) if part.is_valid)
    if not parts:
        raise AnnotationError(f"{where}: an outline without an area. Draw it again or delete it.")
    return parts


def _is_upright_rectangle(outlines: tuple[Polygon, ...]) -> bool:
    corners = len(outlines[0].exterior.coords) - 1
    return len(outlines) == 1 and corners == 4 and outlines[0].equals(outlines[0].envelope)


def _position(value: Any, where: str) -> tuple[float, float]:
    if len(_list(value, where)) < 2:
        raise AnnotationError(f"{where}: a position without x and y. Draw the mark again or delete it.")
    return number(value[0], where), number(value[1], where)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise AnnotationError(f"{where}: coordinates that are no list. Export the annotations from QuPath again.")
    return value
