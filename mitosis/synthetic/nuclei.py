"""Ordinary cells: resting epithelial nuclei, fibroblasts, lymphocytes, red blood cells."""

import numpy as np

from mitosis.synthetic.canvas import Canvas, Floats, Kind, Sprite, capsule, disc, outline, smooth

__all__ = ["NUCLEI"]


def _vesicular(
    rng: np.random.Generator, canvas: Canvas, edge: Floats, base: float, clumps: float, rim: float
) -> Floats:
    """Haematoxylin of a resting nucleus: a dark membrane around pale chromatin with clumps."""
    inside = canvas.cover(edge, 0.6)
    patchy = canvas.noise(rng, "thread") + 0.6 * canvas.noise(rng, "grain")
    near_rim = np.exp(-(((edge + 0.9) / 0.9) ** 2))
    chromatin = base + clumps * smooth(0.4, 1.5, patchy + 0.5 * near_rim) + 0.05 * canvas.noise(rng, "clump")
    membrane = np.exp(-(((edge + 0.4) / 0.42) ** 2)) * rim * (1 + 0.5 * canvas.noise(rng, "thread"))
    blue: Floats = inside * np.maximum(chromatin, 0.05) + np.maximum(membrane, 0)
    return blue


def epithelial(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """A resting tumour nucleus: oval, pale in the middle, with clumps and one or two nucleoli."""
    radius = 4.1 * size * rng.uniform(0.9, 1.12)
    edge = outline(rng, canvas, radius, angle, rng.uniform(1.0, 1.5), 0.045)
    inside = canvas.cover(edge, 0.6)
    base = rng.uniform(0.03, 0.38)
    blue = _vesicular(rng, canvas, edge, base, rng.uniform(0.35, 0.7), rng.uniform(0.3, 0.55))
    pink = (0.12 + 0.2 * base) * inside
    for _ in range(rng.integers(0, 3)):
        x, y = rng.uniform(-0.5, 0.5, 2) * radius
        spot = canvas.cover(disc(canvas, x, y, rng.uniform(0.5, 1.05)), 0.7)
        blue = blue * (1 - 0.5 * spot) + 0.6 * spot
        pink = pink + 0.32 * spot
    return canvas.sprite(1 - 0.85 * inside, edge, haematoxylin=blue, eosin=pink)


def pale(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """A nucleus above or below the plane of focus: faint, without a sharp edge."""
    edge = outline(rng, canvas, 4.0 * size * rng.uniform(0.9, 1.1), angle, rng.uniform(1.0, 1.4), 0.05)
    inside = canvas.cover(edge, 1.6)
    blue = inside * (rng.uniform(0.1, 0.25) + 0.07 * canvas.noise(rng, "clump"))
    blue = blue + 0.1 * np.exp(-((edge / 0.8) ** 2))
    return canvas.sprite(1 - 0.25 * inside, edge, haematoxylin=np.maximum(blue, 0), eosin=0.05 * inside)


def fibroblast(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """A spindle: long, thin, evenly dark, pointed."""
    along, across = canvas.turned(angle)
    half = size * rng.uniform(3.5, 7.5)
    width = size * rng.uniform(0.7, 1.5)
    bend = rng.normal(0, 0.02)
    across = across + np.float32(bend) * along**2
    thick = width * np.maximum(1 - (along / half) ** 2, 0)
    edge = np.maximum(np.abs(across) - thick, (np.abs(along) - half)) / np.float32(1.1)
    inside = canvas.cover(edge, 0.45)
    dark = rng.uniform(0.25, 0.62)
    blue = inside * (dark + 0.12 * canvas.noise(rng, "grain") + 0.1 * canvas.noise(rng, "clump"))
    blue = blue + 0.2 * np.exp(-(((edge + 0.3) / 0.35) ** 2))
    tails = canvas.cover(capsule(along, across, half + 1.5, 0.15), 1.2)
    return canvas.sprite(1 - 0.8 * inside, edge, haematoxylin=np.maximum(blue, 0), eosin=0.2 * inside + 0.15 * tails)


def lymphocyte(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """Small, round and dark, with blocks of chromatin and hardly any cytoplasm."""
    edge = outline(rng, canvas, 2.9 * size * rng.uniform(0.9, 1.12), angle, rng.uniform(1.0, 1.18), 0.03)
    inside = canvas.cover(edge, 0.4)
    blocks = smooth(-0.2, 1.0, canvas.noise(rng, "clump"))
    blue = inside * (rng.uniform(0.38, 0.6) + 0.36 * blocks) + 0.12 * np.exp(-(((edge + 0.4) / 0.4) ** 2))
    halo = np.exp(-(((edge - 0.7) / 0.5) ** 2)) * rng.uniform(0.0, 0.3)
    return canvas.sprite((1 - 0.9 * inside) * (1 - halo), edge, haematoxylin=blue, eosin=0.16 * inside)


def red_cell(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """A red blood cell: an even orange-red disc, a little paler in the middle."""
    radius = 3.0 * size
    edge = outline(rng, canvas, radius, angle, rng.uniform(1.0, 1.35), 0.04)
    inside = canvas.cover(edge, 0.4)
    hollow = np.exp(-(((edge + radius) / (0.6 * radius)) ** 2))
    red = inside * (rng.uniform(0.42, 0.58) - 0.1 * hollow)
    return canvas.sprite(1 - inside, edge, eosin=red, brown=0.2 * inside)


NUCLEI = {
    "epithelial": Kind(epithelial, 9.0),
    "fibroblast": Kind(fibroblast, 12.0),
    "lymphocyte": Kind(lymphocyte, 6.0),
    "pale": Kind(pale, 8.5),
    "red cell": Kind(red_cell, 5.0),
}
