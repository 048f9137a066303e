"""Noise without a seam: fine textures on the pixel grid, slow fields over the whole slide.

Both belong to a place in µm, not to the piece of the slide that is being drawn: a pixel has the same value whatever
region it is drawn in, and 0.25 and 0.5 µm/px show the same texture.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

__all__ = ["PERIOD_UM", "SCALES_UM", "SENSOR", "Field", "Textures", "make_field", "make_textures"]

PERIOD_UM = 128.0
SCALES_UM = {"fine": 0.9, "grain": 1.5, "clump": 2.4, "thread": 3.6, "vacuole": 7.0, "cloud": 16.0}
SENSOR = "sensor"
_SENSOR_PERIOD = 1021  # px
_CYCLES = 256  # a period; the finest wavelength is PERIOD_UM / _CYCLES
_SPLINE_STD = 0.48  # of a cubic B-spline over independent coefficients of standard deviation 1


@dataclass(frozen=True)
class Textures:
    """Tiling noise at one µm/px, for each name of `SCALES_UM`: float32 [n, n], mean 0, standard deviation
    about 1. `SENSOR` is the noise of single pixels.
    """

    mpp: float
    fields: dict[str, NDArray[np.float32]]

    def window(self, name: str, left: int, top: int, shape: tuple[int, int]) -> NDArray[np.float32]:
        """The texture over the pixels from (`left`, `top`) of the slide's grid, [h, w]."""
        field = self.fields[name]
        rows, columns = np.arange(top, top + shape[0]), np.arange(left, left + shape[1])
        piece: NDArray[np.float32] = field.take(rows, axis=0, mode="wrap").take(columns, axis=1, mode="wrap")
        return piece


@lru_cache(maxsize=4)
def make_textures(mpp: float) -> Textures:
    """Draw every texture at `mpp`; they are always the same ones, so that a scene looks the same at any µm/px."""
    rng = np.random.default_rng(0)
    size = round(PERIOD_UM / mpp)
    fields = {name: _tiling_noise(rng, size, scale) for name, scale in SCALES_UM.items()}
    sensor = rng.normal(0, 1, (_SENSOR_PERIOD, _SENSOR_PERIOD)).astype(np.float32)
    return Textures(mpp, {**fields, SENSOR: sensor})


def _tiling_noise(rng: np.random.Generator, size: int, scale_um: float) -> NDArray[np.float32]:
    """Noise with blobs about `scale_um` apart, as waves that fit the period; too fine ones are left out."""
    wave = np.fft.fftfreq(2 * _CYCLES, 1 / (2 * _CYCLES))
    ratio = np.hypot(wave[:, None], wave) * scale_um / PERIOD_UM
    amplitude = np.exp(-0.5 * ((ratio - 1) / 0.35) ** 2)
    spectrum = np.sqrt(2) * amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)) / np.linalg.norm(amplitude)
    limit = min(_CYCLES, size // 2)
    kept = np.flatnonzero(np.abs(wave) < limit)
    place = wave[kept].astype(int) % size
    full = np.zeros((size, size), np.complex128)
    full[np.ix_(place, place)] = spectrum[np.ix_(kept, kept)]
    noise: NDArray[np.float32] = (fft.ifft2(full).real * size**2).astype(np.float32)
    return noise


@dataclass(frozen=True)
class Field:
    """A smooth random surface over the slide: mean 0, standard deviation about 1, repeats after 64 times `scale_um`."""

    coefficients: NDArray[np.float64]
    scale_um: float

    def at(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values at places in µm, of the shape of `x_um`."""
        places = np.stack([y_um, x_um]) / self.scale_um
        values: NDArray[np.float64] = ndimage.map_coordinates(
            self.coefficients, places, order=3, mode="grid-wrap", prefilter=False
        )
        return values


def make_field(rng: np.random.Generator, scale_um: float) -> Field:
    """A field whose hills are about `scale_um` wide."""
    return Field(rng.uniform(-1, 1, (64, 64)) * np.sqrt(3) / _SPLINE_STD, scale_um)
