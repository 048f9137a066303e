"""Synthetic figures for training: real ones pasted onto other tissue, or blended two by two.

Repeating a rare figure shows the same nucleus on the same tissue again and again. Here a figure comes onto tissue it
was never seen on (`paste`), or one is made that lies between two figures that look alike (`interpolate`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from mitosis.annotations import TELOPHASE_UM
from mitosis.errors import PatchIndexError
from mitosis.masks import IGNORE, MITOTIC_FIGURE
from mitosis.patches import Patch, PatchIndex
from mitosis.stain import DENSITY, STAINS, UNMIX, to_rgb
from mitosis.tissue import STAIN_OD

__all__ = ["SIDE", "Figure", "FigureBank", "interpolate", "paste", "upright"]

SIDE = 64
"""Side of a figure's crop, px. The figure's centre lies in pixel (32, 32)."""

_NEIGHBOURS = 5  # k of Chawla et al.
_BLOCK = 4  # side of the blocks whose mean haematoxylin describes a figure, px
_MAX_IGNORED = 0.5  # of what lies round a figure; more is ignored where the nucleus was not clear

# Cytoplasm up to the first distance comes along whole, then less and less; beyond the second nothing is touched.
_WHOLE_UM, _REACH_UM, _FADE_UM = 1.0, 3.5, 1.0
_CANDIDATES = 8  # random places of which the one is taken where the seam shows least

# Level of a stain: a high percentile of haematoxylin, which only nuclei take up, and of eosin, which is nearly
# everywhere. Half of the difference between two places is what they show, not how they were stained: chromatin pasted
# from other cases of ICPR 2012 is off that of a case's own figures by 0.11 (mean density in red, green and blue) as it
# is, by 0.13 if scaled by the whole difference, by 0.07 if by half.
_PERCENTILES, _SHARE, _MAX_FACTOR, _WINDOW_UM = (98, 90), 0.5, 2.0, 2.5

FloatArray = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Places = NDArray[np.int64]
Mask = Pixels | FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """One figure amid its tissue.

    Attributes
    ----------
    image : uint8 [64, 64, 3], read-only
    mask : bool or float32 [64, 64], read-only
        The pixels of all its segments; as float32 the probability, 0 to 1, that a pixel belongs to the figure.
    mpp : float
        µm/px.
    stain : float64 [2], read-only
        How strongly haematoxylin and eosin stain where it comes from, optical density (natural logarithm).
    source : str
        The patch it was cut from, or two of them.
    """

    image: Pixels
    mask: NDArray[np.bool_] | FloatArray
    mpp: float
    stain: NDArray[np.float64]
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("image", "mask", "stain"):
            array = getattr(self, name).copy()
            array.setflags(write=False)
            object.__setattr__(self, name, array)


@dataclass(frozen=True, slots=True, eq=False)
class FigureBank:
    """Figures to paste and to interpolate.

    Attributes
    ----------
    figures : tuple of Figure
        All at one µm/px.
    neighbours : int64 [N, k], read-only
        For each figure the 5 (or all, if there are fewer) that look most like it, nearest first.
    """

    figures: tuple[Figure, ...]
    neighbours: Places = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "neighbours", _nearest(self.figures))
        self.neighbours.setflags(write=False)

    def __len__(self) -> int:
        return len(self.figures)

    @classmethod
    def of(cls, index: PatchIndex) -> "FigureBank":
        """Cut the figures out of the patches of an index, each once; the index must hold training patches only.

        Figures come from the patches centred on marks, or where no such patch has any, from all patches. Segments
        closer than `TELOPHASE_UM` are one figure; figures of one slide with centres closer than that are the same. Left
        out are figures so near the border of the patch that a part may lie beyond it, figures that do not fit into the
        crop, and those whose nucleus was not clear.
        """
        patches = [patch for patch in index.patches if patch.px_mitotic]
        patches = [patch for patch in patches if not patch.on_grid] or patches
        found = [cut for patch in patches for cut in _cut(index.read_image(patch), index.read_mask(patch), patch)]
        places: dict[str, list[complex]] = {}
        figures = []
        # Of several copies the one nearest the middle of its patch has the most real tissue round it.
        for _, slide_id, place, figure in sorted(found, key=lambda cut: cut[0]):
            if all(abs(place - other) >= TELOPHASE_UM for other in places.setdefault(slide_id, [])):
                places[slide_id].append(place)
                figures.append(figure)
        return cls(tuple(figures))


def _cut(image: Pixels, mask: Pixels, patch: Patch) -> Iterator[tuple[float, str, complex, Figure]]:
    """The whole figures of a patch: µm from its middle, slide, place on the slide (x + y·i, µm) and the figure."""
    mpp, half = patch.mpp, SIDE // 2
    pieces, n_pieces = ndimage.label(_distance(mask == MITOTIC_FIGURE, mpp) <= TELOPHASE_UM / 2, np.ones((3, 3)))
    stain = _stain_levels(DENSITY[image], _is_free(DENSITY[image], mask, mpp))
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="reflect")
    for piece in range(1, n_pieces + 1):
        figure = (mask == MITOTIC_FIGURE) & (pieces == piece)
        pixels = np.argwhere(figure)
        row, column = centre = pixels.mean(axis=0)
        border = min(pixels.min(), patch.size - 1 - pixels.max()) * mpp
        radius = np.hypot(*(pixels - centre).T).max() + 1
        around = mask[(_distance(figure, mpp) <= _REACH_UM) & ~figure]
        if border < TELOPHASE_UM or radius + _REACH_UM / mpp > half or np.mean(around == IGNORE) > _MAX_IGNORED:
            continue
        window = slice(round(row), round(row) + SIDE), slice(round(column), round(column) + SIDE)
        place = complex(patch.x, patch.y) * patch.slide_mpp + complex(column + 0.5, row + 0.5) * mpp
        off_um = float(np.hypot(*(centre + 0.5 - patch.size / 2))) * mpp
        crop = Figure(padded[window], np.pad(figure, half)[window], mpp, stain, patch.patch_id)
        yield off_um, patch.slide_id, place, crop


def _distance(figure: NDArray[np.bool_], mpp: float) -> FloatArray:
    """How far each pixel is from a figure, µm."""
    outside = np.ascontiguousarray(~figure, np.uint8)
    return np.asarray(cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * mpp, np.float32)


def _is_free(density: FloatArray, mask: Mask, mpp: float) -> NDArray[np.bool_]:
    """Where there is unmarked tissue: most pixels of a small window are stained, by the measure of `find_tissue`."""
    stained = density[..., 1] - np.minimum(density[..., 0], density[..., 2]) > STAIN_OD * np.log(10)
    return np.asarray((cv2.blur(stained.astype(np.float32), (round(_WINDOW_UM / mpp) | 1,) * 2) > 0.5) & (mask == 0))


def _stain_levels(density: FloatArray, free: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How strongly haematoxylin and eosin stain the tissue that is free of marks."""
    tissue = density[free]
    return np.array([np.percentile(tissue @ UNMIX[:, k], _PERCENTILES[k]) if len(tissue) else 0.0 for k in (0, 1)])


