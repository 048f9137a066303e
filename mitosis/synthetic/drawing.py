"""Drawing a region of a scene, and patches of H&E-like tissue with their masks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mitosis.annotations import Annotation, Label
from mitosis.geometry import Box
from mitosis.synthetic.canvas import Floats, Kind, canvas_for
from mitosis.synthetic.figures import FIGURES
from mitosis.synthetic.lookalikes import LOOKALIKES
from mitosis.synthetic.nuclei import NUCLEI
from mitosis.synthetic.scene import OTHERS, PHASES, Cell, Scene, is_tumour
from mitosis.synthetic.stain import Stain, margin_px, random_stain, to_rgb
from mitosis.synthetic.texture import SENSOR, Textures, make_textures
from mitosis.synthetic.tissue import draw_ground, make_zones

__all__ = ["CELLS", "Drawing", "draw_region", "draw_tissue"]

CELLS: dict[str, Kind] = {**FIGURES, **LOOKALIKES, **NUCLEI}
_LABELS = {1: Label.MITOTIC_FIGURE, 2: Label.NON_MITOTIC_FIGURE}
_EDGE_UM = 10.0  # of a patch, free of figures
_APART_UM = 18.0  # at least, between two figures
_CLUTTER_PER_MM2 = 130.0
_TRIES = 50


@dataclass(frozen=True)
class Drawing:
    """A picture and what is in it.

    Attributes
    ----------
    image : uint8 [h, w, 3]
    mask : uint8 [h, w]
        0 background, 1 mitotic figure, 2 non-mitotic figure.
    annotations : tuple of Annotation
        One for each figure and each annotated look-alike whose centre lies in the picture.
    kinds : tuple of str
        The kind in `CELLS` of each annotation.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    annotations: tuple[Annotation, ...]
    kinds: tuple[str, ...]


def draw_region(scene: Scene, box: Box, stain: Stain, textures: Textures) -> Drawing:
    """Draw `box` (px of the grid at the textures' µm/px) of a scene; a pixel does not depend on the box it is drawn in.

    Annotations are in px of that grid, from the scene's corner.
    """
    mpp = textures.mpp
    margin = margin_px(stain, mpp)
    wide = box.grown(margin)
    cells, centres_um = scene.cells((wide.x0 * mpp, wide.y0 * mpp, wide.x1 * mpp, wide.y1 * mpp))
    density = draw_ground(scene.zones, textures, wide, centres_um)
    mask = np.zeros(density.shape[1:], np.uint8)
    for cell in cells:
        _paste(cell, wide, textures, density, mask)
    light = to_rgb(density, stain, mpp)[:, margin:-margin, margin:-margin]
    image = _sensor(light, box, stain, textures)
    seen = [c for c in cells if CELLS[c.kind].value and _holds(box, c.x_um / mpp, c.y_um / mpp)]
    annotations = tuple(Annotation(c.x_um / mpp, c.y_um / mpp, _LABELS[CELLS[c.kind].value]) for c in seen)
    return Drawing(image, mask[margin:-margin, margin:-margin].copy(), annotations, tuple(c.kind for c in seen))


def _holds(box: Box, x: float, y: float) -> bool:
    return box.x0 <= x < box.x1 and box.y0 <= y < box.y1


def _paste(cell: Cell, box: Box, textures: Textures, density: Floats, mask: NDArray[np.uint8]) -> None:
    """Draw one cell into the region's optical density and mask."""
    kind = CELLS[cell.kind]
    x, y = cell.x_um / textures.mpp, cell.y_um / textures.mpp
    half = math.ceil(kind.radius_um / textures.mpp)
    left, top = math.floor(x) - half - box.x0, math.floor(y) - half - box.y0
    height, width = mask.shape
    side = 2 * half + 1
    if left >= width or top >= height or left + side <= 0 or top + side <= 0:
        return
    canvas = canvas_for(kind.radius_um, (x - math.floor(x), y - math.floor(y)), textures.mpp, textures)
    sprite = kind.draw(np.random.default_rng(cell.seed), canvas, cell.size, cell.angle)
    rows, columns = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
    inner = (slice(rows.start - top, min(side, height - top)), slice(columns.start - left, min(side, width - left)))
    below = density[:, rows, columns]
    below *= sprite.keep[inner]
    below += sprite.add[(slice(None), *inner)]
    if kind.value:
        mask[rows, columns][sprite.extent[inner]] = kind.value


