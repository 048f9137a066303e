"""Colours as optical densities: how strongly a slide is stained, and the same picture at a usual strength.

Laboratories and scanners differ by half in how dark they make the same nucleus. A network that saw a few cases takes
every nucleus of a darker one for a figure; with each slide brought to the same levels it does so less.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mitosis.geometry import Box, grid_dimensions, tile_grid
from mitosis.slides import Slide, read_at_mpp
from mitosis.tissue import TissueMask

__all__ = ["DENSITY", "STAINS", "UNMIX", "USUAL", "StainLevels", "measure_stain", "stain_levels", "to_rgb"]

DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
"""Optical density (natural logarithm) of each grey level; that of white is 0."""

STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
"""Density of haematoxylin, eosin and a residual in R, G, B, each of length 1; Ruifrok & Johnston, Anal Quant Cytol
Histol 2001;23:291-299."""
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
UNMIX = np.linalg.inv(STAINS)

# Mean densities under which a pixel is glass, and the percentiles that stand for tissue and for dark nuclei.
_GLASS = 0.1
_PERCENTILES = (50, 98)
_BLOCK, _MAX_BLOCKS = 256, 64
# The fields of MITOS 2012 need 0.7 to 1.4. A slide with hardly a nucleus would need far more, and be spoilt by it.
_MAX_FACTOR = 2.0

Vector = tuple[float, float, float]


def to_rgb(density: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey levels of optical densities: the inverse of `DENSITY`, rounded."""
    rounded: NDArray[np.uint8] = np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8)
    return rounded


@dataclass(frozen=True)
class StainLevels:
    """How strongly a slide is stained.

    Attributes
    ----------
    tissue, nuclei : (red, green, blue)
        Median of the optical density of all tissue, and its 98th percentile: dark nuclei.
    """

    tissue: Vector
    nuclei: Vector

    def __str__(self) -> str:
        return " ".join(f"{value:.3f}" for value in (*self.tissue, *self.nuclei))

    @classmethod
    def parse(cls, text: str) -> "StainLevels":
        """What `str` wrote.

        Raises
        ------
        ValueError
            It is something else.
        """
        values = [float(word) for word in text.split()]
        if len(values) != 6 or not all(np.isfinite(values)):
            raise ValueError(f"stain levels: expected six numbers, but got {text!r}")
        return cls((values[0], values[1], values[2]), (values[3], values[4], values[5]))

    def normalise(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image [..., 3] as if its slide were stained as `USUAL`; white stays white.

        In each channel densities up to that of tissue are scaled, those above are stretched to meet that of nuclei; by
        a factor of at most 2, or at least 1/2.
        """
        if not image.size:
            return image.copy()
        rows = np.ascontiguousarray(image).reshape(-1, image.shape[-2], 3)
        return np.asarray(cv2.LUT(rows, self._table), np.uint8).reshape(image.shape)

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        """New grey levels [1, 256, 3] of each, for R, G and B; OpenCV applies it three times as fast as numpy would."""
        levels = zip(self.tissue, self.nuclei, USUAL.tissue, USUAL.nuclei, strict=True)
        return np.stack([_table(*channel) for channel in levels], axis=1)[np.newaxis]


def _table(tissue: float, nuclei: float, usual_tissue: float, usual_nuclei: float) -> NDArray[np.uint8]:
    scale = _clip(usual_tissue / max(tissue, 1e-3))
    slope = _clip((usual_nuclei - usual_tissue) / max(nuclei - tissue, 1e-3))
    return to_rgb(np.minimum(DENSITY, tissue) * scale + np.maximum(DENSITY - tissue, 0) * slope)


def _clip(factor: float) -> float:
    return min(max(factor, 1 / _MAX_FACTOR), _MAX_FACTOR)


USUAL = StainLevels((0.21, 0.85, 0.55), (0.76, 1.88, 1.18))
"""Means over the 35 fields of MITOS 2012 (Aperio): what networks are shown."""


def measure_stain(slide: Slide, tissue: TissueMask, mpp: float) -> StainLevels:
    """Stain levels of a slide at `mpp`, from up to 64 blocks of 256 px spread over its tissue.

    `USUAL` where there is no tissue, so that nothing is changed.
    """
    ratio = mpp / slide.mpp
    windows = [tile.window for tile in tile_grid(grid_dimensions(slide.dimensions, slide.mpp, mpp), mpp, _BLOCK)]
    areas = replace(tissue).areas_mm2_in(np.multiply(windows, ratio))  # of a copy, and its sums go with it
    boxes = [window for window, area in zip(windows, areas.tolist(), strict=True) if area > 0]
    return stain_levels(read_at_mpp(slide, box, mpp) for box in _spread(boxes))


def stain_levels(pictures: Iterable[NDArray[np.uint8]], where: NDArray[np.bool_] | None = None) -> StainLevels:
    """Stain levels of pictures uint8 [H, W, 3], all of one slide; `USUAL` if they are of glass alone.

    Parameters
    ----------
    where : bool [H, W] or None
        Which of their pixels count, in all of them; by default each.
    """
    counts = np.zeros((3, 256), dtype=np.int64)
    for pixels in pictures:
        density = cv2.LUT(pixels, DENSITY)
        # A sum of three, a mask and OpenCV's histogram take a tenth of the time of a mean over an axis and an index.
        stained = ((density[..., 0] + density[..., 1] + density[..., 2]) / np.float32(3) > _GLASS).astype(np.uint8)
        if where is not None:
            stained *= where
        for channel, row in enumerate(counts):
            row += cv2.calcHist([pixels], [channel], stained, [256], [0, 256]).ravel().astype(np.int64)
    if not counts.any():
        return USUAL
    tissue_levels, nuclei = (tuple(_percentile(row, percent) for row in counts) for percent in _PERCENTILES)
    return StainLevels.parse(str(StainLevels(tissue_levels, nuclei)))  # type: ignore[arg-type]  # three channels


def _spread(boxes: Sequence[Box]) -> list[Box]:
    """At most 64 of them, evenly from first to last."""
    chosen = np.unique(np.linspace(0, len(boxes) - 1, min(len(boxes), _MAX_BLOCKS)).round().astype(int))
    return [boxes[number] for number in chosen]


def _percentile(counts: NDArray[np.int64], percent: float) -> float:
    """Density that so many percent of the pixels do not exceed; `counts` are by grey level."""
    from_light = np.cumsum(counts[::-1])
    return float(DENSITY[255 - np.searchsorted(from_light, percent / 100 * from_light[-1])])
