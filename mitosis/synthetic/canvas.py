"""What a drawing function draws on: a small square of pixels around one cell, with everything measured in µm.

Colours are optical densities: what haematoxylin, eosin, brown pigment and ink each take away from the light. They add
up, as dyes do, and become red, green and blue only at the very end (`mitosis.synthetic.stain`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mitosis.synthetic.texture import Textures

__all__ = [
    "CHANNELS",
    "Canvas",
    "Floats",
    "Kind",
    "Sprite",
    "canvas_for",
    "capsule",
    "disc",
    "outline",
    "rods",
    "smooth",
]

Floats = NDArray[np.float32]
CHANNELS = ("haematoxylin", "eosin", "brown", "ink")


@dataclass(frozen=True)
class Sprite:
    """One drawn cell.

    Attributes
    ----------
    keep : float32 [n, n]
        Fraction of what lies below that stays visible.
    add : float32 [4, n, n]
        Optical density laid on top, in the order of `CHANNELS`.
    extent : bool [n, n]
        Where the nucleus or figure is; a pair in telophase is one piece.
    """

    keep: Floats
    add: Floats
    extent: NDArray[np.bool_]


@dataclass(frozen=True)
class Canvas:
    """Pixels around a cell.

    Attributes
    ----------
    x, y : float32 [n, n]
        Position of every pixel's centre, µm from the cell's centre, x right, y down.
    mpp : float
        µm/px.
    textures : Textures
        Noise at the same µm/px.
    """

    x: Floats
    y: Floats
    mpp: float
    textures: Textures

    def turned(self, angle: float) -> tuple[Floats, Floats]:
        """Coordinates (along, across) an axis that points to `angle` (radians), µm."""
        cosine, sine = math.cos(angle), math.sin(angle)
        return cosine * self.x + sine * self.y, cosine * self.y - sine * self.x

    def noise(self, rng: np.random.Generator, name: str) -> Floats:
        """A random piece of the texture `name`, mean 0, standard deviation 1."""
        field = self.textures.fields[name]
        row, column = (rng.random(2) * len(field)).astype(int)
        steps = np.arange(len(self.x))
        piece: Floats = field.take(row + steps, axis=0, mode="wrap").take(column + steps, axis=1, mode="wrap")
        return piece

    def cover(self, distance: Floats, width_um: float = 0.25) -> Floats:
        """Anti-aliased inside (1) and outside (0) of an outline, from signed distances in µm (negative inside)."""
        cover: Floats = np.clip(0.5 - distance / max(width_um, self.mpp), 0, 1).astype(np.float32, copy=False)
        return cover

    def sprite(self, keep: Floats, extent: Floats, **densities: Floats) -> Sprite:
        """Pack a drawing; `extent` is a signed distance in µm, `densities` are named by `CHANNELS`."""
        add = np.zeros((len(CHANNELS), *keep.shape), np.float32)
        for name, density in densities.items():
            add[CHANNELS.index(name)] = density
        return Sprite(keep.astype(np.float32), add, extent < 0)


@dataclass(frozen=True)
class Kind:
    """A kind of cell.

    Attributes
    ----------
    draw : callable (rng, canvas, size, angle) -> Sprite
        `size` is 1 for a usual cell; `angle` (radians) turns it.
    radius_um : float
        The drawing changes nothing further from the centre than this, along x and along y.
    value : int
        Its value in a mask: 1 mitotic figure, 2 annotated look-alike, 0 neither.
    """

    draw: Callable[[np.random.Generator, Canvas, float, float], Sprite]
    radius_um: float
    value: int = 0


def canvas_for(radius_um: float, offset_px: tuple[float, float], mpp: float, textures: Textures) -> Canvas:
    """A canvas of half-side `radius_um`; the cell's centre lies at `offset_px` (x, y) in its central pixel."""
    half = math.ceil(radius_um / mpp)
    steps = np.arange(-half, half + 1)
    x = ((steps + 0.5 - offset_px[0]) * mpp).astype(np.float32)
    y = ((steps + 0.5 - offset_px[1]) * mpp).astype(np.float32)
    shape = (len(steps), len(steps))
    return Canvas(np.broadcast_to(x, shape), np.broadcast_to(y[:, None], shape), mpp, textures)


def smooth(low: float, high: float, value: Floats) -> Floats:
    """0 below `low`, 1 above `high`, an S-shaped rise between them."""
    t: Floats = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def disc(canvas: Canvas, x: float, y: float, radius_um: float) -> Floats:
    """Signed distance to a circle, µm."""
    distance: Floats = np.hypot(canvas.x - np.float32(x), canvas.y - np.float32(y)) - np.float32(radius_um)
    return distance


def capsule(along: Floats, across: Floats, half_length_um: float, radius_um: float) -> Floats:
    """Signed distance to a bar with round ends, µm; the bar is `2 * (half_length_um + radius_um)` long."""
    half = np.float32(half_length_um)
    return np.hypot(along - np.clip(along, -half, half), across) - np.float32(radius_um)


def outline(
    rng: np.random.Generator, canvas: Canvas, radius_um: float, angle: float, ratio: float = 1.0, rough: float = 0.05
) -> Floats:
    """Signed distance (about) to a wobbly ellipse, µm; `ratio` is its length over its width, the area stays."""
    along, across = canvas.turned(angle)
    root = math.sqrt(ratio)
    along, across = along / root, across * root
    distance = np.hypot(along, across)
    cosine, sine = along / (distance + 1e-3), across / (distance + 1e-3)
    real, imaginary = cosine, sine
    wobble = np.zeros_like(distance)
    for k in range(2, 6):
        real, imaginary = real * cosine - imaginary * sine, real * sine + imaginary * cosine
        a, b = rng.normal(0, rough * 2 / k, 2)
        wobble += np.float32(a) * real + np.float32(b) * imaginary
    return (distance - radius_um * (1 + wobble)).astype(np.float32, copy=False)


def rods(canvas: Canvas, parts: NDArray[np.float64], radius_um: float) -> Floats:
    """Signed distance to a heap of short rods, chromosomes, µm; each is a row (x, y, angle, half length) of `parts`."""
    nearest = np.full(canvas.x.shape, 1e3, np.float32)
    for x, y, angle, half_length in parts:
        cosine, sine = math.cos(angle), math.sin(angle)
        dx, dy = canvas.x - np.float32(x), canvas.y - np.float32(y)
        along, across = cosine * dx + sine * dy, cosine * dy - sine * dx
        nearest = np.minimum(nearest, capsule(along, across, half_length, radius_um))
    return nearest
