"""Mitotic figures, phase by phase: dark chromatin without a membrane, in a rounded cell with cleared cytoplasm."""

import numpy as np
from numpy.typing import NDArray

from mitosis.synthetic.canvas import Canvas, Floats, Kind, Sprite, capsule, outline, rods

__all__ = ["FIGURES"]


def _dividing_cell(
    rng: np.random.Generator, canvas: Canvas, chromatin: Floats, body: Floats, extent: Floats, density: float = 1.3
) -> Sprite:
    """Chromatin (signed distance, µm) in its cell (signed distance of the cell's edge, µm)."""
    hairy = chromatin + 0.2 * canvas.noise(rng, "clump") + 0.14 * canvas.noise(rng, "grain")
    hairy = hairy + 0.08 * canvas.noise(rng, "fine")
    dark = canvas.cover(hairy, 0.5)
    cell = canvas.cover(body, 2.2)
    wall = np.exp(-((body / 0.45) ** 2)) * rng.uniform(0.03, 0.14)
    veil = 0.12 * np.exp(-np.maximum(hairy, 0) / 0.7)
    blue = dark * (density + 0.14 * canvas.noise(rng, "thread") + 0.06 * canvas.noise(rng, "grain")) + (1 - dark) * veil
    keep = (1 - rng.uniform(0.25, 0.45) * cell) * (1 - dark)
    return canvas.sprite(keep, extent, haematoxylin=blue, eosin=0.12 * dark + wall)


def _scatter(rng: np.random.Generator, n: int, radius_um: float, inner_um: float = 0.0) -> NDArray[np.float64]:
    """`n` places (x, y), evenly over a disc or a ring."""
    distance = np.sqrt(rng.uniform(inner_um**2, radius_um**2, n))
    around = 2 * np.pi * (np.arange(n) + rng.random(n)) / n * (1 if inner_um else 2.618)
    return np.column_stack([distance * np.cos(around), distance * np.sin(around)])


