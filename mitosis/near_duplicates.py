"""The same tissue under two case names: re-encoded, mirrored, turned or shifted copies of an image.

A hash of a whole image does not survive a shift, and fields of one glass slide from two scanners are never cut at the
same place. So pairs of images are correlated: band-passed optical density, its spectrum half whitened, at every shift
and in the eight symmetries of the square (`SCREEN_Z`); where that stands out, once more with the correlation taken over
the overlap only (`OVERLAP_SCORE`). Thousands of images make too many pairs for this: then a hash of each image
(signs of its cosine transform) chooses which pairs are correlated.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

from mitosis.patches import Patch, PatchIndex
from mitosis.splits import TRAIN, VAL

__all__ = ["MAX_PAIRS", "NearDuplicate", "Record", "count_pairs", "find_near_duplicates", "read_records"]

FloatArray = NDArray[np.float32]
Pairs = NDArray[np.int64]

MAX_PAIRS = 500_000
"""How many pairs are correlated at most: all pairs of 1,000 images, a few minutes on one core."""

SIDE = 64
"""Side that images are brought to, px."""

COARSEST_MPP = 8.0
"""µm/px at most; nuclei still leave a trace there. A slide that is wider than `SIDE` at it is cut into parts."""

FINE, COARSE = 1.0, 4.0
"""Standard deviations of the two Gaussians whose difference is the band that is compared, px."""

GLASS_OD, BLACK_OD = 0.05, 4.0
"""Mean optical densities outside of which a pixel shows no tissue: glass, or white or black filler."""

MIN_TISSUE = 0.2
"""An image of which less than this share is tissue is not compared."""

MIN_OVERLAP = 0.2
"""Share of the smaller image's tissue that an overlap must have."""

SCREEN_Z = 4.5
"""Peak of the correlation over its standard deviation, from which on a pair is looked at again."""

OVERLAP_SCORE = 6.0
"""Square of the correlation over the overlap, times the root of the number of independent values in it, from which on
it is a copy. Measured: at most 3.5 for fields of other cases (MITOS 2012 and ATYPIA 14, 39,682 pairs), 5.6 for crops
all centred on a figure (AMi-Br, 78,549 pairs); copies have 6.3 or more if resampled by 5 % or a third overlaps."""

# Pixels to one independent value: the area under the autocorrelation of noise seen through a Gaussian of FINE px.
_CELL = 4 * np.pi * FINE**2
_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)  # what undoes each symmetry
_HASH_SIDE, _HASH_NEAR, _BATCH = 16, 0.4, 256


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A small grey image and where it belongs.

    Attributes
    ----------
    name, case, split : str
        Records of one name are parts of one image.
    image : float [h, w]
        Brightness or optical density, about 64 px wide; NaN where nothing is known. All at one µm/px.
    """

    name: str
    case: str
    split: str
    image: FloatArray = field(repr=False)


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two images of one tissue.

    Attributes
    ----------
    similarity : float
        Correlation over the overlap, at most 1.
    how : str
        `copy` or `overlap`, and how the second must be mirrored, then turned anticlockwise, to lie as the first does.
    overlap : float
        Share of the smaller image's tissue that the other one shows as well.
    """

    first: Record
    second: Record
    similarity: float
    how: str
    overlap: float

    @property
    def crosses_split(self) -> bool:
        """Whether one is for training and the other for validation."""
        return {self.first.split, self.second.split} == {TRAIN, VAL}


def find_near_duplicates(records: Sequence[Record], max_pairs: int = MAX_PAIRS) -> list[NearDuplicate]:
    """Pairs of images of different cases that show the same tissue, those across the split and the most alike first.

    It finds copies that were encoded anew, recoloured a little, resampled by 5 %, mirrored or turned by quarter turns,
    if they share a third of their area. Not found: other angles and scales, images without texture. Of two images with
    several parts the strongest match is given.

    If there are more than `max_pairs` pairs of different cases, images with similar hashes are correlated, then those
    across the split, up to this number. Copies of whole images are then still found, overlaps not all.

    References
    ----------
    Kuglin, Hines: The phase correlation image alignment method. Proc Int Conf Cybernetics and Society 1975;163-165.
    Padfield: Masked object registration in the Fourier domain. IEEE Trans Image Process 2012;21:2706-2718.
    """
    shown = [record for record in records if _has_texture(record.image)]
    pictures = [_band(record.image) for record in shown]
    strongest: dict[tuple[str, str], NearDuplicate] = {}
    for i, j, symmetry in _screen(pictures, _choose_pairs(shown, pictures, max_pairs)):
        similarity, overlap = _correlate_overlap(pictures[i], _symmetric(pictures[j], symmetry))
        first, second = sorted((shown[i], shown[j]), key=lambda record: (record.split, record.case, record.name))
        before = strongest.get((first.name, second.name))
        if similarity and (before is None or similarity > before.similarity):
            how = _describe(symmetry if first is shown[i] else _INVERSE[symmetry], overlap)
            strongest[first.name, second.name] = NearDuplicate(first, second, similarity, how, overlap)
    return sorted(
        strongest.values(), key=lambda d: (not d.crosses_split, -round(d.similarity, 3), d.first.name, d.second.name)
    )


