"""Annotations become masks: what each pixel of a patch is.

Outlines are drawn as they are. A point says where a nucleus is, not which pixels it covers: the dark nucleus at the
point is looked for in the image, and where it is not clear a plain disc stands in. What lies close round such a
nucleus is ignored, so that nobody is punished for its exact border.
"""

import math
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from mitosis.annotations import Annotation, Label
from mitosis.errors import PatchIndexError
from mitosis.files import atomic_write
from mitosis.geometry import Box

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "MITOTIC_FIGURE",
    "NON_MITOTIC_FIGURE",
    "NUCLEUS_RADIUS_UM",
    "draw_mask",
    "find_nucleus",
    "load_mask",
    "save_mask",
]

BACKGROUND = 0
MITOTIC_FIGURE = 1
NON_MITOTIC_FIGURE = 2
IGNORE = 255

NUCLEUS_RADIUS_UM = 8.0
"""How far a nucleus may reach from its point; 19 of 20 outlined figures of ICPR 2012 stay within it."""

_VALUES = {Label.NON_MITOTIC_FIGURE: NON_MITOTIC_FIGURE, Label.MITOTIC_FIGURE: MITOTIC_FIGURE}
_COLOURS = {BACKGROUND: (0, 0, 0), MITOTIC_FIGURE: (220, 30, 30), NON_MITOTIC_FIGURE: (40, 90, 220), IGNORE: (128,) * 3}

# Measured on the outlined figures of the ICPR 2012 training fields: areas of 13 to 168 µm² (median 31), contrasts
# below 0.3 in 1 figure of 200, but in 2 of 3 discs at random places.
_MIN_AREA_UM2, _MAX_AREA_UM2 = 8.0, 150.0
_MIN_CONTRAST = 0.3
_PLAIN_RADIUS_UM = 3.0
_BLUR_UM = 0.4
# Experts' points lie up to 3 µm beside the nucleus (MITOS-ATYPIA-14), in telophase between the two plates.
_REACH_UM = 3.0
_MIDDLE_UM = 2.0
_MAX_AREA_RATIO = 2.0


def draw_mask(
    annotations: Iterable[Annotation],
    box: Box,
    mpp: float,
    slide_mpp: float,
    image: NDArray[np.uint8] | None = None,
    *,
    nucleus_radius_um: float = NUCLEUS_RADIUS_UM,
    ignore_um: float = 1.0,
    outline_ignore_um: float = 0.0,
) -> NDArray[np.uint8]:
    """Mask of a box of a slide.

    A pixel belongs to an outline if its centre does. Figures win over look-alikes, both over ignored pixels.

    Parameters
    ----------
    annotations : iterable of Annotation, level-0 px
        Those that do not reach into the box draw nothing.
    box : Box
        px of the grid at `mpp` (``mitosis.geometry``).
    mpp, slide_mpp : float
        µm/px of the grid and of level 0.
    image : uint8 [H, W, 3] or None
        The pixels of the box, in which the nuclei of points are looked for. Without it points become plain discs.
    nucleus_radius_um : float
        A point's nucleus lies in a disc of this radius. Where it is not clear, an inner disc of 3 µm is taken for it
        and the rest is ignored.
    ignore_um : float
        Width of the ignored ring round the nucleus of a point.
    outline_ignore_um : float
        Width of the ignored ring round an outline; an expert's outline needs none.

    Returns
    -------
    uint8 [H, W]
        `BACKGROUND`, `MITOTIC_FIGURE`, `NON_MITOTIC_FIGURE` or `IGNORE`.
    """
    width, height = box.size
    ratio, reach = mpp / slide_mpp, nucleus_radius_um / mpp
    annotations = tuple(annotations)
    if not annotations:  # most patches
        return np.full((height, width), BACKGROUND, np.uint8)
    labelled = {label: np.zeros((height, width), bool) for label in _VALUES}
    outlined, refined, ignored = (np.zeros((height, width), bool) for _ in range(3))
    for annotation in annotations:
        x, y = annotation.x / ratio - box.x0, annotation.y / ratio - box.y0
        if annotation.outlines:
            nucleus = _outline_pixels(annotation, box, ratio)
            outlined |= nucleus
        elif not (abs(x - width / 2) < width / 2 + reach and abs(y - height / 2) < height / 2 + reach):
            continue
        elif image is not None and (found := find_nucleus(image, x, y, mpp, nucleus_radius_um)) is not None:
            nucleus = found
            refined |= nucleus
        else:
            nucleus = _disc(x, y, (height, width), min(_PLAIN_RADIUS_UM / mpp, reach))
            ignored |= _disc(x, y, (height, width), reach)
        labelled[annotation.label] |= nucleus
    ignored |= _within(refined, ignore_um / mpp) | _within(outlined, outline_ignore_um / mpp)
    mask = np.where(ignored, np.uint8(IGNORE), np.uint8(BACKGROUND))
    for label, value in _VALUES.items():
        mask[labelled[label]] = value
    return mask


