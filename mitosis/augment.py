"""Augmentation, from light to heavy: the strength is chosen by class, and rises each time a patch is shown again.

albumentations 2.0.8 asks the network for its newest version at import unless it is told not to, and repeats one random
stream in every loader worker and epoch. Here it is told, and each item gets a stream of its own from
(seed, epoch, row, repeat).
"""

import os
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A

from mitosis.stain import DENSITY, STAINS, UNMIX, to_rgb

__all__ = ["augment", "stain_jitter"]

_LEVELS = 10

Mask = NDArray[np.uint8] | NDArray[np.float32]


def stain_jitter(
    image: NDArray[np.uint8], factors: NDArray[np.float64], offsets: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Change how strongly haematoxylin, eosin and the residual stain an image.

    Parameters
    ----------
    image : uint8 [H, W, 3], RGB
    factors, offsets : float [3]
        Concentration c of each stain becomes ``c * factor + offset`` (optical density, natural logarithm); the offset
        fades out towards glass, so a blank patch stays blank.

    References
    ----------
    Tellez et al., IEEE Trans Med Imaging 2018;37:2126-2136 (augmentation in H&E space).
    """
    density = _density(image)
    mix = (UNMIX @ np.diag(factors) @ STAINS).astype(np.float32)
    shift = (offsets @ STAINS).astype(np.float32)
    changed = (density.reshape(-1, 3) @ mix).reshape(image.shape)
    changed += shift * _tissue(density)
    return to_rgb(changed)


def _density(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density; the table of OpenCV is five times as fast as an index of numpy."""
    return np.asarray(cv2.LUT(image, DENSITY), np.float32)


def _tissue(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much tissue there is in each pixel, float32 [H, W, 1]: 0 is glass, 1 from a mean density of 0.1 on."""
    # numpy's mean over an axis of three takes twenty times as long as a sum of three.
    mean = (density[..., :1] + density[..., 1:2] + density[..., 2:]) / np.float32(3)
    return np.asarray(np.clip(mean / np.float32(0.1), 0, 1), np.float32)


class _StainJitter(A.ImageOnlyTransform):  # type: ignore[misc]  # untyped base
    """`stain_jitter` with factors in ``1 ± strength`` and offsets in ``± strength / 4``."""

    def __init__(self, strength: float, p: float) -> None:
        super().__init__(p=p)
        self.strength = strength

    def get_params(self) -> dict[str, Any]:
        low, high = -self.strength, self.strength
        return {
            "factors": 1 + self.random_generator.uniform(low, high, 3),
            "offsets": self.random_generator.uniform(low / 4, high / 4, 3),
        }

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        return stain_jitter(img, params["factors"], params["offsets"])


@cache
def _pipeline(level: int) -> A.Compose:
    """The pipeline of strength ``level / _LEVELS``."""
    strength = level / _LEVELS
    return A.Compose([*_light(strength), *(_heavy(strength) if level else [])])


def _light(strength: float) -> list[A.BasicTransform]:
    contrast = 0.1 + 0.1 * strength
    return [
        A.D4(p=1),
        _StainJitter(0.25 + 0.25 * strength, p=0.7),
        A.RandomBrightnessContrast(contrast, contrast, p=0.3),
    ]


def _heavy(strength: float) -> list[A.BasicTransform]:
    mirror = {"border_mode": cv2.BORDER_REFLECT_101}
    turn, stretch = 75 * strength, 1 + 0.3 * strength
    return [
        A.Affine(scale=(1 / stretch, stretch), rotate=(-turn, turn), shear=(-13, 13), p=strength, **mirror),
        A.ElasticTransform(alpha=50 * strength, sigma=6, p=strength / 3, **mirror),
        A.HueSaturationValue(13 * strength, 33 * strength, 16 * strength, p=strength / 2),
        A.OneOf([A.GaussianBlur(sigma_limit=(0.3, 1.2)), A.Sharpen(alpha=(0.1, 0.4))], p=strength / 1.5),
        A.GaussNoise(std_range=(0.01, 0.04), p=strength / 3),
        A.ImageCompression(quality_range=(50, 95), p=strength / 3),
    ]


def augment(image: NDArray[np.uint8], mask: Mask, strength: float, seed: int) -> tuple[NDArray[np.uint8], Mask]:
    """Image [H, W, 3] and mask [H, W] after one random draw of the pipeline of this strength.

    0 is light: turns, mirrors, stain and brightness. More adds scaling, shear, bending, hue, blur, noise and
    compression, each further and more often, up to 1; strength goes in tenths. The same `seed` gives the same result
    in any process. What a turn or a bend brings in from outside is mirrored, in image and mask alike.
    """
    pipeline = _pipeline(round(strength * _LEVELS))
    pipeline.set_random_seed(seed)
    result = pipeline(image=image, mask=mask)
    return result["image"], result["mask"]