def count_pairs(records: Iterable[Record]) -> int:
    """Pairs of images of different cases that can be compared."""
    sizes: dict[str, int] = defaultdict(int)
    for record in records:
        sizes[record.case] += _has_texture(record.image)
    total = sum(sizes.values())
    return (total**2 - sum(n**2 for n in sizes.values())) // 2


def read_records(index: PatchIndex) -> Iterator[list[Record]]:
    """The slides of an index, put together from their tiles; for each slide its parts, in the order of the index.

    A part is about 64 px wide, at 8 µm/px or less. Where a slide has no tile of the grid all its patches are taken.

    Raises
    ------
    PatchIndexError
        The file of a patch cannot be read.
    """
    slides: dict[str, list[Patch]] = defaultdict(list)
    for patch in index.patches:
        slides[patch.slide_id].append(patch)
    kept = [[p for p in patches if p.on_grid] or patches for patches in slides.values()]
    side = _tile_side(kept)
    for patches in kept:
        first, mosaic = patches[0], _mosaic(index, patches, side)
        yield [Record(first.slide_id, first.case_id, first.split, part) for part in _parts(mosaic)]


def _tile_side(slides: Sequence[Sequence[Patch]]) -> int:
    """Side of a tile such that the usual slide is `SIDE` px wide, unless that were coarser than `COARSEST_MPP`."""
    edges = [np.array([list(patch.box) for patch in patches]) for patches in slides]
    widths = [(e[:, 2:].max(axis=0) - e[:, :2].min(axis=0)).max() for e in edges]
    size, mpp = slides[0][0].size, slides[0][0].mpp
    side = round(max(SIDE * size / float(np.median(widths)), size * mpp / COARSEST_MPP))
    return min(max(side, 1), size)


def _mosaic(index: PatchIndex, patches: Sequence[Patch], side: int) -> FloatArray:
    """Mean optical density of a slide, float32 [h, w]; NaN where it has no patch, or glass."""
    x0, y0 = min(p.box.x0 for p in patches), min(p.box.y0 for p in patches)
    places = [(round((p.box.x0 - x0) * side / p.size), round((p.box.y0 - y0) * side / p.size)) for p in patches]
    shape = (max(y for _, y in places) + side, max(x for x, _ in places) + side)
    mosaic = np.full(shape, np.nan, np.float32)
    for patch, (x, y) in zip(patches, places, strict=True):
        small = Image.fromarray(index.read_image(patch)).resize((side, side), Image.Resampling.BOX)
        density = -np.log((np.asarray(small, np.float32) + 1) / 256).mean(axis=-1)
        mosaic[y : y + side, x : x + side] = np.where((density > GLASS_OD) & (density < BLACK_OD), density, np.nan)
    # A pixel beside the slide's edge or glass is part of both. A line of such pixels would look like any other one.
    mosaic[ndimage.binary_dilation(np.isnan(mosaic), np.ones((3, 3)))] = np.nan
    return mosaic


def _parts(mosaic: FloatArray) -> list[FloatArray]:
    """Equal parts whose sides are near `SIDE`."""
    n_rows, n_columns = (max(1, round(length / SIDE)) for length in mosaic.shape)
    return [part for row in np.array_split(mosaic, n_rows) for part in np.array_split(row, n_columns, axis=1)]


def _has_texture(image: FloatArray) -> bool:
    known = image[np.isfinite(image)]
    return bool(known.size > MIN_TISSUE * image.size and np.ptp(known) > 1e-3 * np.abs(known).max())


def _band(image: FloatArray) -> FloatArray:
    """The image between `FINE` and `COARSE`, of mean 0 and deviation 1; NaN where nothing is known."""
    known = np.isfinite(image)
    filled = np.where(known, image, image[known].mean()).astype(np.float32)
    band = ndimage.gaussian_filter(filled, FINE) - ndimage.gaussian_filter(filled, COARSE)
    band -= band[known].mean()
    # Clipped, so that a few folds or specks of dirt are not all there is.
    return np.where(known, np.clip(band / (band[known].std() + 1e-9), -3, 3), np.nan).astype(np.float32)


def _symmetric(image: FloatArray, symmetry: int) -> FloatArray:
    """One of the eight symmetries of the square: 0 to 3 quarter turns, and 4 more after mirroring."""
    return np.rot90(image[:, ::-1] if symmetry >= 4 else image, symmetry % 4)


def _describe(symmetry: int, overlap: float) -> str:
    words = ["copy" if overlap > 0.9 else "overlap"] + ["mirrored"] * (symmetry >= 4)
    return ", ".join(words + [f"turned by {90 * (symmetry % 4)}°"] * (symmetry % 4 > 0))