def _outline_pixels(annotation: Annotation, box: Box, ratio: float) -> NDArray[np.bool_]:
    """Pixels of the box whose centre lies in the outlines; a centre on a left or top edge counts as inside."""
    width, height = box.size
    covered = np.zeros((height, width), bool)
    x0, y0, x1, y1 = shapely.total_bounds(annotation.outlines) / ratio
    columns = np.arange(max(box.x0, math.floor(x0)), min(box.x1, math.ceil(x1)))
    rows = np.arange(max(box.y0, math.floor(y0)), min(box.y1, math.ceil(y1)))
    if len(columns) and len(rows):
        x, y = np.meshgrid((columns + 0.5) * ratio + 1e-6, (rows + 0.5) * ratio + 1e-6)
        inside = np.any([shapely.contains_xy(outline, x, y) for outline in annotation.outlines], axis=0)
        covered[np.ix_(rows - box.y0, columns - box.x0)] = inside
    return covered


def _within(region: NDArray[np.bool_], distance: float) -> NDArray[np.bool_]:
    """Pixels at most `distance` px from a region, itself included."""
    if distance <= 0 or not region.any():
        return region
    near: NDArray[np.bool_] = ndimage.distance_transform_edt(~region) <= distance
    return near


def _disc(x: float, y: float, shape: tuple[int, int], radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    disc: NDArray[np.bool_] = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2
    return disc


def find_nucleus(
    image: NDArray[np.uint8], x: float, y: float, mpp: float, radius_um: float = NUCLEUS_RADIUS_UM
) -> NDArray[np.bool_] | None:
    """The dark nucleus at a point, where there clearly is one.

    Chromatin takes up haematoxylin and is dark in red light, in which eosin is nearly invisible. Otsu's threshold in a
    disc round the point parts nucleus from surroundings. The piece nearest the point is taken; and where the point lies
    in the middle between two pieces of similar size, as experts mark telophase, both are.

    Parameters
    ----------
    image : uint8 [H, W, 3]
        H&E.
    x, y : float
        The point, px of the image.
    mpp : float
        µm/px of the image.
    radius_um : float
        How far the nucleus may reach from the point.

    Returns
    -------
    bool [H, W] or None
        None: no piece of plausible size near the point stands out.
    """
    if not (0 <= x < image.shape[1] and 0 <= y < image.shape[0]):
        return None
    reach = math.ceil((radius_um + 4 * _BLUR_UM) / mpp)
    x0, y0 = max(0, int(x) - reach), max(0, int(y) - reach)
    window = slice(y0, int(y) + reach + 1), slice(x0, int(x) + reach + 1)
    nucleus = _nucleus(image[window][..., 0], x - x0, y - y0, mpp, radius_um / mpp)
    if nucleus is None:
        return None
    found = np.zeros(image.shape[:2], bool)
    found[window] = nucleus
    return found


def _nucleus(red: NDArray[np.uint8], x: float, y: float, mpp: float, radius: float) -> NDArray[np.bool_] | None:
    darkness = ndimage.gaussian_filter(-np.log((red + 1.0) / 256.0), _BLUR_UM / mpp)
    dark = _clearly_dark(darkness, _disc(x, y, red.shape, radius))
    if dark is None:
        return None
    pieces, _ = ndimage.label(ndimage.binary_fill_holes(dark))
    areas = (np.bincount(pieces.ravel()) * mpp**2).tolist()
    plausible = [k for k in range(1, len(areas)) if _MIN_AREA_UM2 <= areas[k] <= _MAX_AREA_UM2]
    chosen = _plates(pieces, areas, plausible, x, y, _MIDDLE_UM / mpp)
    chosen = chosen or _nearest(pieces, plausible, x, y, _REACH_UM / mpp)
    return np.isin(pieces, chosen) if chosen else None


def _clearly_dark(darkness: NDArray[np.float64], disc: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    values = darkness[disc]
    if not values.size or np.ptp(values) < _MIN_CONTRAST:
        return None
    threshold = float(threshold_otsu(values))  # type: ignore[no-untyped-call]  # untyped library
    contrast = values[values > threshold].mean() - values[values <= threshold].mean()
    return disc & (darkness > threshold) if contrast >= _MIN_CONTRAST else None


def _nearest(pieces: NDArray[np.int32], plausible: list[int], x: float, y: float, reach: float) -> list[int]:
    """The piece with the pixel nearest the point, if that is within `reach` px."""
    rows, columns = np.nonzero(np.isin(pieces, plausible))
    distance = np.hypot(columns + 0.5 - x, rows + 0.5 - y)
    if not len(distance) or distance.min() > reach:
        return []
    nearest = int(distance.argmin())
    return [int(pieces[rows[nearest], columns[nearest]])]


def _plates(
    pieces: NDArray[np.int32], areas: list[float], plausible: list[int], x: float, y: float, reach: float
) -> list[int]:
    """Two pieces of similar area whose middle is within `reach` px of the point, which lies in neither."""
    if not plausible or pieces[int(y), int(x)] in plausible:
        return []
    centres = np.array(ndimage.center_of_mass(pieces > 0, pieces, plausible))[:, ::-1] + 0.5
    best, distance = [], reach
    for (i, a), (j, b) in combinations(enumerate(plausible), 2):
        off = float(np.hypot(*((centres[i] + centres[j]) / 2 - (x, y))))
        if off <= distance and max(areas[a], areas[b]) <= _MAX_AREA_RATIO * min(areas[a], areas[b]):
            best, distance = [a, b], off
    return best


def save_mask(path: Path, mask: NDArray[np.uint8]) -> None:
    """Write a mask (uint8 [H, W]) as PNG whose pixels are the labels and which viewers show in colours."""
    image = Image.fromarray(mask)
    palette = np.zeros((256, 3), np.uint8)
    for value, colour in _COLOURS.items():
        palette[value] = colour
    image.putpalette(palette.tobytes())
    with atomic_write(path) as stream:
        image.save(stream, format="PNG", optimize=True)


def load_mask(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a mask written by `save_mask`.

    Parameters
    ----------
    size : (width, height) or None
        What it must measure, px.

    Returns
    -------
    uint8 [H, W]

    Raises
    ------
    PatchIndexError
        It is missing, damaged, of another size or not a mask.
    """
    try:
        with Image.open(path) as image:
            mode, mask = image.mode, np.array(image)
    except FileNotFoundError as error:
        raise PatchIndexError(f"{path}: there is no such mask. Extract the patches again.") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise PatchIndexError(f"{path}: the mask is damaged ({error}). Extract the patches again.") from error
    if mode not in {"P", "L"} or not np.isin(mask, list(_COLOURS)).all():
        raise PatchIndexError(f"{path}: not a mask of 0, 1, 2 and 255. Extract the patches again.")
    height, width = mask.shape
    if size is not None and size != (width, height):
        raise PatchIndexError(
            f"{path}: {width} x {height} px, but its patch has {size[0]} x {size[1]} px. Extract the patches again."
        )
    return mask
