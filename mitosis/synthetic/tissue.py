"""Where there is tumour, stroma, lymphocytes, white space; and what they look like between the nuclei."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from mitosis.geometry import Box
from mitosis.synthetic.canvas import Floats, smooth
from mitosis.synthetic.texture import SCALES_UM, Field, Textures, make_field

__all__ = ["Places", "Zones", "draw_ground", "make_zones"]

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """What is found at some places; every array has the shape of the places.

    Attributes
    ----------
    glass, stroma, gap, lymphoid : float64
        Positive inside empty glass, stroma, a hole in the tissue, a crowd of lymphocytes; about 1 deep inside.
    across, along : float64
        Position across and along the collagen fibres, µm.
    cloud : float64
        Slow variation of thickness and tint.
    """

    glass: Reals
    stroma: Reals
    gap: Reals
    lymphoid: Reals
    across: Reals
    along: Reals
    cloud: Reals


@dataclass(frozen=True)
class Zones:
    """The plan of a slide, a function of the place in µm."""

    fields: dict[str, Field]
    direction: float
    tumour: float
    size_um: tuple[float, float] | None

    def at(self, x_um: Reals, y_um: Reals) -> Places:
        """Look up places."""
        value = {name: field.at(x_um, y_um) for name, field in self.fields.items()}
        cosine, sine = math.cos(self.direction), math.sin(self.direction)
        along = cosine * x_um + sine * y_um + 50 * value["bend"]
        across = cosine * y_um - sine * x_um + 50 * value["turn"] + 5 * value["wave"]
        septum = 0.38 - np.abs(value["septum"]) + 0.12 * value["wave"]
        stroma = np.maximum(1.6 * septum, value["region"] - 1.2 - self.tumour) - 0.12
        return Places(
            glass=self._glass(x_um, y_um, value),
            stroma=stroma - 0.4 * self.tumour,
            gap=value["gap"] - 2.05 + 0.35 * value["wave"] - 0.2 * (stroma > 0),
            lymphoid=value["lymphoid"] - 1.35 + 0.3 * value["wave"],
            across=across,
            along=along,
            cloud=value["wave"],
        )

    def fibre_angle(self, x_um: Reals, y_um: Reals) -> Reals:
        """Direction of the fibres (radians), square to the steepest change across them."""
        right, below = self.at(x_um + 1, y_um).across, self.at(x_um, y_um + 1).across
        here = self.at(x_um, y_um).across
        angle: Reals = np.arctan2(below - here, right - here) + math.pi / 2
        return angle

    def _glass(self, x_um: Reals, y_um: Reals, value: dict[str, Reals]) -> Reals:
        """Outside of the islands; the rim of the slide is always glass."""
        if self.size_um is None:
            return np.full(x_um.shape, -1.0)
        width, height = self.size_um
        inward = np.minimum(np.minimum(x_um, width - x_um), np.minimum(y_um, height - y_um)) / min(width, height)
        ragged = 0.22 * value["septum"] + 0.1 * value["region"] + 0.07 * value["wave"] + 0.3 * value["island"]
        return 0.9 - np.minimum(8 * inward, 1.6) - ragged


def make_zones(rng: np.random.Generator, tumour: float = 0.0, size_um: tuple[float, float] | None = None) -> Zones:
    """Draw a plan.

    Parameters
    ----------
    tumour : float
        More than 0 for less stroma, less than 0 for more.
    size_um : (width, height) or None
        Islands of tissue on a glass of this size, or tissue everywhere.
    """
    scales = {"septum": 70.0, "region": 260.0, "gap": 16.0, "lymphoid": 110.0, "bend": 90.0, "turn": 90.0, "wave": 14.0}
    scales["island"] = max(min(size_um) / 3, 60.0) if size_um else 1000.0
    fields = {name: make_field(rng, scale) for name, scale in scales.items()}
    return Zones(fields, float(rng.uniform(0, math.pi)), tumour, size_um)


@dataclass(frozen=True)
class _Pixels:
    """Brings values known at whole µm to the pixels of a region."""

    box: Box
    mpp: float

    def axis(self, start: int, stop: int) -> tuple[int, NDArray[np.int_], Floats]:
        """(first whole µm, index into the whole µm, fraction) for the pixels of one axis."""
        place = (np.arange(start, stop) + 0.5) * self.mpp
        whole = np.floor(place).astype(int)
        return int(whole[0]), whole - whole[0], (place - whole).astype(np.float32)

    def grid(self) -> tuple[Reals, Reals]:
        """(x, y) of the whole µm that cover the region, each [H, W]."""
        first_x, index_x, _ = self.axis(self.box.x0, self.box.x1)
        first_y, index_y, _ = self.axis(self.box.y0, self.box.y1)
        x = np.arange(first_x, first_x + index_x[-1] + 2, dtype=float)
        y = np.arange(first_y, first_y + index_y[-1] + 2, dtype=float)
        shape = (len(y), len(x))
        return np.broadcast_to(x, shape), np.broadcast_to(y[:, None], shape)

    def spread(self, values: Reals) -> Floats:
        """Values [H, W] of `grid` at every pixel, [h, w], linear in between."""
        _, column, right = self.axis(self.box.x0, self.box.x1)
        _, row, below = self.axis(self.box.y0, self.box.y1)
        coarse = values.astype(np.float32)
        wide = coarse[:, column] * (1 - right) + coarse[:, column + 1] * right
        return (wide[row] * (1 - below)[:, None] + wide[row + 1] * below[:, None]).astype(np.float32, copy=False)


def draw_ground(zones: Zones, textures: Textures, box: Box, centres_um: Reals) -> Floats:
    """Optical density of the tissue without its nuclei.

    Parameters
    ----------
    box : Box
        The region, px of the grid at the textures' µm/px.
    centres_um : float64 [N, 2]
        Centres of the cells whose borders are seen; must reach beyond the region.

    Returns
    -------
    float32 [4, h, w] in the order of `CHANNELS`
    """
    pixels = _Pixels(box, textures.mpp)
    x, y = pixels.grid()
    places = zones.at(x, y)
    ground = np.zeros((4, box.y1 - box.y0, box.x1 - box.x0), np.float32)
    if (places.glass >= 0.3).all():
        return ground
    texture = {name: textures.window(name, box.x0, box.y0, ground.shape[1:]) for name in SCALES_UM}
    cloud = pixels.spread(places.cloud)
    stroma = smooth(-0.08, 0.08, pixels.spread(places.stroma) + 0.05 * texture["vacuole"])
    epithelium = _epithelium(pixels, texture, centres_um, cloud)
    fibres = _fibres(pixels, textures, texture, places) if stroma.any() else (0.0, 0.0)
    hole = smooth(-0.08, 0.12, pixels.spread(places.gap) + 0.08 * texture["vacuole"] + 0.03 * texture["thread"])
    glass = smooth(-0.02, 0.02, pixels.spread(places.glass) + 0.012 * texture["vacuole"] + 0.006 * texture["thread"])
    present = (1 - hole) * (1 - glass)
    for channel in range(2):
        mixed = epithelium[channel] * (1 - stroma) + fibres[channel] * stroma
        ground[channel] = np.maximum(mixed, 0) * present
    return ground


def _epithelium(pixels: _Pixels, texture: dict[str, Floats], centres: Reals, cloud: Floats) -> tuple[Floats, Floats]:
    """(haematoxylin, eosin) of tumour cells: foamy cytoplasm of different tint, borders, small vacuoles."""
    x, y = pixels.grid()
    distance, nearest = KDTree(centres).query(np.stack([x, y], axis=-1), k=2)
    tint = np.modf(np.abs(np.sin(centres[:, 0] * 12.9898 + centres[:, 1] * 78.233)) * 437.585)[0]
    cell = pixels.spread(tint[nearest[..., 0]]) - 0.5
    between = pixels.spread(distance[..., 1] - distance[..., 0])
    border = np.exp(-((between / 0.7) ** 2)) * smooth(-1.0, 1.0, texture["cloud"])
    slit = np.exp(-((between / 1.1) ** 2)) * smooth(0.4, 1.6, texture["vacuole"] - 0.4 * texture["cloud"])
    threads = 0.8 - np.abs(texture["thread"] + 0.5 * texture["clump"])
    patchy = texture["thread"] + 0.35 * texture["clump"] + 0.8 * texture["vacuole"]
    foam = smooth(0.5, 2.6, patchy + 0.8 * texture["cloud"] - 1.2 * cell)
    light = (1 - (0.5 + 0.12 * texture["cloud"]) * foam) * (1 - 0.85 * slit)
    eosin = 0.33 + 0.13 * cell + 0.05 * cloud + 0.07 * threads + 0.03 * texture["grain"] + 0.01 * texture["fine"]
    blue = 0.1 + 0.08 * cell + 0.06 * threads + 0.03 * texture["clump"] + 0.015 * texture["grain"]
    return light * blue + 0.03 * border, light * eosin + 0.16 * border


def _fibres(pixels: _Pixels, textures: Textures, texture: dict[str, Floats], places: Places) -> tuple[Floats, Floats]:
    """(haematoxylin, eosin) of collagen: wavy bundles, white slits between some of them."""
    field = textures.fields["clump"]
    period = len(field)
    across, along = pixels.spread(places.across), pixels.spread(places.along)
    row = (across / textures.mpp).astype(np.int64) % period
    column = (along / (9 * textures.mpp)).astype(np.int64) % period
    strand = field[row, column]
    bundle = textures.fields["vacuole"][row, column]
    slit = smooth(1.2, 2.0, bundle + 0.35 * strand + 0.2 * texture["vacuole"])
    eosin = 0.4 + 0.1 * bundle + 0.085 * strand + 0.03 * texture["grain"]
    blue = 0.05 + 0.015 * strand + 0.01 * texture["clump"]
    return (1 - 0.9 * slit) * blue, (1 - 0.9 * slit) * eosin