def _choose_pairs(records: Sequence[Record], pictures: Sequence[FloatArray], max_pairs: int) -> Pairs:
    """Pairs of different cases, int64 [n, 2], at most `max_pairs`, sorted."""
    cases = np.unique([record.case for record in records], return_inverse=True)[1]
    splits = np.array([record.split for record in records])
    few = count_pairs(records) <= max_pairs
    hashes = np.stack([_hashes(picture) for picture in pictures]) if not few else np.zeros((len(records), 8, 1))
    kept, ranks = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for i in range(len(records)):
        others = i + 1 + np.flatnonzero(cases[i + 1 :] != cases[i])
        distance = (1 - (hashes[others, 0] @ hashes[i].T).max(axis=1, initial=-1) / hashes.shape[2]) / 2
        rank = np.where(distance < _HASH_NEAR, distance, np.where(splits[others] != splits[i], 1.0, 2.0) + distance)
        kept.append(np.stack([np.full_like(others, i), others], axis=1))
        ranks.append(rank.astype(np.float32))
        if sum(map(len, kept)) > 2 * max_pairs or i == len(records) - 1:
            best = np.argsort(np.concatenate(ranks), kind="stable")[:max_pairs]
            kept, ranks = [np.concatenate(kept)[best]], [np.concatenate(ranks)[best]]
    return kept[0][np.lexsort(kept[0].T[::-1])]


def _hashes(picture: FloatArray) -> FloatArray:
    """Signs of the low cosine coefficients of the eight symmetries, float32 [8, m]."""
    square = Image.fromarray(np.nan_to_num(picture)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    turned = (_symmetric(np.asarray(square), symmetry) for symmetry in range(8))
    low = [fft.dctn(image)[:_HASH_SIDE, :_HASH_SIDE].ravel()[1:] for image in turned]
    return np.where(np.stack(low) > 0, 1, -1).astype(np.float32)


def _screen(pictures: Sequence[FloatArray], pairs: Pairs) -> Iterator[tuple[int, int, int]]:
    """Pairs (i, j) whose correlation has a peak that stands out, and the symmetry of j at which it does."""
    if not len(pairs):
        return
    side = fft.next_fast_len(max(max(picture.shape) for picture in pictures), real=True)
    spectra = np.stack([_spectrum(picture, side) for picture in pictures])
    areas = np.array([np.isfinite(picture).sum() for picture in pictures])
    for i in np.unique(pairs[:, 0]).tolist():
        others = pairs[pairs[:, 0] == i, 1]
        # The inverse of a symmetry is one too; turning i instead of j means eight spectra a row, not eight a pair.
        turned = [np.conj(_spectrum(_symmetric(pictures[i], _INVERSE[symmetry]), side)) for symmetry in range(8)]
        for js in np.split(others, range(_BATCH, len(others), _BATCH)):
            # The deviation is that of all shifts; where the overlap is largest it is larger by this much.
            excess = side / np.sqrt(np.maximum(areas[js], areas[i]))
            peaks = np.stack([_peaks(spectra[js] * one, side) for one in turned]) / excess
            for column in np.flatnonzero(peaks.max(axis=0) > SCREEN_Z).tolist():
                yield i, int(js[column]), int(peaks[:, column].argmax())


def _spectrum(picture: FloatArray, side: int) -> NDArray[np.complex64]:
    """Fourier transform, each coefficient over the root of its size: halfway to phase correlation."""
    padded = np.zeros((side, side), np.float32)
    padded[: picture.shape[0], : picture.shape[1]] = np.nan_to_num(picture)
    transform = fft.rfft2(padded)
    return np.asarray(transform / np.sqrt(np.abs(transform) + 1e-6), np.complex64)


def _peaks(products: NDArray[np.complex64], side: int) -> FloatArray:
    """Highest value of each correlation over its standard deviation, float32 [n]."""
    values = fft.irfft2(products, (side, side)).reshape(len(products), -1)
    deviation = np.sqrt(np.einsum("ij,ij->i", values, values) / values.shape[1])
    return np.asarray(values.max(axis=1) / np.maximum(deviation, 1e-12))


def _correlate_overlap(first: FloatArray, second: FloatArray) -> tuple[float, float]:
    """Highest correlation over an overlap and the overlap's share of the smaller image; (0, 0) if there is none."""
    shape = tuple(fft.next_fast_len(a + b - 1, real=True) for a, b in zip(first.shape, second.shape, strict=True))
    stacks = []
    for image in (first, second):
        values = np.nan_to_num(image)
        stacks.append(fft.rfft2(np.stack([values, values**2, np.isfinite(image).astype(np.float32)]), shape))
    (a, a2, a1), (b, b2, b1) = stacks[0], np.conj(stacks[1])
    both, power, other, n = fft.irfft2(np.stack([a * b, a2 * b1, a1 * b2, a1 * b1]), shape)
    smaller = min(int(np.isfinite(image).sum()) for image in (first, second))
    enough = n > MIN_OVERLAP * smaller
    similarity = np.where(enough, both / np.sqrt(np.maximum(power * other, 1e-3)), 0)
    score = similarity * np.abs(similarity) * np.sqrt(np.maximum(n, 0) / _CELL)
    best = np.unravel_index(int(score.argmax()), shape)
    if score[best] < OVERLAP_SCORE:
        return 0.0, 0.0
    return min(float(similarity[best]), 1.0), min(float(n[best]) / smaller, 1.0)
