"""Where the mitotic figures of a slide are densest: the hotspot, as a rectangle or a disc of a stated area."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2
from skimage.draw import polygon2mask

from mitosis.densest_discs import DISC_TOLERANCE, densest_discs
from mitosis.densest_rectangles import densest_rectangles
from mitosis.errors import ConfigError
from mitosis.tissue import TissueMask

__all__ = [
    "HOTSPOT_ASPECT",
    "HOTSPOT_MM2",
    "Hotspot",
    "Shape",
    "find_hotspot",
    "find_hotspots",
    "in_region",
    "poisson_interval",
    "region_corners",
    "within_region",
]

HOTSPOT_MM2 = 2.37
"""Area of the hotspot, mm² (Meuten 2016)."""

HOTSPOT_ASPECT = 4 / 3
"""Width to height of the hotspot."""

CHORDS = 256
"""Strips into which a disc is cut to measure the tissue in it."""

Shape = Literal["rectangle", "disc"]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Hotspot:
    """The window with the most mitotic figures.

    Attributes
    ----------
    x0, y0, x1, y1 : float
        The window, level-0 px; its borders belong to it. A rectangle lies within the slide; of a disc this is the box
        around it, which may reach over the slide's edge.
    area_mm2 : float
        Tissue in the window.
    window_mm2 : float
        The whole window; less than what was asked for where the slide is smaller.
    mitotic_count : int
        Figures in the window.
    interval : (float, float)
        95 % Poisson interval of the count: how far chance alone may have moved it.
    density_per_mm2 : float or None
        Count over `area_mm2`; None where the window has no tissue.
    shape : str
        `rectangle` or `disc`.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    area_mm2: float
    window_mm2: float
    mitotic_count: int
    interval: tuple[float, float]
    density_per_mm2: float | None
    shape: Shape = "rectangle"

    def contains(self, xy: ArrayLike) -> NDArray[np.bool_]:
        """Which points (float [N, 2], level-0 px) lie in the window, bool [N]."""
        points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        inside: NDArray[np.bool_]
        if self.shape == "disc":
            offset = points - ((self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2)
            inside = np.hypot(*offset.T) <= (self.x1 - self.x0) / 2 * (1 + 2 * DISC_TOLERANCE)
        else:
            inside = np.all((points >= (self.x0, self.y0)) & (points <= (self.x1, self.y1)), axis=1)
        return inside

    def outline(self) -> list[tuple[float, float]]:
        """Corners of the window, level-0 px; of a disc 72 points of its circle."""
        if self.shape == "rectangle":
            return [(self.x0, self.y0), (self.x1, self.y0), (self.x1, self.y1), (self.x0, self.y1)]
        angle = np.arange(72) * (np.pi / 36)
        x = (self.x0 + self.x1 + (self.x1 - self.x0) * np.cos(angle)) / 2
        y = (self.y0 + self.y1 + (self.y1 - self.y0) * np.sin(angle)) / 2
        return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]


def find_hotspot(
    xy: ArrayLike,
    tissue: TissueMask,
    hotspot_mm2: float = HOTSPOT_MM2,
    aspect: float = HOTSPOT_ASPECT,
    *,
    shape: Shape = "rectangle",
    region: ArrayLike | None = None,
) -> Hotspot:
    """The first of `find_hotspots`."""
    return find_hotspots(xy, tissue, hotspot_mm2, aspect, shape=shape, region=region)[0]


