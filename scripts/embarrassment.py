"""A model beside two that know nothing: one that never fires, and one that fires on every dark nucleus.

Pixel accuracy tells the three apart hardly or wrongly; that is the point of the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mitosis.config import Config
from mitosis.evaluation import MaskOverlap, evaluate
from mitosis.matching import MATCH_RADIUS_UM, MatchResult
from mitosis.patches import Patch, PatchIndex
from mitosis.ranking import SlideScores
from mitosis.validation import score_patches

DARK = 105
"""A nucleus is dark where its red channel lies below this; some 83 % of the figures of MITOS 2012 are."""

NEVER, DARK_NUCLEI, MODEL = "never fires", "fires on every dark nucleus", "this model"


def blind_rows(index: PatchIndex, config: Config) -> Iterator[dict[str, Any]]:
    """Rows of the two networks that know nothing, over the tiles of `index`."""
    for name, weight, bias in ((NEVER, 0.0, -20.0), (DARK_NUCLEI, 100.0, -100 * (1 - DARK / 255))):
        network = _one_threshold(weight, bias)
        slides, pixels = _look(network, index, config, {})
        yield _row(name, pixels, evaluate(slides, 0.5).pooled)


def model_pixels(
    network: nn.Module, index: PatchIndex, config: Config, counted: Mapping[str, NDArray[np.float64]]
) -> MaskOverlap:
    """Pixels over the tiles of `index` where a first stage is surer than not, near what counted on its slide.

    `counted` holds the places, level-0 px [N, 2], of each slide's detections.
    """
    return _look(network, index, config, counted)[1]


def model_row(pixels: MaskOverlap, result: MatchResult) -> dict[str, Any]:
    """The row of the model itself."""
    return _row(MODEL, pixels, result)


def _look(
    network: nn.Module, index: PatchIndex, config: Config, counted: Mapping[str, NDArray[np.float64]]
) -> tuple[list[SlideScores], MaskOverlap]:
    pixels = MaskOverlap()

    def on_patch(patch: Patch, probability: NDArray[np.float32]) -> None:
        nonlocal pixels
        found = probability >= 0.5
        if counted:
            found &= _near(patch, counted[patch.slide_id])
        pixels += MaskOverlap.of(index.read_mask(patch), found)

    count = config.count
    slides = score_patches(network, index, 0.5, count.merge_um, config.network.normalise_stain, on_patch)
    return slides, pixels


def _near(patch: Patch, places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which pixels of a patch lie within the radius of a match of any of the places."""
    per_px = patch.mpp / patch.slide_mpp
    rows, columns = np.mgrid[: patch.size, : patch.size] + 0.5
    near = np.zeros((patch.size, patch.size), dtype=bool)
    for x, y in (places - (patch.x, patch.y)) / per_px:
        near |= np.hypot(columns - x, rows - y) <= MATCH_RADIUS_UM / patch.mpp
    return near


def _one_threshold(weight: float, bias: float) -> nn.Module:
    """A network that looks at the red channel alone."""
    network = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([0.0, bias]))  # type: ignore[union-attr]  # it has one
        network.weight[1, 0] = weight
    return network


def _row(name: str, pixels: MaskOverlap, result: MatchResult) -> dict[str, Any]:
    numbers = {
        "pixel_accuracy": pixels.accuracy,
        "pixel_sensitivity": pixels.sensitivity,
        "pixel_specificity": pixels.specificity,
        "dice": pixels.dice,
        "detection_f1": result.f1,
    }
    return {"detector": name, **{key: round(value, 5) for key, value in numbers.items()}}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    titles = [key.replace("_", " ") for key in rows[0]]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return "\n".join([*lines, *(f"| {' | '.join(str(value) for value in row.values())} |" for row in rows)])