def paste(image: Pixels, mask: Mask, figure: Figure, rng: np.random.Generator) -> tuple[Pixels, Mask] | None:
    """Put a figure onto other tissue.

    Turned or mirrored at random, it comes to a random place: whole inside the image, on tissue all over, clear of every
    pixel that the mask marks. Its stains are scaled towards those of the tissue and its cytoplasm fades into it, both
    in optical density. Pixels more than 3.5 µm from the figure do not change.

    Parameters
    ----------
    image : uint8 [H, W, 3]
        H&E at the figure's µm/px.
    mask : uint8 or float32 [H, W]
        0 is background; no other pixel is touched.

    Returns
    -------
    image, mask : uint8 [H, W, 3] and [H, W]; or None
        The mask is of the given type, with 1 where the figure is. It is float32 for a figure with a soft mask: then
        values between 0 and 1 are the probability of a figure. None: nowhere is room.

    References
    ----------
    Copy-paste: Ghiasi et al., CVPR 2021:2918-2928. Stains: Ruifrok & Johnston, Anal Quant Cytol Histol 2001;23:291-299.
    """
    turns, order = int(rng.integers(4)), int(rng.choice((-1, 1)))
    figure = replace(figure, image=np.rot90(figure.image[::order], turns), mask=np.rot90(figure.mask[::order], turns))
    alpha, window = _alpha(figure)
    density = DENSITY[image]
    places = _places(free := _is_free(density, mask, figure.mpp), alpha.shape[0], alpha.shape[1])
    if not len(places):
        return None
    crop = _stained_like(figure, _stain_levels(density, free))[window]
    there = _least_seam(density, crop, alpha, places[rng.integers(len(places), size=_CANDIDATES)])
    image, inner = image.copy(), figure.mask[window]
    image[there] = to_rgb((1 - alpha) * density[there] + alpha * crop)
    pasted: Mask = mask.copy() if inner.dtype == np.bool_ else mask.astype(np.float32)
    pasted[there] = np.where(inner > 0, inner, pasted[there])
    return image, pasted