def _sensor(light: Floats, box: Box, stain: Stain, textures: Textures) -> NDArray[np.uint8]:
    """Add noise and round to whole grey levels: uint8 [h, w, 3]."""
    image = np.empty((*light.shape[1:], 3), np.uint8)
    for colour in range(3):
        noise = textures.window(SENSOR, box.x0 + 337 * colour, box.y0 + 131 * colour, light.shape[1:])
        image[..., colour] = np.clip(light[colour] + np.float32(stain.noise) * noise + 0.5, 0, 255)
    return image


def draw_tissue(
    rng: np.random.Generator,
    size: tuple[int, int] = (512, 512),
    mpp: float = 0.25,
    *,
    n_mitotic: int = 3,
    n_lookalike: int = 3,
    stain: Stain | None = None,
    phases: Sequence[str] | None = None,
    tumour: float | None = None,
) -> Drawing:
    """Draw a patch of H&E-like tissue.

    Parameters
    ----------
    size : (width, height)
        px.
    mpp : float
        µm/px; the same `rng` gives the same scene at any.
    n_mitotic, n_lookalike : int
        Mitotic figures, and look-alikes that are annotated.
    stain : Stain or None
        None for a random one.
    phases : sequence of str or None
        The figures' kinds (keys of `CELLS`), used in turn; None for random ones.
    tumour : float or None
        0 for as much stroma as on a phantom, 1 for hardly any, -0.6 for hardly any tumour; None for a random value.

    Raises
    ------
    ValueError
        So many figures do not fit into the tumour.
    """
    stain = stain or random_stain(rng)
    left, top = (round(int(um) / mpp) for um in rng.integers(0, 128, 2))
    box = Box(left, top, left + size[0], top + size[1])
    bare, free = _find_room(rng, box, mpp, n_mitotic + n_lookalike, tumour)
    wanted = list(phases or rng.choice(list(PHASES), max(n_mitotic, 1), p=list(PHASES.values())))
    kinds = [str(wanted[k % len(wanted)]) for k in range(n_mitotic)]
    kinds += rng.choice(list(OTHERS), n_lookalike, p=list(OTHERS.values())).tolist()
    scene = replace(bare, density_per_mm2=(0.0, 0.0, _CLUTTER_PER_MM2), chosen=dict(zip(free, kinds, strict=False)))
    drawing = draw_region(scene, box, stain, make_textures(mpp))
    moved = (replace(mark, x=mark.x - box.x0, y=mark.y - box.y0) for mark in drawing.annotations)
    return replace(drawing, annotations=tuple(moved))


def _find_room(
    rng: np.random.Generator, box: Box, mpp: float, wanted: int, tumour: float | None
) -> tuple[Scene, list[tuple[int, int]]]:
    """A scene with room for `wanted` figures in its tumour, and their places in random order."""
    for _ in range(_TRIES):
        scene = Scene(int(rng.integers(2**31)), make_zones(rng, rng.uniform(0, 0.7) if tumour is None else tumour))
        free = _free_sites(scene, rng, box, mpp)
        if wanted <= len(free):
            return scene, free
    width, height = (side * mpp for side in box.size)
    raise ValueError(f"{wanted} figures do not fit in {width:g} x {height:g} µm. Draw a larger patch.")


def _free_sites(scene: Scene, rng: np.random.Generator, box: Box, mpp: float) -> list[tuple[int, int]]:
    """Places for figures in tumour, far enough from each other, in random order."""
    x0, y0, x1, y1 = (side * mpp for side in box)
    sites = scene.sites((x0 + _EDGE_UM, y0 + _EDGE_UM, x1 - _EDGE_UM, y1 - _EDGE_UM))
    fit = np.flatnonzero(is_tumour(scene.zones.at(sites.xy[:, 0], sites.xy[:, 1])))
    taken: list[int] = []
    for k in rng.permutation(fit).tolist():
        if all(math.dist(sites.xy[k], sites.xy[other]) >= _APART_UM for other in taken):
            taken.append(k)
    return [(int(column), int(row)) for column, row in sites.lattice[taken]]
