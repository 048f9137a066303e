"""Other scanners and laboratories: resolution, amplitudes, colours and optics of a patch as they might be.

A network that saw two scanners takes what they have in common for a law. What is drawn here does not hang on the class
of a patch, so that no trace of a scanner gives a figure away; and apart from the resolution nothing moves, so a mask
stays as it is.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import scipy.fft
import simplejpeg
from numpy.typing import NDArray

from mitosis.config import JitterConfig
from mitosis.stain import DENSITY

__all__ = [
    "FOURIER",
    "RESOLUTION",
    "Donors",
    "as_scanned",
    "mix_amplitudes",
    "resample",
    "rescan",
    "stream",
    "vary_colours",
    "window_side",
]

Pixels = NDArray[np.uint8]
Mask = Pixels | NDArray[np.float32]

# Each setting draws from a stream of its own: one that is switched on leaves the draws of the others as they are.
RESOLUTION, FOURIER, _COLOUR, _SCANNER = range(1, 5)

_TISSUE = np.clip(DENSITY / 0.2, 0, 1)[np.newaxis]
"""What share of a change each grey level takes: glass none of it, tissue from a density of 0.2 on all of it."""

# At a donor's full strength the waves of its edges would stripe even tissue, and those of even tissue wipe out nuclei.
_MAX_FACTOR = 2.0

# What `rescan` does at strength 1, at most. JPEG at quality 40 shows its blocks; the slides at hand have 70 to 95.
_BLUR, _SHARPEN, _NOISE, _QUALITY = 1.2, 1.5, 8.0, (95, 40)
_CHANCE, _SUBSAMPLINGS = 0.5, ("420", "422", "444")
_MCU = 16  # side of the largest unit that JPEG compresses as one, px


def stream(seed: int, setting: int) -> np.random.Generator:
    """What a setting draws from for the patch with this seed."""
    return np.random.default_rng([seed, setting])


def as_scanned(image: Pixels, settings: JitterConfig, seed: int) -> Pixels:
    """The image with colours and traces of another scanner, as far as the settings ask for them."""
    if settings.colour_jitter:
        image = vary_colours(image, settings.colour_jitter, stream(seed, _COLOUR))
    if settings.scanner_jitter:
        image = rescan(image, settings.scanner_jitter, stream(seed, _SCANNER))
    return image


def window_side(crop: int, jitter: float, rng: np.random.Generator) -> int:
    """How many px to cut out for a crop of `crop` px, so that it is as if scanned at µm/px times ``1 ± jitter``."""
    return max(1, round(crop * rng.uniform(1 - jitter, 1 + jitter)))


def resample(image: Pixels, mask: Mask, side: int) -> tuple[Pixels, Mask]:
    """Image [h, w, 3] and mask [h, w], squares, at `side` px: the same tissue at another µm/px.

    The image is averaged over the exact area of a pixel, or interpolated linearly where it becomes finer, as slides are
    read; the mask has the value of the nearest pixel. Both keep their edges in place, so the centre (x, y) of a mark
    goes to (x * side / w, y * side / h).
    """
    if mask.shape == (side, side):
        return image, mask
    finer = side > len(mask)
    pixels = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR if finer else cv2.INTER_AREA)
    # INTER_NEAREST takes the upper left of a pixel for its middle, and so moves the mask by up to half a pixel.
    labels: Any = cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(pixels, np.uint8), labels


@dataclass(frozen=True)
class Donors:
    """From which patches the others take their amplitudes.

    Attributes
    ----------
    domains, cases : tuple of str
        Domain and case of each patch, in the order of the index.
    """

    domains: tuple[str, ...]
    cases: tuple[str, ...]

    def choose(self, row: int, rng: np.random.Generator) -> int:
        """The row of a donor for a patch.

        It is of another domain, each equally likely whatever its size; where there is but one domain, of another case;
        and where there is but one case, the patch itself.
        """
        for name, groups in zip((self.domains[row], self.cases[row]), self._groups, strict=True):
            others = [rows for other, rows in groups.items() if other != name]
            if others:
                rows = others[rng.integers(len(others))]
                return rows[rng.integers(len(rows))]
        return row

    @cached_property
    def _groups(self) -> tuple[dict[str, list[int]], ...]:
        """The rows of each domain, and of each case."""
        return tuple(
            {name: [row for row, other in enumerate(names) if other == name] for name in sorted(set(names))}
            for names in (self.domains, self.cases)
        )


def mix_amplitudes(image: Pixels, donor: Pixels, share: float, beta: float) -> Pixels:
    """The image with the amplitudes of its slow waves moved towards those of a donor; the phases, hence places, stay.

    Parameters
    ----------
    image, donor : uint8 [H, W, 3], RGB
    share : float
        0 leaves the image, 1 takes the donor's amplitudes.
    beta : float
        Waves of up to ``int(beta * min(H, W))`` periods along either side are mixed; 0: the mean colour alone.

    Returns
    -------
    uint8 [H, W, 3]
        Glass stays glass, and no wave but the mean becomes more than twice or less than half as strong: tissue without
        structure would be given that of the donor otherwise, and nuclei would fade.

    References
    ----------
    Yang & Soatto, CVPR 2020:4085-4095 (low-frequency amplitudes of another domain); Xu et al., CVPR 2021:14383-14392
    (amplitudes mixed by a random share).
    """
    spectrum, other = (scipy.fft.rfft2(each.astype(np.float32), axes=(0, 1)) for each in (image, donor))
    height, width = image.shape[:2]
    reach = int(beta * min(height, width))
    block = np.ix_(np.unique(np.arange(-reach, reach + 1) % height), np.arange(reach + 1))
    own, aim = np.abs(spectrum[block]), np.abs(other[block])
    ratio = aim / np.maximum(own, 1)  # a wave of less than 1 grey level in all has no phase to keep
    waves = np.clip(ratio, 1 / _MAX_FACTOR, _MAX_FACTOR)
    waves[0, 0] = ratio[0, 0]
    change = np.zeros_like(spectrum)
    change[block] = spectrum[block] * share * (waves - 1)
    tissue = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), _TISSUE)[..., np.newaxis]
    return _grey_levels(image + scipy.fft.irfft2(change, s=(height, width), axes=(0, 1)) * tissue)


def vary_colours(image: Pixels, jitter: float, rng: np.random.Generator) -> Pixels:
    """Red, green and blue, each by itself, with a gamma of ``1 ± jitter`` and a gain of ``1 ± jitter / 2``.

    Unlike `mitosis.augment.stain_jitter` it tints glass too, as the white balance of a scanner does.
    """
    gamma, gain = 1 + rng.uniform(-jitter, jitter, (2, 3)) * np.array([[1], [0.5]])
    levels = np.linspace(0, 1, 256)[:, np.newaxis]
    return np.asarray(cv2.LUT(image, _grey_levels(255 * gain * levels**gamma)[np.newaxis]), np.uint8)


def rescan(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """The image as another scanner might give it: out of focus, noisy, sharpened, compressed.

    Each comes with a chance of one half and up to `strength`, 0 to 1, in the order in which it happens in a scanner.
    At 1 focus blurs by a sigma of 1.2 px, noise is 8 grey levels (on glass; it falls with the root of the light), a
    sharp edge is raised by 150 %, and JPEG has a quality of 40.
    """
    happens, amounts = rng.random(4) < _CHANCE, strength * rng.random(4)
    blur, noise, sharpen, compress = (happens * amounts).tolist()
    if blur:
        image = _blurred(image, _BLUR * blur)
    if noise:
        light = np.sqrt(image / np.float32(255))
        image = _grey_levels(image + _NOISE * noise * light * rng.standard_normal(image.shape, np.float32))
    if sharpen:
        fine = image - _blurred(image, rng.uniform(0.7, 2)).astype(np.float32)
        image = _grey_levels(image + _SHARPEN * sharpen * fine)
    return _compressed(image, compress, rng) if compress else image


def _blurred(image: Pixels, sigma: float) -> Pixels:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), np.uint8)


def _compressed(image: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    """The image out of a JPEG whose blocks begin anywhere."""
    best, worst = _QUALITY
    top, left = rng.integers(_MCU, size=2).tolist()
    # Mirrored, because a hard edge would ring into the blocks that it cuts.
    padded = cv2.copyMakeBorder(image, top, 0, left, 0, cv2.BORDER_REFLECT_101)
    quality, subsampling = round(best + (worst - best) * amount), _SUBSAMPLINGS[rng.integers(len(_SUBSAMPLINGS))]
    stream = simplejpeg.encode_jpeg(np.ascontiguousarray(padded), quality, "RGB", subsampling)
    return np.asarray(simplejpeg.decode_jpeg(stream, "RGB")[top:, left:], np.uint8)


def _grey_levels(values: NDArray[Any]) -> Pixels:
    rounded: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded
