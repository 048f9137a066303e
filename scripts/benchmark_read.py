"""Reading a slide, against OpenSlide and against nothing but decoding: `benchmark.py read`."""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import simplejpeg
import tifffile
from benchmark_drawn import write_example_slide
from benchmark_figure import Figure
from benchmark_turns import take_turns
from numpy.typing import NDArray

from mitosis.geometry import Box, grid_dimensions
from mitosis.slides import Slide, open_slide, read_at_mpp
from mitosis.slides.tiff import TiffSlide

__all__ = ["READ_SIDE", "benchmark_read"]

READ_SIDE = 8192
"""Side of the drawn slide, px."""
ROUNDS = 5
REGION, N_REGIONS = 512, 60
HALVED_MPP = (0.25, 0.2456)  # a whole number of half-size pixels, and none


def benchmark_read(arguments: argparse.Namespace) -> list[Figure]:
    """Time to read a JPEG slide, against OpenSlide and against nothing but decoding the same tiles.

    Then at 0.5 µm/px, where tiles are decoded at half size, against the same reading with tiles decoded in full.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.slide or write_example_slide(Path(folder) / "example.svs", arguments.side or READ_SIDE)
        with open_slide(path, mpp=0.25) as slide:
            figures = [
                *_read_figures("tiles in order", slide, _tiles_in_order(slide)),
                *_read_figures(f"random {REGION} px", slide, _random_regions(slide)),
            ]
        return [*figures, *(figure for mpp in HALVED_MPP for figure in _half_figures(path, mpp))]


def _read_figures(name: str, slide: Slide, rounds: Sequence[Sequence[Box]]) -> Iterator[Figure]:
    rival, tiles = openslide.OpenSlide(slide.path), _RawTiles(slide.path)
    contenders: dict[str, Callable[[Any], Any]] = {
        "mitosis": lambda box: slide.read_region((box.x0, box.y0), 0, box.size),
        "openslide": lambda box: np.asarray(rival.read_region((box.x0, box.y0), 0, box.size).convert("RGB")),
        "decoding": lambda stream: simplejpeg.decode_jpeg(stream, "RGB", strict=True),
    }
    work = [{"mitosis": boxes, "openslide": boxes, "decoding": tiles.touched(boxes)} for boxes in rounds]
    seconds = take_turns(contenders, work)
    for box in (box for boxes in rounds for box in boxes):
        _check_pixels(contenders["mitosis"](box), contenders["openslide"](box))
    rival.close()
    megapixels = statistics.mean(sum(b.size[0] * b.size[1] for b in boxes) for boxes in rounds) / 1e6
    cost = {contender: 1000 * value / megapixels for contender, value in seconds.items()}
    for baseline in ("openslide", "decoding"):
        ratio = cost[baseline] / cost["mitosis"]
        yield Figure(f"{name}, against {baseline}", cost["mitosis"], "CPU ms/Mpx", cost[baseline], ratio)


class _InFull(TiffSlide):
    """A slide whose tiles are never decoded smaller than they are."""

    def reductions(self, level: int) -> tuple[int, ...]:  # noqa: ARG002 (signature of Slide)
        return ()


def _half_figures(path: Path, mpp: float) -> Iterator[Figure]:
    """Time to read windows at 0.5 µm/px of a slide of `mpp`, beside reading without reduction and beside decoding."""
    tiles, side = _RawTiles(path), int(REGION * 0.5 / mpp)
    with TiffSlide(path, mpp) as slide, _InFull(path, mpp) as in_full:
        contenders: dict[str, Callable[[Any], Any]] = {
            "mitosis": lambda box: read_at_mpp(slide, box, 0.5),
            "full tiles": lambda box: read_at_mpp(in_full, box, 0.5),
            "decoding": lambda stream: simplejpeg.decode_jpeg(stream, "RGB", strict=True),
        }
        width, height = grid_dimensions(slide.dimensions, mpp, 0.5)
        places = np.random.default_rng(0).integers(0, (width - REGION, height - REGION), (ROUNDS, N_REGIONS // 4, 2))
        rounds = [[Box(x, y, x + REGION, y + REGION) for x, y in some] for some in places.tolist()]
        full = [[Box(*(int(edge * 0.5 / mpp) for edge in box)) for box in boxes] for boxes in rounds]
        work: list[dict[str, Sequence[Any]]] = [
            {"mitosis": boxes, "full tiles": boxes, "decoding": tiles.touched(touched)}
            for boxes, touched in zip(rounds, full, strict=True)
        ]
        seconds = take_turns(contenders, work)
        _check_likeness(contenders["mitosis"](rounds[0][0]), contenders["full tiles"](rounds[0][0]))
    cost = {contender: 1000 * value / (N_REGIONS // 4 * side**2 / 1e6) for contender, value in seconds.items()}
    for baseline in ("full tiles", "decoding"):
        name = f"{mpp:g} at 0.5 µm/px, against {baseline}"
        yield Figure(name, cost["mitosis"], "CPU ms/Mpx", cost[baseline], cost[baseline] / cost["mitosis"])


def _check_pixels(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> None:
    difference = np.abs(ours.astype(np.int16) - theirs).max()
    if difference > 1:
        raise SystemExit(f"pixels differ from OpenSlide's by {difference}: the times say nothing.")


def _check_likeness(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> None:
    difference = np.abs(ours.astype(np.int16) - theirs).mean()
    if difference > 3:
        raise SystemExit(f"reduced pixels differ by {difference:.1f} levels in the mean: the times say nothing.")


class _RawTiles:
    """Complete JPEG streams of a slide's level 0, ready to decode."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            if page.compression != tifffile.COMPRESSION.JPEG or not page.is_tiled:
                raise SystemExit(f"{path}: this benchmark needs a slide of JPEG tiles.")
            self._offsets, self._counts, self._tables = page.dataoffsets, page.databytecounts, page.jpegtables
            self.side = (page.tilewidth, page.tilelength)
            self._across = -(-page.imagewidth // page.tilewidth)

    def touched(self, boxes: Sequence[Box]) -> list[bytes]:
        """Streams of the tiles that each box touches; a tile touched by two boxes comes twice."""
        width, height = self.side
        return [
            self._stream(row * self._across + column)
            for box in boxes
            for row in range(box.y0 // height, -(-box.y1 // height))
            for column in range(box.x0 // width, -(-box.x1 // width))
        ]

    def _stream(self, index: int) -> bytes:
        raw = self._data[self._offsets[index] : self._offsets[index] + self._counts[index]]
        return self._tables[:-2] + raw[2:] if self._tables else raw


def _tiles_in_order(slide: Slide) -> list[list[Box]]:
    """Every whole tile of level 0 once, row by row, dealt to the rounds in runs."""
    width, height = _RawTiles(slide.path).side
    columns, rows = slide.dimensions[0] // width, slide.dimensions[1] // height
    places = [(column * width, row * height) for row in range(rows) for column in range(columns)]
    run = len(places) // ROUNDS
    boxes = [Box(x, y, x + width, y + height) for x, y in places]
    return [boxes[n * run : (n + 1) * run] for n in range(ROUNDS)]


def _random_regions(slide: Slide) -> list[list[Box]]:
    rng = np.random.default_rng(0)
    highest = np.subtract(slide.dimensions, REGION)
    corners = rng.integers(0, highest, (ROUNDS, N_REGIONS, 2), endpoint=True).tolist()
    return [[Box(x, y, x + REGION, y + REGION) for x, y in places] for places in corners]