def prophase(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """Condensed threads that fill a round nucleus, gaps between them, no membrane and no nucleolus."""
    radius = 4.4 * size * rng.uniform(0.9, 1.1)
    parts = np.column_stack([_scatter(rng, 34, radius - 0.7), rng.uniform(0, np.pi, 34), rng.uniform(0.5, 1.2, 34)])
    threads = rods(canvas, parts, 0.42)
    extent = outline(rng, canvas, radius + 0.3, angle, 1.1, 0.03)
    body = outline(rng, canvas, radius + 3.2, angle, 1.1, 0.04)
    return _dividing_cell(rng, canvas, threads, body, extent, 1.25)


def prometaphase(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """A ragged dark clump, arms of chromosomes sticking out."""
    radius = 3.2 * size * rng.uniform(0.85, 1.15)
    places = _scatter(rng, 22, radius)
    outward = np.arctan2(places[:, 1], places[:, 0]) + rng.normal(0, 0.5, 22)
    parts = np.column_stack([places, outward, rng.uniform(0.4, 1.1, 22)])
    core = outline(rng, canvas, radius * rng.uniform(0.6, 0.85), angle, rng.uniform(1.0, 1.6), 0.12)
    extent = outline(rng, canvas, radius + 1.1, angle, 1.1, 0.03)
    body = outline(rng, canvas, radius + 4.2, angle, 1.1, 0.04)
    return _dividing_cell(rng, canvas, np.minimum(rods(canvas, parts, 0.5), core), body, extent)


def _plate(
    rng: np.random.Generator, canvas: Canvas, centre_um: tuple[float, float], angle: float, half_um: float, width: float
) -> Floats:
    """A fuzzy bar seen edge-on, a little bent; `angle` runs along it."""
    n = 16
    along = np.linspace(-half_um, half_um, n) + rng.normal(0, 0.45, n)
    bow = rng.normal(0, 0.4) * ((along / half_um) ** 2 - 0.4)
    across = bow + rng.normal(0, 0.22, n) * width
    x = centre_um[0] + np.cos(angle) * along - np.sin(angle) * across
    y = centre_um[1] + np.sin(angle) * along + np.cos(angle) * across
    tilt = angle + np.pi / 2 + rng.normal(0, 0.5, n)
    arms = rods(canvas, np.column_stack([x, y, tilt, rng.gamma(2, 0.2, n).clip(0, 1.1) * width]), 0.6 * width)
    spine = np.column_stack([x[1:-1], y[1:-1], np.full(n - 2, angle), np.full(n - 2, 0.5)])
    return np.minimum(arms, rods(canvas, spine, 0.85 * width))


def metaphase(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """The plate edge-on: a dark bar of about 10 by 2.5 µm across a clear cell."""
    half = 4.1 * size * rng.uniform(0.8, 1.15)
    width = rng.uniform(0.85, 1.2)
    bar = _plate(rng, canvas, (0, 0), angle, half, width)
    along, across = canvas.turned(angle)
    body = outline(rng, canvas, half + 3.4, angle, rng.uniform(0.95, 1.2), 0.04)
    return _dividing_cell(rng, canvas, bar, body, capsule(along, across, half, 1.6 * width))


def ring(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """The plate seen from a pole: a ragged ring with a pale hole."""
    radius = 3.6 * size * rng.uniform(0.9, 1.15)
    places = _scatter(rng, 22, radius + 0.5, radius - 0.7)
    outward = np.arctan2(places[:, 1], places[:, 0]) + rng.normal(0, 0.8, 22)
    wreath = rods(canvas, np.column_stack([places, outward, rng.gamma(2, 0.3, 22).clip(0, 1.2)]), 0.66)
    band = np.abs(outline(rng, canvas, radius, angle, rng.uniform(1.0, 1.25), 0.06)) - 0.55
    wreath = np.minimum(wreath, band + 0.35 * canvas.noise(rng, "vacuole"))
    extent = outline(rng, canvas, radius + 1.9, angle, 1.0, 0.03)
    body = outline(rng, canvas, radius + 4.4, angle, 1.1, 0.04)
    return _dividing_cell(rng, canvas, wreath, body, extent)


def _pair(
    rng: np.random.Generator, canvas: Canvas, angle: float, gap_um: float, half: float, width: float
) -> tuple[Floats, Floats]:
    """Two bars `gap_um` apart, side by side: (chromatin, both together as one piece), signed distances."""
    shift = gap_um / 2 * np.array([-np.sin(angle), np.cos(angle)])
    tilt = rng.normal(0, 0.12, 2)
    first = _plate(rng, canvas, (shift[0], shift[1]), angle + tilt[0], half, width)
    second = _plate(rng, canvas, (-shift[0], -shift[1]), angle + tilt[1], half, width)
    along, across = canvas.turned(angle)
    reach = gap_um / 2 + width
    beyond = np.hypot(np.maximum(np.abs(along) - half - 0.4, 0), np.maximum(np.abs(across) - reach, 0))
    return np.minimum(first, second), beyond - np.float32(1.2 * width)


def anaphase(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """Two parallel bars, 5 to 8 µm apart, in one oval cell."""
    gap = size * rng.uniform(4.8, 7.5)
    half = 3.0 * size * rng.uniform(0.85, 1.15)
    bars, extent = _pair(rng, canvas, angle, gap, half, rng.uniform(0.8, 1.05))
    body = outline(rng, canvas, 8.2 * size, angle + np.pi / 2, 1.25, 0.03)
    return _dividing_cell(rng, canvas, bars, body, extent)


def telophase(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """Two shorter bars, 8 to 12 µm apart, in a cell pinched between them."""
    gap = size * rng.uniform(8.5, 11.5)
    half = 2.3 * size * rng.uniform(0.8, 1.15)
    bars, extent = _pair(rng, canvas, angle, gap, half, rng.uniform(0.85, 1.1))
    along, across = canvas.turned(angle)
    body = np.minimum(capsule(along, across - gap / 2, 1.2, 5.2), capsule(along, across + gap / 2, 1.2, 5.2))
    return _dividing_cell(rng, canvas, bars, body, extent)


FIGURES = {
    "prophase": Kind(prophase, 12.0, 1),
    "prometaphase": Kind(prometaphase, 12.0, 1),
    "metaphase": Kind(metaphase, 14.0, 1),
    "ring": Kind(ring, 13.0, 1),
    "anaphase": Kind(anaphase, 15.0, 1),
    "telophase": Kind(telophase, 17.0, 1),
}