def _alpha(figure: Figure) -> tuple[FloatArray, tuple[slice, slice]]:
    """How much of a figure's crop shows, float32 [h, w, 1] of 0 to 1, in the window outside which it is 0."""
    away = _distance(figure.mask > 0, figure.mpp)
    near = away <= _REACH_UM
    # Glass beside the figure would be a bright rim amid other tissue.
    free = _is_free(DENSITY[figure.image], np.zeros_like(near, np.uint8), figure.mpp)
    tissue = cv2.blur(free.astype(np.float32), (round(2 * _FADE_UM / figure.mpp) | 1,) * 2)
    alpha = np.exp(-0.5 * (np.maximum(away - _WHOLE_UM, 0) / _FADE_UM) ** 2) * near * np.where(away > 0, tissue, 1)
    rows, columns = (np.flatnonzero(near.any(axis=axis)) for axis in (1, 0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return alpha[window][..., np.newaxis].astype(np.float32), window


def _places(free: NDArray[np.bool_], height: int, width: int) -> Places:
    """Top-left corners [N, 2] of the windows of this size that are free all over."""
    total = cv2.integral((~free).astype(np.uint8))
    strips = total[height:] - total[:-height]
    return np.argwhere(strips[:, width:] == strips[:, :-width])


def _stained_like(figure: Figure, stain: NDArray[np.float64]) -> FloatArray:
    """Optical density of a figure's crop, stained more like tissue with these levels."""
    ratio = np.maximum(stain, 1e-3) / np.maximum(figure.stain, 1e-3)
    haematoxylin, eosin = np.clip(ratio**_SHARE, 1 / _MAX_FACTOR, _MAX_FACTOR)
    # What is neither stain goes with eosin: pink cytoplasm keeps its hue.
    mix = UNMIX @ np.diag([haematoxylin, eosin, eosin]) @ STAINS
    return np.asarray(DENSITY[figure.image] @ mix.astype(np.float32))


def _least_seam(density: FloatArray, crop: FloatArray, alpha: FloatArray, corners: Places) -> tuple[slice, slice]:
    """Of the windows at some corners the one where figure and tissue differ least where they mix."""
    windows = [(slice(y, y + crop.shape[0]), slice(x, x + crop.shape[1])) for y, x in corners.tolist()]
    return min(windows, key=lambda window: float((alpha * (1 - alpha) * np.abs(density[window] - crop)).sum()))


def upright(figure: Figure) -> Figure:
    """Turn a figure so that the principal axis of its mask is vertical, and move its centre into the middle.

    It is mirrored so that the long tail of its pixels lies below and to the right: then figures of the same shape cover
    each other. What comes in from outside the crop is mirrored.
    """
    places, weights = np.argwhere(figure.mask), figure.mask[figure.mask > 0].astype(np.float64)
    centre = np.average(places, axis=0, weights=weights)
    _, axes = np.linalg.eigh((weights * (places - centre).T) @ (places - centre))  # the long axis comes last
    turn = axes * np.where(weights @ ((places - centre) @ axes) ** 3 < 0, -1, 1)
    matrix = np.column_stack([turn.T[:, ::-1], SIDE // 2 - turn.T @ centre])
    image = cv2.warpAffine(figure.image, matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    mask = np.asarray(cv2.warpAffine(figure.mask.astype(np.float32), matrix, (SIDE, SIDE)), np.float32)
    return replace(figure, image=np.asarray(image, np.uint8), mask=mask >= 0.5 if figure.mask.dtype == bool else mask)


def _nearest(figures: tuple[Figure, ...]) -> Places:
    """For each figure the others with the most similar features, nearest first, int64 [N, k]."""
    k = min(_NEIGHBOURS, len(figures) - 1)
    if k < 1:
        return np.empty((len(figures), 0), np.int64)
    _, nearest = cKDTree(features := _features(figures)).query(features, k + 1)
    # A figure is its own nearest, but not always the first where two are the same.
    return np.array([row[row != number][:k] for number, row in enumerate(nearest)], dtype=np.int64)


def _features(figures: tuple[Figure, ...]) -> NDArray[np.float64]:
    """What figures look like, [N, F]: coarse haematoxylin of the upright middle, and log area; either counts half."""
    middle, n_blocks = slice(SIDE // 4, -SIDE // 4), SIDE // 2 // _BLOCK
    images = np.stack([upright(figure).image[middle, middle] for figure in figures])
    blocks = (DENSITY[images] @ UNMIX[:, 0]).reshape(-1, n_blocks, _BLOCK, n_blocks, _BLOCK).mean(axis=(2, 4))
    blocks /= np.maximum([[[figure.stain[0]]] for figure in figures], 1e-3)
    features = np.hstack([blocks.reshape(len(figures), -1), np.log([[figure.mask.sum()] for figure in figures])])
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-9)
    return np.asarray(features / np.array([n_blocks] * n_blocks**2 + [1]))


def interpolate(bank: FigureBank, rng: np.random.Generator) -> Figure:
    """A figure at a random point between one of the bank and one of its 5 nearest neighbours: SMOTE for images.

    Both are turned upright and blended in optical density: ``(1 - t) * a + t * b``, 0 < t < 1. The mask is blended
    alike, so a pixel that only one of the two has belongs to the figure with a probability.

    Raises
    ------
    PatchIndexError
        The bank holds fewer than two figures.

    References
    ----------
    Chawla et al., J Artif Intell Res 2002;16:321-357.
    """
    if len(bank) < 2:
        raise PatchIndexError(f"SMOTE needs two whole figures in the training patches, not {len(bank)}. Extract more.")
    first = int(rng.integers(len(bank)))
    a, b = (upright(bank.figures[number]) for number in (first, rng.choice(bank.neighbours[first])))
    t = rng.uniform(1e-6, 1 - 1e-6)
    image = to_rgb(((1 - t) * DENSITY[a.image] + t * DENSITY[b.image]).astype(np.float32))
    mask = ((1 - t) * a.mask + t * b.mask).astype(np.float32)
    return Figure(image, mask, a.mpp, (1 - t) * a.stain + t * b.stain, f"{a.source} + {b.source}")