def find_hotspots(
    xy: ArrayLike,
    tissue: TissueMask,
    hotspot_mm2: float = HOTSPOT_MM2,
    aspect: float = HOTSPOT_ASPECT,
    *,
    shape: Shape = "rectangle",
    n: int = 1,
    region: ArrayLike | None = None,
) -> tuple[Hotspot, ...]:
    """The windows of a given size that hold the most points: the best, then the best that does not overlap it, ...

    Each is exact (`mitosis.densest_rectangles`, `mitosis.densest_discs`), given those before it; another choice of `n`
    windows may hold more in all. Of several with the same count the one with most tissue wins, then the upper, then
    the left one. Each is moved so that its points lie in its middle, which shows their surroundings on all sides.
    Where there are no points, the same rule picks from windows a quarter of their size apart.

    Parameters
    ----------
    xy : float [N, 2]
        Counted figures, level-0 px.
    tissue : TissueMask
        Where there is tissue; it also knows the slide's size.
    hotspot_mm2, aspect : float
        Area of a window, and width to height of a rectangle. If the slide is too narrow or too low for it, the window
        becomes higher or wider to keep its area; if the slide is smaller than the area, it is the whole slide. A disc
        keeps its size, and may reach over the slide's edge.
    shape : {"rectangle", "disc"}
    n : int
        How many windows. Fewer come back where no point is left, or no room for one that holds a point.
    region : float [4] or [K, 2], optional
        A box (x0, y0, x1, y1) or the corners of a polygon, level-0 px. Only points and tissue in it count; the window
        may reach over its border.

    Returns
    -------
    tuple of Hotspot
        At least one, by falling count. A point on the border of two windows counts in the first.

    Raises
    ------
    ConfigError
        `shape` is unknown.
    """
    points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    if region is not None:
        points, tissue = points[in_region(points, region)], within_region(tissue, region)
    points = np.clip(points, 0, np.array(tissue.dimensions, dtype=np.float64))
    if shape not in ("rectangle", "disc"):
        raise ConfigError(f"count.hotspot_shape = {shape!r}: unknown. Known: disc, rectangle.")
    search = _Discs(tissue, hotspot_mm2) if shape == "disc" else _Rectangles(tissue, hotspot_mm2, aspect)
    hotspots: list[Hotspot] = []
    for number in range(n):
        places = search.densest(points, hotspots) if len(points) else np.empty((0, 2))
        if not len(places):
            if number:
                break
            places = search.spread()
        areas = np.round(search.areas_mm2(places), 9)  # 2 mm² of tissue are 2 mm², wherever the window lies
        best = np.lexsort((places[:, 0], places[:, 1], -areas))[0]
        hotspots.append(search.hotspot(places[best], float(areas[best]), points))
        points = points[~hotspots[-1].contains(points)]
    return tuple(hotspots)


