"""From optical densities to the picture a scanner makes: dyes, glass, lens, noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Stain", "margin_px", "random_stain", "to_rgb"]

Vector = tuple[float, float, float]
_BROWN: Vector = (0.36, 0.56, 0.75)
_INK: Vector = (0.60, 0.57, 0.56)
_REACH = 3.0  # standard deviations after which a blur is cut off
_SHARPENING = 1.3  # width of the sharpening, in blurs


@dataclass(frozen=True)
class Stain:
    """How one laboratory stains and one scanner sees.

    Attributes
    ----------
    haematoxylin, eosin : (red, green, blue)
        Direction of the dye's optical density, length 1.
    haematoxylin_amount, eosin_amount : float
        How strongly it is stained; 1 is usual.
    glass : (red, green, blue)
        Colour of empty glass, 0 to 255.
    blur_um : float
        Standard deviation of the lens's blur, µm.
    sharpen : float
        How much the scanner sharpens; 0 not at all.
    noise : float
        Standard deviation of the sensor's noise, grey levels.
    """

    haematoxylin: Vector = (0.62, 0.70, 0.35)
    eosin: Vector = (0.17, 0.86, 0.48)
    haematoxylin_amount: float = 1.0
    eosin_amount: float = 1.0
    glass: Vector = (243.0, 241.0, 243.0)
    blur_um: float = 0.25
    sharpen: float = 0.3
    noise: float = 2.0


def random_stain(rng: np.random.Generator) -> Stain:
    """A stain and scanner as met in practice: redder or more violet, stronger or weaker, sharper or softer.

    References
    ----------
    The dye directions vary about those of Ruifrok & Johnston (Anal Quant Cytol Histol 2001;23:291) and Macenko et al.
    (ISBI 2009:1107).
    """
    violet, blue = rng.random(2)
    warm = rng.uniform(-3, 3)
    return Stain(
        haematoxylin=_unit((0.56 + 0.09 * blue, 0.71, 0.41 - 0.12 * blue)),
        eosin=_unit((0.22 - 0.1 * violet, 0.82 + 0.1 * violet, 0.53 - 0.2 * violet)),
        haematoxylin_amount=float(rng.uniform(0.85, 1.15)),
        eosin_amount=float(rng.uniform(0.8, 1.2)),
        glass=(float(243 + warm), 242.0, float(243 - warm)),
        blur_um=float(rng.uniform(0.2, 0.33)),
        sharpen=float(rng.uniform(0.0, 0.7)),
        noise=float(rng.uniform(1.2, 2.8)),
    )


def margin_px(stain: Stain, mpp: float) -> int:
    """How far a point of the scene spreads in the picture, px."""
    sigma = _sigma_px(stain, mpp)
    return sum(int(_REACH * part + 0.5) for part in (sigma, _SHARPENING * sigma))


def _sigma_px(stain: Stain, mpp: float) -> float:
    """Blur of the lens and of the pixel's own area."""
    return float(np.hypot(stain.blur_um, 0.3 * mpp)) / mpp


def _unit(vector: Vector) -> Vector:
    length = sum(part**2 for part in vector) ** 0.5
    return vector[0] / length, vector[1] / length, vector[2] / length


def to_rgb(density: NDArray[np.float32], stain: Stain, mpp: float) -> NDArray[np.float32]:
    """Light that passes through optical densities, seen through the lens.

    Parameters
    ----------
    density : float32 [4, h, w]
        Haematoxylin, eosin, brown, ink, with `margin_px` more than is wanted on every side.

    Returns
    -------
    float32 [3, h, w], 0 to 255
    """
    dyes = (
        tuple(stain.haematoxylin_amount * part for part in stain.haematoxylin),
        tuple(stain.eosin_amount * part for part in stain.eosin),
        _BROWN,
        _INK,
    )
    present = [k for k in range(4) if k < 2 or density[k].any()]
    sigma = _sigma_px(stain, mpp)
    light = np.empty((3, *density.shape[1:]), np.float32)
    for colour in range(3):
        absorbed = np.zeros(density.shape[1:], np.float32)
        for k in present:
            absorbed += np.float32(dyes[k][colour] * 2.302585) * density[k]
        passed = np.exp(-absorbed) * np.float32(stain.glass[colour])
        light[colour] = _through_lens(passed, sigma, stain.sharpen)
    return light


def _through_lens(picture: NDArray[np.float32], sigma: float, sharpen: float) -> NDArray[np.float32]:
    """Blur, then the scanner's sharpening."""
    seen: NDArray[np.float32] = ndimage.gaussian_filter(picture, sigma, mode="nearest", truncate=_REACH)
    if sharpen:
        seen += np.float32(sharpen) * (
            seen - ndimage.gaussian_filter(seen, _SHARPENING * sigma, mode="nearest", truncate=_REACH)
        )
    return seen
