"""Crops and their masks side by side, so that a person can judge what a network is shown."""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy import ndimage

from mitosis.files import atomic_write
from mitosis.masks import IGNORE, NON_MITOTIC_FIGURE

__all__ = ["draw_contact_sheet"]

DPI = 100
CROP, GAP, MARGIN = 256, 6, 16
HEAD, CAPTION = 66, 24
COLUMNS = 3
LONGEST_CAPTION = 84
INK, QUIET, TISSUE = "#1a1a1a", "#444444", "#9c4f86"
# Apart from each other and from pink and violet for every common kind of colour blindness, and apart by line as well.
OUTLINES: dict[str, tuple[str, Any]] = {
    "mitotic figure": ("#f0e442", "solid"),
    "look-alike": ("#56d0ff", (0, (7, 2))),
    "ignored": ("#ffffff", (0, (1, 1.5))),
}


def draw_contact_sheet(
    path: Path,
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8] | NDArray[np.float32],
    captions: Sequence[str],
    title: str,
) -> None:
    """Write a PNG of crops, each as it is (left) and with the outlines of its mask (right).

    Parameters
    ----------
    path : Path
        The PNG.
    images : uint8 [N, H, W, 3]
    masks : uint8 or float32 [N, H, W]
        0 background, 1 mitotic figure, 2 look-alike, 255 ignore. Values between 0 and 1 are probabilities of a figure;
        the outline runs where they pass 0.5.
    captions : sequence of N str
        What stands under each crop.
    title : str
        What stands above them all.

    Raises
    ------
    ValueError
        There is no crop, or the numbers or sizes of images, masks and captions differ.
    OutputError
        The file cannot be written.
    """
    if images.ndim != 4 or not images.size or masks.shape != images.shape[:3] or len(captions) != len(images):
        raise ValueError(
            "expected images [N, H, W, 3], masks [N, H, W] and N captions with N of at least 1, "
            f"but got {images.shape}, {masks.shape} and {len(captions)}"
        )
    columns = min(COLUMNS, len(images))
    cell = 2 * CROP + GAP + MARGIN, round(CROP * images.shape[1] / images.shape[2]) + CAPTION + MARGIN
    size = MARGIN + columns * cell[0], HEAD + math.ceil(len(images) / columns) * cell[1]
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    _draw_head(figure, title, size)
    for number, (image, mask, caption) in enumerate(zip(images, masks, captions, strict=True)):
        row, column = divmod(number, columns)
        x, y = MARGIN + column * cell[0], HEAD + row * cell[1]
        width, height = cell[0] - MARGIN, cell[1] - MARGIN - CAPTION
        place = (x / size[0], 1 - (y + height) / size[1], width / size[0], height / size[1])
        _draw_pair(figure.add_axes(place), image, mask, caption)
    _save(figure, path)


def _draw_head(figure: Figure, title: str, size: tuple[int, int]) -> None:
    text = figure.text(MARGIN / size[0], 1 - 20 / size[1], " ".join(title.split()), size=14, color=INK)
    text.set(va="center", parse_math=False)
    # On the colour of tissue, as in the crops: yellow on white would be hard to see.
    lines = [Line2D([], [], color=colour, linestyle=dashes, linewidth=1.5) for colour, dashes in OUTLINES.values()]
    place = (MARGIN / size[0], 1 - 36 / size[1])
    options: dict[str, Any] = {"facecolor": TISSUE, "framealpha": 1, "edgecolor": "none", "fancybox": False}
    options |= {"fontsize": 10, "labelcolor": "white", "borderpad": 0.25, "borderaxespad": 0, "handlelength": 3.5}
    figure.legend(lines, list(OUTLINES), loc="upper left", bbox_to_anchor=place, ncols=3, **options)


def _draw_pair(
    axes: Axes, image: NDArray[np.uint8], mask: NDArray[np.uint8] | NDArray[np.float32], caption: str
) -> None:
    height, width = mask.shape
    gap = GAP * width / CROP
    for left in (0, width + gap):
        axes.imshow(image, extent=(left, left + width, height, 0), interpolation="catrom")
    figure = np.where((mask == NON_MITOTIC_FIGURE) | (mask == IGNORE), 0, mask)
    # The inner edge of an ignored ring is the outline of a nucleus, which has a line of its own.
    ignored = ndimage.binary_fill_holes(mask == IGNORE)
    # A frame of background closes the outlines of what the edge cuts.
    x, y = (np.clip(np.arange(-1, n + 1) + 0.5, 0, n) for n in (width, height))
    for part, (colour, dashes) in zip((figure, mask == NON_MITOTIC_FIGURE, ignored), OUTLINES.values(), strict=True):
        if part.max() > 0.5:
            drawn = np.pad(part.astype(np.float32), 1)
            axes.contour(x + width + gap, y, drawn, levels=[0.5], colors=colour, linestyles=[dashes], linewidths=0.9)
    axes.set(xlim=(0, 2 * width + gap), ylim=(height, 0), aspect="auto")
    axes.axis("off")
    short = caption if len(caption) <= LONGEST_CAPTION else f"{caption[: LONGEST_CAPTION - 1]}…"
    text = axes.annotate(short, (0, height), (0, -4), textcoords="offset points", size=10, color=QUIET)
    text.set(va="top", parse_math=False, annotation_clip=False)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A caption may hold letters the font lacks; they become boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", metadata={"Software": None})
    with atomic_write(path) as stream:
        stream.write(buffer.getvalue())
