"""Crops round mitotic figures as mosaics, one a slide, so that they can be read as slides are."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mitosis.files import write_text

MPP = 0.25
"""µm/px of all crops."""

MOSAIC_WIDTH, FADE, NEAR = 768, 8, 28
"""Width of a mosaic; over how many px neighbours are blended; how near to an edge of its part a figure may lie, px."""


def write_mosaics(source: Path, out: Path) -> None:
    """Crops of 128 px round figures become a picture a slide, its parts of all sizes and blended at their edges.

    Were they laid out in a grid, a network would learn that figures lie in the middle of its squares.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = ["slide,case,domain,mpp,annotations"]
    for name, files in pictures_of(source).items():
        mosaic, places = _mosaic([read_picture(file) for file in files], np.random.default_rng([*name.encode()]))
        Image.fromarray(mosaic).save(out / f"{name}.png")
        write_text(out / f"{name}.csv", "x,y,label\n" + "".join(f"{x},{y},mitotic figure\n" for x, y in places))
        case = name.partition("_stitched")[0]
        lines.append(f"{name}.png,{case},{_scanner(case)},{MPP},{name}.csv")
    write_text(out / "manifest.csv", "\n".join(lines) + "\n")


def pictures_of(source: Path) -> dict[str, list[Path]]:
    """The crops of each slide, both sorted."""
    files: dict[str, list[Path]] = {}
    with (source / "crops.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            files.setdefault(f"{row['dataset']}_{row['slide'].partition('.')[0]}", []).append(source / row["file"])
    return {name: sorted(files[name]) for name in sorted(files)}


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A crop, uint8 [128, 128, 3]."""
    return np.asarray(Image.open(path).convert("RGB"))


def _scanner(case: str) -> str:
    """Slides 1 to 50 of MIDOG 2021 were scanned on a Hamamatsu XR, to 100 on an S360, to 150 on an Aperio CS2."""
    dataset, _, slide = case.partition("_")
    if dataset != "MIDOG21":
        return "tupac"
    return ("midog-xr", "midog-s360", "midog-cs2")[(int(slide) - 1) // 50]


def _mosaic(
    images: Sequence[NDArray[np.uint8]], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """The picture and the places of the figures; crops are shown again, turned, until the last row is full."""
    half = len(images[0]) // 2
    rows = list(_rows(len(images), rng))
    canvas = np.full((sum(height for height, _ in rows), MOSAIC_WIDTH, 3), 255.0)
    places, pending, y = [], list[int](), 0
    for height, widths in rows:
        x = 0
        for width in widths:
            pending = pending or rng.permutation(len(images)).tolist()
            image = np.rot90(images[pending.pop()], int(rng.integers(4)))
            left, top = (int(rng.integers(max(NEAR, n - half), min(half, n - NEAR) + 1)) for n in (width, height))
            _blend(canvas, image, (x, y), (half - left, half - top), (width, height))
            places.append((x + left, y + top))
            x += width
        y += height
    return np.rint(canvas).astype(np.uint8), places


def _rows(n: int, rng: np.random.Generator) -> Iterator[tuple[int, list[int]]]:
    """Height of each row of a mosaic and widths of its parts, for at least `n` parts."""
    done = 0
    while done < n:
        widths, left = list[int](), MOSAIC_WIDTH
        while left:
            width = int(rng.integers(64, 129))
            if left - width < 64:
                width = left if left <= 128 else left // 2
            widths.append(width)
            left -= width
        yield int(rng.integers(64, 113)), widths
        done += len(widths)


def _blend(
    canvas: NDArray[np.float64],
    image: NDArray[np.uint8],
    place: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Put the part of `image` that starts at `corner` on the canvas, fading in over what lies left of it and above."""
    (x, y), (column, row), (width, height) = place, corner, size
    before_x, before_y = (min(FADE, start, at) for start, at in zip(corner, place, strict=True))
    part = image[row - before_y : row + height, column - before_x : column + width].astype(np.float64)
    target = canvas[y - before_y : y + height, x - before_x : x + width]
    across, down = (
        np.minimum(1, np.arange(1, n + before + 1) / (before + 1))
        for n, before in ((width, before_x), (height, before_y))
    )
    weight = (down[:, None] * across)[..., None]
    target[:] = weight * part + (1 - weight) * target
