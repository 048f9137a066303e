"""Augmentation: a light pipeline for most patches, a heavy one for patches with mitotic figures.

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

__all__ = ["augment", "stain_jitter"]

# Optical density of haematoxylin and eosin in R, G, B; Ruifrok & Johnston, Anal Quant Cytol Histol 2001;23:291-299.
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAINS)


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
    density = _DENSITY[image]
    tissue = np.clip(density.mean(axis=2, keepdims=True) / 0.1, 0, 1)
    mix = (_UNMIX @ np.diag(factors) @ _STAINS).astype(np.float32)
    shift = (offsets @ _STAINS).astype(np.float32)
    changed = density.reshape(-1, 3) @ mix
    changed = changed.reshape(image.shape) + shift * tissue
    result: NDArray[np.uint8] = np.clip(np.rint(256 * np.exp(-changed) - 1), 0, 255).astype(np.uint8)
    return result


_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


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
def _pipeline(heavy: bool) -> A.Compose:
    return A.Compose([*_light(), *(_heavy() if heavy else [])])


def _light() -> list[A.BasicTransform]:
    return [A.D4(p=1), _StainJitter(0.25, p=0.7), A.RandomBrightnessContrast(0.1, 0.1, p=0.3)]


def _heavy() -> list[A.BasicTransform]:
    mirror = {"border_mode": cv2.BORDER_REFLECT_101}
    return [
        A.Affine(scale=(0.85, 1.18), rotate=(-45, 45), shear=(-8, 8), p=0.6, **mirror),
        A.ElasticTransform(alpha=30, sigma=6, p=0.2, **mirror),
        _StainJitter(0.4, p=0.5),
        A.HueSaturationValue(8, 20, 10, p=0.3),
        A.OneOf([A.GaussianBlur(sigma_limit=(0.3, 1.2)), A.Sharpen(alpha=(0.1, 0.4))], p=0.4),
        A.GaussNoise(std_range=(0.01, 0.04), p=0.2),
        A.ImageCompression(quality_range=(50, 95), p=0.2),
    ]


def augment(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], heavy: bool, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image [H, W, 3] and mask [H, W] after one random draw of the light or heavy pipeline.

    The same `seed` gives the same result in any process. What a turn or a bend brings in from outside is mirrored, in
    image and mask alike.
    """
    pipeline = _pipeline(heavy)
    pipeline.set_random_seed(seed)
    result = pipeline(image=image, mask=mask)
    return result["image"], result["mask"]
