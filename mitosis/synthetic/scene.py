"""Which cell lies where: the random scene, in µm, the same however it is drawn.

The plane is cut into square blocks; each block has a random generator of its own, made from the scene's seed and the
block's place. So a cell does not depend on the region through which it is seen, and any slide fits in memory.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from mitosis.synthetic.tissue import Places, Zones

__all__ = ["CLUTTER", "OTHERS", "PHASES", "BoxUm", "Cell", "Scene", "Sites"]

BoxUm = tuple[float, float, float, float]
_ROW = 10  # sites along a block
_PITCH_UM = 12.8
_BLOCK_UM = _ROW * _PITCH_UM
_REACH_UM = 24.0  # a cell this far outside a region may still be seen in it
_ROOM_UM = 11.0  # around a figure, free of other nuclei
_OFFSET = 2**31  # seeds of generators must not be negative
PHASES = {
    "prophase": 0.12,
    "prometaphase": 0.22,
    "metaphase": 0.3,
    "ring": 0.1,
    "anaphase": 0.13,
    "telophase": 0.13,
}
OTHERS = {"pyknotic": 0.34, "apoptotic": 0.26, "hyperchromatic": 0.4}
CLUTTER = {"pigment": 0.6, "ink": 0.4}


class Cell(NamedTuple):
    """Something to draw: a kind of `CELLS`, its centre, its size (1 is usual), its angle, the seed of its details."""

    kind: str
    x_um: float
    y_um: float
    size: float
    angle: float
    seed: tuple[int, ...]


class Sites(NamedTuple):
    """Where a cell may lie: (column, row) [N, 2], centres in µm [N, 2], random numbers [N, 6], rare kind or "" [N]."""

    lattice: NDArray[np.int64]
    xy: NDArray[np.float64]
    chance: NDArray[np.float64]
    rare: NDArray[np.str_]


@dataclass(frozen=True)
class Scene:
    """Tissue and the cells in it.

    Attributes
    ----------
    seed : int
    zones : Zones
    density_per_mm2 : (figures, look-alikes, pigment and ink)
        How many there are in a mm² of tumour.
    chosen : mapping of (column, row) to kind
        What lies at some sites.
    """

    seed: int
    zones: Zones
    density_per_mm2: tuple[float, float, float] = (0.0, 0.0, 0.0)
    chosen: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def sites(self, box_um: BoxUm) -> Sites:
        """Every site in a rectangle (x0, y0, x1, y1) of µm, in a fixed order."""
        first_x, first_y = (math.floor(value / _BLOCK_UM) - 1 for value in box_um[:2])
        last_x, last_y = (math.ceil(value / _BLOCK_UM) + 1 for value in box_um[2:])
        blocks = [self._block(x, y) for y in range(first_y, last_y) for x in range(first_x, last_x)]
        index, xy, chance, rare = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        seen = np.flatnonzero((xy >= box_um[:2]).all(axis=1) & (xy < box_um[2:]).all(axis=1))
        seen = seen[np.lexsort(index[seen].T)]
        return Sites(index[seen], xy[seen], chance[seen], self._kept(rare[seen], index[seen], xy[seen]))

    def _block(self, block_x: int, block_y: int) -> Sites:
        rng = np.random.default_rng([self.seed, block_x + _OFFSET, block_y + _OFFSET])
        row, column = np.divmod(np.arange(_ROW * _ROW), _ROW)
        index = np.column_stack([column + _ROW * block_x, row + _ROW * block_y])
        chance = rng.random((len(index), 8))
        xy = (index + 0.25 + 0.5 * chance[:, :2]) * _PITCH_UM
        xy[:, 0] += 0.5 * _PITCH_UM * (row % 2)
        return Sites(index, xy, chance[:, 2:], self._rare(rng, index))

    def _rare(self, rng: np.random.Generator, index: NDArray[np.int64]) -> NDArray[np.str_]:
        """Figures, look-alikes and clutter on every second site, so that they keep their distance."""
        kinds = np.full(len(index), "", "<U16")
        free = rng.permutation(np.flatnonzero((index % 2 == 0).all(axis=1)))
        for density, shares in zip(self.density_per_mm2, (PHASES, OTHERS, CLUTTER), strict=True):
            n = min(int(rng.poisson(density * (_BLOCK_UM / 1000) ** 2)), len(free))
            kinds[free[:n]] = rng.choice(list(shares), n, p=list(shares.values()))
            free = free[n:]
        return kinds

    def _kept(self, rare: NDArray[np.str_], index: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.str_]:
        """Rare kinds that lie in tumour, and the chosen ones."""
        kept = np.where(is_tumour(self.zones.at(xy[:, 0], xy[:, 1])), rare, "")
        for k, (column, row) in enumerate(index.tolist()) if self.chosen else ():
            kept[k] = self.chosen.get((column, row), kept[k])
        return kept

    def cells(self, box_um: BoxUm) -> tuple[list[Cell], NDArray[np.float64]]:
        """What may be seen in a rectangle, in the order of drawing, and the centres of all sites, µm [N, 2]."""
        sites = self.sites(_grown(box_um, _REACH_UM + _ROOM_UM + 2 * _PITCH_UM))
        x0, y0, x1, y1 = _grown(box_um, _REACH_UM)
        drawn = [c for c in self._populate(sites) if x0 <= c.x_um < x1 and y0 <= c.y_um < y1]
        return sorted(drawn, key=lambda cell: _LAYER.get(cell.kind, 0)), sites.xy

    def _populate(self, sites: Sites) -> Iterator[Cell]:
        places = self.zones.at(sites.xy[:, 0], sites.xy[:, 1])
        figures = sites.xy[np.isin(sites.rare, [*PHASES, *OTHERS])]
        crowded = np.zeros(len(sites.xy), bool)
        if len(figures):
            crowded = KDTree(figures).query(sites.xy)[0] < _ROOM_UM
        room = KDTree(sites.xy).query(sites.xy, k=2)[0][:, 1] if len(sites.xy) > 1 else np.full(len(sites.xy), 10.0)
        flow = self.zones.fibre_angle(sites.xy[:, 0], sites.xy[:, 1])
        usual = _usual_kinds(places, sites.chance[:, 0])
        for k, (x, y) in enumerate(sites.xy.tolist()):
            column, row = sites.lattice[k].tolist()
            seed = (self.seed, column + _OFFSET, row + _OFFSET, 0)
            a, b, c, d, e = sites.chance[k, 1:].tolist()
            if sites.rare[k]:
                yield Cell(str(sites.rare[k]), x, y, 0.88 + 0.27 * a, math.tau * b, seed)
            elif crowded[k] or usual[k] == "":
                continue
            elif usual[k] == "fibroblast":
                yield Cell("fibroblast", x, y, 0.75 + 0.5 * a, float(flow[k]) + 0.5 * (b - 0.5), seed)
            elif usual[k] in ("epithelial", "pale"):
                size = min((0.82 + 0.42 * a) * (1 + 0.08 * float(places.cloud[k])), 0.135 * float(room[k]))
                yield Cell(str(usual[k]), x, y, size, math.tau * b, seed)
            else:
                yield from _crowd(str(usual[k]), (x, y), (a, b, c, d, e), seed)


_LAYER = {**dict.fromkeys(PHASES, 1), **dict.fromkeys(OTHERS, 1), **dict.fromkeys(CLUTTER, 2)}


def is_tumour(places: Places) -> NDArray[np.bool_]:
    """Where a figure may lie: in tumour, off every edge."""
    return (places.stroma < -0.08) & (places.gap < -0.3) & (places.glass < -0.1) & (places.lymphoid < 0)


def _usual_kinds(places: Places, chance: NDArray[np.float64]) -> NDArray[np.str_]:
    """The ordinary cell of every site, or "" for none."""
    tumour = np.select([chance < 0.07, chance < 0.2, chance < 0.215], ["", "pale", "lymphocyte"], default="epithelial")
    stroma = np.select(
        [chance < 0.44, chance < 0.49, chance < 0.51], ["fibroblast", "lymphocyte", "red cell"], default=""
    )
    empty = (places.glass > -0.04) | (places.gap > -0.12)
    inside = np.where((places.gap > 0.12) & (places.glass < -0.2) & (chance < 0.4), "red cell", "")
    kinds: NDArray[np.str_] = np.select(
        [empty, places.lymphoid > 0, places.stroma > 0],
        [inside, np.where(chance < 0.9, "lymphocyte", "pale"), stroma],
        tumour,
    )
    return kinds


def _crowd(kind: str, xy: tuple[float, float], chance: tuple[float, ...], seed: tuple[int, ...]) -> Iterator[Cell]:
    """One to four small cells around a site."""
    a, b, c, d, e = chance
    for k in range(1 + int(3.2 * c)):
        angle = math.tau * (b + k / (2 + 2 * c))
        far = (3.0 + 2.6 * d) * (c > 0.3)
        x, y = xy[0] + far * math.cos(angle), xy[1] + far * math.sin(angle)
        yield Cell(kind, x, y, 0.85 + 0.3 * ((a + 0.37 * k) % 1), math.tau * ((e + 0.29 * k) % 1), (*seed[:-1], k))


def _grown(box_um: BoxUm, margin_um: float) -> BoxUm:
    x0, y0, x1, y1 = box_um
    return x0 - margin_um, y0 - margin_um, x1 + margin_um, y1 + margin_um
