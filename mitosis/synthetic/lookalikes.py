"""What fools models and beginners: dying and crowded nuclei, pigment, ink."""

import numpy as np

from mitosis.synthetic.canvas import Canvas, Floats, Kind, Sprite, capsule, disc, outline

__all__ = ["LOOKALIKES"]


def _shrunken(rng: np.random.Generator, canvas: Canvas, body: Floats) -> tuple[Floats, Floats]:
    """(what stays visible, eosin) of a cell that has drawn back from its neighbours on one side."""
    cell = canvas.cover(body, 0.7)
    along, _ = canvas.turned(rng.uniform(0, 2 * np.pi))
    width = 0.9 + 0.14 * np.clip(along, -4, 6) + 0.35 * canvas.noise(rng, "vacuole")
    gap = np.exp(-((np.maximum(body - 0.3, 0) / np.maximum(width, 0.15)) ** 2)) * (1 - cell)
    pink = cell * (rng.uniform(0.4, 0.62) + 0.05 * canvas.noise(rng, "thread") + 0.03 * canvas.noise(rng, "grain"))
    return (1 - 0.85 * cell) * (1 - rng.uniform(0.6, 0.95) * gap), pink


def pyknotic(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """A dying cell: one smooth, even, very dark ball in shrunken, bright pink cytoplasm with a white halo."""
    edge = outline(rng, canvas, 2.5 * size * rng.uniform(0.85, 1.2), angle, rng.uniform(1.0, 1.25), 0.02)
    body = outline(rng, canvas, size * rng.uniform(4.2, 5.4), angle, rng.uniform(1.0, 1.25), 0.05)
    nucleus, cell = canvas.cover(edge, 0.5), canvas.cover(body, 0.7)
    keep, pink = _shrunken(rng, canvas, body)
    keep, pink = keep * (1 - nucleus), pink * (1 - nucleus)
    return canvas.sprite(keep, edge - 0.3, haematoxylin=1.25 * nucleus + 0.03 * cell, eosin=pink + 0.35 * nucleus)


def apoptotic(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """A dying cell: several smooth, round, dark globules of unequal size in a bright pink, shrunken cell."""
    body = outline(rng, canvas, size * rng.uniform(4.3, 5.4), angle, rng.uniform(1.0, 1.2), 0.05)
    globules = np.full(canvas.x.shape, 1e3, np.float32)
    around = rng.uniform(0, 2 * np.pi)
    for k in range(rng.integers(3, 6)):
        far = size * (0.6 if k == 0 else rng.uniform(1.7, 2.9))
        around += rng.uniform(1.2, 2.0)
        radius = size * (1.5 if k == 0 else rng.uniform(0.5, 1.0))
        globules = np.minimum(globules, disc(canvas, far * np.cos(around), far * np.sin(around), radius))
    dark, cell = canvas.cover(globules, 0.45), canvas.cover(body, 0.7)
    keep, pink = _shrunken(rng, canvas, body)
    keep, pink = keep * (1 - dark), pink * (1 - dark)
    extent = disc(canvas, 0, 0, 3.4 * size)
    return canvas.sprite(keep, extent, haematoxylin=1.25 * dark + 0.03 * cell, eosin=pink + 0.3 * dark)


def hyperchromatic(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """A dark, smudged nucleus, long or angular, its border smooth and whole, its cytoplasm untouched."""
    edge = outline(rng, canvas, 3.5 * size * rng.uniform(0.85, 1.1), angle, rng.uniform(1.6, 2.6), 0.05)
    inside = canvas.cover(edge, 0.7)
    blue = inside * (rng.uniform(0.72, 0.92) + 0.06 * canvas.noise(rng, "thread"))
    return canvas.sprite(1 - 0.9 * inside, edge, haematoxylin=np.maximum(blue, 0), eosin=0.3 * inside)


def pigment(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:  # noqa: ARG001 (one signature)
    """A heap of brown grains."""
    grains = np.full(canvas.x.shape, 1e3, np.float32)
    for x, y in rng.normal(0, 2.2 * size, (rng.integers(10, 26), 2)).clip(-6.5, 6.5):
        grains = np.minimum(grains, disc(canvas, x, y, rng.uniform(0.3, 0.75)))
    brown = canvas.cover(grains, 0.35)
    return canvas.sprite(1 - 0.5 * brown, grains, brown=rng.uniform(0.9, 1.3) * brown)


def ink(rng: np.random.Generator, canvas: Canvas, size: float, angle: float) -> Sprite:
    """A streak of marking ink, black or blue, above the tissue."""
    along, across = canvas.turned(angle)
    across = across + np.float32(rng.normal(0, 0.015)) * along**2
    half = size * rng.uniform(8, 13)
    edge = capsule(along, across, half, rng.uniform(0.5, 1.3)) + 0.3 * canvas.noise(rng, "grain")
    edge = edge + 0.35 * canvas.noise(rng, "thread")
    black = canvas.cover(edge, 0.5) * rng.uniform(1.0, 1.5)
    return canvas.sprite(np.ones_like(black), edge, ink=black)


LOOKALIKES = {
    "pyknotic": Kind(pyknotic, 10.0, 2),
    "apoptotic": Kind(apoptotic, 10.0, 2),
    "hyperchromatic": Kind(hyperchromatic, 10.0, 2),
    "pigment": Kind(pigment, 8.0),
    "ink": Kind(ink, 18.0),
}