def poisson_interval(count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of the mean of a Poisson distribution of which `count` was drawn.

    References
    ----------
    Garwood: Fiducial limits for the Poisson distribution. Biometrika 1936;28:437-442.
    """
    tail = (1 - confidence) / 2
    lower = float(chi2.ppf(tail, 2 * count)) / 2 if count else 0.0
    return lower, float(chi2.isf(tail, 2 * count + 2)) / 2


def in_region(xy: ArrayLike, region: ArrayLike) -> NDArray[np.bool_]:
    """Which points (float [N, 2]) lie in a box [4] or polygon [K, 2], its border included, bool [N].

    Raises
    ------
    ConfigError
        The region is neither, or crosses itself.
    """
    points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    shape = shapely.Polygon(region_corners(region))
    inside: NDArray[np.bool_] = shapely.intersects_xy(shape, points[:, 0], points[:, 1])
    return inside


def within_region(tissue: TissueMask, region: ArrayLike) -> TissueMask:
    """The tissue whose mask pixel has its centre in a box [4] or polygon [K, 2], level-0 px.

    Raises
    ------
    ConfigError
        The region is neither, or crosses itself.
    """
    corners = region_corners(region) * (tissue.slide_mpp / tissue.mpp) - 0.5
    inside = polygon2mask(tissue.mask.shape, corners[:, ::-1])  # type: ignore[no-untyped-call]  # untyped library
    return TissueMask(tissue.mask & inside, tissue.mpp, tissue.slide_mpp, tissue.dimensions)


def region_corners(region: ArrayLike) -> FloatArray:
    """Corners, float64 [K, 2], of a box [4] or polygon [K, 2]; raises as `in_region`."""
    corners = np.asarray(region, dtype=np.float64)
    if corners.shape == (4,):
        x0, y0, x1, y1 = corners.tolist()
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise ConfigError("region: give a box x0, y0, x1, y1 or at least three corners (x, y) of a polygon.")
    if not shapely.Polygon(corners).is_valid:
        raise ConfigError("region: its outline crosses itself. Draw it anew as a simple polygon.")
    return corners


class _Rectangles:
    """The search for rectangles; places are upper left corners, level-0 px."""

    def __init__(self, tissue: TissueMask, area_mm2: float, aspect: float) -> None:
        self.tissue, self.slide = tissue, np.array(tissue.dimensions, dtype=np.float64)
        slide_width, slide_height = tissue.dimensions
        area = area_mm2 / (tissue.slide_mpp / 1000) ** 2
        width, height = (area * aspect) ** 0.5, (area / aspect) ** 0.5
        if width > slide_width:
            width, height = slide_width, min(area / slide_width, slide_height)
        elif height > slide_height:
            width, height = min(area / slide_height, slide_width), slide_height
        self.size = np.array([width, height], dtype=np.float64)
        self.last = self.slide - self.size

    def densest(self, points: FloatArray, taken: list[Hotspot]) -> FloatArray:
        boxes = np.array([(spot.x0, spot.y0, spot.x1, spot.y1) for spot in taken]).reshape(-1, 4)
        return densest_rectangles(points, self.size, self.last, boxes)

    def spread(self) -> FloatArray:
        """A quarter of their size apart, up to the last corner."""
        x, y = (np.append(np.arange(0, end, step), end) for end, step in zip(self.last, self.size / 4, strict=True))
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)

    def areas_mm2(self, places: FloatArray) -> FloatArray:
        return self.tissue.areas_mm2_in(np.hstack([places, places + self.size]))

    def hotspot(self, place: FloatArray, area_mm2: float, points: FloatArray) -> Hotspot:
        far = np.where(place < self.last, np.minimum(place + self.size, self.slide), self.slide)
        window_mm2 = float(np.prod(self.size)) * (self.tissue.slide_mpp / 1000) ** 2
        return _hotspot((*place.tolist(), *far.tolist()), area_mm2, window_mm2, "rectangle", points)


class _Discs:
    """The search for discs; places are centres, level-0 px."""

    def __init__(self, tissue: TissueMask, area_mm2: float) -> None:
        self.tissue, self.area_mm2 = tissue, area_mm2
        self.radius = (area_mm2 / np.pi) ** 0.5 * 1000 / tissue.slide_mpp

    def densest(self, points: FloatArray, taken: list[Hotspot]) -> FloatArray:
        centres = np.array([((spot.x0 + spot.x1) / 2, (spot.y0 + spot.y1) / 2) for spot in taken]).reshape(-1, 2)
        return densest_discs(points, self.radius, centres)

    def spread(self) -> FloatArray:
        """Half a radius apart, over the slide."""
        x, y = (np.append(np.arange(0, end, self.radius / 2), end) for end in self.tissue.dimensions)
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)

    def areas_mm2(self, places: FloatArray) -> FloatArray:
        """Tissue in each disc, by strips as long as its chords."""
        edges = np.linspace(-1, 1, CHORDS + 1)
        half = np.sqrt(1 - ((edges[1:] + edges[:-1]) / 2) ** 2)
        half *= np.pi / (2 * (edges[1] - edges[0]) * half.sum())  # the strips of a whole disc have its area
        strips = np.stack([-half, edges[:-1], half, edges[1:]], axis=1) * self.radius
        return np.array([self.tissue.areas_mm2_in(strips + np.tile(place, 2)).sum() for place in places])

    def hotspot(self, place: FloatArray, area_mm2: float, points: FloatArray) -> Hotspot:
        box = (*(place - self.radius).tolist(), *(place + self.radius).tolist())
        return _hotspot(box, area_mm2, self.area_mm2, "disc", points)


def _hotspot(box: tuple[float, ...], area_mm2: float, window_mm2: float, shape: Shape, points: FloatArray) -> Hotspot:
    x0, y0, x1, y1 = box
    empty = Hotspot(x0, y0, x1, y1, area_mm2, window_mm2, 0, (0.0, 0.0), None, shape)
    count = int(empty.contains(points).sum())
    density = count / area_mm2 if area_mm2 > 0 else None
    return Hotspot(x0, y0, x1, y1, area_mm2, window_mm2, count, poisson_interval(count), density, shape)
